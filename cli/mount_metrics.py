"""``lode mount --metrics``: the figures of one mount, on an address of its own."""

from __future__ import annotations

import socket
from collections.abc import Sequence

from prometheus_client import CollectorRegistry, generate_latest

from cli.pages import figures, serve_pages
from engine.http.message import Response
from fs.metrics import MountMetrics


class MountExporter:
    """Answers ``/metrics``; ``sockets`` are where it listens."""

    def __init__(self, sockets: Sequence[socket.socket]) -> None:
        self._sockets = sockets
        self._registry = CollectorRegistry()
        self.metrics = MountMetrics(self._registry)

    async def run(self) -> None:
        """Answer until cancelled."""
        await serve_pages({b"/metrics": self._metrics}, self._sockets)

    async def _metrics(self) -> Response:
        self.metrics.refresh()
        return figures(generate_latest(self._registry))
