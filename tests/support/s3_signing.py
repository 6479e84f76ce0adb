"""Requests, bodies and the credential of AWS's examples, for tests of authentication."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from typing import Protocol

from engine.http.message import BodyBroken, HeaderList, Request
from s3.auth.credentials import Credential, RootCredential
from s3.auth.sigv4 import Authenticator

EXAMPLE = Credential(
    "AKIAIOSFODNN7EXAMPLE", "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY", "owner", "root"
)
EXAMPLE_MS = 1369353600_000
"""2013-05-24T00:00:00Z"""


class PiecewiseBody:
    """A body that comes in the given pieces, and then ends or breaks."""

    def __init__(
        self, pieces: Iterable[bytes], *, length: int | None = None, broken: str = ""
    ) -> None:
        self._pieces = [piece for piece in pieces if piece]
        self.length = sum(map(len, self._pieces)) if length is None else length
        self._broken = broken
        self.reads = 0

    async def readinto(self, buffer: memoryview) -> int:
        self.reads += 1
        assert len(buffer) > 0
        if not self._pieces:
            if self._broken:
                raise BodyBroken(self._broken)
            return 0
        piece = self._pieces.pop(0)
        count = min(len(piece), len(buffer))
        buffer[:count] = piece[:count]
        if count < len(piece):
            self._pieces.insert(0, piece[count:])
        return count


def request_of(
    method: str, path: bytes, query: bytes, headers: HeaderList, body: bytes = b""
) -> Request:
    return Request(
        method=method,
        path=path,
        query=query,
        headers=headers,
        body=PiecewiseBody([body]),
        peer="127.0.0.1",
        secure=False,
    )


def authenticator(
    now_ms: int = EXAMPLE_MS, *, region: str = "us-east-1", credential: Credential = EXAMPLE
) -> Authenticator:
    return Authenticator(
        credentials=RootCredential(credential), region=region, clock=lambda: now_ms
    )


class Source(Protocol):
    async def readinto(self, buffer: memoryview) -> int: ...


async def read_all(source: Source, size: int = 65536) -> bytes:
    """Return all bytes, read through a buffer of ``size`` bytes that is full of rubbish before."""
    buffer = memoryview(bytearray(b"\xa5" * size))
    parts = []
    while count := await source.readinto(buffer):
        parts.append(bytes(buffer[:count]))
        buffer[:count] = b"\xa5" * count
    return b"".join(parts)


def cut(data: bytes, positions: Iterable[int]) -> list[bytes]:
    """Return ``data`` cut at the positions."""
    ends = sorted({0, len(data), *positions})
    return [data[start:end] for start, end in itertools.pairwise(ends)]
