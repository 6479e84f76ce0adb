"""The server: listening sockets, the connections accepted from them, and their end.

Each connection is one task. At ``Limits.connections`` the longest idle ones are closed to make
room; when none is idle, new clients wait in the kernel's backlog until a connection ends. They
are not answered 503: a refusal needs a connection as well, and clients retry it at once.
"""

from __future__ import annotations

import errno
import heapq
import select
import socket
import ssl
import time
from collections.abc import Callable, Sequence
from typing import Final

import trio
from structlog.typing import FilteringBoundLogger

from engine.http.connection import Connection, Surroundings
from engine.http.crowd import Crowd
from engine.http.limits import Limits
from engine.http.message import Handler
from engine.http.response import DateHeader
from engine.http.transport import ConnectionLost, TcpTransport, TlsTransport, Transport

_ACCEPT_BATCH: Final = 32
_TURN_S: Final = 0.002
_EVICT_BATCH: Final = 16
_BACK_OFF_S: Final = 0.1
_LISTENER_BROKEN: Final = frozenset((errno.EBADF, errno.EINVAL, errno.ENOTSOCK, errno.EOPNOTSUPP))


def open_listeners(
    host: str | None, port: int, *, backlog: int = 1024, reuse_port: bool = False
) -> list[socket.socket]:
    """Return listening sockets on every address of ``host`` (None: all), all on the same port.

    Args:
        port: 0 lets the kernel choose.
        reuse_port: let several processes listen; the kernel spreads connections over them.
    Raises:
        OSError: the name is unknown, the port is taken or not allowed. Nothing is left open.
    """
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    listeners: list[socket.socket] = []
    try:
        for family, kind, protocol, _, address in dict.fromkeys(found):
            try:
                listener = socket.socket(family, kind, protocol)
            except OSError as error:
                if error.errno == errno.EAFNOSUPPORT and len(found) > 1:
                    continue  # a kernel without IPv6 still resolves names to it
                raise
            listeners.append(listener)
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if reuse_port:
                listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            if family == socket.AF_INET6:
                listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            listener.bind((address[0], port, *address[2:]))
            port = port or listener.getsockname()[1]
            listener.listen(backlog)
            listener.setblocking(False)
    except BaseException:
        for listener in listeners:
            listener.close()
        raise
    return listeners


class Server:
    """The connections of one process, whatever they came from."""

    def __init__(
        self,
        handler: Handler,
        *,
        limits: Limits,
        log: FilteringBoundLogger,
        clock: Callable[[], float] = time.time,
        crowd: Crowd | None = None,
    ) -> None:
        self._crowd = crowd
        self._around = Surroundings(handler, limits, log, DateHeader(clock))
        self._limits = limits
        self._log = log
        self._connections: set[Connection] = set()
        self._slots = trio.Semaphore(limits.connections)
        self._empty = trio.Event()

    async def serve_transport(self, transport: Transport) -> None:
        """Serve one connection to its end. Raises nothing but Cancelled."""
        connection = Connection(transport, self._around)
        self._connections.add(connection)
        self._count()
        try:
            await connection.run()
        finally:
            self._connections.discard(connection)
            self._count()
            if not self._connections:
                self._empty.set()

    def _count(self) -> None:
        if self._crowd is not None:
            self._crowd.set_count(len(self._connections))

    async def _let_others_go_first(self, listener: socket.socket) -> None:
        """Return when a connection is there and it is our turn, or others were slow to take it."""
        while True:
            await trio.lowlevel.wait_readable(listener)
            if self._crowd is None or not self._crowd.is_ahead():
                return
            await trio.sleep(_TURN_S)
            if not self._crowd.is_ahead() or _readable(listener):
                return

    async def watch(self) -> None:
        """Enforce the time limits of all connections; runs until cancelled."""
        last = trio.current_time()
        while True:
            await trio.sleep(self._limits.tick_s)
            now = trio.current_time()
            # When this process itself was held up, clients are not to blame for all of it.
            elapsed_s = min(now - last, 2 * self._limits.tick_s)
            last = now
            for connection in tuple(self._connections):
                connection.tick(elapsed_s)

    async def accept(
        self, listener: socket.socket, tls: ssl.SSLContext | None, nursery: trio.Nursery
    ) -> None:
        """Accept connections and serve each in the nursery; runs until cancelled.

        Raises:
            OSError: the listener itself is unusable.
        """
        failing = False
        while True:
            await self._let_others_go_first(listener)
            await self._take_slot()
            # With others, one at a time: the count is looked at again before the next.
            for attempt in range(_ACCEPT_BATCH if self._crowd is None else 1):
                if attempt and not self._try_slot():
                    break  # whether anyone still waits, the listener says
                try:
                    sock, address = listener.accept()
                except BlockingIOError:
                    self._slots.release()
                    break
                except OSError as error:
                    self._slots.release()
                    if error.errno in _LISTENER_BROKEN:
                        raise
                    # Out of descriptors or memory, or the client's network failed: the kernel
                    # would report the listener readable again at once.
                    if not failing:
                        self._log.warning("http_accept_failed", error=str(error))
                    failing = True
                    self._evict()
                    await trio.sleep(_BACK_OFF_S)
                    break
                failing = False
                nursery.start_soon(self._serve_socket, sock, _peer(address), tls)

    async def drain(self) -> None:
        """End idle connections now and the others after the response they are at; wait for all."""
        self._around.draining = True
        for connection in tuple(self._connections):
            connection.retire()
        while self._connections:
            self._empty = trio.Event()
            await self._empty.wait()

    async def _serve_socket(
        self, sock: socket.socket, peer: str, tls: ssl.SSLContext | None
    ) -> None:
        try:
            transport = TcpTransport(sock, peer) if tls is None else TlsTransport(sock, peer, tls)
        except (ConnectionLost, OSError):
            sock.close()  # gone before it began
        else:
            await self.serve_transport(transport)
        finally:
            self._slots.release()

    async def _take_slot(self) -> None:
        if not self._try_slot():
            self._evict()
            await self._slots.acquire()

    def _try_slot(self) -> bool:
        try:
            self._slots.acquire_nowait()
        except trio.WouldBlock:
            return False
        return True

    def _evict(self) -> None:
        """Close the connections that have been idle for longest."""
        idle = [(c.idle_s, c) for c in self._connections if c.idle_s is not None]
        for _, connection in heapq.nlargest(_EVICT_BATCH, idle, key=lambda pair: pair[0] or 0.0):
            connection.retire()


def _readable(listener: socket.socket) -> bool:
    poll = select.poll()
    poll.register(listener, select.POLLIN)
    return bool(poll.poll(0))


async def serve(
    handler: Handler,
    listeners: Sequence[socket.socket],
    *,
    limits: Limits,
    tls: ssl.SSLContext | None,
    log: FilteringBoundLogger,
    shutdown: trio.Event,
    crowd: Crowd | None = None,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Answer requests on the listeners until ``shutdown`` is set, then finish and return.

    Shutdown: nothing more is accepted, idle connections close at once, running requests are
    finished within ``limits.shutdown_s``; what still runs then is cancelled.

    Args:
        listeners: non-blocking, listening (``open_listeners``); closed when this returns.
        tls: None for plain HTTP.
        task_status: started once connections are accepted.
    Raises:
        OSError: a listener is unusable. No single connection's fault ends the server.
    """
    server = Server(handler, limits=limits, log=log, crowd=crowd)
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(server.watch)
            async with trio.open_nursery() as accepting:
                for listener in listeners:
                    accepting.start_soon(server.accept, listener, tls, nursery)
                task_status.started()
                await shutdown.wait()
                accepting.cancel_scope.cancel()
            _close(listeners)
            with trio.move_on_after(limits.shutdown_s) as scope:
                await server.drain()
            if scope.cancelled_caught:
                log.warning("http_requests_cancelled", after_s=limits.shutdown_s)
            nursery.cancel_scope.cancel()
    finally:
        _close(listeners)


def _close(listeners: Sequence[socket.socket]) -> None:
    for listener in listeners:
        listener.close()


def _peer(address: object) -> str:
    """Return a client's address for logs; the form depends on the socket's family."""
    match address:
        case (str(host), int(port), *_):
            return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        case _:
            return "local"
