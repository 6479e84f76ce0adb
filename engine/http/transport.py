"""Connected sockets as the server uses them: plain TCP and TLS, behind one small protocol.

trio's own streams yield to the scheduler after every successful call and take conflict locks; on
a request path of tens of microseconds that costs more than the work. Here a call is tried first
and waits only when the kernel says so. The price is that fairness is ours: see ``_YIELD_BYTES``.
"""

from __future__ import annotations

import errno
import os
import select
import socket
import ssl
import struct
from contextlib import suppress
from typing import Final, Protocol

import trio

from engine.http.message import Buffer, FileSpan
from engine.http.residency import residency_check

_YIELD_BYTES: Final = 1 << 22
"""After so many bytes without a wait the task yields, so that one fast client starves nobody: about
1 ms. Each trip through the scheduler costs as much as receiving 0.3 MiB."""
_CALL_COST: Final = 2048
"""What a call counts besides its bytes, so that many small ones yield too."""
_LINGER_ABORT: Final = struct.pack("ii", 1, 0)
_FILE_WAIT_MS: Final = 5
"""So long a thread that sends a file waits for the client; longer waits need no thread."""
_FILE_STEP: Final = 256 << 10
_CACHED_STEP: Final = 4 << 20
"""So much of a file that the page cache has is sent at once without a thread, which would cost more
than sending it. The socket takes less, mostly."""
_FILE_ERRORS: Final = frozenset((errno.EIO, errno.EINVAL, errno.EBADF, errno.EOVERFLOW))
"""Of ``sendfile``, when it is the file that fails."""

_is_cached: Final = residency_check()

NOTHING: Final = 0
READ: Final = 1
WRITE: Final = 2


class ConnectionLost(Exception):
    """The client is gone, or the connection failed below HTTP."""


class Interrupted(ConnectionLost):
    """``interrupt`` ended a wait: the client was too slow, or we are shutting down."""


class FileBroken(Exception):
    """A file that was to be sent cannot be read, or ends too early."""


class Transport(Protocol):
    """One connection. One task uses it; others only call ``interrupt``.

    All waits raise ``ConnectionLost`` (``Interrupted`` after ``interrupt``). Cancelling any of
    them leaves it unknown how much was transferred.
    """

    peer: str
    secure: bool
    received: int
    """Bytes received so far."""
    sent: int
    """Bytes sent so far."""
    waiting: int
    """NOTHING, or READ or WRITE while a call is blocked until the client acts."""

    async def start(self) -> None:
        """Do the TLS handshake, if there is one."""

    async def receive(self, size: int, *, wait: bool) -> bytes:
        """Return 1 to ``size`` bytes, or ``b""`` at the end.

        ``wait`` says that nothing is likely to be there yet: the call then always yields.
        """

    async def receive_into(self, buffer: memoryview) -> int:
        """Receive at least one byte into ``buffer``; 0 only at the end."""

    async def send(self, data: Buffer) -> None:
        """Hand all bytes to the kernel; ``data`` may be reused afterwards."""

    async def send_pair(self, first: bytes, second: Buffer) -> None:
        """Send two buffers one after the other, in one packet where that is possible."""

    async def send_file(self, first: bytes, span: FileSpan) -> None:
        """Send the buffer, then the file's bytes. Raises FileBroken when they cannot be had."""

    def interrupt(self) -> None:
        """Make the call that is blocked now, if any, raise ``Interrupted``."""

    def finish(self) -> None:
        """Tell the client that nothing more will come; receiving still works. Never raises."""

    def abort(self) -> None:
        """Close with a reset, so that the client cannot take what it has for whole."""

    def close(self) -> None:
        """Close. Harmless when repeated and after ``abort``."""


class TcpTransport:
    """A connected stream socket; takes ownership of it."""

    __slots__ = ("_fd", "_sock", "_unyielded", "peer", "received", "secure", "sent", "waiting")

    def __init__(self, sock: socket.socket, peer: str) -> None:
        sock.setblocking(False)
        if sock.family != socket.AF_UNIX:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._sock = sock
        self._fd = sock.fileno()
        self._unyielded = 0
        self.peer = peer
        self.secure = False
        self.received = 0
        self.sent = 0
        self.waiting = NOTHING

    async def start(self) -> None:
        return None

    async def receive(self, size: int, *, wait: bool) -> bytes:
        while True:
            if wait:
                await self._wait(READ)
            try:
                data = self._sock.recv(size)
            except BlockingIOError:
                wait = True
                continue
            except OSError as error:
                raise ConnectionLost from error
            count = len(data)
            self.received += count
            self._unyielded += count + _CALL_COST
            if self._unyielded > _YIELD_BYTES:
                await self._yield()
            return data

    async def receive_into(self, buffer: memoryview) -> int:
        while True:
            try:
                count = self._sock.recv_into(buffer)
            except BlockingIOError:
                await self._wait(READ)
                continue
            except OSError as error:
                raise ConnectionLost from error
            self.received += count
            self._unyielded += count + _CALL_COST
            if self._unyielded > _YIELD_BYTES:
                await self._yield()
            return count

    async def send(self, data: Buffer) -> None:
        try:
            count = self._sock.send(data)
        except BlockingIOError:
            count = 0
        except OSError as error:
            raise ConnectionLost from error
        self.sent += count
        self._unyielded += count + _CALL_COST
        if self._unyielded > _YIELD_BYTES:
            await self._yield()
        if count < len(data):
            await self._send_rest(memoryview(data)[count:])

    async def send_pair(self, first: bytes, second: Buffer) -> None:
        try:
            count = self._sock.sendmsg((first, second))
        except BlockingIOError:
            count = 0
        except OSError as error:
            raise ConnectionLost from error
        self.sent += count
        self._unyielded += count + _CALL_COST
        if self._unyielded > _YIELD_BYTES:
            await self._yield()
        if count < len(first):
            await self._send_rest(memoryview(first)[count:])
            count = len(first)
        count -= len(first)
        if count < len(second):
            await self._send_rest(memoryview(second)[count:])

    async def send_file(self, first: bytes, span: FileSpan) -> None:
        try:
            count = self._sock.send(first, socket.MSG_MORE) if first else 0
        except BlockingIOError:
            count = 0
        except OSError as error:
            raise ConnectionLost from error
        self.sent += count
        if count < len(first):
            await self._send_rest(memoryview(first)[count:], socket.MSG_MORE)
        sent = 0
        while sent < span.size:
            offset, size = span.offset + sent, min(span.size - sent, _CACHED_STEP)
            if _is_cached(span.fd, offset, size):
                count = _send_file_part(self._fd, span.fd, offset, size)
                self._unyielded += count + _CALL_COST
                if not count:
                    await self._wait(WRITE)
                elif self._unyielded > _YIELD_BYTES:
                    await self._yield()
            else:
                if sent:
                    await self._wait(WRITE)
                # In a thread, since it comes from the disk.
                count = await trio.to_thread.run_sync(
                    _send_file, self._fd, span.fd, offset, span.size - sent, limiter=span.limiter
                )
            self.sent += count
            sent += count

    async def _send_rest(self, data: memoryview, flags: int = 0) -> None:
        while data:
            await self._wait(WRITE)
            try:
                count = self._sock.send(data, flags)
            except BlockingIOError:
                continue
            except OSError as error:
                raise ConnectionLost from error
            self.sent += count
            data = data[count:]

    async def _wait(self, direction: int) -> None:
        self.waiting = direction
        try:
            if direction == READ:
                await trio.lowlevel.wait_readable(self._fd)
            else:
                await trio.lowlevel.wait_writable(self._fd)
        except trio.ClosedResourceError:
            raise Interrupted from None
        finally:
            self.waiting = NOTHING
        self._unyielded = 0

    async def _yield(self) -> None:
        self._unyielded = 0
        await trio.lowlevel.checkpoint()

    def interrupt(self) -> None:
        if self.waiting:
            # It wakes whoever waits on the descriptor, and leaves the descriptor open.
            trio.lowlevel.notify_closing(self._fd)

    def finish(self) -> None:
        try:
            self._sock.shutdown(socket.SHUT_WR)
        except OSError:
            return  # the client was faster; there is nobody left to tell

    def abort(self) -> None:
        with suppress(OSError):  # already closed, or reset by the client
            self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_ABORT)
        self.close()

    def close(self) -> None:
        if self._sock.fileno() != -1:
            trio.lowlevel.notify_closing(self._fd)
            self._sock.close()


def _send_file(sock: int, file: int, offset: int, size: int) -> int:
    """In a thread: send as much as the socket takes, waiting a little for it to take more.

    Returns how many bytes, maybe 0. Raises ConnectionLost, FileBroken.
    """
    sent = 0
    poll: select.poll | None = None
    with suppress(OSError):  # advice: the bytes come in large reads, several at once
        os.posix_fadvise(file, offset, size, os.POSIX_FADV_WILLNEED)
    while sent < size:
        count = _send_file_part(sock, file, offset + sent, size - sent)
        sent += count
        if not count:
            if poll is None:
                poll = select.poll()
                poll.register(sock, select.POLLOUT)
            if not poll.poll(_FILE_WAIT_MS):
                break
    return sent


def _send_file_part(sock: int, file: int, offset: int, size: int) -> int:
    """Send what the socket takes now; return how many bytes, 0 if it is full.

    Raises: ConnectionLost, FileBroken.
    """
    try:
        count = os.sendfile(sock, file, offset, size)
    except BlockingIOError:
        return 0
    except OSError as error:
        if error.errno in _FILE_ERRORS:
            raise FileBroken(error.strerror) from error
        raise ConnectionLost from error
    if not count:
        raise FileBroken("the file ends too early")
    return count


class TlsTransport(TcpTransport):
    """TLS on a non-blocking socket: records are decrypted straight into the caller's buffer."""

    __slots__ = ("_tls",)

    def __init__(self, sock: socket.socket, peer: str, context: ssl.SSLContext) -> None:
        sock.setblocking(False)
        try:
            self._tls = context.wrap_socket(
                sock, server_side=True, do_handshake_on_connect=False, suppress_ragged_eofs=True
            )
        except OSError as error:
            sock.close()
            raise ConnectionLost from error
        super().__init__(self._tls, peer)
        self.secure = True

    async def start(self) -> None:
        while True:
            try:
                self._tls.do_handshake()
            except ssl.SSLWantReadError:
                await self._wait(READ)
            except ssl.SSLWantWriteError:
                await self._wait(WRITE)
            except (OSError, ValueError) as error:
                raise ConnectionLost from error
            else:
                return

    async def receive(self, size: int, *, wait: bool) -> bytes:
        # Decrypted bytes may be waiting that the kernel knows nothing of.
        if wait and not self._tls.pending():
            await self._wait(READ)
        scratch = bytearray(size)
        with memoryview(scratch) as view:
            count = await self.receive_into(view)
        return bytes(scratch[:count])

    async def receive_into(self, buffer: memoryview) -> int:
        while True:
            try:
                count = self._tls.recv_into(buffer)
            except ssl.SSLWantReadError:
                await self._wait(READ)
            except ssl.SSLWantWriteError:
                await self._wait(WRITE)
            except OSError as error:
                raise ConnectionLost from error
            else:
                self.received += count
                self._unyielded += count + _CALL_COST
                if self._unyielded > _YIELD_BYTES:
                    await self._yield()
                return count

    async def send(self, data: Buffer) -> None:
        await self._send_rest(memoryview(data))

    async def send_pair(self, first: bytes, second: Buffer) -> None:
        await self._send_rest(memoryview(first))
        await self._send_rest(memoryview(second))

    async def send_file(self, first: bytes, span: FileSpan) -> None:
        await self._send_rest(memoryview(first))
        sent = 0
        while sent < span.size:
            size = min(_FILE_STEP, span.size - sent)
            try:
                data = await trio.to_thread.run_sync(
                    os.pread, span.fd, size, span.offset + sent, limiter=span.limiter
                )
            except OSError as error:
                raise FileBroken(error.strerror) from error
            if not data:
                raise FileBroken("the file ends too early")
            await self._send_rest(memoryview(data))
            sent += len(data)

    async def _send_rest(self, data: memoryview, flags: int = 0) -> None:
        while data:
            try:
                count = self._tls.send(data)
            except ssl.SSLWantReadError:
                await self._wait(READ)
            except ssl.SSLWantWriteError:
                await self._wait(WRITE)
            except OSError as error:
                raise ConnectionLost from error
            else:
                self.sent += count
                data = data[count:]
                self._unyielded += count + _CALL_COST
                if self._unyielded > _YIELD_BYTES:
                    await self._yield()

    def finish(self) -> None:
        self._close_notify()
        super().finish()

    def close(self) -> None:
        if self._sock.fileno() != -1:
            self._close_notify()
        super().close()

    def abort(self) -> None:
        # No close_notify: the client must see that the answer was cut off.
        with suppress(OSError):  # already closed, or reset by the client
            self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_ABORT)
        super().close()

    def _close_notify(self) -> None:
        try:
            # Sends our alert at once, then wants the client's, for which nobody waits.
            self._tls.unwrap()
        except (OSError, ValueError):
            return
