"""``lode mount``: one mount in a process of its own, and the same as a worker of ``lode serve``.

In the background by default: the command returns when the mount can be used, or says why it
cannot. The parent waits on a pipe for the child's report, the one that workers write as well.
"""

from __future__ import annotations

import gc
import os
import shlex
import signal
import socket
import sys
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import NoReturn

import msgspec
import structlog
import trio

from cli.allocator import keep_memory
from cli.arguments import Address
from cli.handover import Report, decode_report, encode_report
from cli.listen import addresses_of, listen
from cli.logs import configure_logs
from cli.outcome import FAILED, USAGE, WorkersFailed, innermost, one_line
from cli.stopping import stop_on_signal
from engine import open_engine
from engine.config import StoreConfig
from engine.errors import ConfigError
from fs.options import WINDOWS_SHARE, MountOptions

log = structlog.get_logger()

STORE_FILE = "lode.json"
ALL_BUCKETS = "/"
GC_THRESHOLD = 50_000


def mount_options(source: str, target: Path, **fields: object) -> MountOptions:
    """Return the options of ``lode mount SOURCE TARGET``.

    ``source``: ``BUCKET``, ``BUCKET/PREFIX``, or ``/`` for every bucket. ``fields`` are those of
    ``MountOptions``; None where none was given. Raises ConfigError.
    """
    bucket, _, prefix = source.partition("/")
    if not bucket and source != ALL_BUCKETS:
        raise ConfigError(f"{source!r}: write BUCKET, BUCKET/PREFIX, or / for all buckets")
    if prefix and not prefix.endswith("/"):
        prefix += "/"
    given = {name: value for name, value in fields.items() if value is not None}
    return msgspec.structs.replace(
        MountOptions(
            target=Path(os.path.abspath(target)),
            bucket=bucket,
            prefix=prefix,
            uid=os.geteuid(),
            gid=os.getegid(),
        ),
        **given,
    )


def parse_mode(text: str | None) -> int | None:
    """Return the bits of ``644``. Raises ConfigError."""
    if text is None:
        return None
    try:
        return int(text, 8)
    except ValueError:
        raise ConfigError(f"mode {text!r}: write it in octal, as 644") from None


def parse_moment(text: str | None) -> int | None:
    """Return the ms since 1970 of ``2026-11-21T13:45``, UTC by default. Raises ConfigError."""
    if text is None:
        return None
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise ConfigError(f"time {text!r}: write it as 2026-11-21T13:45") from None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return int(moment.timestamp() * 1000)


def store_of(data: Path, options: MountOptions, meta: str = "") -> StoreConfig:
    """Return how the mount's process opens the store; collection and repair are the server's."""
    memory = int(options.memory * (1 - WINDOWS_SHARE))
    return StoreConfig(data=data, meta=meta, services=False, memory=memory)


def run(
    store: StoreConfig,
    options: MountOptions,
    *,
    foreground: bool,
    metrics: Address | None,
    log_level: str,
    log_json: bool,
) -> None:
    """Mount, and return when somebody unmounts or a signal comes; in the background, when the
    mount can be used. ``metrics``: where its figures are to be had.

    Raises: ConfigError, EngineError.
    """
    if not store.meta and not (store.data / STORE_FILE).is_file():
        raise ConfigError(
            f"no store in {store.data}; name its folder with --data, or make one with `lode serve`"
        )
    if foreground:
        keep_memory()
        configure_logs(log_level, as_json=log_json)
        sockets = [] if metrics is None else listen(metrics, "--metrics")
        ready = partial(_print_ready, options, sockets)
        trio.run(serve_mount, store, options, ready, sockets)
        return
    # In the parent, which says what is wrong with the address.
    sockets = [] if metrics is None else listen(metrics, "--metrics")
    receive, send = os.pipe()
    # Before threads, and before trio runs.
    if os.fork() == 0:
        os.close(receive)
        _run_in_background(store, options, send, sockets, log_level=log_level, log_json=log_json)
    os.close(send)
    for bound in sockets:
        bound.close()
    with open(receive, "rb") as reports:
        line = reports.readline()
    if not line:
        raise WorkersFailed("the mount's process ended before the mount was there")
    report = decode_report(line)
    if not report.ready:
        raise (ConfigError if report.usage else WorkersFailed)(report.message)


def _run_in_background(
    store: StoreConfig,
    options: MountOptions,
    reports: int,
    sockets: list[socket.socket],
    *,
    log_level: str,
    log_json: bool,
) -> NoReturn:
    """Become a process without a terminal, mount, and end."""
    os.setsid()
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 0)
    os.dup2(null, 1)
    keep_memory()
    configure_logs(log_level, as_json=log_json)

    def ready() -> None:
        # The mount point may lie below it, and no folder should be kept busy.
        os.chdir("/")
        os.write(reports, encode_report(Report(ready=True)))
        os.close(reports)

    status = 0
    try:
        trio.run(serve_mount, store, options, ready, sockets)
    except (Exception, BaseExceptionGroup) as caught:
        error = innermost(caught)
        usage = isinstance(error, ConfigError)
        if not usage:
            log.error("mount failed", exc_info=error)
        status = USAGE if usage else FAILED
        report = Report(ready=False, message=one_line(error), usage=usage)
        try:
            os.write(reports, encode_report(report))
        except OSError:
            status = FAILED  # it was ready once: the log has the error
    sys.stderr.flush()
    os._exit(status)


async def serve_mount(
    config: StoreConfig,
    options: MountOptions,
    ready: Callable[[], None],
    sockets: Sequence[socket.socket] = (),
    *,
    counted: bool = False,
) -> None:
    """Mount until SIGTERM or SIGINT comes, or somebody unmounts.

    ``sockets``: where to answer for figures. ``counted``: somebody else adds them up.
    Raises ConfigError.
    """
    try:
        from fs.mount import run_mount
    except ImportError as error:
        raise ConfigError(
            f"the mount needs the package pyfuse3 ({error}): pip install 'lodestore[mount]', "
            "which needs a C compiler, pkg-config and libfuse3-dev"
        ) from error
    exporter = None
    if sockets or counted:
        from cli.mount_metrics import MountExporter

        exporter = MountExporter(sockets)
    metrics = None if exporter is None else exporter.metrics
    stop = trio.Event()
    async with open_engine(config) as engine, trio.open_nursery() as nursery:
        await nursery.start(stop_on_signal, stop)
        nursery.start_soon(_stop_on_interrupt, stop)
        if exporter is not None and sockets:
            nursery.start_soon(exporter.run)
        _spare_collector()
        await run_mount(engine, options, log=log, stop=stop, ready=ready, metrics=metrics)
        nursery.cancel_scope.cancel()


def _spare_collector() -> None:
    """Look for cycles rarely: listing makes many small objects, and none of them are cycles."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(GC_THRESHOLD)


async def _stop_on_interrupt(stop: trio.Event) -> None:
    # A worker ignores it: its supervisor decides.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        return
    with trio.open_signal_receiver(signal.SIGINT) as signals:
        async for _ in signals:
            stop.set()


def _print_ready(options: MountOptions, sockets: list[socket.socket]) -> None:
    """Write the one line on standard output that scripts wait for."""
    words = [f"mount={shlex.quote(str(options.target))}"]
    words += [f"metrics=http://{address}" for address in addresses_of(sockets)]
    try:
        print("ready", *words, flush=True)
    except BrokenPipeError:
        os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
