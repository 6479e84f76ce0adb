"""Scrub: reads and verifies every block of every fragment, once in a period.

A walk over all chunks that keeps to its schedule: chunk n of N is looked at n/N of the period after
the walk began, sooner if that time has passed already. What it finds is queued for repair.

Asked for (``lode scrub``), a walk begins at once and goes as quickly as the rate allows; it takes
the place of one that keeps to a schedule.
"""

from __future__ import annotations

import structlog
import trio

from engine.cluster.membership import ask_for, asked_for
from engine.data.batch import layout_of
from engine.errors import EngineError
from engine.ids import ChunkId
from engine.meta import keyspace
from engine.meta.kv import ReadTransaction, Transaction
from engine.meta.records import ChunkRecord, decode_chunk
from engine.services.progress import Progress, ProgressRecord, Rate, count_chunks, walk_page
from engine.services.repair import queue_repair
from engine.store import Store

NAME = "scrub"
LOOK_AGAIN_S = 60.0
ASKED_EVERY_S = 5.0
"""So often every process looks whether a scrub was asked for."""
AT_ONCE = "at once"
DAMAGED = "damaged"
"""Counts in the progress: 1 if it was asked for; chunks with damaged or missing fragments."""
SHOW_EVERY_S = 60.0
"""So often a scrub that is ahead of its schedule shows that it still lives."""


class Scrub:
    def __init__(self, store: Store) -> None:
        self._store = store
        self._rate = Rate(store.config.scrub_rate)
        self._seen_ms = 0
        """What was asked for last, as far as ``wait`` knows."""
        self._looked_at = self._shown_at = float("-inf")
        self._overtaken = False
        """A scrub was asked for while one that keeps to a schedule is under way."""

    async def wait(self) -> None:
        """Return when a scrub may be due, or was asked for."""
        period_s = self._store.config.scrub_period_s
        left_s = min(LOOK_AGAIN_S, max(period_s, 0.1)) if period_s else LOOK_AGAIN_S
        while left_s > 0:
            await trio.sleep(min(left_s, ASKED_EVERY_S))
            left_s -= ASKED_EVERY_S
            try:
                asked_ms = await self._store.db.read(_asked)
            except EngineError:
                continue  # whoever works says so
            if asked_ms > self._seen_ms:
                self._seen_ms = asked_ms
                return

    async def work(self) -> None:
        """Scrub all chunks once, if that is due; resumes where another process was stopped.

        Raises: EngineError.
        """
        while True:
            progress = await self._next()
            if progress is None:
                return
            at_once = AT_ONCE in progress.record.counts
            period_s = 0.0 if at_once else self._store.config.scrub_period_s
            await self.run(progress, period_ms=period_s * 1000)
            if not self._overtaken:
                return

    async def _next(self) -> Progress | None:
        """Return the scrub to go on with, a new one if one is due, or None."""
        store = self._store
        period_ms = store.config.scrub_period_s * 1000
        progress = await Progress.load(store, NAME)
        asked_ms = await store.db.read(_asked)
        started_ms = progress.record.started_ms if progress is not None else 0
        if asked_ms and asked_ms >= started_ms:
            return await begin_scrub(store, at_once=True)
        if progress is not None and not progress.record.ended:
            return progress if period_ms or AT_ONCE in progress.record.counts else None
        if not period_ms or store.clock() - started_ms < period_ms:
            return None
        return await begin_scrub(store)

    async def run(self, progress: Progress, *, period_ms: float) -> int:
        """Go on with a scrub to its end; return how many chunks were found damaged.

        Args:
            period_ms: how long it is to take in all; 0: as quickly as the rate allows. With a
                period it ends early when a scrub is asked for.
        """
        store, record = self._store, progress.record
        self._overtaken = False
        damaged = 0
        seen = record.done

        async def visit(chunk_id: ChunkId, chunk: ChunkRecord) -> None:
            nonlocal damaged, seen
            if period_ms and await self._asked_meanwhile(progress, seen, period_ms):
                return
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
                    record.counts[DAMAGED] = record.counts.get(DAMAGED, 0) + 1
                    await queue_repair(store, chunk_id, bad, kind)
                    store.wake_repair()

        event = "chunk not scrubbed"
        while await walk_page(
            store, progress, visit, at_once=1, event=event, stop=lambda: self._overtaken
        ):
            if self._overtaken:
                return damaged
        await progress.end()
        structlog.get_logger().info(
            "scrubbed", chunks=record.done, bytes=record.size, left=record.left, damaged=damaged
        )
        return damaged

    async def _asked_meanwhile(self, progress: Progress, seen: int, period_ms: float) -> bool:
        """Wait until it is time for chunk number ``seen``; return whether to stop instead."""
        record = progress.record
        while True:
            now = trio.current_time()
            if now - self._looked_at >= ASKED_EVERY_S:
                self._looked_at = now
                self._overtaken = await self._store.db.read(_asked) >= record.started_ms
            due_ms = record.started_ms + period_ms * min(seen / max(record.total, 1), 1.0)
            ahead_s = (due_ms - self._store.clock()) / 1000
            if self._overtaken or ahead_s <= 0 or not record.total:
                return self._overtaken
            await trio.sleep(min(ahead_s, ASKED_EVERY_S))
            if trio.current_time() - self._shown_at >= SHOW_EVERY_S:
                self._shown_at = trio.current_time()
                await progress.save(now=True)


async def begin_scrub(store: Store, *, at_once: bool = False) -> Progress:
    progress = Progress.begin(store, NAME, NAME, total=await count_chunks(store))
    if at_once:
        progress.record.counts[AT_ONCE] = 1
    await progress.save(now=True)
    return progress


async def ask_for_scrub(store: Store) -> int:
    """Have everything scrubbed from now on; return the moment, in ms: a scrub that began later is
    it."""
    asked_ms = store.clock()

    async def body(tr: Transaction) -> None:
        ask_for(tr, [NAME], asked_ms)

    await store.db.run(body)
    return asked_ms


async def last_scrub(store: Store) -> ProgressRecord | None:
    """Return how far the last scrub came, ended or not."""
    progress = await Progress.load(store, NAME)
    return None if progress is None else progress.record


async def _asked(tr: ReadTransaction) -> int:
    return await asked_for(tr, NAME)


async def _still_there(store: Store, chunk_id: ChunkId, chunk: ChunkRecord) -> bool:
    """Return whether the chunk was neither deleted nor moved while it was read."""

    async def body(tr: ReadTransaction) -> bool:
        row = await tr.get(keyspace.chunk(chunk_id))
        return row is not None and decode_chunk(row).nodes == chunk.nodes

    return await store.db.read(body)
