"""The one place where a worker thread crosses into trio.

A thread hands over one async function and serves it until it has ended:

    thread                                  trio run
    portal.run(work) ── run_sync_soon ──▶   a task of the portal's nursery: work(crossing)
      waits, looks after the client   ◀───  await crossing.in_thread(send, buffer)
      send(buffer)                    ───▶  its result
      ...
      result or exception             ◀───  the task has ended

So everything that is opened for a request is opened, used and closed inside one ``async with``
of one task, whatever happens to the client; blocking work on the socket is done by the thread
that the request has anyway. At most one crossing per thread, so the number of threads bounds it.

A task that has ended its work stays for the next (``Portal._idle``): starting one for each request
is a seventh of the CPU of a crossing.

Concurrency: a ``_Job`` belongs to its thread and its task. ``inbox`` is the only thing both use;
all else changes in the trio run alone, by way of ``run_sync_soon``.
"""

from __future__ import annotations

import queue
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, Generic, Protocol, TypeVar

import outcome
import trio

from engine.errors import Unavailable

T = TypeVar("T")
R = TypeVar("R")

LOOK_S = 0.5
"""While it waits, a thread looks so often whether its client is still there."""


class ClientGone(Exception):
    """The client closed its connection, or the server is stopping: nobody waits for an answer."""


class Crossing(Protocol):
    """What a task has of the thread that waits for it."""

    async def in_thread(self, work: Callable[[], R], /) -> R:
        """Run blocking ``work`` in the waiting thread and return its result.

        Not cancellable while it runs, because ``work`` may hold the caller's buffers; a
        cancellation interrupts it (``Client.interrupt``) and is delivered when it has returned.
        """


class Client(Protocol):
    """The connection that a thread works for."""

    def gone(self) -> bool:
        """Whether the client has closed the connection; never blocks."""

    def interrupt(self) -> None:
        """Make a read or write that blocks in the connection's thread fail soon. Any thread."""


Work = Callable[[Crossing], Awaitable[T]]


class _Call(Generic[R]):
    """Blocking work that the task wants done, and then its outcome."""

    __slots__ = ("_work", "outcome")

    def __init__(self, work: Callable[[], R]) -> None:
        self._work: Callable[[], R] | None = work
        self.outcome: outcome.Maybe[R] | None = None

    def run(self) -> None:
        work, self._work = self._work, None
        assert work is not None
        result = outcome.capture(work)
        # The task may resize or reuse its buffers once it has the outcome: let go of them first.
        del work
        self.outcome = result


class _Job(Generic[T]):
    __slots__ = ("_client", "_token", "inbox", "scope", "work")

    def __init__(self, token: trio.lowlevel.TrioToken, work: Work[T], client: Client) -> None:
        self._token = token
        self._client = client
        self.work = work
        self.scope = trio.CancelScope()
        self.inbox: queue.SimpleQueue[tuple[_Call[Any] | None, trio.lowlevel.Task | None]] = (
            queue.SimpleQueue()
        )

    async def in_thread(self, work: Callable[[], R], /) -> R:
        call = _Call(work)
        await trio.lowlevel.checkpoint_if_cancelled()
        self.inbox.put((call, trio.lowlevel.current_task()))

        def abort(_: object) -> trio.lowlevel.Abort:
            self._client.interrupt()
            return trio.lowlevel.Abort.FAILED

        await trio.lowlevel.wait_task_rescheduled(abort)
        assert call.outcome is not None
        return call.outcome.unwrap()

    def answer(self, call: _Call[Any], task: trio.lowlevel.Task) -> None:
        """Run one call in this thread and wake the task that waits for it."""
        call.run()
        self._token.run_sync_soon(trio.lowlevel.reschedule, task)


class Portal:
    """Made by ``open_portal``; ``run`` may be called by any thread but the one of trio."""

    def __init__(self, token: trio.lowlevel.TrioToken, nursery: trio.Nursery) -> None:
        self._token = token
        self._nursery = nursery
        self._idle: list[trio.lowlevel.Task] = []
        """Tasks that wait for a job; at most as many as threads have crossed at once."""

    def run(self, work: Work[T], client: Client, *, timeout_s: float | None = None) -> T:
        """Run ``work`` in the trio run and return its result; blocks this thread.

        Args:
            client: while the thread waits, a client that went away cancels the work.
            timeout_s: cancels the work too; None for work that is bound by progress instead.
        Raises:
            ClientGone: cancelled because of the client or a stop; the work has cleaned up.
            Unavailable: it took longer than ``timeout_s``, or the trio run has ended.
            Whatever ``work`` raises.
        """
        job = _Job(self._token, work, client)
        result: list[outcome.Outcome[T]] = []
        try:
            self._token.run_sync_soon(self._start, job, result)
        except trio.RunFinishedError:
            raise Unavailable("the server is stopping") from None
        timed_out = _wait(job, client, timeout_s, self._token)
        if not result:
            raise Unavailable("the server is stopping")
        try:
            return result[0].unwrap()
        except ClientGone:
            if timed_out:
                raise Unavailable("no answer in time") from None
            raise

    def _start(self, job: _Job[Any], result: list[outcome.Outcome[Any]]) -> None:
        if self._idle:
            trio.lowlevel.reschedule(self._idle.pop(), outcome.Value((job, result)))
            return
        try:
            self._nursery.start_soon(self._serve, job, result)
        except RuntimeError:
            # The nursery is closed: the server stops. No result is the answer.
            job.inbox.put((None, None))

    async def _serve(self, job: _Job[Any], result: list[outcome.Outcome[Any]]) -> None:
        """Perform this job, and then others until the portal is closed."""
        task = trio.lowlevel.current_task()

        def abort(_: object) -> trio.lowlevel.Abort:
            self._idle.remove(task)
            return trio.lowlevel.Abort.SUCCEEDED

        while True:
            await _perform(job, result)
            # What the request had is not to be kept until the next comes.
            del job, result
            self._idle.append(task)
            job, result = await trio.lowlevel.wait_task_rescheduled(abort)


async def _perform(job: _Job[T], result: list[outcome.Outcome[T]]) -> None:
    """Run the job's work; no result when the whole run is being stopped."""
    try:
        with job.scope:
            result.append(outcome.Value(await job.work(job)))
        if not result:
            result.append(outcome.Error(ClientGone()))
    except Exception as error:  # noqa: BLE001  it is raised in the thread
        result.append(outcome.Error(error))
    finally:
        job.inbox.put((None, None))


def _wait(
    job: _Job[T], client: Client, timeout_s: float | None, token: trio.lowlevel.TrioToken
) -> bool:
    """Serve the job's calls until it has ended; return whether it was cancelled for its time.

    A cancelled task still gets all the time that it takes to clean up: it may need this thread,
    and what the engine shields has limits of its own.
    """
    deadline = None if timeout_s is None else time.monotonic() + timeout_s
    cancelled = timed_out = False
    while True:
        try:
            call, task = job.inbox.get(timeout=LOOK_S)
        except queue.Empty:
            if cancelled:
                continue
            timed_out = deadline is not None and time.monotonic() >= deadline
            if timed_out or client.gone():
                cancelled = True
                _cancel(job, token)
            continue
        if call is None:
            return timed_out
        assert task is not None
        try:
            job.answer(call, task)
        except trio.RunFinishedError:
            return timed_out


def _cancel(job: _Job[T], token: trio.lowlevel.TrioToken) -> None:
    try:
        token.run_sync_soon(job.scope.cancel)
    except trio.RunFinishedError:
        return


@asynccontextmanager
async def open_portal() -> AsyncIterator[Portal]:
    """Yield a portal into this trio run; on leaving, work that still runs is cancelled."""
    async with trio.open_nursery() as nursery:
        try:
            yield Portal(trio.lowlevel.current_trio_token(), nursery)
        finally:
            nursery.cancel_scope.cancel()
