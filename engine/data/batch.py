"""``Batch``: a run of stripes of one chunk, read into one buffer and verified.

What is read first is exactly the data blocks that cover the range asked for, each straight into
its final place: healthy data meets neither a decoder nor a copy. Where a block fails, other
blocks of its stripe are read, and the stripe is decoded.

``plan`` says what to read next, ``try_read`` and ``read`` do it on local nodes, ``verify`` takes
the outcome in, ``solve`` decodes. ``advance`` does all of that as far as it goes without waiting
for a disk or a network.

Concurrency: driven by one task. Jobs of one plan may be read by several threads at once: each
touches blocks of its own, and shared dicts and lists only by single operations.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, TypeAlias

from engine.data.buffers import Buffer, BufferPool
from engine.data.coding import Coder
from engine.data.layout import HASH_SIZE, Layout, block_hash
from engine.data.nodes import NodePool
from engine.errors import Corrupt, Unavailable
from engine.ids import ChunkId, NodeId, fragment_id
from engine.meta.records import ChunkRecord
from engine.node.contract import (
    FragmentDamaged,
    FragmentMissing,
    Node,
    NodeError,
)

Damage: TypeAlias = Literal["missing", "damaged", "down"]


def damage_of(error: NodeError) -> Damage:
    match error:
        case FragmentMissing():
            return "missing"
        case FragmentDamaged():
            return "damaged"
        case _:
            return "down"


class Failure:
    """One fragment that could not be used; ``error`` is None when a block did not verify."""

    __slots__ = ("error", "index", "kind", "node_id")

    def __init__(self, index: int, node_id: NodeId, kind: Damage, error: NodeError | None) -> None:
        self.index = index
        self.node_id = node_id
        self.kind: Damage = kind
        self.error = error


class _Stripe:
    __slots__ = ("block_size", "failed", "good", "number", "skipped", "wanted")

    def __init__(self, number: int, block_size: int, wanted: range) -> None:
        self.number = number
        self.block_size = block_size
        self.wanted = wanted
        """Data blocks asked for."""
        self.good: dict[int, memoryview] = {}
        """Verified blocks."""
        self.failed: dict[int, Damage] = {}
        self.skipped: set[int] = set()
        """Not tried since they would probably fail; the last resort."""


class Job:
    """One read: blocks and hashes of consecutive stripes of one fragment."""

    __slots__ = ("blocks", "buffers", "hashes", "index", "node", "offset", "stripes")

    def __init__(self, index: int, node: Node, offset: int) -> None:
        self.index = index
        self.node = node
        self.offset = offset
        self.stripes: list[_Stripe] = []
        self.blocks: list[memoryview] = []
        """Where the block of each stripe goes."""
        self.hashes: list[memoryview] = []
        self.buffers: list[memoryview] = []
        """What is read, in order: block, hash, what fills the hash's page; block ..."""

    def arrange(self, padding: memoryview) -> None:
        """Lay out what is read; ``padding`` takes what lies between a hash and the next block."""
        hashes = memoryview(bytearray(HASH_SIZE * len(self.blocks)))
        for position, block in enumerate(self.blocks):
            place = hashes[position * HASH_SIZE : (position + 1) * HASH_SIZE]
            self.hashes.append(place)
            if self.buffers and padding:
                self.buffers.append(padding)
            self.buffers += (block, place)


class Batch:
    def __init__(
        self,
        pool: NodePool,
        buffers: BufferPool,
        coder: Coder,
        *,
        chunk_id: ChunkId,
        record: ChunkRecord,
        layout: Layout,
        start: int,
        end: int,
        view: memoryview,
        avoid: frozenset[int] = frozenset(),
    ) -> None:
        """
        Args:
            start, end: range of bytes in the chunk, end exclusive, not empty.
            view: at least ``space_for(layout, start, end)`` bytes.
            avoid: fragments that failed lately: used only as a last resort.
        """
        self.chunk_id = chunk_id
        self.failures: list[Failure] = []
        """What failed since somebody last looked and cleared it."""
        self._pool = pool
        self._buffers = buffers
        self._coder = coder
        self._record = record
        self._layout = layout
        self._view = view
        self._extra: list[Buffer] = []
        self._data_blocks = layout.data_blocks
        self._base = first_block_at(layout, start)
        self._skip = start - self._base
        self._size = end - start
        doubtful = {
            index
            for index, node_id in enumerate(record.nodes)
            if index in avoid or pool.usable(node_id) is None
        }
        self._unfinished: list[_Stripe] = []
        for number in layout.stripes(start, end):
            stripe = _Stripe(
                number, layout.block_size_of(number), layout.blocks(number, start, end)
            )
            if doubtful:
                stripe.skipped = set(doubtful)
            self._unfinished.append(stripe)

    @property
    def content(self) -> memoryview:
        """The bytes asked for, once all is read and solved."""
        return self._view[self._skip : self._skip + self._size]

    def release(self) -> None:
        """Give back the memory taken for blocks beyond those asked for."""
        extra, self._extra = self._extra, []
        for buffer in extra:
            buffer.release()

    def plan(self) -> list[Job]:
        """Return what to read next; empty when every stripe can be solved.

        Raises:
            Corrupt: too much of a stripe is damaged or missing.
            Unavailable: enough may be whole, on nodes that do not answer.
        """
        jobs: list[Job] = []
        open_jobs: dict[int, Job] = {}
        for stripe in self._unfinished:
            for index in self._to_read(stripe):
                job = open_jobs.get(index)
                if job is None or job.stripes[-1].number != stripe.number - 1:
                    node = self._pool.get(self._record.nodes[index])
                    if node is None:
                        stripe.failed[index] = "down"
                        continue
                    job = Job(index, node, self._layout.offset_of(stripe.number))
                    open_jobs[index] = job
                    jobs.append(job)
                job.stripes.append(stripe)
                job.blocks.append(self._place_of(stripe, index))
        # Nobody looks at it, so all jobs read it to one place.
        padding = memoryview(bytearray(self._layout.stride - self._layout.block_size - HASH_SIZE))
        for job in jobs:
            job.arrange(padding)
        if not jobs and any(not self._solvable(stripe) for stripe in self._unfinished):
            return self.plan()  # a last resort turned out to be absent; there are finitely many
        return jobs

    def advance(self, jobs: Sequence[Job]) -> Sequence[Job]:
        """Read, verify and decode what can be had without waiting.

        Returns the jobs whose bytes are not in the page cache or not in this process; after
        they were read, call again with the next ``plan``. Empty: ``content`` is right.

        Raises: what ``plan`` raises.
        """
        while jobs:
            cold = [job for job in jobs if not self.try_read(job)]
            if cold:
                return cold
            jobs = self.plan()
        self.solve()
        return ()

    def try_read(self, job: Job) -> bool:
        """Read the job if that needs no waiting; return whether it is done (or failed)."""
        if job.node.blocking is None:
            return False
        try:
            fragment = fragment_id(self.chunk_id, job.index)
            if not job.node.blocking.read_into(fragment, job.offset, job.buffers, nowait=True):
                return False
        except NodeError as error:
            self.fail(job, error)
        else:
            self.verify(job)
        return True

    def read(self, jobs: Sequence[Job]) -> None:
        """Read jobs of one local node, waiting for its disk."""
        for job in jobs:
            assert job.node.blocking is not None
            try:
                job.node.blocking.read_into(
                    fragment_id(self.chunk_id, job.index), job.offset, job.buffers, nowait=False
                )
            except NodeError as error:
                self.fail(job, error)
            else:
                self.verify(job)

    def verify(self, job: Job) -> None:
        """Take in what was read: blocks that are what was once written."""
        damaged = False
        for position, stripe in enumerate(job.stripes):
            block = job.blocks[position]
            expected = job.hashes[position]
            if block_hash(block, self.chunk_id, job.index, stripe.number) == expected:
                stripe.good[job.index] = block
            else:
                stripe.failed[job.index] = "damaged"
                damaged = True
        if damaged:
            self.failures.append(Failure(job.index, job.node.node_id, "damaged", None))

    def fail(self, job: Job, error: NodeError) -> None:
        """Take in that nothing could be read."""
        kind = damage_of(error)
        for stripe in job.stripes:
            stripe.failed[job.index] = kind
        self.failures.append(Failure(job.index, job.node.node_id, kind, error))

    def defer(self, job: Job) -> None:
        """Take in that the job was given up; what it was to read is the last resort now."""
        for stripe in job.stripes:
            stripe.skipped.add(job.index)

    def can_do_without(self, jobs: Sequence[Job]) -> bool:
        """Return whether every stripe of the jobs has other fragments to be decoded from, of which
        nothing bad is known."""
        late: dict[int, set[int]] = {}
        stripes: dict[int, _Stripe] = {}
        for job in jobs:
            for stripe in job.stripes:
                late.setdefault(stripe.number, set()).add(job.index)
                stripes[stripe.number] = stripe
        return all(
            len(
                set(range(self._layout.width))
                - stripe.failed.keys()
                - stripe.skipped
                - late[number]
            )
            >= self._data_blocks
            for number, stripe in stripes.items()
        )

    def solve(self) -> None:
        """Decode the blocks asked for that could not be read, into their places."""
        for stripe in self._unfinished:
            good = stripe.good
            missing = [index for index in stripe.wanted if index not in good]
            if not missing:
                continue
            if self._data_blocks == 1:
                # Any copy was read into the place of block 0.
                continue
            places = {index: self._final_place(stripe, index) for index in missing}
            self._coder.recover_into(good, places, stripe.block_size)
        self._unfinished = []

    @property
    def complete(self) -> bool:
        """Nothing is left to read or to decode."""
        if self._data_blocks == 1:
            return all(stripe.good for stripe in self._unfinished)
        return all(index in stripe.good for stripe in self._unfinished for index in stripe.wanted)

    def _solvable(self, stripe: _Stripe) -> bool:
        return len(stripe.good) >= self._data_blocks or all(
            index in stripe.good for index in stripe.wanted
        )

    def _to_read(self, stripe: _Stripe) -> list[int]:
        """Return the fragments to read for the stripe: the blocks asked for if they can be had,
        else as many as decoding takes."""
        if self._solvable(stripe):
            return []
        good, failed = stripe.good, stripe.failed
        out = stripe.skipped
        missing = [index for index in stripe.wanted if index not in good]
        if self._data_blocks > 1 and not any(index in failed or index in out for index in missing):
            return missing
        need = self._data_blocks - len(good)
        candidates = [
            index
            for index in range(self._layout.width)
            if index not in good and index not in failed and index not in out
        ]
        if len(candidates) < need and out:
            candidates += [index for index in sorted(out) if index not in failed]
            stripe.skipped = set()
        if len(candidates) < need:
            down = sum(kind == "down" for kind in failed.values())
            what = f"stripe {stripe.number} of chunk {self.chunk_id.hex()}"
            if len(good) + len(candidates) + down >= self._data_blocks:
                raise Unavailable(what)
            raise Corrupt(what)
        return candidates[:need]

    def _place_of(self, stripe: _Stripe, index: int) -> memoryview:
        """Return where to read the block to."""
        if self._data_blocks == 1 or index in stripe.wanted:
            return self._final_place(stripe, index)
        extra = self._buffers.acquire(stripe.block_size)
        self._extra.append(extra)
        return extra.view[: stripe.block_size]

    def _final_place(self, stripe: _Stripe, index: int) -> memoryview:
        offset = stripe.number * self._layout.stripe_size - self._base
        if self._data_blocks > 1:
            offset += index * stripe.block_size
        return self._view[offset : offset + stripe.block_size]


def layout_of(chunk_id: ChunkId, record: ChunkRecord) -> Layout:
    """
    Raises:
        Corrupt: the record describes no possible chunk.
    """
    try:
        layout = Layout.of(record)
    except ValueError as error:
        raise Corrupt(f"record of chunk {chunk_id.hex()}") from error
    if len(record.nodes) != layout.width:
        raise Corrupt(f"record of chunk {chunk_id.hex()}")
    return layout


def first_block_at(layout: Layout, start: int) -> int:
    """Return the position in the chunk of the first byte of the block that holds ``start``."""
    stripe = start // layout.stripe_size
    size = layout.block_size_of(stripe)
    return start - (start - stripe * layout.stripe_size) % size


def space_for(layout: Layout, start: int, end: int) -> int:
    """Return the bytes of all data blocks that hold some of ``start``..``end`` (exclusive)."""
    stripe = (end - 1) // layout.stripe_size
    size = layout.block_size_of(stripe)
    last = stripe * layout.stripe_size
    return last + -(-(end - last) // size) * size - first_block_at(layout, start)
