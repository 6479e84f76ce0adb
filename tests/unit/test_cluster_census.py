"""The census over many chunks: what it counts, where it goes on, and how little it holds."""

from __future__ import annotations

import tracemalloc
from bisect import bisect_right
from pathlib import Path

import trio

from engine.data.layout import Layout
from engine.ids import BucketId, ChunkId, DataId, FragmentId, NodeId, fragment_id
from engine.meta import keyspace
from engine.meta.kv import Transaction
from engine.meta.records import ChunkOwner, ChunkRecord, encode
from engine.node.contract import FragmentInfo, NodeDown
from engine.services.census import CHUNKS, Census, take_census
from engine.services.repair import repair_queue
from tests.support.logs import Logs
from tests.support.machines import Cluster, open_again, open_cluster
from tests.support.nodes import MemoryBlocking

OWNER = ChunkOwner(BucketId(b"bucket00"), b"key", 1, DataId(b"d" * 16))
SIZE = 4096
FRAGMENT = bytearray(Layout(SIZE, 4, 2, SIZE).fragment_size)


class Sorted(MemoryBlocking):
    """Lists without sorting all fragments for each page."""

    def __init__(self, names: list[FragmentId]) -> None:
        super().__init__()
        self.fragments = dict.fromkeys(names, FRAGMENT)
        self._names = names
        self.lists_left: int | None = None

    def list(self, after: bytes, limit: int) -> list[FragmentInfo]:
        self._check()
        if self.lists_left is not None:
            if not self.lists_left:
                raise NodeDown("while it was listed")
            self.lists_left -= 1
        at = bisect_right(self._names, after)
        some = [name for name in self._names[at : at + limit] if name in self.fragments]
        return [FragmentInfo(name, len(self.fragments[name])) for name in some]


def chunk_number(number: int) -> ChunkId:
    return ChunkId(bytes(10) + number.to_bytes(6, "big"))


async def fill(cluster: Cluster, count: int) -> dict[NodeId, Sorted]:
    """Make chunks without objects, and their fragments; return the drives' content."""
    names: dict[NodeId, list[FragmentId]] = {node_id: [] for node_id in cluster.pool.ids()}
    for begin in range(0, count, CHUNKS):

        async def body(tr: Transaction, begin: int = begin) -> None:
            for number in range(begin, min(begin + CHUNKS, count)):
                chunk_id = chunk_number(number)
                nodes = cluster.pool.wanted(chunk_id, 6)
                record = ChunkRecord(1, SIZE, 4, 2, SIZE, nodes, OWNER)
                tr.set(keyspace.chunk(chunk_id), encode(record))
                for index, node_id in enumerate(nodes):
                    names[node_id].append(fragment_id(chunk_id, index))

        await cluster.store.db.run(body)
    content = {node_id: Sorted(found) for node_id, found in names.items()}
    for machine in cluster.machines.values():
        for drive in machine.drives:
            if drive.node is not None:
                drive.node.memory = content[drive.node.node_id]
    return content


async def test_memory_does_not_depend_on_the_number_of_chunks(tmp_path: Path) -> None:
    peaks = []
    for count in (2 * CHUNKS, 8 * CHUNKS):
        async with open_cluster(tmp_path / str(count), members=7) as cluster:
            await fill(cluster, count)
            tracemalloc.start()
            try:
                census = await take_census(cluster.store)
                peaks.append(tracemalloc.get_traced_memory()[1])
            finally:
                tracemalloc.stop()
            assert (census.chunks, census.whole) == (count, 6 * count)
    assert peaks[1] < 1.5 * peaks[0]


async def test_a_killed_census_goes_on_and_counts_each_chunk_once(tmp_path: Path) -> None:
    async with open_cluster(tmp_path, members=7) as cluster:
        count = 3 * CHUNKS + 7
        await fill(cluster, count)
        await Census(cluster.store).run(lambda: True)  # one page, then the process is gone
        async with open_again(cluster.store.config, cluster.machines, cluster.clock) as other:
            (work,) = [w for w in (await other.engine.status()).work if w.name == "census"]
            assert (work.done, work.total) == (CHUNKS, count)
            census = await take_census(other.store)
        assert (census.chunks, census.fragments, census.whole) == (count, 6 * count, 6 * count)
        assert (census.missing, census.orphans) == (0, 0)


async def test_what_is_missing_short_or_without_an_owner_is_counted_and_queued(
    tmp_path: Path, logs: Logs
) -> None:
    logs.expect("fragments missing")
    async with open_cluster(tmp_path, members=7) as cluster:
        content = await fill(cluster, CHUNKS + 100)
        first, second, *_ = content.values()
        names = sorted(first.fragments)
        del first.fragments[names[3]]
        first.fragments[names[-3]] = FRAGMENT[:-1]
        orphan = FragmentId(b"\1" * 17)
        second.fragments[orphan] = FRAGMENT
        second._names.append(orphan)
        census = await take_census(cluster.store)
        assert (census.missing, census.orphans) == (2, 1)
        assert census.whole == census.fragments - 2
        assert (census.chunks_at_risk, census.chunks_unreadable) == (0, 0)
        assert await cluster.count(keyspace.REPAIR) == 2
        assert await cluster.count(keyspace.STRAY) == 1
        # What is known already is not queued again.
        await take_census(cluster.store)
        assert await cluster.count(keyspace.REPAIR) == 2


async def test_a_node_that_fails_while_it_is_listed_was_not_asked(
    tmp_path: Path, logs: Logs
) -> None:
    async with open_cluster(tmp_path, members=7) as cluster:
        content = await fill(cluster, 4 * CHUNKS)
        node_id, drive = next(iter(content.items()))
        drive.lists_left = 1
        census = await take_census(cluster.store)
        assert census.missing == 0
        assert 0 < census.unasked < len(drive.fragments)
        assert census.whole + census.unasked == census.fragments
        assert await cluster.count(keyspace.REPAIR) == 0
        # It is asked again soon, not after a day.
        drive.lists_left = None
        cluster.pool.recovered(node_id)
        cluster.clock.advance(120)
        assert await Census(cluster.store).due_in() == 0
        assert (await take_census(cluster.store)).unasked == 0


async def test_chunks_that_one_more_loss_would_lose_are_repaired_first(
    tmp_path: Path, logs: Logs
) -> None:
    logs.expect("fragments missing|chunk not repaired")
    async with open_cluster(tmp_path, members=7) as cluster:
        await fill(cluster, 20)
        late = chunk_number(19)
        for name, machines in cluster.found().items():
            (machine,) = machines
            node = cluster.machines[machine].drives[0].node
            assert node is not None
            # Of the last chunk two, of the others one.
            if name[16] < (2 if name[:16] == late else 1):
                del node.memory.fragments[name]
        census = await take_census(cluster.store)
        assert (census.missing, census.chunks_at_risk) == (21, 1)
        order: list[ChunkId] = []
        examine = cluster.store.data.examine

        async def note(chunk_id: ChunkId, record: ChunkRecord, *, deep: bool) -> object:
            order.append(chunk_id)
            await trio.lowlevel.checkpoint()
            return await examine(chunk_id, record, deep=deep)

        cluster.store.data.examine = note  # type: ignore[method-assign, assignment]
        await repair_queue(cluster.store)
        assert order[0] == late
        assert len(order) == 20
