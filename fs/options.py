"""What one mount was told: parsed by the command, checked on construction."""

from __future__ import annotations

from pathlib import Path

import msgspec

from engine.errors import ConfigError

MIB = 1 << 20

CACHE_SIZE_MIN = 64 * MIB

WINDOWS_SHARE = 0.25
"""Of ``memory``, for what random reads touched; reading ahead has the rest."""


class MountOptions(msgspec.Struct, frozen=True, kw_only=True):
    target: Path
    """The mount point; absolute."""
    bucket: str = ""
    """Empty: every bucket is a folder at the top."""
    prefix: str = ""
    """Show only the keys below it; empty or with a slash at its end."""
    read_only: bool = False
    allow_other: bool = False
    uid: int = 0
    gid: int = 0
    file_mode: int = 0o644
    dir_mode: int = 0o755
    xattr: bool = False
    at_ms: int | None = None
    """Show the past: what was current at this moment, in ms since 1970; read-only."""
    staging: Path | None = None
    """Folder for what is written and not yet committed; None: in the data folder."""
    cache_dir: Path | None = None
    """Folder that keeps what was read, on a disk near this machine; None: nothing is kept."""
    cache_size: int | None = None
    """Bytes that it may take; None: a sensible part of its disk."""
    memory: int = 256 * MIB
    """Bound on the bytes that reading holds, for the whole mount."""
    timeout_s: float = 300.0
    """How long the kernel may keep names and attributes while the change feed is followed."""
    timeout_unfed_s: float = 1.0
    """The same while the change feed is lost."""
    handler_s: float = 120.0
    """Longest time for one request of the kernel, but for those that commit or wait for disks."""
    known_inodes_max: int = 250_000
    """While the kernel knows so many, further names are listed without attributes."""

    def __post_init__(self) -> None:
        if not self.target.is_absolute():
            raise ConfigError(f"mount point {self.target}: not absolute")
        if self.prefix and (not self.prefix.endswith("/") or not self.bucket):
            raise ConfigError(f"prefix {self.prefix!r}: needs a bucket, and a slash at its end")
        if self.cache_size is not None and self.cache_dir is None:
            raise ConfigError("cache-size: needs a cache-dir")
        if self.cache_size is not None and self.cache_size < CACHE_SIZE_MIN:
            raise ConfigError(f"cache-size: at least {CACHE_SIZE_MIN // MIB} MiB")
        for name in ("file_mode", "dir_mode"):
            if getattr(self, name) & ~0o7777:
                raise ConfigError(f"{name.replace('_', '-')}: at most 7777 (octal)")

    @property
    def writable(self) -> bool:
        return not self.read_only and self.at_ms is None
