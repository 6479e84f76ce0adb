"""Bugs to put into the engine on purpose: a simulation that does not find them proves nothing.

Each is a context manager that breaks one thing while it lasts. docs/decisions/0011-simulation.md
says how many seeds each took to be found. They may not patch and restore while tasks run: these
overlap.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any
from unittest.mock import PropertyMock, patch

import msgspec
import trio

import engine.commit
import engine.conditions
import engine.objects
import engine.services.collector
import engine.services.leases
import engine.services.repair
from engine.data.batch import Batch, Job
from engine.data.chunk_writer import ChunkWriter
from engine.data.layout import block_hash
from engine.data.writer import StagedData
from engine.errors import Unavailable
from engine.ids import ChunkId, NodeId
from engine.listing import Listings
from engine.meta.memory import MemoryDatabase
from engine.meta.records import ChunkRecord, SessionRecord, decode_chunk, decode_session
from engine.services.repair import read_chunk
from engine.sessions import Sessions
from engine.store import Store
from tests.support.disk import RecordingDisk
from tests.support.simulation_machine import ShelfWriter

Mutation = Callable[[], AbstractContextManager[None]]
MUTATIONS: dict[str, Mutation] = {}
MADE_UP_FOR = frozenset(
    {
        "leases-for-everybody",
        "missing-fragments-not-queued",
        "repair-over-when-half-done",
        "strays-not-compared",
    }
)
"""Bugs without a consequence that a client or fsck could see: census, fence and second looks make
up for them (the last needs a race that is too rare here)."""


def mutation(function: Callable[[], Iterator[None]]) -> Mutation:
    made = contextmanager(function)
    MUTATIONS[function.__name__.replace("_", "-")] = made
    return made


async def _no(*args: Any, **more: Any) -> int:
    await trio.lowlevel.checkpoint()
    return 0


def _verify_nothing(self: Any, job: Job) -> None:
    for position, stripe in enumerate(job.stripes):
        stripe.good[job.index] = job.blocks[position]


@mutation
def no_fence() -> Iterator[None]:
    """A commit does not look whether its session was declared dead."""

    async def fence(*args: Any) -> None:
        pass

    with patch.object(engine.commit, "fence", fence):
        yield


@mutation
def ack_with_k_fragments() -> Iterator[None]:
    """A write is acknowledged with k durable fragments instead of k + 1."""
    original = ChunkWriter.__init__

    def init(self: Any, *args: Any, **more: Any) -> None:
        original(self, *args, **more)
        self._required = self._coder.data_blocks

    with patch.object(ChunkWriter, "__init__", init):
        yield


@mutation
def ack_before_sync() -> Iterator[None]:
    """A node says that a fragment is durable before it is."""

    def commit(self: Any) -> None:
        self._open = False
        self._shelf.unsynced[self._fragment] = self._content

    with patch.object(ShelfWriter, "commit", commit):
        yield


@mutation
def drive_does_not_sync() -> Iterator[None]:
    """A real drive leaves its fdatasync out."""
    with patch.object(RecordingDisk, "fdatasync", lambda self, fd: None):
        yield


@mutation
def no_hash_check() -> Iterator[None]:
    """Readers take blocks as they come."""

    with patch.object(Batch, "verify", _verify_nothing):
        yield


@mutation
def late_blocks_taken_for_read() -> Iterator[None]:
    """A hedged read takes what lies in the buffers of a node that it gave up."""

    def defer(self: Any, job: Job) -> None:
        for position, stripe in enumerate(job.stripes):
            stripe.good[job.index] = job.blocks[position]

    with patch.object(Batch, "defer", defer):
        yield


@mutation
def conditions_checked_early_only() -> Iterator[None]:
    """Check, then act: the condition is looked at before the bytes come, not in the commit."""
    original = engine.objects.Objects._refuse_early
    check = engine.conditions.check_write
    early = False

    async def refuse_early(self: Any, *args: Any) -> None:
        nonlocal early
        early = True
        try:
            await original(self, *args)
        finally:
            early = False

    def check_write(*args: Any) -> None:
        if early:
            check(*args)

    with (
        patch.object(engine.objects.Objects, "_refuse_early", refuse_early),
        patch.object(engine.objects, "check_write", check_write),
    ):
        yield


@mutation
def reads_not_pinned() -> Iterator[None]:
    """The collector does not know of reads that are under way."""
    with patch.object(Sessions, "read_started", lambda self: 0):
        yield


@mutation
def garbage_taken_at_once() -> Iterator[None]:
    """The collector knows neither grace time nor horizon, nor reads of its own process."""

    async def now(store: Store) -> int:
        return store.clock()

    async def take(store: Store, counts: Any, grace_s: float) -> None:
        await original(store, counts, 0.0)

    original = engine.services.collector._take_garbage
    with (
        patch("engine.services.collector._read_horizon", now),
        patch("engine.services.collector._read_here", lambda store, deleted_ms: False),
        patch("engine.services.collector._take_garbage", take),
    ):
        yield


@mutation
def orphans_taken_without_a_look() -> Iterator[None]:
    """All that a dead session wrote is deleted, also what was committed."""
    with patch("engine.services.collector.is_owned", _no):
        yield


@mutation
def garbage_forgotten() -> Iterator[None]:
    """Replaced bytes are not written down as garbage."""
    with patch.object(Store, "discard", lambda self, tr, record: None):
        yield


@mutation
def discard_when_unknown() -> Iterator[None]:
    """Bytes are deleted when the outcome of their commit is not known."""
    original = engine.commit.commit

    async def commit(store: Any, staged: StagedData, body: Any) -> Any:
        try:
            return await original(store, staged, body)
        except Unavailable:
            await staged.discard()  # noqa: ASYNC120  shields itself
            raise

    with patch("engine.objects.commit", commit), patch("engine.multipart.commit", commit):
        yield


@mutation
def transactions_do_not_conflict() -> Iterator[None]:
    """Metadata: a commit does not check what the transaction has read."""
    with patch("engine.meta.memory._overlap", lambda written, read: False):
        yield


@mutation
def stale_reads() -> Iterator[None]:
    """Metadata: one read in ten is of an older snapshot."""
    original = MemoryDatabase.read
    history: list[Any] = []

    async def read(self: Any, body: Any) -> Any:
        if self._chaos.random() < 0.1 and history:
            with patch.object(self, "value_at", history[-1]):
                return await original(self, body)
        if self._chaos.random() < 0.1:
            rows = {key: self.value_at(key, self._version) for key in self._keys}
            history[:] = [lambda key, version: rows.get(key)]
        return await original(self, body)

    with patch.object(MemoryDatabase, "read", read):
        yield


@mutation
def missing_fragments_not_queued() -> Iterator[None]:
    """A write that left fragments out tells nobody; the census has to find them."""
    with patch.object(StagedData, "incomplete", PropertyMock(return_value=[])):
        yield


@mutation
def nobody_repairs() -> Iterator[None]:
    """The repair queue is not worked through."""
    with patch("engine.services.upkeep.repair_queue", _no):
        yield


@mutation
def repaired_without_a_look() -> Iterator[None]:
    """Repair takes a chunk off the queue although it did not look whether it is whole."""

    async def repair(store: Store, chunk_id: ChunkId, **more: Any) -> list[int]:
        record = await read_chunk(store, chunk_id)
        await engine.services.repair.settle(store, chunk_id, record, record, [])
        return []

    with patch("engine.services.repair.repair_chunk", repair):
        yield


@mutation
def repair_over_when_half_done() -> Iterator[None]:
    """Repair takes a chunk off the queue also when a node for some fragment was not to be had."""
    original = engine.services.repair.settle

    async def settle(*args: Any, **more: Any) -> bool:
        return await original(*args, **{**more, "whole": True})

    with patch("engine.services.repair.settle", settle):
        yield


@mutation
def rebuilt_from_what_was_read() -> Iterator[None]:
    """Repair does not verify the blocks from which it makes others."""

    class Trusting(Batch):
        verify = _verify_nothing

    with patch("engine.data.rebuild.Batch", Trusting):
        yield


@mutation
def leases_for_everybody() -> Iterator[None]:
    """Every gateway runs every service at the same time."""

    async def acquire(*args: Any, lease_s: float = 1.0) -> bool:
        await trio.lowlevel.checkpoint()
        return True

    with patch.object(engine.services.leases, "acquire", acquire):
        yield


@mutation
def sessions_declared_dead_at_once() -> Iterator[None]:
    """The collector takes every session of others for dead: the fence makes that safe."""

    def expired(row: bytes) -> SessionRecord:
        return msgspec.structs.replace(decode_session(row), expires_ms=0)

    with patch("engine.services.collector.decode_session", expired):
        yield


@mutation
def strays_not_compared() -> Iterator[None]:
    """A stray is deleted although a chunk names it there again."""

    def nowhere(row: bytes) -> ChunkRecord:
        record = decode_chunk(row)
        return msgspec.structs.replace(record, nodes=[NodeId(bytes(8)) for _ in record.nodes])

    with patch("engine.services.strays.decode_chunk", nowhere):
        yield


@mutation
def rebuilt_blocks_swapped() -> Iterator[None]:
    """A rebuild writes each block under the hash of another place."""

    def wrong(block: Any, chunk_id: Any, index: int, stripe: int) -> bytes:
        return block_hash(block, chunk_id, index, stripe + 1)

    with patch("engine.data.rebuild.block_hash", wrong):
        yield


@mutation
def listing_loses_the_last_key_of_a_page() -> Iterator[None]:
    """A page of a listing goes on one key too far."""
    original = Listings.objects

    async def objects(self: Any, *args: Any) -> Any:
        page = await original(self, *args)
        if page.next_after is not None and len(page.objects) > 1:
            return dataclasses.replace(page, objects=page.objects[:-1])
        return page

    with patch.object(Listings, "objects", objects):
        yield
