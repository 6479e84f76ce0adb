"""A few pages by HTTP for whoever watches a process: ``/metrics`` and its like."""

from __future__ import annotations

import socket
from collections.abc import Awaitable, Callable, Mapping, Sequence

import structlog
import trio
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4

from engine.http.limits import Limits
from engine.http.message import Request, Response
from engine.http.server import serve

CONNECTIONS_MAX = 64

Pages = Mapping[bytes, Callable[[], Awaitable[Response]]]

_TEXT = (b"Content-Type", b"text/plain; charset=utf-8")


def text(body: str, status: int = 200) -> Response:
    return Response(status, [_TEXT], f"{body}\n".encode())


def figures(body: bytes) -> Response:
    """Return what Prometheus reads."""
    return Response(200, [(b"Content-Type", CONTENT_TYPE_PLAIN_0_0_4.encode())], body)


async def serve_pages(pages: Pages, sockets: Sequence[socket.socket]) -> None:
    """Answer GET and HEAD of the pages until cancelled; other paths say which ones there are."""

    async def answer(request: Request) -> Response:
        if request.method not in ("GET", "HEAD"):
            return Response(405, [(b"Allow", b"GET, HEAD"), _TEXT], b"only GET\n")
        page = pages.get(request.path)
        if page is None:
            return text(f"here are: {b', '.join(pages).decode()}", 404)
        return await page()

    await serve(
        answer,
        sockets,
        limits=Limits(connections=CONNECTIONS_MAX, shutdown_s=1.0),
        tls=None,
        log=structlog.get_logger(),
        shutdown=trio.Event(),
    )
