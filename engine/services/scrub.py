"""Scrub: reads and verifies every block of every fragment, once in a period.

A walk over all chunks that keeps to its schedule: chunk n of N is looked at n/N of the period after
the walk began, sooner if that time has passed already. What it finds is queued for repair.
"""

from __future__ import annotations

import structlog
import trio

from engine.cluster.membership import asked_for
from engine.data.batch import layout_of
from engine.ids import ChunkId
from engine.meta import keyspace
from engine.meta.kv import ReadTransaction
from engine.meta.records import ChunkRecord, decode_chunk
from engine.services.progress import Progress, Rate, count_chunks, walk_page
from engine.services.repair import queue_repair
from engine.store import Store

NAME = "scrub"
LOOK_AGAIN_S = 60.0
SLEEP_S_MAX = 60.0
"""So often a scrub that is ahead of its schedule shows that it still lives."""


class Scrub:
    def __init__(self, store: Store) -> None:
        self._store = store
        self._rate = Rate(store.config.scrub_rate)

    async def wait(self) -> None:
        await trio.sleep(min(LOOK_AGAIN_S, max(self._store.config.scrub_period_s, 0.1)))

    async def work(self) -> None:
        """Scrub all chunks once, if that is due; resumes where another process was stopped.

        Raises: EngineError.
        """
        store = self._store
        period_ms = store.config.scrub_period_s * 1000
        if not period_ms:
            return
        progress = await Progress.load(store, NAME)
        asked_ms = await store.db.read(_asked)
        if progress is None or progress.record.ended:
            started_ms = progress.record.started_ms if progress is not None else 0
            if asked_ms < started_ms and store.clock() - started_ms < period_ms:
                return
            progress = await begin_scrub(store)
        await self.run(
            progress, period_ms=0.0 if asked_ms >= progress.record.started_ms else period_ms
        )

    async def run(self, progress: Progress, *, period_ms: float) -> int:
        """Go on with a scrub to its end; return how many chunks were found damaged.

        Args:
            period_ms: how long it is to take in all; 0: as quickly as the rate allows.
        """
        store, record = self._store, progress.record
        damaged = 0
        seen = record.done

        async def visit(chunk_id: ChunkId, chunk: ChunkRecord) -> None:
            nonlocal damaged, seen
            await self._keep_schedule(progress, seen, period_ms)
            seen += 1
            size = layout_of(chunk_id, chunk).fragment_size * len(chunk.nodes)
            await self._rate.take(size)
            states = await store.data.examine(chunk_id, chunk, deep=True)
            record.size += size
            record.left += any(state.state == "down" for state in states)
            for kind in ("missing", "damaged"):
                bad = [state.index for state in states if state.state == kind]
                if bad and await _still_there(store, chunk_id, chunk):
                    damaged += 1
                    await queue_repair(store, chunk_id, bad, kind)
                    store.wake_repair()

        event = "chunk not scrubbed"
        while await walk_page(store, progress, visit, at_once=1, event=event):
            pass
        await progress.end()
        structlog.get_logger().info(
            "scrubbed", chunks=record.done, bytes=record.size, left=record.left, damaged=damaged
        )
        return damaged

    async def _keep_schedule(self, progress: Progress, seen: int, period_ms: float) -> None:
        """Wait until it is time for chunk number ``seen``."""
        record = progress.record
        while record.total and period_ms:
            due_ms = record.started_ms + period_ms * min(seen / record.total, 1.0)
            ahead_s = (due_ms - self._store.clock()) / 1000
            if ahead_s <= 0:
                return
            await trio.sleep(min(ahead_s, SLEEP_S_MAX))
            await progress.save(now=ahead_s > SLEEP_S_MAX)


async def begin_scrub(store: Store) -> Progress:
    progress = Progress.begin(store, NAME, NAME, total=await count_chunks(store))
    await progress.save(now=True)
    return progress


async def _asked(tr: ReadTransaction) -> int:
    return await asked_for(tr, NAME)


async def _still_there(store: Store, chunk_id: ChunkId, chunk: ChunkRecord) -> bool:
    """Return whether the chunk was neither deleted nor moved while it was read."""

    async def body(tr: ReadTransaction) -> bool:
        row = await tr.get(keyspace.chunk(chunk_id))
        return row is not None and decode_chunk(row).nodes == chunk.nodes

    return await store.db.read(body)
