"""Leases: one process at a time runs a service, and what goes wrong ends a round only."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from types import SimpleNamespace
from typing import TypeVar, cast

import trio
from trio.testing import MockClock

from engine.meta.kv import Database, MetadataFailed, ReadTransaction, Transaction
from engine.meta.memory import MemoryDatabase
from engine.services.leases import LEASE_S, acquire, release, run_leased
from engine.store import Store
from tests.support.engine import ManualClock, SeededRandom
from tests.support.logs import Logs

T = TypeVar("T")


class FailingDatabase:
    """A database that can be told to fail."""

    def __init__(self) -> None:
        self._db: Database = MemoryDatabase()
        self.failing = False

    async def run(self, body: Callable[[Transaction], Awaitable[T]]) -> T:
        if self.failing:
            raise MetadataFailed("told to")
        return await self._db.run(body)

    async def read(self, body: Callable[[ReadTransaction], Awaitable[T]]) -> T:
        return await self._db.read(body)


def store_on(db: FailingDatabase, clock: ManualClock) -> Store:
    """Return as much of a store as leases look at."""
    return cast(Store, SimpleNamespace(db=db, clock=clock, random=SeededRandom()))


async def test_lease_has_one_holder_until_it_ends_or_is_released() -> None:
    clock = ManualClock()
    store = store_on(FailingDatabase(), clock)
    assert await acquire(store, "x", b"one")
    assert await acquire(store, "x", b"one")
    assert not await acquire(store, "x", b"two")
    assert await acquire(store, "y", b"two")
    await release(store, "x", b"two")
    assert not await acquire(store, "x", b"two")
    await release(store, "x", b"one")
    assert await acquire(store, "x", b"two")
    clock.advance(LEASE_S + 1)
    assert await acquire(store, "x", b"one")


def test_failure_of_the_metadata_store_ends_a_round_and_not_the_service(logs: Logs) -> None:
    logs.expect("lease not renewed|metadata store failed")
    db = FailingDatabase()
    store = store_on(db, ManualClock())
    rounds: list[str] = []

    async def work() -> None:
        rounds.append("begun")
        if len(rounds) == 1:
            db.failing = True
            try:
                await trio.sleep_forever()
            finally:
                db.failing = False

    async def main() -> None:
        with trio.move_on_after(3 * LEASE_S):

            async def wait() -> None:
                await trio.sleep(1)

            await run_leased(store, "service", work, wait)

    trio.run(main, clock=MockClock(autojump_threshold=0))
    assert len(rounds) > 2
    assert "lease not renewed" in logs.events
