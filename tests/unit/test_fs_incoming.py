"""Who waits for the kernel's next request: on a pipe, of which a byte is a request."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise

import pytest
import structlog
import trio
from hypothesis import given, settings
from hypothesis import strategies as st
from pyfuse3 import FUSEError
from trio.testing import wait_all_tasks_blocked

from fs.errors import Refused
from fs.incoming import ROW_MAX, Incoming
from fs.wrap import Guard
from tests.support.logs import Logs


def never() -> None:
    raise AssertionError("the connection is there")


class Connection:
    """A pipe, and tasks that work on what comes through it as pyfuse3's do."""

    def __init__(self, gone: Callable[[], None] = never) -> None:
        self.descriptor, self.kernel = os.pipe()
        os.set_blocking(self.descriptor, False)
        self.incoming = Incoming(gone)
        self.incoming.listen(self.descriptor)
        self.ended = 0
        self.answered: list[bytes] = []
        self.slow = trio.Event()
        guard = Guard(structlog.get_logger(), 60.0, readers=self.incoming)
        self._handler = guard.wrapped("handle", self._handle)
        self.handlers: list[str] = []

    def ask(self, requests: bytes) -> None:
        os.write(self.kernel, requests)

    async def _handle(self, request: bytes) -> None:
        """``s`` waits, everything else does not."""
        self.handlers.append(trio.lowlevel.current_task().name)
        if request == b"s":
            await self.slow.wait()
        self.answered.append(request)

    async def work(self) -> None:
        while await self.incoming.wait():
            # Raises BlockingIOError when there is nothing: that would stop the process.
            request = os.read(self.descriptor, 1)
            if not request:
                break
            await self._handler(request)
        self.ended += 1

    def close(self) -> None:
        os.close(self.descriptor)
        os.close(self.kernel)


@contextmanager
def connection(gone: Callable[[], None] = never) -> Iterator[Connection]:
    made = Connection(gone)
    try:
        yield made
    finally:
        made.close()


def stop(made: Connection) -> None:
    made.slow.set()
    made.incoming.end()
    trio.lowlevel.notify_closing(made.descriptor)


async def test_requests_are_answered_in_turn_by_one_task_while_none_waits() -> None:
    with connection() as made:
        async with trio.open_nursery() as nursery:
            for number in range(4):
                nursery.start_soon(made.work, name=f"worker {number}")
            await wait_all_tasks_blocked()
            for request in (b"a", b"b", b"c"):
                made.ask(request)
                await wait_all_tasks_blocked()
            stop(made)
        assert made.answered == [b"a", b"b", b"c"]
        assert len(set(made.handlers)) == 1


async def test_while_a_request_waits_another_task_answers_the_next() -> None:
    with connection() as made:
        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(made.work)
            made.ask(b"s")
            await wait_all_tasks_blocked()
            made.ask(b"ab")
            await wait_all_tasks_blocked()
            assert made.answered == [b"a", b"b"]
            made.ask(b"sc")
            await wait_all_tasks_blocked()
            assert made.answered == [b"a", b"b", b"c"]
            made.slow.set()
            await wait_all_tasks_blocked()
            assert made.answered == [b"a", b"b", b"c", b"s", b"s"]
            stop(made)
        assert made.ended == 3


async def test_when_all_tasks_work_the_first_that_is_done_reads_on() -> None:
    with connection() as made:
        async with trio.open_nursery() as nursery:
            for _ in range(2):
                nursery.start_soon(made.work)
            made.ask(b"ssab")
            await wait_all_tasks_blocked()
            assert made.answered == []
            made.slow.set()
            await wait_all_tasks_blocked()
            assert sorted(made.answered) == [b"a", b"b", b"s", b"s"]
            stop(made)


async def test_a_task_that_comes_later_reads_while_all_others_work() -> None:
    with connection() as made:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(made.work)
            made.ask(b"s")
            await wait_all_tasks_blocked()
            nursery.start_soon(made.work)
            made.ask(b"a")
            await wait_all_tasks_blocked()
            assert made.answered == [b"a"]
            stop(made)


async def test_other_tasks_have_their_turn_however_many_requests_come() -> None:
    with connection() as made:
        made.ask(b"a" * 1000)
        seen: list[int] = []

        async def other() -> None:
            while len(made.answered) < 1000:
                seen.append(len(made.answered))
                await trio.lowlevel.checkpoint()

        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(made.work)
            nursery.start_soon(other)
            with trio.fail_after(20):
                while len(made.answered) < 1000:  # noqa: ASYNC110  it looks on as others do
                    await trio.lowlevel.checkpoint()
            stop(made)
        turns = [after - before for before, after in pairwise(seen)]
        # It may be the first in one round of the scheduler, and the last in the next.
        assert max(turns) <= 2 * ROW_MAX


TASKS_MAX = 5


@settings(max_examples=60)
@given(
    st.lists(st.tuples(st.text("qcn", min_size=1, max_size=8), st.booleans()), max_size=12),
    st.integers(0, 3),
)
def test_whatever_comes_while_others_wait_somebody_reads_it(
    bursts: list[tuple[str, bool]], idle: int
) -> None:
    """``q`` waits for nothing, ``c`` for its turn, ``n`` until the next request is read: for ever
    if nobody reads. Tasks are started as pyfuse3 starts them."""

    async def main() -> None:
        with connection() as made:
            read = 0
            begun = trio.Event()
            tasks = 0

            async def handle(request: bytes) -> None:
                if request == b"c":
                    await trio.lowlevel.checkpoint()
                # So many wait for each other at most that one task is left.
                elif request == b"n" and read % TASKS_MAX:
                    await begun.wait()
                made.answered.append(request)

            handler = Guard(structlog.get_logger(), 60.0, readers=made.incoming).wrapped(
                "handle", handle
            )

            async def work(nursery: trio.Nursery) -> None:
                nonlocal begun, read, tasks
                while await made.incoming.wait():
                    request = os.read(made.descriptor, 1)
                    if tasks < TASKS_MAX:
                        tasks += 1
                        nursery.start_soon(work, nursery)
                    read += 1
                    begun.set()
                    begun = trio.Event()
                    await handler(request)

            with trio.fail_after(60):
                async with trio.open_nursery() as nursery:
                    tasks = 1 + idle
                    for _ in range(tasks):
                        nursery.start_soon(work, nursery)
                    for requests, pause in bursts:
                        made.ask(requests.encode())
                        if pause:
                            await wait_all_tasks_blocked()
                    # Whoever waits for the next one has it, and the last waits for none.
                    made.ask(b"q")
                    await wait_all_tasks_blocked()
                    asked = sorted("".join(requests for requests, _ in bursts) + "q")
                    assert sorted(b"".join(made.answered).decode()) == asked
                    stop(made)

    trio.run(main)


async def test_a_request_that_vanished_is_waited_out() -> None:
    """A read would block the process: what was announced is gone."""
    with connection() as made:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(made.work)
            await wait_all_tasks_blocked()
            made.ask(b"x")
            # It was announced, but its task has not run yet.
            assert os.read(made.descriptor, 1) == b"x"
            await wait_all_tasks_blocked()
            made.ask(b"a")
            await wait_all_tasks_blocked()
            assert made.answered == [b"a"]
            stop(made)


async def test_the_end_of_the_connection_is_noticed_by_all() -> None:
    gone: list[bool] = []
    descriptor, kernel = os.pipe()
    incoming = Incoming(lambda: gone.append(True))
    incoming.listen(descriptor)
    answers: list[bool] = []

    async def wait() -> None:
        answers.append(await incoming.wait())

    try:
        async with trio.open_nursery() as nursery:
            for _ in range(5):
                nursery.start_soon(wait)
            await wait_all_tasks_blocked()
            os.close(kernel)
        # One reads, and is told by the read as well.
        assert sorted(answers) == [False] * 4 + [True]
        assert gone == [True]
        assert not await incoming.wait()
    finally:
        os.close(descriptor)


@pytest.mark.parametrize("working", [0, 1, 3])
async def test_the_end_of_the_mount_ends_every_task(working: int) -> None:
    with connection() as made:
        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(made.work)
            made.ask(b"s" * working)
            await wait_all_tasks_blocked()
            stop(made)
        assert made.ended == 3


async def test_the_end_reaches_a_task_that_was_just_woken_to_read() -> None:
    with connection() as made:
        answers: list[bool] = []

        async def first() -> None:
            assert await made.incoming.wait()
            os.read(made.descriptor, 1)
            made.incoming.suspended()
            stop(made)

        async def second() -> None:
            answers.append(await made.incoming.wait())

        with trio.fail_after(20):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(first)
                await wait_all_tasks_blocked()
                nursery.start_soon(second)
                await wait_all_tasks_blocked()
                made.ask(b"x")
        assert answers == [False]


async def test_a_task_that_is_cancelled_while_parked_is_not_woken() -> None:
    with connection() as made:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(made.work)
            await wait_all_tasks_blocked()
            with trio.CancelScope() as scope:
                async with trio.open_nursery() as parked:
                    parked.start_soon(made.work)
                    await wait_all_tasks_blocked()
                    scope.cancel()
            nursery.start_soon(made.work)
            await wait_all_tasks_blocked()
            made.ask(b"sa")
            await wait_all_tasks_blocked()
            assert made.answered == [b"a"]
            stop(made)


async def test_what_a_waiting_request_is_cancelled_by_reaches_it(logs: Logs) -> None:
    """Who tells the readers stands between trio and the handler, and hands everything on."""
    logs.expect("file system request failed")
    with connection() as made:
        guard = Guard(structlog.get_logger(), 0.0, readers=made.incoming)
        seen: list[str] = []

        async def handler(step: str) -> str:
            try:
                await trio.sleep_forever()
            except trio.Cancelled:
                seen.append(f"{step} cancelled")
                raise

        with pytest.raises(FUSEError) as told:
            await guard.wrapped("handle", handler)("late")
        assert (told.value.errno, seen) == (errno.ETIMEDOUT, ["late cancelled"])


async def test_what_a_waiting_request_answers_and_raises_is_handed_on() -> None:
    with connection() as made:
        guard = Guard(structlog.get_logger(), 60.0, readers=made.incoming)

        async def doubled(number: int) -> int:
            await trio.lowlevel.checkpoint()
            with trio.move_on_after(0):
                await trio.sleep_forever()
            await trio.lowlevel.checkpoint()
            if number < 0:
                raise Refused(errno.ENOENT)
            return 2 * number

        handler = guard.wrapped("double", doubled)
        assert await handler(4) == 8
        with pytest.raises(FUSEError) as told:
            await handler(-1)
        assert told.value.errno == errno.ENOENT
        assert guard.running == {}
