"""``NodePool``: the nodes that this process knows, and what it believes about each.

Two beliefs meet here. The local one is quick and cheap: a node that failed a call is suspect for a
while and gets no new fragments; it is read from only when nothing else is left. A full node gets no
new fragments for a while. Both heal by time alone; nothing here asks a node how it is.

The shared one is membership (``engine.cluster``): the health that all gateways agree on, and what
the administrator wants of the node. ``describe`` brings it up to date.

Concurrency: changed on the trio thread only; worker threads may look (``usable``, ``get``).
"""

from __future__ import annotations

from collections.abc import Callable, Collection

from engine.data.placement import Candidate, place
from engine.ids import ChunkId, NodeId
from engine.node.contract import Node, NodeDown, NodeError, NodeFull

_NOT_ANSWERING = frozenset({"suspect", "down", "lost"})
_GONE = frozenset({"down", "lost"})
_TAKES = frozenset({"up", "rebuilding"})
"""States in which a node is given fragments."""


class _Slot:
    __slots__ = ("candidate", "full_until", "health", "node", "state", "suspect_until")

    def __init__(self, node: Node | None, candidate: Candidate) -> None:
        self.node = node
        self.candidate = candidate
        self.suspect_until = float("-inf")
        self.full_until = float("-inf")
        self.health = "up"
        self.state = "up"

    @property
    def leaving(self) -> bool:
        """Its fragments are to be elsewhere: given up, or moving."""
        return self.state not in _TAKES or self.health == "lost"


class NodePool:
    def __init__(
        self, *, clock: Callable[[], float], suspect_s: float = 10.0, full_s: float = 10.0
    ) -> None:
        """
        Args:
            clock: monotonic seconds, from any thread (``time.monotonic``; tests bring another).
            suspect_s: how long a node that was down is left alone.
            full_s: how long a node that was full gets no new fragments.
        """
        self._clock = clock
        self._suspect_s = suspect_s
        self._full_s = full_s
        self._slots: dict[NodeId, _Slot] = {}
        self.generation = 0
        """Counts up when a node comes, goes, or is believed by all to be otherwise than before."""

    def add(self, node: Node, *, weight: float = 1.0, domain: tuple[str, ...] = ()) -> None:
        """Make the node known, or put it into the slot that its id names; it answers, as far as
        this process knows."""
        self._put(node.node_id, node, Candidate(node.node_id, weight, domain))

    def add_absent(
        self, node_id: NodeId, *, weight: float = 1.0, domain: tuple[str, ...] = ()
    ) -> None:
        """Make a slot known whose drive or process is not there now: down until ``add``."""
        self._put(node_id, None, Candidate(node_id, weight, domain))

    def _put(self, node_id: NodeId, node: Node | None, candidate: Candidate) -> None:
        before = self._slots.get(node_id)
        slot = self._slots[node_id] = _Slot(node, candidate)
        if before is not None:
            slot.health, slot.state = before.health, before.state
        self.generation += 1

    def describe(
        self, node_id: NodeId, *, weight: float, domain: tuple[str, ...], health: str, state: str
    ) -> None:
        """Take over what membership says of a slot, which is made (absent) if it is not known.

        Args:
            health: ``up``, ``suspect``, ``down`` or ``lost``; of its drive or its member, whichever
                is worse. Becoming ``up`` ends what this process itself believed of the node.
            state: ``up``, ``rebuilding``, ``draining`` or ``removed``.
        """
        slot = self._slots.get(node_id)
        if slot is None:
            self.add_absent(node_id, weight=weight, domain=domain)
            slot = self._slots[node_id]
        candidate = Candidate(node_id, weight, domain)
        if (candidate, health, state) == (slot.candidate, slot.health, slot.state):
            return
        if health == "up" and slot.health != "up":
            slot.suspect_until = float("-inf")
        slot.candidate, slot.health, slot.state = candidate, health, state
        self.generation += 1

    def remove(self, node_id: NodeId) -> None:
        if self._slots.pop(node_id, None) is not None:
            self.generation += 1

    def __len__(self) -> int:
        """Return how many nodes are known, up or not."""
        return len(self._slots)

    def ids(self) -> list[NodeId]:
        return list(self._slots)

    def get(self, node_id: NodeId) -> Node | None:
        """Return the node, whatever we believe of it; None when it is unknown or absent."""
        slot = self._slots.get(node_id)
        return slot.node if slot is not None else None

    def usable(self, node_id: NodeId) -> Node | None:
        """Return the node unless it is unknown, absent, suspect or down."""
        slot = self._slots.get(node_id)
        if slot is None or slot.health in _NOT_ANSWERING or slot.suspect_until > self._clock():
            return None
        return slot.node

    def writable(self, node_id: NodeId) -> Node | None:
        """Return the node if it is usable, not full, and meant to get fragments."""
        slot = self._slots.get(node_id)
        if slot is None or slot.state not in _TAKES or slot.full_until > self._clock():
            return None
        return self.usable(node_id)

    def gone(self, node_id: NodeId) -> bool:
        """Return whether what the node has is to be made anew elsewhere: nobody expects the
        node back soon, or the administrator gave it up."""
        slot = self._slots.get(node_id)
        return slot is None or slot.node is None or slot.health == "lost" or slot.state == "removed"

    def health(self, node_id: NodeId) -> str:
        """Return what membership says: ``up``, ``suspect``, ``down`` or ``lost``."""
        slot = self._slots.get(node_id)
        return slot.health if slot is not None else "lost"

    def state(self, node_id: NodeId) -> str:
        """Return ``up``, ``full``, ``suspect``, ``down``, ``lost``, ``rebuilding``, ``draining``,
        ``removed`` or ``absent``, for those who report it."""
        slot = self._slots.get(node_id)
        if slot is None or slot.node is None:
            return "absent"
        now = self._clock()
        if slot.health in _GONE:
            return slot.health
        if slot.health == "suspect" or slot.suspect_until > now:
            return "suspect"
        if slot.state != "up":
            return slot.state
        return "full" if slot.full_until > now else "up"

    def failed(self, node_id: NodeId, error: NodeError) -> None:
        """Remember what the error says about the node itself; other errors say nothing."""
        slot = self._slots.get(node_id)
        if slot is None:
            return
        if isinstance(error, NodeDown):
            slot.suspect_until = self._clock() + self._suspect_s
        elif isinstance(error, NodeFull):
            slot.full_until = self._clock() + self._full_s

    def recovered(self, node_id: NodeId) -> None:
        """Forget what was believed of the node: it answered, or space was freed."""
        slot = self._slots.get(node_id)
        if slot is not None:
            slot.suspect_until = slot.full_until = float("-inf")

    def place(self, chunk_id: ChunkId, least: int) -> list[Node]:
        """Return the nodes to try for the chunk's fragments, best first.

        Nodes that drain, are suspect or full are left out, unless fewer than ``least`` remain:
        then they stand at the end, in this order, since a write that tries them is better than
        one that fails for sure. Nodes that are down or removed are never tried.
        """
        now = self._clock()
        fit: dict[NodeId, tuple[Node, Candidate]] = {}
        draining: list[Node] = []
        doubtful: list[Node] = []
        for node_id, slot in self._slots.items():
            if slot.node is None or slot.health in _GONE or slot.state == "removed":
                continue
            if slot.suspect_until > now or slot.full_until > now or slot.health == "suspect":
                doubtful.append(slot.node)
            elif slot.state == "draining":
                draining.append(slot.node)
            else:
                fit[node_id] = (slot.node, slot.candidate)
        # Those that come into question when some refuse are in order; the rest is a last resort.
        ordered = 2 * least + 4
        order = place(chunk_id, ordered, [candidate for _, candidate in fit.values()])
        nodes = [fit[node_id][0] for node_id in order]
        if len(nodes) < len(fit):
            chosen = set(order)
            nodes += [node for node_id, (node, _) in fit.items() if node_id not in chosen]
        return nodes if len(nodes) >= least else nodes + draining + doubtful

    def last_resort(self, tried: Collection[NodeId]) -> list[Node]:
        """Return the nodes that ``place`` leaves out while there are enough others, but those in
        ``tried``: for a write that fails for sure without them. One that was restarted is often
        back long before it is believed again."""
        return [
            slot.node
            for node_id, slot in self._slots.items()
            if slot.node is not None
            and node_id not in tried
            and slot.health not in _GONE
            and slot.state != "removed"
        ]

    def spare(self, chunk_id: ChunkId, taken: Collection[NodeId]) -> list[NodeId]:
        """Return the known nodes outside ``taken``, best first: for fragments that could not be
        written and are to be rebuilt there later.

        Those that would take a fragment now come first, then those that do not answer, at last
        those that are leaving; among equals a node in the domain that has the fewest of the
        fragments in ``taken``.
        """
        now = self._clock()
        ranks: tuple[list[Candidate], list[Candidate], list[Candidate]] = ([], [], [])
        for node_id, slot in self._slots.items():
            if node_id in taken:
                continue
            fit = slot.node is not None and slot.health == "up"
            fit = fit and slot.suspect_until <= now and slot.full_until <= now
            ranks[2 if slot.leaving else 0 if fit else 1].append(slot.candidate)
        domains = [
            self._slots[node_id].candidate.domain for node_id in taken if node_id in self._slots
        ]
        order: list[NodeId] = []
        for rank in ranks:
            chosen = place(chunk_id, len(rank), rank, domains)
            domains += [self._slots[node_id].candidate.domain for node_id in chosen]
            order += chosen
        return order

    def wanted(self, chunk_id: ChunkId, width: int) -> list[NodeId]:
        """Return where the chunk's fragments belong by membership alone, best first.

        A node that is down for the moment is still wanted, so that nothing moves to and fro.
        """
        candidates = [slot.candidate for slot in self._slots.values() if not slot.leaving]
        return place(chunk_id, width, candidates)

    def crowded(self, nodes: Collection[NodeId]) -> bool:
        """Return whether two of a chunk's nodes share a failure domain."""
        found = [
            slot.candidate.domain or (node_id.hex(),)
            for node_id in nodes
            if (slot := self._slots.get(node_id)) is not None
        ]
        return len(set(found)) < len(found)

    def keeping(self) -> int:
        """Return how many nodes are meant to keep fragments: neither leaving nor lost."""
        return sum(not slot.leaving for slot in self._slots.values())

    def domains(self) -> int:
        """Return how many failure domains new fragments can be spread over."""
        found: set[tuple[str, ...]] = set()
        for node_id, slot in self._slots.items():
            if not slot.leaving:
                found.add(slot.candidate.domain or (node_id.hex(),))
        return len(found)
