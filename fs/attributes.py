"""What ``stat`` shows of an object or a directory.

Kept in user metadata under the names that rclone uses with ``--metadata``, so that what one of
them writes the other shows: ``mtime`` (seconds since 1970 with a fraction), ``mode`` (octal),
``uid`` and ``gid`` (decimal). s3fs writes ``mode`` in decimal; that is understood as well.
A symbolic link is an object with mode 0120777 whose bytes are the target.
"""

from __future__ import annotations

import math
import stat
from collections.abc import Sequence
from typing import NamedTuple, Protocol

import pyfuse3

from fs.options import MountOptions

BLOCK_SIZE = 4096
BLKSIZE = 1 << 20
"""What programs should read and write at once."""

_NS = 1_000_000_000
_TIME_NS_MAX = _NS << 40
"""Some 34,000 years: further than any clock, and within what the kernel takes."""


class Stat(NamedTuple):
    mode: int
    size: int
    mtime_ns: int
    ctime_ns: int
    uid: int
    gid: int

    @property
    def is_symlink(self) -> bool:
        return stat.S_ISLNK(self.mode)


class Described(Protocol):
    """A version as a listing or a record shows it."""

    @property
    def size(self) -> int: ...
    @property
    def modified_ms(self) -> int: ...
    @property
    def metadata(self) -> list[tuple[str, str]]: ...


class AttributeReader:
    """Turns versions into ``Stat`` with the mount's defaults."""

    def __init__(self, options: MountOptions) -> None:
        self._uid = options.uid
        self._gid = options.gid
        self._file_mode = stat.S_IFREG | options.file_mode
        self._dir_mode = stat.S_IFDIR | options.dir_mode

    def plain(self, size: int, modified_ms: int) -> Stat:
        """Return the attributes of a file of which no more is known."""
        modified_ns = modified_ms * 1_000_000
        return Stat(self._file_mode, size, modified_ns, modified_ns, self._uid, self._gid)

    def of_file(self, version: Described) -> Stat:
        """Return the attributes of a file or symbolic link."""
        if not version.metadata:
            return self.plain(version.size, version.modified_ms)
        return self._read(version, self._file_mode, version.size, (stat.S_IFREG, stat.S_IFLNK))

    def of_directory(self, marker: Described | None, created_ms: int) -> Stat:
        """Return the attributes of a directory; without a marker they are the defaults, and the
        time is ``created_ms``."""
        if marker is None:
            created_ns = created_ms * 1_000_000
            return Stat(self._dir_mode, 0, created_ns, created_ns, self._uid, self._gid)
        return self._read(marker, self._dir_mode, 0, (stat.S_IFDIR,))

    def _read(self, version: Described, mode: int, size: int, types: tuple[int, ...]) -> Stat:
        ctime_ns = mtime_ns = version.modified_ms * 1_000_000
        uid, gid = self._uid, self._gid
        for name, value in version.metadata:
            match name:
                case "mtime":
                    mtime_ns = parse_time(value, mtime_ns)
                case "mode":
                    mode = parse_mode(value, mode, types)
                case "uid":
                    uid = _parse_id(value, uid)
                case "gid":
                    gid = _parse_id(value, gid)
                case _:
                    pass
        return Stat(mode, size, mtime_ns, ctime_ns, uid, gid)


def parse_time(text: str, default_ns: int) -> int:
    """Return the ns of ``1700000000.123456789``, exact to the last digit."""
    whole, _, fraction = text.partition(".")
    sign = -1 if whole.startswith("-") else 1
    if whole.lstrip("-").isdecimal() and whole.isascii() and (not fraction or _is_digits(fraction)):
        nanoseconds = int(whole) * _NS + sign * int(fraction[:9].ljust(9, "0"))
    else:
        try:
            seconds = float(text)
        except ValueError:
            return default_ns
        if not math.isfinite(seconds) or abs(seconds) > _TIME_NS_MAX / _NS:
            return default_ns
        nanoseconds = int(seconds * _NS)
    return nanoseconds if abs(nanoseconds) < _TIME_NS_MAX else default_ns


def kept_time(nanoseconds: int) -> int:
    """Return the time that can be kept next to the one wanted."""
    return max(1 - _TIME_NS_MAX, min(nanoseconds, _TIME_NS_MAX - 1))


def format_time(nanoseconds: int) -> str:
    """Return seconds with a fraction of nine digits, as rclone writes them."""
    sign = "-" if nanoseconds < 0 else ""
    whole, fraction = divmod(abs(nanoseconds), _NS)
    return f"{sign}{whole}.{fraction:09d}"


def _is_digits(text: str) -> bool:
    return text.isascii() and text.isdecimal()


def parse_mode(text: str, default: int, types: Sequence[int]) -> int:
    """Return the mode of ``100644`` (octal, rclone) or ``33188`` (decimal, s3fs).

    ``types`` are the file types that it may have; the first is meant when it names none.
    """
    if not _is_digits(text) or len(text) > 7:
        return default
    candidates = [int(text)]
    if not set(text) & {"8", "9"}:
        candidates.insert(0, int(text, 8))
    for mode in candidates:
        kind = stat.S_IFMT(mode)
        if mode < 1 << 16 and (kind in types or kind == 0):
            return mode | (kind or types[0])
    return default


def format_mode(mode: int) -> str:
    return f"{mode:o}"


def _parse_id(text: str, default: int) -> int:
    return int(text) if _is_digits(text) and int(text) < 1 << 32 else default


def fill(
    entry: pyfuse3.EntryAttributes, inode: int, stat_: Stat, timeout_s: float
) -> pyfuse3.EntryAttributes:
    """Write attributes into what pyfuse3 hands to the kernel, and return it."""
    entry.st_ino = inode
    entry.st_mode = stat_.mode
    entry.st_size = stat_.size
    entry.st_blocks = (stat_.size + 511) >> 9
    entry.st_blksize = BLKSIZE
    entry.st_uid = stat_.uid
    entry.st_gid = stat_.gid
    entry.st_nlink = 2 if stat.S_ISDIR(stat_.mode) else 1
    entry.st_mtime_ns = stat_.mtime_ns
    entry.st_atime_ns = stat_.mtime_ns
    entry.st_ctime_ns = stat_.ctime_ns
    entry.entry_timeout = timeout_s
    entry.attr_timeout = timeout_s
    return entry
