"""cheroot's request, connection and gateway, with the defects that matter to WebDAV put right.

What is different from cheroot 11, and why:

* ``100 Continue`` is sent when the application first reads, not before it has authenticated;
* ambiguous framing is refused: two Content-Lengths, Content-Length with chunks, signs, folding;
* a body that nobody read is drained while it comes, not read whole into memory;
* what was announced and not sent ends the connection, so that no client takes it for whole;
* bodies go from the engine's buffers into the socket without a copy; a time-out means that no
  byte moved; a whole head has a deadline;
* the usual head is read in one go (``dav.head``), and that of the answer made in one.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable
from socket import SHUT_RDWR, SHUT_WR
from socket import socket as StreamSocket  # noqa: N812  a class of ours has an attribute "socket"
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote_to_bytes

from cheroot import server as cheroot_server
from cheroot import wsgi as cheroot_wsgi

from dav.body import RequestBody
from dav.head import environ_key, parse_head
from dav.times import http_date
from dav.wire import SocketReader, SocketWriter, peer_left, wait_readable
from engine.http.message import BodyBroken

if TYPE_CHECKING:
    from dav.server import DavServer

METHODS = frozenset(
    {
        *("OPTIONS", "GET", "HEAD", "PUT", "DELETE", "MKCOL", "COPY", "MOVE"),
        *("PROPFIND", "PROPPATCH", "LOCK", "UNLOCK"),
    }
)
"""What requests are counted by; all others are one."""
NO_ANSWER = 499
"""Counted where the client left, or was cut off, before the head of the answer; as nginx does."""

LINGER_S = 2.0
LINGER_SIZE = 8 << 20
"""For what nobody announced, behind the end of the answer."""

_NO_BODY = frozenset({b"204", b"205", b"304"})
_SINGLE = frozenset({b"Content-Length", b"Transfer-Encoding", b"Host", b"Destination", b"Depth"})


class HeaderReader(cheroot_server.HeaderReader):
    """Reads headers into cheroot's dictionary, and refuses what can be read in two ways."""

    def __call__(self, rfile: Any, hdict: dict[bytes, bytes] | None = None) -> dict[bytes, bytes]:
        headers = {} if hdict is None else hdict
        while (line := rfile.readline()) != b"\r\n":
            if not line.endswith(b"\r\n"):
                raise ValueError("Illegal end of headers.")
            name, colon, value = line.partition(b":")
            if not colon or not name or name.strip() != name or b"\0" in line:
                raise ValueError("Illegal header line.")
            if b"_" in name:
                # In a WSGI environment it could not be told from the name with a dash.
                continue
            name = name.title()
            value = value.strip()
            if name in headers:
                if name in _SINGLE:
                    raise ValueError(f"More than one {name.decode('latin-1')}.")
                separator = b"; " if name == b"Cookie" else b", "
                value = headers[name] + separator + value
            headers[name] = value
        return headers


class DavRequest(cheroot_server.HTTPRequest):
    """One request on a connection."""

    header_reader = HeaderReader()
    server: DavServer
    chunked_read: bool
    chunked_write: bool
    close_connection: bool
    sent_headers: bool
    status: bytes
    outhead: bytes = b""
    """Header lines of the answer, but for those that the connection decides."""
    outnames: frozenset[str] | set[str] = frozenset()
    """Their names, in lower case."""

    def __init__(self, server: DavServer, conn: DavConnection) -> None:
        # As a proxy it takes absolute targets and //, which dav.names reads by itself.
        super().__init__(server, conn, proxy_mode=True)
        self.body = RequestBody(conn.rfile, 0, None)
        self._began = 0.0
        self._head_s: float | None = None
        """Until the head of the answer went out."""
        self._sent = 0
        """Bytes of the answer's body."""

    def parse_request(self) -> None:
        reader: SocketReader = self.conn.rfile
        reader.deadline = time.monotonic() + self.server.limits.head_s
        try:
            if not self._parse_at_once(reader):
                super().parse_request()
        finally:
            reader.deadline = None

    def _parse_at_once(self, reader: SocketReader) -> bool:
        """Take the usual head as one; with anything else do nothing and return False."""
        block = reader.peek_head(self.server.max_request_header_size)
        head = None if block is None else parse_head(block)
        if block is None or head is None:
            return False
        reader.skip(len(block) + 4)
        self.started_request = True
        self.method, self.uri, self.inheaders = head
        self.path = unquote_to_bytes(self.uri) if b"%" in self.uri else self.uri
        self.qs = self.authority = b""
        self.request_protocol = self.response_protocol = "HTTP/1.1"
        self.ready = self._headers_read()
        return True

    def read_request_headers(self) -> bool:
        try:
            self.header_reader(self.rfile, self.inheaders)
        except ValueError as error:
            return self._refuse(error)
        return self._headers_read()

    def _refuse(self, error: ValueError) -> bool:
        self.close_connection = True
        self.simple_response("400 Bad Request", str(error))
        return False

    def _headers_read(self) -> bool:
        """Decide what the headers say of body and connection; False if they cannot be."""
        try:
            length = self._framing()
        except ValueError as error:
            return self._refuse(error)
        connection = self.inheaders.get(b"Connection", b"").lower()
        if self.response_protocol == "HTTP/1.1":
            self.close_connection = b"close" in connection
        else:
            self.close_connection = b"keep-alive" not in connection
        expects = self.inheaders.get(b"Expect", b"").lower() == b"100-continue"
        waits = expects and length != 0 and self.response_protocol == "HTTP/1.1"
        self.body = RequestBody(self.conn.rfile, length, self._continue if waits else None)
        return True

    def _framing(self) -> int | None:
        """Return the body's length, None for chunks. Raises ValueError."""
        length = self.inheaders.get(b"Content-Length")
        encoding = self.inheaders.get(b"Transfer-Encoding")
        if encoding is not None:
            if length is not None or encoding.lower() != b"chunked":
                raise ValueError("Transfer-Encoding must be chunked, without Content-Length.")
            if self.response_protocol != "HTTP/1.1":
                raise ValueError("No Transfer-Encoding before HTTP/1.1.")
            self.chunked_read = True
            return None
        if length is None:
            return 0
        if not (length.isdigit() and len(length) < 19):
            raise ValueError("Malformed Content-Length.")
        return int(length)

    def _continue(self) -> None:
        self.conn.wfile.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def respond(self) -> None:
        self.rfile = self.body
        self._began = time.perf_counter()
        whole = False
        try:
            self.server.gateway(self).respond()
            if self.chunked_write:
                self.conn.wfile.write(b"0\r\n\r\n")
            whole = True
        finally:
            self._ended(whole)
        self._leave_body()

    def _ended(self, whole: bool) -> None:
        """Every request that an application has seen ends here, in its thread."""
        method = self.method.decode("latin-1")
        status = int(self.status[:3] or 0) if self._head_s is not None else NO_ANSWER
        seconds = time.perf_counter() - self._began
        observer = self.server.observer
        if observer is not None:
            operation = method if method in METHODS else "OTHER"
            head_s = seconds if self._head_s is None else self._head_s
            observer.answered(operation, status, "" if whole else "cut_off", head_s)
            observer.moved(self.body.received, self._sent)
        self.server.log.debug(
            "dav.request",
            method=method,
            target=self.uri.decode("latin-1"),
            status=status,
            peer=self.conn.remote_addr,
            ms=seconds * 1000,
        )

    def send_headers(self) -> None:
        """Send status and headers; decide first whether the connection can be used again."""
        self._head_s = time.perf_counter() - self._began
        if not self._can_drain() or self.status[:3] == b"413":
            self.close_connection = True
        names = self.outnames
        more = []
        if "content-length" not in names and self.status[:3] not in _NO_BODY:
            if self.response_protocol == "HTTP/1.1" and self.method != b"HEAD":
                self.chunked_write = True
                more.append("Transfer-Encoding: chunked\r\n")
            else:
                # Only the end of the connection says where the body ends.
                self.close_connection = True
        if not self.close_connection and not self.server.can_add_keepalive_connection:
            self.close_connection = True
        if self.response_protocol == "HTTP/1.1":
            if self.close_connection:
                more.append("Connection: close\r\n")
        elif not self.close_connection:
            more.append(f"Connection: Keep-Alive\r\nKeep-Alive: timeout={self.server.timeout}\r\n")
        now = http_date(time.time_ns() // 1_000_000)
        more.append(f"Date: {now}\r\nServer: {self.server.server_name}\r\n\r\n")
        head = (b"HTTP/1.1 ", self.status, b"\r\n", self.outhead, "".join(more).encode("latin-1"))
        self.conn.wfile.write(b"".join(head))

    def write(self, chunk: bytes | bytearray | memoryview) -> None:
        self._sent += len(chunk)
        if self.chunked_write:
            head = b"%x\r\n" % len(chunk)
            if len(chunk) < 16384:
                self.conn.wfile.write(b"".join((head, chunk, b"\r\n")))
                return
            self.conn.wfile.write(head)
            self.conn.wfile.write(chunk)
            self.conn.wfile.write(b"\r\n")
        else:
            self.conn.wfile.write(chunk)

    def _drain(self) -> bool:
        """Read the body to its end; return whether that is possible."""
        with contextlib.suppress(BodyBroken):
            while self.body.read(64 * 1024):
                pass
            return True
        return False

    def _can_drain(self) -> bool:
        body = self.body
        if body.finished:
            return True
        if body.waiting or body.length is None:
            # It may send the body or not: nobody can tell what the next bytes are.
            return False
        return body.length - body.received <= self.server.limits.drain_size

    def _leave_body(self) -> None:
        """Read what is left of a body, or close so that the client still sees the answer."""
        if self.body.finished:
            return
        if not self.close_connection and self._drain():
            return
        self.close_connection = True
        if not self.body.waiting:
            self._read_past()
        self.conn.linger_close()

    def _read_past(self) -> None:
        """Read a body that was refused as long as it comes, its end included.

        A client that looks at the answer only behind its body (KDE's, which sends each file first
        without a login) gives up when the connection ends before that.
        """
        reader: SocketReader = self.conn.rfile
        limits = self.server.limits
        scratch = memoryview(bytearray(64 * 1024))
        end = time.monotonic() + limits.refused_s - self.body.received / limits.refused_rate
        with contextlib.suppress(BodyBroken):
            while not (self.body.finished or self.server.crowded()):
                reader.deadline = end + self.body.received / limits.refused_rate
                self.body.readinto(scratch)
        reader.deadline = None


class DavConnection(cheroot_server.HTTPConnection):
    """One connection. Also the ``Client`` that the portal looks after."""

    RequestHandlerClass = DavRequest
    server: DavServer
    socket: StreamSocket
    rfile: SocketReader
    wfile: SocketWriter

    def __init__(self, server: DavServer, sock: StreamSocket) -> None:
        super().__init__(server, sock, makefile=self._make_file)
        self.secure = False

    def _make_file(self, sock: StreamSocket, mode: str, _: int) -> SocketReader | SocketWriter:
        idle_s = self.server.limits.idle_s
        if "r" in mode:
            return SocketReader(sock, idle_s=idle_s)
        return SocketWriter(sock, idle_s=idle_s)

    def communicate(self) -> bool:
        """Serve one request, behind the TLS handshake if that is still to do, in this thread."""
        if self.server.tls is not None and not self.secure and not self._shake_hands():
            return False
        while super().communicate():
            if not self._next_comes_at_once():
                return True
        return False

    def _next_comes_at_once(self) -> bool:
        """Whether the client's next request begins soon, and nobody needs the thread: handing the
        connection back and forth costs as much as a small request, and takes longer where
        threads wait for a processor."""
        patience_ms = self.server.patience_ms()
        if not patience_ms:
            return False
        return self.rfile.has_data() or wait_readable(self.socket, patience_ms)

    def _shake_hands(self) -> bool:
        assert self.server.tls is not None
        limit_s = self.server.limits.handshake_s
        try:
            self.socket = self.server.tls.wrap_socket(
                self.socket, server_side=True, do_handshake_on_connect=False
            )
            # ssl counts the time-out of a handshake for the whole of it.
            self.socket.settimeout(limit_s)
            self.socket.do_handshake()
        except (OSError, ValueError) as error:
            self.server.log.debug("dav.tls_failed", peer=self.remote_addr, error=str(error))
            return False
        self.rfile = SocketReader(self.socket, idle_s=self.server.limits.idle_s)
        self.wfile = SocketWriter(self.socket, idle_s=self.server.limits.idle_s)
        self.secure = True
        return True

    def gone(self) -> bool:
        return peer_left(self.socket)

    def interrupt(self) -> None:
        with contextlib.suppress(OSError):
            # Not SSLSocket's: that would drop the TLS state under the thread that uses it.
            StreamSocket.shutdown(self.socket, SHUT_RDWR)

    def linger_close(self) -> None:
        """Say that no more comes, and let the client read the answer before a reset hits it."""
        with contextlib.suppress(OSError):
            self.socket.shutdown(SHUT_WR)
            end = time.monotonic() + LINGER_S
            left = LINGER_SIZE
            while left > 0 and (wait_s := end - time.monotonic()) > 0:
                self.socket.settimeout(wait_s)
                received = len(self.socket.recv(64 * 1024))
                if not received:
                    return
                left -= received


class DavGateway(cheroot_wsgi.Gateway_10):
    """Calls the application; ``environ['lode.connection']`` is the portal's ``Client``."""

    remaining_bytes_out: int | None

    def get_environ(self) -> dict[str, Any]:
        """Return what the application reads; of what WSGI asks for beside that, nothing."""
        req: DavRequest = self.req
        environ: dict[str, Any] = {
            "REQUEST_METHOD": req.method.decode("latin-1"),
            "REQUEST_URI": req.uri.decode("latin-1"),
            "PATH_INFO": req.path.decode("latin-1"),
            "QUERY_STRING": req.qs.decode("latin-1"),
            "REMOTE_ADDR": req.conn.remote_addr or "",
            "wsgi.url_scheme": "https" if req.conn.secure else "http",
            "wsgi.input": req.body,
            "lode.connection": req.conn,
            "lode.connection_used": lambda: req.sent_headers,
            "lode.body": req.body,
        }
        for name, value in req.inheaders.items():
            environ[environ_key(name)] = value.decode("latin-1")
        return environ

    def respond(self) -> None:
        """Send what the application yields or writes. An exception ends the connection."""
        response: Iterable[bytes] = self.req.server.wsgi_app(self.env, self.start_response)
        try:
            for chunk in response:
                if chunk:
                    self.write(chunk)
        finally:
            close = getattr(response, "close", None)
            if close is not None:
                close()
        if self.remaining_bytes_out and self.req.method != b"HEAD" and self._has_body():
            raise ConnectionAbortedError("fewer bytes than announced")
        self.req.ensure_headers_sent()

    def start_response(
        self, status: str, headers: list[tuple[str, str]], exc_info: Any = None
    ) -> Any:
        """Begin the answer; another one takes its place as long as nothing was sent."""
        if self.req.sent_headers:
            raise RuntimeError("an answer is on its way already")
        self.started_response = True
        self.remaining_bytes_out = None
        names = set()
        lines = []
        for name, value in headers:
            lower = name.lower()
            if lower == "content-length":
                self.remaining_bytes_out = int(value)
            names.add(lower)
            lines.append(f"{name}: {value}\r\n")
        self.req.outhead = "".join(lines).encode("latin-1")
        self.req.outnames = names
        self.req.status = status.encode("latin-1")
        return self.write

    def _has_body(self) -> bool:
        return self.req.status[:3] not in (b"204", b"304")

    def write(self, chunk: bytes | bytearray | memoryview) -> None:
        if not self.req.sent_headers:
            if self.req.method != b"HEAD":
                self.req.conn.wfile.hold()
            self.req.ensure_headers_sent()
        if self.req.method == b"HEAD":
            return
        if self.remaining_bytes_out is not None:
            self.remaining_bytes_out -= len(chunk)
            if self.remaining_bytes_out < 0:
                self.req.conn.wfile.release()
                raise ConnectionAbortedError("more bytes than announced")
        self.req.write(chunk)
