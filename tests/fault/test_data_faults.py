"""Failing nodes, cancelled requests and failing sources."""

from __future__ import annotations

import random
import threading

import msgspec
import pytest
import trio
import trio.testing

from engine.data.reader import Segment
from engine.errors import Corrupt, NoSpace, Unavailable
from engine.meta.records import ChunkData
from engine.node.contract import NodeDown
from tests.support.nodes import OWNER, BytesSource, open_cluster, segments

CONTENT = random.Random(5).randbytes(30_000)
SIZES = [200, 5_000, 30_000]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("remote", [False, True])
async def test_a_node_that_fails_mid_write_is_dropped_and_reported(size: int, remote: bool) -> None:
    async with open_cluster(remote=range(6) if remote else ()) as cluster:
        for node in cluster.nodes:
            if node is cluster.nodes[2]:
                node.memory.writes_left = 1 if size > 10_000 else 0
        staged = await cluster.put(CONTENT[:size])
        assert isinstance(staged.data, ChunkData)
        assert await cluster.get(staged) == CONTENT[:size]
        for chunk_id, record in staged.chunk_records(OWNER):
            states = await cluster.store.examine(chunk_id, record, deep=True)
            missing = [state for state in states if state.state != "whole"]
            assert (len(missing) > 0) == (chunk_id in staged.incomplete)
            assert len(set(record.nodes)) == len(record.nodes)
        if size > 300:  # all six nodes are in each chunk
            assert staged.incomplete
        assert cluster.open_writers == 0


async def test_a_write_goes_round_a_node_that_refuses() -> None:
    async with open_cluster(nodes=8) as cluster:
        cluster.nodes[0].memory.down = True
        cluster.nodes[1].memory.full = True
        staged = await cluster.put(CONTENT)
        assert staged.incomplete == []
        assert cluster.fragments == 18
        for _, record in staged.chunk_records(OWNER):
            assert len(set(record.nodes)) == 6
        assert await cluster.get(staged) == CONTENT


async def test_missing_fragments_are_given_to_the_nodes_that_lack_them() -> None:
    async with open_cluster() as cluster:
        cluster.nodes[3].memory.down = True
        staged = await cluster.put(CONTENT)
        assert len(staged.incomplete) == 3
        for chunk_id, record in staged.chunk_records(OWNER):
            assert set(record.nodes) == {node.node_id for node in cluster.nodes}
            index = record.nodes.index(cluster.nodes[3].node_id)
            states = await cluster.store.examine(chunk_id, record, deep=False)
            assert [s.index for s in states if s.state != "whole"] == [index]
            assert states[index].state == "down"
        cluster.nodes[3].memory.down = False
        cluster.clock[0] += 60
        for chunk_id, record in staged.chunk_records(OWNER):
            index = record.nodes.index(cluster.nodes[3].node_id)
            await cluster.store.rebuild(chunk_id, record, [index], {index: cluster.nodes[3]})
        assert cluster.fragments == 18


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("remote", [False, True])
@pytest.mark.parametrize("fault", ["down", "full", "writes", "commit"])
async def test_too_few_nodes_fail_the_write_and_leave_nothing(
    size: int, remote: bool, fault: str
) -> None:
    async with open_cluster(remote=range(6) if remote else ()) as cluster:
        for node in cluster.nodes[:5]:
            match fault:
                case "down":
                    node.memory.down = True
                case "full":
                    node.memory.full = True
                case "writes":
                    node.memory.writes_left = 1 if size > 10_000 else 0
                case _:
                    node.memory.fail_commit = True
        with pytest.raises(NoSpace if fault == "full" else Unavailable):
            await cluster.put(CONTENT[:size])
        assert cluster.fragments == 0
        assert cluster.open_writers == 0
        assert cluster.store.buffers.outstanding == 0


@pytest.mark.parametrize(
    ("profile", "lost", "enough"),
    [
        ("4+2", 1, True),
        ("4+2", 2, False),
        ("2+1", 0, True),
        ("2+1", 1, False),
        ("3+0", 0, True),
        ("3+0", 1, False),
        ("1+1", 1, False),
        ("1+0", 0, True),
    ],
)
async def test_a_write_needs_one_fragment_more_than_reading(
    profile: str, lost: int, enough: bool
) -> None:
    async with open_cluster(profile) as cluster:
        for node in cluster.nodes[:lost]:
            node.memory.fail_commit = True
        if enough:
            await cluster.put(CONTENT)
        else:
            with pytest.raises(Unavailable):
                await cluster.put(CONTENT)
            assert cluster.fragments == 0


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("announce", [True, False])
async def test_a_failing_source_leaves_nothing(size: int, announce: bool) -> None:
    class Broken(BytesSource):
        async def readinto(self, buffer: memoryview) -> int:
            count = await super().readinto(buffer)
            if count == 0:
                raise ConnectionError("went away")
            return count

    async with open_cluster() as cluster:
        with pytest.raises(ConnectionError):
            await cluster.store.stage(
                Broken(CONTENT[:size], step=700),
                size=size if announce else None,
                algorithms=frozenset({"MD5"}),
            )
        assert cluster.fragments == 0
        assert cluster.open_writers == 0
        assert cluster.store.buffers.outstanding == 0


@pytest.mark.parametrize("announce", [True, False])
async def test_cancellation_at_any_point_leaves_nothing(announce: bool) -> None:
    """The source cancels its own request after each possible number of steps."""
    for steps in range(0, 45, 2):

        class Cancelling(BytesSource):
            left = steps

            async def readinto(self, buffer: memoryview) -> int:
                if self.left == 0:
                    scope.cancel()
                self.left -= 1
                return await super().readinto(buffer)

        async with open_cluster(remote=(1, 2)) as cluster:
            with trio.CancelScope() as scope:
                await cluster.store.stage(
                    Cancelling(CONTENT, step=700),
                    size=len(CONTENT) if announce else None,
                    algorithms=frozenset({"MD5"}),
                )
            assert scope.cancelled_caught or steps > 42
            if scope.cancelled_caught:
                assert cluster.fragments == 0
            assert cluster.open_writers == 0
            assert cluster.store.buffers.outstanding == 0


async def test_cancellation_while_slow_nodes_commit_leaves_nothing(
    autojump_clock: trio.testing.MockClock,
) -> None:
    for deadline in range(1, 12):
        async with open_cluster(remote=range(6)) as cluster:
            for number, node in enumerate(cluster.nodes):
                node.delay_s = 1.0 + number / 10
            with trio.move_on_after(deadline) as scope:
                await cluster.put(CONTENT)
            if scope.cancelled_caught:
                assert cluster.fragments == 0
            assert cluster.open_writers == 0
            assert cluster.store.buffers.outstanding == 0


async def test_cleaning_up_after_nodes_that_hang_is_limited_in_time(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with open_cluster(remote=range(6)) as cluster:
        staged = await cluster.put(CONTENT)
        for node in cluster.nodes:
            node.delay_s = 1e6
        before = trio.current_time()
        await staged.discard()
        assert trio.current_time() - before < 60


async def test_cleaning_up_does_not_wait_for_a_drive_that_hangs(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with open_cluster() as cluster:
        staged = await cluster.put(CONTENT)
        hang = threading.Event()
        cluster.nodes[2].memory.hang = hang
        try:
            await staged.discard()
            assert cluster.nodes[2].memory.fragments
        finally:
            hang.set()


async def test_a_record_that_cannot_be_is_corrupt() -> None:
    async with open_cluster() as cluster:
        staged = await cluster.put(CONTENT[:5_000])
        [(chunk_id, record)] = staged.chunk_records(OWNER)
        for wrong in (
            msgspec.structs.replace(record, nodes=record.nodes[:5]),
            msgspec.structs.replace(record, block_size=100),
            msgspec.structs.replace(record, size=0),
        ):
            stream = cluster.store.stream([Segment(chunk_id, wrong, 0, 10)])
            with pytest.raises(Corrupt):
                await anext(stream)
            await stream.aclose()
            with pytest.raises(Corrupt):
                await cluster.store.examine(chunk_id, wrong, deep=False)
        stream = cluster.store.stream([Segment(chunk_id, record, 0, 5_001)])
        with pytest.raises(Corrupt):
            await anext(stream)
        await stream.aclose()


async def test_damage_is_reported_once_per_fragment_and_read() -> None:
    async with open_cluster() as cluster:
        staged = await cluster.put(CONTENT[:10_000])
        [(chunk_id, record)] = staged.chunk_records(OWNER)
        content = cluster.fragment(chunk_id, record, 1)
        for stripe in (0, 3, 9):
            content[stripe * 288] ^= 1
        cluster.holder(record, 2).fragments.clear()
        assert await cluster.get(staged) == CONTENT[:10_000]
        assert sorted(cluster.damage) == [(chunk_id, 1, "damaged"), (chunk_id, 2, "missing")]


async def test_a_node_known_to_be_down_is_not_asked_again() -> None:
    async with open_cluster() as cluster:
        staged = await cluster.put(CONTENT[:10_000])
        [(_, record)] = staged.chunk_records(OWNER)
        down = cluster.holder(record, 0)
        down.down = True
        assert await cluster.get(staged) == CONTENT[:10_000]
        assert [kind for _, _, kind in cluster.damage] == ["down"]
        down.down, down.reads = False, 0
        assert await cluster.get(staged) == CONTENT[:10_000]
        assert down.reads == 0
        cluster.clock[0] += 60
        assert await cluster.get(staged) == CONTENT[:10_000]
        assert down.reads > 0


async def test_a_suspect_node_is_asked_when_nothing_else_is_left() -> None:
    async with open_cluster() as cluster:
        staged = await cluster.put(CONTENT)
        for node in cluster.nodes[:3]:
            cluster.store.pool.failed(node.node_id, NodeDown())
        assert await cluster.get(staged) == CONTENT


async def test_absent_nodes_count_as_down() -> None:
    async with open_cluster() as cluster:
        staged = await cluster.put(CONTENT)
        for node in cluster.nodes[:2]:
            cluster.store.pool.add_absent(node.node_id)
        assert await cluster.get(staged) == CONTENT
        cluster.store.pool.add_absent(cluster.nodes[2].node_id)
        with pytest.raises(Unavailable):
            await cluster.get(staged)


async def test_a_stream_closed_while_it_reads_ahead_releases_its_memory() -> None:
    from tests.support.nodes import small_config

    content = random.Random(6).randbytes(3 << 20)
    config = small_config(block_size=65_536, chunk_size=2 << 20, memory=64 << 20)
    async with open_cluster(config=config) as cluster:
        staged = await cluster.put(content)
        for node in cluster.nodes:
            node.memory.cold = True
        stream = cluster.store.stream(list(segments(staged)))
        received = await anext(stream)
        assert received == content[: len(received)]
        await stream.aclose()
        await stream.aclose()
        # The thread that reads ahead may still run; its limiter tells when it is done.
        while cluster.store.buffers.outstanding:  # noqa: ASYNC110  no event: a thread
            await trio.lowlevel.checkpoint()


async def test_more_damage_than_redundancy_fails_before_its_bytes_are_sent() -> None:
    async with open_cluster() as cluster:
        staged = await cluster.put(CONTENT)
        records = staged.chunk_records(OWNER)
        for index in (0, 1, 4):
            cluster.fragment(*records[1], index)[0] ^= 1
        stream = cluster.store.stream(list(segments(staged)))
        received = []

        async def consume() -> None:
            async for view in stream:
                received.append(bytes(view))

        with pytest.raises(Corrupt):
            await consume()
        await stream.aclose()
        assert b"".join(received) == CONTENT[: records[0][1].size]


async def test_a_rebuild_that_cannot_be_done_changes_nothing() -> None:
    async with open_cluster() as cluster:
        staged = await cluster.put(CONTENT[:5_000])
        [(chunk_id, record)] = staged.chunk_records(OWNER)
        for index in (0, 1, 4):
            cluster.fragment(chunk_id, record, index)[3 * 288] ^= 1
        before = [dict(node.memory.fragments) for node in cluster.nodes]
        target = next(n for n in cluster.nodes if n.node_id == record.nodes[0])
        with pytest.raises(Corrupt):
            await cluster.store.rebuild(chunk_id, record, [0], {0: target})
        assert [node.memory.fragments for node in cluster.nodes] == before
        assert cluster.open_writers == 0


@pytest.mark.parametrize("at_once", [True, False])
async def test_whatever_can_be_read_can_be_rebuilt(at_once: bool) -> None:
    """All fragments are damaged, each in another stripe, some in two."""
    async with open_cluster() as cluster:
        staged = await cluster.put(CONTENT[:10_000])
        [(chunk_id, record)] = staged.chunk_records(OWNER)
        before = [bytes(cluster.fragment(chunk_id, record, index)) for index in range(6)]
        for index in range(6):
            for stripe in {index, (index + 1) % 6}:
                cluster.fragment(chunk_id, record, index)[stripe * 288] ^= 1
        targets = {
            index: node
            for index, node_id in enumerate(record.nodes)
            for node in cluster.nodes
            if node.node_id == node_id
        }
        if at_once:
            await cluster.store.rebuild(chunk_id, record, range(6), targets)
        else:
            for index in range(6):
                await cluster.store.rebuild(chunk_id, record, [index], {index: targets[index]})
        assert [cluster.fragment(chunk_id, record, index) for index in range(6)] == before
        assert cluster.fragments == 6


async def test_a_rebuild_onto_another_node() -> None:
    async with open_cluster(nodes=7) as cluster:
        staged = await cluster.put(CONTENT[:5_000])
        [(chunk_id, record)] = staged.chunk_records(OWNER)
        before = bytes(cluster.fragment(chunk_id, record, 5))
        [other] = [node for node in cluster.nodes if node.node_id not in record.nodes]
        await cluster.store.rebuild(chunk_id, record, [5], {5: other})
        assert list(other.memory.fragments.values()) == [before]


@pytest.mark.parametrize("fault", ["down", "full", "writes", "commit"])
async def test_a_rebuild_whose_target_fails_is_a_storage_error(fault: str) -> None:
    async with open_cluster(nodes=7) as cluster:
        staged = await cluster.put(CONTENT[:5_000])
        [(chunk_id, record)] = staged.chunk_records(OWNER)
        [other] = [node for node in cluster.nodes if node.node_id not in record.nodes]
        other.memory.down = fault == "down"
        other.memory.full = fault == "full"
        other.memory.writes_left = 0 if fault == "writes" else None
        other.memory.fail_commit = fault == "commit"
        with pytest.raises(NoSpace if fault == "full" else Unavailable):
            await cluster.store.rebuild(chunk_id, record, [5], {5: other})
        assert cluster.open_writers == 0
        assert cluster.store.buffers.outstanding == 0


async def test_deleting_reports_chunks_whose_nodes_did_not_answer() -> None:
    async with open_cluster() as cluster:
        staged = await cluster.put(CONTENT)
        records = staged.chunk_records(OWNER)
        cluster.nodes[0].memory.down = True
        assert await cluster.store.delete_many(records) == {chunk_id for chunk_id, _ in records}
        assert cluster.fragments == 3
        cluster.nodes[0].memory.down = False
        assert await cluster.store.delete(*records[0])
        assert await cluster.store.delete_many(records) == set()
        assert cluster.fragments == 0
