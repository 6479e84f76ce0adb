"""``lode node``: one machine's drives, served to the gateways of a cluster.

One process: HTTP on the trio thread, disks in threads. What is wrong with options, addresses,
certificates or the secret shows before anything starts; drives may come and go.
"""

from __future__ import annotations

import fcntl
import gc
import os
import shlex
import signal
import socket
import ssl
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import structlog
import trio

from cli.allocator import keep_memory
from cli.arguments import Address, split_list
from cli.cluster_secret import SecretSource, cluster_secret
from cli.cluster_tls import member_tls
from cli.listen import addresses_of, listen
from cli.logs import configure_logs
from cli.version import VERSION
from engine.errors import ConfigError
from engine.http.limits import Limits
from engine.http.server import serve
from engine.node.disk import RealDisk
from engine.node.wire.loopback import unpace
from engine.node.wire.service import MemberService, ServiceConfig
from engine.node.wire.shelf import Shelf
from engine.node.wire.slot import ShelfConfig

log = structlog.get_logger()

LIMITS = Limits(
    # A gateway may hold a fragment open for as long as its own client takes to send it: one that
    # is gone shows by the keepalive, not by its silence.
    body_stall_s=24 * 3600.0,
    body_rate_min=0.0,
    send_stall_s=60.0,
)
OPEN_S_MAX = 30.0
"""So long the ready line waits for drives that take their time, and no longer."""

_KEEPALIVE = (
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 10),
    (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 5),
    (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3),
)
"""Set on the listeners; accepted sockets inherit them. A lost gateway is noticed in 25 s."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeSettings:
    """What one ``lode node`` was told. Paths are absolute."""

    data: Path
    drives: tuple[Path, ...]
    listen: Address
    name: str
    zone: str
    rack: str
    host: str
    secret_file: Path | None
    tls_cert: Path | None
    tls_key: Path | None
    tls_ca: Path | None
    log_level: str
    log_json: bool

    @classmethod
    def parse(
        cls,
        *,
        data: Path,
        drives: list[str],
        listen: str,
        name: str,
        domains: tuple[str, str, str],
        secret_file: Path | None,
        tls: tuple[Path | None, Path | None, Path | None],
        log_level: str,
        log_json: bool,
    ) -> NodeSettings:
        """
        Args:
            domains: zone, rack and host.
            tls: certificate, key and authority.
        Raises: ConfigError.
        """
        cert, key, authority = tls
        if (cert is None) != (key is None):
            raise ConfigError("--tls-cert and --tls-key belong together")
        if authority is not None and cert is None:
            raise ConfigError("--tls-ca needs --tls-cert and --tls-key")
        if log_level not in ("debug", "info", "warning", "error"):
            raise ConfigError(f"--log-level: {log_level!r}: debug, info, warning or error")
        folders = [Path(folder).absolute() for folder in split_list(drives)]
        if len(set(folders)) != len(folders):
            raise ConfigError("--drives: a folder is named twice")
        for option, value in zip(("--zone", "--rack", "--host"), domains, strict=True):
            if len(value) > 128 or not value.isprintable():
                raise ConfigError(f"{option}: at most 128 printable characters")
        try:
            address = Address.parse(listen)
        except ConfigError as error:
            raise ConfigError(f"--listen: {error}") from error
        zone, rack, host = domains
        return cls(
            data=data.absolute(),
            drives=tuple(folders),
            listen=address,
            name=name or socket.gethostname(),
            zone=zone,
            rack=rack,
            host=host,
            secret_file=secret_file,
            tls_cert=cert,
            tls_key=key,
            tls_ca=authority,
            log_level=log_level,
            log_json=log_json,
        )


def run_node(settings: NodeSettings, environment: Mapping[str, str]) -> None:
    """Serve the member's drives until a signal ends it.

    Raises: ConfigError: what the user asked for cannot be.
    """
    # Before anything else allocates or starts threads.
    keep_memory()
    configure_logs(settings.log_level, as_json=settings.log_json)
    # A closed terminal is no reason to stop.
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    tls = None
    if settings.tls_cert is not None and settings.tls_key is not None:
        tls = member_tls(settings.tls_cert, settings.tls_key, settings.tls_ca)
    sockets = listen(settings.listen, "--listen")
    try:
        for bound in sockets:
            for option in _KEEPALIVE:
                bound.setsockopt(*option)
            # Here since what is accepted comes too late for it.
            unpace(bound, str(bound.getsockname()[0]))
        lock = _claim(settings.data)
        source = cluster_secret(settings.data, settings.secret_file, environment, make=True)
        try:
            shelf = Shelf(
                settings.data, settings.drives, disk=RealDisk(), config=_shelf_config(environment)
            )
        except (OSError, ValueError) as error:
            raise ConfigError(str(error)) from error
        trio.run(_serve, settings, shelf, source, sockets, tls)
        os.close(lock)
    finally:
        for bound in sockets:
            bound.close()
    log.info("stopped")


def _claim(data: Path) -> int:
    """Return a descriptor that holds the data folder's lock. Raises ConfigError."""
    try:
        data.mkdir(parents=True, exist_ok=True)
        lock = os.open(data / "node.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise ConfigError(f"--data {data}: {error.strerror}") from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(lock)
        raise ConfigError(f"--data {data}: another lode node uses it") from error
    return lock


def _shelf_config(environment: Mapping[str, str]) -> ShelfConfig:
    """Return the defaults, but for what tests and operators of tiny drives set."""
    changes: dict[str, int] = {}
    for name, variable in (("reserve", "LODE_NODE_RESERVE"), ("volume_size", "LODE_NODE_VOLUME")):
        text = environment.get(variable, "")
        if text:
            if not text.isdecimal():
                raise ConfigError(f"{variable}: {text!r} is no number of bytes")
            changes[name] = int(text)
    look = environment.get("LODE_NODE_LOOK_S", "")
    try:
        look_s = float(look) if look else ShelfConfig().look_s
    except ValueError:
        raise ConfigError(f"LODE_NODE_LOOK_S: {look!r} is no number of seconds") from None
    return ShelfConfig(look_s=look_s, **changes)


async def _serve(
    settings: NodeSettings,
    shelf: Shelf,
    source: SecretSource,
    sockets: list[socket.socket],
    tls: ssl.SSLContext | None,
) -> None:
    service = MemberService(
        shelf,
        source.secret,
        ServiceConfig(
            name=settings.name,
            version=VERSION,
            zone=settings.zone,
            rack=settings.rack,
            host=settings.host,
        ),
        now_ms=lambda: time.time_ns() // 1_000_000,
    )
    shutdown = trio.Event()
    async with trio.open_nursery() as nursery:
        await nursery.start(_watch_signals, shutdown, nursery.cancel_scope)
        opening = trio.Event()

        async def open_drives() -> None:
            await shelf.open()
            opening.set()
            await shelf.watch()

        nursery.start_soon(open_drives)
        with trio.move_on_after(OPEN_S_MAX):
            await opening.wait()
        nursery.start_soon(shelf.compact_regularly)
        async with trio.open_nursery() as serving:
            await serving.start(
                partial(serve, service, sockets, limits=LIMITS, tls=tls, log=log, shutdown=shutdown)
            )
            _print_ready(settings, sockets, source)
            # What is alive now stays so; the collector need not look at it again.
            gc.collect()
            gc.freeze()
            await shutdown.wait()
            service.draining = True
            shelf.begin_close()
        nursery.cancel_scope.cancel()
    await shelf.aclose()


async def _watch_signals(
    shutdown: trio.Event,
    scope: trio.CancelScope,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """The first signal lets running requests end, the second one ends them."""
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        task_status.started()
        async for _ in signals:
            if shutdown.is_set():
                scope.cancel()
            shutdown.set()


def _print_ready(
    settings: NodeSettings, sockets: list[socket.socket], source: SecretSource
) -> None:
    """Write the one line on standard output that scripts wait for."""
    scheme = "http" if settings.tls_cert is None else "https"
    words = [f"node={scheme}://{address}" for address in addresses_of(sockets)]
    words.append(f"secret={shlex.quote(source.where)}")
    try:
        print("ready", *words, flush=True)
    except BrokenPipeError:
        # Whoever started us does not listen any more; that is no reason not to serve.
        os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
