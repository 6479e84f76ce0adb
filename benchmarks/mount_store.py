"""What the file systems show: one large object, huge listings, and many small objects."""

from __future__ import annotations

import os
from pathlib import Path

import msgspec
import trio

from benchmarks.measure import MIB
from benchmarks.rows import write_rows
from engine.config import StoreConfig
from engine.engine import Engine
from engine.opening import open_engine
from engine.types import NO_CONDITIONS, Attributes

LARGE, FLAT, TREE, SMALL = "large", "flat", "tree", "small"
"""Buckets."""

PER_FOLDER = 100
SMALL_SIZE = 4096
WRITERS = 32


class Shape(msgspec.Struct, frozen=True):
    """How much there is to see."""

    file_size: int
    flat: int
    """Objects in one folder."""
    tree: int
    """Objects in folders of a hundred."""
    small: int
    """Objects with bytes to read, in folders of a hundred."""


class _Repeated:
    """A source of random bytes, the same ones every MiB."""

    def __init__(self, size: int) -> None:
        self._left = size
        self._piece = memoryview(os.urandom(MIB))

    async def readinto(self, buffer: memoryview) -> int:
        size = min(len(buffer), self._left, MIB)
        buffer[:size] = self._piece[:size]
        self._left -= size
        return size


def fill(data: Path, shape: Shape) -> None:
    """Make the buckets in a store that is being served."""
    trio.run(_put_objects, data, shape)
    write_rows(data, FLAT, (f"folder/file-{n:08d}.bin" for n in range(shape.flat)), b"listed")
    write_rows(data, TREE, (_in_tree(n) for n in range(shape.tree)), b"listed")


def _in_tree(number: int) -> str:
    return f"folder/{number // PER_FOLDER:04d}/file-{number:08d}.bin"


async def _put_objects(data: Path, shape: Shape) -> None:
    async with open_engine(StoreConfig(data=data, services=False)) as engine:
        for bucket in (LARGE, FLAT, TREE, SMALL):
            await engine.create_bucket(bucket, owner="")
        await _put(engine, LARGE, "file", shape.file_size)
        numbers = iter(range(shape.small))

        async def put_some() -> None:
            for number in numbers:
                await _put(engine, SMALL, _in_tree(number), SMALL_SIZE)

        async with trio.open_nursery() as nursery:
            for _ in range(WRITERS):
                nursery.start_soon(put_some)


async def _put(engine: Engine, bucket: str, key: str, size: int) -> None:
    await engine.put(
        bucket,
        key,
        _Repeated(size),
        size=size,
        algorithms=frozenset(),
        attributes=Attributes(),
        check=lambda digests: [],
        conditions=NO_CONDITIONS,
    )


def drop_drives(data: Path) -> None:
    """Let the kernel forget what the drives of the store hold."""
    os.sync()
    for path in data.parent.glob("drive*/**/*"):
        if path.is_file():
            descriptor = os.open(path, os.O_RDONLY)
            try:
                os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            finally:
                os.close(descriptor)


def warm_drives(data: Path) -> None:
    """Read all that the drives of the store hold, so that it is in the page cache."""
    buffer = bytearray(MIB)
    for path in data.parent.glob("drive*/**/*"):
        if path.is_file():
            with path.open("rb", buffering=0) as file:
                while file.readinto(buffer):
                    pass
