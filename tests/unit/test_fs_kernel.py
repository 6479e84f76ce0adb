"""What is added to pyfuse3's way of listening to the kernel."""

from __future__ import annotations

import os

import pyfuse3

from fs.kernel import read_without_blocking, surely_readable


def never() -> None:
    raise AssertionError("the connection is there")


async def test_the_end_of_the_connection_is_noticed_at_once() -> None:
    receive, send = os.pipe()
    os.close(send)
    gone: list[bool] = []

    async def wait() -> bool:
        return True

    try:
        assert await surely_readable(wait, receive, lambda: gone.append(True))()
        assert gone == [True]
    finally:
        os.close(receive)


async def test_an_announcement_with_nothing_behind_it_is_waited_out() -> None:
    """A read after it would block the process: what was announced is gone."""
    receive, send = os.pipe()
    announced = 0

    async def wait() -> bool:
        nonlocal announced
        announced += 1
        if announced == 3:
            os.write(send, b"x")
        return True

    try:
        assert await surely_readable(wait, receive, never)()
        assert announced == 3
        assert await surely_readable(wait, receive, never)()
        assert announced == 4
    finally:
        os.close(receive)
        os.close(send)


async def test_the_end_is_the_end_whatever_there_is_to_read() -> None:
    receive, send = os.pipe()
    os.write(send, b"x")

    async def wait() -> bool:
        return False

    try:
        assert not await surely_readable(wait, receive, never)()
    finally:
        os.close(receive)
        os.close(send)


def test_pyfuse3_still_has_the_function_that_is_replaced() -> None:
    assert callable(pyfuse3._wait_fuse_readable)  # type: ignore[attr-defined]
    read_without_blocking(never)  # nothing is mounted by this process: nothing happens
