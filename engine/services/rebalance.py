"""Rebalance: fragments go to the nodes that placement wants now, and no others move.

Asked for when a node comes, goes, drains or changes its weight or domain. A walk over all chunks;
of each, only what is on a node that is not among the chunk's best moves (docs/decisions/0009).
A fragment is copied, verified block by block; one that turns out to be damaged is made from the
others. What is on nodes that are gone is repair's.
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec
import structlog
import trio

from engine.cluster.membership import ask_for, asked_for
from engine.data.batch import layout_of
from engine.data.placement import plan_moves
from engine.errors import EngineError, NoSpace, Unavailable
from engine.ids import ChunkId, NodeId
from engine.meta.kv import ReadTransaction, Transaction
from engine.meta.records import ChunkRecord
from engine.node.contract import Node, NodeDown, NodeError, NodeFull
from engine.services.copying import copy_fragment, has_whole_fragment
from engine.services.progress import Progress, Rate, count_chunks, walk_page
from engine.services.repair import settle
from engine.store import Store

AT_ONCE = 4
RETRY_S = 60.0
"""After a walk that had to leave something."""
NAME = "rebalance"


class Rebalance:
    """Concurrency: used by the task of ``Upkeep`` only."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._rate = Rate(store.config.rebalance_rate)
        self._progress: Progress | None = None
        self._loaded = False
        self._retry_at = float("-inf")
        self._generation = -1
        """Of the pool, when the last walk ended."""

    def forget(self) -> None:
        """Read what was written down again: another process may have gone on meanwhile."""
        self._progress, self._loaded = None, False

    async def due(self) -> bool:
        """Return whether chunks are to be looked at."""
        if not self._loaded:
            self._progress = await Progress.load(self._store, NAME)
            self._loaded = True
        asked_ms = await self._asked_ms()
        if self._progress is None:
            return asked_ms > 0
        record = self._progress.record
        if not record.ended or asked_ms >= record.started_ms:
            return True
        return record.left > 0 and (
            trio.current_time() >= self._retry_at or self._generation != self._store.pool.generation
        )

    async def _asked_ms(self) -> int:
        async def body(tr: ReadTransaction) -> int:
            return await asked_for(tr, NAME)

        return await self._store.db.read(body)

    async def run(self, stop: Callable[[], bool]) -> None:
        """Go on with the walk, or begin another, until it ends or ``stop`` says so."""
        progress = self._progress
        if (
            progress is None
            or progress.record.ended
            or await self._asked_ms() >= progress.record.started_ms
        ):
            # What was asked for since has changed where fragments belong: from the start again.
            total = await count_chunks(self._store)
            progress = Progress.begin(self._store, NAME, NAME, total=total)
            self._progress = progress
            await progress.save(now=True)
        record = progress.record

        async def visit(chunk_id: ChunkId, chunk: ChunkRecord) -> None:
            moved, left = await rebalance_chunk(self._store, chunk_id, chunk, self._rate)
            record.size += moved
            record.left += left

        store, event = self._store, "chunk not moved"
        while await walk_page(store, progress, visit, at_once=AT_ONCE, event=event, stop=stop):
            if stop():
                await progress.save(now=True)
                return
        self._retry_at = trio.current_time() + RETRY_S
        self._generation = self._store.pool.generation
        await progress.end()
        await self._ask_for_census()
        if record.size or record.left:
            structlog.get_logger().info("rebalanced", bytes=record.size, left=record.left)

    async def _ask_for_census(self) -> None:
        async def body(tr: Transaction) -> None:
            ask_for(tr, ["census"], self._store.clock())

        await self._store.db.run(body)


async def rebalance_chunk(
    store: Store, chunk_id: ChunkId, record: ChunkRecord, rate: Rate
) -> tuple[int, int]:
    """Move what is not where it belongs; return (bytes moved, fragments that could not move).

    Raises: EngineError: moving failed on the way; nothing is lost by that.
    """
    wanted = store.pool.wanted(chunk_id, len(record.nodes))
    moves, homeless = plan_moves(record.nodes, wanted)
    # With fewer nodes than fragments, those on leaving nodes have nowhere to go.
    left = len(homeless)
    moved = 0
    for index, target_id in moves:
        source, target = store.pool.usable(record.nodes[index]), store.pool.writable(target_id)
        if source is None and store.pool.gone(record.nodes[index]):
            continue  # repair makes it anew, once a census has counted it as missing
        if source is None or target is None:
            left += 1
            continue
        size = layout_of(chunk_id, record).fragment_size
        await rate.take(size)
        copied = await _move(store, chunk_id, record, index, source=source, target=target)
        nodes = list(record.nodes)
        nodes[index] = target_id
        after = msgspec.structs.replace(record, nodes=nodes)
        if not await settle(store, chunk_id, record, after, [index], whole=False, counter="moved"):
            break
        record = after
        moved += size if copied else 0
    return moved, left


async def _move(
    store: Store,
    chunk_id: ChunkId,
    record: ChunkRecord,
    index: int,
    *,
    source: Node,
    target: Node,
) -> bool:
    """Have the fragment on ``target``; return whether it had to be written.

    A node that was lost and came back still has what was made anew elsewhere meanwhile.
    """
    try:
        if await has_whole_fragment(store.data, chunk_id, record, index, target):
            return False
        if await copy_fragment(store.data, chunk_id, record, index, source=source, target=target):
            return True
    except NodeError as error:
        _note(store, target.node_id, error)
        raise _translated(error, chunk_id) from error
    await store.data.rebuild(chunk_id, record, [index], {index: target})
    return True


def _note(store: Store, node_id: NodeId, error: NodeError) -> None:
    if isinstance(error, NodeFull | NodeDown):
        store.pool.failed(node_id, error)


def _translated(error: NodeError, chunk_id: ChunkId) -> EngineError:
    if isinstance(error, NodeFull):
        return NoSpace()
    return Unavailable(f"target of a move of chunk {chunk_id.hex()}")
