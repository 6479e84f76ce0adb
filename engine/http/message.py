"""Requests and responses as the server hands them to a handler and takes them back."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol, TypeAlias

import trio

Buffer: TypeAlias = bytes | bytearray | memoryview
HeaderList: TypeAlias = list[tuple[bytes, bytes]]


class Body(Protocol):
    """The body of a request. Bytes are pulled; the first pull sends ``100 Continue`` if the
    client waits for it, so a handler authenticates before it reads.

    A chunked body of the server also has ``trailers``, a ``HeaderList`` like a request's headers,
    complete once ``readinto`` has returned 0.
    """

    length: int | None
    """Bytes announced by Content-Length (0 without a body), None for chunked transfer."""

    async def readinto(self, buffer: memoryview) -> int:
        """Fill at least one byte of ``buffer`` and return how many; 0 only at the end.

        Raises:
            BodyBroken: the client went away, sent broken framing, or was too slow.
        """


@dataclass(frozen=True, slots=True)
class FileSpan:
    """Bytes of a file, to be sent without being read into this process where that is possible."""

    fd: int
    """Open for reading until the stream that gave it is asked for more, or closed."""
    offset: int
    size: int
    """Not 0."""
    limiter: trio.CapacityLimiter
    """Bounds the threads in which the file is read, and which wait for its disk."""

    def __len__(self) -> int:
        return self.size


class ResponseStream(Protocol):
    """Bytes of a response, produced as they are sent. ``aclose`` is always called once.

    A buffer has items of one byte and is the server's until the next one is asked for; then it
    may be reused. Status and headers are sent with the first buffer, so a stream that raises
    before it is still answered with 500; later, the connection is aborted.
    """

    def __aiter__(self) -> AsyncIterator[Buffer]: ...

    async def aclose(self) -> None: ...


class ConnectionNote:
    """What a handler wants to remember from one request of a connection to the next.

    ``value`` is the handler's alone; requests of one connection come one after another.
    """

    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value: object = None


class FileStream(Protocol):
    """The same in spans of files; the response's length is announced.

    A file that turns out to be unreadable, or too short, aborts the connection.
    """

    def __aiter__(self) -> AsyncIterator[FileSpan]: ...

    async def aclose(self) -> None: ...


@dataclass(slots=True)
class Request:
    method: str
    """Upper-case as sent, e.g. ``GET``."""
    path: bytes
    """The raw path of the target: still percent-encoded, without the query."""
    query: bytes
    """The raw query without ``?``; empty when there is none."""
    headers: HeaderList
    """(lower-case name, value) in the order in which they came."""
    body: Body
    peer: str
    """Address of the client, for logs."""
    secure: bool
    """Came over TLS."""
    note: ConnectionNote = field(default_factory=ConnectionNote)
    """The same object for all requests of a connection."""

    def header(self, name: bytes) -> bytes | None:
        """Return the first value of the (lower-case) header, or None."""
        for key, value in self.headers:
            if key == name:
                return value
        return None


@dataclass(slots=True)
class Response:
    """``body`` is the whole body, or a stream of exactly ``length`` bytes (None: chunked).

    For HEAD (and 304) give ``length`` and no body: the server sends the headers alone.
    The server adds Content-Length or Transfer-Encoding, Date, Server and Connection itself.
    """

    status: int
    headers: Sequence[tuple[bytes, bytes]] = field(default=())
    body: Buffer | ResponseStream | FileStream = b""
    length: int | None = None
    close: bool = False
    """Close the connection after this response."""


Handler: TypeAlias = Callable[[Request], Awaitable[Response]]
"""Answers one request. It maps its own errors; whatever it still raises is logged and becomes a
plain 500. A body that it did not read to the end is drained (up to a bound) or the connection is
closed.
"""


class BodyBroken(Exception):
    """The request's body cannot be had: the connection is lost, stalled or its framing is wrong.

    ``reason`` is ``"disconnected"``, ``"timeout"`` or ``"framing"``.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason
