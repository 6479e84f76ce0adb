"""The simulation's scheduler beside trio's own: random programs do the same in both."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from unittest.mock import patch

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st
from trio.testing import MockClock

from tests.support.simulation_loop import Stuck, VirtualClock, fast_loop

Act = tuple[object, ...]
"""What a task does next; ``Program.do`` knows which there are."""

TIMES = st.sampled_from([0.0, 0.5, 1.0, 1.0, 2.0, 3.0])
FLAGS = st.integers(0, 2)
SIMPLE: st.SearchStrategy[Act] = st.one_of(
    st.tuples(st.just("sleep"), TIMES),
    st.tuples(st.just("until"), TIMES),
    st.tuples(st.just("step")),
    st.tuples(st.just("wait"), FLAGS),
    st.tuples(st.just("set"), FLAGS),
    st.tuples(st.just("cancel"), st.integers(0, 3)),
    st.tuples(st.just("lock"), TIMES),
    st.tuples(st.just("send"), FLAGS),
    st.tuples(st.just("receive")),
    st.tuples(st.just("fail")),
)


def _nested(acts: st.SearchStrategy[Act]) -> st.SearchStrategy[Act]:
    several = st.lists(acts, max_size=4).map(tuple)
    return st.one_of(
        st.tuples(st.just("limit"), TIMES, several),
        st.tuples(st.just("shield"), TIMES, several),
        st.tuples(st.just("fork"), st.lists(several, min_size=1, max_size=3).map(tuple)),
        st.tuples(st.just("guard"), several),
    )


PROGRAMS = st.lists(st.recursive(SIMPLE, _nested, max_leaves=25), min_size=1, max_size=6)


class Program:
    """Runs acts, and writes down when which task did what."""

    def __init__(self) -> None:
        self.log: list[tuple[object, ...]] = []
        self.flags = [trio.Event() for _ in range(3)]
        self.scopes: list[trio.CancelScope] = []
        self.lock = trio.Lock()
        self.sender, self.receiver = trio.open_memory_channel[object](1)

    async def main(self, acts: tuple[Act, ...]) -> None:
        try:
            with trio.move_on_after(50):
                await self.all("main", acts)
        except* ValueError as errors:
            self.log.append(("errors", len(errors.exceptions)))
        self.say("main", "over")

    def say(self, name: str, *what: object) -> None:
        self.log.append((trio.current_time(), name, *what))

    async def all(self, name: str, acts: object) -> None:
        assert isinstance(acts, tuple)
        for act in acts:
            self.say(name, act)
            try:
                await self.do(name, *act)
            except trio.Cancelled:
                self.say(name, "cancelled")
                raise

    async def do(self, name: str, kind: str, *arguments: object) -> None:
        first = arguments[0] if arguments else 0
        match kind:
            case "sleep":
                await trio.sleep(float(str(first)))
            case "until":
                await trio.sleep_until(float(str(first)))
            case "step":
                await trio.lowlevel.checkpoint()
            case "wait":
                with trio.move_on_after(5):
                    await self.flags[int(str(first))].wait()
            case "set":
                self.flags[int(str(first))].set()
            case "cancel":
                if self.scopes:
                    self.scopes[int(str(first)) % len(self.scopes)].cancel()
            case "lock":
                async with self.lock:
                    await trio.sleep(float(str(first)))
            case "send":
                await self.sender.send(first)
            case "receive":
                with trio.move_on_after(2):
                    self.say(name, "received", await self.receiver.receive())
            case "fail":
                raise ValueError
            case _:
                await self.nest(name, kind, *arguments)

    async def nest(self, name: str, kind: str, *arguments: object) -> None:
        match kind:
            case "limit" | "shield":
                with trio.CancelScope(
                    deadline=trio.current_time() + float(str(arguments[0])),
                    shield=kind == "shield",
                ) as scope:
                    self.scopes.append(scope)
                    await self.all(name, arguments[1])
                self.say(name, "caught", scope.cancelled_caught)
            case "guard":
                try:
                    await self.all(name, arguments[0])
                except* ValueError:
                    self.say(name, "guarded")
            case _:
                assert isinstance(arguments[0], tuple)
                async with trio.open_nursery() as nursery:
                    self.scopes.append(nursery.cancel_scope)
                    for number, acts in enumerate(arguments[0]):
                        nursery.start_soon(self.all, f"{name}.{number}", acts)


@contextmanager
def _own_loop(seed: int) -> Iterator[None]:
    scheduler = trio._core._run
    with (
        patch.object(scheduler, "_ALLOW_DETERMINISTIC_SCHEDULING", True),
        patch.object(scheduler, "_r", random.Random(seed)),
    ):
        yield


def _log(acts: tuple[Act, ...], clock: Callable[[], trio.abc.Clock]) -> list[tuple[object, ...]]:
    program = None

    async def main() -> None:
        nonlocal program
        program = Program()
        await program.main(acts)

    trio.run(main, clock=clock())
    assert program is not None
    return program.log


@settings(max_examples=200, deadline=None)
@given(PROGRAMS.map(tuple), st.integers(0, 1000))
def test_schedules_as_trio_does(acts: tuple[Act, ...], seed: int) -> None:
    with _own_loop(seed):
        expected = _log(acts, lambda: MockClock(autojump_threshold=0))
    with fast_loop(seed):
        assert _log(acts, VirtualClock) == expected


def test_seed_decides_the_order() -> None:
    acts: tuple[Act, ...] = (("fork", tuple((("step",), ("step",)) for _ in range(5))),)

    def log(seed: int) -> list[tuple[object, ...]]:
        with fast_loop(seed):
            return _log(acts, VirtualClock)

    assert log(1) == log(1)
    assert log(1) != log(2)


def test_waiting_for_nothing_is_an_error() -> None:
    with fast_loop(1), pytest.raises(Stuck):
        trio.run(trio.sleep_forever, clock=VirtualClock())


def test_calls_from_threads_are_made() -> None:
    async def main() -> None:
        done = trio.Event()
        trio.lowlevel.current_trio_token().run_sync_soon(done.set)
        await done.wait()

    with fast_loop(1):
        trio.run(main, clock=VirtualClock())


def test_trio_is_itself_again_afterwards() -> None:
    before = (trio.sleep, trio._core._run.unrolled_run, trio._core._run.Runner.reschedule)
    with fast_loop(1):
        assert trio.sleep is not before[0]
    assert before == (trio.sleep, trio._core._run.unrolled_run, trio._core._run.Runner.reschedule)
