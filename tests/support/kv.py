"""The implementations of the metadata store that the contract suite runs over."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import TypeAlias

from engine.meta.embedded import open_embedded
from engine.meta.kv import Database, Transaction
from engine.meta.memory import MemoryDatabase

OpenKv: TypeAlias = Callable[[Path], AbstractAsyncContextManager[Database]]
"""Opens the store that belongs to a folder; empty the first time."""


@asynccontextmanager
async def _memory(_folder: Path) -> AsyncIterator[Database]:
    yield MemoryDatabase()


@asynccontextmanager
async def _chaotic(_folder: Path) -> AsyncIterator[Database]:
    yield MemoryDatabase(random.Random(7))


@asynccontextmanager
async def _embedded(folder: Path) -> AsyncIterator[Database]:
    async with open_embedded(folder / "meta.db") as database:
        yield database


IMPLEMENTATIONS: dict[str, OpenKv] = {
    "memory": _memory,
    "memory-chaos": _chaotic,
    "embedded": _embedded,
}


async def put(db: Database, **pairs: bytes) -> None:
    """Set each name to its value in one transaction."""

    async def body(tr: Transaction) -> None:
        for name, value in pairs.items():
            tr.set(name.encode(), value)

    await db.run(body)


async def fetch(db: Database, key: bytes) -> bytes | None:
    return await db.read(lambda tr: tr.get(key))


async def fetch_range(db: Database, begin: bytes, end: bytes) -> list[tuple[bytes, bytes]]:
    return await db.read(lambda tr: tr.get_range(begin, end))


def counter(value: bytes | None) -> int:
    """Return what ``add`` has counted."""
    return int.from_bytes(value or b"", "little", signed=True)
