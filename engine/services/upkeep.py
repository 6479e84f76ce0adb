"""Upkeep: everything that makes, moves and deletes fragments, in one leased service.

In turn, so that no two of them move one fragment at once: first the repair queue, replaced drives
and strays; then, in slices, census and rebalance, so that new damage does not wait for their end.
"""

from __future__ import annotations

import math

import trio

from engine.cluster.membership import ask_for
from engine.meta.kv import Transaction
from engine.services.census import Census
from engine.services.progress import Rate
from engine.services.rebalance import Rebalance
from engine.services.repair import count_queue, rebuild_nodes, repair_queue
from engine.services.strays import delete_strays
from engine.store import Store

INTERVAL_S = 30.0
SLICE_S = 2.0
AGAIN_S = 1.0
COMMIT_MS_MAX = 10_000
"""An entry of the queue may be seen so long after the moment that it is dated."""
PATIENCE_S = 600.0
"""At most so long a queue of which nothing can be repaired is left alone."""


class Upkeep:
    """Runs when woken, and every ``interval_s`` in any case."""

    def __init__(self, store: Store, *, interval_s: float = INTERVAL_S) -> None:
        self._store = store
        self._interval_s = interval_s
        self._woken = trio.Event()
        self._urgent_at = float("-inf")
        """When the queue was last worked through, by trio's clock."""
        self._tried_ms = 0
        """When the queue was worked through last, whole or what was new in it."""
        self._tried_generation = -1
        """Of the pool, when all of the queue was tried last."""
        self._try_all_at = float("-inf")
        self._patience_s = interval_s
        self._missed = False
        """The last ``wait`` ended, and ``work`` did not begin since."""
        self._next_in = math.inf
        """Seconds until a census is due that waits for its turn."""
        self._repair_rate = Rate(store.config.repair_rate)
        self._census = Census(store)
        self._rebalance = Rebalance(store)

    def wake(self) -> None:
        self._woken.set()

    async def wait(self) -> None:
        if self._missed:
            # Woken already, and another process had the lease: it may not know what woke us.
            await trio.sleep(AGAIN_S)
            return
        with trio.move_on_after(min(self._interval_s, self._next_in)):
            await self._woken.wait()
        self._missed = True
        # Also when another process has the lease: else this one would ask for it without a pause.
        self._woken = trio.Event()
        self._next_in = math.inf

    async def work(self) -> None:
        """Do all that can be done now. Raises: EngineError."""
        self._missed = False
        self._next_in = math.inf
        self._census.forget()
        self._rebalance.forget()
        self._urgent_at = float("-inf")
        while True:
            if self._woken.is_set() or self._urgent_due():
                self._woken = trio.Event()
                await self._urgent()
            census_in = await self._census.due_in()
            if census_in <= 0:
                await self._census.run(self._slice_over())
            elif await self._rebalance.due():
                await self._rebalance.run(self._slice_over())
                if not await self._rebalance.due():
                    # What it left behind goes now.
                    self._urgent_at = float("-inf")
            elif not self._woken.is_set():
                self._next_in = census_in
                return

    def _urgent_due(self) -> bool:
        return trio.current_time() - self._urgent_at >= self._interval_s

    async def _urgent(self) -> None:
        now = self._urgent_at = trio.current_time()
        generation = self._store.pool.generation
        # What could not be repaired a moment ago is not tried again for each new entry.
        again = generation != self._tried_generation or now >= self._try_all_at
        since_ms = 0 if again else self._tried_ms - COMMIT_MS_MAX
        self._tried_ms = self._store.clock()
        made = await repair_queue(self._store, rate=self._repair_rate, since_ms=since_ms)
        left = await count_queue(self._store, since_ms)
        if again:
            # Members that came or went are news: one that returned may be avoided for a while yet.
            news = made or generation != self._tried_generation
            self._tried_generation = generation
            grown = min(self._patience_s * 2, PATIENCE_S)
            self._patience_s = grown if left and not news else self._interval_s
            self._try_all_at = trio.current_time() + self._patience_s
        elif left:
            self._try_all_at = min(self._try_all_at, now + self._interval_s)
        made += await rebuild_nodes(self._store, rate=self._repair_rate, stop=self.interrupted)
        await delete_strays(self._store, keep_wanted=await self._rebalance.due())
        if made:
            await _ask_for_census(self._store)

    def _slice_over(self) -> Slice:
        return Slice(self)

    def interrupted(self) -> bool:
        return self._woken.is_set()


class Slice:
    """Says when a walk is to stop for now: something urgent came, or it had its time."""

    def __init__(self, upkeep: Upkeep) -> None:
        self._upkeep = upkeep
        self._end = trio.current_time() + SLICE_S

    def __call__(self) -> bool:
        return self._upkeep.interrupted() or trio.current_time() >= self._end


async def _ask_for_census(store: Store) -> None:
    async def body(tr: Transaction) -> None:
        ask_for(tr, ["census"], store.clock())

    await store.db.run(body)
