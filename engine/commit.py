"""Committing staged bytes: the transaction that makes them somebody's."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TypeVar

import trio

from engine.data.writer import StagedData
from engine.errors import ConflictError, RequestError, StoreReadOnly, Unavailable
from engine.ids import DataId, session_of
from engine.meta import keyspace
from engine.meta.kv import Transaction
from engine.meta.records import FORMAT, Checksum, ChunkOwner, InlineRow, RepairRecord, encode
from engine.sessions import SessionExpired, fence
from engine.store import Store
from engine.types import Check

T = TypeVar("T")

COMMIT_S_MAX = 60.0


async def claim(
    store: Store, tr: Transaction, staged: StagedData, owner: ChunkOwner, data_id: DataId
) -> None:
    """Write the rows that make ``owner`` own the staged bytes."""
    if isinstance(staged.data, InlineRow):
        tr.set(keyspace.inline(data_id), staged.inline)
        return
    fenced = set()
    for chunk_id, record in staged.chunk_records(owner):
        session = session_of(chunk_id)
        if session not in fenced:
            await fence(tr, chunk_id)
            fenced.add(session)
        tr.set(keyspace.chunk(chunk_id), encode(record))
    for chunk_id in staged.incomplete:
        row = RepairRecord(format=FORMAT, since_ms=store.clock(), reason="missing")
        tr.set(keyspace.repair(chunk_id), encode(row))


async def checked(staged: StagedData, check: Check) -> list[Checksum]:
    """Let the frontend compare digests; what it refuses leaves nothing behind."""
    try:
        return check(staged.digests)
    except BaseException:
        await staged.discard()  # noqa: ASYNC102  shields itself, with a limit
        raise


async def commit(
    store: Store, staged: StagedData, body: Callable[[Transaction], Awaitable[T]]
) -> T:
    """Run the transaction that claims ``staged``; when it refuses, the bytes are discarded
    (unless they are ``kept``).

    Shielded, so that its outcome is known: a commit takes milliseconds. When the store itself
    fails or hangs, the outcome is unknown and the bytes stay: if nobody owns them, the collector
    takes them once this session has ended.

    Raises: what ``body`` and the store raise; Unavailable after ``COMMIT_S_MAX``.
    """
    with trio.move_on_after(COMMIT_S_MAX, shield=True) as patience:
        try:
            result = await store.db.run(body)
        except (RequestError, ConflictError, SessionExpired, StoreReadOnly):
            if not staged.kept:
                await staged.discard()  # noqa: ASYNC120  shields itself
            raise
    if patience.cancelled_caught:
        raise Unavailable("the metadata store does not answer; whether it committed is not known")
    if staged.incomplete:
        store.wake_repair()
    return result
