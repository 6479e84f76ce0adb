"""``LinkPool``: the connections of one gateway process to one member.

Connections are kept alive and used again, the one used last first, so that what is too many goes
idle and is closed. At most ``ClientLimits.connections`` are in use at once; who finds none free
waits a bounded time. A connection on which anything went wrong is closed, never used again.

Concurrency: one trio run; nothing awaits between looking at the pool and changing it.
"""

from __future__ import annotations

import os
import ssl
from dataclasses import dataclass

import structlog
import trio

from engine.node.contract import NodeBusy, NodeDown, NodeRefused
from engine.node.wire import auth, messages
from engine.node.wire.link import Link, LinkLost, Stopwatch, connect


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientLimits:
    """Times in seconds."""

    connect_s: float = 1.0
    """For a connection, with its TLS handshake."""
    hello_s: float = 3.0
    """For the challenge on a new connection."""
    stall_s: float = 5.0
    """Without a byte from or to the member, while it is its turn."""
    sync_s: float = 20.0
    """The same while the member makes something durable: commit, delete."""
    call_s: float = 120.0
    """For a whole call, however steadily it moves."""
    wait_s: float = 5.0
    """For a connection when all are in use."""
    connections: int = 256
    idle: int = 64
    """Connections kept for later."""
    idle_s: float = 50.0
    """How long they are kept; less than the member's own limit."""


class LinkPool:
    def __init__(
        self,
        address: str,
        secret: auth.Secret,
        *,
        tls: ssl.SSLContext | None,
        limits: ClientLimits,
    ) -> None:
        """Raises ValueError: the address is not ``HOST:PORT``."""
        self.address = address
        self.limits = limits
        self.host_line = b"Host: %b\r\n" % address.encode("ascii")
        self._host, self._port = _split(address)
        self._secret = secret
        self._tls = tls
        self._slots = trio.Semaphore(limits.connections)
        self._idle: list[Link] = []
        self._closed = False
        self._refusal_logged = False
        self._unreachable_until = float("-inf")

    def close(self) -> None:
        """Close what is idle, and every other connection as it is given back."""
        self._closed = True
        self._drop_idle()

    async def acquire(self, *, fresh: bool) -> Link:
        """Return a link on which requests can be signed; give it back, or discard it.

        Args:
            fresh: make a new one; an old one has just turned out to be closed.
        Raises: NodeDown, NodeRefused, NodeBusy.
        """
        if self._closed:
            raise NodeDown(f"{self.address}: closed")
        await self._take_slot()
        try:
            if fresh:
                self._drop_idle()
            while self._idle:
                link = self._idle.pop()
                if link.has_something():
                    link.close()
                    continue
                link.heard = False
                return link
            if trio.current_time() < self._unreachable_until:
                raise NodeDown(f"{self.address}: could not be reached a moment ago")
            return await self.open()
        except BaseException:
            self._slots.release()
            raise

    async def _take_slot(self) -> None:
        if self._slots.value:
            self._slots.acquire_nowait()
            return
        with trio.move_on_after(self.limits.wait_s) as scope:
            await self._slots.acquire()
        if scope.cancelled_caught:
            raise NodeBusy(f"{self.address}: all connections are in use")

    def release(self, link: Link, *, keep: bool) -> None:
        """Take a link back; ``keep``: it is between two requests and in good order."""
        self._slots.release()
        link.watch = None
        if not keep or self._closed or len(self._idle) >= self.limits.idle:
            link.close()
            return
        now = trio.current_time()
        link.reused = True
        link.idle_since = now
        self._idle.append(link)
        while now - self._idle[0].idle_since > self.limits.idle_s:
            self._idle.pop(0).close()

    def discard(self, link: Link) -> None:
        """Take a link back that cannot be used again."""
        self._slots.release()
        link.abort()

    def _drop_idle(self) -> None:
        idle, self._idle = self._idle, []
        for link in idle:
            link.close()

    async def open(self, *, signed: bool = True) -> Link:
        """Return a new link, apart from the pool's count; the caller closes it.

        Args:
            signed: do the challenge, so that it takes requests of every kind.
        Raises: NodeDown, NodeRefused.
        """
        try:
            with trio.move_on_after(self.limits.connect_s) as scope:
                link = await connect(self._host, self._port, self._tls)
        except LinkLost as error:
            raise NodeDown(f"{self.address}: {error}") from error
        if scope.cancelled_caught:
            # The calls behind this one need not wait as long each to learn the same.
            self._unreachable_until = trio.current_time() + self.limits.connect_s
            raise NodeDown(f"{self.address}: no connection in {self.limits.connect_s:g} s")
        self._unreachable_until = float("-inf")
        if not signed:
            return link
        try:
            with trio.CancelScope() as scope:
                hello_s = self.limits.hello_s
                link.watch = Stopwatch(scope, stall_s=hello_s, whole_s=hello_s)
                await self._greet(link)
            if scope.cancelled_caught:
                raise NodeDown(f"{self.address}: no answer in {hello_s:g} s")
        except LinkLost as error:
            link.abort()
            raise NodeDown(f"{self.address}: {error}") from error
        except NodeRefused as error:
            link.close()
            if not self._refusal_logged:
                self._refusal_logged = True
                structlog.get_logger().error("member refused", reason=str(error))
            raise
        except BaseException:
            link.abort()
            raise
        self._refusal_logged = False
        return link

    async def _greet(self, link: Link) -> None:
        """Fetch the challenge, and see whether the other side knows the secret."""
        half = os.urandom(auth.HALF_SIZE)
        request = b"GET %b HTTP/1.1\r\n%bLode-Client: %b\r\n\r\n"
        await link.send([request % (messages.HELLO, self.host_line, half.hex().encode("ascii"))])
        answer = await link.receive_head()
        await link.receive_body(min(answer.length, messages.ERROR_BODY_MAX))
        challenge = answer.field(auth.CHALLENGE_HEADER)
        try:
            server_half = bytes.fromhex((challenge or b"").decode("ascii"))
        except ValueError:
            server_half = b""
        if answer.status != 200 or len(server_half) != auth.HALF_SIZE or not answer.keep:
            raise NodeRefused(f"{self.address}: what answers there is no member of a cluster")
        key = self._secret.connection_key(half, server_half)
        if answer.field(auth.PROOF_HEADER) != auth.proof(key):
            raise NodeRefused(f"{self.address}: has another cluster's secret")
        link.signer = auth.Signer(key)


def _split(address: str) -> tuple[str, int]:
    host, _, port = address.rpartition(":")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        raise ValueError(f"address {address!r}: write an IPv6 address as [ADDRESS]:PORT")
    if not host or not (port.isascii() and port.isdecimal()) or not 0 < int(port) < 65536:
        raise ValueError(f"address {address!r}: write it as HOST:PORT")
    return host, int(port)
