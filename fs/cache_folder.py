"""The folder of the disk cache: blocks of versions in files, verified when read, bounded in size.

    DIR/lock                     held by the one mount that uses the folder
    DIR/blocks-1/XX/DATAID-SEGMENT

A file holds a run of an object's blocks, sparsely:

====== ============= ==========================================================================
offset bytes         what
====== ============= ==========================================================================
0      32 per block  keyed BLAKE3 of the block and its place; zeros: the block is not here
4096   BLOCK_SIZE    of each block; the last one of an object may be shorter
====== ============= ==========================================================================

The name says which bytes these are for ever: a version's data id is never used again, so nothing
here is ever stale. A block is written before its hash, and nothing is synced: after a crash the
hash of a torn block does not fit, and the file is dropped when that is found. Losing the folder
costs nothing but time.

Files used longest ago go first, approximately: of a few taken at random, the one whose time of
modification (set when it is used) is the oldest. So no index is kept in memory, however large the
folder.

Concurrency: everything here blocks, and may be called from any thread. ``_lock`` guards the table
of open files and the sums; it is never held during a read or write of blocks.
"""

from __future__ import annotations

import fcntl
import os
import random
import threading
import time
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import msgspec
from blake3 import blake3

from engine.errors import ConfigError
from fs.options import CACHE_SIZE_MIN
from fs.windows import WINDOW_SIZE

BLOCK_SIZE = WINDOW_SIZE
HASH_SIZE = 32
HEAD_SIZE = 4096
SEGMENT_BLOCKS = 64
"""Blocks of a file: 16 MiB. Eviction takes whole files."""

SIZE_DEFAULT_MAX = 10 << 30
"""Without a size given: so much, or a tenth of the file system if that is less."""

OPEN_MAX = 128
SHARDS = 256
SAMPLE = 16
SAMPLE_OF_SHARD = 64
TOUCH_S = 30.0
"""A file that is used all the time gets a new time so often."""

BLOCKS = "blocks-1"
_KEY = b"Lodestore mount's cache, block 1"
_ABSENT = bytes(HASH_SIZE)


class Body(NamedTuple):
    """Which bytes: those of one version, for ever."""

    data_id: bytes
    size: int

    def length(self, number: int) -> int:
        """Return the bytes of a block."""
        return min(BLOCK_SIZE, self.size - number * BLOCK_SIZE)

    @property
    def blocks(self) -> int:
        return -(-self.size // BLOCK_SIZE)


class Block(NamedTuple):
    """A block to be kept."""

    body: Body
    number: int
    data: memoryview


class FolderStats(msgspec.Struct):
    """What happened to the folder since it was taken."""

    stored: int = 0
    """Blocks."""
    damaged: int = 0
    """Blocks that were not what they should be, and were dropped."""
    evicted: int = 0
    """Files."""


class _Segment:
    """An open file. ``hashes`` is what its head says."""

    __slots__ = ("accounted", "descriptor", "gone", "hashes", "path", "touched_at", "users")

    def __init__(self, path: Path, descriptor: int) -> None:
        self.path = path
        self.descriptor = descriptor
        head = os.pread(descriptor, HASH_SIZE * SEGMENT_BLOCKS, 0)
        self.hashes = bytearray(head.ljust(HASH_SIZE * SEGMENT_BLOCKS, b"\0"))
        self.accounted = os.fstat(descriptor).st_blocks * 512
        self.users = 0
        self.touched_at = 0.0
        self.gone = False

    def hash_of(self, index: int) -> bytes:
        return bytes(self.hashes[index * HASH_SIZE : (index + 1) * HASH_SIZE])

    def has(self, index: int) -> bool:
        return self.hash_of(index) != _ABSENT


def hash_of(body: Body, number: int, data: memoryview) -> bytes:
    """Return the hash that proves that ``data`` is this very block."""
    hasher = blake3(data, key=_KEY)
    place = body.data_id + body.size.to_bytes(8, "big") + number.to_bytes(8, "big")
    return hasher.update(place).digest()


class CacheFolder:
    """Made once per mount; ``close`` it."""

    def __init__(self, path: Path, size_max: int | None = None) -> None:
        """Take the folder, made if need be. ``size_max`` None: a sensible part of the disk.

        Raises: ConfigError: no folder, not writable, too small, or in use by another mount.
        """
        self._path = path
        self._base = path / BLOCKS
        try:
            self._base.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._lock_file = os.open(path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise ConfigError(f"cache folder {path}: {error.strerror}") from error
        try:
            fcntl.flock(self._lock_file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self._lock_file)
            raise ConfigError(
                f"cache folder {path}: in use by another mount; give each mount its own"
            ) from None
        self.size_max = size_max if size_max is not None else self._size_default()
        self.stats = FolderStats()
        self._lock = threading.Lock()
        self._open: OrderedDict[tuple[bytes, int], _Segment] = OrderedDict()
        self._used = 0
        self._random = random.Random()

    def _size_default(self) -> int:
        found = os.statvfs(self._base)
        return min(SIZE_DEFAULT_MAX, max(CACHE_SIZE_MIN, found.f_blocks * found.f_frsize // 10))

    @property
    def used(self) -> int:
        """Bytes of the disk that the blocks take."""
        return self._used

    def scan(self) -> None:
        """Find out what is there, once, before the first ``store``; drop what is too much."""
        used = 0
        for shard in range(SHARDS):
            folder = self._base / f"{shard:02x}"
            folder.mkdir(mode=0o700, exist_ok=True)
            with os.scandir(folder) as entries:
                for entry in entries:
                    used += entry.stat(follow_symlinks=False).st_blocks * 512
        with self._lock:
            self._used += used
        self._make_room(0)

    def close(self) -> None:
        with self._lock:
            for segment in self._open.values():
                segment.gone = True
                if not segment.users:
                    os.close(segment.descriptor)
            self._open.clear()
        os.close(self._lock_file)

    # Reading

    def read(self, body: Body, number: int, into: memoryview) -> int:
        """Fill ``into`` with blocks from ``number`` on, as many as are here in a row and fit as a
        whole; return how many bytes that are. Raises: OSError."""
        done = 0
        while number < body.blocks:
            index = number % SEGMENT_BLOCKS
            with self._segment(body, number // SEGMENT_BLOCKS) as segment:
                if segment is None:
                    return done
                while index < SEGMENT_BLOCKS and number < body.blocks:
                    length = body.length(number)
                    if done + length > len(into) or not segment.has(index):
                        return done
                    if not self._read_block(segment, body, number, into[done : done + length]):
                        return done
                    done += length
                    number, index = number + 1, index + 1
        return done

    def _read_block(self, segment: _Segment, body: Body, number: int, into: memoryview) -> bool:
        """Read and verify a block; what is damaged is dropped with its whole file."""
        index = number % SEGMENT_BLOCKS
        expected = segment.hash_of(index)
        count = os.preadv(segment.descriptor, [into], HEAD_SIZE + index * BLOCK_SIZE)
        if count == len(into) and hash_of(body, number, into) == expected:
            self._touch(segment)
            return True
        self.stats.damaged += 1
        self._drop(segment.path)
        return False

    def _touch(self, segment: _Segment) -> None:
        now = time.monotonic()
        if now - segment.touched_at > TOUCH_S:
            segment.touched_at = now
            os.utime(segment.descriptor)

    def next_run(self, body: Body, number: int, end: int, length: int) -> int:
        """Return where ``length`` blocks in a row are here, from block ``number`` on; or as many as
        there are before ``end``; or ``end``. Raises: OSError."""
        run = 0
        while number < end:
            with self._segment(body, number // SEGMENT_BLOCKS) as segment:
                stop = min(end, (number // SEGMENT_BLOCKS + 1) * SEGMENT_BLOCKS)
                while number < stop:
                    here = segment is not None and segment.has(number % SEGMENT_BLOCKS)
                    run = run + 1 if here else 0
                    number += 1
                    if run == length:
                        return number - run
        return end - run

    # Writing

    def store(self, blocks: Sequence[Block]) -> None:
        """Keep blocks, in place of those used longest ago. One thread at a time.

        Raises: OSError; then some are kept.
        """
        self._make_room(len(blocks) * (BLOCK_SIZE + HEAD_SIZE))
        for block in blocks:
            with self._segment(block.body, block.number // SEGMENT_BLOCKS, make=True) as segment:
                if segment is None or segment.has(block.number % SEGMENT_BLOCKS):
                    continue
                try:
                    self._write_block(segment, block)
                finally:
                    self._account(segment)
            self.stats.stored += 1

    def _write_block(self, segment: _Segment, block: Block) -> None:
        index = block.number % SEGMENT_BLOCKS
        digest = hash_of(block.body, block.number, block.data)
        _write_all(segment.descriptor, block.data, HEAD_SIZE + index * BLOCK_SIZE)
        _write_all(segment.descriptor, memoryview(digest), index * HASH_SIZE)
        segment.hashes[index * HASH_SIZE : (index + 1) * HASH_SIZE] = digest
        segment.touched_at = time.monotonic()

    def _account(self, segment: _Segment) -> None:
        size = os.fstat(segment.descriptor).st_blocks * 512
        with self._lock:
            if not segment.gone:
                self._used += size - segment.accounted
                segment.accounted = size

    def _make_room(self, size: int) -> None:
        while self._used + size > self.size_max:
            victim = self._victim()
            if victim is None:
                return
            if self._drop(victim):
                self.stats.evicted += 1

    def _victim(self) -> Path | None:
        """Return the file used longest ago of a few; None: there is none."""
        oldest: tuple[float, Path] | None = None
        seen = 0
        for shard in self._random.sample(range(SHARDS), SHARDS):
            folder = self._base / f"{shard:02x}"
            try:
                with os.scandir(folder) as entries:
                    for entry, _ in zip(entries, range(SAMPLE_OF_SHARD), strict=False):
                        found = entry.stat(follow_symlinks=False).st_mtime
                        seen += 1
                        if oldest is None or found < oldest[0]:
                            oldest = found, Path(entry.path)
            except FileNotFoundError:
                continue
            if seen >= SAMPLE:
                break
        return None if oldest is None else oldest[1]

    def _drop(self, path: Path) -> bool:
        """Remove a file; who reads it reads on. Return whether it was there."""
        try:
            size = os.stat(path, follow_symlinks=False).st_blocks * 512
            os.unlink(path)
        except FileNotFoundError:
            return False
        with self._lock:
            self._used -= size
            for key, segment in self._open.items():
                if segment.path == path:
                    self._used += size - segment.accounted
                    self._forget(key)
                    break
        return True

    # Open files

    @contextmanager
    def _segment(
        self, body: Body, segment_number: int, *, make: bool = False
    ) -> Iterator[_Segment | None]:
        """Give the open file of a segment; None: there is none (``make``: it is made)."""
        key = (body.data_id, segment_number)
        with self._lock:
            segment = self._open.get(key)
            if segment is None:
                segment = self._opened(key, make=make)
            else:
                self._open.move_to_end(key)
            if segment is not None:
                segment.users += 1
        try:
            yield segment
        finally:
            if segment is not None:
                with self._lock:
                    segment.users -= 1
                    if segment.gone and not segment.users:
                        os.close(segment.descriptor)

    def _opened(self, key: tuple[bytes, int], *, make: bool) -> _Segment | None:
        data_id, number = key
        shard = (data_id[-1] + number) % SHARDS
        path = self._base / f"{shard:02x}" / f"{data_id.hex()}-{number:x}"
        flags = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | (os.O_CREAT if make else 0)
        try:
            descriptor = os.open(path, flags, 0o600)
        except FileNotFoundError:
            if not make:
                return None
            path.parent.mkdir(mode=0o700, exist_ok=True)
            descriptor = os.open(path, flags, 0o600)
        try:
            segment = _Segment(path, descriptor)
        except BaseException:
            os.close(descriptor)
            raise
        self._open[key] = segment
        if len(self._open) > OPEN_MAX:
            # One that is used stays: what is written to it has to be accounted for.
            unused = next((key for key, other in self._open.items() if not other.users), key)
            if unused != key:
                self._forget(unused)
        return segment

    def _forget(self, key: tuple[bytes, int]) -> None:
        """Close a file, now or when its last user is done. Holds the lock."""
        segment = self._open.pop(key)
        segment.gone = True
        if not segment.users:
            os.close(segment.descriptor)


def _write_all(descriptor: int, data: memoryview, offset: int) -> None:
    while data:
        count = os.pwrite(descriptor, data, offset)
        offset += count
        data = data[count:]
