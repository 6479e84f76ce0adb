"""The head of a request: where it ends, and what it says. Pure, no I/O.

llhttp checks the syntax (RFC 9112): bare LF, folded lines, control characters, doubled or
malformed Content-Length, Content-Length beside Transfer-Encoding are all refused by it. What it
lets pass and we refuse is in ``_frame`` and ``_split_line``. It is given one whole head and
nothing after it, so what it thinks about bodies and later requests cannot differ from what we do.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

import httptools

from engine.http.limits import Limits
from engine.http.message import HeaderList

_TOKEN: Final = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_TOKEN_BYTES: Final = frozenset(rb"!#$%&'*+-.^_`|~" + bytes(range(48, 58))) | frozenset(
    b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
)
_SPECIAL: Final = frozenset(
    (b"host", b"content-length", b"transfer-encoding", b"connection", b"expect")
)
_METHODS: Final[Mapping[bytes, str]] = MappingProxyType(
    {name.encode(): name for name in ("GET", "PUT", "HEAD", "POST", "DELETE", "OPTIONS")}
)


class BadHead(Exception):
    """The request cannot be understood; ``status`` is the answer, after which we close."""

    def __init__(self, status: int) -> None:
        super().__init__(status)
        self.status = status


class Head:
    """What a request's head says. It is also the sink of llhttp's callbacks."""

    __slots__ = (
        "connection",
        "encodings",
        "expect",
        "headers",
        "hosts",
        "http11",
        "keep_alive",
        "length",
        "method",
        "path",
        "query",
    )

    def __init__(self) -> None:
        self.method = ""
        self.path = b""
        self.query = b""
        self.headers: HeaderList = []
        """Names in lower case, values without surrounding white space, in order."""
        self.length: int | None = 0
        """Of the body; None: chunked."""
        self.http11 = True
        self.keep_alive = True
        self.expect = b""
        """Value of ``Expect`` in lower case; empty without one."""
        self.hosts = 0
        self.encodings = b""
        self.connection = b""

    def on_header(self, name: bytes, value: bytes) -> None:
        name = name.lower()
        value = value.rstrip(b" \t")
        self.headers.append((name, value))
        if name in _SPECIAL:
            self._on_special(name, value)

    def _on_special(self, name: bytes, value: bytes) -> None:
        if name == b"host":
            self.hosts += 1
        elif name == b"content-length":
            self.length = int(value)  # llhttp has seen digits, once, below 2**64
        elif name == b"connection":
            self.connection += b"," + value.lower()
        elif name == b"transfer-encoding":
            self.encodings += b"," + value.lower()
        else:
            self.expect += value.lower()


def locate_head(data: bytes | bytearray, limits: Limits) -> tuple[int, int] | None:
    """Return where the head starts (after empty lines) and ends, or None: more bytes are needed.

    What it answers for a prefix it also answers for all of it, so that an answer never depends on
    how the bytes were cut into packets.

    Raises:
        BadHead: it is too long already, or cannot become a request.
    """
    size = len(data)
    start = 0
    while data.startswith(b"\r\n", start):
        start += 2
    if start > limits.request_line:
        raise BadHead(400)
    if start == size or (data[start] == 13 and start + 1 == size):
        return None
    if data[start] not in _TOKEN_BYTES:
        raise BadHead(400)
    line_end = data.find(b"\n", start)
    if (size if line_end < 0 else line_end) - start > limits.request_line:
        raise BadHead(414)
    end = data.find(b"\r\n\r\n", start)
    stop = start + limits.head_bytes
    if end >= 0 and end + 4 <= stop:
        return start, end + 4
    if data.count(b"\n", start, stop) != data.count(b"\r\n", start, stop):
        raise BadHead(400)  # a client that ends lines with LF would wait for us for ever
    if size > stop:
        raise BadHead(431)
    return None


def parse_head(data: bytes, limits: Limits) -> Head:
    """Return what ``data``, one whole head that ends with an empty line, says.

    Raises:
        BadHead: malformed, ambiguous about its length, or of a kind that we do not serve.
    """
    head = Head()
    line_end = data.find(b"\r\n")
    line = data[:line_end]
    if b"\n" in line:
        raise BadHead(400)  # llhttp takes it for the end of an HTTP/0.9 request line
    parts = line.split(b" ")
    try:
        httptools.HttpRequestParser(head).feed_data(data)
    except httptools.HttpParserUpgrade:
        pass  # nothing is offered to upgrade to: an ordinary request (RFC 9110, 7.8)
    except httptools.HttpParserInvalidMethodError:
        head = _parse_extension(data, parts[0])
    except httptools.HttpParserError:
        raise BadHead(400) from None
    if len(head.headers) > limits.header_count or len(data) - line_end > limits.header_bytes + 4:
        raise BadHead(431)
    _split_line(head, parts)
    _frame(head)
    return head


def _parse_extension(data: bytes, method: bytes) -> Head:
    """Parse a head whose method llhttp does not know, under another method's name."""
    if _TOKEN.fullmatch(method) is None:
        raise BadHead(400)
    head = Head()
    try:
        httptools.HttpRequestParser(head).feed_data(b"POST" + data[len(method) :])
    except httptools.HttpParserUpgrade:
        pass
    except httptools.HttpParserError:
        raise BadHead(400) from None
    return head


def _split_line(head: Head, parts: list[bytes]) -> None:
    """Take the request line apart (RFC 9112, section 3)."""
    if len(parts) != 3:
        raise BadHead(400)  # HTTP/0.9, or more than one space
    method, target, version = parts
    if version == b"HTTP/1.0":
        head.http11 = False
    elif version != b"HTTP/1.1":
        raise BadHead(505)
    head.method = _METHODS.get(method) or method.decode("ascii")
    if b"#" in target:
        raise BadHead(400)
    if target.startswith(b"/"):
        head.path, _, head.query = target.partition(b"?")
    elif target == b"*" and method == b"OPTIONS":
        head.path = target
    elif method == b"CONNECT":
        raise BadHead(501)
    else:
        scheme, separator, rest = target.partition(b"://")
        if not separator or scheme.lower() not in (b"http", b"https"):
            raise BadHead(400)
        rest, _, head.query = rest.partition(b"?")
        authority, slash, path = rest.partition(b"/")
        if not authority:
            raise BadHead(400)
        head.path = slash + path or b"/"
        # The target's authority stands above the Host header (RFC 9112, section 3.2.2).
        head.headers = [
            (name, authority if name == b"host" else value) for name, value in head.headers
        ]


def _frame(head: Head) -> None:
    """Decide about host, body length, expectation and keep-alive."""
    if head.hosts != 1 and (head.http11 or head.hosts):
        raise BadHead(400)
    if head.encodings:
        if not head.http11:
            raise BadHead(400)  # RFC 9112, section 6.1: framing is not to be trusted
        if head.encodings != b",chunked":
            raise BadHead(501)
        head.length = None
    if not head.http11:
        head.keep_alive = False
        head.expect = b""
    elif head.connection:
        head.keep_alive = b"close" not in [option.strip() for option in head.connection.split(b",")]
    if head.expect and head.expect != b"100-continue":
        raise BadHead(417)
