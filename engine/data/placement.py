"""Which nodes get the fragments of a chunk: weighted rendezvous hashing over failure domains.

Each node draws a score from the hash of (chunk, node) and its weight; the highest win. When a
node comes or goes only the fragments that move to or from it change their place.

Failure domains come before scores: of all nodes left, those are looked at whose outermost domain
has the fewest fragments so far, then the next inner one, and so on. So fragments spread over as
many zones, then racks, hosts and drives as there are, and the order is incremental: the first n
of a longer placement are the placement of n.

Source: Thaler and Ravishankar, "Using name-based mappings to increase hit rates" (1998); weights:
Schindelhauer and Schomaker, "Weighted distributed hash tables" (2005): ``-weight / ln(hash)``.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from hashlib import blake2b

from engine.ids import ChunkId, NodeId


@dataclass(frozen=True, slots=True)
class Candidate:
    node_id: NodeId
    weight: float = 1.0
    """Share of the fragments, relative to the others; above 0."""
    domain: tuple[str, ...] = ()
    """Failure domains from the outermost in, e.g. (zone, rack, host); the node itself is last
    and needs no name."""


def score(chunk_id: ChunkId, candidate: Candidate) -> float:
    """Return the candidate's draw for the chunk; the highest wins."""
    digest = blake2b(chunk_id + candidate.node_id, digest_size=8).digest()
    draw = (int.from_bytes(digest, "big") + 1) / (2**64 + 2)
    return -candidate.weight / math.log(draw) if draw < 1.0 else math.inf


def place(
    chunk_id: ChunkId,
    width: int,
    candidates: Sequence[Candidate],
    used_domains: Iterable[tuple[str, ...]] = (),
) -> list[NodeId]:
    """Return up to ``width`` distinct nodes, best first; fewer only if there are fewer.

    Args:
        used_domains: those of fragments that the chunk has elsewhere already, one for each.
    Cost: about 2 µs per candidate; when there are domains within domains, up to width x candidates
    steps more.
    """
    ranked = sorted(
        ((score(chunk_id, candidate), candidate.node_id, candidate) for candidate in candidates),
        key=lambda entry: (entry[0], entry[1]),
        reverse=True,
    )
    if not any(candidate.domain for candidate in candidates):
        return [node_id for _, node_id, _ in ranked[:width]]
    elsewhere = list(used_domains)
    # Levels at which all are alike say nothing, and are many in small clusters.
    start = _common([*(candidate.domain for candidate in candidates), *elsewhere])
    used: dict[tuple[str, ...], int] = {}
    for domain in elsewhere:
        _crowd(domain[start:], used)
    left = [(candidate.node_id, candidate.domain[start:]) for _, _, candidate in ranked]
    chosen: list[NodeId] = []
    least: tuple[int, ...] = ()
    while left and len(chosen) < width:
        # The first of equals: ``left`` is in order of score. Crowding only grows, so none can be
        # less crowded than the last one was.
        at, crowding = 0, _crowding(left[0][1], used)
        for position in range(1, len(left)):
            if crowding <= least:
                break
            other = _crowding(left[position][1], used)
            if other < crowding:
                at, crowding = position, other
        least = crowding
        node_id, domain = left.pop(at)
        chosen.append(node_id)
        _crowd(domain, used)
    return chosen


def _common(domains: Sequence[tuple[str, ...]]) -> int:
    """Return how many outermost levels all domains share, each keeping one level at least."""
    first = domains[0]
    shared = min(len(domain) for domain in domains) - 1
    for level in range(shared):
        if any(domain[level] != first[level] for domain in domains):
            return level
    return max(shared, 0)


def plan_moves(
    holders: Sequence[NodeId], wanted: Sequence[NodeId]
) -> tuple[list[tuple[int, NodeId]], list[int]]:
    """Return which fragments are to move where, and which should move but have no place.

    A fragment on a wanted node stays, whichever index it has; so the moves are as few as can be.

    Args:
        holders: the node of fragment 0, 1, ...
        wanted: the chunk's placement, best first.
    """
    held = set(holders)
    lacking = [node_id for node_id in wanted if node_id not in held]
    surplus = [index for index, node_id in enumerate(holders) if node_id not in wanted]
    return list(zip(surplus, lacking, strict=False)), surplus[len(lacking) :]


def _crowd(domain: tuple[str, ...], used: dict[tuple[str, ...], int]) -> None:
    for depth in range(1, len(domain) + 1):
        prefix = domain[:depth]
        used[prefix] = used.get(prefix, 0) + 1


def _crowding(domain: tuple[str, ...], used: dict[tuple[str, ...], int]) -> tuple[int, ...]:
    return tuple(used.get(domain[:depth], 0) for depth in range(1, len(domain) + 1))
