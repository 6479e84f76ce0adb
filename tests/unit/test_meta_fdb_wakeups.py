"""Futures of a C library wake tasks through a pipe; the library here is a few lines of Python that
keeps its rules: a callback once per future, from another thread, also when it was cancelled."""

from __future__ import annotations

import ctypes
from collections.abc import AsyncIterator
from typing import Any, cast

import pytest
import trio
import trio.testing

from engine.errors import SlowDown
from engine.meta.fdb_library import Library
from engine.meta.fdb_wakeups import WAITING_MAX, Wakeups

CALLBACK = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p)


class Futures:
    """The part of ``Library`` that ``Wakeups`` uses. Futures are made-up addresses."""

    def __init__(self) -> None:
        self._callbacks: dict[int, tuple[int, int]] = {}
        self._ready: set[int] = set()
        self.cancelled: list[int] = []
        self.destroyed: list[int] = []

    def is_ready(self, future: int) -> bool:
        return future in self._ready

    def set_callback(self, future: int, function: int, argument: int) -> int:
        self._callbacks[future] = (function, argument)
        return 0

    def finish(self, *futures: int) -> None:
        """Make futures ready, as the network thread does."""
        for future in futures:
            self._ready.add(future)
            function, argument = self._callbacks.pop(future)
            CALLBACK(function)(future, argument)

    def cancel(self, future: int) -> None:
        self.cancelled.append(future)

    def destroy(self, future: int) -> None:
        self.destroyed.append(future)


class Running:
    """A ``Wakeups`` at work, and what its tasks have heard."""

    def __init__(self, nursery: trio.Nursery) -> None:
        self.library = Futures()
        self.wakeups = Wakeups(cast(Library, self.library))
        self.woken: list[int] = []
        self.nursery = nursery
        nursery.start_soon(self.wakeups.run)

    async def wait(self, future: int) -> None:
        await self.wakeups.wait(future)
        self.woken.append(future)

    async def start(self, *futures: int) -> None:
        for future in futures:
            self.nursery.start_soon(self.wait, future)
        await trio.testing.wait_all_tasks_blocked()


@pytest.fixture
async def running() -> AsyncIterator[Running]:
    async with trio.open_nursery() as nursery:
        running = Running(nursery)
        yield running
        with trio.fail_after(60):
            await running.wakeups.settle()
        nursery.cancel_scope.cancel()
    running.wakeups.close()


async def finish(running: Running, *futures: int) -> None:
    await trio.to_thread.run_sync(running.library.finish, *futures)
    await trio.testing.wait_all_tasks_blocked()


async def test_future_wakes_its_task_and_no_other(running):
    await running.start(0x7F00_1000, 0x7F00_2000, 0x7F00_3000)
    await finish(running, 0x7F00_2000)
    assert running.woken == [0x7F00_2000]
    await finish(running, 0x7F00_1000, 0x7F00_3000)
    assert sorted(running.woken) == [0x7F00_1000, 0x7F00_2000, 0x7F00_3000]
    # Whoever waited owns the future.
    assert running.library.destroyed == []


async def test_future_that_is_ready_already_is_not_waited_for(running):
    await running.start(8)
    await finish(running, 8)
    with trio.fail_after(1):
        await running.wakeups.wait(8)


async def test_futures_whose_addresses_end_alike_are_told_apart(running):
    alike = [0x1_0000_4000, 0x2_0000_4000, 0x3_0000_4000]
    await running.start(*alike)
    await finish(running, alike[1])
    assert running.woken == [alike[1]]
    await finish(running, alike[2], alike[0])
    assert sorted(running.woken) == alike


async def test_cancelled_wait_cancels_its_future_and_destroys_it_when_it_answers(running):
    with trio.CancelScope() as scope:
        async with trio.open_nursery() as inner:
            inner.start_soon(running.wait, 0x4000)
            await trio.testing.wait_all_tasks_blocked()
            scope.cancel()
    assert running.library.cancelled == [0x4000]
    assert running.library.destroyed == []
    await finish(running, 0x4000)
    assert running.library.destroyed == [0x4000]
    assert running.woken == []


async def test_settling_waits_for_answers_to_cancelled_waits(running):
    with trio.move_on_after(0):
        await running.wait(0x4000)
    idle = trio.Event()

    async def settle() -> None:
        await running.wakeups.settle()
        idle.set()

    running.nursery.start_soon(settle)
    await trio.testing.wait_all_tasks_blocked()
    assert not idle.is_set()
    await finish(running, 0x4000)
    assert idle.is_set()


async def test_cancel_all_reaches_every_future(running):
    await running.start(0x10, 0x20, 0x1_0000_0010)
    running.wakeups.cancel_all()
    assert sorted(running.library.cancelled) == [0x10, 0x20, 0x1_0000_0010]
    await finish(running, 0x10, 0x20, 0x1_0000_0010)


async def test_as_many_as_may_wait_are_woken_and_one_more_is_refused(running):
    futures = [0x10 * (n + 1) for n in range(WAITING_MAX)]
    await running.start(*futures)
    with pytest.raises(SlowDown):
        await running.wakeups.wait(0x8)
    assert running.library.destroyed == [0x8]
    # All of them before anybody reads: the pipe must have room, or this would hang.
    running.library.finish(*futures)
    await trio.testing.wait_all_tasks_blocked()
    assert sorted(running.woken) == futures


def test_stub_has_the_calls_of_the_library():
    names = [name for name in vars(Futures) if not name.startswith("_") and name != "finish"]
    source: Any = Library
    declared = source._declare_futures.__code__.co_names
    assert [name for name in names if name not in declared] == []
