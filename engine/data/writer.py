"""``stage``: bytes of a source made durable, before any metadata owns them.

Up to ``inline_max`` bytes nothing is written at all: they go into the metadata store with the
record. Up to ``replicated_max`` one chunk of m + 1 copies. Above, coded chunks, streamed
(``pipeline.py``).
"""

from __future__ import annotations

from collections.abc import Iterable

import trio

from engine.data.buffers import Buffer
from engine.data.chunk_writer import UNDO_S_MAX, ChunkWriter
from engine.data.context import Context, first_error
from engine.data.digests import Digests, digests_of
from engine.data.layout import round_up
from engine.data.pipeline import Pipeline, Source, StripeBatch, fill
from engine.data.removal import delete_fragments
from engine.errors import IncompleteBody
from engine.ids import ChunkId, FragmentId, NodeId
from engine.meta.records import ChunkData, ChunkOwner, ChunkRecord, InlineData, InlineRow

__all__ = ["Source", "StagedData", "fill", "stage"]


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
    pipeline = Pipeline(context, source, size, algorithms)
    first = None
    if size is None:
        first = await pipeline.pull_first()
        if first.size <= config.replicated_max:
            return await _stage_small(context, first, algorithms)
    digests = await pipeline.run(first)
    return StagedData(
        context,
        ChunkData([(chunk.chunk_id, chunk.size) for chunk in pipeline.chunks]),
        inline=b"",
        size=pipeline.received,
        digests=digests,
        chunks=pipeline.chunks,
    )


async def _stage_small(
    context: Context, batch: StripeBatch, algorithms: frozenset[str]
) -> StagedData:
    """All bytes came, and they lie in one buffer."""
    [buffer] = batch.buffers
    try:
        if batch.size > context.config.inline_max:
            return await _stage_copies(context, buffer, batch.size, algorithms)
        return _inline(context, bytes(buffer.view[: batch.size]), algorithms)
    finally:
        buffer.release()


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
