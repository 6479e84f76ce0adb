"""A scheduler for simulated lives: trio's own tasks and cancel scopes, turned by a loop that knows
neither sockets nor threads nor real time.

Half of what a simulated life cost was trio's care for things that it does not have: a poll of the
kernel per turn, a real clock under the virtual one, a cancel scope and an exception per sleep. In
here the clock jumps to the next deadline once nothing can run, and a sleep is an entry in trio's
own heap of deadlines that wakes its task.

``fast_loop`` replaces private parts of trio, all in this module; the version of trio is locked.
That it schedules as trio's own loop does is tested: a seed has the same trace with both.
"""

from __future__ import annotations

import random
import types
from collections import deque
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack, contextmanager
from heapq import heappop, heappush
from math import inf
from typing import Any
from unittest.mock import patch

import outcome
import trio
from trio._core import _run
from trio._core._run import CancelReason, CancelScope, Deadlines, Runner
from trio._core._traps import CancelShieldedCheckpoint, PermanentlyDetachCoroutineObject
from trio.lowlevel import Abort, Task


class Stuck(Exception):
    """Every task waits, and none of them for time."""


class VirtualClock(trio.abc.Clock):
    """Seconds from 0 on; jumps to the next deadline when the scheduler asks how long to wait: only
    when no task can run."""

    def __init__(self) -> None:
        self.now = 0.0

    def start_clock(self) -> None:
        pass

    def current_time(self) -> float:
        return self.now

    def deadline_to_sleep_time(self, deadline: float) -> float:
        self.now = max(self.now, deadline)
        return 0.0


class _Go:
    """What a task that goes on is sent: an ``outcome.Value(None)`` that can be used again."""

    __slots__ = ()

    def unwrap(self) -> None:
        return None


_GO: Any = _Go()
_EXPIRED = CancelReason(source="deadline")


class _Timer:
    """Stands among the cancel scopes in ``Deadlines``; expired, it wakes its task."""

    __slots__ = ("_deadlines", "_registered_deadline", "task")

    def __init__(self, deadline: float, task: Task, deadlines: Deadlines) -> None:
        self._registered_deadline = deadline
        self.task = task
        self._deadlines = deadlines
        heappush(deadlines._heap, (deadline, id(self), self))  # type: ignore[misc]  # a twin
        deadlines._active += 1

    def _cancel(self, reason: CancelReason) -> None:
        self._registered_deadline = inf
        self._deadlines._active -= 1
        _run.GLOBAL_RUN_CONTEXT.runner.reschedule(self.task)

    def abort_func(self, raise_cancel: object) -> Abort:
        """So that it can stand for a ``WaitTaskRescheduled``, too."""
        self._registered_deadline = inf
        self._deadlines._active -= 1
        return Abort.SUCCEEDED


@types.coroutine
def _until(timer: _Timer) -> Generator[Any, Any, None]:
    (yield timer).unwrap()
    # A scope around it may have been cancelled at the same moment: then that counts.
    if timer.task._cancel_status.effectively_cancelled:
        raise trio.Cancelled._create(source="deadline")


async def _sleep_until(deadline: float) -> None:
    context = _run.GLOBAL_RUN_CONTEXT
    await _until(_Timer(deadline, context.task, context.runner.deadlines))


async def _sleep(seconds: float) -> None:
    if seconds < 0:
        raise ValueError("`seconds` must be non-negative")
    context = _run.GLOBAL_RUN_CONTEXT
    if seconds:
        deadline = context.runner.clock.current_time() + seconds
        await _until(_Timer(deadline, context.task, context.runner.deadlines))
    else:
        await trio.lowlevel.checkpoint()


class _Registering:
    """``CancelScope._might_change_registered_deadline``, not as a generator."""

    __slots__ = ("_scope",)

    def __init__(self, scope: CancelScope) -> None:
        self._scope = scope

    def __enter__(self) -> None:
        pass

    def __exit__(self, *_: object) -> None:
        scope = self._scope
        old = scope._registered_deadline
        new = inf if scope._cancel_status is None or scope._cancel_called else scope._deadline
        if old != new:
            scope._registered_deadline = new
            deadlines = _run.GLOBAL_RUN_CONTEXT.runner.deadlines
            if old != inf:
                deadlines._active -= 1
            if new != inf:
                deadlines.add(new, scope)


def _registering(scope: CancelScope) -> _Registering:
    return _Registering(scope)


def _reschedule(runner: Runner, task: Task, next_send: Any = _run._NO_SEND) -> None:
    task._next_send_fn = task.coro.send
    task._next_send = _GO if next_send is _run._NO_SEND else next_send
    task._abort_func = None
    task.custom_sleep_data = None
    runner.runq.append(task)


def _name(task: Task) -> str:
    """Short: every cancellation writes down who was it."""
    return task.name


def _cancelled(error: trio.Cancelled) -> str:
    return "Cancelled"


def _number(task: Task) -> int:
    return task._counter


def _run_without_world(
    runner: Runner, async_fn: Callable[..., Any], args: Any, **_: object
) -> Generator[float, Any, None]:
    """``trio._core._run.unrolled_run`` without input, output, threads, signals and instruments."""
    try:
        runner.init_task = runner.spawn_impl(
            runner.init, (async_fn, args), None, "<init>", system_task=True
        )
        _turn(runner)
        if isinstance(runner.main_task_outcome, outcome.Error) and isinstance(
            runner.main_task_outcome.error, trio.Cancelled
        ):
            runner.main_task_outcome = outcome.Error(Stuck())
    finally:
        runner.close()
        _run.GLOBAL_RUN_CONTEXT.__dict__.clear()
    yield from ()  # makes it the generator that trio expects


def _turn(runner: Runner) -> None:
    clock, deadlines, runq, calls = (
        runner.clock, runner.deadlines, runner.runq, runner.entry_queue.queue,
    )  # fmt: skip
    context, shuffle, heap = _run.GLOBAL_RUN_CONTEXT, _run._r.shuffle, deadlines._heap
    while runner.tasks:
        if not runq and not calls:
            deadline = deadlines.next_deadline()
            if deadline == inf:
                _give_up(runner)
                continue
            clock.deadline_to_sleep_time(deadline)
        if heap and heap[0][0] <= clock.current_time():
            _expire(heap, clock.current_time())
        if calls:
            _call(calls)
        batch = list(runq)
        if not batch:
            continue
        runq.clear()
        if len(batch) > 1:
            batch.sort(key=_number)
            shuffle(batch)
        while batch:
            task = context.task = batch.pop()
            send, value = task._next_send_fn, task._next_send
            task._next_send_fn = task._next_send = None
            final: outcome.Outcome[object]
            try:
                message: Any = task.context.run(send, value)  # type: ignore[arg-type]
            except StopIteration as stop:
                final = outcome.Value(stop.value)
            except BaseException as error:  # noqa: BLE001, ASYNC103  its nursery's
                final = outcome.Error(error)
            else:
                if message is CancelShieldedCheckpoint:
                    task._next_send_fn, task._next_send = send, _GO
                    runq.append(task)
                elif type(message) is PermanentlyDetachCoroutineObject:
                    runner.task_exited(task, message.final_outcome)
                else:
                    task._abort_func = message.abort_func
                    if task._cancel_status.effectively_cancelled:
                        task._attempt_delivery_of_any_pending_cancel()
                continue
            runner.task_exited(task, final)
            del final
        del context.task


def _give_up(runner: Runner) -> None:
    """Cancel everything; ``trio.run`` will raise Stuck."""
    main = runner.main_task
    assert main is not None
    assert main.parent_nursery is not None
    if main.parent_nursery.cancel_scope.cancel_called:
        raise Stuck
    main.parent_nursery.cancel_scope._cancel(CancelReason(source="shutdown"))


def _expire(heap: list[tuple[float, int, CancelScope]], now: float) -> None:
    while heap and heap[0][0] <= now:
        deadline, _, scope = heappop(heap)
        if deadline == scope._registered_deadline:
            scope._cancel(_EXPIRED)


def _call(calls: deque[Any]) -> None:
    """Do what "threads" gave to ``TrioToken.run_sync_soon``."""
    for _ in range(len(calls)):
        function, args = calls.popleft()
        function(*args)


@contextmanager
def fast_loop(seed: int) -> Iterator[None]:
    """Have ``trio.run`` schedule by the seed, and quickly, as long as this lasts."""
    with ExitStack() as stack:
        for place, name, value in (
            (_run, "_r", random.Random(seed)),
            (_run, "_ALLOW_DETERMINISTIC_SCHEDULING", True),
            (_run, "unrolled_run", _run_without_world),
            (Runner, "reschedule", _reschedule),
            (CancelScope, "_might_change_registered_deadline", _registering),
            (Task, "__repr__", _name),
            (trio.Cancelled, "__repr__", _cancelled),
            (trio, "sleep", _sleep),
            (trio, "sleep_until", _sleep_until),
        ):
            stack.enter_context(patch.object(place, name, value))
        yield
