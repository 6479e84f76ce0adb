"""Random objects, ranges, profiles and losses: right bytes, or a clear error, never wrong ones."""

from __future__ import annotations

import random

import trio
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.errors import Corrupt, StorageError, Unavailable
from engine.ids import FragmentId
from engine.meta.records import ChunkData, ChunkRecord
from tests.support.nodes import OWNER, Cluster, open_cluster, small_config

profiles = st.sampled_from(["1+0", "1+1", "1+2", "2+1", "3+0", "4+2", "10+4"])
sizes = st.one_of(st.integers(65, 3_000), st.integers(3_000, 25_000))


def fragment_of(chunk_id: bytes, index: int) -> FragmentId:
    return FragmentId(chunk_id + bytes([index]))


@settings(max_examples=150, deadline=None)
@given(
    profile=profiles,
    size=sizes,
    seed=st.integers(0, 2**32),
    block_size=st.sampled_from([64, 128, 320, 1024]),
    step=st.sampled_from([1 << 30, 999, 64]),
    announce=st.booleans(),
    memory=st.sampled_from([0, 20_000, 1 << 20]),
    data=st.data(),
)
def test_every_range_of_every_object_comes_back(
    profile: str,
    size: int,
    seed: int,
    block_size: int,
    step: int,
    announce: bool,
    memory: int,
    data: st.DataObject,
) -> None:
    content = random.Random(seed).randbytes(size)
    remote = data.draw(st.sets(st.integers(0, 13), max_size=14))

    async def main() -> None:
        config = small_config(block_size=block_size, memory=memory)
        async with open_cluster(profile, config=config, remote=sorted(remote)) as cluster:
            for node in cluster.nodes:
                node.memory.cold = data.draw(st.booleans())
            staged = await cluster.put(content, announce=announce, step=step)
            assert isinstance(staged.data, ChunkData)
            assert await cluster.get(staged) == content
            for _ in range(3):
                start = data.draw(st.integers(0, size - 1))
                end = data.draw(st.integers(start + 1, size))
                assert await cluster.get(staged, start, end) == content[start:end]
            assert cluster.damage == []
            assert cluster.store.buffers.outstanding == 0
            await staged.discard()
            assert cluster.fragments == 0

    trio.run(main)


def harm(
    cluster: Cluster, record: ChunkRecord, chunk_id: bytes, index: int, how: str, at: int
) -> None:
    holder = cluster.holder(record, index)
    fragment = fragment_of(chunk_id, index)
    match how:
        case "missing":
            holder.fragments.pop(fragment, None)
        case "short":
            content = holder.fragments.get(fragment)
            if content is not None:
                del content[at % len(content) :]
        case "down":
            holder.down = True
        case _:
            content = holder.fragments.get(fragment)
            if content:
                content[at % len(content)] ^= 1 << (at % 8)


harms = st.sampled_from(["missing", "short", "down", "flip"])


@settings(max_examples=150, deadline=None)
@given(
    profile=profiles,
    size=sizes,
    seed=st.integers(0, 2**32),
    data=st.data(),
)
def test_any_m_losses_are_survived(profile: str, size: int, seed: int, data: st.DataObject) -> None:
    """Down nodes are down for all chunks, so the lost ones are the same in each."""
    content = random.Random(seed).randbytes(size)

    async def main() -> None:
        async with open_cluster(profile) as cluster:
            staged = await cluster.put(content)
            records = staged.chunk_records(OWNER)
            parity = records[0][1].parity_blocks
            nodes = data.draw(
                st.lists(st.sampled_from(sorted(records[0][1].nodes)), max_size=parity, unique=True)
            )
            for node_id in nodes:
                how = data.draw(harms)
                for chunk_id, record in records:
                    at = data.draw(st.integers(0, 5_000))
                    harm(cluster, record, chunk_id, record.nodes.index(node_id), how, at)
            for node in cluster.nodes:
                node.memory.cold = data.draw(st.booleans())
            assert await cluster.get(staged) == content
            start = data.draw(st.integers(0, size - 1))
            end = data.draw(st.integers(start + 1, size))
            assert await cluster.get(staged, start, end) == content[start:end]
            assert cluster.store.buffers.outstanding == 0
            for chunk_id, index, _ in cluster.damage:
                record = dict(records)[chunk_id]
                assert record.nodes[index] in nodes, "healthy fragments are not accused"

    trio.run(main)


@settings(max_examples=150, deadline=None)
@given(
    profile=profiles,
    size=sizes,
    seed=st.integers(0, 2**32),
    down=st.booleans(),
    data=st.data(),
)
def test_one_loss_too_many_is_a_clear_error(
    profile: str, size: int, seed: int, down: bool, data: st.DataObject
) -> None:
    content = random.Random(seed).randbytes(size)

    async def main() -> None:
        async with open_cluster(profile) as cluster:
            staged = await cluster.put(content)
            chunk_id, record = data.draw(st.sampled_from(staged.chunk_records(OWNER)))
            lost = data.draw(
                st.lists(
                    st.integers(0, len(record.nodes) - 1),
                    min_size=record.parity_blocks + 1,
                    max_size=record.parity_blocks + 1,
                    unique=True,
                )
            )
            for index in lost:
                harm(cluster, record, chunk_id, index, "down" if down else "missing", 0)
            healthy = [i for i in range(record.data_blocks) if i not in lost]
            try:
                assert await cluster.get(staged) == content
            except Unavailable:
                assert down
            except Corrupt:
                assert not down
            else:
                # Data blocks of nothing but padding are not needed.
                assert len(healthy) < record.data_blocks < len(record.nodes) + 1
                assert needed_blocks(record) <= set(healthy)
            assert cluster.store.buffers.outstanding == 0

    trio.run(main)


def needed_blocks(record: ChunkRecord) -> set[int]:
    from engine.data.layout import Layout

    layout = Layout.of(record)
    return {
        block
        for stripe in range(layout.stripe_count)
        for block in layout.blocks(stripe, 0, record.size)
    }


@settings(max_examples=150, deadline=None)
@given(profile=profiles, size=sizes, seed=st.integers(0, 2**32), count=st.integers(1, 200))
def test_random_corruption_never_gives_wrong_bytes(
    profile: str, size: int, seed: int, count: int
) -> None:
    """Bytes flipped, blocks swapped with others of the same length, fragments exchanged."""
    chance = random.Random(seed)
    content = chance.randbytes(size)

    async def main() -> None:
        async with open_cluster(profile) as cluster:
            staged = await cluster.put(content)
            fragments = [
                (node.memory.fragments, fragment)
                for node in cluster.nodes
                for fragment in node.memory.fragments
            ]
            for _ in range(count):
                holder, fragment = chance.choice(fragments)
                other_holder, other = chance.choice(fragments)
                match chance.randrange(4):
                    case 0 | 1:
                        victim = holder[fragment]
                        victim[chance.randrange(len(victim))] = chance.randrange(256)
                    case 2:
                        block = 256 + 32
                        victim = holder[fragment]
                        stripes = len(victim) // block
                        if stripes > 1:
                            a, b = (chance.randrange(stripes) * block for _ in range(2))
                            victim[a : a + block], victim[b : b + block] = (
                                victim[b : b + block],
                                victim[a : a + block],
                            )
                    case _:
                        if chance.random() < 0.1:
                            mine, theirs = holder[fragment], other_holder[other]
                            holder[fragment], other_holder[other] = theirs, mine
            stream_error = False
            received = b""
            try:
                received = await cluster.get(staged)
            except StorageError:
                stream_error = True
            assert stream_error or received == content
            assert cluster.store.buffers.outstanding == 0

    trio.run(main)


@settings(max_examples=100, deadline=None)
@given(profile=profiles, size=sizes, seed=st.integers(0, 2**32), data=st.data())
def test_rebuilt_fragments_are_the_same_bytes(
    profile: str, size: int, seed: int, data: st.DataObject
) -> None:
    content = random.Random(seed).randbytes(size)

    async def main() -> None:
        async with open_cluster(profile) as cluster:
            staged = await cluster.put(content)
            for chunk_id, record in staged.chunk_records(OWNER):
                lost = data.draw(
                    st.lists(
                        st.integers(0, len(record.nodes) - 1),
                        max_size=record.parity_blocks,
                        unique=True,
                    )
                )
                before = {i: bytes(cluster.fragment(chunk_id, record, i)) for i in lost}
                for index in lost:
                    how = data.draw(st.sampled_from(["missing", "short", "flip"]))
                    at = data.draw(st.integers(1, 5_000))
                    harm(cluster, record, chunk_id, index, how, at)
                states = await cluster.store.examine(chunk_id, record, deep=True)
                assert [state.index for state in states if state.state != "whole"] == sorted(lost)
                targets = {
                    i: node
                    for i in lost
                    for node in cluster.nodes
                    if node.node_id == record.nodes[i]
                }
                await cluster.store.rebuild(chunk_id, record, lost, targets)
                for index in lost:
                    assert cluster.fragment(chunk_id, record, index) == before[index]
                states = await cluster.store.examine(chunk_id, record, deep=True)
                assert {state.state for state in states} == {"whole"}
            assert cluster.open_writers == 0
            assert cluster.store.buffers.outstanding == 0

    trio.run(main)
