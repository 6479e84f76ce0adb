"""The real drive (volumes, index, recovery, compaction) as the shelf of a simulated machine.

It runs on a recorded disk (``tests.support.disk``): a power failure leaves what a disk might leave,
and the drive is opened on that. Slower than ``Shelf`` by about two times, so only some lives have
it.
"""

from __future__ import annotations

import contextlib
import random
from collections.abc import Sequence
from pathlib import Path

from engine.ids import FragmentId, NodeId
from engine.node.compaction import compact
from engine.node.contract import BlockingWriter, FragmentInfo, NodeError, Space
from engine.node.disk import DiskSpace
from engine.node.drive import Drive, format_drive, open_drive
from engine.node.files import volume_path
from engine.node.needle import NEEDLE_OVERHEAD
from tests.support.disk import OperationLog, RecordingDisk, RecordingVFS, Sync
from tests.support.simulation_machine import STORE_ID

VOLUME_SIZE = 16 << 10
DEAD_RATIO = 0.3
ROOM = 1 << 30
KEEP_ALL = 7
"""A seed of ``OperationLog.materialize`` with which nothing is lost: only the process died."""


class _Disk(RecordingDisk):
    full = False

    def number_of(self, fd: int) -> int:
        """Return how the log calls the file."""
        return self._files[fd]

    def statvfs(self, path: str) -> DiskSpace:
        return DiskSpace(ROOM, 0 if self.full else ROOM // 2)


class DriveShelf:
    """``tests.support.simulation_machine.Shelf``, on a drive of its own below ``folder``."""

    def __init__(self, folder: Path, node_id: NodeId, chance: random.Random) -> None:
        self._folder = folder
        self._chance = chance
        self._lives = 0
        self._full = False
        self.rotting = 0.0
        path = self._next_path()
        path.mkdir(parents=True)
        self._begin(path)
        format_drive(str(path), STORE_ID, node_id, self._disk)
        self._open(path)

    def _next_path(self) -> Path:
        self._lives += 1
        return self._folder / f"{self._lives}"

    def _begin(self, path: Path) -> None:
        self._log = OperationLog(path)
        self._disk = _Disk(self._log)
        self._disk.full = self._full
        self._vfs = RecordingVFS(str(path), self._log)

    def _open(self, path: Path) -> None:
        self._drive: Drive = open_drive(
            str(path),
            store_id=STORE_ID,
            disk=self._disk,
            volume_size=VOLUME_SIZE,
            reserve=0,
            index_vfs=str(path),
        )

    def _crash(self, seed: int) -> None:
        path = self._next_path()
        self._log.materialize(len(self._log.operations), seed, path)
        self.close()
        self._begin(path)
        self._open(path)

    def close(self) -> None:
        self._drive.close()
        self._vfs.unregister()

    # As of Shelf

    @property
    def full(self) -> bool:
        return self._full

    @full.setter
    def full(self, full: bool) -> None:
        self._full = self._disk.full = full

    @property
    def synced(self) -> list[FragmentId]:
        return [info.fragment for info in self._drive.list(b"", 1_000_000)]

    def sync(self) -> None:
        """The process was killed: all that was written is there."""
        self._crash(KEEP_ALL)

    def lose_power(self, chance: random.Random) -> None:
        self._crash(8 * chance.randrange(1_000_000) + chance.randrange(KEEP_ALL))

    def rot(self, chance: random.Random, share: float) -> int:
        chosen = [fragment for fragment in self.synced if chance.random() < share]
        for fragment in chosen:
            self._spoil(fragment, chance)
        return len(chosen)

    def _spoil(self, fragment: FragmentId, chance: random.Random) -> None:
        place = self._drive.index.find(fragment)
        if place is None:
            return
        number, begin, size = place
        path = volume_path(self._drive.path, number)
        fd = self._disk.open(path, 2)
        try:
            offset = begin + NEEDLE_OVERHEAD + chance.randrange(max(size, 1))
            byte = bytearray(1)
            self._disk.preadv(fd, [byte], offset)
            byte[0] ^= 1 << chance.randrange(8)
            self._disk.pwritev(fd, [byte], offset)
            self._log.add(Sync(self._disk.number_of(fd)))
        finally:
            self._disk.close(fd)

    # Blocking

    def read_into(
        self, fragment: FragmentId, offset: int, buffers: Sequence[memoryview], *, nowait: bool
    ) -> bool:
        if self.rotting and self._chance.random() < self.rotting:
            self._spoil(fragment, self._chance)
        return self._drive.read_into(fragment, offset, buffers, nowait=False)

    def open_writer(self, fragment: FragmentId, size_max: int) -> BlockingWriter:
        return self._drive.open_writer(fragment, size_max)

    def delete(self, fragments: Sequence[FragmentId]) -> None:
        self._drive.delete(fragments)
        if self._chance.random() < 0.2:
            with contextlib.suppress(NodeError):  # it may be full
                compact(self._drive, dead_ratio=DEAD_RATIO)

    def stat(self, fragment: FragmentId) -> FragmentInfo | None:
        return self._drive.stat(fragment)

    def list(self, after: bytes, limit: int) -> list[FragmentInfo]:
        return self._drive.list(after, limit)

    def space(self) -> Space:
        return self._drive.space()
