"""cheroot's server on sockets that exist already, with threads that grow with what there is to do.

What is different from cheroot 11, and why:

* a connection gets a thread when bytes came, also the first time; so a silent client costs none,
  and the accept thread never shakes hands: TLS is the worker's, with a time limit;
* threads are started as they are needed, up to a bound: many slow transfers leave room for
  small requests; with all threads busy and the queue full, connections are closed;
* a stop waits for running requests, then cuts them off, and never for ever.

Concurrency: the accept thread runs ``_Connections``; workers run ``DavConnection.communicate``.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import queue
import selectors
import socket
import ssl
import sys
import threading
import time
from collections.abc import Callable, Iterable
from typing import Any, Protocol

from cheroot import connections as cheroot_connections
from cheroot import server as cheroot_server
from cheroot.workers import threadpool
from structlog.typing import FilteringBoundLogger

from dav.config import DavLimits
from dav.connection import DavConnection, DavGateway

WsgiApp = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]

PAUSE_S = 0.2
"""Before the next try to accept when no descriptors are left."""
PATIENCE_MS = 100
"""Clients that pause a little between requests, as rclone does, keep their thread."""
CROWDED_MS = 2
KILL_S = 5.0
"""For threads to end once their connections were cut off."""


class _Connections(cheroot_connections.ConnectionManager):
    """Waits for connections, and on connections that wait for a request."""

    def put(self, conn: DavConnection) -> None:
        conn.last_used = time.time()
        if conn.rfile.has_data():
            self.server.process_conn(conn)
            return
        try:
            self._selector.register(conn.socket.fileno(), selectors.EVENT_READ, data=conn)
        except (OSError, ValueError, KeyError):
            conn.close()

    def _from_server_socket(self, server_socket: socket.socket) -> None:
        """Accept one connection and wait for its first bytes; no thread is involved yet."""
        try:
            accepted, address = server_socket.accept()
        except OSError as error:
            # Mostly nobody is there any more.
            if error.errno in (errno.EMFILE, errno.ENFILE):
                self.server.log.error("dav.no_descriptors_left")
                time.sleep(PAUSE_S)
            return
        accepted.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        accepted.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        conn = DavConnection(self.server, accepted)
        conn.remote_addr, conn.remote_port = address[:2]
        self.put(conn)


class _Threads(threadpool.ThreadPool):
    """Starts a thread when all are busy."""

    def put(self, obj: DavConnection) -> None:
        """Raises queue.Full at once."""
        if len(self._threads) < self.max and self.idle <= self.qsize:
            self._threads.append(self._spawn_worker())
        self._queue.put(obj, block=False)

    def _spawn_worker(self) -> threading.Thread:
        worker: threading.Thread = threadpool.WorkerThread(self.server)
        worker.daemon = True
        worker.start()
        return worker

    @property
    def count(self) -> int:
        return len(self._threads)

    def grow(self, amount: int) -> None:
        for _ in range(amount):
            self._threads.append(self._spawn_worker())

    def busy(self) -> list[DavConnection]:
        return [thread.conn for thread in list(self._threads) if thread.conn is not None]

    def finish(self, wait_s: float) -> bool:
        """Let the threads end when they are done; return whether all did within ``wait_s``."""
        for _ in self._threads:
            with contextlib.suppress(queue.Full):
                self._queue.put(threadpool._SHUTDOWNREQUEST, block=False)
        end = time.monotonic() + wait_s
        for thread in self._threads:
            thread.join(max(0.0, end - time.monotonic()))
        return not any(thread.is_alive() for thread in self._threads)


class Observer(Protocol):
    """Is told of every request, by many threads."""

    def answered(self, operation: str, status: int, code: str, seconds: float) -> None:
        """``seconds``: until the head of the answer; ``code``: what cut it off, or empty."""

    def moved(self, received: int, sent: int) -> None:
        """Bytes of bodies."""


class DavServer(cheroot_server.HTTPServer):
    """Serves a WSGI application on one listening socket, which stays the caller's.

    ``run`` blocks in a thread of its own until ``stop``, which any other thread calls.
    """

    ConnectionClass = DavConnection
    keep_alive_conn_limit = 2048

    def __init__(
        self,
        listener: socket.socket,
        app: WsgiApp,
        *,
        limits: DavLimits,
        tls: ssl.SSLContext | None,
        log: FilteringBoundLogger,
        observer: Observer | None = None,
    ) -> None:
        super().__init__(listener.getsockname()[:2], DavGateway, server_name="lodestore")
        self.socket = listener
        self.wsgi_app = app
        self.limits = limits
        self.tls = tls
        # Bound once: structlog's lazy loggers make a new one for each line, also for one unseen.
        self.log = log.bind()
        self.observer = observer
        self.timeout = limits.idle_s
        self.max_request_header_size = limits.head_size
        self.software = "lodestore"
        self.requests = _Threads(
            self,
            min=limits.threads_min,
            max=limits.threads_max,
            accepted_queue_size=limits.queue,
        )

    def prepare(self) -> None:
        """Take the socket as it is, instead of making one."""
        self._interrupt = None
        self._connections = _Connections(self)
        self.requests.start()
        self.ready = True

    def run(self) -> None:
        """Accept and serve until ``stop``; start with ``prepare``."""
        while self.ready:
            try:
                self._connections.run(self.expiration_interval)
            except Exception:  # noqa: BLE001  the accept thread must live
                self.error_log("accepting connections", level=logging.ERROR, traceback=True)

    def process_conn(self, conn: DavConnection) -> None:
        try:
            self.requests.put(conn)
        except queue.Full:
            self.log.warning("dav.overloaded", peer=conn.remote_addr)
            conn.close()

    def patience_ms(self) -> int:
        """Return how long a thread may wait for its connection's next request: not at all when
        another connection, or a stop, waits for it, and not long when many threads are taken."""
        if not self.ready or self.requests.qsize > 0:
            return 0
        return PATIENCE_MS if self.requests.count < self.limits.threads_max // 2 else CROWDED_MS

    def crowded(self) -> bool:
        """Whether others need the threads that there are, or the server stops."""
        if not self.ready:
            return True
        return self.requests.qsize > 0 and self.requests.count >= self.limits.threads_max

    def stop(self) -> None:
        """Accept no more, let running requests end for ``limits.stop_s``, then cut them off."""
        if not self.ready:
            return
        self.ready = False
        self._connections._stop_requested = True
        with contextlib.suppress(OSError):
            # Wakes the accept thread, which would look up only now and then.
            socket.create_connection(self.socket.getsockname()[:2], timeout=1.0).close()
        self._connections.stop()
        self._connections.close()
        if self.requests.finish(self.limits.stop_s):
            return
        for conn in self.requests.busy():
            self.log.warning("dav.cut_off", peer=conn.remote_addr)
            conn.interrupt()
        self.requests.finish(KILL_S)

    def error_log(self, msg: str = "", level: int = logging.INFO, traceback: bool = False) -> None:
        """Log what cheroot has to say."""
        error = sys.exc_info()[1]
        if isinstance(error, ConnectionError | TimeoutError):
            self.log.debug("dav.connection_lost", error=str(error))
        elif level >= logging.ERROR:
            self.log.error("dav.server_failed", what=msg, exc_info=error if traceback else None)
        elif level >= logging.WARNING:
            self.log.warning("dav.server", what=msg, error=repr(error))
        else:
            self.log.debug("dav.server", what=msg)
