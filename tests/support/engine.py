"""Stores of small pieces, so that all durability classes occur with small objects, and short
calls for what tests do with an engine."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from unittest.mock import patch

import msgspec

from engine.config import Profile, StoreConfig
from engine.data.digests import digests_of
from engine.engine import Engine
from engine.ids import UploadId
from engine.meta import keyspace
from engine.meta.kv import ReadTransaction
from engine.meta.records import Checksum
from engine.node.disk import Disk
from engine.opening import open_engine, prepare_store
from engine.types import (
    NO_CONDITIONS,
    Attributes,
    CompletePart,
    Conditions,
    Digests,
    ObjectInfo,
    PartInfo,
)
from tests.support.fdb_server import metadata_for

KIB = 1 << 10
START_MS = 1_700_000_000_000
INLINE_RECORD_MAX, INLINE_MAX, REPLICATED_MAX = 64, 1 * KIB, 4 * KIB
BLOCK_SIZE, CHUNK_SIZE = 4 * KIB, 128 * KIB
DATA_ROWS = (
    keyspace.INLINE,
    keyspace.CHUNK,
    keyspace.PART,
    keyspace.PART_COUNT,
    keyspace.MANIFEST,
    keyspace.GARBAGE,
    keyspace.USAGE,
    keyspace.NULL,
    keyspace.REPAIR,
)
"""Subspaces that are empty once everything was deleted and collected."""


def border_sizes(*, stripe: int = 4 * BLOCK_SIZE) -> list[int]:
    """Return sizes at, below and above every border between classes, stripes and chunks."""
    borders = [INLINE_RECORD_MAX, INLINE_MAX, REPLICATED_MAX, stripe, CHUNK_SIZE, 2 * CHUNK_SIZE]
    return [0, 1, *(border + step for border in borders for step in (-1, 0, 1))]


@contextmanager
def scratch_folder() -> Iterator[Path]:
    """Yield a new folder, in memory where that is possible: syncs of thousands of stores cost
    minutes, and these tests lose no power."""
    memory = Path("/dev/shm")
    with TemporaryDirectory(dir=memory if memory.is_dir() else None) as path:
        yield Path(path)


class ManualClock:
    """A clock that moves by 1 ms with each look, and by ``advance``; so no two moments are one."""

    def __init__(self, now_ms: int = START_MS) -> None:
        self._now_ms = now_ms

    def __call__(self) -> int:
        self._now_ms += 1
        return self._now_ms

    def advance(self, seconds: float) -> None:
        self._now_ms += int(seconds * 1000)


class SeededRandom:
    """``os.urandom``, repeatable."""

    def __init__(self, seed: int = 0) -> None:
        self._random = random.Random(seed)

    def __call__(self, size: int, /) -> bytes:
        return self._random.randbytes(size)


@dataclass
class Folder:
    """A store's folders and settings, and how to open an engine on them again and again."""

    config: StoreConfig
    clock: ManualClock = field(default_factory=ManualClock)
    random: SeededRandom = field(default_factory=SeededRandom)
    disk: Disk | None = None

    async def prepare(self) -> None:
        await prepare_store(self.config, disk=self.disk, clock=self.clock)

    @asynccontextmanager
    async def open(self) -> AsyncIterator[Engine]:
        async with open_engine(
            self.config, disk=self.disk, clock=self.clock, random=self.random
        ) as opened:
            yield opened


def folder_in(path: Path, *, drives: int = 6, profile: str = "4+2", **settings: object) -> Folder:
    """Return a store to be made in ``path``; ``settings`` are fields of ``StoreConfig``."""
    config = StoreConfig(
        data=path / "data",
        meta=metadata_for(path),
        drives=tuple(path / f"drive{number}" for number in range(drives)),
        profile=Profile.parse(profile),
        session_s=3600.0,
        volume_size=4 * KIB * KIB,
        chunk_size=CHUNK_SIZE,
        block_size=BLOCK_SIZE,
        inline_record_max=INLINE_RECORD_MAX,
        inline_max=INLINE_MAX,
        replicated_max=REPLICATED_MAX,
        memory=8 * KIB * KIB,
        reserve=0,
        services=False,
    )
    return Folder(msgspec.structs.replace(config, **settings))


@asynccontextmanager
async def engine_in(
    path: Path, *, drives: int = 6, profile: str = "4+2", **settings: object
) -> AsyncIterator[Engine]:
    """Make a store in ``path`` and open it."""
    folder = folder_in(path, drives=drives, profile=profile, **settings)
    await folder.prepare()
    async with folder.open() as opened:
        yield opened


@contextmanager
def part_size_min(size: int) -> Iterator[None]:
    """Let parts be as small as ``size`` bytes while the context lasts."""
    with patch("engine.completion.PART_SIZE_MIN", size):
        yield


class BytesSource:
    """Bytes to store; ``before_end`` is called once all of them were taken."""

    def __init__(self, data: bytes, before_end: Callable[[], None] = lambda: None) -> None:
        self._rest = memoryview(data)
        self._before_end = before_end

    async def readinto(self, buffer: memoryview) -> int:
        if not self._rest:
            self._before_end()
        size = min(len(buffer), len(self._rest))
        buffer[:size] = self._rest[:size]
        self._rest = self._rest[size:]
        return size


def pattern(size: int, seed: int = 0) -> bytes:
    """Return bytes of which no two blocks are alike."""
    return random.Random(f"{size} {seed}").randbytes(size)


def keep_crc64(digests: Digests) -> list[Checksum]:
    return [Checksum(algorithm="CRC64NVME", value=digests["CRC64NVME"])]


CRC64 = frozenset({"CRC64NVME"})


def crc64(data: bytes) -> bytes:
    return digests_of(data, ("CRC64NVME",))["CRC64NVME"]


async def put(
    opened: Engine,
    bucket: str,
    key: str,
    data: bytes,
    *,
    attributes: Attributes | None = None,
    conditions: Conditions = NO_CONDITIONS,
) -> ObjectInfo:
    return await opened.put(
        bucket,
        key,
        BytesSource(data),
        size=len(data),
        algorithms=CRC64,
        attributes=attributes or Attributes(),
        check=keep_crc64,
        conditions=conditions,
    )


async def read(
    opened: Engine,
    bucket: str,
    key: str,
    *,
    version_id: str | None = None,
    first: int = 0,
    end: int | None = None,
) -> bytes:
    """Return the bytes ``first`` to ``end`` (exclusive) of a version."""
    async with await opened.open(bucket, key, version_id=version_id) as found:
        stream = await found.stream(first, found.info.size if end is None else end)
        try:
            return b"".join([bytes(buffer) async for buffer in stream])
        finally:
            await stream.aclose()


async def put_part(
    opened: Engine, bucket: str, key: str, upload_id: UploadId, number: int, data: bytes
) -> PartInfo:
    return await opened.put_part(
        bucket,
        key,
        upload_id,
        number,
        BytesSource(data),
        size=len(data),
        algorithms=CRC64,
        check=keep_crc64,
    )


async def upload(opened: Engine, bucket: str, key: str, parts: list[bytes]) -> ObjectInfo:
    """Store an object by a multipart upload with parts 1, 2, ..."""
    info = await opened.create_upload(bucket, key, attributes=Attributes())
    done = [
        await put_part(opened, bucket, key, info.upload_id, number, data)
        for number, data in enumerate(parts, 1)
    ]
    return await opened.complete_upload(
        bucket, key, info.upload_id, [CompletePart(part.number, part.etag, []) for part in done]
    )


async def count_rows(opened: Engine, prefix: bytes) -> int:
    async def body(tr: ReadTransaction) -> int:
        return len(await tr.get_range(prefix, keyspace.after_prefix(prefix)))

    return await opened.store.db.read(body)


async def data_rows(opened: Engine) -> dict[bytes, int]:
    """Return how many rows are left in each subspace of ``DATA_ROWS`` that is not empty."""
    counts = {prefix: await count_rows(opened, prefix) for prefix in DATA_ROWS}
    return {prefix: count for prefix, count in counts.items() if count}


async def count_fragments(opened: Engine) -> int:
    """Return how many fragments all drives hold, owned or not."""
    count = 0
    for node_id in opened.store.pool.ids():
        node = opened.store.pool.get(node_id)
        if node is not None:
            count += len(await node.list(b"", 1_000_000))
    return count
