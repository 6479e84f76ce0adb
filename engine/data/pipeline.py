"""``Pipeline``: streams one source into coded chunks, in bounded memory.

Three things, each at its own pace: the pump pulls batches of stripes from the source, a task codes
and writes them, and MD5, slower than everything else, is computed together with that of other
objects (``lanes.py``). A batch's memory is free when it was written and hashed.

Concurrency: used on the trio thread only.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Protocol, TypeAlias

import trio

from engine.data.buffers import Buffer
from engine.data.chunk_writer import UNDO_S_MAX, ChunkWriter
from engine.data.context import BATCH_SIZE_MAX, Context, first_error
from engine.data.digests import MD5, Digests
from engine.errors import IncompleteBody

DEPTH = 3
"""Batches that one stream holds at most: one that comes, one or two under way."""


class Source(Protocol):
    """Bytes that are pulled. It is always read to its end, where it may check trailers."""

    async def readinto(self, buffer: memoryview) -> int:
        """Fill at least one byte of ``buffer`` and return how many; 0 only at the end."""


async def fill(source: Source, view: memoryview) -> int:
    """Read until the view is full or the source ends; return the bytes read."""
    filled = await source.readinto(view)
    if filled == 0:
        return 0
    while filled < len(view):
        count = await source.readinto(view[filled:])
        if count == 0:
            break
        filled += count
    return filled


class StripeBatch:
    """Bytes that came and are to be written in one step, in buffers of whole stripes."""

    __slots__ = ("buffers", "capacity", "size", "users", "views")

    def __init__(self, buffers: Sequence[Buffer], stripe_size: int) -> None:
        self.buffers = buffers
        self.views = [
            buffer.view[: len(buffer.view) // stripe_size * stripe_size] for buffer in buffers
        ]
        self.capacity = sum([len(view) for view in self.views])
        self.size = 0
        self.users = 0
        """Who still reads it."""

    async def fill(self, source: Source, size_max: int) -> None:
        """Read until ``size_max`` bytes are there or the source ends."""
        for view in self.views:
            part = view[: size_max - self.size]
            if not part:
                return
            count = await fill(source, part)
            self.size += count
            if count < len(part):
                return

    def release(self) -> None:
        for buffer in self.buffers:
            buffer.release()


_Step: TypeAlias = tuple[ChunkWriter, StripeBatch | None]
"""A batch to write; None: the chunk is complete."""


class Pipeline:
    def __init__(
        self, context: Context, source: Source, size: int | None, algorithms: frozenset[str]
    ) -> None:
        """
        Args:
            size: bytes announced; None when nobody knows.
        """
        self.chunks: list[ChunkWriter] = []
        self.received = 0
        self._context = context
        self._digests = Digests(algorithms - {MD5})
        self._md5 = context.lanes.open() if MD5 in algorithms else None
        self._source = source
        self._expected = size
        profile = context.profile
        self._coder = context.coders.get(profile.data, profile.parity)
        self._block_size = context.config.block_size
        self._stripe_size = profile.data * self._block_size
        self._ended = False
        """The source has said so."""
        self._room = 0
        """Bytes that the current chunk still takes; 0: the next byte begins another."""
        self._stripes_next = 1
        self._held: set[StripeBatch] = set()
        self._released = trio.Event()
        """Set, and replaced, when a batch is done with."""
        self._committed = trio.Event()
        self._committed.set()

    async def pull_first(self) -> StripeBatch:
        """Buffer enough of a source of unknown size, in one buffer, to tell its class."""
        config = self._context.config
        stripes = config.replicated_max // self._stripe_size + 1
        buffer = self._context.buffers.acquire(stripes * self._stripe_size)
        capacity = min(stripes * self._stripe_size, config.chunk_size)
        return await self._fill(StripeBatch([buffer], self._stripe_size), capacity)

    async def run(self, first: StripeBatch | None) -> dict[str, bytes]:
        """Read the source to its end; return the digests when all is durable.

        Args:
            first: what ``pull_first`` returned; None: the size is known.
        Raises: what ``writer.stage`` does. No fragment is left then, as far as nodes answer.
        """
        if first is not None:
            self._held.add(first)
        try:
            try:
                send, receive = trio.open_memory_channel[_Step](DEPTH)
                # Closed last: a pump that meets a closed channel would hide why its writer ended.
                async with receive, trio.open_nursery() as nursery:
                    nursery.start_soon(self._write_all, receive, nursery)
                    async with send:
                        await self._pump(send, first)
                    md5 = await self._md5.digest() if self._md5 is not None else None
            except BaseExceptionGroup as group:
                raise first_error(group) from None
        except BaseException:
            with trio.move_on_after(UNDO_S_MAX, shield=True):
                for chunk in self.chunks:
                    await chunk.undo()
            raise
        finally:
            if self._md5 is not None:
                await self._md5.aclose()
            for batch in self._held:
                batch.release()
        digests = self._digests.result()
        if md5 is not None:
            digests[MD5] = md5
        return digests

    # Pulling

    async def _pump(self, send: trio.MemorySendChannel[_Step], batch: StripeBatch | None) -> None:
        chunk: ChunkWriter | None = None
        if batch is None:
            batch = await self._pull()
        while batch is not None:
            if chunk is None:
                chunk = self._open_chunk()
            self.received += batch.size
            self._room -= batch.size
            batch.users = 1
            if self._md5 is not None:
                batch.users = 2
                self._md5.add(batch.views, batch.size, partial(self._done, batch))
            await send.send((chunk, batch))
            if self._room == 0:
                await send.send((chunk, None))
                chunk = None
            batch = await self._pull()
        if chunk is not None:
            await send.send((chunk, None))

    async def _pull(self) -> StripeBatch | None:
        """Return the next batch, which ends no later than the current chunk; None at the end.

        It takes part of the memory budget, or waits until batches before are done with.
        """
        room = self._room or self._context.config.chunk_size
        left = room
        if self._expected is not None:
            left = min(left, self._expected - self.received)
            if left == 0:
                await self._expect_end(self._expected)
        if self._ended:
            return None
        stripes = min(-(-left // self._stripe_size), self._stripes_next)
        # Small at first: the sooner the digest begins, the sooner it ends.
        self._stripes_next = min(stripes * 2, max(1, BATCH_SIZE_MAX // self._stripe_size))
        batch = StripeBatch(await self._acquire(stripes), self._stripe_size)
        self._held.add(batch)
        await self._fill(batch, min(batch.capacity, room))
        if batch.size == 0:
            self._done(batch)
            return None
        return batch

    async def _acquire(self, stripes: int) -> list[Buffer]:
        while True:
            if len(self._held) < DEPTH:
                buffers = self._context.buffers.acquire_run(
                    self._stripe_size, stripes, first=not self._held
                )
                if buffers:
                    return buffers
            if self._md5 is not None:
                self._md5.urge()
            await self._released.wait()

    async def _fill(self, batch: StripeBatch, capacity: int) -> StripeBatch:
        """Fill the batch from the source; on an error it is released."""
        try:
            await batch.fill(self._source, capacity)
            self._ended = batch.size < capacity
            received = self.received + batch.size
            if self._expected is not None and (
                received > self._expected or (self._ended and received < self._expected)
            ):
                raise IncompleteBody(self._expected, received)
        except BaseException:
            batch.release()
            raise
        return batch

    async def _expect_end(self, expected: int) -> None:
        """All bytes came; read on to the end, where the source checks its trailers."""
        if not self._ended:
            extra = await self._source.readinto(memoryview(bytearray(1)))
            if extra:
                raise IncompleteBody(expected, expected + extra)
            self._ended = True

    def _open_chunk(self) -> ChunkWriter:
        size_max = self._context.config.chunk_size
        if self._expected is not None:
            size_max = min(size_max, self._expected - self.received)
        chunk = ChunkWriter(
            self._context, self._coder, block_size=self._block_size, size_max=size_max
        )
        self.chunks.append(chunk)
        self._room = size_max
        return chunk

    def _done(self, batch: StripeBatch) -> None:
        """One user less; with the last one the memory is free for the next batch."""
        batch.users -= 1
        if batch.users <= 0:
            batch.release()
            self._held.discard(batch)
            released, self._released = self._released, trio.Event()
            released.set()

    # Writing

    async def _write_all(
        self, receive: trio.MemoryReceiveChannel[_Step], nursery: trio.Nursery
    ) -> None:
        work = self._context.limiters.work
        spread = self._md5 is not None and work.borrowed_tokens * 2 < work.total_tokens
        async for chunk, batch in receive:
            if batch is None:
                await self._committed.wait()
                self._committed = trio.Event()
                nursery.start_soon(self._commit, chunk, self._committed)
                continue
            await chunk.write(batch.views, batch.size, self._digests, spread=spread)
            self._done(batch)

    async def _commit(self, chunk: ChunkWriter, done: trio.Event) -> None:
        await chunk.commit()
        done.set()
