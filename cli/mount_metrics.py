"""``lode mount --metrics``: the figures of one mount, on an address of its own."""

from __future__ import annotations

import socket
from collections.abc import Sequence

import structlog
import trio
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4

from engine.http.limits import Limits
from engine.http.message import Request, Response
from engine.http.server import serve
from fs.metrics import MountMetrics

log = structlog.get_logger()

TEXT = (b"Content-Type", b"text/plain; charset=utf-8")


class MountExporter:
    """Answers ``/metrics``; ``sockets`` are where it listens."""

    def __init__(self, sockets: Sequence[socket.socket]) -> None:
        self._sockets = sockets
        self._registry = CollectorRegistry()
        self.metrics = MountMetrics(self._registry)

    async def run(self) -> None:
        """Answer until cancelled."""
        await serve(
            self.handle,
            self._sockets,
            limits=Limits(connections=16, shutdown_s=1.0),
            tls=None,
            log=log,
            shutdown=trio.Event(),
        )

    async def handle(self, request: Request) -> Response:
        if request.method not in ("GET", "HEAD"):
            return Response(405, [(b"Allow", b"GET, HEAD"), TEXT], b"only GET\n")
        if request.path != b"/metrics":
            return Response(404, [TEXT], b"/metrics is here\n")
        self.metrics.refresh()
        text = generate_latest(self._registry)
        return Response(200, [(b"Content-Type", CONTENT_TYPE_PLAIN_0_0_4.encode())], text)
