"""What an engine needs to know to open a store: parsed once, checked on construction."""

from __future__ import annotations

import re
from pathlib import Path

import msgspec

from engine.errors import ConfigError

MIB = 1 << 20


class Profile(msgspec.Struct, frozen=True):
    """How many data and parity blocks a stripe has: any ``parity`` of its nodes may be lost."""

    data: int
    parity: int

    def __post_init__(self) -> None:
        if not (1 <= self.data <= 20 and 0 <= self.parity <= 10):
            raise ConfigError(f"profile {self}: 1 to 20 data and 0 to 10 parity blocks")

    def __str__(self) -> str:
        return f"{self.data}+{self.parity}"

    @property
    def width(self) -> int:
        """Fragments of a chunk, each on a node of its own."""
        return self.data + self.parity

    @classmethod
    def parse(cls, text: str) -> Profile:
        match = re.fullmatch(r"(\d{1,2})\+(\d{1,2})", text)
        if match is None:
            raise ConfigError(f"profile {text!r}: write it as DATA+PARITY, for example 4+2")
        return cls(int(match[1]), int(match[2]))

    @classmethod
    def default_for(cls, drives: int) -> Profile:
        """Return the widest of our standard profiles that ``drives`` failure domains allow."""
        for least, profile in ((14, cls(10, 4)), (6, cls(4, 2)), (3, cls(2, 1))):
            if drives >= least:
                return profile
        return cls(1, min(drives, 2) - 1)


class MemberTls(msgspec.Struct, frozen=True, kw_only=True):
    """What a gateway shows to members, and what it accepts from them. PEM files."""

    ca: Path
    """Who signs the members' certificates."""
    cert: Path | None = None
    """What the gateway shows itself; None: nothing."""
    key: Path | None = None


class StoreConfig(msgspec.Struct, frozen=True, kw_only=True):
    """One store, as one process opens it."""

    data: Path
    """Folder of the store: identity, credentials, metadata, and by default its drive."""
    drives: tuple[Path, ...] = ()
    """One folder per drive; empty: the drives that the store knows, or ``data/drive`` if new."""
    profile: Profile | None = None
    """None: what the store was made with, or the default for the number of drives."""
    grace_s: float = 24 * 3600.0
    """How long bytes that nobody owns stay before garbage collection takes them."""
    session_s: float = 60.0
    """A process that does not renew its session for so long counts as dead."""
    volume_size: int = 1024 * MIB
    """A node starts another volume file when this one is full."""
    chunk_size: int = 64 * MIB
    block_size: int = 256 * 1024
    inline_record_max: int = 1024
    """Objects up to so many bytes are kept in their metadata record."""
    inline_max: int = 64 * 1024
    """Objects up to so many bytes are kept in the metadata store."""
    replicated_max: int = 256 * 1024
    """Objects up to so many bytes are kept as copies, larger ones as coded fragments."""
    memory: int = 96 * MIB
    """Bound on the bytes of stripes that one process holds beyond one stripe per request."""
    reserve: int = 256 * MIB
    """Room kept free on each drive for deletes, metadata and compaction."""
    meta: str = ""
    """Where the metadata is: ``fdb:CLUSTERFILE`` (``engine.meta.fdb_location``); empty: where the
    data folder says, in a new one the folder itself."""
    meta_vfs: str = ""
    """Name of an SQLite VFS for the embedded store; tests put faults in with it."""
    index_vfs: str = ""
    """The same for the drives' indexes."""
    services: bool = True
    """Run garbage collection and repair in this process."""
    heartbeat_s: float = 2.0
    """How often each member of a cluster is asked for its health."""
    suspect_s: float = 6.0
    """Without an answer for so long, a member or drive gets no new fragments."""
    down_s: float = 30.0
    """Without an answer for so long, it is not asked for fragments any more."""
    straggler_s: float = 3.0
    """Once enough nodes have taken a write to be safe, the others get so long to catch up."""
    lost_s: float = 900.0
    """Down for so long, its fragments are made anew elsewhere."""
    repair_rate: int = 0
    """Bytes per second that repair writes at most; 0: no limit."""
    rebalance_rate: int = 0
    scrub_rate: int = 0
    """Bytes per second that scrub reads at most; 0: no limit but its period."""
    scrub_period_s: float = 14 * 24 * 3600.0
    """Every block is read and verified once in so long; 0: never."""
    census_period_s: float = 24 * 3600.0
    """A census is taken at least so often, and after whatever may have changed its counts."""
    member_tls: MemberTls | None = None
    """Certificates for members that are spoken to over TLS; None: they are not."""
