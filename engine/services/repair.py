"""Repair: missing and damaged fragments are made anew from the ones that are left.

The queue (``R`` rows) is filled by writers that had to leave fragments out and by readers that
met damage. A drive that was replaced is filled by walking all chunks that have a fragment on it.
Both can be interrupted anywhere: what was repaired is whole, the rest is found again.
"""

from __future__ import annotations

import math

import msgspec
import structlog
import trio

from engine.errors import EngineError
from engine.ids import ChunkId, NodeId, chunk_of, fragment_id
from engine.meta import keyspace
from engine.meta.kv import ReadTransaction, Transaction
from engine.meta.records import (
    FORMAT,
    ChunkRecord,
    RepairRecord,
    decode_chunk,
    decode_node,
    encode,
)
from engine.node.contract import Node, NodeError
from engine.services.scan import scan, scan_prefix
from engine.store import Store

DAMAGE_QUEUE_MAX = 1000
CURSOR_EVERY = 200
"""Chunks after which the progress of a rebuild is written down."""


class DamageLog:
    """Takes what readers report and puts it into the repair queue.

    Readers don't wait: when the channel is full the report is dropped, for the next reader or
    scrub to find again.
    """

    def __init__(self) -> None:
        self._send, self._receive = trio.open_memory_channel[tuple[ChunkId, int, str]](
            DAMAGE_QUEUE_MAX
        )

    def report(self, chunk_id: ChunkId, index: int, kind: str) -> None:
        if kind == "down":
            return
        try:
            self._send.send_nowait((chunk_id, index, kind))
        except trio.WouldBlock:
            structlog.get_logger().warning("damage report dropped", chunk=chunk_id.hex())

    async def run(self, store: Store) -> None:
        """Queue repairs until cancelled."""
        async for chunk_id, index, kind in self._receive:
            try:
                await self._queue(store, chunk_id, index, kind)
            except EngineError as error:
                structlog.get_logger().error("damage not queued", error=str(error))

    async def _queue(self, store: Store, chunk_id: ChunkId, index: int, kind: str) -> None:
        async def body(tr: Transaction) -> NodeId | None:
            row = await tr.get(keyspace.chunk(chunk_id))
            if row is None or await tr.get(keyspace.repair(chunk_id)) is not None:
                return None
            node_id = decode_chunk(row).nodes[index]
            tr.add(keyspace.node_counter(node_id, "damaged"), 1)
            record = RepairRecord(format=FORMAT, since_ms=store.clock(), reason=kind)
            tr.set(keyspace.repair(chunk_id), encode(record))
            return node_id

        node_id = await store.db.run(body)
        if node_id is not None:
            structlog.get_logger().warning(
                "damage found", chunk=chunk_id.hex(), fragment=index, node=node_id.hex(), kind=kind
            )
            store.wake_repair()


async def repair_queue(store: Store) -> int:
    """Work through the queue once; return how many fragments were made anew."""
    repaired = 0
    async for key, _ in scan_prefix(store.db, keyspace.REPAIR):
        chunk_id = ChunkId(key[1:])
        try:
            repaired += await repair_chunk(store, chunk_id)
        except EngineError as error:
            structlog.get_logger().warning(
                "chunk not repaired", chunk=chunk_id.hex(), error=str(error)
            )
    return repaired


async def repair_chunk(store: Store, chunk_id: ChunkId) -> int:
    """Make a chunk whole, and take it off the queue when it is; return the fragments made.

    Raises: Corrupt, Unavailable: too few fragments are left now.
    """
    record = await _read_chunk(store, chunk_id)
    if record is None:
        await _settle(store, chunk_id, None, record, [])
        return 0
    states = await store.data.examine(chunk_id, record, deep=True)
    bad = [state.index for state in states if state.state != "whole"]
    targets = _targets(store, chunk_id, record, bad)
    if targets:
        await store.data.rebuild(chunk_id, record, sorted(targets), targets)
    nodes = list(record.nodes)
    for index, node in targets.items():
        nodes[index] = node.node_id
    whole = len(targets) == len(bad)
    await _settle(
        store,
        chunk_id,
        record,
        msgspec.structs.replace(record, nodes=nodes),
        sorted(targets),
        whole=whole,
    )
    return len(targets)


def _targets(
    store: Store, chunk_id: ChunkId, record: ChunkRecord, bad: list[int]
) -> dict[int, Node]:
    """Choose where each bad fragment is to be: its own node when that works, else a spare one."""
    targets: dict[int, Node] = {}
    taken = set(record.nodes)
    for index in bad:
        node = store.pool.usable(record.nodes[index])
        if node is None:
            for spare in store.pool.spare(chunk_id, taken):
                node = store.pool.usable(spare)
                if node is not None:
                    taken.add(spare)
                    break
        if node is not None:
            targets[index] = node
    return targets


async def _read_chunk(store: Store, chunk_id: ChunkId) -> ChunkRecord | None:
    async def body(tr: ReadTransaction) -> ChunkRecord | None:
        row = await tr.get(keyspace.chunk(chunk_id))
        return None if row is None else decode_chunk(row)

    return await store.db.read(body)


async def _settle(
    store: Store,
    chunk_id: ChunkId,
    before: ChunkRecord | None,
    after: ChunkRecord | None,
    made: list[int],
    *,
    whole: bool = True,
) -> None:
    """Write down where the fragments are now, in one transaction with the queue."""

    async def body(tr: Transaction) -> bool:
        row = await tr.get(keyspace.chunk(chunk_id))
        if row is not None and after is not None and before is not None:
            current = decode_chunk(row)
            if current.nodes == before.nodes:
                tr.set(keyspace.chunk(chunk_id), encode(after))
            for index in made:
                tr.add(keyspace.node_counter(after.nodes[index], "repaired"), 1)
                if before.nodes[index] != after.nodes[index]:
                    stray = keyspace.stray(before.nodes[index], fragment_id(chunk_id, index))
                    tr.set(stray, b"")
        if whole or row is None:
            tr.clear(keyspace.repair(chunk_id))
        return row is not None

    if not await store.db.run(body) and made and after is not None:
        # Collected while it was repaired: what was made again goes as well.
        await store.data.delete(chunk_id, after)


async def delete_strays(store: Store) -> int:
    """Delete from nodes that are back what was made anew elsewhere; return the fragments.

    Runs in turn with repair, which could otherwise move a fragment back at the same time.
    """
    deleted = 0
    async for key, _ in scan_prefix(store.db, keyspace.STRAY):
        node_id, fragment = keyspace.split_stray(key)
        node = store.pool.usable(node_id)
        if node is None:
            continue
        chunk_id, index = chunk_of(fragment)
        record = await _read_chunk(store, chunk_id)
        if record is None or record.nodes[index] != node_id:
            try:
                await node.delete([fragment])
            except NodeError as error:
                store.pool.failed(node_id, error)
                continue
            deleted += 1
        await _clear(store, key)
    return deleted


async def rebuild_nodes(store: Store) -> int:
    """Fill every node whose drive was replaced; return the fragments made."""
    made = 0
    async for key, row in scan_prefix(store.db, keyspace.NODE):
        if decode_node(row).state == "rebuilding":
            made += await _rebuild_node(store, NodeId(key[1:]))
    return made


async def _rebuild_node(store: Store, node_id: NodeId) -> int:
    node = store.pool.usable(node_id)
    if node is None:
        return 0
    log = structlog.get_logger().bind(node=node_id.hex())
    cursor_key = keyspace.setting(f"rebuild {node_id.hex()}")

    async def read_cursor(tr: ReadTransaction) -> bytes | None:
        return await tr.get(cursor_key)

    begin = await store.db.read(read_cursor) or keyspace.CHUNK
    made, left, seen = 0, 0, 0
    async for key, row in scan(store.db, begin, keyspace.after_prefix(keyspace.CHUNK)):
        chunk_id, record = ChunkId(key[1:]), decode_chunk(row)
        seen += 1
        if node_id in record.nodes:
            index = record.nodes.index(node_id)
            try:
                made += await _rebuild_fragment(store, node, chunk_id, record, index)
            except (EngineError, NodeError) as error:
                left += 1
                log.warning("fragment not rebuilt", chunk=chunk_id.hex(), error=str(error))
        if seen % CURSOR_EVERY == 0 and not left:
            await _set(store, cursor_key, key)
    if left:
        return made
    await _finish_rebuild(store, node_id, cursor_key)
    log.info("drive rebuilt", fragments=made)
    return made


async def _rebuild_fragment(
    store: Store, node: Node, chunk_id: ChunkId, record: ChunkRecord, index: int
) -> int:
    if await node.stat(fragment_id(chunk_id, index)) is not None:
        return 0
    await store.data.rebuild(chunk_id, record, [index], {index: node})

    async def body(tr: Transaction) -> None:
        tr.add(keyspace.node_counter(node.node_id, "repaired"), 1)

    await store.db.run(body)
    return 1


async def _set(store: Store, key: bytes, value: bytes) -> None:
    async def body(tr: Transaction) -> None:
        tr.set(key, value)

    await store.db.run(body)


async def _clear(store: Store, key: bytes) -> None:
    async def body(tr: Transaction) -> None:
        tr.clear(key)

    await store.db.run(body)


async def _finish_rebuild(store: Store, node_id: NodeId, cursor_key: bytes) -> None:
    async def body(tr: Transaction) -> None:
        row = await tr.get(keyspace.node(node_id))
        if row is not None:
            tr.set(
                keyspace.node(node_id),
                encode(msgspec.structs.replace(decode_node(row), state="up")),
            )
        tr.clear(cursor_key)

    await store.db.run(body)


class RepairService:
    """Runs repair when woken, and every ``interval_s`` in any case."""

    def __init__(self, store: Store, *, interval_s: float = 30.0) -> None:
        self._store = store
        self._interval_s = interval_s
        self._woken = trio.Event()

    def wake(self) -> None:
        self._woken.set()

    async def wait(self) -> None:
        with trio.move_on_after(self._interval_s if math.isfinite(self._interval_s) else math.inf):
            await self._woken.wait()
        self._woken = trio.Event()

    async def work(self) -> None:
        await repair_queue(self._store)
        await rebuild_nodes(self._store)
        await delete_strays(self._store)
