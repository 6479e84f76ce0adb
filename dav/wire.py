"""Bytes of one connection: buffered reading with deadlines, writing without copies.

In place of cheroot's files, which are the pure Python ones of ``_pyio``, copy each byte three
times, and whose ``read`` and ``sendall`` count a time-out for the whole call. Here time runs out
only when no byte moves; ``deadline`` bounds reading as a whole where that is wanted.
"""

from __future__ import annotations

import select
import socket
import ssl
import time

READ_SIZE = 64 * 1024
TLS_STEP = 128 * 1024
PLAIN_STEP = 4 << 20
JOINED_MAX = 64 * 1024


class SocketReader:
    """The reading side. Used by one thread at a time."""

    def __init__(self, sock: socket.socket, *, idle_s: float) -> None:
        self._socket = sock
        self._idle_s = idle_s
        self._buffer = bytearray()
        self.deadline: float | None = None
        """Monotonic time after which reading fails with TimeoutError; None: no such limit."""
        self.closed = False
        self.bytes_read = 0

    def has_data(self) -> bool:
        """Whether a read would return at once with bytes that came already."""
        if self._buffer:
            return True
        return isinstance(self._socket, ssl.SSLSocket) and self._socket.pending() > 0

    def peek_head(self, limit: int) -> bytes | None:
        """Return what stands before the first empty line, if that came already, or comes at once
        to a reader that has nothing; it stays to be read. ``skip`` it with 4 bytes more.

        Raises: TimeoutError, OSError.
        """
        if not self._buffer:
            self._fetch()
        end = self._buffer.find(b"\r\n\r\n", 0, limit)
        return None if end < 0 else bytes(self._buffer[:end])

    def skip(self, size: int) -> None:
        """Let go of bytes that ``peek_head`` has shown."""
        del self._buffer[:size]

    def readinto(self, view: memoryview) -> int:
        """Fill at least one byte of ``view`` and return how many; 0 at the end of the stream.

        Raises: TimeoutError, OSError.
        """
        if self._buffer:
            size = min(len(view), len(self._buffer))
            view[:size] = self._buffer[:size]
            del self._buffer[:size]
            return size
        return self._receive(view)

    def readline(self, size: int = READ_SIZE) -> bytes:
        """Return bytes up to and including a line feed; fewer at the end or after ``size``."""
        start = 0
        while True:
            found = self._buffer.find(b"\n", start, size)
            if found >= 0 or len(self._buffer) >= size:
                end = found + 1 if found >= 0 else size
                break
            start = len(self._buffer)
            if not self._fetch():
                end = len(self._buffer)
                break
        line = bytes(self._buffer[:end])
        del self._buffer[:end]
        return line

    def read(self, size: int) -> bytes:
        """Return ``size`` bytes; fewer at the end."""
        result = bytearray(size)
        view = memoryview(result)
        filled = 0
        while filled < size:
            received = self.readinto(view[filled:])
            if not received:
                break
            filled += received
        return bytes(result[:filled])

    def close(self) -> None:
        self.closed = True

    def _fetch(self) -> bool:
        fresh = bytearray(READ_SIZE)
        received = self._receive(memoryview(fresh))
        self._buffer += memoryview(fresh)[:received]
        return received > 0

    def _receive(self, view: memoryview) -> int:
        timeout = self._idle_s
        if self.deadline is not None:
            timeout = min(timeout, self.deadline - time.monotonic())
            if timeout <= 0:
                raise TimeoutError("timed out")
        self._socket.settimeout(timeout)
        try:
            received = self._socket.recv_into(view)
        except ssl.SSLEOFError:
            # Closed without TLS's goodbye: what is not whole shows by its announced length.
            received = 0
        except ssl.SSLError as error:
            raise ConnectionAbortedError(str(error)) from None
        self.bytes_read += received
        return received


class SocketWriter:
    """The writing side: each write goes out, but for one that is held to go with the next."""

    def __init__(self, sock: socket.socket, *, idle_s: float) -> None:
        self._socket = sock
        self._idle_s = idle_s
        self._step = TLS_STEP if isinstance(sock, ssl.SSLSocket) else PLAIN_STEP
        self._held: bytes | None = None
        self.bytes_written = 0

    def hold(self) -> None:
        """Keep what is written next until something follows it, or ``release``."""
        self._held = b""

    def release(self) -> None:
        """Send what was held."""
        held, self._held = self._held, None
        if held:
            self.write(held)

    def write(self, data: bytes | bytearray | memoryview) -> int:
        """Send all of ``data``. Raises: TimeoutError when no byte moves, OSError."""
        if self._held is not None:
            if not self._held:
                self._held = bytes(data)
                return len(data)
            if len(data) > JOINED_MAX:
                self.release()
            else:
                # A head and its small body: one packet, and one wake-up of the client.
                data, self._held = b"".join((self._held, data)), None
        rest = memoryview(data)
        self._socket.settimeout(self._idle_s)
        while rest:
            # Not sendall: its time-out is for the whole call; and so is that of a TLS send.
            try:
                sent = self._socket.send(rest[: self._step])
            except ssl.SSLError as error:
                raise ConnectionAbortedError(str(error)) from None
            rest = rest[sent:]
        self.bytes_written += len(data)
        return len(data)


def peer_left(sock: socket.socket) -> bool:
    """Whether the other side has closed the connection, or it broke; never blocks."""
    if sock.fileno() < 0:
        return True
    poller = select.poll()
    poller.register(sock.fileno(), select.POLLRDHUP | select.POLLHUP | select.POLLERR)
    return bool(poller.poll(0))


def wait_readable(sock: socket.socket, limit_ms: int) -> bool:
    """Whether bytes, or the end, come within the time."""
    poller = select.poll()
    poller.register(sock.fileno(), select.POLLIN)
    return bool(poller.poll(limit_ms))
