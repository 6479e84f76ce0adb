"""One connection: requests are read, handled and answered one after another, strictly in order.

Concurrency: one task runs ``Connection.run``; ``tick``, ``retire`` and ``idle_s`` are called by
the server's own tasks between its waits and only look, or interrupt the wait.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import dataclass
from typing import Final

import trio
from structlog.typing import FilteringBoundLogger

from engine.http.body import CONTINUE, ChunkedBody, Inbox, LengthBody, NoBody, WireBody
from engine.http.head import BadHead, Head, locate_head, parse_head
from engine.http.limits import Limits
from engine.http.message import (
    BodyBroken,
    Buffer,
    ConnectionNote,
    FileSpan,
    FileStream,
    Handler,
    Request,
    Response,
    ResponseStream,
)
from engine.http.response import DateHeader, encode_head, has_no_body, plain_response
from engine.http.transport import (
    READ,
    WRITE,
    ConnectionLost,
    FileBroken,
    Interrupted,
    Transport,
)

_RECEIVE: Final = 16 * 1024
_JOIN_MAX: Final = 16 * 1024
"""Up to here copying a body behind its head is cheaper than a second buffer in the call."""
_NO_BODY: Final = NoBody()

_OPENING: Final = 0
_IDLE: Final = 1
_HEAD: Final = 2
_HANDLING: Final = 3
_CLOSING: Final = 4


@dataclass(slots=True)
class Surroundings:
    """What all connections of a server share."""

    handler: Handler
    limits: Limits
    log: FilteringBoundLogger
    date: DateHeader
    draining: bool = False
    """Shutdown has begun: every connection ends after the response that it is at."""


class _WrongLength(Exception):
    """A stream did not produce as many bytes as its response said."""


class Connection:
    """Serves one transport until it ends.

    Time limits cost nothing per request: the task only says what it is doing (``_phase``), and
    the server's ticker looks at every connection each second and interrupts those that have not
    moved for too long.
    """

    __slots__ = (
        "_around",
        "_inbox",
        "_limits",
        "_mark",
        "_note",
        "_phase",
        "_requests",
        "_stalled_s",
        "_transport",
        "_window_received",
        "_window_request",
        "_window_s",
    )

    def __init__(self, transport: Transport, around: Surroundings) -> None:
        self._transport = transport
        self._around = around
        self._limits = around.limits
        self._inbox = Inbox(transport)
        self._note = ConnectionNote()
        self._phase = _OPENING
        self._requests = 0
        self._mark = (-1, 0, 0)
        self._stalled_s = 0.0
        self._window_request = 0
        self._window_s = 0.0
        self._window_received = 0

    async def run(self) -> None:
        """Serve until either side ends it; closes the transport. Raises nothing but Cancelled."""
        transport = self._transport
        try:
            await transport.start()
            while await self._serve_request():
                pass
        except ConnectionLost:
            pass  # the client's doing, or the ticker's; nobody is left to answer to
        except Exception:
            self._around.log.exception("http_connection_failed", peer=transport.peer)
        except trio.Cancelled:
            transport.abort()  # half a response must not look like a whole one
            raise
        finally:
            transport.close()

    # --- seen from the server's tasks

    def tick(self, elapsed_s: float) -> None:
        """Interrupt the running wait if it has been going on for longer than its limit."""
        transport, phase, limits = self._transport, self._phase, self._limits
        waiting = transport.waiting
        if not waiting:
            self._mark = (-1, 0, 0)
            self._stalled_s = 0.0
            return
        reading_body = phase == _HANDLING and waiting == READ
        if waiting == WRITE:
            progress, limit_s = transport.sent, limits.send_stall_s
        elif reading_body:
            progress, limit_s = transport.received, limits.body_stall_s
        elif phase == _IDLE:
            progress, limit_s = 0, limits.idle_s
        else:
            progress, limit_s = 0, limits.drain_s if phase == _CLOSING else limits.head_s
        mark = (phase * 4 + waiting, self._requests, progress)
        if mark == self._mark:
            self._stalled_s += elapsed_s
        else:
            self._mark = mark
            self._stalled_s = 0.0
        if self._stalled_s >= limit_s or (reading_body and self._body_trickles(elapsed_s)):
            transport.interrupt()

    def _body_trickles(self, elapsed_s: float) -> bool:
        """Say whether the last window of waiting for the body brought too little.

        Only the time spent waiting for the client counts, so a handler may be slow.
        """
        if self._window_request != self._requests:
            self._window_request = self._requests
            self._window_s = 0.0
            self._window_received = self._transport.received
            return False
        self._window_s += elapsed_s
        if self._window_s < self._limits.body_stall_s:
            return False
        came = self._transport.received - self._window_received
        enough = came >= self._limits.body_rate_min * self._window_s
        self._window_s = 0.0
        self._window_received = self._transport.received
        return not enough

    @property
    def idle_s(self) -> float | None:
        """How long it has been waiting for a request, to within a tick; None: it is busy."""
        return self._stalled_s if self._phase == _IDLE and self._transport.waiting else None

    def retire(self) -> None:
        """Close the connection if no request has begun on it."""
        if self._phase in (_OPENING, _IDLE):
            self._transport.interrupt()

    # --- one request

    async def _serve_request(self) -> bool:
        """Serve the next request; False: the connection is to end."""
        try:
            head = await self._read_head()
        except BadHead as bad:
            await self._refuse(bad.status)
            return False
        if head is None:
            return False
        self._requests += 1
        self._phase = _HANDLING
        body: NoBody | WireBody = _NO_BODY
        if head.length is None:
            body = ChunkedBody(self._inbox, expects=head.expect != b"")
        elif head.length:
            body = LengthBody(self._inbox, head.length, expects=head.expect != b"")
        transport = self._transport
        response = await self._handle(
            Request(
                head.method,
                head.path,
                head.query,
                head.headers,
                body,
                transport.peer,
                transport.secure,
                self._note,
            )
        )
        keep = head.keep_alive and not response.close and not self._around.draining
        if not body.finished and not self._may_drain(body):
            keep = False
        if head.expect and head.length == 0:
            # RFC 9110 lets us leave this out, but the botocore inside awscli 1.46 takes a final
            # answer without it for every later answer on the connection, and then hangs.
            if response.status < 400:
                await self._transport.send(CONTINUE)
            else:
                keep = False
        keep = await self._respond(response, head, keep)
        if body.finished:
            if not keep and self._inbox.data:
                await self._linger()
            return keep
        if keep and await self._drain(body):
            return True
        await self._linger()
        return False

    async def _read_head(self) -> Head | None:
        """Return the next request's head, None at the end; what follows it stays in the inbox."""
        inbox, transport = self._inbox, self._transport
        if self._around.draining:
            return None
        if inbox.data:
            data = inbox.take()
            await trio.lowlevel.checkpoint()  # a pipeline must not starve other connections
        else:
            self._phase = _IDLE
            data = await transport.receive(_RECEIVE, wait=True)
        while True:
            if not data:
                return None
            place = locate_head(data, self._limits)
            if place is not None:
                break
            self._phase = _HEAD
            try:
                more = await transport.receive(_RECEIVE, wait=False)
            except Interrupted:
                raise BadHead(408) from None
            if not more:
                return None
            data += more
        start, end = place
        if end < len(data):
            inbox.data = data
            inbox.position = end
        if start or end < len(data):
            data = data[start:end]
        return parse_head(data, self._limits)

    async def _handle(self, request: Request) -> Response:
        try:
            return await self._around.handler(request)
        except BodyBroken as broken:
            return plain_response(408 if broken.reason == "timeout" else 400, close=True)
        except Exception:
            self._around.log.exception(
                "http_handler_failed", peer=request.peer, method=request.method
            )
            return plain_response(500)

    async def _refuse(self, status: int) -> None:
        response = plain_response(status, close=True)
        await self._respond(response, Head(), False)
        await self._linger()

    # --- the response

    async def _respond(self, response: Response, head: Head, keep: bool) -> bool:
        """Send the response; False: nothing more can be sent on this connection."""
        bodyless = head.method == "HEAD" or has_no_body(response.status)
        body = response.body
        if not isinstance(body, bytes | bytearray | memoryview):
            return await self._respond_stream(response, body, head, keep)
        length = response.length
        if length is None and not (bodyless and not body):
            length = len(body)
        try:
            if not bodyless and length != len(body):
                raise ValueError(f"{len(body)} bytes of body, {length} announced")
            data = self._encode(response, length, chunked=False, keep=keep)
        except ValueError:
            self._log_bad_response(response)
            data = self._encode_failure(keep)
            body = b""
        if bodyless or not body:
            await self._transport.send(data)
        elif len(body) <= _JOIN_MAX:
            await self._transport.send(data + body)
        else:
            await self._transport.send_pair(data, body)
        return keep

    async def _respond_stream(
        self, response: Response, stream: ResponseStream | FileStream, head: Head, keep: bool
    ) -> bool:
        """Send a response whose body is produced while it is sent, and close the stream."""
        length = response.length
        chunked = length is None and head.http11
        bodyless = head.method == "HEAD" or has_no_body(response.status)
        keep = keep and (bodyless or chunked or length is not None)
        started = False
        iterator = stream.__aiter__()
        try:
            data = self._encode(response, length, chunked=chunked, keep=keep)
            if bodyless:
                await self._transport.send(data)
                return keep
            sent_before = self._transport.sent
            try:
                await self._send_stream(iterator, data, length, chunked=chunked)
            finally:
                started = self._transport.sent != sent_before
        except ConnectionLost:
            self._transport.abort()
            raise
        except FileBroken as error:
            self._around.log.error("http_file_broken", reason=str(error))
            self._transport.abort()
            return False
        except Exception:  # noqa: BLE001  # logged with its traceback by the next line
            self._log_bad_response(response)
            if started:
                # Cut the connection: what the client has must not look like the whole body.
                self._transport.abort()
                return False
            await self._transport.send(self._encode_failure(keep))
        finally:
            await self._close_stream(stream, iterator)  # noqa: ASYNC102  shields itself, with a limit
        return keep

    async def _send_stream(
        self,
        iterator: AsyncIterator[Buffer] | AsyncIterator[FileSpan],
        head: bytes,
        length: int | None,
        *,
        chunked: bool,
    ) -> None:
        """Send head and body. The head waits for the first bytes, so that a stream which fails
        at once can still be answered with an error.
        """
        transport = self._transport
        total = 0
        async for buffer in iterator:
            size = len(buffer)
            if not size:
                continue  # an empty chunk would end a chunked body
            total += size
            if length is not None and total > length:
                raise _WrongLength(f"more than {length} bytes produced")
            if isinstance(buffer, FileSpan):
                if chunked:
                    raise _WrongLength("a file in a chunked response")
                await transport.send_file(head, buffer)
                head = b""
                continue
            if chunked:
                await transport.send_pair(b"%b%x\r\n" % (head, size), buffer)
                head = b"\r\n"  # ends this chunk, in front of the next one's size
                continue
            if head:
                await transport.send_pair(head, buffer)
                head = b""
            else:
                await transport.send(buffer)
        if chunked:
            await transport.send(head + b"0\r\n\r\n")
            return
        if length is not None and total != length:
            raise _WrongLength(f"{total} bytes produced, {length} announced")
        if head:
            await transport.send(head)

    async def _close_stream(
        self,
        stream: ResponseStream | FileStream,
        iterator: AsyncIterator[Buffer] | AsyncIterator[FileSpan],
    ) -> None:
        """Close a stream whatever happened, cancelled or not, in bounded time."""
        with trio.move_on_after(self._limits.aclose_s, shield=True) as scope:
            try:
                if isinstance(iterator, AsyncGenerator) and iterator is not stream:
                    await iterator.aclose()  # its own cleanup runs now, not when it is collected
                await stream.aclose()
            except Exception:
                self._around.log.exception("http_stream_close_failed", peer=self._transport.peer)
        if scope.cancelled_caught:
            self._around.log.error("http_stream_close_timeout", peer=self._transport.peer)

    def _encode(
        self, response: Response, length: int | None, *, chunked: bool, keep: bool
    ) -> bytes:
        if response.status == 204:
            length, chunked = None, False  # RFC 9110, section 8.6
        common = self._around.date.lines()
        return encode_head(response, length, chunked=chunked, close=not keep, common=common)

    def _encode_failure(self, keep: bool) -> bytes:
        """Return the answer in place of a response that turned out to be impossible."""
        return self._encode(Response(500), 0, chunked=False, keep=keep)

    def _log_bad_response(self, response: Response) -> None:
        self._around.log.exception(
            "http_response_failed", peer=self._transport.peer, status=response.status
        )

    # --- what the handler left unread

    def _may_drain(self, body: NoBody | WireBody) -> bool:
        """Say whether what is left of the body is worth reading to keep the connection."""
        if body.broken is not None:
            return False
        if body.expects and not self._inbox.data:
            return False  # the client may send the body or not: only closing is unambiguous
        remaining = body.remaining()
        return remaining is None or remaining <= self._limits.drain

    async def _drain(self, body: NoBody | WireBody) -> bool:
        """Read the rest of a body and drop it; False: too long or too slow."""
        self._phase = _CLOSING
        budget = self._limits.drain
        body.expects = False
        scratch = memoryview(bytearray(_RECEIVE))
        try:
            while budget > 0:
                count = await body.readinto(scratch)
                if not count:
                    return True
                budget -= count
        except BodyBroken:
            return False
        return body.finished

    async def _linger(self) -> None:
        """Close in a way that lets the client see our answer: data that nobody reads would make
        the kernel send a reset, which can overtake it.
        """
        self._phase = _CLOSING
        self._inbox.take()
        self._transport.finish()
        budget = self._limits.linger
        while budget > 0:
            data = await self._transport.receive(_RECEIVE, wait=False)
            if not data:
                return
            budget -= len(data)
