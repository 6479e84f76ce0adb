"""The head of a response as bytes. Pure, but for the clock behind ``Date``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from email.utils import formatdate
from http import HTTPStatus
from types import MappingProxyType
from typing import Final

from engine.http.message import Response

STATUS_LINES: Final[Mapping[int, bytes]] = MappingProxyType(
    {s.value: f"HTTP/1.1 {s.value} {s.phrase}\r\n".encode("ascii") for s in HTTPStatus}
)


class DateHeader:
    """The ``Date`` and ``Server`` lines, made anew once per second."""

    __slots__ = ("_clock", "_lines", "_second")

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._second = -1
        self._lines = b""

    def lines(self) -> bytes:
        second = int(self._clock())
        if second != self._second:
            self._second = second
            date = formatdate(second, usegmt=True)
            self._lines = f"Server: lode\r\nDate: {date}\r\n".encode("ascii")
        return self._lines


def has_no_body(status: int) -> bool:
    """Say whether a response of this status never has a body (RFC 9110, section 6.4.1)."""
    return status in (204, 304) or status < 200


def plain_response(status: int, *, close: bool = False) -> Response:
    """Return a response of the server's own: the status, in words."""
    line = STATUS_LINES[status]
    return Response(status, ((b"Content-Type", b"text/plain"),), line[13:-2] + b"\n", close=close)


def encode_head(
    response: Response, length: int | None, *, chunked: bool, close: bool, common: bytes
) -> bytes:
    """Return status line and headers.

    Args:
        length: for Content-Length; None: without one.
        common: whole lines that every response has.
    Raises:
        ValueError: a header holds CR, LF or NUL, which would let it pose as something else.
    """
    status = response.status
    parts = [STATUS_LINES.get(status) or b"HTTP/1.1 %d \r\n" % status, common]
    for header in response.headers:
        parts.append(b"%b: %b\r\n" % header)
    lines = len(parts) + 2  # `common` is two, and there is the empty one
    if length is not None:
        parts.append(b"Content-Length: %d\r\n" % length)
        lines += 1
    elif chunked:
        parts.append(b"Transfer-Encoding: chunked\r\n")
        lines += 1
    if close:
        parts.append(b"Connection: close\r\n")
        lines += 1
    parts.append(b"\r\n")
    head = b"".join(parts)
    if head.count(b"\n") != lines or head.count(b"\r") != lines or b"\0" in head:
        raise ValueError("a header of the response has a line break or NUL in it")
    return head
