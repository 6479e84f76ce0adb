"""``lode serve``: check everything, then hand over to the workers."""

from __future__ import annotations

import hashlib
import os
import shlex
import signal
import socket
import sys
from collections.abc import Mapping
from typing import NamedTuple

import msgspec
import structlog
import trio

from cli.credentials import (
    Credentials,
    CredentialsSource,
    from_environment,
    generate,
    keep,
    load,
)
from cli.exporter import Exporter
from cli.handover import DavSettings, WorkerConfig
from cli.listen import addresses_of, listen, make_tls_context
from cli.logs import configure_logs
from cli.mount import ALL_BUCKETS, mount_options
from cli.root import settled_root
from cli.settings import Settings
from cli.supervisor import Supervisor
from engine import open_engine, prepare_store
from engine.config import StoreConfig
from engine.http.crowd import make_board
from engine.types import StoreStatus

log = structlog.get_logger()

# -P: a folder named cli in the current directory is not ours.
WORKER_COMMAND = (sys.executable, "-P", "-m", "cli.worker")


class Doors(NamedTuple):
    """Listening sockets of each protocol; none: it is not served."""

    s3: list[socket.socket]
    dav: list[socket.socket]
    metrics: list[socket.socket]

    def close(self) -> None:
        for bound in (*self.s3, *self.dav, *self.metrics):
            bound.close()


def run_server(
    settings: Settings, environment: Mapping[str, str], *, dav_alone: bool = False
) -> None:
    """Serve until a signal ends it; ``dav_alone``: WebDAV and nothing else.

    What is wrong with options, addresses, certificates, credentials or folders shows before
    anything starts; the socket is bound before the data folder is touched.

    Raises:
        ConfigError: what the user asked for cannot be.
        WorkersFailed: it could not be kept running.
    """
    configure_logs(settings.log_level, as_json=settings.log_json)
    # A closed terminal is no reason to stop; workers inherit this.
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    if settings.tls_cert is not None and settings.tls_key is not None:
        make_tls_context(settings.tls_cert, settings.tls_key)
    given = from_environment(environment)
    doors = _open_doors(settings, dav_alone=dav_alone)
    board = make_board(settings.workers)
    exporter: Exporter | None = None
    try:
        kept = load(settings.data) if given is None else None
        status, root = trio.run(_prepare, settings.store_config(), kept, given is None)
        _announce(status)
        if given is not None:
            source = CredentialsSource(given, "environment")
        else:
            source = keep(settings.data, root or kept or generate())
        if doors.metrics:
            exporter = Exporter(doors.metrics, lambda: supervisor.missing())
        supervisor = Supervisor(
            WORKER_COMMAND,
            _worker_configs(
                settings, doors, source, board=board, owner_id=_owner_id(status.store_id)
            ),
            ready=lambda: _print_ready(settings, doors, source),
            environment=exporter.environment if exporter is not None else None,
        )
        trio.run(supervisor.run, exporter.run if exporter is not None else None)
    finally:
        if exporter is not None:
            exporter.close()
        doors.close()
        os.close(board)
    log.info("stopped")


def _open_doors(settings: Settings, *, dav_alone: bool) -> Doors:
    """Return the sockets of what is to be served. Raises ConfigError; then none stays open."""
    doors = Doors([], [], [])
    try:
        if not dav_alone:
            doors.s3.extend(listen(settings.s3))
        if settings.dav is not None:
            doors.dav.extend(listen(settings.dav, "--listen" if dav_alone else "--dav"))
        if settings.metrics is not None:
            doors.metrics.extend(listen(settings.metrics, "--metrics"))
    except BaseException:
        doors.close()
        raise
    return doors


async def _prepare(
    config: StoreConfig, kept: Credentials | None, settle: bool
) -> tuple[StoreStatus, Credentials | None]:
    """Make the store if it is new, so that what is wrong with it is said once and early.

    Also returns the root credentials that the metadata has, if ``settle``.
    """
    await prepare_store(config)
    async with open_engine(msgspec.structs.replace(config, services=False)) as engine:
        root = await settled_root(engine, kept) if settle else None
        return await engine.status(), root


def _announce(status: StoreStatus) -> None:
    log.info("store", id=status.store_id, profile=status.profile, drives=len(status.drives))
    if len(status.drives) == 1:
        log.warning(
            "one drive: checksums show damage, but there is no redundancy to repair it; "
            "name several with --drives"
        )
    for drive in status.drives:
        if drive.state != "up":
            log.warning("drive is not up", location=drive.location, state=drive.state)


def _owner_id(store_id: str) -> str:
    """Return the root user's canonical id: 64 hex digits, as S3's are.

    It comes from the store and not from the keys, so that changed keys still own every bucket.
    """
    return hashlib.sha256(f"lodestore root {store_id}".encode()).hexdigest()


def _worker_configs(
    settings: Settings,
    doors: Doors,
    source: CredentialsSource,
    *,
    board: int,
    owner_id: str,
) -> list[WorkerConfig]:
    def config(number: int, sockets: list[socket.socket]) -> WorkerConfig:
        return WorkerConfig(
            board=board,
            workers=settings.workers,
            number=number,
            store=settings.store_config(),
            sockets=[bound.fileno() for bound in sockets],
            credentials=source.credentials,
            owner_id=owner_id,
            region=settings.region,
            domains=settings.domain,
            tls_cert=settings.tls_cert,
            tls_key=settings.tls_key,
            log_level=settings.log_level,
            log_json=settings.log_json,
            metrics=settings.metrics is not None,
        )

    configs = []
    if doors.s3:
        configs = [config(number, doors.s3) for number in range(1, settings.workers + 1)]
    if doors.dav:
        dav = DavSettings(
            read_only=settings.dav_read_only,
            basic=settings.dav_basic,
            mac_files=settings.dav_mac_files,
            infinite_depth=settings.dav_infinite_depth,
        )
        number = len(configs) + 1
        configs.append(msgspec.structs.replace(config(number, doors.dav), dav=dav))
    if settings.mount is not None:
        mount = mount_options(
            ALL_BUCKETS,
            settings.mount,
            allow_other=settings.mount_allow_other,
            cache_dir=settings.mount_cache_dir,
            cache_size=settings.mount_cache_size,
            memory=None if settings.mount_memory is None else settings.mount_memory << 20,
        )
        configs.append(msgspec.structs.replace(config(len(configs) + 1, []), mount=mount))
    return configs


def _print_ready(settings: Settings, doors: Doors, source: CredentialsSource) -> None:
    """Write the one line on standard output that scripts wait for."""
    scheme = "http" if settings.tls_cert is None else "https"
    words = [f"s3={scheme}://{address}" for address in addresses_of(doors.s3)]
    words += [f"dav={scheme}://{address}" for address in addresses_of(doors.dav)]
    words += [f"metrics=http://{address}" for address in addresses_of(doors.metrics)]
    if settings.mount is not None:
        words.append(f"mount={shlex.quote(str(settings.mount))}")
    words.append(f"credentials={shlex.quote(source.where)}")
    try:
        print("ready", *words, flush=True)
    except BrokenPipeError:
        # Whoever started us does not listen any more; that is no reason not to serve.
        os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
