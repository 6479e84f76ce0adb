"""What the implementations without a server share about transaction bodies."""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable
from typing import TypeVar

T = TypeVar("T")


class BodySuspended(RuntimeError):
    """A body awaited something other than its transaction: a bug in the body."""

    def __init__(self) -> None:
        super().__init__(
            "a transaction's body may await nothing but its transaction (engine/meta/kv.py)"
        )


def drive(awaitable: Awaitable[T]) -> T:
    """Run a body to its end without the scheduler and return its result.

    Raises: BodySuspended, and whatever the body raises.
    """
    steps = awaitable.__await__()
    try:
        steps.send(None)
    except StopIteration as stop:
        result: T = stop.value
        return result
    # The body sits in a call into trio that never started; what that cleans up is its own affair.
    with contextlib.suppress(Exception):
        steps.close()
    raise BodySuspended


def added(value: bytes | None, delta: int) -> bytes:
    """Return the 8 bytes of a counter after ``delta``, wrapping as FoundationDB's ADD does."""
    total = int.from_bytes((value or b"")[:8], "little") + delta
    return (total & 0xFFFF_FFFF_FFFF_FFFF).to_bytes(8, "little")
