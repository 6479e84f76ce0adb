"""Giving space back: live needles of a volume are copied away, then the volume is unlinked.

Safe to be killed at any point: a copy is durable before the index points to it, and the index is
durable before the volume is unlinked. A copy that the index never came to point to is disowned by
the next recovery. A reader that looked a needle up before it moved finds no file, and looks again.

Tombstones are dropped when the volume that they speak of is gone, and copied on otherwise. One
process at a time compacts a drive.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass

from engine.ids import FragmentId
from engine.node.contract import FragmentDamaged, NodeDown, NodeFull
from engine.node.disk import Disk, read_all, write_all
from engine.node.drive import TOMBSTONES_MAX, Drive
from engine.node.files import volume_path
from engine.node.index import READ_ONLY, RETIRED, Update, VolumeRow
from engine.node.needle import (
    COPY,
    FILE_HEADER_SIZE,
    NEEDLE_OVERHEAD,
    TOMBSTONE_SIZE,
    TOMBSTONES,
    Source,
    Tombstone,
    align,
    extent_size,
)
from engine.node.recovery import unlink_if_there
from engine.node.scan import Gap, VolumeReader
from engine.node.volume import FULL_ERRORS, Extent, Pending, Volume

_PIECE_SIZE = 1 << 20
_BATCH_NEEDLES = 512
_BATCH_SIZE = 64 << 20


@dataclass(slots=True)
class CompactionStats:
    volumes: int = 0
    """Volumes that were unlinked."""
    needles: int = 0
    """Needles that were copied."""
    bytes_copied: int = 0
    bytes_freed: int = 0
    """Size of the unlinked volumes less what was copied."""
    tombstones_dropped: int = 0
    unreadable: int = 0
    """Volumes that had to stay because of needles that cannot be read."""
    busy: bool = False
    """Another process is compacting the drive; nothing was done."""


def compact(
    drive: Drive,
    *,
    dead_ratio: float = 0.3,
    budget: Callable[[int], None] | None = None,
    volumes_max: int = 0,
) -> CompactionStats:
    """Compact the volumes of which at least ``dead_ratio`` is dead; blocks, so use a thread.

    Args:
        budget: called with the number of bytes before each piece is copied; it may sleep, and
            what it raises ends the compaction in good order.
        volumes_max: stop after so many volumes; 0: no limit.
    Raises:
        NodeFull: no room to copy to. NodeDown.
    """
    stats = CompactionStats()
    try:
        fd = drive.disk.open(os.path.join(drive.path, "lock.compact"), os.O_RDWR | os.O_CREAT)
    except OSError as error:
        raise NodeDown(f"{drive.path}: {error.strerror}") from error
    try:
        if not drive.disk.lock(fd, exclusive=True):
            stats.busy = True
            return stats
        # Copies that an earlier run left behind must be disowned before their source goes.
        drive.recover()
        for row in drive.index.volumes().values():
            if _is_worth_it(drive, row, dead_ratio):
                _Compaction(drive, row, stats, budget).run()
            if volumes_max and stats.volumes >= volumes_max:
                break
    except OSError as error:
        if error.errno in FULL_ERRORS:
            raise NodeFull(f"{drive.path}: the drive is full") from error
        raise NodeDown(f"{drive.path}: compaction: {error.strerror}") from error
    finally:
        drive.disk.close(fd)
    return stats


def _is_worth_it(drive: Drive, row: VolumeRow, dead_ratio: float) -> bool:
    size = row.indexed_to - FILE_HEADER_SIZE
    if row.state == RETIRED or size <= 0:
        return False
    if size - row.live - row.tombstones >= max(1, dead_ratio * size):
        return True
    return row.tombstones >= max(1, dead_ratio * size) and _tombstones_shrink(drive, row)


def _tombstones_shrink(drive: Drive, row: VolumeRow) -> bool:
    """Return whether at least half of the tombstones' space would come free."""
    uuids = _uuids(drive) - {row.uuid}
    needed = 0
    try:
        fd = drive.disk.open(volume_path(drive.path, row.number), os.O_RDONLY)
    except FileNotFoundError:
        return False
    try:
        for tombstones in _tombstones(VolumeReader(drive.disk, fd), row.uuid):
            needed += sum(tombstone.place.uuid in uuids for tombstone in tombstones)
    finally:
        drive.disk.close(fd)
    return (extent_size(needed * TOMBSTONE_SIZE) if needed else 0) * 2 <= row.tombstones


def _tombstones(reader: VolumeReader, uuid: bytes) -> list[list[Tombstone]]:
    return [
        reader.tombstones(item) or []
        for item in reader.walk(FILE_HEADER_SIZE, uuid)
        if not isinstance(item, Gap) and item.commit and item.header.kind == TOMBSTONES
    ]


def _uuids(drive: Drive) -> set[bytes]:
    return {row.uuid for row in drive.index.volumes().values()}


@dataclass(frozen=True, slots=True)
class _Needle:
    fragment: FragmentId
    offset: int
    size: int
    crc: int | None
    """As committed, so that a copy of damaged bytes is known as damaged; None: not known."""


class _Compaction:
    """Of one volume."""

    def __init__(
        self,
        drive: Drive,
        row: VolumeRow,
        stats: CompactionStats,
        budget: Callable[[int], None] | None,
    ) -> None:
        self._drive = drive
        self._disk: Disk = drive.disk
        self._row = row
        self._stats = stats
        self._budget = budget
        self._piece = bytearray(_PIECE_SIZE)
        self._target: Volume | None = None
        self._copied: list[tuple[_Needle, Extent]] = []
        self._copied_size = 0
        self._total = 0

    def run(self) -> None:
        self._drive.seal(self._row.number)
        try:
            fd = self._disk.open(volume_path(self._drive.path, self._row.number), os.O_RDWR)
        except FileNotFoundError:
            return
        try:
            row = self._drive.index.volumes().get(self._row.number)
            if not self._disk.lock(fd, exclusive=True) or row is None:
                return  # in use
            reader = VolumeReader(self._disk, fd)
            if row.uuid != self._row.uuid or align(reader.size) != align(row.indexed_to):
                return
            self._empty(fd, reader)
        finally:
            self._disk.close(fd)

    def _empty(self, fd: int, reader: VolumeReader) -> None:
        number = self._row.number
        needles, tombstones = self._read(reader)
        try:
            for needle in needles:
                self._copy(fd, reader, needle)
            self._switch()
            self._keep(tombstones)
        except FragmentDamaged:
            self._stats.unreadable += 1
            self._drive.index.set_state(number, READ_ONLY)
            return
        finally:
            self._abandon()
        left = self._drive.index.volumes()[number]
        if left.needles and self._drive.index.needles_in(number):
            self._stats.unreadable += 1
            return
        # Durable from here on: no needle is in this volume any more.
        self._drive.index.retire(number)
        self._drive.files.drop(number)
        unlink_if_there(self._disk, volume_path(self._drive.path, number))
        self._disk.fsync_dir(os.path.dirname(volume_path(self._drive.path, number)))
        self._drive.index.drop_volume(number)
        self._stats.volumes += 1
        self._stats.bytes_freed += max(0, reader.size - self._total)

    def _read(self, reader: VolumeReader) -> tuple[list[_Needle], list[Tombstone]]:
        """Return the needles that the index points to, in order, and the tombstones."""
        number, index = self._row.number, self._drive.index
        live: dict[int, _Needle] = {}
        tombstones: list[Tombstone] = []
        for item in reader.walk(FILE_HEADER_SIZE, self._row.uuid):
            if isinstance(item, Gap) or item.commit is None:
                continue
            if item.header.kind == TOMBSTONES:
                tombstones += reader.tombstones(item) or []
                continue
            fragment, offset = item.header.fragment, item.header.offset
            place = index.find(fragment)
            if place is not None and place[:2] == (number, offset):
                live[offset] = _Needle(fragment, offset, item.commit.size, item.commit.crc)
        if len(live) < index.volumes()[number].needles:
            # Some headers are damaged; the index knows where these needles are.
            for fragment, offset, size in index.needles_in(number):
                live.setdefault(offset, _Needle(fragment, offset, size, None))
        return [live[offset] for offset in sorted(live)], tombstones

    def _copy(self, fd: int, reader: VolumeReader, needle: _Needle) -> None:
        crc = needle.crc
        try:
            if crc is None:
                crc = reader.checksum(needle.offset, needle.size)
        except OSError as error:
            raise FragmentDamaged(needle.fragment.hex()) from error
        if crc is None:
            raise FragmentDamaged(f"{needle.fragment.hex()}: its volume ends within it")
        volume, extent = self._drive.reserve(COPY, needle.fragment, needle.size)
        if volume is not self._target:
            volume.pin()
            try:
                self._switch()
            except BaseException:
                volume.abort(extent)
                volume.unpin()
                raise
            if self._target is not None:
                self._target.unpin()
            self._target = volume
        self._copied.append((needle, extent))
        self._copy_payload(fd, needle, volume, extent)
        volume.write_commit(extent, needle.size, crc, Source(self._row.uuid, needle.offset))
        self._copied_size += needle.size
        if len(self._copied) >= _BATCH_NEEDLES or self._copied_size >= _BATCH_SIZE:
            self._switch()

    def _copy_payload(self, fd: int, needle: _Needle, volume: Volume, extent: Extent) -> None:
        done = 0
        while done < needle.size:
            view = memoryview(self._piece)[: min(_PIECE_SIZE, needle.size - done)]
            if self._budget is not None:
                self._budget(len(view))
            try:
                count = read_all(self._disk, fd, [view], needle.offset + NEEDLE_OVERHEAD + done)
            except OSError as error:
                raise FragmentDamaged(needle.fragment.hex()) from error
            if count < len(view):
                raise FragmentDamaged(f"{needle.fragment.hex()}: its volume ends within it")
            write_all(self._disk, volume.fd, [view], extent.offset + NEEDLE_OVERHEAD + done)
            done += len(view)

    def _switch(self) -> None:
        """Sync what was copied and let the index point to it."""
        if self._target is None or not self._copied:
            return
        number = self._row.number
        update = Update(
            moves=[(needle.fragment, number, needle.offset, e.offset) for needle, e in self._copied]
        )
        self._target.commit(Pending([extent for _, extent in self._copied], update))
        extents = {extent.offset: extent for _, extent in self._copied}
        self._stats.needles += len(self._copied)
        self._stats.bytes_copied += self._copied_size
        self._total += sum(extent.size for extent in extents.values())
        self._copied, self._copied_size = [], 0
        if update.unmoved:
            # Deleted or rewritten meanwhile. The tombstone names the place in this volume, and
            # will be dropped with it: the copies must be gone for good before.
            for *_, offset in update.unmoved:
                self._target.disown(extents[offset])
            self._target.commit(Pending([], Update()))

    def _keep(self, tombstones: list[Tombstone]) -> None:
        uuids = _uuids(self._drive) - {self._row.uuid}
        kept = [tombstone for tombstone in tombstones if tombstone.place.uuid in uuids]
        for begin in range(0, len(kept), TOMBSTONES_MAX):
            self._drive.append_tombstones(kept[begin : begin + TOMBSTONES_MAX], Update())
        self._stats.tombstones_dropped += len(tombstones) - len(kept)

    def _abandon(self) -> None:
        """Take back copies that the index does not point to."""
        if self._target is not None:
            for _, extent in self._copied:
                self._target.abort(extent)
            self._target.unpin()
        self._target, self._copied = None, []
