"""What the WebDAV frontend is told: parsed and checked by ``cli``, passed on explicitly."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum

from engine.access import FULL, Access


class MacFiles(StrEnum):
    """What becomes of the files that macOS puts beside others (``._*``, ``.DS_Store``)."""

    KEEP = "keep"
    """They are files like any other."""
    DROP = "drop"
    """Writing one succeeds and stores nothing."""
    REFUSE = "refuse"
    """Writing one is forbidden."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DavLimits:
    """All in seconds or bytes; each bounds what one client can hold on to."""

    idle_s: float = 60.0
    """No byte came or went for so long: the connection is closed. Also between requests."""
    head_s: float = 20.0
    """For a whole request line with its headers, counted from the first byte."""
    handshake_s: float = 15.0
    """For a whole TLS handshake."""
    head_size: int = 64 * 1024
    xml_size: int = 1 << 20
    """Of an XML body: PROPFIND, PROPPATCH, LOCK."""
    drain_size: int = 256 * 1024
    """So much of a body that nobody wants is read to keep the connection."""
    refused_s: float = 20.0
    """A larger one is read past so long before the connection ends, and a second longer ..."""
    refused_rate: int = 64 * 1024
    """... for each of so many bytes that came: to its end, if it is faster than this."""
    threads_min: int = 8
    threads_max: int = 320
    queue: int = 1024
    """Connections that have a request and wait for a thread."""
    stop_s: float = 30.0
    """For running requests to end when the server stops."""
    operation_s: float = 120.0
    """For a request that moves no bodies."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DavConfig:
    secret_of: Callable[[str], str | None]
    """The secret key of an access key; None when there is no such user."""
    access_of: Callable[[str], Access] = field(default=lambda _: FULL)
    """What an access key may do; asked for every request, so it answers at once."""
    owner_id: str
    """Canonical id of the user who owns buckets that are made here."""
    read_only: bool = False
    basic_without_tls: bool = False
    """Accept Basic over plain HTTP from other machines; never needed from this one."""
    mac_files: MacFiles = MacFiles.KEEP
    infinite_depth: bool = False
    """Answer PROPFIND with Depth infinity."""
    realm: str = "Lodestore"
    nonce_key: bytes = field(default_factory=lambda: os.urandom(32))
    """Signs Digest nonces; the same in all processes that serve a store."""
    limits: DavLimits = field(default_factory=DavLimits)
