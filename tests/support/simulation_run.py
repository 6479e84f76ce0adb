"""One deterministic trio run: virtual time, a seeded scheduler, and "threads" that are none.

Everything that a run decides comes from its seed:

* the clock is virtual: when all tasks wait, it is the next deadline's time;
* tasks that can run at the same moment run in an order drawn from the seed;
* ``trio.to_thread.run_sync`` runs its function right there, and at times takes some virtual time
  over it, so that other tasks get in between as they do with real threads;
* log entries go to the run's own list.
"""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar
from unittest.mock import patch

import structlog
import trio

from tests.support.simulation_loop import VirtualClock, fast_loop

T = TypeVar("T")

_THREAD_S_MAX = 0.003
_SLOW_THREADS = 0.05
"""How many of the calls into threads take time."""


def run_deterministic(
    seed: int, main: Callable[[], Awaitable[T]], log: Callable[[str], None] = lambda line: None
) -> T:
    """Return what ``main`` returns; the same for the same seed."""
    chance = random.Random(f"threads {seed}")
    with fast_loop(seed), _without_threads(chance), _logging_to(log):
        return trio.run(main, clock=VirtualClock())


@contextmanager
def _without_threads(chance: random.Random) -> Iterator[None]:
    async def run_sync(
        function: Callable[..., T],
        *args: Any,
        thread_name: str | None = None,
        abandon_on_cancel: bool = False,
        cancellable: bool | None = None,
        limiter: trio.CapacityLimiter | None = None,
    ) -> T:
        await trio.lowlevel.checkpoint()
        result = function(*args)
        if chance.random() < _SLOW_THREADS:
            # A thread that was started is waited for, cancelled or not.
            with trio.CancelScope(shield=not abandon_on_cancel):
                await trio.sleep(chance.random() * _THREAD_S_MAX)
        return result

    with patch.object(trio.to_thread, "run_sync", run_sync):
        yield


@contextmanager
def _logging_to(log: Callable[[str], None]) -> Iterator[None]:
    def take(_: Any, level: str, event: Any) -> Any:
        text = " ".join(f"{name}={value}" for name, value in event.items() if name != "event")
        log(f"{level}: {event['event']} {text}")
        raise structlog.DropEvent

    before = structlog.get_config()
    structlog.configure(processors=[take], cache_logger_on_first_use=False)
    try:
        yield
    finally:
        structlog.configure(**before)
