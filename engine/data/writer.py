"""``stage``: bytes of a source made durable, before any metadata owns them.

Up to ``inline_max`` bytes nothing is written at all: they go into the metadata store with the
record. Up to ``replicated_max`` one chunk of m + 1 copies. Above, coded chunks, streamed: while
one batch of stripes is hashed, coded and written in worker threads, the next is pulled from the
source. When the memory budget is short there is a single stripe, and the two take turns.

Concurrency: one ``_Pipeline`` per stage; its tasks are the pump (pulls the source), at most one
batch being processed, and at most one commit of a finished chunk.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Protocol

import trio

from engine.data.buffers import Buffer
from engine.data.chunk_writer import UNDO_S_MAX, ChunkWriter
from engine.data.context import BATCH_SIZE_MAX, Context, first_error
from engine.data.digests import Digests, digests_of
from engine.data.layout import round_up
from engine.data.removal import delete_fragments
from engine.errors import IncompleteBody
from engine.ids import ChunkId, FragmentId, NodeId
from engine.meta.records import ChunkData, ChunkOwner, ChunkRecord, InlineData, InlineRow


class Source(Protocol):
    """Bytes that are pulled. It is always read to its end, where it may check trailers."""

    async def readinto(self, buffer: memoryview) -> int:
        """Fill at least one byte of ``buffer`` and return how many; 0 only at the end."""


class StagedData:
    """Durable bytes that nobody owns yet: commit a record that names them, or ``discard``."""

    __slots__ = ("_chunks", "_context", "data", "digests", "inline", "kept", "size")

    def __init__(
        self,
        context: Context,
        data: InlineData | InlineRow | ChunkData,
        *,
        inline: bytes,
        size: int,
        digests: dict[str, bytes],
        chunks: Iterable[ChunkWriter] = (),
    ) -> None:
        self._context = context
        self._chunks = list(chunks)
        self.data = data
        self.inline = inline
        """The bytes, when ``data`` is an ``InlineRow``: to be set in the ``inline`` subspace."""
        self.size = size
        self.digests = digests
        """Raw big-endian digests, by algorithm."""
        self.kept = False
        """A commit that is refused leaves the bytes to whoever staged them."""

    @property
    def incomplete(self) -> list[ChunkId]:
        """Chunks that lack some fragments: to be queued for repair with their record."""
        return [chunk.chunk_id for chunk in self._chunks if chunk.incomplete]

    def chunk_records(self, owner: ChunkOwner) -> list[tuple[ChunkId, ChunkRecord]]:
        """Return the rows to commit together with the owner."""
        return [(chunk.chunk_id, chunk.record(owner)) for chunk in self._chunks]

    async def discard(self) -> None:
        """Delete what was staged. Never raises; shielded and limited in time; what could not be
        deleted is left to garbage collection."""
        chunks, self._chunks = self._chunks, []
        if not chunks:
            return
        by_node: dict[NodeId, list[FragmentId]] = {}
        for chunk in chunks:
            for node_id, fragments in chunk.fragments().items():
                by_node.setdefault(node_id, []).extend(fragments)
        with trio.move_on_after(UNDO_S_MAX, shield=True):
            await delete_fragments(
                self._context.pool, by_node, limiter=self._context.limiters.disk, abandon=True
            )


async def stage(
    context: Context, source: Source, *, size: int | None, algorithms: frozenset[str]
) -> StagedData:
    """Read the source to its end and return its bytes, durable, with their digests.

    Args:
        size: bytes announced; None when nobody knows.
        algorithms: digests to compute, of ``digests.ALGORITHMS``.
    Raises:
        IncompleteBody: more or fewer bytes came than announced.
        NoSpace: too few nodes had room.
        Unavailable: too few nodes answered.
        Whatever the source raises.
    After an error or cancellation no fragment is left, as far as nodes could still be reached.
    """
    config = context.config
    if size is not None and size <= config.inline_max:
        return await _stage_inline(context, source, size, algorithms)
    if size is not None and size <= config.replicated_max:
        buffer = context.buffers.acquire(round_up(size + 1))
        try:
            received = await fill(source, buffer.view[: size + 1])
            if received != size:
                raise IncompleteBody(size, received)
            return await _stage_copies(context, buffer, size, algorithms)
        finally:
            buffer.release()
    return await _Pipeline(context, source, size, algorithms).run()


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


async def _stage_inline(
    context: Context, source: Source, size: int, algorithms: frozenset[str]
) -> StagedData:
    # One byte more than announced, so that one loop also sees the end, or too many bytes.
    scratch = bytearray(size + 1)
    received = await fill(source, memoryview(scratch))
    if received != size:
        raise IncompleteBody(size, received)
    # Not resized: the source, or a thread that it uses, may still hold a view of it.
    return _inline(context, bytes(memoryview(scratch)[:size]), algorithms)


def _inline(context: Context, content: bytes, algorithms: frozenset[str]) -> StagedData:
    size = len(content)
    digests = digests_of(content, algorithms)
    if size <= context.config.inline_record_max:
        return StagedData(context, InlineData(content), inline=b"", size=size, digests=digests)
    return StagedData(context, InlineRow(), inline=content, size=size, digests=digests)


async def _stage_copies(
    context: Context, buffer: Buffer, size: int, algorithms: frozenset[str]
) -> StagedData:
    coder = context.coders.get(1, context.profile.parity)
    chunk = ChunkWriter(context, coder, block_size=context.config.block_size, size_max=size)
    digests = Digests(algorithms)
    try:
        await chunk.write([buffer.view], size, digests)
        await chunk.commit()
    except BaseException as error:
        await chunk.undo()  # noqa: ASYNC102  shields itself, with a limit
        if isinstance(error, BaseExceptionGroup):
            raise first_error(error) from None  # noqa: ASYNC104  unwrapped, not lost
        raise
    return StagedData(
        context,
        ChunkData([(chunk.chunk_id, size)]),
        inline=b"",
        size=size,
        digests=digests.result(),
        chunks=[chunk],
    )


class _Batch:
    """Bytes that came and are to be written in one step, in buffers of whole stripes."""

    __slots__ = ("buffers", "capacity", "size", "views")

    def __init__(self, buffers: Sequence[Buffer], stripe_size: int) -> None:
        self.buffers = buffers
        self.views = [
            buffer.view[: len(buffer.view) // stripe_size * stripe_size] for buffer in buffers
        ]
        self.capacity = sum([len(view) for view in self.views])
        self.size = 0

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


class _Pipeline:
    """Streams one source into coded chunks."""

    def __init__(
        self, context: Context, source: Source, size: int | None, algorithms: frozenset[str]
    ) -> None:
        self._context = context
        self._source = source
        self._expected = size
        self._algorithms = algorithms
        self._digests = Digests(algorithms)
        profile = context.profile
        self._coder = context.coders.get(profile.data, profile.parity)
        self._block_size = context.config.block_size
        self._stripe_size = profile.data * self._block_size
        self._received = 0
        self._ended = False
        """The source has said so."""
        self._room = 0
        """Bytes that the current chunk still takes; 0: the next byte begins another."""
        self._chunks: list[ChunkWriter] = []
        self._processed = _set_event()
        self._committed = _set_event()

    async def run(self) -> StagedData:
        try:
            batch = None
            if self._expected is None:
                batch = await self._pull_first()
                if batch.size <= self._context.config.replicated_max:
                    return await self._stage_small(batch)
            try:
                async with trio.open_nursery() as nursery:
                    await self._pump(nursery, batch)
            except BaseExceptionGroup as group:
                raise first_error(group) from None
        except BaseException:
            with trio.move_on_after(UNDO_S_MAX, shield=True):
                for chunk in self._chunks:
                    await chunk.undo()
            raise
        return StagedData(
            self._context,
            ChunkData([(chunk.chunk_id, chunk.size) for chunk in self._chunks]),
            inline=b"",
            size=self._received,
            digests=self._digests.result(),
            chunks=self._chunks,
        )

    async def _pull_first(self) -> _Batch:
        """Buffer enough of a source of unknown size to tell its class."""
        config = self._context.config
        stripes = config.replicated_max // self._stripe_size + 1
        buffer = self._context.buffers.acquire(stripes * self._stripe_size)
        capacity = min(stripes * self._stripe_size, config.chunk_size)
        return await self._fill(_Batch([buffer], self._stripe_size), capacity)

    async def _stage_small(self, batch: _Batch) -> StagedData:
        """All bytes came, and they lie in one buffer."""
        [buffer] = batch.buffers
        size = batch.size
        try:
            if size > self._context.config.inline_max:
                return await _stage_copies(self._context, buffer, size, self._algorithms)
            return _inline(self._context, bytes(buffer.view[:size]), self._algorithms)
        finally:
            buffer.release()

    async def _pump(self, nursery: trio.Nursery, batch: _Batch | None) -> None:
        """Pull batches and start their processing, each while the one before is processed."""
        chunk: ChunkWriter | None = None
        if batch is None:
            batch = await self._pull()
        while batch is not None:
            if chunk is None:
                try:
                    chunk = self._open_chunk()
                except BaseException:
                    batch.release()
                    raise
            self._received += batch.size
            self._room -= batch.size
            self._processed = trio.Event()
            nursery.start_soon(self._process, chunk, batch, self._processed)
            batch = await self._pull()
            try:
                await self._processed.wait()
                if batch is None or self._room == 0:
                    await self._committed.wait()
                    self._committed = trio.Event()
                    nursery.start_soon(self._commit, chunk, self._committed)
                    chunk = None
            except BaseException:
                if batch is not None:
                    batch.release()
                raise

    async def _pull(self) -> _Batch | None:
        """Return the next batch, which ends no later than the current chunk; None at the end.

        It takes part of the memory budget, or waits until the batch before is processed.
        """
        left = self._room or self._context.config.chunk_size
        if self._expected is not None:
            left = min(left, self._expected - self._received)
            if left == 0:
                await self._expect_end(self._expected)
        if self._ended:
            return None
        stripes = min(-(-left // self._stripe_size), self._batch_stripes())
        pool = self._context.buffers
        buffers: list[Buffer] = []
        if not self._processed.is_set():
            buffers = pool.acquire_run(self._stripe_size, stripes, first=False)
            if not buffers:
                await self._processed.wait()
        if not buffers:
            buffers = pool.acquire_run(self._stripe_size, stripes, first=True)
        batch = _Batch(buffers, self._stripe_size)
        room = self._room or self._context.config.chunk_size
        await self._fill(batch, min(batch.capacity, room))
        if batch.size == 0:
            batch.release()
            return None
        return batch

    def _batch_stripes(self) -> int:
        return max(1, BATCH_SIZE_MAX // self._stripe_size)

    async def _fill(self, batch: _Batch, capacity: int) -> _Batch:
        """Fill the batch from the source; on an error it is released."""
        try:
            await batch.fill(self._source, capacity)
            self._ended = batch.size < capacity
            received = self._received + batch.size
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
            size_max = min(size_max, self._expected - self._received)
        chunk = ChunkWriter(
            self._context, self._coder, block_size=self._block_size, size_max=size_max
        )
        self._chunks.append(chunk)
        self._room = size_max
        return chunk

    async def _process(self, chunk: ChunkWriter, batch: _Batch, done: trio.Event) -> None:
        try:
            work = self._context.limiters.work
            if self._digests.slow and work.borrowed_tokens * 2 < work.total_tokens:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._digest, batch)
                    await chunk.write(batch.views, batch.size, None)
            else:
                # Others keep the cores busy: a second thread would only cost.
                await chunk.write(batch.views, batch.size, self._digests)
        finally:
            batch.release()
        done.set()

    async def _digest(self, batch: _Batch) -> None:
        await trio.to_thread.run_sync(
            self._digests.update_each,
            batch.views,
            batch.size,
            limiter=self._context.limiters.work,
        )

    async def _commit(self, chunk: ChunkWriter, done: trio.Event) -> None:
        await chunk.commit()
        done.set()


def _set_event() -> trio.Event:
    event = trio.Event()
    event.set()
    return event
