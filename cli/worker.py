"""One serving process: ``python -m cli.worker``, started by the supervisor and by nobody else.

Standard input brings the configuration (``cli.handover``) and stays open as long as the
supervisor lives; standard output takes one report. A worker whose supervisor is gone ends at
once: nothing acknowledged is lost by that, and the next server finds its address free.
"""

from __future__ import annotations

import contextlib
import gc
import os
import signal
import socket
import ssl
import sys
import threading
import time
from functools import partial
from typing import NoReturn

import structlog
import trio

from cli.allocator import keep_memory
from cli.handover import Report, WorkerConfig, decode_config, encode_report
from cli.listen import make_tls_context
from cli.logins import Logins, root_credential
from cli.logs import configure_logs
from cli.outcome import innermost, one_line
from cli.stopping import stop_on_signal
from engine import open_engine
from engine.engine import Engine
from engine.errors import ConfigError, EngineError
from engine.http.crowd import Crowd
from engine.http.limits import Limits
from engine.http.server import serve
from engine.ids import Clock
from engine.metrics import Metrics, StoreGauges
from s3.app import S3Config, make_handler

log = structlog.get_logger()

CONFIG_SIZE_MAX = 1 << 20
OBSERVE_EVERY_S = 15.0
GENTLE_S = 45.0
"""Longer than a mount needs to commit what is pending."""


def main() -> NoReturn:
    # Before anything else allocates or starts threads.
    keep_memory()
    # The terminal sends SIGINT to the whole process group; the supervisor decides what it means.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    reports = _take_stdout()
    config = decode_config(_read_line(sys.stdin.fileno()))
    configure_logs(config.log_level, as_json=config.log_json, worker=config.number)
    threading.Thread(
        target=_end_with_supervisor,
        args=(config.mount is not None,),
        name="supervisor watch",
        daemon=True,
    ).start()
    status = 0
    try:
        trio.run(_serve, config, reports)
    except (Exception, BaseExceptionGroup) as error:  # noqa: BLE001  the last frame: whatever it is, it is reported
        status = _report_failure(error, reports)
    # Not sys.exit: a thread stuck in a dying drive must not keep the process from ending.
    sys.stderr.flush()
    os._exit(status)


async def _serve(config: WorkerConfig, reports: int) -> None:
    tls: ssl.SSLContext | None = None
    if config.tls_cert is not None and config.tls_key is not None:
        tls = make_tls_context(config.tls_cert, config.tls_key)
    if config.mount is not None:
        from cli.mount import serve_mount, store_of

        store = store_of(config.store.data, config.mount, config.store.meta)
        ready = partial(_tell_ready, reports)
        await serve_mount(store, config.mount, ready, counted=config.metrics)
        return
    if config.dav is not None:
        # Only this process needs what WebDAV needs.
        from cli.dav import serve_dav

        await serve_dav(config, config.dav, tls, lambda: _tell_ready(reports))
        return
    sockets = [socket.socket(fileno=number) for number in config.sockets]
    shutdown = trio.Event()
    async with open_engine(config.store) as engine, trio.open_nursery() as nursery:
        await nursery.start(stop_on_signal, shutdown)
        meter = None
        if config.metrics:
            metrics = Metrics()
            meter = metrics.requests("s3")
            if config.number == 1:
                nursery.start_soon(_observe, engine, metrics.store)
        await nursery.start(engine.access_keys.follow)
        handler = make_handler(engine, _s3_config(config, engine), log=log, observer=meter)
        async with trio.open_nursery() as serving:
            await serving.start(
                partial(
                    serve,
                    handler,
                    sockets,
                    limits=Limits(),
                    tls=tls,
                    log=log,
                    shutdown=shutdown,
                    crowd=Crowd(config.board, config.number - 1, config.workers),
                )
            )
            _tell_ready(reports)
        nursery.cancel_scope.cancel()


async def _observe(engine: Engine, gauges: StoreGauges) -> None:
    """Look at the store now and then, for those who watch it; until cancelled."""
    while True:
        try:
            gauges.show(await engine.status(), time.time())
        except EngineError as error:
            log.warning("store not observed", error=str(error))
        await trio.sleep(OBSERVE_EVERY_S)


def _tell_ready(reports: int) -> None:
    # What is alive now stays so; the collector need not look at it again.
    gc.collect()
    gc.freeze()
    os.write(reports, encode_report(Report(ready=True)))


def _s3_config(config: WorkerConfig, engine: Engine) -> S3Config:
    root = root_credential(config)
    return S3Config(
        credentials=Logins(root, engine.access_keys),
        owner_id=root.owner_id,
        owner_name=root.display_name,
        clock=_wall_clock(),
        region=config.region,
        domains=config.domains,
        host_id=f"worker-{config.number}",
    )


def _wall_clock() -> Clock:
    """Return ms since 1970 that never go back, whatever is done to the machine's clock."""
    last = 0

    def now() -> int:
        nonlocal last
        last = max(last, time.time_ns() // 1_000_000)
        return last

    return now


def _take_stdout() -> int:
    """Return a descriptor for reports, and send stray prints to standard error instead."""
    reports = os.dup(sys.stdout.fileno())
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    return reports


def _read_line(descriptor: int) -> bytes:
    line = b""
    while not line.endswith(b"\n"):
        received = os.read(descriptor, 64 * 1024)
        if not received or len(line) > CONFIG_SIZE_MAX:
            sys.exit("lode: a worker is started by `lode serve`, not by hand")
        line += received
    return line


def _end_with_supervisor(gently: bool) -> None:
    """End when the supervisor is gone; ``gently``: unmount first, or nobody can use the folder."""
    # Not PR_SET_PDEATHSIG: that fires when the *thread* that spawned us ends, and trio spawns
    # processes from worker threads.
    while os.read(sys.stdin.fileno(), 4096):
        pass
    if gently:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(GENTLE_S)
    os._exit(1)


def _report_failure(error: BaseException, reports: int) -> int:
    error = innermost(error)
    usage = isinstance(error, ConfigError)
    if not usage:
        log.error("worker failed", exc_info=error)
    # A broken pipe: the supervisor is gone and nobody is left to tell.
    with contextlib.suppress(BrokenPipeError):
        os.write(reports, encode_report(Report(ready=False, message=one_line(error), usage=usage)))
    return 2 if usage else 1


if __name__ == "__main__":
    main()
