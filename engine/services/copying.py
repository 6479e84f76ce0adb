"""Copying one fragment from node to node, and verifying one where it is."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import trio

from engine.data.batch import layout_of
from engine.data.context import BATCH_SIZE_MAX
from engine.data.layout import HASH_SIZE, Layout, block_hash
from engine.data.store import DataStore
from engine.ids import ChunkId, fragment_id
from engine.meta.records import ChunkRecord
from engine.node.contract import Node, NodeError, Writer

ABORT_S_MAX = 10.0


async def copy_fragment(
    data: DataStore,
    chunk_id: ChunkId,
    record: ChunkRecord,
    index: int,
    *,
    source: Node,
    target: Node,
) -> bool:
    """Copy a fragment; durable on ``target`` when this returns True.

    Returns: False when ``source`` does not give it, or not as it was written; then nothing is on
    ``target``.
    Raises: NodeError: ``target`` failed.
    Reads and writes at most ``BATCH_SIZE_MAX`` bytes at a time.
    """
    with _open(data, chunk_id, record, index) as fragment:
        writer: Writer | None = await target.open_writer(
            fragment.name, fragment.layout.fragment_size
        )
        try:
            for piece in fragment.pieces():
                content = await fragment.read(source, piece)
                if content is None:
                    return False
                assert writer is not None
                await writer.write([content])
            assert writer is not None
            await writer.commit()
            writer = None
            return True
        finally:
            if writer is not None:
                with trio.move_on_after(ABORT_S_MAX, shield=True):
                    await writer.abort()


async def has_whole_fragment(
    data: DataStore, chunk_id: ChunkId, record: ChunkRecord, index: int, node: Node
) -> bool:
    """Return whether the node has the fragment and every block of it verifies.

    Raises: NodeError: the node did not say whether it has it.
    """
    info = await node.stat(fragment_id(chunk_id, index))
    if info is None or info.size != layout_of(chunk_id, record).fragment_size:
        return False
    with _open(data, chunk_id, record, index) as fragment:
        for piece in fragment.pieces():
            if await fragment.read(node, piece) is None:
                return False
    return True


class _Fragment:
    """A fragment that is read piece by piece into one buffer."""

    def __init__(self, chunk_id: ChunkId, index: int, layout: Layout) -> None:
        self.name = fragment_id(chunk_id, index)
        self.layout = layout
        self._chunk_id = chunk_id
        self._index = index
        self._step = max(1, BATCH_SIZE_MAX // layout.offset_of(1))
        self.piece_size = min(self._step * layout.offset_of(1), layout.fragment_size)
        self.buffer = memoryview(b"")

    def pieces(self) -> Iterator[range]:
        """Yield the stripes that are read together."""
        count = self.layout.stripe_count
        for first in range(0, count, self._step):
            yield range(first, min(first + self._step, count))

    async def read(self, node: Node, stripes: range) -> memoryview | None:
        """Return the bytes of the stripes, in the buffer; None when the node does not give them,
        or not as they were written."""
        layout = self.layout
        offset = layout.offset_of(stripes.start)
        content = self.buffer[: layout.end_of(stripes.stop - 1) - offset]
        try:
            await node.read_into(self.name, offset, [content])
        except NodeError:
            return None
        whole = await trio.to_thread.run_sync(self._verifies, content, stripes)
        return content if whole else None

    def _verifies(self, content: memoryview, stripes: range) -> bool:
        layout = self.layout
        base = layout.offset_of(stripes.start)
        for stripe in stripes:
            at = layout.offset_of(stripe) - base
            size = layout.block_size_of(stripe)
            expected = content[at + size : at + size + HASH_SIZE]
            block = content[at : at + size]
            if block_hash(block, self._chunk_id, self._index, stripe) != expected:
                return False
        return True


@contextmanager
def _open(
    data: DataStore, chunk_id: ChunkId, record: ChunkRecord, index: int
) -> Iterator[_Fragment]:
    fragment = _Fragment(chunk_id, index, layout_of(chunk_id, record))
    buffer = data.buffers.acquire(fragment.piece_size)
    fragment.buffer = buffer.view
    try:
        yield fragment
    finally:
        buffer.release()
