"""Walking whole subspaces in pages: memory stays flat, and the event loop is yielded to."""

from __future__ import annotations

from collections.abc import AsyncIterator

import trio

from engine.meta import keyspace
from engine.meta.kv import Database, ReadTransaction

PAGE = 500


async def scan(
    db: Database, begin: bytes, end: bytes, *, page: int = PAGE
) -> AsyncIterator[tuple[bytes, bytes]]:
    """Yield the pairs of a range; each page is a snapshot of its own."""
    while True:

        async def body(tr: ReadTransaction, begin: bytes = begin) -> list[tuple[bytes, bytes]]:
            return await tr.get_range(begin, end, limit=page)

        rows = await db.read(body)
        for row in rows:
            yield row
        if len(rows) < page:
            return
        begin = keyspace.after(rows[-1][0])
        await trio.lowlevel.checkpoint()


def scan_prefix(
    db: Database, prefix: bytes, *, page: int = PAGE
) -> AsyncIterator[tuple[bytes, bytes]]:
    return scan(db, prefix, keyspace.after_prefix(prefix), page=page)
