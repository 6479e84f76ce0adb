"""The disk cache of a mount: blocks that were fetched before, on a disk nearby.

It is asked, and fed, only while that pays: when some node of the store is another machine's, or
when the store was slow lately. Reading from local drives that are quick goes past it.

What is fetched is copied and stored behind the reader's back; when the disk cannot keep up, blocks
are left out. Trouble with the folder costs the cache, never a read.

Memory: ``SLOTS`` blocks that wait to be stored, two runs of ``RUN_SIZE`` per stream that reads from
the cache (one is read while the other is used), and the open files of ``CacheFolder``; nothing
grows with the cache.

Concurrency: everything runs on the trio thread; the folder's calls go to threads.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from functools import partial
from time import perf_counter
from typing import TypeVar

import msgspec
import structlog
import trio

from engine.opened import BufferStream, ObjectStream, OpenedObject
from fs.cache_folder import BLOCK_SIZE, SEGMENT_BLOCKS, Block, Body, CacheFolder

T = TypeVar("T")

RUN_SIZE = 2 << 20
"""Read from the cache at once."""

SLOTS = 32
BATCH = 16
"""Blocks that are stored by one trip to a thread."""

AHEAD_BLOCKS = 8 * SEGMENT_BLOCKS
"""So far ahead a stream of the store looks for what is in the cache already."""

RUN_BLOCKS_MIN = 16
"""A stream of the store is not ended for fewer: to begin another costs more than they save."""

SLOW_S_MIN = 0.003
SLOW_RATE = 150e6
"""Bytes per second: a read that takes longer than both say was slow."""

SLOW_WEIGHT = 0.2
"""Of the latest read, in the share of slow ones. Over half of them make the store a slow one ..."""

SLOW_FOR_S = 60.0
"""... for so long."""

LOOK_S = 5.0
"""How often the nodes are looked at."""

PAUSE_S = 60.0
"""Nothing is stored for so long after an error of the disk."""

THREADS = 4


class CacheStats(msgspec.Struct):
    hits: int = 0
    """Blocks that were asked for and here."""
    misses: int = 0
    hit_bytes: int = 0
    dropped: int = 0
    """Blocks that were fetched and not stored: the disk could not keep up, or had an error."""
    errors: int = 0


class Slot:
    """A block on its way into the cache."""

    __slots__ = ("_memory", "body", "number")

    def __init__(self) -> None:
        self._memory = memoryview(bytearray(BLOCK_SIZE))
        self.body = Body(b"", 0)
        self.number = 0

    @property
    def data(self) -> memoryview:
        return self._memory[: self.body.length(self.number)]


class Ahead:
    """A run of blocks that is being read before somebody asks for it."""

    __slots__ = ("count", "done", "into", "number")

    def __init__(self, number: int, into: memoryview) -> None:
        self.number = number
        self.into = into
        self.count = 0
        """Bytes that were here; known when ``done``."""
        self.done = trio.Event()


class DiskCache:
    def __init__(
        self,
        folder: CacheFolder,
        *,
        remote: Callable[[], bool],
        log: structlog.typing.FilteringBoundLogger,
    ) -> None:
        """Take over ``folder``. ``remote``: some node of the store is not on this machine."""
        self.folder = folder
        self.stats = CacheStats()
        self._remote = remote
        self._log = log
        self._limiter = trio.CapacityLimiter(THREADS)
        self._free: list[Slot] = []
        self._made = 0
        self._send, self._receive = trio.open_memory_channel[Slot](SLOTS)
        self._is_remote = False
        self._looked_at = float("-inf")
        self._slow_until = float("-inf")
        self._slowness = 0.0
        self._paused_until = float("-inf")
        self._complained: set[tuple[str, int]] = set()
        self._nursery: trio.Nursery | None = None
        """Of what is read ahead, while ``run`` runs."""

    @property
    def pays(self) -> bool:
        """Say whether it is worth while to ask the cache, and to feed it."""
        now = trio.current_time()
        if now - self._looked_at > LOOK_S:
            self._looked_at = now
            self._is_remote = self._remote()
        return self._is_remote or now < self._slow_until

    def observe(self, size: int, seconds: float) -> None:
        """Learn how quick the store is: a reader waited so long for so many bytes."""
        was_slow = seconds > SLOW_S_MIN and size < seconds * SLOW_RATE
        self._slowness += (was_slow - self._slowness) * SLOW_WEIGHT
        if was_slow and self._slowness > 0.5:
            self._slow_until = trio.current_time() + SLOW_FOR_S

    async def run(self) -> None:
        """Store what is fetched, and read ahead, until cancelled."""
        try:
            async with trio.open_nursery() as self._nursery:
                await self._store_forever()
        finally:
            self._nursery = None

    async def _store_forever(self) -> None:
        await self._in_thread("look through", self.folder.scan, None)
        async for first in self._receive:
            slots = [first]
            while len(slots) < BATCH:
                try:
                    slots.append(self._receive.receive_nowait())
                except trio.WouldBlock:
                    break
            await self._store(slots)

    def close(self) -> None:
        """Call when nobody reads any more."""
        self.folder.close()

    async def _store(self, slots: list[Slot]) -> None:
        blocks = [Block(slot.body, slot.number, slot.data) for slot in slots]
        errors = self.stats.errors
        await self._in_thread("store", partial(self.folder.store, blocks), None)
        if self.stats.errors != errors:
            self._paused_until = trio.current_time() + PAUSE_S
            self.stats.dropped += len(slots)
        self._free += slots

    async def _in_thread(self, what: str, call: Callable[[], T], otherwise: T) -> T:
        """Run what waits for the disk; an error there is logged once and costs only the cache."""
        try:
            return await trio.to_thread.run_sync(call, limiter=self._limiter)
        except OSError as error:
            self.stats.errors += 1
            number = error.errno or errno.EIO
            if (what, number) not in self._complained:
                self._complained.add((what, number))
                self._log.warning(
                    "disk cache fails; going on without", doing=what, error=error.strerror
                )
            return otherwise

    # Asking

    async def read(self, body: Body, number: int, into: memoryview) -> int:
        """Fill ``into`` with blocks from ``number`` on; return how many bytes that are."""
        count = await self._in_thread("read", partial(self.folder.read, body, number, into), 0)
        if count:
            self.stats.hits += -(-count // BLOCK_SIZE)
            self.stats.hit_bytes += count
        else:
            self.stats.misses += 1
        return count

    def read_ahead(self, body: Body, number: int, into: memoryview) -> Ahead | None:
        """Begin to fill ``into``, which belongs to the reading until that is ``done``."""
        if self._nursery is None:
            return None
        ahead = Ahead(number, into)
        self._nursery.start_soon(self._read_ahead, body, ahead)
        return ahead

    async def _read_ahead(self, body: Body, ahead: Ahead) -> None:
        try:
            ahead.count = await self.read(body, ahead.number, ahead.into)
        finally:
            ahead.done.set()

    async def read_block(self, body: Body, number: int) -> bytearray | None:
        """Return a block, or None."""
        into = bytearray(body.length(number))
        count = await self.read(body, number, memoryview(into))
        return into if count == len(into) else None

    async def next_run(self, body: Body, number: int) -> int:
        """Return the block from ``number`` on where it is worth while to read from the cache
        again, as far as it was looked for; else where the look ended."""
        end = min(body.blocks, number + AHEAD_BLOCKS)
        return await self._in_thread(
            "read",
            partial(self.folder.next_run, body, number, end, RUN_BLOCKS_MIN),
            body.blocks,
        )

    # Feeding

    def slot(self, body: Body, number: int) -> Slot | None:
        """Return a slot for a block, to be given to ``store`` or ``give_back``; None: no room."""
        if trio.current_time() < self._paused_until:
            return None
        if self._free:
            slot = self._free.pop()
        elif self._made < SLOTS:
            self._made += 1
            slot = Slot()
        else:
            self.stats.dropped += 1
            return None
        slot.body, slot.number = body, number
        return slot

    def store(self, slot: Slot) -> None:
        """Let a full slot be stored."""
        self._send.send_nowait(slot)  # there is room for all slots

    def give_back(self, slot: Slot) -> None:
        self._free.append(slot)

    def offer(self, body: Body, number: int, data: bytes) -> None:
        """Keep a whole block, if there is room."""
        slot = self.slot(body, number)
        if slot is not None:
            slot.data[:] = data
            self.store(slot)


class CachedStream:
    """The bytes of a version from the cache where it has them, else from the store, which then
    feeds the cache.

    Iterate for buffers, each valid until the next step or ``aclose``. Raises what the store's
    streams raise.
    """

    __slots__ = (
        "_ahead",
        "_body",
        "_cache",
        "_collect_from",
        "_end",
        "_engine",
        "_opened",
        "_position",
        "_run",
        "_skip",
        "_slot",
        "_stop",
    )

    def __init__(self, cache: DiskCache, opened: OpenedObject, start: int, end: int) -> None:
        record = opened.info.record
        self._cache = cache
        self._opened = opened
        self._body = Body(bytes(record.data_id), record.size)
        self._position = start
        self._end = end
        self._engine: ObjectStream | BufferStream | None = None
        self._stop = start
        """Where the stream of the store ends."""
        self._skip = 0
        """Bytes that the store gives first and nobody asked for: they make a block whole."""
        self._run = memoryview(b"")
        self._ahead: Ahead | None = None
        self._slot: Slot | None = None
        self._collect_from = 0
        """Blocks before it are not collected: the disk could not keep up."""

    def __aiter__(self) -> CachedStream:
        return self

    async def __anext__(self) -> bytes | memoryview:
        if self._engine is not None and self._position >= self._stop:
            await self._close_engine()
        if self._position >= self._end:
            raise StopAsyncIteration
        if self._engine is None:
            found = await self._from_cache()
            if found:
                return found
            self._engine = await self._opened.stream(self._position, self._stop)
        while True:
            buffer = await self._from_engine()
            skipped = min(self._skip, len(buffer))
            self._skip -= skipped
            if skipped < len(buffer):
                return memoryview(buffer)[skipped:] if skipped else buffer

    async def _from_cache(self) -> memoryview | None:
        """Return what is here at the position; else set ``_stop`` and return None."""
        cache = self._cache
        self._stop = self._end
        if not cache.pays:
            return None
        number, within = divmod(self._position, BLOCK_SIZE)
        count = await self._next_run(number)
        if count:
            end = min(number * BLOCK_SIZE + count, self._end)
            found = self._run[within : end - number * BLOCK_SIZE]
            self._position = end
            return found
        following = await cache.next_run(self._body, number + 1)
        self._stop = min(self._end, following * BLOCK_SIZE)
        # The store reads and verifies whole blocks anyway.
        self._position, self._skip = number * BLOCK_SIZE, within
        return None

    async def _next_run(self, number: int) -> int:
        """Fill ``_run`` with blocks from ``number`` on, and let those behind them be read
        meanwhile; return how many bytes are here."""
        cache, ahead = self._cache, self._ahead
        self._ahead = None
        spare = memoryview(b"")
        last = -(-self._end // BLOCK_SIZE)
        if ahead is not None and ahead.number == number:
            await ahead.done.wait()
            spare, self._run = self._run, ahead.into
            count = ahead.count
        else:
            # What is being read ahead keeps its memory, and nobody looks at it.
            if not self._run:
                self._run = _memory(number, last)
            count = await cache.read(self._body, number, self._run)
        following = number + count // BLOCK_SIZE
        if count == len(self._run) and following < last:
            self._ahead = cache.read_ahead(self._body, following, spare or _memory(following, last))
        return count

    async def _from_engine(self) -> bytes | memoryview:
        assert self._engine is not None
        began = perf_counter()
        try:
            buffer = await self._engine.__anext__()
        except StopAsyncIteration:
            # Shorter than its record says; who reads sees it end.
            self._position = self._end = self._stop
            raise
        cache = self._cache
        cache.observe(len(buffer), perf_counter() - began)
        if cache.pays:
            self._collect(memoryview(buffer))
        self._position += len(buffer)
        return buffer

    def _collect(self, buffer: memoryview) -> None:
        """Copy whole blocks for the cache; ``buffer`` begins at the position."""
        body, cache = self._body, self._cache
        position = self._position
        while buffer:
            number, within = divmod(position, BLOCK_SIZE)
            count = min(len(buffer), body.length(number) - within)
            if within == 0 and number >= self._collect_from:
                self._slot = cache.slot(body, number)
                if self._slot is None:
                    # Few long holes are read faster than many short ones.
                    self._collect_from = (number // SEGMENT_BLOCKS + 1) * SEGMENT_BLOCKS
            if self._slot is not None:
                data = self._slot.data
                data[within : within + count] = buffer[:count]
                if within + count == len(data):
                    cache.store(self._slot)
                    self._slot = None
            buffer = buffer[count:]
            position += count

    async def _close_engine(self) -> None:
        engine, self._engine = self._engine, None
        slot, self._slot = self._slot, None
        if slot is not None:
            self._cache.give_back(slot)
        if engine is not None:
            await engine.aclose()

    async def aclose(self) -> None:
        """Release buffers. Does not wait for a disk."""
        self._run = memoryview(b"")
        self._ahead = None
        self._position = self._end
        await self._close_engine()


def _memory(number: int, last: int) -> memoryview:
    """Return room for a run of blocks from ``number`` on that ends before ``last``."""
    return memoryview(bytearray(min(RUN_SIZE, (last - number) * BLOCK_SIZE)))
