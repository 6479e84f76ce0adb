"""``python -m benchmarks.mount_slow STORE BUCKET DIR SECONDS [CACHE]``: a mount of a store whose
nodes all take so much longer for each call, as nodes of other machines do; with a disk cache in the
folder ``CACHE``. Prints ``ready``."""

from __future__ import annotations

import sys
from pathlib import Path

import structlog
import trio

from cli.allocator import keep_memory
from cli.mount import mount_options, store_of
from engine import open_engine
from fs.mount import run_mount
from tests.support.slow_nodes import slow_down


async def main(
    data: Path, bucket: str, target: Path, delay_s: float, cache_dir: Path | None
) -> None:
    options = mount_options(bucket, target, cache_dir=cache_dir)
    stop = trio.Event()
    async with open_engine(store_of(data, options)) as engine:
        slow_down(engine.store.pool, delay_s)
        await run_mount(
            engine,
            options,
            log=structlog.get_logger(),
            stop=stop,
            ready=lambda: print("ready", flush=True),
        )


if __name__ == "__main__":
    keep_memory()
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
    cache = Path(sys.argv[5]) if len(sys.argv) > 5 else None
    trio.run(main, Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3]), float(sys.argv[4]), cache)
