"""Garbage collection: bytes that no version owns any more, and what dead sessions left behind.

Garbage rows say what was deleted and when. A row is taken once it is older than the grace time
*and*, by the time that a commit takes to be seen, than the read horizon of every live session, so
a running read never loses its bytes.

Sessions that expired are declared dead first, in a transaction: from then on nothing they wrote
can be committed. Then every fragment whose chunk id begins with the session's id and whose chunk
has no row is an orphan of an interrupted write, and is deleted.

A node that does not answer holds nothing up: what it should delete is written down (``Y`` rows)
until it is back (``engine.services.strays``).

Each step is a bounded transaction, and can be repeated: a collector that is killed loses nothing.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import structlog
import trio

from engine.data.removal import delete_fragments
from engine.errors import EngineError
from engine.ids import ChunkId, FragmentId, NodeId, SessionId, chunk_of, fragment_id
from engine.meta import keyspace
from engine.meta.kv import ReadTransaction, Transaction
from engine.meta.records import (
    ChunkData,
    ChunkRecord,
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
BATCH = 128
"""Chunks that are deleted together."""
DELETE_THREADS = 16


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
    batch = _Batch(store, counts)
    async for key, row in scan(store.db, keyspace.GARBAGE, end):
        if _read_here(store, int.from_bytes(key[1:7], "big")):
            continue
        record = decode_garbage(row)
        try:
            match record.data:
                case ChunkData(chunks=chunks):
                    await batch.add([chunk for chunk, _ in chunks], [key])
                case PartData(upload_id=upload_id):
                    await batch.flush()
                    await _delete_parts(store, upload_id, counts)
                    await _clear(store, key)
                case _:
                    await _clear(store, key)
        except EngineError as error:
            batch.drop()
            structlog.get_logger().warning("garbage stays", error=str(error))
            continue
        counts.garbage += 1
    await batch.flush()


async def _clear(store: Store, *keys: bytes) -> None:
    async def body(tr: Transaction) -> None:
        for key in keys:
            tr.clear(key)

    await store.db.run(body)


class _Batch:
    """Chunks that are deleted together: one request and one sync per node, two transactions."""

    def __init__(self, store: Store, counts: _Counts) -> None:
        self._store = store
        self._counts = counts
        self._limiter = trio.CapacityLimiter(DELETE_THREADS)
        self._chunks: list[ChunkId] = []
        self._keys: list[bytes] = []

    async def add(self, chunks: Sequence[ChunkId], keys: Sequence[bytes]) -> None:
        """Delete the chunks, and then the rows with these keys; now or with what follows."""
        self._chunks += chunks
        self._keys += keys
        if len(self._chunks) >= BATCH or len(self._keys) >= BATCH:
            await self.flush()

    def drop(self) -> None:
        """Leave what was added and not deleted yet for another round."""
        self._chunks, self._keys = [], []

    async def flush(self) -> None:
        """Delete what was added, and then the other keys."""
        chunks, keys = self._chunks, self._keys
        self.drop()
        for begin in range(0, len(chunks), BATCH):
            await self._delete(chunks[begin : begin + BATCH])
        if keys:
            await _clear(self._store, *keys)

    async def _delete(self, chunks: Sequence[ChunkId]) -> None:
        """Delete the chunks' rows, and then the fragments, which are strays meanwhile.

        So a chunk that has a row has its fragments, whoever looks, and those of nodes that do not
        answer are deleted when these are back.
        """
        store = self._store
        known = set(store.pool.ids())

        async def write(tr: Transaction) -> list[ChunkRecord]:
            strays.clear()
            found = []
            for chunk_id in chunks:
                row = await tr.get(keyspace.chunk(chunk_id))
                if row is None:
                    continue
                found.append(record := decode_chunk(row))
                for index, node_id in enumerate(record.nodes):
                    if node_id in known:
                        fragment = fragment_id(chunk_id, index)
                        strays.setdefault(node_id, []).append(fragment)
                        tr.set(keyspace.stray(node_id, fragment), b"")
                tr.clear(keyspace.chunk(chunk_id))
                tr.clear(keyspace.repair(chunk_id))
            return found

        strays: dict[NodeId, list[FragmentId]] = {}
        found = await store.db.run(write)
        asked = {node: names for node, names in strays.items() if store.pool.usable(node)}
        failed = await delete_fragments(store.pool, asked, limiter=self._limiter)
        await _clear(
            store,
            *(
                keyspace.stray(node_id, fragment)
                for node_id, fragments in asked.items()
                if node_id not in failed
                for fragment in fragments
            ),
        )
        for record in found:
            self._counts.fragments += len(record.nodes)
            self._counts.bytes += record.size


async def _delete_parts(store: Store, upload_id: bytes, counts: _Counts) -> None:
    batch = _Batch(store, counts)
    async for key, row in scan_prefix(store.db, keyspace.PART + upload_id):
        part = decode_part(row)
        if isinstance(part.data, ChunkData):
            await batch.add([chunk for chunk, _ in part.data.chunks], [key])
        elif isinstance(part.data, InlineRow):
            await batch.add([], [key, keyspace.inline(part.data_id)])
        else:
            await batch.add([], [key])
    await batch.flush()
    await _clear(store, keyspace.MANIFEST + upload_id)


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
    """Delete what a dead session wrote and never committed; False when a node did not answer.

    Nodes that are down are not waited for: when they are back, a census finds what is on them.
    """
    complete = True
    for node_id in store.pool.ids():
        if store.pool.health(node_id) in ("down", "lost"):
            continue
        try:
            counts.orphans += await _delete_orphans_on(store, node_id, session_id)
        except NodeError:
            complete = False
    return complete


async def _delete_orphans_on(store: Store, node_id: NodeId, session_id: SessionId) -> int:
    node = store.pool.usable(node_id)
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
