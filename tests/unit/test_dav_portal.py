"""The crossing between threads and the trio run: results, errors, cancellation, an end."""

from __future__ import annotations

import threading

import pytest
import trio

from dav.portal import ClientGone, Crossing, Portal, open_portal
from engine.errors import Unavailable


class Client:
    """A client that goes away when told to."""

    def __init__(self) -> None:
        self.left = threading.Event()
        self.interrupted = threading.Event()

    def gone(self) -> bool:
        return self.left.is_set()

    def interrupt(self) -> None:
        self.interrupted.set()


async def test_a_result_and_an_error_come_back() -> None:
    async def add(crossing: Crossing) -> int:
        await trio.lowlevel.checkpoint()
        return 3

    async def fail(crossing: Crossing) -> int:
        raise LookupError("x")

    async with open_portal() as portal:
        assert await trio.to_thread.run_sync(portal.run, add, Client()) == 3
        with pytest.raises(LookupError, match="x"):
            await trio.to_thread.run_sync(portal.run, fail, Client())


async def test_blocking_work_runs_in_the_thread_that_waits() -> None:
    seen: list[int] = []

    def fail() -> None:
        raise OSError("socket")

    async def work(crossing: Crossing) -> str:
        for _ in range(3):
            seen.append(await crossing.in_thread(threading.get_ident))
        try:
            await crossing.in_thread(fail)
        except OSError as error:
            return str(error)
        raise AssertionError

    def run(portal: Portal) -> tuple[int, str]:
        return threading.get_ident(), portal.run(work, Client())

    async with open_portal() as portal:
        thread, said = await trio.to_thread.run_sync(run, portal)
    assert seen == [thread] * 3
    assert thread != threading.get_ident()
    assert said == "socket"


async def test_a_client_that_leaves_cancels_the_work_which_cleans_up() -> None:
    client = Client()
    cleaned: list[str] = []

    async def work(crossing: Crossing) -> None:
        client.left.set()
        try:
            await trio.sleep_forever()
        finally:
            with trio.CancelScope(shield=True):
                await trio.lowlevel.checkpoint()
            cleaned.append("yes")

    async with open_portal() as portal:
        with pytest.raises(ClientGone):
            await trio.to_thread.run_sync(portal.run, work, client)
    assert cleaned == ["yes"]


async def test_work_that_takes_too_long_is_cancelled() -> None:
    async def work(crossing: Crossing) -> None:
        await trio.sleep_forever()

    def run(portal: Portal) -> None:
        portal.run(work, Client(), timeout_s=0.01)

    async with open_portal() as portal:
        with pytest.raises(Unavailable):
            await trio.to_thread.run_sync(run, portal)


async def test_a_stop_interrupts_what_blocks_and_waits_for_it() -> None:
    """The buffer that a thread fills is not given back while it does."""
    client = Client()
    blocking = trio.Event()
    token = trio.lowlevel.current_trio_token()
    order: list[str] = []

    def block() -> None:
        token.run_sync_soon(blocking.set)
        assert client.interrupted.wait(20)
        order.append("returned")

    async def work(crossing: Crossing) -> None:
        try:
            await crossing.in_thread(block)
            await trio.lowlevel.checkpoint()
        finally:
            order.append("released")

    def run(portal: Portal) -> None:
        with pytest.raises(Unavailable):
            portal.run(work, client)
        order.append("told")

    async with trio.open_nursery() as nursery, open_portal() as portal:
        nursery.start_soon(trio.to_thread.run_sync, run, portal)  # noqa: ASYNC111  ends first
        await blocking.wait()
    assert order == ["returned", "released", "told"]


async def test_a_task_that_has_ended_its_work_does_the_next() -> None:
    seen: list[trio.lowlevel.Task] = []
    together = trio.Event()

    async def look(crossing: Crossing) -> None:
        seen.append(trio.lowlevel.current_task())

    async def meet(crossing: Crossing) -> None:
        await look(crossing)
        if len(seen) == 4:
            together.set()
        await together.wait()

    def run(portal: Portal) -> None:
        portal.run(meet, Client())

    async with open_portal() as portal:
        for _ in range(2):
            await trio.to_thread.run_sync(portal.run, look, Client())
        async with trio.open_nursery() as nursery:
            for _ in range(2):
                nursery.start_soon(trio.to_thread.run_sync, run, portal)
    assert seen[0] is seen[1]
    assert seen[2] is not seen[3]
    assert seen[0] in seen[2:]


async def test_work_that_was_cancelled_leaves_nothing_to_the_next() -> None:
    client = Client()
    client.left.set()

    async def wait(crossing: Crossing) -> None:
        await trio.sleep_forever()

    async def go_on(crossing: Crossing) -> str:
        await trio.lowlevel.checkpoint()
        return "here"

    async with open_portal() as portal:
        with pytest.raises(ClientGone):
            await trio.to_thread.run_sync(portal.run, wait, client)
        assert await trio.to_thread.run_sync(portal.run, go_on, Client()) == "here"


async def test_a_portal_that_is_closed_says_so() -> None:
    async def work(crossing: Crossing) -> None: ...

    async with open_portal() as portal:
        pass
    with pytest.raises(Unavailable):
        await trio.to_thread.run_sync(portal.run, work, Client())


def test_a_run_that_has_ended_says_so() -> None:
    async def work(crossing: Crossing) -> None: ...

    async def main() -> Portal:
        async with open_portal() as portal:
            return portal

    portal = trio.run(main)
    with pytest.raises(Unavailable):
        portal.run(work, Client())
