"""``Pace``: what a reader expects of nodes in other processes, measured (see ``hedging``)."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence

import trio

from engine.ids import NodeId

PATIENCE_S_MIN = 0.02
PATIENCE_S_MAX = 1.0
PATIENCE_S_FIRST = 0.25
"""While nothing was measured."""
SAMPLES = 128
SHUN_S = 2.0
"""How long a slow node is asked last; doubled each time that it is found slow again."""
SHUN_S_MAX = 60.0


class Pace:
    """How long reads from other processes take lately, and which nodes are slower.

    Concurrency: used on the trio thread only.
    """

    def __init__(self, clock: Callable[[], float] = trio.current_time) -> None:
        self._clock = clock
        self._samples: deque[float] = deque(maxlen=SAMPLES)
        self._since = 0
        self._slow: dict[NodeId, tuple[float, float]] = {}
        """Until when a node is asked last, and for how long it was shunned this time."""
        self.patience_s = PATIENCE_S_FIRST
        """So long to wait for a read before others are asked: twice what 95 of 100 take."""

    def took(self, node_id: NodeId, seconds: float) -> None:
        """Take in how long a read took that was waited for."""
        self._samples.append(seconds)
        self._since += 1
        if self._since >= SAMPLES // 8:
            self._since = 0
            ordered = sorted(self._samples)
            late = ordered[len(ordered) * 95 // 100]
            self.patience_s = min(max(2 * late, PATIENCE_S_MIN), PATIENCE_S_MAX)
        if self._slow and seconds <= self.patience_s:
            self._slow.pop(node_id, None)

    def gave_up(self, node_id: NodeId) -> None:
        _, before = self._slow.get(node_id, (0.0, SHUN_S / 2))
        shun_s = min(2 * before, SHUN_S_MAX)
        self._slow[node_id] = (self._clock() + shun_s, shun_s)

    def slow(self, nodes: Sequence[NodeId]) -> set[int]:
        """Return the positions of the nodes that are to be asked last."""
        if not self._slow:
            return set()
        now = self._clock()
        return {
            index
            for index, node_id in enumerate(nodes)
            if self._slow.get(node_id, (0.0, 0.0))[0] > now
        }
