"""The body of one request, framed by Content-Length or chunks, pulled by who wants it.

Nothing is read, and no ``100 Continue`` sent, before the first pull, so a request is
authenticated first. The end is the announced end: a connection that closes before it is
``BodyBroken``, never a short body.

A small body that nobody has to be asked for is fetched whole, so that the trio run has it without
crossing into the thread and back for it.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from dav.wire import SocketReader
from engine.http.message import BodyBroken

_CHUNK_SIZE = re.compile(rb"[0-9A-Fa-f]{1,15}")
LINE_SIZE_MAX = 4096
TRAILER_SIZE_MAX = 16 * 1024
SMALL = 64 * 1024


class RequestBody:
    """Used by the thread of its connection only. Also serves as ``wsgi.input``."""

    def __init__(
        self,
        reader: SocketReader,
        length: int | None,
        send_continue: Callable[[], None] | None,
    ) -> None:
        """``length`` None: chunked. ``send_continue``: what the client waits for, if it does."""
        self.length = length
        self.received = 0
        """Bytes of the body that came so far."""
        self.finished = length == 0
        self.waiting = send_continue is not None
        """The client has not been told to send the body."""
        self._reader = reader
        self._send_continue = send_continue
        self._left = 0 if length is None else length
        """Bytes left of the body, or of the current chunk."""
        self._in_chunk = False
        self._held: memoryview | None = None
        """What is left of a body that was fetched."""

    def fetch(self) -> None:
        """Read the body into memory if it is small and already on its way. Raises: BodyBroken."""
        if self.finished or self.waiting or self.length is None or self.length > SMALL:
            return
        held = memoryview(bytearray(self.length))
        self.readinto(held)
        self._held = held

    @property
    def in_memory(self) -> bool:
        """Whether reading never blocks."""
        return self._held is not None or self.length == 0

    def readinto(self, view: memoryview) -> int:
        """Fill ``view``; fewer bytes only at the end of the body, then 0.

        Raises: BodyBroken: ``disconnected``, ``timeout`` or ``framing``.
        """
        if self._held is not None:
            filled = min(len(view), len(self._held))
            view[:filled] = self._held[:filled]
            self._held = self._held[filled:]
            return filled
        filled = 0
        while filled < len(view) and not self.finished:
            filled += self._pull(view[filled:])
        return filled

    def read(self, size: int = -1) -> bytes:
        """Return ``size`` bytes, or all that is left; fewer at the end. For small bodies."""
        if self._held is not None and size >= 0:
            held, self._held = self._held, self._held[size:]
            return bytes(held[:size])
        if size >= 0:
            if self.length is not None:
                # Never more memory than there are bytes.
                size = min(size, self._left)
            data = bytearray(size)
            return bytes(data[: self.readinto(memoryview(data))])
        parts = []
        while part := self.read(64 * 1024):
            parts.append(part)
        return b"".join(parts)

    def _pull(self, view: memoryview) -> int:
        if self._send_continue is not None:
            send, self._send_continue = self._send_continue, None
            self.waiting = False
            send()
        try:
            if self.length is None and not self._left:
                self._next_chunk()
                if self.finished:
                    return 0
            received = self._reader.readinto(view[: self._left])
        except TimeoutError:
            raise BodyBroken("timeout") from None
        except OSError:
            raise BodyBroken("disconnected") from None
        if not received:
            raise BodyBroken("disconnected")
        self._left -= received
        self.received += received
        if self.length is not None and not self._left:
            self.finished = True
        return received

    def _next_chunk(self) -> None:
        """Read the end of the last chunk, if there was one, and the head of the next."""
        if self._in_chunk and self._line() != b"":
            raise BodyBroken("framing")
        match = _CHUNK_SIZE.match(head := self._line())
        if match is None or head[match.end() : match.end() + 1] not in (b"", b";", b" ", b"\t"):
            raise BodyBroken("framing")
        self._left = int(match[0], 16)
        self._in_chunk = True
        if self._left == 0:
            self._skip_trailers()
            self.finished = True

    def _skip_trailers(self) -> None:
        size = 0
        while line := self._line():
            size += len(line) + 2
            if size > TRAILER_SIZE_MAX:
                raise BodyBroken("framing")

    def _line(self) -> bytes:
        line = self._reader.readline(LINE_SIZE_MAX)
        if not line:
            raise BodyBroken("disconnected")
        if not line.endswith(b"\r\n"):
            raise BodyBroken("framing")
        return line[:-2]
