"""Request bodies: by Content-Length, received straight into the reader's buffer, or chunked."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final, NoReturn

from engine.http.message import BodyBroken, HeaderList
from engine.http.transport import ConnectionLost, Interrupted, Transport

CONTINUE: Final = b"HTTP/1.1 100 Continue\r\n\r\n"

_RECEIVE: Final = 16 * 1024
_LINE_MAX: Final = 1024
"""Of a chunk's size line, with extensions."""
_TRAILER_BYTES_MAX: Final = 8 * 1024
_TRAILER_LINE: Final = re.compile(
    rb"([!#$%&'*+\-.^_`|~0-9A-Za-z]+):[ \t]*([^\x00-\x08\x0a-\x1f\x7f]*)"
)
_SIZE_LINE: Final = re.compile(rb"([0-9A-Fa-f]{1,15})(?:;[^\x00-\x08\x0a-\x1f\x7f]*)?")

_AT_SIZE: Final = 0
_IN_CHUNK: Final = 1
_AFTER_CHUNK: Final = 2
_AT_TRAILER: Final = 3


class Inbox:
    """Bytes that came and were not consumed, before the transport that they came from.

    ``data`` is empty exactly when there are none.
    """

    __slots__ = ("data", "position", "transport")

    def __init__(self, transport: Transport) -> None:
        self.transport = transport
        self.data = b""
        self.position = 0

    def take(self) -> bytes:
        """Return and forget all bytes."""
        data = self.data[self.position :] if self.position else self.data
        self.data = b""
        self.position = 0
        return data

    def take_into(self, buffer: memoryview) -> int:
        """Move as many bytes as there are and fit; 0 when there are none."""
        position = self.position
        count = min(len(self.data) - position, len(buffer))
        if count:
            buffer[:count] = memoryview(self.data)[position : position + count]
            self.position = position + count
        if self.position == len(self.data):
            self.data = b""
            self.position = 0
        return count

    def take_line(self, size_max: int) -> bytes | None:
        """Return the next line without its CRLF, or None: it is not all there yet.

        Raises:
            ValueError: longer than ``size_max``, or with a CR or LF that ends no line.
        """
        data, start = self.data, self.position
        end = data.find(b"\n", start)
        if end < 0:
            if len(data) - start > size_max + 1:
                raise ValueError("line too long")
            return None
        line = data[start : end - 1]
        if end == start or data[end - 1] != 13 or b"\r" in line or len(line) > size_max:
            raise ValueError("malformed line")
        self.position = end + 1
        if self.position == len(data):
            self.take()
        return line

    async def fill(self) -> bool:
        """Receive more; False at the end. Raises ConnectionLost."""
        data = await self.transport.receive(_RECEIVE, wait=False)
        self.data = self.take() + data
        return bool(data)


class NoBody:
    """The body of a request that has none."""

    __slots__ = ()
    length: int | None = 0
    finished = True
    broken: str | None = None
    expects = False
    trailers: Sequence[tuple[bytes, bytes]] = ()

    async def readinto(self, buffer: memoryview) -> int:
        return 0

    def remaining(self) -> int | None:
        return 0


class WireBody:
    """What both kinds of body share: the expectation of ``100 Continue``, and how they break."""

    __slots__ = ("_inbox", "broken", "expects", "finished", "length", "trailers")

    def __init__(self, inbox: Inbox, length: int | None, *, expects: bool) -> None:
        self._inbox = inbox
        self.length = length
        self.finished = False
        self.broken: str | None = None
        self.expects = expects
        """The client waits for ``100 Continue`` and has sent nothing of the body."""
        self.trailers: HeaderList = []
        """(lower-case name, value) after a chunked body, complete once it is read to the end."""

    async def readinto(self, buffer: memoryview) -> int:
        """See ``engine.http.message.Body``."""
        raise NotImplementedError

    def remaining(self) -> int | None:
        """Return how many bytes are still to be read, None: unknown."""
        return 0 if self.finished else None

    def _check(self, buffer: memoryview) -> None:
        assert len(buffer), "nothing can be read into an empty buffer"
        if self.broken is not None:
            raise BodyBroken(self.broken)

    async def _prompt(self) -> None:
        """Send ``100 Continue``, unless the client did not wait for it (RFC 9110, 10.1.1)."""
        self.expects = False
        if not self._inbox.data:
            try:
                await self._inbox.transport.send(CONTINUE)
            except ConnectionLost as error:
                self._fail(error)

    async def _receive_into(self, buffer: memoryview) -> int:
        try:
            count = await self._inbox.transport.receive_into(buffer)
        except ConnectionLost as error:
            self._fail(error)
        if not count:
            self._fail(None)
        return count

    async def _receive_more(self) -> None:
        try:
            alive = await self._inbox.fill()
        except ConnectionLost as error:
            self._fail(error)
        if not alive:
            self._fail(None)

    def _fail(self, error: ConnectionLost | ValueError | None) -> NoReturn:
        if isinstance(error, Interrupted):
            self.broken = "timeout"
        elif isinstance(error, ValueError):
            self.broken = "framing"
        else:
            self.broken = "disconnected"
        raise BodyBroken(self.broken) from error


class LengthBody(WireBody):
    """A body of exactly so many bytes as Content-Length says."""

    __slots__ = ("_left",)

    def __init__(self, inbox: Inbox, length: int, *, expects: bool) -> None:
        super().__init__(inbox, length, expects=expects)
        self._left = length

    def remaining(self) -> int | None:
        return self._left

    async def readinto(self, buffer: memoryview) -> int:
        if self.finished:
            return 0
        self._check(buffer)
        if self.expects:
            await self._prompt()
        left = self._left
        if len(buffer) > left:
            buffer = buffer[:left]
        # The rest of what came with the head goes first; then the kernel fills the buffer.
        count = self._inbox.take_into(buffer) if self._inbox.data else 0
        if not count:
            count = await self._receive_into(buffer)
        self._left = left - count
        if count == left:
            self.finished = True
        return count


class ChunkedBody(WireBody):
    """A body in chunked transfer coding (RFC 9112, section 7.1), decoded strictly."""

    __slots__ = ("_chunk_left", "_state", "_trailer_bytes")

    def __init__(self, inbox: Inbox, *, expects: bool) -> None:
        super().__init__(inbox, None, expects=expects)
        self._state = _AT_SIZE
        self._chunk_left = 0
        self._trailer_bytes = 0

    async def readinto(self, buffer: memoryview) -> int:
        if self.finished:
            return 0
        self._check(buffer)
        if self.expects:
            await self._prompt()
        filled = 0
        while filled < len(buffer) and not self.finished:
            if self._state == _IN_CHUNK:
                count = await self._read_chunk(buffer[filled:], wait=not filled)
                if not count and filled:
                    break
                filled += count
            elif not self._parse_line():
                if filled:
                    break
                await self._receive_more()
        return filled

    async def _read_chunk(self, buffer: memoryview, *, wait: bool) -> int:
        """Read bytes of the running chunk; 0 when it would have to wait and must not, or has
        only filled the inbox.
        """
        if len(buffer) > self._chunk_left:
            buffer = buffer[: self._chunk_left]
        count = self._inbox.take_into(buffer) if self._inbox.data else 0
        if not count:
            if not wait:
                return 0
            if len(buffer) < _RECEIVE:
                # Small chunks: the next size lines had better come in the same call.
                await self._receive_more()
                return 0
            count = await self._receive_into(buffer)
        self._chunk_left -= count
        if not self._chunk_left:
            self._state = _AFTER_CHUNK
        return count

    def _parse_line(self) -> bool:
        """Take one line of framing; False: it is not all there yet."""
        try:
            if self._state == _AT_TRAILER:
                line = self._inbox.take_line(_TRAILER_BYTES_MAX)
            else:
                line = self._inbox.take_line(_LINE_MAX)
            if line is None:
                return False
            if self._state == _AT_SIZE:
                self._on_size(line)
            elif self._state == _AT_TRAILER:
                self._on_trailer(line)
            elif line:
                raise ValueError("chunk is longer than announced")
            else:
                self._state = _AT_SIZE
        except ValueError as error:
            self._fail(error)
        return True

    def _on_size(self, line: bytes) -> None:
        match = _SIZE_LINE.fullmatch(line)
        if match is None:
            raise ValueError("malformed chunk size")
        self._chunk_left = int(match[1], 16)
        self._state = _IN_CHUNK if self._chunk_left else _AT_TRAILER

    def _on_trailer(self, line: bytes) -> None:
        if not line:
            self.finished = True
            return
        match = _TRAILER_LINE.fullmatch(line)
        self._trailer_bytes += len(line)
        if match is None or self._trailer_bytes > _TRAILER_BYTES_MAX:
            raise ValueError("malformed trailer")
        self.trailers.append((match[1].lower(), match[2].rstrip(b" \t")))
