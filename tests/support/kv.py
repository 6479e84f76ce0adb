"""The implementations of the metadata store that the contract suite runs over."""

from __future__ import annotations

import itertools
import os
import random
import signal
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import TypeAlias

import apsw
import trio

from engine.meta.embedded import EmbeddedOptions, open_embedded
from engine.meta.fdb import open_fdb
from engine.meta.kv import Database, Transaction
from engine.meta.memory import MemoryDatabase
from engine.meta.sqlite_lock import WriteLock
from tests.support import fdb_server

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


@asynccontextmanager
async def _fdb(folder: Path) -> AsyncIterator[Database]:
    async with open_fdb(fdb_server.location(folder)) as database:
        yield database


IMPLEMENTATIONS: dict[str, OpenKv] = {
    "memory": _memory,
    "memory-chaos": _chaotic,
    "embedded": _embedded,
    "fdb": _fdb,
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


class FaultFile(apsw.VFSFile):
    """A file of ``FaultVfs``."""

    def __init__(self, owner: FaultVfs, name: object, flags: list[int]) -> None:
        self._owner = owner
        self._kind = "log" if flags[0] & apsw.SQLITE_OPEN_WAL else "database"
        super().__init__("", name, flags)

    def xRead(self, amount: int, offset: int) -> bytes:
        self._owner.before_read()
        return super().xRead(amount, offset)

    def xWrite(self, data: bytes, offset: int) -> None:
        self._owner.before("write", self._kind)
        super().xWrite(data, offset)

    def xSync(self, flags: int) -> None:
        self._owner.before("sync", self._kind)
        super().xSync(flags)
        self._owner.before("synced", self._kind)


class FaultVfs(apsw.VFS):
    """The operating system's files, with a hook that may raise an ``apsw.Error`` or kill.

    ``before(event, kind)``: events ``write``, ``sync`` and (after it) ``synced``; kinds
    ``database`` and ``log``. Call ``unregister`` in the end.
    """

    def __init__(self, name: str) -> None:
        self.before: Callable[[str, str], None] = lambda event, kind: None
        self.before_read: Callable[[], None] = lambda: None
        super().__init__(name, "")

    def xOpen(self, name: object, flags: list[int]) -> FaultFile:
        return FaultFile(self, name, flags)


ROWS_OF_A_WRITE = 3


async def write_forever(db: Database, tag: str, tasks: int = 4) -> None:
    """Commit transactions of three rows and a count, and print the number of each one after."""
    numbers = itertools.count()

    async def one() -> None:
        for number in numbers:

            async def body(tr: Transaction, number: int = number) -> None:
                for row in range(ROWS_OF_A_WRITE):
                    tr.set(b"w/%s/%d/%d" % (tag.encode(), number, row), bytes(100 * number % 5000))
                tr.add(b"count", 1)

            await db.run(body)
            os.write(1, b"%d\n" % number)

    async with trio.open_nursery() as nursery:
        for _ in range(tasks):
            nursery.start_soon(one)


async def check_written(db: Database, acknowledged: dict[str, set[int]]) -> int:
    """Check what ``write_forever`` left, however it ended, and return how many there are."""
    rows: dict[tuple[str, int], int] = {}
    for key, _ in await fetch_range(db, b"w/", b"w0"):
        _, tag, number, _ = key.decode().split("/")
        rows[tag, int(number)] = rows.get((tag, int(number)), 0) + 1
    assert set(rows.values()) <= {ROWS_OF_A_WRITE}, "a transaction is there in part"
    lost = {(tag, n) for tag, numbers in acknowledged.items() for n in numbers} - rows.keys()
    assert not lost, f"acknowledged and gone: {lost}"
    assert counter(await fetch(db, b"count")) == len(rows)
    return len(rows)


async def _main(role: str, path: str, *arguments: str) -> None:
    """What this file does as a process of its own."""
    match role, arguments:
        case "increment", (count,):

            async def increment(tr: Transaction) -> None:
                tr.set(b"n", b"%d" % (int(await tr.get(b"n") or b"0") + 1))
                tr.set_versionstamped_key(b"F", b"", b"")

            async def many() -> None:
                for _ in range(int(count) // 4):
                    await db.run(increment)

            async with open_embedded(Path(path)) as db, trio.open_nursery() as nursery:
                for _ in range(4):
                    nursery.start_soon(many)
        case "write", (tag,):
            async with open_embedded(Path(path), options=SMALL) as db:
                await write_forever(db, tag)
        case "die", (tag, event, kind, count):
            vfs = FaultVfs("dying")
            left = int(count)

            def before(*seen: str) -> None:
                nonlocal left
                left -= seen == (event, kind)
                if not left:
                    os.kill(os.getpid(), signal.SIGKILL)

            async with open_embedded(Path(path), vfs="dying", options=SMALL) as db:
                vfs.before = before
                await write_forever(db, tag)
        case "hold", ():
            lock = WriteLock(Path(path))
            assert lock.acquire_nowait()
            os.write(1, b"held\n")
            sys.stdin.read()
        case _:
            raise ValueError(role)


SMALL = EmbeddedOptions(checkpoint_pages=20, log_pages_max=60, reserve_size=0)
"""Checkpoints all the time, so that deaths and faults hit them too."""


def command(role: str, path: Path, *arguments: str) -> list[str]:
    """Return the command line of a process that plays ``role`` on the store at ``path``."""
    return [sys.executable, "-m", "tests.support.kv", role, str(path), *arguments]


if __name__ == "__main__":
    trio.run(_main, *sys.argv[1:])
