"""``Slot``: one drive folder of a member, and who uses the drive that is open there.

Concurrency: the trio thread owns all state here; worker threads use the drive, which is
thread-safe. ``Slot.users`` counts the calls that run; the drive is closed only at zero.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import TypeVar

import msgspec
import trio

from engine.ids import NodeId
from engine.node.contract import NodeBusy, NodeDown, Space
from engine.node.drive import Drive
from engine.node.wire.messages import DriveHealth, DriveState

T = TypeVar("T")


class ShelfConfig(msgspec.Struct, frozen=True, kw_only=True):
    volume_size: int = 1 << 30
    reserve: int = 256 << 20
    """Bytes of each drive that new fragments may not use."""
    threads: int = 8
    """Calls that wait for one drive at once."""
    queue: int = 128
    """Calls of one drive that run or wait; more are refused as busy."""
    look_s: float = 5.0
    """How often each drive is looked at."""
    hung_s: float = 30.0
    """A drive that has not answered a look for so long counts as failed."""
    open_wait_s: float = 5.0
    """How long to wait for another process that recovers a drive, before looking again later."""
    compact_s: float = 300.0
    """How often space of deleted fragments is given back."""
    compact_rate: int = 64 << 20
    """Bytes per second that compaction copies at most, per drive."""


class Slot:
    """One drive folder."""

    __slots__ = (
        "_hung_s",
        "_queue",
        "drive",
        "folder",
        "idle",
        "limiter",
        "looked",
        "looking",
        "node",
        "reason",
        "space",
        "state",
        "users",
        "volumes",
    )

    def __init__(self, folder: str, node: NodeId | None, config: ShelfConfig) -> None:
        self.folder = folder
        self.node = node
        self.state: DriveState = "opening"
        self.reason = ""
        self.drive: Drive | None = None
        self.space: Space | None = None
        """As of the last look, like ``volumes``."""
        self.volumes = 0
        self.looked = float("inf")
        """When a look last ended, once it is open."""
        self.looking = trio.Lock()
        """Held by whoever opens, examines or closes the drive."""
        self.users = 0
        self.idle = trio.Event()
        self.limiter = trio.CapacityLimiter(config.threads)
        self._queue = config.queue
        self._hung_s = config.hung_s

    @contextlib.contextmanager
    def use(self) -> Iterator[Drive]:
        """Keep the drive open for the block. Raises NodeDown, NodeBusy."""
        drive = self.begin()
        try:
            yield drive
        finally:
            self.end()

    def begin(self) -> Drive:
        """Like ``use``; for every return there is one ``end``."""
        if self.drive is None or self.state != "up":
            raise NodeDown(f"{self.folder}: {self.state}")
        if self.hung:
            raise NodeDown(f"{self.folder}: hangs")
        self.users += 1
        return self.drive

    def end(self) -> None:
        self.users -= 1
        if not self.users:
            self.idle.set()
            self.idle = trio.Event()

    async def run(self, work: Callable[[], T]) -> T:
        """Run the drive's work in a thread of its own. Raises NodeBusy, and what the work raises.

        Cancellation takes effect before the work begins or after it has ended.
        """
        state = self.limiter
        if state.available_tokens == 0 and state.statistics().tasks_waiting >= self._queue:
            raise NodeBusy(f"{self.folder}: {self._queue} calls wait for it")
        return await trio.to_thread.run_sync(work, limiter=state)

    async def finish(self, work: Callable[[], T]) -> T:
        """Like ``run``, for what was begun and must be ended: never refused."""
        return await trio.to_thread.run_sync(work, limiter=self.limiter)

    @property
    def queued(self) -> int:
        """Calls that run in the drive's threads, or wait for one."""
        state = self.limiter.statistics()
        return state.borrowed_tokens + state.tasks_waiting

    @property
    def hung(self) -> bool:
        """Nothing has come from the drive for so long that it counts as failed."""
        return trio.current_time() - self.looked > self._hung_s

    def health(self) -> DriveHealth:
        state, reason = self.state, self.reason
        if state == "up" and self.hung:
            silent_s = trio.current_time() - self.looked
            state, reason = "failed", f"has not answered for {silent_s:.0f} s"
        space = self.space if state == "up" else None
        return DriveHealth(
            folder=self.folder,
            state=state,
            node=self.node.hex() if self.node is not None else "",
            drive=self.drive.drive_id if self.drive is not None else "",
            reason=reason,
            total=space.total if space else 0,
            free=space.free if space else 0,
            live=space.live if space else 0,
            dead=space.dead if space else 0,
            fragments=space.fragments if space else 0,
        )
