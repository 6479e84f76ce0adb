"""S3 for checks by the hundred thousand: a connection of its own per gateway, and requests that are
signed once and sent again and again, so that a request costs the client some tens of microseconds.
"""

from __future__ import annotations

import hashlib
import re
import socket
import time
from typing import NamedTuple

from s3.auth.credentials import Credential
from s3.auth.presign import sign_request

SIGNED_S = 300.0
"""A signature is good for 15 minutes; so long it is used."""
ANSWER_S_MAX = 600.0

_LISTED = re.compile(rb"<Key>([^<]*)</Key>.*?<ETag>&quot;([^&]*)&quot;</ETag>", re.S)


class Answer(NamedTuple):
    status: int
    etag: str
    """Without quotes; empty: none."""
    body: bytes

    def listed(self) -> dict[str, str]:
        """Return the ETags by key."""
        return {key.decode(): etag.decode() for key, etag in _LISTED.findall(self.body)}


def etag_of(body: bytes) -> str:
    return hashlib.md5(body, usedforsecurity=False).hexdigest()


class FastS3:
    """One connection to one gateway; for one thread."""

    def __init__(self, url: str, keys: tuple[str, str]) -> None:
        host, _, port = url.removeprefix("http://").partition(":")
        self._authority = f"{host}:{port}".encode()
        self._credential = Credential(*keys, "", "")
        self._socket = socket.create_connection((host, int(port)), timeout=ANSWER_S_MAX)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._heads: dict[tuple[str, str, int], bytes] = {}
        self._signed_at = time.monotonic()

    def close(self) -> None:
        self._socket.close()

    def _head(self, method: str, target: str, size: int) -> bytes:
        now = time.monotonic()
        if now - self._signed_at > SIGNED_S:
            self._heads.clear()
            self._signed_at = now
        known = self._heads.get((method, target, size))
        if known is not None:
            return known
        path, _, query = target.partition("?")
        headers, _ = sign_request(
            method,
            path.encode(),
            query.encode(),
            [(b"host", self._authority), (b"content-length", b"%d" % size)],
            credential=self._credential,
            region="us-east-1",
            at_ms=time.time_ns() // 1_000_000,
            unsigned=(b"content-length",),
        )
        lines = [f"{method} {target} HTTP/1.1".encode()]
        lines += [name + b": " + value for name, value in headers]
        head = b"\r\n".join(lines) + b"\r\n"
        self._heads[method, target, size] = head
        return head

    def ask(self, method: str, target: str, body: bytes = b"", *, more: bytes = b"") -> Answer:
        """Send a request and return its answer. ``more``: header lines, each with its end."""
        head = self._head(method, target, len(body))
        self._socket.sendall(b"".join((head, more, b"\r\n", body)))
        received = b""
        while (end := received.find(b"\r\n\r\n")) < 0:
            received += self._receive()
        fields = dict(
            line.lower().split(b": ", 1) for line in received[:end].split(b"\r\n")[1:] if line
        )
        status = int(received[9:12])
        content = received[end + 4 :]
        if method != "HEAD" and status != 204:
            assert b"content-length" in fields, received[:end]
            while len(content) < int(fields[b"content-length"]):
                content += self._receive()
        return Answer(status, fields.get(b"etag", b"").strip(b'"').decode(), content)

    def _receive(self) -> bytes:
        received = self._socket.recv(1 << 20)
        assert received, "the gateway closed the connection"
        return received
