"""Who waits for the kernel's next request.

pyfuse3 has tasks of which each waits until the connection can be read, reads one request and works
on it. Its own way of waiting hands that on to another task with every request: two switches of
tasks, a lock and two calls of epoll, which is more than most requests take to be answered. Here

* the task that has answered a request looks for the next one itself;
* when there is none, but the last one came at once, it goes on looking for ``LOOK_S``: a program
  that reads one small file after the other asks again within that time, and to be sent to sleep
  and woken takes as long;
* then one task, the *reader*, waits through trio; all others are parked;
* another becomes the reader as soon as a request has to wait for something (``suspended``), and
  only then.

Requests that never wait for anything are thus answered one after the other without the scheduler;
after ``ROW_MAX`` of them it has its turn.

Concurrency: everything here runs on the trio thread, and nothing between two awaits can be
interrupted.
"""

from __future__ import annotations

import select
from collections.abc import Callable
from os import sched_yield
from time import perf_counter

import trio

LOOK_S = 40e-6
"""For the next request to come before the process sleeps; spent in vain at most once before a
request that comes later."""

SOON_S = 100e-6
"""Who sleeps no longer than this should have looked on instead: being woken takes most of it."""

ROW_MAX = 32
"""Requests taken one after the other before other tasks have their turn."""


class Incoming:
    """The requests of one connection. Until ``listen`` nothing is done here."""

    def __init__(self, gone: Callable[[], None]) -> None:
        """``gone`` is called when the connection is over, which may be long before its last
        request ends."""
        self._gone = gone
        self._descriptor = -1
        self._poll = select.poll()
        self._parked: list[trio.lowlevel.Task] = []
        """The latest is the first to be woken: its memory is warm."""
        self._reader = False
        """A task waits through trio, or was woken to do so."""
        self._waiting = 0
        """Requests that wait for something."""
        self._row = 0
        """Requests since the scheduler had its turn."""
        self._soon = False
        """The last request came so quickly that the next is worth looking for."""
        self._over = False

    def listen(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._poll.register(descriptor, select.POLLIN)

    async def wait(self) -> bool:
        """Return True once there is a request; False: no more are to be read.

        True only while there is something to read. A request that the kernel has announced
        vanishes when its caller is interrupted, and the announcement of an interrupt when the
        request is answered first. Then the read, which blocks, would stop this whole process until
        the kernel's next request. So the caller reads before it awaits anything.
        """
        while not self._over:
            if self._row < ROW_MAX:
                events = self._poll.poll(0)
                if not events and self._soon and not self._reader and not self._waiting:
                    events = self._look_on()
                    self._soon = bool(events)
                if events:
                    self._row += 1
                    if events[0][1] & ~select.POLLIN:
                        # The read says so too, to this task alone.
                        self.end()
                        self._gone()
                    return True
            if self._reader and not await self._park():
                break
            self._reader = True
            slept_at = perf_counter()
            try:
                await trio.lowlevel.wait_readable(self._descriptor)
                self._soon = perf_counter() - slept_at < SOON_S
                self._row = 0
            except trio.ClosedResourceError:
                self.end()
            finally:
                self._reader = False
        return False

    def _look_on(self) -> list[tuple[int, int]]:
        """Look for a request for a while. Who is to make it may need this very core."""
        until = perf_counter() + LOOK_S
        while perf_counter() < until:
            sched_yield()
            events = self._poll.poll(0)
            if events:
                return events
        return []

    async def _park(self) -> bool:
        """Return True when this task is to be the reader, False when all is over."""
        task = trio.lowlevel.current_task()
        self._parked.append(task)

        def abort(_: object) -> trio.lowlevel.Abort:
            self._parked.remove(task)
            return trio.lowlevel.Abort.SUCCEEDED

        await trio.lowlevel.wait_task_rescheduled(abort)
        return not self._over

    def suspended(self) -> None:
        """A request waits for something: somebody else is to read those that come. ``resumed``
        must follow when it is answered.

        If none is parked, either a new task is about to wait, as pyfuse3 starts one with every
        request while it may, or all of them work.
        """
        self._waiting += 1
        if self._parked and not self._reader:
            self._reader = True
            trio.lowlevel.reschedule(self._parked.pop())

    def resumed(self) -> None:
        """A request that had to wait is answered."""
        self._waiting -= 1

    def end(self) -> None:
        """Let no more requests be read. Who waits through trio is told by
        ``trio.lowlevel.notify_closing``."""
        self._over = True
        while self._parked:
            trio.lowlevel.reschedule(self._parked.pop())
