"""What the S3 frontend needs to know, and what its operations share."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Protocol, TypeAlias

from engine.engine import Engine
from engine.http.message import Response
from engine.ids import Clock
from s3.auth.credentials import CredentialStore
from s3.auth.sigv4 import Authenticator
from s3.request import S3Request


@dataclass(frozen=True, slots=True, kw_only=True)
class S3Config:
    credentials: CredentialStore
    owner_id: str
    """Canonical id that owns what is made here, as listings and ACLs show it."""
    owner_name: str
    clock: Clock
    """Wall clock that signatures and policies are checked against."""
    region: str = "us-east-1"
    domains: tuple[str, ...] = ()
    """Names below which buckets are hosts: ``s3.example.org`` for ``bucket.s3.example.org``."""
    host_id: str = "lodestore"
    """Shown as ``x-amz-id-2``: which process answered."""
    document_size_max: int = 1 << 20
    """Bytes of XML in a request, but for DeleteObjects and CompleteMultipartUpload."""
    large_document_size_max: int = 8 << 20
    """Bytes of those two: 1,000 keys of 1,024 bytes, 10,000 parts with checksums."""


class Observer(Protocol):
    """Where metrics hook in: told of every request once, when its response is known."""

    def answered(self, operation: str, status: int, code: str, seconds: float) -> None:
        """``code`` is S3's error code or empty; ``seconds`` until the response's head."""

    def moved(self, received: int, sent: int) -> None:
        """Told of the bodies' sizes, as announced."""


@dataclass(frozen=True, slots=True)
class Api:
    """What every operation gets beside its request."""

    engine: Engine
    config: S3Config
    authenticator: Authenticator


Operation: TypeAlias = Callable[[Api, S3Request], Awaitable[Response]]
