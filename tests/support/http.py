"""What HTTP tests share: a raw client, a running server, a transport in memory."""

from __future__ import annotations

import socket
import ssl
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, cast

import trio
import trio.testing
from structlog.typing import FilteringBoundLogger

from engine.http.limits import Limits
from engine.http.message import Buffer, Handler, Request, Response
from engine.http.server import Server, open_listeners, serve
from engine.http.transport import NOTHING, READ, WRITE, ConnectionLost, Interrupted

Duplex = trio.StapledStream[trio.abc.SendStream, trio.abc.ReceiveStream]


class RecordingLog:
    """Keeps what was logged at warning and above; the test says what it expected."""

    def __init__(self) -> None:
        self.troubles: list[str] = []

    def debug(self, event: str, **fields: Any) -> None:
        return

    info = debug

    def warning(self, event: str, **fields: Any) -> None:
        self.troubles.append(event)

    error = exception = warning

    def as_logger(self) -> FilteringBoundLogger:
        return cast(FilteringBoundLogger, self)


class MemoryTransport:
    """A transport over a trio stream, so that a mock clock can rule the time limits."""

    def __init__(self, stream: Duplex) -> None:
        self._stream = stream
        self._scope: trio.CancelScope | None = None
        self.peer = "memory"
        self.secure = False
        self.received = 0
        self.sent = 0
        self.waiting = NOTHING
        self.aborted = False
        self.closed = False

    async def start(self) -> None:
        return

    async def receive(self, size: int, *, wait: bool) -> bytes:
        with self._blocked(READ) as scope:
            data = bytes(await self._stream.receive_some(size))
        self._after(scope)
        self.received += len(data)
        return data

    async def receive_into(self, buffer: memoryview) -> int:
        data = await self.receive(len(buffer), wait=False)
        buffer[: len(data)] = data
        return len(data)

    async def send(self, data: Buffer) -> None:
        with self._blocked(WRITE) as scope:
            try:
                await self._stream.send_all(data)
            except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
                raise ConnectionLost from error
        self._after(scope)
        self.sent += len(data)

    async def send_pair(self, first: bytes, second: Buffer) -> None:
        await self.send(first + bytes(second))

    def _blocked(self, direction: int) -> trio.CancelScope:
        self.waiting = direction
        self._scope = trio.CancelScope()
        return self._scope

    def _after(self, scope: trio.CancelScope) -> None:
        self.waiting = NOTHING
        self._scope = None
        if scope.cancelled_caught:
            raise Interrupted

    def interrupt(self) -> None:
        if self._scope is not None:
            self._scope.cancel()

    def finish(self) -> None:
        cast(Any, self._stream.send_stream).close()

    def abort(self) -> None:
        self.aborted = not self.closed
        self.close()

    def close(self) -> None:
        self.closed = True
        cast(Any, self._stream.send_stream).close()
        cast(Any, self._stream.receive_stream).close()


@dataclass
class Answer:
    status: int
    headers: dict[bytes, bytes]
    body: bytes
    whole: bool = True
    """The body ended as its framing said that it would."""
    interim: list[int] = field(default_factory=list)
    """1xx statuses that came before."""


class Client:
    """Sends bytes as they are given and reads answers; shares no code with the server."""

    def __init__(self, stream: trio.abc.Stream) -> None:
        self.stream = stream
        self._data = b""

    async def send(self, data: bytes) -> None:
        await self.stream.send_all(data)

    async def end(self) -> None:
        """Say that nothing more will be sent."""
        await cast(trio.SocketStream, self.stream).send_eof()

    async def _more(self) -> bool:
        try:
            data = await self.stream.receive_some(65536)
        except trio.BrokenResourceError:
            return False
        self._data += data
        return bool(data)

    async def _until(self, mark: bytes) -> bytes:
        while mark not in self._data:
            if not await self._more():
                raise EOFError(self._data)
        taken, _, self._data = self._data.partition(mark)
        return taken

    async def _exactly(self, count: int) -> bytes:
        while len(self._data) < count and await self._more():
            pass
        taken, self._data = self._data[:count], self._data[count:]
        return taken

    async def answer(self, *, head_only: bool = False) -> Answer:
        """Read the next final answer. Raises EOFError when the connection ends before it."""
        interim: list[int] = []
        while True:
            head = await self._until(b"\r\n\r\n")
            line, *lines = head.split(b"\r\n")
            status = int(line.split(b" ")[1])
            if status >= 200:
                break
            interim.append(status)
        headers = {}
        for text in lines:
            name, _, value = text.partition(b": ")
            assert name.lower() not in headers, "header doubled"
            headers[name.lower()] = value
        answer = Answer(status, headers, b"", interim=interim)
        if head_only or status in (204, 304):
            return answer
        if b"content-length" in headers:
            length = int(headers[b"content-length"])
            answer.body = await self._exactly(length)
            answer.whole = len(answer.body) == length
        elif b"transfer-encoding" in headers:
            await self._read_chunks(answer)
        else:
            answer.body = await self.rest()
        return answer

    async def _read_chunks(self, answer: Answer) -> None:
        try:
            while size := int(await self._until(b"\r\n"), 16):
                answer.body += await self._exactly(size)
                assert await self._until(b"\r\n") == b""
            assert await self._until(b"\r\n") == b""
        except EOFError:
            answer.whole = False

    async def rest(self) -> bytes:
        """Return everything up to the end of the connection."""
        while await self._more():
            pass
        data, self._data = self._data, b""
        return data


@dataclass
class Running:
    port: int
    shutdown: trio.Event
    log: RecordingLog
    nursery: trio.Nursery
    finished: trio.Event
    tls: ssl.SSLContext | None = None
    """For clients."""

    streams: list[trio.abc.Stream] = field(default_factory=list)

    async def connect(self) -> Client:
        """Return a client whose connection closes with the server, if not before."""
        tcp = await trio.open_tcp_stream("127.0.0.1", self.port)
        self.streams.append(tcp)
        if self.tls is None:
            return Client(tcp)
        options: dict[str, Any] = {"server_hostname": "localhost", "https_compatible": True}
        return Client(trio.SSLStream(tcp, self.tls, **options))


@asynccontextmanager
async def running_server(
    handler: Handler,
    *,
    limits: Limits | None = None,
    tls: ssl.SSLContext | None = None,
    client_tls: ssl.SSLContext | None = None,
    troubles: Sequence[str] = (),
    listeners: list[socket.socket] | None = None,
) -> AsyncIterator[Running]:
    """Run a server on a loopback port; exactly ``troubles`` must have been logged at the end."""
    log = RecordingLog()
    shutdown, finished = trio.Event(), trio.Event()
    listeners = listeners or open_listeners("127.0.0.1", 0)

    async def run(task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        await serve(
            handler,
            listeners,
            limits=limits or Limits(),
            tls=tls,
            log=log.as_logger(),
            shutdown=shutdown,
            task_status=task_status,
        )
        finished.set()

    with trio.fail_after(30):
        async with trio.open_nursery() as nursery:
            await nursery.start(run)
            port = listeners[0].getsockname()[1]
            running = Running(port, shutdown, log, nursery, finished, client_tls)
            try:
                yield running
            finally:
                for stream in running.streams:
                    await trio.aclose_forcefully(stream)
            nursery.cancel_scope.cancel()
    assert log.troubles == list(troubles)


@dataclass
class Memory:
    client: Client
    transport: MemoryTransport
    log: RecordingLog
    nursery: trio.Nursery


@asynccontextmanager
async def memory_server(
    handler: Handler,
    *,
    limits: Limits | None = None,
    lockstep: bool = False,
    clock: Callable[[], float] = lambda: 0.0,
) -> AsyncIterator[Memory]:
    """Serve one connection in memory; with ``lockstep`` a send blocks until it is received."""
    make = trio.testing.lockstep_stream_pair if lockstep else trio.testing.memory_stream_pair
    near, far = make()
    log = RecordingLog()
    server = Server(handler, limits=limits or Limits(), log=log.as_logger(), clock=clock)
    transport = MemoryTransport(cast(Duplex, far))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(server.watch)
        nursery.start_soon(server.serve_transport, transport)
        yield Memory(Client(cast(trio.abc.Stream, near)), transport, log, nursery)
        nursery.cancel_scope.cancel()


async def read_all(request: Request, size: int = 4096) -> bytes:
    """Return the whole body."""
    whole = bytearray()
    buffer = memoryview(bytearray(size))
    while count := await request.body.readinto(buffer):
        whole += buffer[:count]
    return bytes(whole)


async def echo(request: Request) -> Response:
    """Answer with everything that the server understood of the request."""
    body = await read_all(request)
    trailers = getattr(request.body, "trailers", ())
    parts = [request.method.encode(), request.path, request.query, repr(request.headers).encode()]
    return Response(200, body=b"\n".join([*parts, body, repr(list(trailers)).encode()]))


class Stream:
    """A response stream that remembers whether it was closed."""

    def __init__(self, buffers: Sequence[Buffer], error: Exception | None = None) -> None:
        self._buffers = buffers
        self._error = error
        self.closed = trio.Event()
        self.close_count = 0

    async def __aiter__(self) -> AsyncIterator[Buffer]:
        for buffer in self._buffers:
            await trio.lowlevel.checkpoint()
            yield buffer
        if self._error is not None:
            raise self._error

    async def aclose(self) -> None:
        await trio.lowlevel.checkpoint()
        self.close_count += 1
        self.closed.set()
