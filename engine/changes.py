"""The change feed: what changed, in commit order, for caches that must be told.

Every transaction that changes a key appends a row under ``F`` and bumps a counter, which is what
followers watch. Changes of one transaction are in the order of their keys; of a key that it
changes twice there is the last. Rows are kept for an hour (``services.collector``); who was away
for longer gets ``FeedLost`` and starts afresh.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import NamedTuple

from engine.errors import ConflictError
from engine.meta import keyspace
from engine.meta.kv import ReadTransaction
from engine.meta.records import FeedRecord, decode_feed
from engine.store import Store

PAGE = 500


class FeedLost(ConflictError):
    """Changes were dropped before this follower saw them: whatever it caches may be stale."""


class Cursor(NamedTuple):
    """A place in the feed: behind the row ``key``."""

    key: bytes


class Changes:
    def __init__(self, store: Store) -> None:
        self._store = store

    async def latest(self) -> Cursor:
        """Return the place behind everything that is committed now."""

        async def body(tr: ReadTransaction) -> Cursor:
            rows = await tr.get_range(
                keyspace.FEED, keyspace.after_prefix(keyspace.FEED), limit=1, reverse=True
            )
            return Cursor(rows[0][0] if rows else keyspace.FEED)

        return await self._store.db.read(body)

    async def read(self, cursor: Cursor, *, limit: int = PAGE) -> tuple[list[FeedRecord], Cursor]:
        """Return up to ``limit`` changes behind ``cursor``, and the cursor behind them.

        Raises: FeedLost.
        """

        async def body(tr: ReadTransaction) -> list[tuple[bytes, bytes]]:
            if cursor.key != keyspace.FEED and await tr.get(cursor.key) is None:
                raise FeedLost
            begin = keyspace.after(cursor.key)
            return await tr.get_range(begin, keyspace.after_prefix(keyspace.FEED), limit=limit)

        rows = await self._store.db.read(body)
        if not rows:
            return [], cursor
        return [decode_feed(row) for _, row in rows], Cursor(rows[-1][0])

    async def follow(self, cursor: Cursor) -> AsyncGenerator[tuple[list[FeedRecord], Cursor], None]:
        """Yield changes behind ``cursor`` as any process commits them; never ends; close it.

        Raises: FeedLost, Unavailable.
        """
        db = self._store.db
        while True:
            head = await self._head()
            changes, cursor = await self.read(cursor)
            if changes:
                yield changes, cursor
            else:
                await db.watch(keyspace.FEED_HEAD, head)

    async def _head(self) -> bytes | None:
        async def body(tr: ReadTransaction) -> bytes | None:
            return await tr.get(keyspace.FEED_HEAD)

        return await self._store.db.read(body)
