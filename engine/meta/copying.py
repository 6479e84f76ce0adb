"""Copying all metadata of a store from one database to another: resumable, and verified.

The store is made read-only first (``read_only``), so servers may go on reading from it. The copy
goes in key order in bounded transactions; with each the target's cursor moves on, so a copy that
was interrupted goes on where it stopped. While the cursor is there the target is no store. At the
end both sides are read once more and compared, row by row; only then the cursor is removed. The
source stays read-only, for ever unless the copy is aborted: processes that still use it would
otherwise change what nobody reads any more.

Left out are what says that the source is read-only; the rows of the change feed, which tell running
processes what changed, and whose stamps mean nothing in another database; and at first the
sessions, which running processes renew. They are copied last, as they are then: in the copy they
time out, and what their processes left behind is collected there.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import zip_longest
from typing import TypeAlias

from engine.errors import ConfigError, Corrupt
from engine.meta import keyspace
from engine.meta.kv import SYSTEM_PREFIX, Database, ReadTransaction, Transaction
from engine.meta.read_only import MOVED, clear_read_only, read_only_reason, set_read_only
from engine.meta.records import decode_session

PAGE_ROWS = 1000
STEP_BYTES = 500_000
"""Of keys and values in one transaction; FoundationDB likes them below 1 MB."""

STORE_ID = keyspace.setting("store")
"""Id of the store, where several data folders share its metadata, and in backups."""

CURSOR = keyspace.setting("copy")
"""Id of the store (32) and the last key that was copied, while a copy goes on."""

NOT_COMPARED = (keyspace.FEED, keyspace.SESSION)
"""Subspaces that change while the store is read-only, or mean nothing elsewhere."""

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
    return key[:1] not in NOT_COMPARED and key not in (CURSOR, STORE_ID, keyspace.READ_ONLY)


async def copy_metadata(
    source: Database, target: Database, store_id: str, *, place: str, progress: Progress
) -> int:
    """Make the source read-only, copy and compare everything; return the number of rows.

    The source is read-only when this returns, and when it is interrupted: call it again, or
    ``abort_copy``. When the data folder uses the target, ``end_copy`` ends the copy.

    Args:
        store_id: 32 characters; a copy that was begun is gone on with for the same store alone.
        place: of the target, as processes that use the source are told.
    Raises:
        ConfigError: the target holds something else.
        Corrupt: the sides differ: a side was changed by other means. Abort, and copy again.
    """
    copying = f"being copied to {place}"
    after = await _begin(target, store_id, done=await read_only_reason(source) == copying)
    if after is None:
        return await _compare(source, target, progress)
    await set_read_only(source, copying)
    begin = keyspace.after(after) if after else b""
    done = 0
    while begin != SYSTEM_PREFIX:
        page, begin = await _page(source, begin)
        for step in _steps(page):
            await _copy_step(target, store_id, step)
            done += len(step)
            progress("copied", done)
    count = await _compare(source, target, progress)
    await _copy_sessions(source, target)

    async def end(tr: Transaction) -> None:
        tr.set(STORE_ID, store_id.encode())
        tr.clear(CURSOR)

    await target.run(end)
    return count


async def _copy_sessions(source: Database, target: Database) -> None:
    end = keyspace.after_prefix(keyspace.SESSION)

    async def all_of(tr: ReadTransaction) -> list[Row]:
        return await tr.get_range(keyspace.SESSION, end, snapshot=True)

    # Those of an attempt before this one may be gone by now.
    await target.run(partial(_clear_range, begin=keyspace.SESSION, end=end))
    for step in _steps(await source.read(all_of)):
        await target.run(partial(_set_rows, rows=step))


async def _clear_range(tr: Transaction, *, begin: bytes, end: bytes) -> None:
    tr.clear_range(begin, end)


async def _set_rows(tr: Transaction, *, rows: list[Row]) -> None:
    for key, value in rows:
        tr.set(key, value)


async def end_copy(source: Database, place: str) -> None:
    """Tell who still uses the source that nobody will change it again."""
    await set_read_only(source, MOVED + place)


async def abort_copy(source: Database, target: Database, store_id: str) -> bool:
    """Let the source be changed again, and empty the target if it has part of a copy of it.

    Call it while data folders use the source. Returns whether there was anything to undo.
    Raises: ConfigError: the target holds the unfinished copy of another store, or a whole one.
    """
    cursor = await target.read(lambda tr: tr.get(CURSOR))
    why = await read_only_reason(source) or ""
    if cursor is not None:
        _check_cursor(cursor, store_id)
        await target.run(partial(_clear_range, begin=b"", end=SYSTEM_PREFIX))
    elif (
        why
        and not why.startswith(MOVED)
        and await target.read(lambda tr: tr.get(STORE_ID)) == store_id.encode()
    ):
        raise ConfigError("the copy is complete: give the command without --abort to end it")
    return await clear_read_only(source) or cursor is not None


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


async def _begin(target: Database, store_id: str, *, done: bool) -> bytes | None:
    """Return the key behind which to go on; None: the target has all, if it may (``done``)."""

    async def body(tr: Transaction) -> bytes | None:
        cursor = await tr.get(CURSOR)
        if cursor is None:
            if done and await tr.get(STORE_ID) == store_id.encode():
                return None
            if await tr.get_range(b"", SYSTEM_PREFIX, limit=1):
                raise ConfigError("the target holds metadata already; copy into an empty one")
            tr.set(CURSOR, store_id.encode())
            return b""
        return _check_cursor(cursor, store_id)

    return await target.run(body)


def _check_cursor(cursor: bytes, store_id: str) -> bytes:
    if cursor[: len(store_id)] != store_id.encode():
        raise ConfigError("the target holds the unfinished copy of another store")
    return cursor[len(store_id) :]


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
            raise Corrupt(f"the copy differs at key {key!r}: the store was changed by other means")
        count += len(page)
        progress("compared", count)
    return count
