"""Simulated machines: each keeps fragments on one drive, and can crash, fill up and rot."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import trio

from engine.ids import FragmentId, MemberId, NodeId
from engine.node.contract import (
    Blocking,
    Buffer,
    FragmentDamaged,
    FragmentInfo,
    FragmentMissing,
    NodeDown,
    NodeFull,
    Space,
)
from engine.node.wire.messages import DriveHealth, MemberHealth

if TYPE_CHECKING:
    from tests.support.simulation_drive import DriveShelf

STORE_ID = "simulated"


class Shelf:
    """Fragments of one drive, those that are synced and those that are not; ``Blocking``."""

    def __init__(self, chance: random.Random) -> None:
        self.synced: dict[FragmentId, bytearray] = {}
        self.unsynced: dict[FragmentId, bytearray | None] = {}
        """Written (or, None, deleted) since the last sync: lost in a power failure, or not."""
        self.full = False
        self.rotting = 0.0
        """How many reads spoil what they read, for good."""
        self._chance = chance

    def sync(self) -> None:
        for fragment, content in self.unsynced.items():
            if content is None:
                self.synced.pop(fragment, None)
            else:
                self.synced[fragment] = content
        self.unsynced.clear()

    def lose_power(self, chance: random.Random) -> None:
        """Keep what was synced; of the rest, each change or not."""
        kept = {name: value for name, value in self.unsynced.items() if chance.random() < 0.5}
        self.unsynced = kept
        self.sync()

    def rot(self, chance: random.Random, share: float) -> int:
        """Flip a bit, or cut the end, of about ``share`` of the fragments; return of how many."""
        count = 0
        for fragment in sorted(self.synced):
            content = self.synced[fragment]
            if chance.random() >= share or not content:
                continue
            count += 1
            if chance.random() < 0.2:
                del content[chance.randrange(len(content)) :]
            else:
                content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
        return count

    def find(self, fragment: FragmentId) -> bytearray | None:
        if fragment in self.unsynced:
            return self.unsynced[fragment]
        return self.synced.get(fragment)

    # Blocking

    def read_into(
        self, fragment: FragmentId, offset: int, buffers: Sequence[memoryview], *, nowait: bool
    ) -> bool:
        content = self.find(fragment)
        if content is None:
            raise FragmentMissing(fragment.hex())
        if offset + sum(map(len, buffers)) > len(content):
            raise FragmentDamaged(fragment.hex())
        if self.rotting and self._chance.random() < self.rotting:
            content[self._chance.randrange(offset, len(content))] ^= 1
        for buffer in buffers:
            buffer[:] = content[offset : offset + len(buffer)]
            offset += len(buffer)
        return True

    def open_writer(self, fragment: FragmentId, size_max: int) -> ShelfWriter:
        if self.full:
            raise NodeFull("the drive is full")
        return ShelfWriter(self, fragment, size_max)

    def delete(self, fragments: Sequence[FragmentId]) -> None:
        for fragment in fragments:
            if self.find(fragment) is not None:
                self.unsynced[fragment] = None
        self.sync()

    def stat(self, fragment: FragmentId) -> FragmentInfo | None:
        content = self.find(fragment)
        return None if content is None else FragmentInfo(fragment, len(content))

    def list(self, after: bytes, limit: int) -> list[FragmentInfo]:
        there = {*self.synced, *self.unsynced}
        found = sorted(name for name in there if name > after and self.find(name) is not None)
        return [FragmentInfo(name, len(self.find(name) or b"")) for name in found[:limit]]

    def space(self) -> Space:
        live = sum(map(len, self.synced.values()))
        return Space(1 << 30, 0 if self.full else 1 << 29, live, 0, len(self.synced))

    def close(self) -> None:
        pass


class ShelfWriter:
    def __init__(self, shelf: Shelf, fragment: FragmentId, size_max: int) -> None:
        self._shelf = shelf
        self._fragment = fragment
        self._size_max = size_max
        self._content = bytearray()
        self._open = True

    def write(self, buffers: Sequence[Buffer]) -> None:
        assert self._open, "written after its end"
        for buffer in buffers:
            self._content += buffer
        assert len(self._content) <= self._size_max, "more than was reserved"

    def commit(self) -> None:
        assert self._open, "committed after its end"
        self._open = False
        self._shelf.unsynced[self._fragment] = self._content
        self._shelf.sync()

    def abort(self) -> None:
        self._open = False


class Countdown:
    """Lets a fault wait for one of the next calls, whatever the time."""

    def __init__(self) -> None:
        self._waiting: list[tuple[int, trio.Event]] = []
        self._count = 0

    async def wait(self, calls: int) -> None:
        event = trio.Event()
        self._waiting.append((self._count + calls, event))
        await event.wait()

    def passed(self) -> bool:
        """Return whether this was the call that somebody waited for."""
        self._count += 1
        if not self._waiting:
            return False
        due = [event for at, event in self._waiting if at <= self._count]
        for event in due:
            event.set()
        self._waiting = [item for item in self._waiting if item[0] > self._count]
        return bool(due)


class Machine:
    """A member with one drive, thus one node. While it is down every call fails; what was under way
    is lost."""

    def __init__(
        self,
        name: str,
        node_id: NodeId,
        member_id: MemberId,
        chance: random.Random,
        new_shelf: Callable[[], Shelf | DriveShelf],
    ) -> None:
        self.name = name
        self.node_id = node_id
        self.member_id = member_id
        self.shelf = new_shelf()
        self._new_shelf = new_shelf
        self.up = True
        self.incarnation = 0
        self.slow_s = 0.0
        """What each call takes longer."""
        self.formatted = True
        self.drive_number = 1
        self.calls = Countdown()
        self._chance = chance

    @property
    def drive(self) -> Blocking:
        """Raises: NodeDown."""
        if not self.up or not self.formatted:
            raise NodeDown(f"{self.name} is down")
        return self.shelf

    @property
    def folder(self) -> str:
        return f"/srv/{self.name}"

    @property
    def drive_id(self) -> str:
        return f"{self.name}-drive-{self.drive_number}"

    def health(self) -> MemberHealth:
        """Raises: NodeDown."""
        if not self.up:
            raise NodeDown(f"{self.name} is down")
        drive = DriveHealth(
            folder=self.folder,
            state="up" if self.formatted else "empty",
            node=self.node_id.hex(),
            drive=self.drive_id if self.formatted else "",
        )
        return MemberHealth(
            member=self.member_id.hex(),
            store=STORE_ID,
            name=self.name,
            version="simulated",
            drives=[drive],
        )

    def adopt(self, drives: Mapping[str, NodeId]) -> MemberHealth:
        """Format the drive when it is among those named and was replaced."""
        if not self.formatted and self.folder in drives:
            self.formatted = True
            self.drive_number += 1
        return self.health()

    def crash(self, *, power: bool) -> None:
        """``power``: what was not synced is lost as well."""
        self.up = False
        self.incarnation += 1
        if power:
            self.shelf.lose_power(self._chance)
        else:
            self.shelf.sync()

    def restart(self) -> None:
        self.up = True

    def replace_drive(self) -> None:
        """Put an empty drive in; to be called while it is down."""
        self.shelf.close()
        self.shelf = self._new_shelf()
        self.formatted = False
