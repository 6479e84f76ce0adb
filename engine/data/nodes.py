"""``NodePool``: the nodes that this process knows, and what it believes about each.

Belief is local and cheap: a node that failed a call is suspect for a while and gets no new
fragments; it is read from only when nothing else is left. A full node gets no new fragments for a
while. Both heal by time alone; nothing here asks a node how it is.

Concurrency: changed on the trio thread only; worker threads may look (``usable``, ``get``).
"""

from __future__ import annotations

from collections.abc import Callable

from engine.data.placement import Candidate, place
from engine.ids import ChunkId, NodeId
from engine.node.contract import Node, NodeDown, NodeError, NodeFull


class _Slot:
    __slots__ = ("candidate", "full_until", "node", "suspect_until")

    def __init__(self, node: Node | None, candidate: Candidate) -> None:
        self.node = node
        self.candidate = candidate
        self.suspect_until = float("-inf")
        self.full_until = float("-inf")


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

    def add(self, node: Node, *, weight: float = 1.0, domain: tuple[str, ...] = ()) -> None:
        """Make the node known, or put it into the slot that its id names; it counts as up."""
        self._slots[node.node_id] = _Slot(node, Candidate(node.node_id, weight, domain))

    def add_absent(
        self, node_id: NodeId, *, weight: float = 1.0, domain: tuple[str, ...] = ()
    ) -> None:
        """Make a slot known whose drive or process is not there now: down until ``add``."""
        self._slots[node_id] = _Slot(None, Candidate(node_id, weight, domain))

    def remove(self, node_id: NodeId) -> None:
        self._slots.pop(node_id, None)

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
        """Return the node unless it is unknown, absent or suspect."""
        slot = self._slots.get(node_id)
        if slot is None or slot.suspect_until > self._clock():
            return None
        return slot.node

    def state(self, node_id: NodeId) -> str:
        """Return ``up``, ``full``, ``suspect`` or ``absent``, for those who report it."""
        slot = self._slots.get(node_id)
        if slot is None or slot.node is None:
            return "absent"
        now = self._clock()
        if slot.suspect_until > now:
            return "suspect"
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

        Suspect and full nodes are left out, unless fewer than ``least`` remain: then they stand
        at the end, since a write that tries them is better than one that fails for sure.
        """
        now = self._clock()
        fit: dict[NodeId, tuple[Node, Candidate]] = {}
        doubtful: list[Node] = []
        for node_id, slot in self._slots.items():
            if slot.node is None:
                continue
            if slot.suspect_until > now or slot.full_until > now:
                doubtful.append(slot.node)
            else:
                fit[node_id] = (slot.node, slot.candidate)
        order = place(chunk_id, len(fit), [candidate for _, candidate in fit.values()])
        nodes = [fit[node_id][0] for node_id in order]
        return nodes if len(nodes) >= least else nodes + doubtful

    def spare(self, chunk_id: ChunkId, taken: set[NodeId]) -> list[NodeId]:
        """Return the known nodes outside ``taken``, up or not, best first: for fragments that
        could not be written and are to be rebuilt there later."""
        left = [slot.candidate for node_id, slot in self._slots.items() if node_id not in taken]
        return place(chunk_id, len(left), left)
