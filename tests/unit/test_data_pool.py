"""Where fragments are put: placement by domains, and what a pool believes of its nodes."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis.strategies import DataObject, binary, data, lists, sampled_from, tuples

from engine.data.nodes import NodePool
from engine.data.placement import Candidate, place, plan_moves, score
from engine.ids import ChunkId, NodeId
from engine.node.contract import NodeDown, NodeFull
from tests.support.nodes import MemoryNode

CHUNKS = [ChunkId(number.to_bytes(16, "big")) for number in range(3000)]
CHUNK = CHUNKS[0]


def node_ids(count: int) -> list[NodeId]:
    return [NodeId(b"node%04d" % number) for number in range(count)]


class Clocked:
    """A pool over nodes in memory, and its clock."""

    def __init__(self, count: int = 7, domains: int = 0) -> None:
        self.now = 0.0
        self.ids = node_ids(count)
        self.pool = NodePool(clock=lambda: self.now)
        for number, node_id in enumerate(self.ids):
            domain = ("", "", f"h{number % domains}") if domains else ()
            self.pool.add(MemoryNode(node_id), domain=domain)

    def describe(self, node_id: NodeId, *, health: str = "up", state: str = "up") -> None:
        self.pool.describe(node_id, weight=1.0, domain=(), health=health, state=state)

    def placed(self, least: int = 5) -> list[NodeId]:
        return [node.node_id for node in self.pool.place(CHUNK, least)]


def test_a_node_added_to_six_moves_its_share_and_nothing_else() -> None:
    ids = node_ids(7)
    old = [Candidate(node_id, 1.0, ("", "", node_id.hex())) for node_id in ids[:6]]
    new = [*old, Candidate(ids[6], 1.0, ("", "", ids[6].hex()))]
    moved = 0
    for chunk_id in CHUNKS:
        moves, homeless = plan_moves(place(chunk_id, 6, old), place(chunk_id, 6, new))
        assert not homeless
        assert {target for _, target in moves} <= {ids[6]}
        moved += len(moves)
    assert moved <= 1.05 * len(CHUNKS) * 6 / 7


def test_a_node_that_leaves_moves_only_what_it_had() -> None:
    ids = node_ids(8)
    candidates = [Candidate(node_id) for node_id in ids]
    for chunk_id in CHUNKS[:500]:
        before = place(chunk_id, 6, candidates)
        moves, homeless = plan_moves(before, place(chunk_id, 6, candidates[1:]))
        assert not homeless
        assert [before[index] for index, _ in moves] == [ids[0]] * (ids[0] in before)


def test_fragments_keep_their_places_whatever_the_order_of_the_wanted() -> None:
    ids = node_ids(6)
    assert plan_moves(ids, ids[::-1]) == ([], [])


def test_a_fragment_without_a_place_is_told() -> None:
    ids = node_ids(6)
    assert plan_moves(ids, ids[:5]) == ([], [5])
    extra = NodeId(b"another!")
    assert plan_moves(ids, [*ids[:4], extra]) == ([(4, extra)], [5])


def test_shares_follow_weights() -> None:
    candidates = [Candidate(node_id, 1.0) for node_id in node_ids(11)]
    candidates.append(Candidate(NodeId(b"heavy..."), 3.0))
    counts = Counter(node_id for chunk_id in CHUNKS for node_id in place(chunk_id, 1, candidates))
    assert counts[NodeId(b"heavy...")] == pytest.approx(len(CHUNKS) * 3 / 14, rel=0.15)


def test_a_spare_is_in_the_domain_that_has_the_fewest() -> None:
    candidates = {
        node_id: Candidate(node_id, 1.0, ("", "", f"h{number % 3}"))
        for number, node_id in enumerate(node_ids(9))
    }
    for chunk_id in CHUNKS[:200]:
        chosen = place(chunk_id, 6, list(candidates.values()))
        kept = chosen[:5]
        left = [candidate for node_id, candidate in candidates.items() if node_id not in kept]
        used = [candidates[node_id].domain for node_id in kept]
        (spare,) = place(chunk_id, 1, left, used)
        counts = Counter([*used, candidates[spare].domain])
        assert set(counts.values()) == {2}


def plain_place(
    chunk_id: ChunkId, width: int, candidates: list[Candidate], used: list[tuple[str, ...]]
) -> list[NodeId]:
    """The rule of ``place`` without its shortcuts."""
    counts = Counter(domain[:depth] for domain in used for depth in range(1, len(domain) + 1))
    left = sorted(candidates, key=lambda c: (score(chunk_id, c), c.node_id), reverse=True)
    chosen = []
    for _ in range(min(width, len(left))):
        best = min(left, key=lambda c: [counts[c.domain[: n + 1]] for n in range(len(c.domain))])
        left.remove(best)
        chosen.append(best.node_id)
        counts.update(best.domain[: n + 1] for n in range(len(best.domain)))
    return chosen


@given(data())
def test_placement_is_what_the_plain_rule_says(drawn: DataObject) -> None:
    domains = tuples(sampled_from(["", "a"]), sampled_from(["", "b", "c"]), sampled_from("def"))
    found = drawn.draw(lists(domains, min_size=1, max_size=12))
    candidates = [Candidate(n, 1.0, d) for n, d in zip(node_ids(12), found, strict=False)]
    used = drawn.draw(lists(sampled_from(found), max_size=4))
    chunk_id = ChunkId(drawn.draw(binary(min_size=16, max_size=16)))
    assert place(chunk_id, 6, candidates, used) == plain_place(chunk_id, 6, candidates, used)


def test_the_pool_finds_spares_with_the_same_rule() -> None:
    made = Clocked(9, domains=3)
    for chunk_id in CHUNKS[:100]:
        chosen = [node.node_id for node in made.pool.place(chunk_id, 6)][:5]
        spare = made.pool.spare(chunk_id, set(chosen))[0]
        assert Counter(made.ids.index(n) % 3 for n in [*chosen, spare]) == {0: 2, 1: 2, 2: 2}


def test_placing_leaves_out_who_is_down_draining_removed_suspect_or_full() -> None:
    made = Clocked(9)
    down, lost, draining, removed, suspect, full = made.ids[:6]
    made.describe(down, health="down")
    made.describe(lost, health="lost")
    made.describe(draining, state="draining")
    made.describe(removed, state="removed")
    made.pool.failed(suspect, NodeDown())
    made.pool.failed(full, NodeFull())
    assert set(made.placed(least=3)) == set(made.ids[6:])
    # Too few: those that may work come after, those that cannot never.
    assert made.placed(least=4)[3:] == [draining, suspect, full]


def test_what_all_agree_on_counts_for_reads_too() -> None:
    made = Clocked()
    node_id = made.ids[0]
    for health in ("suspect", "down", "lost"):
        made.describe(node_id, health=health)
        assert made.pool.usable(node_id) is None
    made.describe(node_id, state="draining")
    assert made.pool.usable(node_id) is not None
    assert made.pool.writable(node_id) is None


def test_news_that_a_node_is_up_ends_what_this_process_believed() -> None:
    made = Clocked()
    node_id = made.ids[0]
    made.describe(node_id, health="down")
    made.pool.failed(node_id, NodeDown())
    made.describe(node_id, health="up")
    assert made.pool.usable(node_id) is not None
    # But not without news: what was up before says nothing about the failure since.
    made.pool.failed(node_id, NodeDown())
    made.describe(node_id, health="up")
    assert made.pool.usable(node_id) is None
    made.now = 11.0
    assert made.pool.usable(node_id) is not None


def test_only_what_is_not_expected_back_is_gone() -> None:
    made = Clocked()
    node_id = made.ids[0]
    for health, gone in (("suspect", False), ("down", False), ("lost", True)):
        made.describe(node_id, health=health)
        assert made.pool.gone(node_id) == gone
    for state, gone in (("draining", False), ("rebuilding", False), ("removed", True)):
        made.describe(node_id, state=state)
        assert made.pool.gone(node_id) == gone
    assert made.pool.gone(NodeId(b"unknown!"))


def test_a_node_that_is_down_keeps_its_place_and_one_that_leaves_does_not() -> None:
    made = Clocked()
    before = made.pool.wanted(CHUNK, 6)
    made.describe(before[0], health="down")
    assert made.pool.wanted(CHUNK, 6) == before
    made.describe(before[0], state="draining")
    assert made.pool.wanted(CHUNK, 6) == [*before[1:], *set(made.ids) - set(before)]
    made.describe(before[0], health="lost")
    assert before[0] not in made.pool.wanted(CHUNK, 6)


def test_spares_that_work_come_before_those_that_do_not() -> None:
    made = Clocked()
    down, draining = made.ids[0], made.ids[1]
    made.describe(down, health="down")
    made.describe(draining, state="draining")
    assert made.pool.spare(CHUNK, set())[-2:] == [down, draining]


def test_a_drive_that_comes_back_keeps_what_is_known_of_its_slot() -> None:
    made = Clocked()
    node_id = made.ids[0]
    made.describe(node_id, state="draining")
    made.pool.add_absent(node_id)
    made.pool.add(MemoryNode(node_id))
    assert made.pool.state(node_id) == "draining"
