"""``gather``: several calls at once, of which the slowest are not waited for without end."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import TypeVar

import trio

from engine.data.context import first_error

K = TypeVar("K")


async def gather(
    calls: Mapping[K, Callable[[], Awaitable[bool]]], *, required: int, patience_s: float
) -> list[K]:
    """Run all calls; return the keys of those that were given up.

    Once ``required`` calls have returned True, the others get ``patience_s`` seconds more and are
    then cancelled. As long as fewer have, all are waited for: each has its own limits.

    Raises: what a call raises, after the others were cancelled.
    """
    scopes = {key: trio.CancelScope() for key in calls}
    succeeded = 0
    enough = trio.Event()
    if required <= 0:
        enough.set()

    async def run(key: K) -> None:
        nonlocal succeeded
        with scopes[key]:
            if await calls[key]():
                succeeded += 1
                if succeeded >= required:
                    enough.set()

    async def lose_patience() -> None:
        await enough.wait()
        await trio.sleep(patience_s)
        for scope in scopes.values():
            scope.cancel()

    try:
        async with trio.open_nursery() as watching:
            watching.start_soon(lose_patience)
            async with trio.open_nursery() as running:
                for key in calls:
                    running.start_soon(run, key)
            watching.cancel_scope.cancel()
    except BaseExceptionGroup as errors:
        raise first_error(errors) from None
    return [key for key, scope in scopes.items() if scope.cancelled_caught]
