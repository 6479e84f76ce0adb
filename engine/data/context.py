"""What the parts of the data path share: made once by ``DataStore``, handed to each of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

import trio

from engine.config import Profile, StoreConfig
from engine.data.buffers import BufferPool
from engine.data.coding import Coders
from engine.data.lanes import Lanes
from engine.data.nodes import NodePool
from engine.data.pace import Pace
from engine.ids import ChunkId

T = TypeVar("T")

BATCH_SIZE_MAX = 4 << 20
"""Bytes that one thread hop reads or writes at most; fewer when the memory budget is short."""


class DamageSink(Protocol):
    """Told of fragments that a read could not use; called on the trio thread, returns at once."""

    def __call__(self, chunk_id: ChunkId, index: int, kind: str, /) -> None:
        """``kind`` is ``missing``, ``damaged`` or ``down``."""


@dataclass(frozen=True, slots=True)
class Limiters:
    """Bounds on worker threads, by what the threads do."""

    work: trio.CapacityLimiter
    """Hashing, coding, and copies from and to the page cache."""
    disk: trio.CapacityLimiter
    """Waiting for a disk: commits, deletes, cold reads."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Context:
    config: StoreConfig
    profile: Profile
    pool: NodePool
    coders: Coders
    buffers: BufferPool
    limiters: Limiters
    lanes: Lanes
    new_chunk_id: Callable[[], ChunkId]
    on_damage: DamageSink
    pace: Pace
    """How long reads from other processes take."""
    nursery: trio.Nursery | None
    """Where reading ahead runs; None: no reading ahead."""


def first_error(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """Return the error that ended a nursery: the first that is no mere consequence of it."""
    cancelled: BaseException | None = None
    for error in _leaves(group.exceptions):
        if not isinstance(error, trio.Cancelled):
            return error
        cancelled = error
    return cancelled if cancelled is not None else group


def _leaves(errors: Sequence[BaseException]) -> list[BaseException]:
    leaves: list[BaseException] = []
    for error in errors:
        if isinstance(error, BaseExceptionGroup):
            leaves.extend(_leaves(error.exceptions))
        else:
            leaves.append(error)
    return leaves
