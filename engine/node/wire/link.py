"""``Link``: one connection from a gateway to a member, plain or TLS.

trio's streams yield after every call and join what is sent; at hundreds of MB/s that costs more
than the work. A link tries the system call first, with the caller's own buffers, and waits only
when the kernel says so. Answers are received straight into the caller's memory.

Concurrency: one task at a time uses a link. Cancelling any call leaves unknown how much was
transferred, so the link is closed then.
"""

from __future__ import annotations

import errno
import os
import socket
import ssl
import struct
from collections.abc import Sequence
from contextlib import suppress
from typing import Final, NamedTuple

import trio

from engine.node.contract import Buffer
from engine.node.wire.auth import Signer
from engine.node.wire.loopback import unpace

_HEAD_MAX: Final = 4096
_BUFFERS_MAX: Final = 1024
"""What one call takes (IOV_MAX)."""
_TOGETHER: Final = 1 << 20
"""Bytes of a body that a call is woken for: each waking costs about as much as receiving them."""
_TOGETHER_MIN: Final = 64 << 10
_SLOW_S: Final = 0.25
"""Where fewer came for so long, it is woken for each."""
_LINGER_ABORT: Final = struct.pack("ii", 1, 0)
_PENDING: Final = frozenset((errno.EINPROGRESS, errno.EWOULDBLOCK))


class LinkLost(Exception):
    """The connection ended or failed, or what came is not HTTP."""


class Answer(NamedTuple):
    """The head of an answer."""

    status: int
    length: int
    """Of the body that follows."""
    keep: bool
    """The connection may be used again once the body is read."""
    fields: bytes
    """All header lines, in lower case, each ended by CRLF."""

    def field(self, name: bytes) -> bytes | None:
        """Return the value of the header (lower-case ``name``), in lower case, or None."""
        begin = self.fields.find(b"\r\n" + name + b":")
        if begin < 0:
            return None
        begin += len(name) + 3
        return self.fields[begin : self.fields.find(b"\r\n", begin)].strip()


class Stopwatch:
    """Ends the scope of a call when nothing moves for too long, or it takes too long in all."""

    __slots__ = ("_end", "_scope", "_stall_s")

    def __init__(self, scope: trio.CancelScope, *, stall_s: float, whole_s: float) -> None:
        now = trio.current_time()
        self._scope = scope
        self._stall_s = stall_s
        self._end = now + whole_s
        scope.deadline = now + min(stall_s, whole_s)

    def progress(self) -> None:
        self._scope.deadline = min(trio.current_time() + self._stall_s, self._end)


class Link:
    """Made by ``connect``; whoever has it closes it."""

    __slots__ = (
        "_batching",
        "_fd",
        "_left",
        "_scratch",
        "_sock",
        "_woken_at",
        "heard",
        "idle_since",
        "reused",
        "signer",
        "watch",
    )

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._fd = sock.fileno()
        self._scratch = memoryview(bytearray(_HEAD_MAX))
        self._left = memoryview(b"")
        """Bytes that came together with the last head."""
        self._batching = False
        """A body came before, and nothing was slow since."""
        self._woken_at = 1
        self.signer: Signer | None = None
        """Set once the challenge is answered."""
        self.reused = False
        """It has served a call before, so the other side may have closed it meanwhile."""
        self.heard = False
        """Something came since the call began."""
        self.idle_since = 0.0
        self.watch: Stopwatch | None = None
        """Of the call that runs."""

    @property
    def closed(self) -> bool:
        return self._sock.fileno() < 0

    def close(self) -> None:
        if self._sock.fileno() >= 0:
            trio.lowlevel.notify_closing(self._fd)
            self._sock.close()

    def abort(self) -> None:
        """Close with a reset: the other side learns at once, and drops what it has not read."""
        with suppress(OSError):  # the other side was faster
            self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_ABORT)
        self.close()

    # System calls; they raise BlockingIOError or SSLWant..., and OSError.

    def _send_some(self, buffers: Sequence[Buffer]) -> int:
        return self._sock.sendmsg(buffers)

    def _receive_some(self, views: Sequence[memoryview]) -> int:
        return self._sock.recvmsg_into(views)[0]

    # Waiting

    async def _readable(self) -> None:
        if self._woken_at > 1:
            with trio.move_on_after(_SLOW_S) as scope:
                await trio.lowlevel.wait_readable(self._fd)
            if scope.cancelled_caught:
                # It is slow: now every byte counts, against the limit on silence.
                self._batching = False
                self._wake_at(1)
                await trio.lowlevel.wait_readable(self._fd)
        else:
            await trio.lowlevel.wait_readable(self._fd)
        if self.watch is not None:
            self.watch.progress()

    async def _writable(self) -> None:
        await trio.lowlevel.wait_writable(self._fd)
        if self.watch is not None:
            self.watch.progress()

    async def send(self, buffers: Sequence[Buffer]) -> None:
        """Hand all bytes to the kernel; the buffers may be reused afterwards.

        Raises: LinkLost.
        """
        pending: list[Buffer] = list(buffers)
        while pending:
            try:
                count = self._send_some(pending[:_BUFFERS_MAX])
            except (BlockingIOError, ssl.SSLWantWriteError):
                await self._writable()
            except ssl.SSLWantReadError:
                await self._readable()
            except OSError as error:
                raise LinkLost(_words(error)) from error
            else:
                _advance(pending, count)

    async def _receive(self, views: Sequence[memoryview]) -> int:
        """Receive at least one byte; 0 at the end. Raises LinkLost."""
        while True:
            try:
                return self._receive_some(views)
            except (BlockingIOError, ssl.SSLWantReadError):
                await self._readable()
            except ssl.SSLWantWriteError:
                await self._writable()
            except OSError as error:
                raise LinkLost(_words(error)) from error

    def has_something(self) -> bool:
        """Return whether anything came that nobody asked for: an early answer, or the end."""
        if self._left:
            return True
        try:
            count = self._receive_some([self._scratch])
        except (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
            return False
        except OSError:
            return True
        self._left = self._scratch[:count]
        return True

    async def receive_head(self) -> Answer:
        """Return the next answer's head. Raises LinkLost."""
        scratch, have = self._scratch, len(self._left)
        if have:
            # What is left lies in the same memory; it moves to the front.
            scratch[:have] = bytes(self._left)
            self._left = memoryview(b"")
        while True:
            head = bytes(scratch[:have])
            end = head.find(b"\r\n\r\n")
            if end >= 0:
                break
            if have == _HEAD_MAX:
                raise LinkLost("the head of an answer does not end")
            count = await self._receive([scratch[have:]])
            if not count:
                raise LinkLost("closed by the other side")
            have += count
            self.heard = True
        self._left = scratch[end + 4 : have]
        return _parse(head[: end + 2])

    async def receive_into(self, views: list[memoryview]) -> None:
        """Fill the views with the answer's body; they are taken from the list as they are filled,
        so that after an error it shows what is still to come. Raises LinkLost.
        """
        while views and self._left:
            count = min(len(self._left), views[0].nbytes)
            views[0][:count] = self._left[:count]
            self._left = self._left[count:]
            _advance(views, count)
        left = sum([view.nbytes for view in views])
        if not left:
            return
        batched = self._batching and left >= _TOGETHER_MIN
        self._batching = True
        try:
            while views:
                if batched:
                    self._wake_at(min(left, _TOGETHER) if self._batching else 1)
                count = await self._receive(views[:_BUFFERS_MAX])
                if not count:
                    raise LinkLost("closed by the other side")
                left -= count
                _advance(views, count)
        finally:
            if batched:
                self._wake_at(1)

    def _wake_at(self, size: int) -> None:
        """Let a wait end once so many bytes are there, or the connection's end."""
        if size != self._woken_at:
            self._woken_at = size
            with suppress(OSError):  # it is lost, as the next call will say
                self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, size)

    async def receive_body(self, size: int) -> bytes:
        body = bytearray(size)
        if size:
            await self.receive_into([memoryview(body)])
        return bytes(body)


class TlsLink(Link):
    """The same over TLS; records are decrypted straight into the caller's memory."""

    __slots__ = ()
    _sock: ssl.SSLSocket

    def _send_some(self, buffers: Sequence[Buffer]) -> int:
        for buffer in buffers:
            if len(buffer):
                return self._sock.send(buffer)
        return 0

    def _receive_some(self, views: Sequence[memoryview]) -> int:
        return self._sock.recv_into(views[0])

    def _wake_at(self, size: int) -> None:
        """Do nothing: the kernel counts encrypted bytes, some of which are decrypted already."""

    async def start(self) -> None:
        """Do the handshake. Raises LinkLost, also when the certificate does not convince."""
        while True:
            try:
                self._sock.do_handshake()
            except ssl.SSLWantReadError:
                await self._readable()
            except ssl.SSLWantWriteError:
                await self._writable()
            except (OSError, ValueError) as error:
                raise LinkLost(f"TLS: {error}") from error
            else:
                return


async def connect(host: str, port: int, tls: ssl.SSLContext | None) -> Link:
    """Return a link to the first of the host's addresses that takes one.

    Raises: LinkLost. There is no time limit here; the caller brings one.
    """
    try:
        found = await trio.socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise LinkLost(f"{host}: not known") from error
    failure = LinkLost("no address")
    for family, kind, protocol, _, address in found:
        try:
            sock = await _connect_socket(family, kind, protocol, address)
        except OSError as error:
            failure = LinkLost(_words(error))
            continue
        if tls is None:
            return Link(sock)
        try:
            wrapped = tls.wrap_socket(sock, server_hostname=host, do_handshake_on_connect=False)
        except (OSError, ValueError) as error:
            sock.close()
            raise LinkLost(f"TLS: {error}") from error
        link = TlsLink(wrapped)
        try:
            await link.start()
        except BaseException:
            link.close()
            raise
        return link
    raise failure


async def _connect_socket(
    family: int, kind: int, protocol: int, address: tuple[str | int, ...] | tuple[int, bytes]
) -> socket.socket:
    sock = socket.socket(family, kind, protocol)
    try:
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        unpace(sock, str(address[0]))
        code = sock.connect_ex(address)
        if code in _PENDING:
            await trio.lowlevel.wait_writable(sock.fileno())
            code = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if code:
            raise OSError(code, os.strerror(code))
    except BaseException:
        sock.close()
        raise
    return sock


def _parse(head: bytes) -> Answer:
    """Take the head of an answer apart; raises LinkLost."""
    line_end = head.find(b"\r\n")
    parts = head[:line_end].split(b" ", 2)
    if len(parts) < 2 or not parts[0].startswith(b"HTTP/1.") or not parts[1].isdigit():
        raise LinkLost("what answers does not speak HTTP")
    answer = Answer(int(parts[1]), 0, True, head[line_end:].lower())
    length = answer.field(b"content-length")
    if b"\r\ntransfer-encoding:" in answer.fields or (length is not None and not length.isdigit()):
        raise LinkLost("an answer whose length is not said")
    keep = answer.field(b"connection") != b"close"
    return Answer(answer.status, int(length or 0), keep, answer.fields)


def _advance(buffers: list[Buffer] | list[memoryview], count: int) -> None:
    """Take ``count`` bytes, and empty buffers, from the front of the list."""
    done = 0
    for buffer in buffers:
        size = buffer.nbytes if isinstance(buffer, memoryview) else len(buffer)
        if size > count:
            break
        count -= size
        done += 1
    del buffers[:done]
    if count:
        buffers[0] = memoryview(buffers[0]).cast("B")[count:]


def _words(error: OSError) -> str:
    return error.strerror or type(error).__name__
