"""``ChunkStream``: byte ranges of chunks, verified, as buffers to send.

One thread hop reads and verifies a batch of stripes from all local drives whose bytes are in the
page cache; drives that must be waited for get a thread each, nodes of other processes none. Small
reads try the page cache on the trio thread first, which is cheaper than any hop. While one batch
is being sent the next is read, if the memory budget allows; several are, once the consumer had to
wait for nodes that take their time: then what one connection gets is not bound by their latency.

Concurrency: one consumer. Each batch that is read ahead is a task in the store's nursery. They
choose what they read one after the other, in the order of the bytes: position and segments belong
to the one that chooses, and to the consumer when none does.
"""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import trio

from engine.data.batch import Batch, Job, layout_of, space_for
from engine.data.buffers import Buffer
from engine.data.context import BATCH_SIZE_MAX, Context
from engine.data.hedging import read_cold
from engine.data.layout import Layout
from engine.errors import Corrupt
from engine.ids import ChunkId
from engine.meta.records import ChunkRecord

INLINE_SIZE_MAX = 256 * 1024
"""Reads up to so many bytes are tried on the trio thread: about what a thread hop costs."""

FIRST_BATCH_SIZE = 1 << 20
"""The first batch is this small, for the time to the first byte; each next one is doubled."""

AHEAD_SIZE_MIN = 256 * 1024
"""Sending less than this takes less time than a task that reads ahead."""

WAITED_SIZE = 2
"""Batches are so many times larger where nodes have to be waited for: each request to a member
costs as much as 1 MiB more of it."""

DEPTH_MAX = 2
"""Batches that are read ahead at most; 1 as long as the nodes keep up with the consumer. What is
under way leaves the processor's caches before it is used, so more of them cost more than they
gain."""

_CLOSE_S_MAX = 5.0


@dataclass(frozen=True, slots=True)
class Segment:
    """Bytes ``start`` to ``end`` (exclusive) of a chunk."""

    chunk_id: ChunkId
    record: ChunkRecord
    start: int
    end: int


Segments: TypeAlias = AsyncIterator[Segment] | Sequence[Segment]


async def read_batch(context: Context, batch: Batch, *, inline: bool = False) -> bool:
    """Make ``batch.content`` right, and say whether nodes had to be waited for.

    Args:
        inline: try the page cache on this thread first.
    Raises:
        Corrupt, Unavailable.
    What failed on the way stays in ``batch.failures``.
    """
    jobs: Sequence[Job] = batch.plan()
    waited = False
    while True:
        if jobs and not any(job.node.blocking for job in jobs):
            # Nothing of it can be had without waiting: a thread would only find that out.
            cold = jobs
        elif inline or (not jobs and batch.complete):
            cold = batch.advance(jobs)
        else:
            cold = await trio.to_thread.run_sync(batch.advance, jobs, limiter=context.limiters.work)
        if not cold:
            return waited
        inline = False
        waited = True
        await read_cold(context, batch, cold)
        jobs = batch.plan()


class _Chosen:
    """A batch that is to be read into ``buffer``."""

    __slots__ = ("batch", "buffer", "inline")

    def __init__(self, batch: Batch, buffer: Buffer, inline: bool) -> None:
        self.batch = batch
        self.buffer = buffer
        self.inline = inline


class _Ready:
    """A batch that was read: ``content`` lies in ``buffer``."""

    __slots__ = ("buffer", "content", "waited")

    def __init__(self, buffer: Buffer, content: memoryview, waited: bool) -> None:
        self.buffer = buffer
        self.content = content
        self.waited = waited
        """For nodes, not only for this machine's processors."""


class _Ahead:
    """Reading ahead: a task under way, then its outcome."""

    __slots__ = ("before", "chosen", "done", "error", "ready", "scope", "stopped")

    def __init__(self, before: _Ahead | None) -> None:
        self.before = before
        """The one that reads what comes before; None once that has chosen."""
        self.scope = trio.CancelScope()
        self.chosen = trio.Event()
        self.stopped = False
        """It chose nothing: the end, or no memory; so does each one behind it."""
        self.done = trio.Event()
        self.ready: _Ready | None = None
        self.error: BaseException | None = None


class ChunkStream:
    """Iterate for memoryviews, each valid until the next step or ``aclose``.

    Stopping early, on errors, or on cancellation: call ``aclose``; it never waits for a disk.

    Raises while iterating: Corrupt, Unavailable, and what the segments raise. Wrong bytes are
    never returned, but bytes may have been returned before an error is found.
    """

    def __init__(self, context: Context, segments: Segments) -> None:
        self._context = context
        self._segments = segments
        self._listed = 0
        """How many segments were taken, when they came as a sequence."""
        self._segment: Segment | None = None
        self._layout: Layout | None = None
        self._position = 0
        self._batch_size = FIRST_BATCH_SIZE
        self._waited = False
        """For nodes, when bytes were last handed out."""
        self._bad: dict[int, str] = {}
        """Fragments of this segment's chunk that failed, so that each is reported once."""
        self._current: Buffer | None = None
        self._aheads: deque[_Ahead] = deque()
        """In the order of the bytes."""
        self._depth = 1
        """How many of them there may be."""
        self._finished = False
        self._closed = False

    def __aiter__(self) -> ChunkStream:
        return self

    async def __anext__(self) -> memoryview:
        if self._current is not None:
            self._current.release()
            self._current = None
        if self._closed:
            raise StopAsyncIteration
        ready = None
        if self._aheads:
            ready = await self._await_ahead(self._aheads[0])
        if ready is None:
            chosen = await self._choose(first=True)
            ready = None if chosen is None else await self._read(chosen)
        if ready is None:
            raise StopAsyncIteration
        self._current = ready.buffer
        self._waited = ready.waited
        self._start_ahead(len(ready.content))
        return ready.content

    async def aclose(self) -> None:
        """Release everything; may be called more than once, and does not wait for reads: a
        thread that still reads releases its buffer itself."""
        self._closed = True
        if self._current is not None:
            self._current.release()
            self._current = None
        for ahead in self._aheads:
            if not ahead.done.is_set():
                ahead.scope.cancel()
            elif ahead.ready is not None:
                ahead.ready.buffer.release()
                ahead.ready = None
        if self._is_reading_ahead:
            return
        await self._close_segments()

    @property
    def _is_reading_ahead(self) -> bool:
        return any(not ahead.done.is_set() for ahead in self._aheads)

    async def _close_segments(self) -> None:
        segments = self._segments
        self._segments = ()
        if isinstance(segments, AsyncGenerator):
            with trio.move_on_after(_CLOSE_S_MAX, shield=True):
                await segments.aclose()

    async def _next_segment(self) -> Segment | None:
        segments = self._segments
        if not isinstance(segments, Sequence):
            return await anext(segments, None)
        if self._listed == len(segments):
            return None
        self._listed += 1
        return segments[self._listed - 1]

    async def _locate(self) -> tuple[Segment, Layout] | None:
        """Return the segment that holds the position, or None at the end."""
        while self._segment is None or self._position >= self._segment.end:
            if self._finished:
                return None
            segment = await self._next_segment()
            if segment is None:
                self._finished = True
                return None
            self._layout = layout_of(segment.chunk_id, segment.record)
            if not 0 <= segment.start <= segment.end <= segment.record.size:
                raise Corrupt(f"range outside of chunk {segment.chunk_id.hex()}")
            if self._segment is None or self._segment.chunk_id != segment.chunk_id:
                self._bad = {}
            self._segment = segment
            self._position = segment.start
        assert self._layout is not None
        return self._segment, self._layout

    def _take(self, segment: Segment, layout: Layout, *, first: bool) -> tuple[Buffer, int] | None:
        """Return a buffer and the end of the range to read into it, as the budget allows.

        ``first``: this request holds no buffer, so it gets one stripe in any case.
        """
        start = self._position
        count = max(1, self._batch_size // layout.stripe_size)
        stripe = start // layout.stripe_size
        while True:
            end = min((stripe + count) * layout.stripe_size, segment.end)
            size = space_for(layout, start, end)
            buffers = self._context.buffers
            if count == 1 and first:
                return buffers.acquire(size), end
            buffer = buffers.try_acquire(size)
            if buffer is not None:
                return buffer, end
            if count == 1:
                return None
            count //= 2

    async def _choose(self, *, first: bool) -> _Chosen | None:
        """Take the next bytes, and a buffer for them; None at the end, or when the budget refuses
        it (not ``first``)."""
        found = await self._locate()
        if found is None:
            return None
        segment, layout = found
        taken = self._take(segment, layout, first=first)
        if taken is None:
            return None
        buffer, end = taken
        start = self._position
        try:
            batch = Batch(
                self._context.pool,
                self._context.buffers,
                self._context.coders.get(layout.data_blocks, layout.parity_blocks),
                chunk_id=segment.chunk_id,
                record=segment.record,
                layout=layout,
                start=start,
                end=end,
                view=buffer.view,
                avoid=self._doubtful(segment.record),
            )
        except BaseException:
            buffer.release()
            raise
        self._position = end
        size_max = BATCH_SIZE_MAX * (WAITED_SIZE if self._waited else 1)
        self._batch_size = min(self._batch_size * 2, size_max)
        return _Chosen(batch, buffer, space_for(layout, start, end) <= INLINE_SIZE_MAX)

    async def _read(self, chosen: _Chosen) -> _Ready:
        batch = chosen.batch
        try:
            try:
                waited = await read_batch(self._context, batch, inline=chosen.inline)
            finally:
                self._report(batch)
                batch.release()
        except BaseException:
            chosen.buffer.release()
            raise
        return _Ready(chosen.buffer, batch.content, waited)

    def _doubtful(self, record: ChunkRecord) -> frozenset[int]:
        """Return the fragments that are not to be tried first."""
        bad = {index for index, kind in self._bad.items() if kind != "damaged"}
        return frozenset(bad | self._context.pace.slow(record.nodes))

    def _report(self, batch: Batch) -> None:
        failures, batch.failures = batch.failures, []
        for failure in failures:
            if failure.error is not None:
                self._context.pool.failed(failure.node_id, failure.error)
            if failure.index not in self._bad:
                self._bad[failure.index] = failure.kind
                self._context.on_damage(batch.chunk_id, failure.index, failure.kind)

    def _start_ahead(self, sent: int) -> None:
        """Begin to read what comes next while ``sent`` bytes go out."""
        nursery = self._context.nursery
        if nursery is None or self._finished or sent < AHEAD_SIZE_MIN:
            return
        assert self._segment is not None
        if self._position >= self._segment.end and (
            isinstance(self._segments, Sequence) and self._listed == len(self._segments)
        ):
            return
        aheads = self._aheads
        while len(aheads) < self._depth and not (aheads and aheads[-1].stopped):
            ahead = _Ahead(aheads[-1] if aheads else None)
            aheads.append(ahead)
            nursery.start_soon(self._read_ahead, ahead)

    async def _read_ahead(self, ahead: _Ahead) -> None:
        try:
            with ahead.scope:
                before, ahead.before = ahead.before, None
                if before is not None:
                    await before.chosen.wait()
                chosen = None
                if before is None or not before.stopped:
                    chosen = await self._choose(first=False)
                ahead.stopped = chosen is None
                ahead.chosen.set()
                if chosen is not None:
                    ahead.ready = await self._read(chosen)
        except Exception as error:  # noqa: BLE001  (raised again in the consumer)
            ahead.error = error
        finally:
            if not ahead.chosen.is_set():
                ahead.stopped = True
                ahead.chosen.set()
            ahead.done.set()
            if self._closed:
                if ahead.ready is not None:
                    ahead.ready.buffer.release()
                    ahead.ready = None
                if not self._is_reading_ahead:
                    await self._close_segments()  # noqa: ASYNC102  shields itself, with a limit

    async def _await_ahead(self, ahead: _Ahead) -> _Ready | None:
        was_late = not ahead.done.is_set()
        await ahead.done.wait()
        self._aheads.popleft()
        if ahead.error is not None:
            raise ahead.error
        ready = ahead.ready
        if ready is None:
            # Those behind it have chosen nothing either.
            self._aheads.clear()
        elif was_late and ready.waited:
            self._depth = min(self._depth + 1, DEPTH_MAX)
        return ready
