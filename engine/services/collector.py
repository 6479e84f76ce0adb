"""Garbage collection: bytes that no version owns any more, and what dead sessions left behind.

Garbage rows say what was deleted and when. A row is taken once it is older than the grace time
*and*, by the time that a commit takes to be seen, than the read horizon of every live session, so
a running read never loses its bytes.

Sessions that expired are declared dead first, in a transaction: from then on nothing they wrote
can be committed. Then every fragment whose chunk id begins with the session's id and whose chunk
has no row is an orphan of an interrupted write, and is deleted.

Each step is a bounded transaction, and can be repeated: a collector that is killed loses nothing.
"""

from __future__ import annotations

import msgspec
import structlog

from engine.errors import EngineError
from engine.ids import ChunkId, FragmentId, NodeId, SessionId, chunk_of
from engine.meta import keyspace
from engine.meta.kv import ReadTransaction, Transaction
from engine.meta.records import (
    ChunkData,
    InlineRow,
    PartData,
    SessionRecord,
    decode_chunk,
    decode_feed,
    decode_garbage,
    decode_part,
    decode_session,
    encode,
)
from engine.node.contract import NodeError
from engine.services.scan import scan, scan_prefix
from engine.store import Store
from engine.types import GcReport

VISIBLE_MS_MAX = 10_000
"""A delete is dated inside its transaction; readers may find the version for so long after."""
FEED_KEPT_MS = 3600 * 1000
FEED_TRIM = 1000
NODE_PAGE = 1000


class _Counts(msgspec.Struct):
    garbage: int = 0
    fragments: int = 0
    bytes: int = 0
    orphans: int = 0


async def collect(store: Store, *, grace_s: float | None = None) -> GcReport:
    """Take all garbage that is due; several collectors at once do no harm."""
    counts = _Counts()
    await store.sessions.renew()
    await _take_garbage(store, counts, store.config.grace_s if grace_s is None else grace_s)
    await _bury_sessions(store, counts)
    await _trim_feed(store)
    return GcReport(
        garbage=counts.garbage,
        fragments=counts.fragments,
        bytes=counts.bytes,
        orphans=counts.orphans,
    )


async def _read_horizon(store: Store) -> int:
    """Return a moment: what was deleted before it, no other process reads any more."""
    now = store.clock()
    horizon = now
    async for key, row in scan_prefix(store.db, keyspace.SESSION):
        record = decode_session(row)
        if key[1:] != store.sessions.session_id and not record.dead and record.expires_ms > now:
            horizon = min(horizon, record.read_horizon_ms - VISIBLE_MS_MAX)
    return horizon


def _read_here(store: Store, deleted_ms: int) -> bool:
    """Return whether a read of this process may have seen what was deleted then.

    Asked after the garbage row was seen: a read that begins later does not see the version.
    """
    oldest = store.sessions.oldest_read_ms()
    return oldest is not None and deleted_ms >= oldest - VISIBLE_MS_MAX


async def _take_garbage(store: Store, counts: _Counts, grace_s: float) -> None:
    due = min(store.clock() - int(grace_s * 1000), await _read_horizon(store))
    end = keyspace.GARBAGE + max(due, 0).to_bytes(6, "big")
    async for key, row in scan(store.db, keyspace.GARBAGE, end):
        if _read_here(store, int.from_bytes(key[1:7], "big")):
            continue
        record = decode_garbage(row)
        try:
            match record.data:
                case ChunkData(chunks=chunks):
                    gone = [await _delete_chunk(store, chunk, counts) for chunk, _ in chunks]
                    done = all(gone)
                case PartData(upload_id=upload_id):
                    done = await _delete_parts(store, upload_id, counts)
                case _:
                    done = True
        except EngineError as error:
            structlog.get_logger().warning("garbage stays", error=str(error))
            continue
        if done:
            counts.garbage += 1
            await _clear(store, key)


async def _clear(store: Store, *keys: bytes) -> None:
    async def body(tr: Transaction) -> None:
        for key in keys:
            tr.clear(key)

    await store.db.run(body)


async def _delete_chunk(store: Store, chunk_id: ChunkId, counts: _Counts) -> bool:
    """Delete a chunk's fragments, then its row. False when a node could not be reached: the row
    stays, and so does the garbage entry, for another round."""
    key = keyspace.chunk(chunk_id)

    async def read(tr: ReadTransaction) -> bytes | None:
        return await tr.get(key)

    row = await store.db.read(read)
    if row is None:
        return True
    record = decode_chunk(row)
    if not await store.data.delete(chunk_id, record):
        return False
    await _clear(store, key, keyspace.repair(chunk_id))
    counts.fragments += len(record.nodes)
    counts.bytes += record.size
    return True


async def _delete_parts(store: Store, upload_id: bytes, counts: _Counts) -> bool:
    done = True
    async for key, row in scan_prefix(store.db, keyspace.PART + upload_id):
        part = decode_part(row)
        keys = [key]
        if isinstance(part.data, ChunkData):
            gone = [await _delete_chunk(store, chunk, counts) for chunk, _ in part.data.chunks]
            if not all(gone):
                done = False
                continue
        elif isinstance(part.data, InlineRow):
            keys.append(keyspace.inline(part.data_id))
        await _clear(store, *keys)
    if done:
        await _clear(store, keyspace.MANIFEST + upload_id)
    return done


async def _bury_sessions(store: Store, counts: _Counts) -> None:
    now = store.clock()
    async for key, row in scan_prefix(store.db, keyspace.SESSION):
        record = decode_session(row)
        session_id = SessionId(key[1:])
        if session_id == store.sessions.session_id:
            continue
        if not record.dead and (
            record.expires_ms > now or not await _declare_dead(store, key, now)
        ):
            continue
        if await _delete_orphans(store, session_id, counts):
            await _clear(store, key)


async def _declare_dead(store: Store, key: bytes, now: int) -> bool:
    async def body(tr: Transaction) -> bool:
        row = await tr.get(key)
        if row is None:
            return False
        record: SessionRecord = decode_session(row)
        if record.expires_ms > now:
            return False
        tr.set(key, encode(msgspec.structs.replace(record, dead=True)))
        return True

    return await store.db.run(body)


async def _delete_orphans(store: Store, session_id: SessionId, counts: _Counts) -> bool:
    """Delete what a dead session wrote and never committed; False when a node did not answer."""
    complete = True
    for node_id in store.pool.ids():
        try:
            counts.orphans += await _delete_orphans_on(store, node_id, session_id)
        except NodeError:
            complete = False
    return complete


async def _delete_orphans_on(store: Store, node_id: NodeId, session_id: SessionId) -> int:
    node = store.pool.get(node_id)
    if node is None:
        raise NodeError("absent")
    deleted = 0
    after: bytes = session_id
    while True:
        page = await node.list(after, NODE_PAGE)
        mine = [info.fragment for info in page if info.fragment.startswith(session_id)]
        orphans = [f for f in mine if not await is_owned(store, f)]
        if orphans:
            await node.delete(orphans)
            deleted += len(orphans)
        if len(mine) < NODE_PAGE:
            return deleted
        after = mine[-1]


async def is_owned(store: Store, fragment: FragmentId) -> bool:
    chunk_id, _ = chunk_of(fragment)

    async def body(tr: ReadTransaction) -> bool:
        return await tr.get(keyspace.chunk(chunk_id)) is not None

    return await store.db.read(body)


async def _trim_feed(store: Store) -> None:
    """Drop changes that are older than any follower may need; newer readers list instead."""
    limit = store.clock() - FEED_KEPT_MS

    async def body(tr: Transaction) -> int:
        rows = await tr.get_range(
            keyspace.FEED, keyspace.after_prefix(keyspace.FEED), limit=FEED_TRIM
        )
        old = [key for key, row in rows if decode_feed(row).at_ms < limit]
        if len(rows) < FEED_TRIM and len(old) == len(rows):
            # The newest one stays: it is where followers that missed nothing are.
            old = old[:-1]
        if old:
            tr.clear_range(keyspace.FEED, keyspace.after(old[-1]))
        return len(old)

    while await store.db.run(body) == FEED_TRIM:
        pass
