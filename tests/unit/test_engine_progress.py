"""Long work: its rate, its time left, where it goes on, and who does it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import cast

import pytest
import trio
from trio.testing import MockClock

from engine.meta.memory import MemoryDatabase
from engine.services.leases import acquire, run_leased
from engine.services.progress import Progress, Rate, each, running_work
from engine.store import Store
from tests.support.engine import ManualClock, SeededRandom


def make_store() -> Store:
    fields = SimpleNamespace(db=MemoryDatabase(), clock=ManualClock(), random=SeededRandom())
    return cast(Store, fields)


async def test_a_rate_lets_so_many_bytes_pass_and_no_more(autojump_clock: MockClock) -> None:
    rate = Rate(1000)
    begin = trio.current_time()
    async with trio.open_nursery() as nursery:
        for _ in range(10):
            nursery.start_soon(rate.take, 500)
    assert trio.current_time() - begin == pytest.approx(5.0)
    # Idle time is not saved up.
    await trio.sleep(100)
    begin = trio.current_time()
    await rate.take(2000)
    assert trio.current_time() - begin == pytest.approx(2.0)


async def test_no_rate_is_no_limit(autojump_clock: MockClock) -> None:
    begin = trio.current_time()
    await Rate(0).take(1 << 50)
    assert trio.current_time() == begin


async def test_rate_and_time_left_come_from_the_time_worked(autojump_clock: MockClock) -> None:
    store = make_store()
    progress = Progress.begin(store, "walk", "a walk", total=100)
    await trio.sleep(10)
    progress.record.done, progress.record.size = 20, 4000
    await progress.save(now=True)
    (work,) = await running_work(store)
    assert (work.title, work.running, work.done, work.total) == ("a walk", True, 20, 100)
    assert (work.bytes_per_s, work.seconds_left) == (400.0, 40.0)
    # The process dies; another one goes on later. The pause is no work.
    cast(ManualClock, store.clock).advance(3600)
    (work,) = await running_work(store)
    assert not work.running
    again = await Progress.load(store, "walk")
    assert again is not None
    await trio.sleep(10)
    again.record.done, again.record.size = 40, 8000
    await again.save(now=True)
    (work,) = await running_work(store)
    assert (work.running, work.bytes_per_s, work.seconds_left) == (True, 400.0, 30.0)
    await again.end()
    assert await running_work(store) == []


async def test_progress_is_not_written_with_each_step(autojump_clock: MockClock) -> None:
    store = make_store()
    progress = Progress.begin(store, "walk", "a walk", total=100)
    await progress.save()
    assert await Progress.load(store, "walk") is None
    await trio.sleep(1)
    await progress.save()
    assert await Progress.load(store, "walk") is not None


async def test_at_most_so_many_run_at_once(autojump_clock: MockClock) -> None:
    running = most = 0
    done: list[int] = []

    async def work(number: int) -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await trio.sleep(1)
        running -= 1
        done.append(number)

    await each(range(10), work, at_once=3)
    assert most == 3
    assert sorted(done) == list(range(10))


async def test_a_service_that_is_cancelled_gives_its_lease_up(autojump_clock: MockClock) -> None:
    store = make_store()
    begun = trio.Event()

    async def work() -> None:
        begun.set()
        await trio.sleep_forever()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(run_leased, store, "service", work, trio.lowlevel.checkpoint)
        await begun.wait()
        assert not await acquire(store, "service", b"another")
        nursery.cancel_scope.cancel()
    assert await acquire(store, "service", b"another")
