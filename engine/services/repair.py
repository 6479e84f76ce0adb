"""Repair: missing and damaged fragments are made anew from the ones that are left.

The queue (``R`` rows) is filled by writers that had to leave fragments out, by readers that met
damage, and by the census and scrub. A drive that was replaced is filled by walking all chunks that
have a fragment on it. All can be interrupted anywhere: what was repaired is whole, the rest is
found again.

A fragment on a node that merely does not answer is left alone until the node is back or lost: then
its chunk stays in the queue.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

import msgspec
import structlog
import trio

from engine.cluster.membership import set_node
from engine.data.batch import layout_of
from engine.data.rebuild import FragmentState
from engine.errors import EngineError, StoreReadOnly
from engine.ids import ChunkId, NodeId, fragment_id
from engine.meta import keyspace
from engine.meta.kv import ReadTransaction, Transaction
from engine.meta.records import (
    FORMAT,
    ChunkRecord,
    RepairRecord,
    decode_chunk,
    decode_node,
    decode_repair,
    encode,
)
from engine.node.contract import Node
from engine.services.progress import Progress, Rate, count_chunks, each, walk_page
from engine.services.scan import PAGE, scan_prefix
from engine.store import Store

DAMAGE_QUEUE_MAX = 1000
AT_ONCE = 8
"""Chunks that are repaired at the same time: enough to keep drives and cores busy, few enough to
leave requests their share of memory."""
AT_RISK = "at risk"
"""Reason of repairs that come first: one more loss, and bytes are lost."""
NO_LIMIT = Rate(0)


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
            except StoreReadOnly as error:
                # The next read, or the next scrub, finds it again.
                structlog.get_logger().info("damage not queued", error=str(error))
            except EngineError as error:
                structlog.get_logger().error("damage not queued", error=str(error))

    async def _queue(self, store: Store, chunk_id: ChunkId, index: int, kind: str) -> None:
        if await queue_repair(store, chunk_id, [index], kind):
            store.wake_repair()


async def queue_repair(
    store: Store, chunk_id: ChunkId, indexes: Collection[int], reason: str
) -> bool:
    """Put a chunk into the queue and count the damage, unless it is there already; say so.

    Args:
        reason: ``missing``, ``damaged`` (every block is to be looked at) or ``AT_RISK``.
    """
    found = await queue_repairs(store, [(chunk_id, indexes, reason)])
    for index, node_id in found:
        structlog.get_logger().warning(
            "damage found", chunk=chunk_id.hex(), fragment=index, node=node_id.hex(), kind=reason
        )
    return bool(found)


async def queue_repairs(
    store: Store, chunks: Sequence[tuple[ChunkId, Collection[int], str]]
) -> list[tuple[int, NodeId]]:
    """Put up to some hundred chunks into the queue at once; see ``queue_repair``.

    Returns: index and node of each bad fragment of the chunks that were not there already.
    """

    async def body(tr: Transaction) -> list[tuple[int, NodeId]]:
        found = []
        for chunk_id, indexes, reason in chunks:
            row = await tr.get(keyspace.chunk(chunk_id))
            queued = await tr.get(keyspace.repair(chunk_id))
            if row is None:
                continue
            if queued is not None:
                before = decode_repair(queued)
                if reason in (AT_RISK, "damaged") and before.reason == "missing":
                    record = msgspec.structs.replace(before, reason=reason)
                    tr.set(keyspace.repair(chunk_id), encode(record))
                continue
            nodes = decode_chunk(row).nodes
            for index in indexes:
                tr.add(keyspace.node_counter(nodes[index], "damaged"), 1)
                found.append((index, nodes[index]))
            record = RepairRecord(format=FORMAT, since_ms=store.clock(), reason=reason)
            tr.set(keyspace.repair(chunk_id), encode(record))
        return found

    return await store.db.run(body)


async def repair_queue(store: Store, *, rate: Rate = NO_LIMIT, since_ms: int = 0) -> int:
    """Work through the queue once; return how many fragments were made anew.

    What is at risk comes first.

    Args:
        since_ms: leave out what was queued before.
    """
    made = 0
    waiting = at_risk = 0
    async for _, row in scan_prefix(store.db, keyspace.REPAIR):
        queued = decode_repair(row)
        if queued.since_ms >= since_ms:
            waiting += 1
            at_risk += queued.reason == AT_RISK
    if not waiting:
        return 0
    progress = Progress.begin(store, "repair", "repair", total=waiting)

    async def one(item: tuple[ChunkId, str]) -> None:
        nonlocal made
        chunk_id, reason = item
        try:
            fragments = await repair_chunk(store, chunk_id, deep=reason == "damaged", rate=rate)
        except EngineError as error:
            progress.record.left += 1
            structlog.get_logger().warning(
                "chunk not repaired", chunk=chunk_id.hex(), error=str(error)
            )
        else:
            made += len(fragments)
            progress.record.size += sum(fragments)
        progress.record.done += 1

    try:
        for first in (True, False) if at_risk else (False,):
            begin = keyspace.REPAIR
            while page := await _queue_page(store, begin):
                chunks = [
                    (chunk_id, queued.reason)
                    for chunk_id, queued in page
                    if queued.since_ms >= since_ms
                    and (not at_risk or first == (queued.reason == AT_RISK))
                ]
                await each(chunks, one, at_once=AT_ONCE)
                await progress.save()
                begin = keyspace.after(keyspace.repair(page[-1][0]))
    finally:
        with trio.CancelScope(shield=True, deadline=trio.current_time() + 5):
            await progress.end()
    return made


async def count_queue(store: Store, since_ms: int = 0) -> int:
    """Return how many chunks wait that were queued since then."""
    count = 0
    async for _, row in scan_prefix(store.db, keyspace.REPAIR):
        count += decode_repair(row).since_ms >= since_ms
    return count


async def _queue_page(store: Store, begin: bytes) -> list[tuple[ChunkId, RepairRecord]]:
    async def body(tr: ReadTransaction) -> list[tuple[bytes, bytes]]:
        return await tr.get_range(begin, keyspace.after_prefix(keyspace.REPAIR), limit=PAGE)

    return [(ChunkId(key[1:]), decode_repair(row)) for key, row in await store.db.read(body)]


async def repair_chunk(
    store: Store, chunk_id: ChunkId, *, deep: bool = True, rate: Rate = NO_LIMIT
) -> list[int]:
    """Make a chunk whole, and take it off the queue when it is.

    Args:
        deep: look at every block of every fragment, not only at what is there.
    Returns: the size in bytes of each fragment made.
    Raises: Corrupt, Unavailable: too few fragments are left now.
    """
    record = await read_chunk(store, chunk_id)
    if record is None:
        await settle(store, chunk_id, None, None, [])
        return []
    states = await store.data.examine(chunk_id, record, deep=deep)
    bad = [state for state in states if state.state != "whole"]
    targets = _targets(store, chunk_id, record, bad)
    size = layout_of(chunk_id, record).fragment_size
    if targets:
        await rate.take(size * len(targets))
        await store.data.rebuild(chunk_id, record, sorted(targets), targets)
    nodes = list(record.nodes)
    for index, node in targets.items():
        nodes[index] = node.node_id
    await settle(
        store,
        chunk_id,
        record,
        msgspec.structs.replace(record, nodes=nodes),
        sorted(targets),
        whole=len(targets) == len(bad),
    )
    return [size] * len(targets)


def _targets(
    store: Store, chunk_id: ChunkId, record: ChunkRecord, bad: list[FragmentState]
) -> dict[int, Node]:
    """Choose where each bad fragment is to be: its own node when that works, else a spare one in
    the domain that has the fewest of the others."""
    pool = store.pool
    targets: dict[int, Node] = {}
    taken = set(record.nodes) - {s.node_id for s in bad if pool.gone(s.node_id)}
    for state in bad:
        node = pool.writable(state.node_id)
        if node is None and (state.state != "down" or pool.gone(state.node_id)):
            for spare in pool.spare(chunk_id, taken | set(record.nodes)):
                node = pool.writable(spare)
                if node is not None:
                    taken.add(spare)
                    break
            else:
                # Better on a drive that is to be emptied than nowhere.
                node = pool.usable(state.node_id)
        if node is not None:
            targets[state.index] = node
    return targets


async def read_chunk(store: Store, chunk_id: ChunkId) -> ChunkRecord | None:
    async def body(tr: ReadTransaction) -> ChunkRecord | None:
        row = await tr.get(keyspace.chunk(chunk_id))
        return None if row is None else decode_chunk(row)

    return await store.db.read(body)


async def settle(
    store: Store,
    chunk_id: ChunkId,
    before: ChunkRecord | None,
    after: ChunkRecord | None,
    made: Collection[int],
    *,
    whole: bool = True,
    counter: str = "repaired",
) -> bool:
    """Write down where the fragments are now, in one transaction with the queue.

    What is left over afterwards is a stray: the old fragments, or, when somebody else changed or
    collected the chunk meanwhile, those that were made.

    Args:
        made: fragments that ``after`` has and that were made by the caller.
        whole: take the chunk off the queue.
        counter: what is counted for each node that got a fragment; empty: nothing.
    Returns: whether the chunk's record is ``after`` now.
    """

    async def body(tr: Transaction) -> bool:
        row = await tr.get(keyspace.chunk(chunk_id))
        current = None if row is None else decode_chunk(row).nodes
        if before is not None and after is not None:
            settled = current == before.nodes
            if settled and after.nodes != before.nodes:
                tr.set(keyspace.chunk(chunk_id), encode(after))
            for index in made:
                old, new = before.nodes[index], after.nodes[index]
                if settled:
                    if counter:
                        tr.add(keyspace.node_counter(new, counter), 1)
                    tr.clear(keyspace.stray(new, fragment_id(chunk_id, index)))
                    if old != new:
                        tr.set(keyspace.stray(old, fragment_id(chunk_id, index)), b"")
                elif current is None or current[index] != new:
                    tr.set(keyspace.stray(new, fragment_id(chunk_id, index)), b"")
            if not settled and current is not None:
                return False
        if whole or row is None:
            tr.clear(keyspace.repair(chunk_id))
        return row is not None

    return await store.db.run(body)


async def rebuild_nodes(
    store: Store, *, rate: Rate = NO_LIMIT, stop: Callable[[], bool] = lambda: False
) -> int:
    """Fill every node whose drive was replaced; return the fragments made."""
    made = 0
    async for key, row in scan_prefix(store.db, keyspace.NODE):
        record = decode_node(row)
        if record.state == "rebuilding":
            made += await _rebuild_node(store, NodeId(key[1:]), record.location, rate, stop)
    return made


async def _rebuild_node(
    store: Store, node_id: NodeId, location: str, rate: Rate, stop: Callable[[], bool]
) -> int:
    node = store.pool.usable(node_id)
    if node is None:
        return 0
    name = f"rebuild {node_id.hex()}"
    progress = await Progress.load(store, name)
    if progress is None or progress.record.ended:
        total = await count_chunks(store)
        progress = Progress.begin(store, name, f"rebuild {location}", total=total)
        await progress.save(now=True)
    made = 0

    async def visit(chunk_id: ChunkId, record: ChunkRecord) -> None:
        nonlocal made
        if node_id not in record.nodes:
            return
        index = record.nodes.index(node_id)
        if await node.stat(fragment_id(chunk_id, index)) is not None:
            return
        size = layout_of(chunk_id, record).fragment_size
        await rate.take(size)
        await store.data.rebuild(chunk_id, record, [index], {index: node})
        await settle(store, chunk_id, record, record, [index], whole=False)
        made += 1
        progress.record.size += size

    event = "fragment not rebuilt"
    while await walk_page(store, progress, visit, at_once=AT_ONCE, event=event, stop=stop):
        if stop():
            await progress.save(now=True)
            return made
    log = structlog.get_logger().bind(node=node_id.hex(), drive=location)
    await progress.end()
    if progress.record.left:
        log.warning("drive not rebuilt yet", fragments_left=progress.record.left)
    else:
        await _finish_rebuild(store, node_id)
        log.info("drive rebuilt", fragments=made)
    return made


async def _finish_rebuild(store: Store, node_id: NodeId) -> None:
    async def body(tr: Transaction) -> None:
        row = await tr.get(keyspace.node(node_id))
        if row is not None and decode_node(row).state == "rebuilding":
            set_node(tr, node_id, msgspec.structs.replace(decode_node(row), state="up"))
        tr.clear(keyspace.work(f"rebuild {node_id.hex()}"))

    await store.db.run(body)
