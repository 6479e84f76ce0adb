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

import structlog
import trio
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from prometheus_client.multiprocess import MultiProcessCollector

from engine.http.limits import Limits
from engine.http.message import Request, Response
from engine.http.server import serve
from engine.metrics import FOLDER_VARIABLE

log = structlog.get_logger()

TEXT = (b"Content-Type", b"text/plain; charset=utf-8")


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
        await serve(
            self.handle,
            self._sockets,
            limits=Limits(connections=64, shutdown_s=1.0),
            tls=None,
            log=log,
            shutdown=trio.Event(),
        )

    async def handle(self, request: Request) -> Response:
        if request.method not in ("GET", "HEAD"):
            return Response(405, [(b"Allow", b"GET, HEAD"), TEXT], b"only GET\n")
        match request.path:
            case b"/metrics":
                # Reads some files: not on the thread that watches the workers.
                text = await trio.to_thread.run_sync(partial(_add_up, self._folder))
                return Response(200, [(b"Content-Type", CONTENT_TYPE_PLAIN_0_0_4.encode())], text)
            case b"/healthz":
                return Response(200, [TEXT], b"ok\n")
            case b"/readyz":
                missing = self._missing()
                if not missing:
                    return Response(200, [TEXT], b"ok\n")
                return Response(503, [TEXT], f"not serving: {', '.join(missing)}\n".encode())
            case _:
                return Response(404, [TEXT], b"/metrics, /healthz and /readyz are here\n")


def _add_up(folder: Path) -> bytes:
    registry = CollectorRegistry()
    MultiProcessCollector(registry, str(folder))  # type: ignore[no-untyped-call]
    return generate_latest(registry)
