"""``MemberClient``: the calls of one member, as a gateway makes them.

Every call may be repeated: where a kept connection turns out to have been closed by the member
before anything of an answer came, the call is made once more, on a new one. All time limits are
here and in ``ClientLimits``; callers need none of their own.
"""

from __future__ import annotations

import ssl
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Final, NamedTuple, TypeVar

import msgspec
import trio

from engine.ids import FragmentId, MemberId, NodeId
from engine.node.contract import Buffer, NodeDown, NodeError
from engine.node.wire import messages
from engine.node.wire.auth import Secret
from engine.node.wire.link import Answer, Link, LinkLost, Stopwatch
from engine.node.wire.messages import Adoption, MemberHealth, Verdict
from engine.node.wire.pool import ClientLimits, LinkPool

T = TypeVar("T")

_BODY_MAX: Final = 4 << 20
"""Of an answer that is no fragment."""


class LinkCut(NodeDown):
    """The connection ended in the middle of an answer."""


class Received(NamedTuple):
    answer: Answer
    body: bytes


class MemberClient:
    """Calls to the member at one address; shared by all its nodes.

    Every call raises NodeDown when the member cannot be reached or does not answer in time,
    NodeRefused when its secret is not ours, NodeBusy when it, or the pool of connections, has too
    much to do, and what else its description says.
    """

    def __init__(
        self,
        address: str,
        secret: Secret,
        *,
        tls: ssl.SSLContext | None = None,
        limits: ClientLimits | None = None,
    ) -> None:
        """
        Args:
            address: ``HOST:PORT`` or ``[IPV6]:PORT``.
            tls: None: plain HTTP.
        Raises:
            ValueError: the address is none.
        """
        self.address = address
        self.limits = limits or ClientLimits()
        self._pool = LinkPool(address, secret, tls=tls, limits=self.limits)

    async def aclose(self) -> None:
        """Close what is idle; calls that run end by themselves, later ones raise NodeDown."""
        self._pool.close()

    # What the member does as a whole

    async def health(self) -> MemberHealth:
        """Ask the member how it is, on a connection of its own, however busy the others are."""
        link = await self._pool.open(signed=False)
        try:
            request = b"GET %b HTTP/1.1\r\n%bConnection: close\r\n\r\n"

            async def ask(link: Link) -> Received:
                await link.send([request % (messages.HEALTH, self._pool.host_line)])
                answer = await link.receive_head()
                return Received(answer, await link.receive_body(_checked(answer)))

            return self._health(self._succeeded(await self._timed(link, ask, None)))
        except LinkLost as error:
            raise NodeDown(f"{self.address}: {error}") from error
        finally:
            link.close()

    def _health(self, body: bytes) -> MemberHealth:
        try:
            return messages.decode_health(body)
        except msgspec.MsgspecError as error:
            raise NodeDown(f"{self.address}: is no member: {error}") from error

    async def adopt(
        self, member: MemberId, store: str, drives: Mapping[str, NodeId]
    ) -> MemberHealth:
        """Make the daemon this member of this store, durably, and format its empty drives.

        Repeating it changes nothing.

        Args:
            drives: the node that each empty folder (as the health names it) is to be.
        Raises:
            AdoptionRefused: it is another member, or of another store, or a drive is not empty.
        """
        body = messages.encode_json(Adoption.of(member, store, drives))
        return self._health(
            await self.call(b"POST", messages.ADOPT, body, stall_s=self.limits.call_s)
        )

    async def compact(self) -> None:
        """Let the member give back the space of deleted fragments; does not wait for it."""
        await self.call(b"POST", messages.COMPACT)

    async def verify(
        self, node_id: NodeId, fragments: Sequence[FragmentId]
    ) -> dict[FragmentId, Verdict]:
        """Let the member read fragments back from its disk and check their checksums."""
        target = b"/v1/nodes/%b/verify" % node_id.hex().encode("ascii")
        found: dict[FragmentId, Verdict] = {}
        for begin in range(0, len(fragments), messages.VERIFY_MAX):
            some = fragments[begin : begin + messages.VERIFY_MAX]
            body = await self.call(b"POST", target, b"".join(some), stall_s=self.limits.call_s)
            try:
                found.update(zip(some, messages.unpack_verdicts(body), strict=True))
            except ValueError as error:
                raise NodeDown(f"{self.address}: is no member: {error}") from error
        return found

    # What its nodes are made of

    async def call(
        self, method: bytes, target: bytes, body: bytes = b"", *, stall_s: float | None = None
    ) -> bytes:
        """Return the body of the answer.

        ``stall_s``: how long the member may be silent, if not as long as usual.
        Raises: the NodeError that the member answers with.
        """

        async def ask(link: Link) -> Received:
            await link.send([self._head(link, method, target, body=body), body])
            answer = await link.receive_head()
            return Received(answer, await link.receive_body(_checked(answer)))

        link, received = await self._run(ask, stall_s)
        self._pool.release(link, keep=received.answer.keep)
        return self._succeeded(received)

    async def head(self, target: bytes) -> Answer:
        """Return the head of the answer to a HEAD request, whatever its status."""

        async def ask(link: Link) -> Answer:
            await link.send([self._head(link, b"HEAD", target)])
            return await link.receive_head()

        link, answer = await self._run(ask, None)
        self._pool.release(link, keep=answer.keep)
        return answer

    async def read(self, target: bytes, offset: int, views: Sequence[memoryview]) -> None:
        """Fill the views, which have room for some bytes, with the target's from ``offset`` on.

        An answer that is cut off is asked for once more from there on, so that a member that
        ran into damage can say so.
        """
        left = [view for view in views if view.nbytes]
        end = offset + sum([view.nbytes for view in left])

        async def ask(link: Link) -> Received:
            begin = end - sum([view.nbytes for view in left])
            part = b"bytes=%d-%d" % (begin, end - 1)
            await link.send([self._head(link, b"GET", target, part=part)])
            answer = await link.receive_head()
            if answer.status != 206:
                return Received(answer, await link.receive_body(_checked(answer)))
            if answer.length != end - begin:
                raise LinkLost(f"answered {answer.length} bytes of {end - begin}")
            await link.receive_into(left)
            return Received(answer, b"")

        try:
            link, received = await self._run(ask, None)
        except LinkCut:
            link, received = await self._run(ask, None)
        self._pool.release(link, keep=received.answer.keep)
        if received.answer.status != 206:
            self._succeeded(received)
            raise NodeDown(f"{self.address}: answered {received.answer.status} to a range")

    async def begin_put(self, target: bytes) -> Upload:
        """Begin a chunked PUT; returns once the member is ready for the body."""

        async def ask(link: Link) -> Received:
            await link.send([self._head(link, b"PUT", target)])
            answer = await link.receive_head()
            return Received(answer, await link.receive_body(_checked(answer)))

        link, received = await self._run(ask, None)
        if received.answer.status != 100:
            self._pool.release(link, keep=False)
            self._succeeded(received)
            raise NodeDown(f"{self.address}: answered {received.answer.status} before the body")
        return Upload(self, link)

    def _head(
        self, link: Link, method: bytes, target: bytes, *, body: bytes = b"", part: bytes = b""
    ) -> bytes:
        assert link.signer is not None
        if method == b"PUT":
            length = b"chunked"
            framing = b"Transfer-Encoding: chunked\r\nExpect: 100-continue\r\n"
        else:
            length = b"%d" % len(body)
            framing = b"Content-Length: %d\r\n" % len(body) if method == b"POST" else b""
            if part:
                framing = b"Range: %b\r\n" % part
        return b"%b %b HTTP/1.1\r\n%bLode-Auth: %b\r\n%b\r\n" % (
            method,
            target,
            self._pool.host_line,
            link.signer.sign(method, target, length, part, body),
            framing,
        )

    # One call on one link

    async def _run(
        self, ask: Callable[[Link], Awaitable[T]], stall_s: float | None
    ) -> tuple[Link, T]:
        """Return what ``ask`` returned, and the link, which the caller gives back.

        Raises: NodeDown, LinkCut among them; NodeRefused, NodeBusy. The link is closed then.
        """
        fresh = False
        while True:
            link = await self._pool.acquire(fresh=fresh)
            try:
                return link, await self._timed(link, ask, stall_s)
            except LinkLost as error:
                self._pool.discard(link)
                if link.reused and not link.heard:
                    fresh = True
                    continue
                kind = LinkCut if link.heard else NodeDown
                raise kind(f"{self.address}: {error}") from error
            except BaseException:
                self._pool.discard(link)
                raise

    async def _timed(
        self, link: Link, ask: Callable[[Link], Awaitable[T]], stall_s: float | None
    ) -> T:
        limits = self.limits
        stall_s = stall_s or limits.stall_s
        with trio.CancelScope() as scope:
            link.watch = Stopwatch(scope, stall_s=stall_s, whole_s=limits.call_s)
            return await ask(link)
        assert scope.cancelled_caught
        raise NodeDown(f"{self.address}: nothing came for {stall_s:g} s")

    def _succeeded(self, received: Received) -> bytes:
        """Return the body of an answer that is no error; else raise the error that it says."""
        answer, body = received
        if answer.status < 300:
            return body
        raise self._error(received)

    def _error(self, received: Received) -> NodeError:
        answer, body = received
        try:
            reason = messages.decode_error(body).reason
        except msgspec.MsgspecError:
            reason = "an answer that is not a member's"
        code = answer.field(messages.ERROR_HEADER)
        return messages.error_of(code, answer.status, f"{self.address}: {reason}")


class Upload:
    """A fragment's body on its way; made by ``MemberClient.begin_put``.

    ``finish`` or ``abort`` gives the connection back, and so does every error.
    """

    __slots__ = ("_between", "_client", "_link", "_size")

    def __init__(self, client: MemberClient, link: Link) -> None:
        self._client = client
        self._link: Link | None = link
        self._size = 0
        self._between = b""
        """What ends the last chunk."""

    async def send(self, buffers: Sequence[Buffer], size: int) -> None:
        """Send the buffers, ``size`` bytes together and not none; they may be reused afterwards.

        Raises: NodeFull, NodeDown: the member has given up, or cannot be reached.
        """
        head = b"%b%x\r\n" % (self._between, size)

        async def send(link: Link) -> Received | None:
            if link.has_something():
                # It answers before the end: it has no use for the rest.
                answer = await link.receive_head()
                return Received(answer, await link.receive_body(_checked(answer)))
            await link.send([head, *buffers])
            return None

        early = await self._timed(send, None)
        self._between = b"\r\n"
        self._size += size
        if early is not None:
            self.abort()
            raise self._client._error(early)
        await trio.lowlevel.checkpoint()

    async def finish(self) -> None:
        """Make the fragment whole and durable. Raises NodeFull, NodeDown."""

        async def end(link: Link) -> Received:
            assert link.signer is not None
            if not link.has_something():
                end = link.signer.trailer(self._size)
                await link.send([b"%b0\r\nLode-End: %b\r\n\r\n" % (self._between, end)])
            answer = await link.receive_head()
            return Received(answer, await link.receive_body(_checked(answer)))

        received = await self._timed(end, self._client.limits.sync_s)
        link, self._link = self._link, None
        assert link is not None
        self._client._pool.release(link, keep=received.answer.keep)
        self._client._succeeded(received)
        if received.answer.status != 201:
            raise NodeDown(f"{self._client.address}: answered {received.answer.status}")

    def abort(self) -> None:
        """End the connection, by which the member forgets what came. Harmless when repeated."""
        link, self._link = self._link, None
        if link is not None:
            self._client._pool.discard(link)

    async def _timed(self, work: Callable[[Link], Awaitable[T]], stall_s: float | None) -> T:
        if self._link is None:
            raise NodeDown(f"{self._client.address}: the upload has ended")
        try:
            return await self._client._timed(self._link, work, stall_s)
        except LinkLost as error:
            self.abort()
            raise NodeDown(f"{self._client.address}: {error}") from error
        except BaseException:
            self.abort()
            raise


def _checked(answer: Answer) -> int:
    """Return how long the answer's body is; raises LinkLost: too long for what it can be."""
    if answer.status == 100:
        return 0
    if answer.length > _BODY_MAX:
        raise LinkLost(f"an answer of {answer.length} bytes")
    return answer.length
