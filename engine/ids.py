"""Identifiers, all of them bytes that sort by the time they were made."""

from __future__ import annotations

from typing import NewType, Protocol

BucketId = NewType("BucketId", bytes)
"""8 bytes; a bucket that is deleted and made again gets another one."""

DataId = NewType("DataId", bytes)
"""16 bytes, one for the bytes of each version or part: 6 of time in ms, 10 random."""

UploadId = NewType("UploadId", bytes)
"""16 bytes, made like a DataId."""

SessionId = NewType("SessionId", bytes)
"""10 bytes: 6 of time in ms, 4 random. One process at a time writes under it."""

ChunkId = NewType("ChunkId", bytes)
"""16 bytes: the SessionId under which the chunk was written, then a 6 byte counter."""

FragmentId = NewType("FragmentId", bytes)
"""17 bytes: a ChunkId and the fragment's index."""

NodeId = NewType("NodeId", bytes)
"""8 random bytes; names a slot for fragments and stays when the drive in it is replaced."""

MemberId = NewType("MemberId", bytes)
"""8 random bytes; names a ``lode node`` daemon, wherever it listens."""

SESSION_ID_SIZE = 10
CHUNK_ID_SIZE = 16
FRAGMENT_ID_SIZE = 17
NODE_ID_SIZE = 8


class Clock(Protocol):
    def __call__(self) -> int:
        """Return the wall-clock time in ms since 1970, never less than the call before."""


class Random(Protocol):
    def __call__(self, size: int, /) -> bytes:
        """Return ``size`` random bytes, like ``os.urandom``."""


def timed_id(clock: Clock, random: Random, size: int = 16) -> bytes:
    """Return 6 bytes of ``clock()`` and ``size - 6`` random ones."""
    return clock().to_bytes(6, "big") + random(size - 6)


def fragment_id(chunk_id: ChunkId, index: int) -> FragmentId:
    return FragmentId(chunk_id + index.to_bytes(1, "big"))


def chunk_of(fragment: FragmentId) -> tuple[ChunkId, int]:
    """Return the chunk's id and the fragment's index in it."""
    return ChunkId(fragment[:CHUNK_ID_SIZE]), fragment[CHUNK_ID_SIZE]


def session_of(chunk_id: bytes) -> SessionId:
    return SessionId(chunk_id[:SESSION_ID_SIZE])
