"""A store that nobody may change for a while: its metadata is being copied, or has moved.

One row says so. Every commit of every process reads it in its own transaction, so from the moment
at which it is set nothing is committed any more, however long a transaction was under way. Reading
goes on. Sessions alone are renewed past it: they say which processes live, and a copy takes them
last.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Final, TypeVar

from engine.errors import StoreReadOnly
from engine.meta import keyspace
from engine.meta.kv import Database, ReadTransaction, Transaction

T = TypeVar("T")

MOVED: Final = "moved to "
"""How the row begins once the metadata is elsewhere, for good; the place follows."""


async def refuse_if_read_only(tr: ReadTransaction) -> None:
    """Raises: StoreReadOnly."""
    row = await tr.get_cached(keyspace.READ_ONLY)
    if row is not None:
        raise StoreReadOnly(row.decode())


class GuardedDatabase:
    """``engine.meta.kv.Database`` whose transactions are refused while the store is read-only."""

    __slots__ = ("_db", "aclose", "watch")

    def __init__(self, db: Database) -> None:
        self._db = db
        self.watch = db.watch
        self.aclose = db.aclose

    async def read(self, body: Callable[[ReadTransaction], Awaitable[T]]) -> T:
        return await self._db.read(body)

    async def run(self, body: Callable[[Transaction], Awaitable[T]]) -> T:
        """Raises: StoreReadOnly, also when the body would have changed nothing."""

        async def guarded(tr: Transaction) -> T:
            await refuse_if_read_only(tr)
            return await body(tr)

        return await self._db.run(guarded)


async def set_read_only(db: Database, why: str) -> None:
    """Let no process change the store from now on; ``why`` is what they are told."""

    async def body(tr: Transaction) -> None:
        tr.set(keyspace.READ_ONLY, why.encode())

    await db.run(body)


async def clear_read_only(db: Database) -> bool:
    """Let the store be changed again; return whether it was read-only."""

    async def body(tr: Transaction) -> bool:
        was = await tr.get(keyspace.READ_ONLY) is not None
        tr.clear(keyspace.READ_ONLY)
        return was

    return await db.run(body)


async def read_only_reason(db: Database) -> str | None:
    """Return why the store is read-only, None if it is not."""

    async def body(tr: ReadTransaction) -> bytes | None:
        return await tr.get(keyspace.READ_ONLY)

    row = await db.read(body)
    return None if row is None else row.decode()
