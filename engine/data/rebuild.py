"""Looking at a chunk's fragments, and writing lost ones again.

A node may still have the damaged fragment under the id that is to be written. The new one is
written beside it and takes its place when it is committed, so a crash or a failure on the way
changes nothing, and the old one's good blocks serve as sources where all others are too few:
whatever can be read can be rebuilt.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Literal

import trio

from engine.data.batch import Batch, Damage, damage_of, layout_of, space_for
from engine.data.buffers import Buffer
from engine.data.context import BATCH_SIZE_MAX, Context, first_error
from engine.data.layout import HASH_SIZE, Layout, block_hash, hash_space
from engine.data.reader import INLINE_SIZE_MAX, read_batch
from engine.errors import NoSpace, StorageError, Unavailable
from engine.ids import ChunkId, NodeId, fragment_id
from engine.meta.records import ChunkRecord
from engine.node.contract import (
    Blocking,
    Node,
    NodeError,
    NodeFull,
    Writer,
)

_ABORT_S_MAX = 10.0
_BATCH_SIZE = 2 * BATCH_SIZE_MAX
"""Bytes that are read at once: nobody waits for the first of them, and each request costs both
sides more than a thread hop."""


@dataclass(frozen=True, slots=True)
class FragmentState:
    index: int
    node_id: NodeId
    state: Literal["whole", "missing", "damaged", "down"]
    bad_blocks: int = 0
    """Blocks that do not verify; only a deep examination looks."""


async def examine(
    context: Context, chunk_id: ChunkId, record: ChunkRecord, *, deep: bool
) -> list[FragmentState]:
    """Return the state of each fragment, in index order.

    Args:
        deep: read and verify every block; else only presence and size are looked at.
    Reads at most one batch of stripes of memory, one fragment after another.
    """
    layout = layout_of(chunk_id, record)
    found = await _stat_all(context, chunk_id, record)
    states: list[FragmentState] = []
    for index, node_id in enumerate(record.nodes):
        node = context.pool.get(node_id)
        size = found[index]
        bad = 0
        if node is None or isinstance(size, str):
            states.append(FragmentState(index, node_id, "down" if isinstance(size, int) else size))
            continue
        if size == layout.fragment_size and deep:
            try:
                bad = await _count_bad(context, node, chunk_id, index, layout)
            except NodeError as error:
                context.pool.failed(node_id, error)
                states.append(FragmentState(index, node_id, damage_of(error)))
                continue
        whole = size == layout.fragment_size and not bad
        states.append(FragmentState(index, node_id, "whole" if whole else "damaged", bad))
    return states


async def _stat_all(context: Context, chunk_id: ChunkId, record: ChunkRecord) -> list[int | Damage]:
    """Return each fragment's size in bytes, or why there is none.

    One hop for local nodes; the others are asked all at once.
    """
    found: list[int | Damage] = ["down"] * len(record.nodes)
    local: list[tuple[int, Blocking]] = []
    errors: list[tuple[NodeId, NodeError]] = []

    async def stat(index: int, node: Node) -> None:
        try:
            info = await node.stat(fragment_id(chunk_id, index))
            found[index] = info.size if info is not None else "missing"
        except NodeError as error:
            errors.append((node.node_id, error))

    def stat_local() -> None:
        for index, blocking in local:
            try:
                info = blocking.stat(fragment_id(chunk_id, index))
                found[index] = info.size if info is not None else "missing"
            except NodeError as error:
                errors.append((record.nodes[index], error))

    try:
        async with trio.open_nursery() as nursery:
            for index, node_id in enumerate(record.nodes):
                node = context.pool.get(node_id)
                if node is None:
                    continue
                if node.blocking is not None:
                    local.append((index, node.blocking))
                else:
                    nursery.start_soon(stat, index, node)
            if local:
                await trio.to_thread.run_sync(stat_local, limiter=context.limiters.disk)
    except BaseExceptionGroup as group:
        raise first_error(group) from None
    for node_id, failure in errors:
        context.pool.failed(node_id, failure)
    return found


async def _count_bad(
    context: Context, node: Node, chunk_id: ChunkId, index: int, layout: Layout
) -> int:
    """Return how many blocks of the fragment do not verify."""
    bad = 0
    step = max(1, BATCH_SIZE_MAX // 4 // layout.stride)
    buffer = context.buffers.acquire(min(step * layout.stride, layout.fragment_size))

    def check(first: int, last: int, content: memoryview) -> int:
        wrong = 0
        for stripe in range(first, last):
            at = layout.offset_of(stripe) - layout.offset_of(first)
            size = layout.block_size_of(stripe)
            expected = content[at + size : at + size + HASH_SIZE]
            wrong += block_hash(content[at : at + size], chunk_id, index, stripe) != expected
        return wrong

    def read_and_check(first: int, last: int, content: memoryview) -> int:
        assert node.blocking is not None
        node.blocking.read_into(
            fragment_id(chunk_id, index), layout.offset_of(first), [content], nowait=False
        )
        return check(first, last, content)

    try:
        for first in range(0, layout.stripe_count, step):
            last = min(first + step, layout.stripe_count)
            content = buffer.view[: layout.end_of(last - 1) - layout.offset_of(first)]
            if node.blocking is not None:
                bad += await trio.to_thread.run_sync(
                    read_and_check, first, last, content, limiter=context.limiters.disk
                )
            else:
                offset = layout.offset_of(first)
                await node.read_into(fragment_id(chunk_id, index), offset, [content])
                bad += check(first, last, content)
    finally:
        buffer.release()
    return bad


async def rebuild(
    context: Context,
    chunk_id: ChunkId,
    record: ChunkRecord,
    indexes: Collection[int],
    targets: Mapping[int, Node],
) -> None:
    """Write the fragments again, from the others; they are durable when this returns.

    Args:
        indexes: fragments to write; blocks of theirs that verify are read as a last resort.
        targets: for each of them, the node that gets it. When that is another node than the
            record names, the caller commits the changed record afterwards.
    Raises:
        Corrupt, Unavailable: what is there is not enough, or a target failed.
        NoSpace: a target has no room.
    After an error every fragment that was there before is still there.
    """
    if indexes:
        await _Rebuild(context, chunk_id, record, indexes, targets).run()


class _Rebuild:
    def __init__(
        self,
        context: Context,
        chunk_id: ChunkId,
        record: ChunkRecord,
        indexes: Collection[int],
        targets: Mapping[int, Node],
    ) -> None:
        self._context = context
        self._chunk_id = chunk_id
        self._record = record
        self._indexes = sorted(indexes)
        self._targets = targets
        self._layout = layout_of(chunk_id, record)
        self._coder = context.coders.get(record.data_blocks, record.parity_blocks)
        self._writers: dict[int, Writer] = {}

    async def run(self) -> None:
        current: NodeId | None = None
        try:
            for index in self._indexes:
                current = self._targets[index].node_id
                self._writers[index] = await self._targets[index].open_writer(
                    fragment_id(self._chunk_id, index), self._layout.fragment_size
                )
            current = None
            await self._read_all()
            async with trio.open_nursery() as nursery:
                for index in self._indexes:
                    nursery.start_soon(self._commit, index)
        except BaseException as caught:
            error = first_error(caught) if isinstance(caught, BaseExceptionGroup) else caught
            await self._abort()  # noqa: ASYNC102  shields itself, with a limit
            if isinstance(error, NodeError):
                if current is not None:
                    self._context.pool.failed(current, error)
                raise self._translated(error) from error  # noqa: ASYNC104
            if error is not caught:
                raise error from None  # noqa: ASYNC104  unwrapped, not lost
            raise

    def _translated(self, error: NodeError) -> StorageError:
        if isinstance(error, NodeFull):
            return NoSpace()
        return Unavailable(f"target of a rebuild of chunk {self._chunk_id.hex()}")

    async def _abort(self) -> None:
        with trio.move_on_after(_ABORT_S_MAX, shield=True):
            for writer in self._writers.values():
                await writer.abort()

    async def _commit(self, index: int) -> None:
        try:
            await self._writers[index].commit()
        except NodeError as error:
            self._context.pool.failed(self._targets[index].node_id, error)
            raise
        del self._writers[index]

    async def _read_all(self) -> None:
        """Read and decode every stripe; write what is to be written of each."""
        layout = self._layout
        count = max(1, _BATCH_SIZE // layout.stripe_size)
        buffers = self._context.buffers
        buffer = buffers.acquire_stripes(
            layout.stripe_size, min(count, layout.stripe_count), first=True
        )
        assert buffer is not None
        step = min(len(buffer.view) // layout.stripe_size, layout.stripe_count)
        parity = sum(index >= layout.data_blocks for index in self._indexes)
        made = buffers.acquire(max(1, step * parity * layout.block_size))
        try:
            for first in range(0, layout.stripe_count, step):
                last = min(first + step, layout.stripe_count)
                await self._read(buffer, first, last)
                await self._write(buffer.view, made.view, first, last)
        finally:
            made.release()
            buffer.release()

    async def _read(self, buffer: Buffer, first: int, last: int) -> None:
        layout = self._layout
        start, end = first * layout.stripe_size, min(last * layout.stripe_size, layout.size)
        batch = Batch(
            self._context.pool,
            self._context.buffers,
            self._coder,
            chunk_id=self._chunk_id,
            record=self._record,
            layout=layout,
            start=start,
            end=end,
            view=buffer.view,
            avoid=frozenset(self._indexes),
        )
        try:
            await read_batch(self._context, batch)
        finally:
            for failure in batch.failures:
                if failure.error is not None:
                    self._context.pool.failed(failure.node_id, failure.error)
                if failure.index not in self._indexes:
                    self._context.on_damage(self._chunk_id, failure.index, failure.kind)
            batch.release()
        # Blocks of nothing but padding were not read.
        space = space_for(layout, start, end)
        whole = (last - 1 - first) * layout.stripe_size
        whole += layout.block_size_of(last - 1) * layout.data_blocks
        buffer.view[space:whole] = bytes(whole - space)

    async def _write(self, data: memoryview, made: memoryview, first: int, last: int) -> None:
        if (last - first) * self._layout.stripe_size <= INLINE_SIZE_MAX:
            pieces = self._code(data, made, first, last)
        else:
            pieces = await trio.to_thread.run_sync(
                self._code, data, made, first, last, limiter=self._context.limiters.work
            )
        for index, writer in self._writers.items():
            try:
                await writer.write(pieces[index])
            except NodeError as error:
                self._context.pool.failed(self._targets[index].node_id, error)
                raise

    def _code(
        self, data: memoryview, made: memoryview, first: int, last: int
    ) -> dict[int, list[bytes | memoryview]]:
        """Return what is to be written of each fragment: blocks that lie in ``data``, or parity
        that is put into ``made``."""
        pieces: dict[int, list[bytes | memoryview]] = {index: [] for index in self._indexes}
        layout, data_blocks = self._layout, self._layout.data_blocks
        used = 0
        for stripe in range(first, last):
            at = (stripe - first) * layout.stripe_size
            size = layout.block_size_of(stripe)
            blocks = {
                index: data[at + index * size : at + (index + 1) * size]
                for index in range(data_blocks)
            }
            parity: dict[int, memoryview] = {}
            for index in self._indexes:
                if index >= data_blocks:
                    parity[index] = made[used : used + size]
                    used += size
            if parity:
                self._coder.recover_into(blocks, parity, size)
                blocks |= parity
            for index, out in pieces.items():
                block = blocks[index]
                digest = block_hash(block, self._chunk_id, index, stripe)
                out += (block, digest.ljust(hash_space(size), b"\0"))
        return pieces
