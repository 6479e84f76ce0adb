"""``/metrics``, ``/healthz`` and ``/readyz`` of a server, answered by its supervisor.

On an address of its own: every path of the S3 address could be somebody's bucket, and who may see
figures is not who may see objects. The supervisor answers also while its workers are dead.
"""

from __future__ import annotations

import shutil
import socket
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import trio
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector

from cli.pages import figures, serve_pages, text
from engine.http.message import Response
from engine.metrics import FOLDER_VARIABLE


class Exporter:
    """Args:
    sockets: where to listen.
    missing: names what does not serve now; nothing when all does.
    """

    def __init__(
        self, sockets: Sequence[socket.socket], missing: Callable[[], Sequence[str]]
    ) -> None:
        self._sockets = sockets
        self._missing = missing
        self._folder = Path(tempfile.mkdtemp(prefix="lode-metrics-"))

    @property
    def environment(self) -> dict[str, str]:
        """What a process needs to be told whose figures are to be added up here."""
        return {FOLDER_VARIABLE: str(self._folder)}

    def close(self) -> None:
        shutil.rmtree(self._folder, ignore_errors=True)

    async def run(self) -> None:
        """Answer until cancelled."""
        pages = {b"/metrics": self._metrics, b"/healthz": self._health, b"/readyz": self._ready}
        await serve_pages(pages, self._sockets)

    async def _metrics(self) -> Response:
        # Reads some files: not on the thread that watches the workers.
        return figures(await trio.to_thread.run_sync(partial(_add_up, self._folder)))

    async def _health(self) -> Response:
        return text("ok")

    async def _ready(self) -> Response:
        missing = self._missing()
        return text(f"not serving: {', '.join(missing)}", 503) if missing else text("ok")


def _add_up(folder: Path) -> bytes:
    registry = CollectorRegistry()
    MultiProcessCollector(registry, str(folder))  # type: ignore[no-untyped-call]
    return generate_latest(registry)
