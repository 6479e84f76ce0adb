"""Signed request heads, made before the load starts so that signing costs the client nothing.

A signature is good for 15 minutes, far longer than any single run.
"""

from __future__ import annotations

import time
from collections.abc import Iterable

import msgspec

from s3.auth.credentials import Credential
from s3.auth.presign import sign_request

REGION = "us-east-1"


class Endpoint(msgspec.Struct, frozen=True):
    """Where a server listens; a credential when requests to it have to be signed."""

    host: str
    port: int
    credential: Credential | None = None
    pids: tuple[int, ...] = ()
    """Processes that were started for it; their children count as well."""

    @property
    def authority(self) -> str:
        return f"{self.host}:{self.port}"


def request_head(
    endpoint: Endpoint, method: str, target: str, *, body_size: int | None = None
) -> bytes:
    """Return the bytes of a request up to and with the empty line.

    Args:
        target: encoded path and query.
        body_size: sent as Content-Length; None: no such header.
    """
    path, _, query = target.partition("?")
    headers = [(b"host", endpoint.authority.encode())]
    if body_size is not None:
        headers.append((b"content-length", str(body_size).encode()))
    if endpoint.credential is not None:
        headers, _ = sign_request(
            method,
            path.encode(),
            query.encode(),
            headers,
            credential=endpoint.credential,
            region=REGION,
            at_ms=time.time_ns() // 1_000_000,
            unsigned=(b"content-length",),
        )
    lines = [b"%b %b HTTP/1.1" % (method.encode(), target.encode())]
    lines += [name + b": " + value for name, value in headers]
    return b"\r\n".join((*lines, b"", b""))


def request_heads(
    endpoint: Endpoint, method: str, targets: Iterable[str], *, body_size: int | None = None
) -> list[bytes]:
    return [request_head(endpoint, method, target, body_size=body_size) for target in targets]
