"""Digests, buffers, placement and the node pool."""

from __future__ import annotations

import hashlib
import random
import zlib
from pathlib import Path

import pytest
from awscrt import checksums
from hypothesis import given
from hypothesis import strategies as st

from engine.data.buffers import Budget, BufferPool
from engine.data.digests import ALGORITHMS, Digests, combine, digests_of
from engine.data.isal import address_of
from engine.data.nodes import NodePool
from engine.data.placement import Candidate, place
from engine.ids import ChunkId, NodeId
from engine.node.contract import FragmentMissing, NodeDown, NodeFull
from tests.support.nodes import MemoryNode

MIB = 1 << 20
ROOT = Path(__file__).parents[2]


# Digests


@given(st.lists(st.binary(max_size=300), max_size=8))
def test_streamed_digests_equal_those_of_the_whole(pieces: list[bytes]) -> None:
    streamed = Digests(ALGORITHMS)
    for piece in pieces:
        streamed.update(piece)
    whole = b"".join(pieces)
    assert streamed.result() == digests_of(whole, ALGORITHMS)
    assert streamed.result()["SHA256"] == hashlib.sha256(whole).digest()
    assert streamed.result()["CRC32"] == zlib.crc32(whole).to_bytes(4, "big")


def test_check_values_of_the_crc_catalogue() -> None:
    found = digests_of(b"123456789", ALGORITHMS)
    assert found["CRC32"].hex() == "cbf43926"
    assert found["CRC32C"].hex() == "e3069283"
    assert found["CRC64NVME"].hex() == "ae8b14860a799888"


@pytest.mark.parametrize("algorithm", ["CRC32", "CRC32C", "CRC64NVME"])
@given(st.binary(max_size=200), st.binary(max_size=200))
def test_crcs_of_parts_combine_to_that_of_the_whole(
    algorithm: str, first: bytes, second: bytes
) -> None:
    a, b, whole = (
        digests_of(data, [algorithm])[algorithm] for data in (first, second, first + second)
    )
    assert combine(algorithm, a, b, len(second)) == whole


def test_unknown_algorithm_is_refused() -> None:
    with pytest.raises(KeyError):
        Digests({"CRC16"})


def test_large_views_are_digested() -> None:
    view = memoryview(bytearray(random.Random(1).randbytes(3 * MIB)))
    assert digests_of(view, ["CRC32C"])["CRC32C"] == checksums.crc32c(view).to_bytes(4, "big")


# Buffers


def test_returned_buffers_are_used_again() -> None:
    pool = BufferPool(Budget(0), idle_max=8 * MIB)
    first = pool.acquire(MIB)
    storage = first.view.obj
    first.release()
    assert pool.acquire(MIB).view.obj is storage


def test_buffers_of_a_new_size_take_the_place_of_those_nobody_asks_for() -> None:
    pool = BufferPool(Budget(0), idle_max=8 * MIB)
    for buffer in [pool.acquire(MIB) for _ in range(8)]:
        buffer.release()
    held = [pool.acquire(4 * MIB) for _ in range(2)]
    places = {address_of(buffer.view) for buffer in held}
    for buffer in held:
        buffer.release()
    assert pool.idle == 8 * MIB
    assert {address_of(pool.acquire(4 * MIB).view) for _ in range(2)} == places
    assert pool.idle == 0


def test_idle_buffers_are_bounded() -> None:
    pool = BufferPool(Budget(0), idle_max=3 * MIB)
    for buffer in [pool.acquire(MIB) for _ in range(10)]:
        buffer.release()
    assert pool.idle == 3 * MIB
    assert pool.outstanding == 0


def test_releasing_twice_counts_once() -> None:
    pool = BufferPool(Budget(16 * MIB), idle_max=0)
    buffer = pool.try_acquire(MIB)
    assert buffer is not None
    buffer.release()
    buffer.release()
    assert (pool.outstanding, pool.budget.held) == (0, 0)


@given(st.integers(1, 20 * MIB))
def test_a_buffer_is_at_most_a_quarter_larger_than_asked(size: int) -> None:
    pool = BufferPool(Budget(0), idle_max=0)
    got = pool._class_of(size)
    assert size <= got <= max(4096, size * 5 // 4)


def test_budget_bounds_what_is_granted_but_not_the_first_stripe() -> None:
    pool = BufferPool(Budget(16 * MIB), idle_max=0)
    granted = []
    while (buffer := pool.try_acquire(MIB)) is not None:
        granted.append(buffer)
    assert 8 <= len(granted) <= 16
    assert pool.acquire(MIB).view.nbytes >= MIB


def test_grants_shrink_as_the_budget_fills() -> None:
    pool = BufferPool(Budget(32 * MIB), idle_max=0)
    sizes = []
    while (buffer := pool.acquire_stripes(MIB, 4, first=False)) is not None:
        sizes.append(buffer.view.nbytes // MIB)
    assert sizes[0] == 4
    assert sizes[-1] == 1
    assert sizes == sorted(sizes, reverse=True)
    assert pool.acquire_stripes(MIB, 4, first=True) is not None


def test_a_run_of_buffers_takes_from_the_budget_all_but_its_first() -> None:
    pool = BufferPool(Budget(32 * MIB), idle_max=64 * MIB)
    run = pool.acquire_run(MIB, 4, first=True)
    assert [buffer.view.nbytes for buffer in run] == [MIB] * 4
    assert pool.budget.held == 3 * MIB
    taken = [run]
    while more := pool.acquire_run(MIB, 4, first=False):
        taken.append(more)
    assert [len(each) for each in taken] == sorted((len(each) for each in taken), reverse=True)
    assert pool.budget.held <= 32 * MIB
    assert len(pool.acquire_run(MIB, 4, first=True)) == 1
    storages = {id(buffer.view.obj) for each in taken for buffer in each}
    for buffer in (buffer for each in taken for buffer in each):
        buffer.release()
    assert pool.budget.held == 0
    again = pool.acquire_run(MIB, 8, first=False)
    assert {id(buffer.view.obj) for buffer in again} <= storages


def test_large_buffers_begin_at_pages() -> None:
    pool = BufferPool(Budget(0), idle_max=0)
    for size in (256 * 1024, MIB, 5 * MIB):
        assert address_of(pool.acquire(size).view) % 4096 == 0


# Placement


def chunk(number: int) -> ChunkId:
    return ChunkId(number.to_bytes(16, "big"))


def node(number: int) -> NodeId:
    return NodeId(number.to_bytes(8, "big"))


domains = st.one_of(
    st.just(()),
    st.tuples(st.sampled_from("ab")),
    st.tuples(st.sampled_from("abc"), st.sampled_from("xyz")),
)
clusters = st.lists(st.tuples(st.floats(0.1, 10), domains), max_size=14).map(
    lambda drawn: [Candidate(node(i), weight, domain) for i, (weight, domain) in enumerate(drawn)]
)


@given(st.integers(0, 1000), st.integers(1, 14), clusters, st.randoms())
def test_placement_is_distinct_deterministic_and_incremental(
    number: int, width: int, candidates: list[Candidate], chance: random.Random
) -> None:
    chosen = place(chunk(number), width, candidates)
    assert len(chosen) == len(set(chosen)) == min(width, len(candidates))
    shuffled = list(candidates)
    chance.shuffle(shuffled)
    assert place(chunk(number), width, shuffled) == chosen
    assert place(chunk(number), 14, candidates)[:width] == chosen


@given(
    st.integers(0, 1000), st.integers(1, 12), st.lists(st.integers(0, 3), min_size=1, max_size=12)
)
def test_fragments_spread_over_domains_as_widely_as_there_are(
    number: int, width: int, zones: list[int]
) -> None:
    candidates = [Candidate(node(i), domain=(str(zone),)) for i, zone in enumerate(zones)]
    chosen = place(chunk(number), width, candidates)
    counts = dict.fromkeys(zones, 0)
    for node_id in chosen:
        counts[zones[int.from_bytes(node_id, "big")]] += 1
    for zone, count in counts.items():
        if count < zones.count(zone):  # it has room left: so nobody has two more
            assert max(counts.values()) <= count + 1


def test_losing_a_node_moves_only_its_fragments() -> None:
    candidates = [Candidate(node(i)) for i in range(10)]
    for number in range(200):
        before = set(place(chunk(number), 4, candidates))
        after = set(place(chunk(number), 4, candidates[1:]))
        assert after >= before - {node(0)}


def test_load_follows_weight() -> None:
    candidates = [Candidate(node(i), weight=3.0 if i == 0 else 1.0) for i in range(4)]
    first = [place(chunk(number), 1, candidates)[0] for number in range(3000)]
    assert 0.45 < first.count(node(0)) / 3000 < 0.55
    assert 0.13 < first.count(node(1)) / 3000 < 0.20


# The pool of nodes


def make_pool(count: int) -> tuple[NodePool, list[MemoryNode], list[float]]:
    clock = [0.0]
    pool = NodePool(clock=lambda: clock[0], suspect_s=10, full_s=5)
    nodes = [MemoryNode(node(i)) for i in range(count)]
    for each in nodes:
        pool.add(each)
    return pool, nodes, clock


def test_a_node_that_was_down_is_left_alone_for_a_while() -> None:
    pool, nodes, clock = make_pool(3)
    pool.failed(node(1), NodeDown())
    assert pool.usable(node(1)) is None
    assert pool.get(node(1)) is nodes[1]
    assert nodes[1] not in pool.place(chunk(1), 2)
    clock[0] = 10.0
    assert pool.usable(node(1)) is nodes[1]
    assert nodes[1] in pool.place(chunk(1), 2)


def test_a_full_node_is_read_from_and_not_written_to() -> None:
    pool, nodes, clock = make_pool(3)
    pool.failed(node(1), NodeFull())
    assert pool.usable(node(1)) is nodes[1]
    assert pool.state(node(1)) == "full"
    assert nodes[1] not in pool.place(chunk(1), 2)
    clock[0] = 5.0
    assert nodes[1] in pool.place(chunk(1), 2)


def test_doubtful_nodes_are_tried_last_when_the_others_are_too_few() -> None:
    pool, nodes, _ = make_pool(3)
    pool.failed(node(1), NodeDown())
    assert pool.place(chunk(1), 3)[-1] is nodes[1]


def test_a_missing_fragment_says_nothing_about_its_node() -> None:
    pool, _, _ = make_pool(1)
    pool.failed(node(0), FragmentMissing())
    assert pool.state(node(0)) == "up"


def test_an_absent_node_is_known_but_never_used() -> None:
    pool, _, _ = make_pool(2)
    pool.add_absent(node(7))
    assert len(pool) == 3
    assert pool.usable(node(7)) is None
    assert len(pool.place(chunk(1), 3)) == 2
    assert set(pool.spare(chunk(1), {node(0), node(1)})) == {node(7)}
    pool.failed(node(9), NodeDown())


def test_recovered_nodes_are_used_at_once() -> None:
    pool, nodes, _ = make_pool(1)
    pool.failed(node(0), NodeDown())
    pool.recovered(node(0))
    assert pool.usable(node(0)) is nodes[0]
