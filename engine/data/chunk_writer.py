"""``ChunkWriter``: one chunk on its way to its nodes.

Life: ``write`` once per batch of stripes, then ``commit``, or ``undo`` at any point.

Nodes that live in this process are opened and written to inside the worker thread that hashes and
codes: one thread hop per batch serves all of them. The others are written to concurrently, from
tasks. A node that fails, or is much slower than the others, is dropped from the chunk; as long as
enough remain the write goes on.

Concurrency: one call at a time. ``_open``, ``_failures`` and ``_committed`` are changed by worker
threads, but only while the trio side waits for them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

import trio

from engine.data.coding import Coder
from engine.data.context import Context
from engine.data.digests import Digests
from engine.data.layout import HASH_SIZE, PAGE, Layout, block_hash, hash_space, round_up
from engine.data.removal import delete_fragments
from engine.data.stragglers import gather
from engine.errors import NoSpace, Unavailable
from engine.ids import ChunkId, FragmentId, NodeId, fragment_id
from engine.meta.records import ChunkOwner, ChunkRecord
from engine.node.contract import (
    BlockingWriter,
    Buffer,
    Node,
    NodeDown,
    NodeError,
    NodeFull,
    Writer,
)

_ZEROS = bytes(PAGE - HASH_SIZE)

UNDO_S_MAX = 10.0
"""How long cleaning up after a failed write may take; garbage collection does the rest."""


class _Fragment:
    """An open fragment: exactly one of the writers is set."""

    __slots__ = ("local", "node", "remote")

    def __init__(self, node: Node, local: BlockingWriter | None, remote: Writer | None) -> None:
        self.node = node
        self.local = local
        self.remote = remote


class ChunkWriter:
    def __init__(self, context: Context, coder: Coder, *, block_size: int, size_max: int) -> None:
        """
        Args:
            size_max: bytes of user data that will come at most; room is reserved for so many.
        Raises:
            Unavailable: fewer nodes are known than a chunk has fragments.
        """
        self.chunk_id: ChunkId = context.new_chunk_id()
        self.size = 0
        self.size_max = size_max
        self._context = context
        self._coder = coder
        self._block_size = block_size
        self._stripe_size = block_size * coder.data_blocks
        self._stripes = 0
        self._width = width = coder.data_blocks + coder.parity_blocks
        self._required = coder.data_blocks + 1 if coder.parity_blocks else coder.data_blocks
        if len(context.pool) < width:
            raise Unavailable(f"{width} nodes are needed, {len(context.pool)} are known")
        self._fragment_size_max = Layout(
            size_max, coder.data_blocks, coder.parity_blocks, block_size
        ).fragment_size
        self._untried: list[Node] = context.pool.place(self.chunk_id, self._required)[::-1]
        self._all_local = all(node.blocking is not None for node in self._untried)
        self._unopened = list(range(width))
        self._open: dict[int, _Fragment] = {}
        self._failures: list[tuple[NodeId, NodeError]] = []
        self._only_full: bool | None = None
        """Whether all failures so far were full nodes; None: there were none."""
        self._touched: dict[int, NodeId] = {}
        """Nodes on which a commit was at least begun, by index: what ``undo`` deletes."""
        self._committed: dict[int, NodeId] = {}

    @property
    def room(self) -> int:
        """Bytes that the chunk may still take."""
        return self.size_max - self.size

    @property
    def incomplete(self) -> bool:
        """After ``commit``: some fragments are missing and are to be rebuilt."""
        return len(self._committed) < self._width

    def record(self, owner: ChunkOwner) -> ChunkRecord:
        """Return the record of the committed chunk.

        A fragment that could not be written is given a node too, where it is to be rebuilt.
        """
        taken = set(self._committed.values())
        spare = iter(self._context.pool.spare(self.chunk_id, taken))
        nodes: list[NodeId] = []
        for index in range(self._width):
            node_id = self._committed.get(index) or next(spare, None)
            if node_id is None:
                raise Unavailable(f"{self._width} nodes are needed")
            nodes.append(node_id)
        coder = self._coder
        return ChunkRecord(
            1, self.size, coder.data_blocks, coder.parity_blocks, self._block_size, nodes, owner
        )

    async def write(
        self,
        views: Sequence[memoryview],
        size: int,
        digests: Digests,
        *,
        spread: bool = False,
    ) -> None:
        """Code ``size`` bytes, the content of the views one after another, and write them.

        Args:
            views: whole stripes each; what ``size`` leaves over in the last stripe is filled with
                zeros here. ``size`` is a multiple of the stripe size except in the last call.
            digests: updated in the same thread.
            spread: let two threads wait for the local drives: sooner done, for more CPU time.
        Raises:
            NoSpace, Unavailable: too few nodes are left.
        """
        limiter = self._context.limiters.work
        if self._all_local and not spread:
            await trio.to_thread.run_sync(self._write_all, views, size, digests, limiter=limiter)
        else:
            if not self._all_local:
                await self._open_mixed()
            scratch = self._context.buffers.acquire(self._scratch_size(size))
            try:
                pieces = await trio.to_thread.run_sync(
                    self._open_and_code, views, size, digests, scratch.view, limiter=limiter
                )
                if pieces:
                    await self._write_pieces(pieces)
            finally:
                scratch.release()
        self._settle()

    async def _write_pieces(self, pieces: Mapping[int, Sequence[Buffer]]) -> None:
        local = [(index, f.local) for index, f in self._open.items() if f.local is not None]
        errors: list[tuple[int, NodeError]] = []
        async with trio.open_nursery() as nursery:
            for part in (local[::2], local[1::2]):
                if part:
                    nursery.start_soon(
                        partial(
                            trio.to_thread.run_sync,
                            _write_each,
                            part,
                            pieces,
                            errors,
                            limiter=self._context.limiters.disk,
                        )
                    )
            remote = [(index, f) for index, f in self._open.items() if f.remote is not None]
            if remote:
                await self._write_all_remote(remote, pieces)
        for index, error in errors:
            self._drop(index, self._open[index], error)

    async def commit(self) -> None:
        """Make all fragments durable, in parallel.

        Raises:
            NoSpace, Unavailable: fewer than enough became durable. Call ``undo``.
        """
        if len(self._open) == 1 and self._all_local:
            [(index, only)] = self._open.items()
            await self._commit_one(index, only)
        else:
            # What is given up may yet become durable: its fragment is then an orphan.
            late = await gather(
                {
                    index: partial(self._commit_one, index, fragment)
                    for index, fragment in self._open.items()
                },
                required=self._required,
                patience_s=self._context.config.straggler_s,
            )
            for index in late:
                await self._give_up(self._open[index])
        self._open = {}
        self._settle(len(self._committed))

    async def undo(self) -> None:
        """Leave no fragment behind, as far as nodes answer in time. Never raises.

        Shielded from cancellation for up to ``UNDO_S_MAX`` seconds.
        """
        with trio.move_on_after(UNDO_S_MAX, shield=True):
            fragments = {i: f for i, f in self._open.items() if i not in self._committed}
            self._open = {}
            local = [f.local for f in fragments.values() if f.local is not None]
            if local:
                await trio.to_thread.run_sync(
                    _abort_all, local, limiter=self._context.limiters.disk, abandon_on_cancel=True
                )
            for fragment in fragments.values():
                if fragment.remote is not None:
                    await self._abort_remote(fragment.node, fragment.remote)
            await delete_fragments(
                self._context.pool,
                self.fragments(),
                limiter=self._context.limiters.disk,
                abandon=True,
            )

    def fragments(self) -> dict[NodeId, list[FragmentId]]:
        """Return the fragments that are, or may be, on nodes."""
        found: dict[NodeId, list[FragmentId]] = {}
        for index, node_id in self._touched.items():
            found.setdefault(node_id, []).append(fragment_id(self.chunk_id, index))
        return found

    # Opening: each round gives every index without a node the next node that was not tried.

    def _next_round(self) -> list[tuple[int, Node]]:
        pairs = []
        while self._unopened and self._untried:
            pairs.append((self._unopened.pop(0), self._untried.pop()))
        return pairs

    def _refused(self, index: int, node: Node, error: NodeError) -> None:
        self._note(node.node_id, error)
        self._unopened.append(index)

    def _open_local(self, pairs: Sequence[tuple[int, Node]]) -> None:
        for index, node in pairs:
            assert node.blocking is not None
            try:
                writer = node.blocking.open_writer(
                    fragment_id(self.chunk_id, index), self._fragment_size_max
                )
            except NodeError as error:
                self._refused(index, node, error)
            else:
                self._open[index] = _Fragment(node, writer, None)

    async def _open_remote(self, index: int, node: Node) -> None:
        try:
            writer = await node.open_writer(
                fragment_id(self.chunk_id, index), self._fragment_size_max
            )
        except NodeError as error:
            self._refused(index, node, error)
        else:
            self._open[index] = _Fragment(node, None, writer)

    async def _open_mixed(self) -> None:
        await self._open_untried()
        if len(self._open) < self._required and self._unopened:
            tried = {node_id for node_id, _ in self._failures}
            tried.update(fragment.node.node_id for fragment in self._open.values())
            self._untried = self._context.pool.last_resort(tried)
            await self._open_untried()

    async def _open_untried(self) -> None:
        while pairs := self._next_round():
            local = [pair for pair in pairs if pair[1].blocking is not None]
            async with trio.open_nursery() as nursery:
                for index, node in pairs:
                    if node.blocking is None:
                        nursery.start_soon(self._open_remote, index, node)
            if local:
                await trio.to_thread.run_sync(
                    self._open_local, local, limiter=self._context.limiters.work
                )

    # Writing

    def _write_all(self, views: Sequence[memoryview], size: int, digests: Digests) -> None:
        """In a worker thread, when all nodes are local: open, code and write.

        Scratch memory is taken here: there are only so many threads, and it stays warm.
        """
        scratch = self._context.buffers.acquire(self._scratch_size(size))
        try:
            pieces = self._open_and_code(views, size, digests, scratch.view)
            local = [(index, f.local) for index, f in self._open.items() if f.local is not None]
            errors: list[tuple[int, NodeError]] = []
            if pieces:
                _write_each(local, pieces, errors)
            for index, error in errors:
                self._drop(index, self._open[index], error)
        finally:
            scratch.release()

    def _open_and_code(
        self,
        views: Sequence[memoryview],
        size: int,
        digests: Digests,
        scratch: memoryview,
    ) -> dict[int, list[memoryview]]:
        """In a worker thread: return the bytes of each fragment; none when too few are open."""
        if self._all_local:
            while pairs := self._next_round():
                self._open_local(pairs)
        digests.update_each(views, size)
        if len(self._open) < self._required:
            return {}
        return self._code(views, size, scratch)

    async def _write_all_remote(
        self, remote: Sequence[tuple[int, _Fragment]], pieces: Mapping[int, Sequence[Buffer]]
    ) -> None:
        late = await gather(
            {
                index: partial(self._write_remote, index, fragment, pieces[index])
                for index, fragment in remote
            },
            required=self._required - (len(self._open) - len(remote)),
            patience_s=self._context.config.straggler_s,
        )
        for index, fragment in remote:
            if index in late:
                self._open.pop(index, None)
                await self._give_up(fragment)

    async def _give_up(self, fragment: _Fragment) -> None:
        self._note(fragment.node.node_id, NodeDown("too slow"))
        if fragment.remote is not None:
            await self._abort_remote(fragment.node, fragment.remote)

    async def _write_remote(
        self, index: int, fragment: _Fragment, pieces: Sequence[Buffer]
    ) -> bool:
        assert fragment.remote is not None
        try:
            await fragment.remote.write(pieces)
        except NodeError as error:
            self._drop(index, fragment, error)
            await self._abort_remote(fragment.node, fragment.remote)
            return False
        return True

    async def _abort_remote(self, node: Node, writer: Writer) -> None:
        try:
            await writer.abort()
        except NodeError as error:
            self._context.pool.failed(node.node_id, error)

    def _scratch_size(self, size: int) -> int:
        """Return the bytes that parity and hashes of ``size`` bytes take, next to the data."""
        stripes = -(-size // self._stripe_size)
        return stripes * (self._coder.parity_blocks * self._block_size + self._width * PAGE)

    def _code(
        self, views: Sequence[memoryview], size: int, scratch: memoryview
    ) -> dict[int, list[memoryview]]:
        """Return the bytes of each open fragment: slices of ``views``, and of ``scratch``."""
        pieces: dict[int, list[memoryview]] = {index: [] for index in self._open}
        at, left = 0, size
        for view in views:
            used = min(left, len(view))
            for start in range(0, used, self._stripe_size):
                rest = min(used - start, self._stripe_size)
                at += self._code_stripe(view[start:], rest, scratch[at:], pieces)
            left -= used
        self.size += size
        return pieces

    def _code_stripe(
        self,
        view: memoryview,
        size: int,
        scratch: memoryview,
        pieces: dict[int, list[memoryview]],
    ) -> int:
        """Append the blocks of one stripe and their hashes to the pieces of their fragments.

        Returns how many bytes of ``scratch`` the parity blocks and the hashes took.
        """
        count, parity_count = self._coder.data_blocks, self._coder.parity_blocks
        block_size = min(round_up(-(-size // count)), self._block_size)
        if count * block_size > size:
            view[size : count * block_size] = bytes(count * block_size - size)
        stripe = view[: count * block_size]
        blocks = [stripe[i * block_size : (i + 1) * block_size] for i in range(count)]
        at = 0
        if count == 1:
            blocks *= 1 + parity_count
        elif parity_count:
            at = parity_count * block_size
            self._coder.encode_into(stripe, scratch[:at])
            blocks += [scratch[i : i + block_size] for i in range(0, at, block_size)]
        # Parity blocks come first: where they are whole pages, the hashes begin at pages too.
        space = hash_space(block_size)
        for index, out in pieces.items():
            tail = scratch[at : at + space]
            at += space
            tail[:HASH_SIZE] = block_hash(blocks[index], self.chunk_id, index, self._stripes)
            if space > HASH_SIZE:
                tail[HASH_SIZE:] = _ZEROS
            out += (blocks[index], tail)
        self._stripes += 1
        return at

    # Failures and the end

    def _drop(self, index: int, fragment: _Fragment, error: NodeError) -> None:
        self._open.pop(index, None)
        self._note(fragment.node.node_id, error)

    def _note(self, node_id: NodeId, error: NodeError) -> None:
        self._failures.append((node_id, error))
        self._only_full = isinstance(error, NodeFull) and self._only_full is not False

    def _settle(self, durable: int | None = None) -> None:
        """Tell the pool what happened; raise if too few fragments are left."""
        failures, self._failures = self._failures, []
        for node_id, error in failures:
            self._context.pool.failed(node_id, error)
        left = len(self._open) if durable is None else durable
        if left < self._required:
            if self._only_full:
                raise NoSpace(f"{left} of {self._required} drives that a write needs have room")
            raise Unavailable(f"{left} of {self._required} nodes that a write needs")

    async def _commit_one(self, index: int, fragment: _Fragment) -> bool:
        """Return whether the fragment is durable now."""
        node_id = fragment.node.node_id
        try:
            if fragment.local is not None:
                await trio.to_thread.run_sync(
                    self._commit_local,
                    index,
                    node_id,
                    fragment.local,
                    limiter=self._context.limiters.disk,
                )
            else:
                assert fragment.remote is not None
                self._touched[index] = node_id
                await fragment.remote.commit()
                self._committed[index] = node_id
        except NodeError as error:
            self._note(node_id, error)
            if fragment.remote is not None:
                await self._abort_remote(fragment.node, fragment.remote)
            return False
        return True

    def _commit_local(self, index: int, node_id: NodeId, writer: BlockingWriter) -> None:
        self._touched[index] = node_id
        try:
            writer.commit()
        except NodeError:
            writer.abort()
            raise
        self._committed[index] = node_id


def _write_each(
    local: Sequence[tuple[int, BlockingWriter]],
    pieces: Mapping[int, Sequence[Buffer]],
    errors: list[tuple[int, NodeError]],
) -> None:
    """In a worker thread: write each fragment's bytes; abort, and note, those that fail."""
    for index, writer in local:
        try:
            writer.write(pieces[index])
        except NodeError as error:
            writer.abort()
            errors.append((index, error))


def _abort_all(writers: Sequence[BlockingWriter]) -> None:
    for writer in writers:
        writer.abort()
