"""Copying all metadata of a store from one database to another: resumable, and verified.

Nobody may use the store meanwhile. The copy goes in key order in bounded transactions; with each
the target's cursor moves on, so a copy that was interrupted goes on where it stopped. While the
cursor is there the target is no store. At the end both sides are read once more and compared, row
by row; only then the cursor is removed.

Left out are the rows of the change feed: they tell running processes what changed, stamps of the
two databases cannot be compared, and no process runs.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import zip_longest
from typing import TypeAlias

from engine.errors import ConfigError, Corrupt
from engine.meta import keyspace
from engine.meta.kv import SYSTEM_PREFIX, Database, ReadTransaction, Transaction
from engine.meta.records import decode_session

PAGE_ROWS = 1000
STEP_BYTES = 500_000
"""Of keys and values in one transaction; FoundationDB likes them below 1 MB."""

STORE_ID = keyspace.setting("store")
"""Id of the store, where several data folders share its metadata, and in backups."""

CURSOR = keyspace.setting("copy")
"""Id of the store (32) and the last key that was copied, while a copy goes on."""

Row: TypeAlias = tuple[bytes, bytes]
Progress: TypeAlias = Callable[[str, int], None]
"""Called with a phase (``copied``, ``compared``) and how many rows it has done."""


async def _page(db: Database, begin: bytes, end: bytes = SYSTEM_PREFIX) -> tuple[list[Row], bytes]:
    """Return rows from ``begin`` on, without those that a copy leaves out, and where the next page
    begins; ``end`` when there is none."""

    async def body(tr: ReadTransaction) -> list[Row]:
        return await tr.get_range(begin, end, limit=PAGE_ROWS, snapshot=True)

    page = await db.read(body)
    following = keyspace.after(page[-1][0]) if len(page) == PAGE_ROWS else end
    return [row for row in page if _is_copied(row[0])], following


def _is_copied(key: bytes) -> bool:
    return key[:1] != keyspace.FEED and key not in (CURSOR, STORE_ID)


async def copy_metadata(
    source: Database, target: Database, store_id: str, *, now_ms: int, progress: Progress
) -> int:
    """Copy and compare everything; return the number of rows.

    Args:
        store_id: 32 characters; a copy that was begun is gone on with for the same store alone.
        now_ms: tells sessions of processes that live from others.
    Raises:
        ConfigError: a process uses the source, or the target holds something else.
        Corrupt: the sides differ: the source was changed meanwhile. Copy into an empty target.
    """
    await check_unused(source, now_ms)
    after = await _begin(target, store_id)
    begin = keyspace.after(after) if after else b""
    done = 0
    while begin != SYSTEM_PREFIX:
        page, begin = await _page(source, begin)
        for step in _steps(page):
            await _copy_step(target, store_id, step)
            done += len(step)
            progress("copied", done)
    count = await _compare(source, target, progress)
    await check_unused(source, now_ms)

    async def end(tr: Transaction) -> None:
        tr.set(STORE_ID, store_id.encode())
        tr.clear(CURSOR)

    await target.run(end)
    return count


async def is_unfinished(db: Database) -> bool:
    """Return whether the database is the target of a copy that has not come to its end."""
    return await db.read(lambda tr: tr.get(CURSOR)) is not None


async def check_unused(source: Database, now_ms: int) -> None:
    """Raise ConfigError if a process has a session in the store."""

    async def body(tr: ReadTransaction) -> list[Row]:
        return await tr.get_range(
            keyspace.SESSION, keyspace.after_prefix(keyspace.SESSION), snapshot=True
        )

    for _, row in await source.read(body):
        session = decode_session(row)
        if session.expires_ms > now_ms and not session.dead:
            raise ConfigError(
                f"the store is in use: process {session.pid} on {session.host}; stop every server, "
                "mount and gateway, or wait a minute if it has died"
            )


async def _begin(target: Database, store_id: str) -> bytes:
    """Return the key behind which to go on."""

    async def body(tr: Transaction) -> bytes:
        cursor = await tr.get(CURSOR)
        if cursor is None:
            if await tr.get_range(b"", SYSTEM_PREFIX, limit=1):
                raise ConfigError("the target holds metadata already; copy into an empty one")
            tr.set(CURSOR, store_id.encode())
            return b""
        if cursor[: len(store_id)] != store_id.encode():
            raise ConfigError("the target holds the unfinished copy of another store")
        return cursor[len(store_id) :]

    return await target.run(body)


def _steps(page: list[Row]) -> list[list[Row]]:
    steps: list[list[Row]] = []
    size = STEP_BYTES
    for key, value in page:
        if size + len(key) + len(value) > STEP_BYTES:
            steps.append([])
            size = 0
        steps[-1].append((key, value))
        size += len(key) + len(value)
    return steps


async def _copy_step(target: Database, store_id: str, step: list[Row]) -> None:
    async def body(tr: Transaction) -> None:
        for key, value in step:
            tr.set(key, value)
        tr.set(CURSOR, store_id.encode() + step[-1][0])

    await target.run(body)


async def _compare(source: Database, target: Database, progress: Progress) -> int:
    count = 0
    begin = b""
    while begin != SYSTEM_PREFIX:
        page, following = await _page(source, begin)
        copies: list[Row] = []
        while begin != following:
            more, begin = await _page(target, begin, following)
            copies += more
        if page != copies:
            pairs = zip_longest(page, copies, fillvalue=(b"", b""))
            key = next(max(one[0], other[0]) for one, other in pairs if one != other)
            raise Corrupt(f"the copy differs at key {key!r}: the store was changed meanwhile")
        count += len(page)
        progress("compared", count)
    return count
