"""``MemberService``: the member's side of the wire, a handler for ``engine.http.server``.

What a request costs is bounded: so many run at once, so many wait for one drive, and so many bytes
of buffers are handed out; who comes beyond is told to come again (``NodeBusy``, 503). A PUT that
waits for its sender holds a small buffer only.

A fragment's bytes meet the disk in the drive's own threads: one hop for each ``PIECE_SIZE``, and
the last one makes it durable. Reads of what the page cache has need no thread.

Concurrency: everything but the drives' work runs on the trio thread.
"""

from __future__ import annotations

import functools
import os
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final, TypeAlias

import msgspec
import trio

from engine.http.message import (
    FileSpan,
    FileStream,
    Request,
    Response,
    ResponseStream,
)
from engine.ids import FRAGMENT_ID_SIZE, NODE_ID_SIZE, FragmentId, NodeId
from engine.node.contract import (
    BlockingWriter,
    FragmentDamaged,
    FragmentMissing,
    NodeBusy,
    NodeDown,
    NodeError,
    NodeRefused,
)
from engine.node.drive import Drive
from engine.node.needle import PAGE
from engine.node.span import find_span
from engine.node.verify import verify_fragment
from engine.node.wire import auth, messages
from engine.node.wire.answers import (
    JSON,
    Malformed,
    end_of,
    explain,
    failure_answer,
    parse_id,
    parse_range,
)
from engine.node.wire.auth import Secret, Verifier
from engine.node.wire.messages import MemberHealth, Verdict
from engine.node.wire.metrics import Metrics
from engine.node.wire.pieces import (
    PIECE_SIZE,
    SMALL_SIZE,
    Pieces,
    PieceStream,
    SpanStream,
)
from engine.node.wire.shelf import Shelf
from engine.node.wire.slot import Slot

_TEXT: Final = ((b"Content-Type", b"text/plain; version=0.0.4; charset=utf-8"),)
_BINARY: Final[tuple[tuple[bytes, bytes], ...]] = ((b"Content-Type", b"application/octet-stream"),)
_COPY_MAX: Final = 16 << 10
"""Answers up to so long are copied, so that no buffer waits until they are sent."""
_SPAN_MIN: Final = SMALL_SIZE
"""From here on a thread that sends a file costs less than copying."""
_DOUBTFUL_MAX: Final = 1024
_INLINE_MAX: Final = 1 << 20
"""Copying more than that out of the page cache would hold the event loop for too long."""

_Act: TypeAlias = Callable[[Request, Slot], Awaitable[Response]]


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceConfig:
    name: str
    version: str
    zone: str = ""
    rack: str = ""
    host: str = ""
    running_max: int = 1024
    """Requests at once; more are answered 503."""
    buffers_size: int = 128 << 20
    """Bytes of whole pieces; PUTs beyond that work with small ones, GETs are answered 503."""
    send_files: bool = True
    """Let the kernel send what is in volumes; past a ``Disk`` that is not the real one, it must
    not."""


class MemberService:
    def __init__(
        self, shelf: Shelf, secret: Secret, config: ServiceConfig, *, now_ms: Callable[[], int]
    ) -> None:
        self.metrics = Metrics(shelf)
        self.draining = False
        """Set when the daemon is about to end: not ready for more, as ``/readyz`` says."""
        self._shelf = shelf
        self._secret = secret
        self._config = config
        self._started_ms = now_ms()
        self._pieces = Pieces(config.buffers_size)
        self._doubtful: set[FragmentId] = set()
        """Sending them was cut short; maybe since they cannot be read."""
        self._open: Mapping[bytes, Callable[[Request], Response]] = MappingProxyType(
            {
                messages.HEALTH: self._health,
                messages.HELLO: self._hello,
                b"/metrics": self._expose,
                b"/healthz": self._alive,
                b"/readyz": self._ready,
            }
        )
        self._acts: Mapping[tuple[str, bytes], tuple[str, _Act]] = MappingProxyType(
            {
                ("POST", b"delete"): ("delete", self._delete),
                ("POST", b"verify"): ("verify", self._verify),
                ("GET", b"space"): ("space", self._space),
                ("GET", b"fragments"): ("list", self._list),
            }
        )

    async def __call__(self, request: Request) -> Response:
        opened = self._open.get(request.path)
        if opened is not None:
            if request.method not in ("GET", "HEAD"):
                return explain(405, "method", "only GET is possible here")
            return opened(request)
        began = time.perf_counter()
        metrics = self.metrics
        op = "other"
        metrics.running += 1
        try:
            op, work = self._route(request)
            if metrics.running > self._config.running_max:
                raise NodeBusy(f"{self._config.running_max} requests are running")
            response = await work()
        except NodeError as error:
            response = failure_answer(error)
        except (Malformed, ValueError, msgspec.MsgspecError) as error:
            response = explain(400, "malformed", str(error))
        except OSError as error:
            # A drive was closed under the call.
            response = failure_answer(NodeDown(str(error)))
        finally:
            metrics.running -= 1
        metrics.count(op, response.status, time.perf_counter() - began)
        return response

    def _route(self, request: Request) -> tuple[str, Callable[[], Awaitable[Response]]]:
        """Return the operation's name, and what does it. Raises NodeDown, NodeRefused."""
        parts = request.path.split(b"/")
        method = request.method
        if parts[:3] == [b"", b"v1", b"nodes"] and len(parts) in (5, 6):
            act: tuple[str, _Act] | None = None
            if len(parts) == 5:
                act = self._acts.get((method, parts[4]))
            elif parts[4] == b"fragments":
                fragment = FragmentId(parse_id(parts[5], FRAGMENT_ID_SIZE))
                match method:
                    case "GET" | "HEAD":
                        act = ("get", functools.partial(self._get, fragment=fragment))
                        if method == "HEAD":
                            act = ("stat", functools.partial(self._stat, fragment=fragment))
                    case "PUT":
                        act = ("put", functools.partial(self._put, fragment=fragment))
            if act is not None:
                if method != "POST":
                    self._authorize(request, b"")
                node = NodeId(parse_id(parts[3], NODE_ID_SIZE))
                return act[0], lambda: act[1](request, self._shelf.find(node))
        elif method == "POST" and request.path == messages.ADOPT:
            return "adopt", lambda: self._adopt(request)
        elif method == "POST" and request.path == messages.COMPACT:
            return "compact", lambda: self._compact(request)
        raise Malformed("there is nothing of that name")

    # What is open to everybody

    def _health(self, request: Request) -> Response:
        return Response(200, JSON, messages.encode_json(self.health()))

    def health(self) -> MemberHealth:
        config = self._config
        return MemberHealth(
            member=self._shelf.member,
            store=self._shelf.store,
            name=config.name,
            zone=config.zone,
            rack=config.rack,
            host=config.host,
            version=config.version,
            drives=self._shelf.health(),
            running=self.metrics.running,
            started_ms=self._started_ms,
        )

    def _expose(self, request: Request) -> Response:
        return Response(200, _TEXT, self.metrics.expose())

    def _alive(self, request: Request) -> Response:
        return Response(200, _TEXT, b"alive\n")

    def _ready(self, request: Request) -> Response:
        if self.draining:
            return Response(503, _TEXT, b"ending\n")
        if not self._shelf.member:
            return Response(503, _TEXT, b"not adopted\n")
        if not any(drive.state == "up" for drive in self._shelf.health()):
            return Response(503, _TEXT, b"no drive is up\n")
        return Response(200, _TEXT, b"ready\n")

    # Who may ask

    def _hello(self, request: Request) -> Response:
        try:
            half = bytes.fromhex((request.header(auth.CLIENT_HEADER) or b"").decode("ascii"))
        except ValueError:
            half = b""
        if len(half) != auth.HALF_SIZE:
            return explain(400, "malformed", "a greeting has 32 hexadecimal digits")
        own = os.urandom(auth.HALF_SIZE)
        key = self._secret.connection_key(half, own)
        request.note.value = Verifier(key)
        headers = (
            (b"Lode-Challenge", own.hex().encode("ascii")),
            (b"Lode-Proof", auth.proof(key)),
        )
        return Response(200, headers)

    def _authorize(self, request: Request, body: bytes) -> Verifier:
        verifier = request.note.value
        if not isinstance(verifier, Verifier):
            raise NodeRefused("this connection has not said hello")
        length = request.body.length
        target = request.path if not request.query else request.path + b"?" + request.query
        verifier.verify(
            request.header(auth.AUTH_HEADER),
            request.method.encode("ascii"),
            target,
            b"chunked" if length is None else b"%d" % length,
            request.header(b"range") or b"",
            body,
        )
        return verifier

    async def _signed_body(self, request: Request) -> bytes:
        """Return the body of a POST. Raises NodeRefused."""
        if not isinstance(request.note.value, Verifier):
            raise NodeRefused("this connection has not said hello")
        size = request.body.length
        if size is None or size > messages.SMALL_BODY_MAX:
            raise Malformed("the body is too long, or of unknown length")
        body = bytearray(size)
        done = 0
        while done < size:
            done += await request.body.readinto(memoryview(body)[done:])
        content = bytes(body)
        self._authorize(request, content)
        return content

    # The member as a whole

    async def _adopt(self, request: Request) -> Response:
        adoption = messages.decode_adoption(await self._signed_body(request))
        await self._shelf.adopt(adoption)
        return self._health(request)

    async def _compact(self, request: Request) -> Response:
        await self._signed_body(request)
        self._shelf.compact_soon()
        return Response(202)

    # One node

    async def _put(self, request: Request, slot: Slot, *, fragment: FragmentId) -> Response:
        name, _, value = request.query.partition(b"=")
        if name != b"max" or not value.isdigit() or request.body.length is not None:
            raise Malformed("a fragment is sent chunked, with ?max=SIZE")
        size_max = int(value)
        with slot.use() as drive:
            writer = await slot.run(lambda: drive.open_writer(fragment, size_max))
            try:
                await self._receive(request, slot, writer)
            except BaseException:
                with trio.CancelScope(shield=True):
                    # As long as the disk needs for a truncation.
                    await slot.finish(writer.abort)
                raise
        return Response(201)

    async def _receive(self, request: Request, slot: Slot, writer: BlockingWriter) -> None:
        """Write the body, and make it durable when its end is as it should be."""
        body = request.body
        size = 0
        while True:
            piece = self._pieces.take_or_small()
            try:
                view = piece.view
                filled = 0
                while filled < len(view):
                    count = await body.readinto(view[filled:])
                    if not count:
                        break
                    filled += count
                size += filled
                content = view[:filled]
                if filled == len(view):
                    await slot.finish(functools.partial(writer.write, [content]))
                    continue
                verifier = request.note.value
                assert isinstance(verifier, Verifier)
                verifier.verify_end(end_of(getattr(body, "trailers", [])), size)
                await self._make_durable(slot, functools.partial(_finish, writer, content))
                self.metrics.bytes_in.inc(size)
                return
            finally:
                piece.release()

    async def _make_durable(self, slot: Slot, work: Callable[[], None]) -> None:
        try:
            await slot.finish(work)
        except NodeDown:
            node = slot.node.hex() if slot.node is not None else ""
            self.metrics.sync_failures.labels(node).inc()
            raise

    async def _get(self, request: Request, slot: Slot, *, fragment: FragmentId) -> Response:
        drive = slot.begin()
        handed_over = False
        try:
            status, headers, begin = 200, _BINARY, 0
            part = request.header(b"range")
            if part is None:
                info = drive.stat(fragment)
                if info is None:
                    raise FragmentMissing(fragment.hex())
                size = info.size
            else:
                # The fragment's size is not looked up: what reads it does so anyway.
                begin, end = parse_range(part)
                size = end - begin
                span = (b"Content-Range", b"bytes %d-%d/*" % (begin, end - 1))
                status, headers = 206, (*_BINARY, span)
            self.metrics.bytes_out.inc(size)
            if self._may_span(request, fragment, size):
                body: ResponseStream | FileStream = self._span(slot, drive, fragment, begin, size)
                handed_over = True
                return Response(status, headers, body, length=size)
            piece = self._pieces.take(min(size, PIECE_SIZE))
            try:
                first = piece.view[: min(size, len(piece.view))]
                await _read(slot, drive, fragment, begin, first)
                if size <= _COPY_MAX:
                    return Response(status, headers, bytes(first))
                handed_over = True
            finally:
                if not handed_over:
                    piece.release()
            self._doubtful.discard(fragment)

            async def read(offset: int, view: memoryview) -> None:
                await _read(slot, drive, fragment, begin + offset, view)

            body = PieceStream(piece, size, read, slot.end)
            return Response(status, headers, body, length=size)
        finally:
            if not handed_over:
                slot.end()

    def _may_span(self, request: Request, fragment: FragmentId, size: int) -> bool:
        return (
            size >= _SPAN_MIN
            and self._config.send_files
            and not request.secure
            and fragment not in self._doubtful
        )

    def _span(
        self, slot: Slot, drive: Drive, fragment: FragmentId, begin: int, size: int
    ) -> SpanStream:
        file, position = find_span(drive, fragment, begin, size)

        def ended(whole: bool) -> None:
            slot.end()
            if not whole and len(self._doubtful) < _DOUBTFUL_MAX:
                # Who asks again is answered from memory, so that a bad sector can be told.
                self._doubtful.add(fragment)

        return SpanStream(file, FileSpan(file.fd, position, size, slot.limiter), ended)

    async def _stat(self, request: Request, slot: Slot, *, fragment: FragmentId) -> Response:
        with slot.use() as drive:
            info = drive.stat(fragment)
        if info is None:
            raise FragmentMissing(fragment.hex())
        return Response(200, _BINARY, length=info.size)

    async def _delete(self, request: Request, slot: Slot) -> Response:
        fragments = messages.unpack_ids(await self._signed_body(request))
        with slot.use() as drive:
            await self._make_durable(slot, lambda: drive.delete(fragments))
        return Response(204)

    async def _verify(self, request: Request, slot: Slot) -> Response:
        fragments = messages.unpack_ids(await self._signed_body(request))
        if len(fragments) > messages.VERIFY_MAX:
            raise Malformed(f"at most {messages.VERIFY_MAX} fragments at once")
        verdicts: list[Verdict] = []
        with slot.use() as drive:
            for fragment in fragments:
                check = functools.partial(verify_fragment, drive, fragment)
                try:
                    await slot.run(check)
                except FragmentMissing:
                    verdicts.append("missing")
                except FragmentDamaged:
                    verdicts.append("damaged")
                else:
                    verdicts.append("whole")
        return Response(200, _BINARY, messages.pack_verdicts(verdicts))

    async def _list(self, request: Request, slot: Slot) -> Response:
        query = dict(part.split(b"=", 1) for part in request.query.split(b"&") if b"=" in part)
        after = bytes.fromhex(query.get(b"after", b"").decode("ascii"))
        limit = int(query.get(b"limit", b"1000"))
        if not 0 < limit <= messages.LIST_MAX:
            raise Malformed(f"limit: 1 to {messages.LIST_MAX}")
        with slot.use() as drive:
            infos = await slot.run(lambda: drive.list(after, limit))
        return Response(200, _BINARY, messages.pack_infos(infos))

    async def _space(self, request: Request, slot: Slot) -> Response:
        with slot.use() as drive:
            space = await slot.run(drive.space)
        return Response(200, JSON, messages.encode_json(messages.SpaceReport.of(space)))


async def _read(
    slot: Slot, drive: Drive, fragment: FragmentId, offset: int, view: memoryview
) -> None:
    """Fill the view, in a thread if the page cache does not have the bytes."""
    views = [view]
    if len(view) <= _INLINE_MAX and drive.read_into(fragment, offset, views, nowait=True):
        return
    await slot.run(lambda: drive.read_into(fragment, offset, views, nowait=False))


def _finish(writer: BlockingWriter, content: memoryview) -> None:
    """In a thread: write the last bytes and make the fragment durable."""
    # Whole pages apart from the rest, for they can be written past the page cache.
    whole = len(content) // PAGE * PAGE
    writer.write([part for part in (content[:whole], content[whole:]) if part])
    writer.commit()
