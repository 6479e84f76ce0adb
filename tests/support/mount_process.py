"""A process that mounts a bucket of a store: ``python -m tests.support.mount_process JSON``.

What ``lode mount`` does without its command line, so that tests can say everything.
"""

from __future__ import annotations

import contextlib
import json
import signal
import sys
from pathlib import Path
from typing import Any

import msgspec
import structlog
import trio

import fs.mount
import fs.reading
from engine.config import StoreConfig
from engine.errors import BucketExists
from engine.opening import open_engine, prepare_store
from fs.mount import run_mount
from fs.options import MountOptions
from tests.support.slow_nodes import SlowNode, slow_down


async def wait_forever(*_: object, **__: object) -> Any:
    structlog.get_logger().info("stuck")
    await trio.sleep_forever()


async def main(wanted: dict[str, Any]) -> None:
    config = StoreConfig(data=Path(wanted.pop("data")), services=False)
    delay_s = wanted.pop("delay_s", None)
    if wanted.pop("full", False):
        config = msgspec.structs.replace(config, reserve=1 << 60)
    for name in ("target", "staging", "cache_dir"):
        if name in wanted:
            wanted[name] = Path(wanted[name])
    if wanted.pop("far", False):
        # Where the nodes are is all that the cache asks about them.
        fs.mount.has_remote_node = lambda engine: True
    if wanted.pop("stuck", False):
        fs.mount.STOP_S = 1.0
        fs.reading.Reading.open = wait_forever
    options = MountOptions(**wanted)
    await prepare_store(config)
    stop = trio.Event()

    async def watch(task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        with trio.open_signal_receiver(signal.SIGTERM) as signals:
            task_status.started()
            async for _ in signals:
                stop.set()
                return

    async def lose_nodes(
        slow: list[SlowNode], task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """With each SIGUSR1 one more node is gone."""
        with trio.open_signal_receiver(signal.SIGUSR1) as signals:
            task_status.started()
            for node in slow:
                await anext(signals)
                node.gone = True
                structlog.get_logger().info("node lost")

    async with open_engine(config) as engine, trio.open_nursery() as nursery:
        with contextlib.suppress(BucketExists):
            await engine.create_bucket(options.bucket or "bucket", owner="owner")
        await nursery.start(watch)
        log = structlog.get_logger()
        slow = []
        if delay_s is not None:
            slow = slow_down(engine.store.pool, delay_s)
            await nursery.start(lose_nodes, slow)
        await run_mount(
            engine, options, log=log, stop=stop, ready=lambda: print("ready", flush=True)
        )
        for node in slow:
            log.info("node", gone=node.gone, calls=node.calls, refused=node.refused)
        nursery.cancel_scope.cancel()


if __name__ == "__main__":
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.format_exc_info,
            structlog.processors.JSONRenderer(),
        ],
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )
    trio.run(main, json.loads(sys.argv[1]))
