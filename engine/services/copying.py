"""Copying one fragment from node to node, verified on the way."""

from __future__ import annotations

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
    source: Node,
    target: Node,
) -> bool:
    """Copy a fragment; durable on ``target`` when this returns True.

    Returns: False when ``source`` does not give it, or not as it was written; then nothing is on
    ``target``.
    Raises: NodeError: ``target`` failed.
    Reads and writes at most ``BATCH_SIZE_MAX`` bytes at a time.
    """
    layout = layout_of(chunk_id, record)
    fragment = fragment_id(chunk_id, index)
    stride = layout.offset_of(1)
    step = max(1, BATCH_SIZE_MAX // stride)
    buffer = data.buffers.acquire(min(step * stride, layout.fragment_size))
    writer: Writer | None = None
    try:
        writer = await target.open_writer(fragment, layout.fragment_size)
        for first in range(0, layout.stripe_count, step):
            last = min(first + step, layout.stripe_count)
            offset = layout.offset_of(first)
            content = buffer.view[: layout.end_of(last - 1) - offset]
            try:
                await source.read_into(fragment, offset, [content])
            except NodeError:
                return False
            whole = await trio.to_thread.run_sync(
                _verifies, content, layout, chunk_id, index, first, last
            )
            if not whole:
                return False
            await writer.write([content])
        await writer.commit()
        writer = None
        return True
    finally:
        try:
            if writer is not None:
                with trio.move_on_after(ABORT_S_MAX, shield=True):
                    await writer.abort()
        finally:
            buffer.release()


def _verifies(
    content: memoryview, layout: Layout, chunk_id: ChunkId, index: int, first: int, last: int
) -> bool:
    base = layout.offset_of(first)
    for stripe in range(first, last):
        at = layout.offset_of(stripe) - base
        size = layout.block_size_of(stripe)
        expected = content[at + size : at + size + HASH_SIZE]
        if block_hash(content[at : at + size], chunk_id, index, stripe) != expected:
            return False
    return True
