"""The process that serves WebDAV: an engine in one trio run, and cheroot's threads beside it."""

from __future__ import annotations

import hmac
import socket
import ssl
from collections.abc import Callable
from contextlib import AsyncExitStack

import msgspec
import structlog
import trio

from cli.handover import DavSettings, WorkerConfig
from cli.logins import Logins, root_credential
from cli.stopping import stop_on_signal
from dav.app import DavApp
from dav.config import DavConfig, MacFiles
from dav.portal import open_portal
from dav.server import DavServer
from engine import open_engine
from engine.metrics import Metrics

log = structlog.get_logger()


async def serve_dav(
    config: WorkerConfig,
    settings: DavSettings,
    tls: ssl.SSLContext | None,
    ready: Callable[[], None],
) -> None:
    """Serve until SIGTERM; running requests may end, within a limit. Calls ``ready`` once."""
    # Beside workers, which run the services already.
    alone = config.number == 1
    store = msgspec.structs.replace(config.store, services=alone)
    sockets = [socket.socket(fileno=number) for number in config.sockets]
    shutdown = trio.Event()
    async with AsyncExitStack() as stack:
        engine = await stack.enter_async_context(open_engine(store))
        nursery = await stack.enter_async_context(trio.open_nursery())
        portal = await stack.enter_async_context(open_portal())
        await nursery.start(engine.access_keys.follow)
        dav = _dav_config(config, settings, Logins(root_credential(config), engine.access_keys))
        app = DavApp(engine, portal, dav)
        meter = Metrics().requests("dav") if config.metrics else None
        servers = [
            DavServer(bound, app, limits=dav.limits, tls=tls, log=log, observer=meter)
            for bound in sockets
        ]
        await nursery.start(stop_on_signal, shutdown)
        async with trio.open_nursery() as serving:
            try:
                for server in servers:
                    server.prepare()
                    serving.start_soon(trio.to_thread.run_sync, server.run)
                ready()
                await shutdown.wait()
            finally:
                with trio.CancelScope(shield=True):
                    for server in servers:
                        await trio.to_thread.run_sync(server.stop)
        nursery.cancel_scope.cancel()


def _dav_config(config: WorkerConfig, settings: DavSettings, logins: Logins) -> DavConfig:
    return DavConfig(
        secret_of=logins.secret_of,
        access_of=logins.access_of,
        owner_id=config.owner_id,
        read_only=settings.read_only,
        basic_without_tls=settings.basic,
        mac_files=MacFiles(settings.mac_files),
        infinite_depth=settings.infinite_depth,
        nonce_key=_nonce_key(config.credentials.secret_key, config.owner_id),
    )


def _nonce_key(secret: str, owner_id: str) -> bytes:
    """Return the key of Digest nonces, which everybody may look at.

    With the owner's id in it, which comes from the store's random one, a nonce is no way to try
    out secrets for those who never logged in.
    """
    return hmac.digest(secret.encode(), f"lodestore digest nonces {owner_id}".encode(), "sha256")
