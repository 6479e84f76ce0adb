"""One drive folder: ``Drive``, the node of this process as plain functions.

====================== =====================================================================
``drive.json``         identity; written once
``volumes/*.vol``      needles (``needle.py``)
``index.sqlite``       where each needle is (``index.py``); can be lost
``reserve``            blocks that are given up when not even a tombstone finds room
``lock.open``          held exclusively while a process opens, hence recovers, the drive
``lock.use``           held shared by each process that uses it; exclusively to rebuild the index
``lock.compact``       held by the process that compacts
====================== =====================================================================

Several processes use a drive at once. Each appends to a volume of its own, whose flock it holds,
and reads all of them.

Concurrency: every method may be called from any thread. ``_lock`` guards which volume is active;
``_room_lock`` the bytes promised to open writers.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Sequence
from typing import TypeAlias

from awscrt.checksums import crc64nvme

from engine.ids import FragmentId, NodeId
from engine.node.contract import (
    FragmentDamaged,
    FragmentInfo,
    FragmentMissing,
    NodeDown,
    NodeError,
    NodeFull,
    Space,
)
from engine.node.disk import READ_NOWAIT, Disk, RealDisk, read_all, write_all
from engine.node.files import VolumeFiles, volume_numbers, volume_path
from engine.node.identity import Identity, format_drive, read_identity
from engine.node.index import OPEN, Index, Update, VolumeRow
from engine.node.needle import (
    DATA,
    FILE_HEADER_SIZE,
    NEEDLE_OVERHEAD,
    NO_FRAGMENT,
    PAGE,
    PAYLOAD_SIZE_MAX,
    TOMBSTONES,
    UUID_SIZE,
    Source,
    Tombstone,
    align,
    extent_size,
    pack_file_header,
    pack_tombstones,
)
from engine.node.opening import (
    OPEN_S_MAX,
    make_reserve,
    opening_lock,
    recovered_index,
    release_reserve,
)
from engine.node.recovery import Recovery, RecoveryReport
from engine.node.volume import FULL_ERRORS, Extent, Pending, Volume
from engine.node.writer import FragmentWriter

Needles: TypeAlias = list[tuple[FragmentId, int, int]]
"""(fragment, volume, offset) of each."""

MIB = 1 << 20
FAILED_VOLUMES_MAX = 3
"""So many failed syncs, and the drive takes no more writes."""

TOMBSTONES_MAX = 8192
"""Tombstones in one needle."""
_DELETE_ATTEMPTS = 16
_LOOKUPS_MAX = 4


class Drive:
    """Implements ``engine.node.contract.Blocking``. Made by ``open_drive``."""

    def __init__(
        self,
        path: str,
        identity: Identity,
        disk: Disk,
        index: Index,
        *,
        use_fd: int,
        volume_size: int,
        reserve: int,
        open_files: int,
        direct_min: int,
        report: RecoveryReport,
    ) -> None:
        self.path = path
        self.node_id: NodeId = identity.node_id
        self.drive_id = identity.drive_id
        self.disk = disk
        self.index = index
        self.files = VolumeFiles(disk, path, open_files)
        self.report = report
        """What opening the drive found."""
        self._use_fd = use_fd
        self._volume_size = volume_size
        self._reserve = reserve
        self._direct_min = direct_min
        self._active: Volume | None = None
        self._sealed: list[Volume] = []
        self._failed: set[int] = set()
        self._uuids: dict[int, bytes] = {}
        self._lock = threading.Lock()
        self._room_lock = threading.Lock()
        self._promised = 0
        self._closed = False

    # Reading

    def read_into(
        self, fragment: FragmentId, offset: int, buffers: Sequence[memoryview], *, nowait: bool
    ) -> bool:
        wanted = sum([buffer.nbytes for buffer in buffers])
        for _ in range(_LOOKUPS_MAX):
            place = self.index.find(fragment)
            if place is None:
                raise FragmentMissing(fragment.hex())
            volume, begin, size = place
            if offset < 0 or offset + wanted > size:
                raise FragmentDamaged(f"{fragment.hex()} has {size} bytes")
            try:
                file = self.files.get(volume)
                position = begin + NEEDLE_OVERHEAD + offset
                if nowait:
                    return self.disk.preadv(file.fd, buffers, position, READ_NOWAIT) == wanted
                if read_all(self.disk, file.fd, buffers, position) == wanted:
                    return True
            except BlockingIOError:
                return False
            except FileNotFoundError:
                continue  # compaction moved the needle after the lookup
            except OSError as error:
                if nowait:
                    return False  # not possible on every file system; the other way will tell
                raise self._read_failed(fragment, error) from error
            raise FragmentDamaged(f"{fragment.hex()}: its volume ends within it")
        if not os.path.isdir(self.path):
            raise NodeDown(f"{self.path} is gone")
        raise FragmentMissing(f"{fragment.hex()}: its volume is gone")

    def _read_failed(self, fragment: FragmentId, error: OSError) -> NodeError:
        """A sector that cannot be read concerns this fragment; anything else, the drive."""
        if error.errno == 5:
            return FragmentDamaged(f"{fragment.hex()}: {error.strerror}")
        return NodeDown(f"{self.path}: read: {error.strerror}")

    def stat(self, fragment: FragmentId) -> FragmentInfo | None:
        place = self.index.find(fragment)
        return None if place is None else FragmentInfo(fragment, place[2])

    def list(self, after: bytes, limit: int) -> list[FragmentInfo]:
        return self.index.scan(after, limit)

    def space(self) -> Space:
        self.files.drop_unlinked()
        rows = self.index.volumes().values()
        try:
            state = self.disk.statvfs(self.path)
        except OSError as error:
            raise NodeDown(f"{self.path}: {error.strerror}") from error
        return Space(
            total=state.total,
            free=max(0, state.free - self._reserve),
            live=sum(row.live for row in rows),
            dead=sum(row.dead for row in rows),
            fragments=sum(row.needles for row in rows),
        )

    # Writing

    def open_writer(self, fragment: FragmentId, size_max: int) -> FragmentWriter:
        if not 0 <= size_max <= PAYLOAD_SIZE_MAX:
            raise ValueError(f"a fragment of {size_max} bytes")
        self._promise(size_max)
        promised = size_max
        try:
            paged = size_max >= self._direct_min
            volume, extent = self.reserve(DATA, fragment, size_max, paged=paged)
            if paged and volume.direct_fd >= 0:
                try:
                    if volume.extend(extent):
                        # The file system counts these bytes as used now.
                        self.unpromise(promised)
                        promised = 0
                except NodeError:
                    volume.abort(extent)
                    raise
        except BaseException:
            self.unpromise(promised)
            raise
        return FragmentWriter(
            self, fragment, size_max, volume=volume, extent=extent, promised=promised
        )

    def _promise(self, size: int) -> None:
        try:
            free = self.disk.statvfs(self.path).free
        except OSError as error:
            raise NodeDown(f"{self.path}: {error.strerror}") from error
        with self._room_lock:
            if free - self._reserve - self._promised < extent_size(size):
                raise NodeFull(f"{self.path}: {free} bytes free, {self._reserve} reserved")
            self._promised += size

    def unpromise(self, size: int) -> None:
        """Give back what a writer has written or will not write."""
        with self._room_lock:
            self._promised -= size

    def reserve(
        self, kind: int, fragment: FragmentId, size_max: int, *, paged: bool = False
    ) -> tuple[Volume, Extent]:
        """Reserve an extent in the active volume, without regard to the reserve of space.

        Raises: NodeFull, NodeDown.
        """
        room = extent_size(size_max) + (PAGE if paged else 0)
        while True:
            with self._lock:
                volume = self._active
                if volume is None or not volume.usable():
                    volume = self._activate(room)
            extent = volume.reserve(kind, fragment, size_max, paged=paged)
            if extent is not None:
                return volume, extent
            with self._lock:
                if self._active is volume:
                    self._deactivate()

    def delete(self, fragments: Sequence[FragmentId]) -> None:
        """See the contract. Costs one sync for each 8,192 fragments."""
        unique = sorted(set(fragments))
        for begin in range(0, len(unique), TOMBSTONES_MAX):
            needles = []
            for fragment in unique[begin : begin + TOMBSTONES_MAX]:
                place = self.index.find(fragment)
                if place is not None:
                    needles.append((fragment, place[0], place[1]))
            self._delete(needles)

    def _delete(self, needles: Needles) -> None:
        for _ in range(_DELETE_ATTEMPTS):
            if not needles:
                return
            missed = self.bury(needles)
            # Compaction or a rewrite moved these between lookup and tombstone.
            needles = []
            for fragment, _, _ in missed:
                place = self.index.find(fragment)
                if place is not None:
                    needles.append((fragment, place[0], place[1]))
        raise NodeDown(f"{self.path}: fragments move faster than they can be deleted")

    def bury(self, needles: Needles) -> Needles:
        """Write tombstones for (fragment, volume, offset), durably, and remove these from the
        index; return those that the index had elsewhere or not at all.

        Raises: NodeFull (not before the reserve is used up), NodeDown.
        """
        tombstones = []
        for fragment, volume, offset in needles:
            uuid = self._uuid_of(volume)
            if uuid is not None:  # else compaction just unlinked the volume
                tombstones.append(Tombstone(fragment, Source(uuid, offset)))
        if not tombstones:
            return needles
        update = Update(removals=needles)
        try:
            self.append_tombstones(tombstones, update)
        except NodeFull:
            if not release_reserve(self.path, self.disk):
                raise
            update = Update(removals=needles)
            self.append_tombstones(tombstones, update)
        return update.missed

    def append_tombstones(self, tombstones: Sequence[Tombstone], update: Update) -> None:
        """Append one needle with the tombstones and apply the update once it is durable."""
        payload = pack_tombstones(tombstones)
        volume, extent = self.reserve(TOMBSTONES, NO_FRAGMENT, len(payload))
        try:
            try:
                write_all(self.disk, volume.fd, [payload], extent.offset + NEEDLE_OVERHEAD)
            except OSError as error:
                if error.errno in FULL_ERRORS:
                    raise NodeFull(f"{self.path}: the drive is full") from error
                raise NodeDown(f"{self.path}: write: {error.strerror}") from error
            volume.write_commit(extent, len(payload), crc64nvme(payload))
            update.tombstones = extent.size
            volume.commit(Pending([extent], update))
        except NodeError:
            volume.abort(extent)
            raise

    def _uuid_of(self, number: int) -> bytes | None:
        uuid = self._uuids.get(number)
        if uuid is None:
            self._uuids = {row.number: row.uuid for row in self.index.volumes().values()}
            uuid = self._uuids.get(number)
        return uuid

    # The active volume; all under _lock

    def _activate(self, size: int) -> Volume:
        if self._closed:
            raise NodeDown(f"{self.path} is closed")
        self._deactivate()
        if len(self._failed) >= FAILED_VOLUMES_MAX:
            raise NodeDown(f"{self.path}: {len(self._failed)} volumes failed")
        try:
            self._active = self._adopt(size) or self._create()
        except OSError as error:
            if error.errno in FULL_ERRORS:
                raise NodeFull(f"{self.path}: the drive is full") from error
            raise NodeDown(f"{self.path}: {error.strerror}") from error
        return self._active

    def _deactivate(self) -> None:
        volume, self._active = self._active, None
        if volume is not None:
            if volume.failed:
                self._failed.add(volume.number)
            volume.seal()
            self._sealed = [each for each in (*self._sealed, volume) if not each.closed]

    def _adopt(self, size: int) -> Volume | None:
        """Go on with a volume that another process, or this one in an earlier life, left, and
        that has room for an extent of ``size`` bytes.
        """
        for row in self.index.volumes().values():
            if row.number in self._failed or not self._has_room(row, size):
                continue
            try:
                fd = self.disk.open(volume_path(self.path, row.number), os.O_RDWR)
            except FileNotFoundError:
                continue
            if self.disk.lock(fd, exclusive=True):
                current = self.index.volumes().get(row.number)
                state = self.disk.fstat(fd)
                if (
                    current is not None
                    and current.uuid == row.uuid
                    and self._has_room(current, size)
                    and state.links
                    and align(state.size) == align(current.indexed_to)
                ):
                    return self._volume(fd, current.number, current.uuid, align(state.size))
            self.disk.close(fd)
        return None

    def _has_room(self, row: VolumeRow, size: int) -> bool:
        end = align(row.indexed_to)
        if row.state != OPEN or end >= self._volume_size * 7 // 8:
            return False
        # No laxer than ``Volume.reserve``, or the two would disagree for ever.
        return end + size <= self._volume_size or end == FILE_HEADER_SIZE

    def _create(self) -> Volume:
        highest = max(volume_numbers(self.disk, self.path), default=0)
        highest = max(highest, max(self.index.volumes(), default=0))
        while True:
            number = self.index.next_number(highest)
            path = volume_path(self.path, number)
            try:
                fd = self.disk.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL)
            except FileExistsError:
                continue
            # A recovery that runs at this moment may take the empty file for an orphan.
            if self.disk.lock(fd, exclusive=True) and self.disk.fstat(fd).links:
                break
            self.disk.close(fd)
        uuid = os.urandom(UUID_SIZE)
        try:
            write_all(self.disk, fd, [pack_file_header(number, uuid)], 0)
            self.disk.fdatasync(fd)
            self.disk.fsync_dir(os.path.dirname(path))
            self.index.add_volume(number, uuid, FILE_HEADER_SIZE)
        except BaseException:
            with contextlib.suppress(OSError):
                self.disk.unlink(path)
            self.disk.close(fd)
            raise
        return self._volume(fd, number, uuid, FILE_HEADER_SIZE)

    def _volume(self, fd: int, number: int, uuid: bytes, end: int) -> Volume:
        direct_fd = -1
        with contextlib.suppress(OSError):  # the other descriptor does, and tells what is wrong
            direct_fd = self.disk.open_direct(volume_path(self.path, number))
        limit = self._volume_size
        return Volume(
            self.disk,
            self.index,
            fd,
            number=number,
            uuid=uuid,
            end=end,
            limit=limit,
            direct_fd=direct_fd,
        )

    def seal(self, number: int) -> None:
        """Let the volume go if it is the active one, so that compaction may take it."""
        with self._lock:
            if self._active is not None and self._active.number == number:
                self._deactivate()

    # Recovery and closing

    def recover(self) -> RecoveryReport:
        """Enter into the index what killed processes left; raises NodeDown, NodeFull."""
        with opening_lock(self.path, self.disk):
            return Recovery(self.disk, self.path, self.index, rebuild=False).run()

    def close(self) -> None:
        """Release everything; no call may be running. Writers still open are lost."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            self._deactivate()
            for volume in self._sealed:
                volume.close()
        self.files.close()
        self.index.close()
        self.disk.close(self._use_fd)


def open_drive(
    path: str,
    *,
    store_id: str,
    disk: Disk | None = None,
    volume_size: int = 1024 * MIB,
    reserve: int = 256 * MIB,
    open_files: int = 128,
    direct_min: int = 4 * MIB,
    index_vfs: str = "",
    wait_s: float = OPEN_S_MAX,
) -> Drive:
    """Open a drive of the store; recover it if its last user did not close it.

    Args:
        reserve: bytes of the file system that new fragments may not use.
        direct_min: fragments announced with so many bytes are written past the page cache.
        index_vfs: name of the SQLite VFS of the index; tests put faults in with it.
        wait_s: how long to wait while another process opens the drive.
    Raises:
        DriveMissing, DriveEmpty, DriveForeign, DriveUnreadable, DriveBusy; NodeDown, NodeFull.
    """
    disk = disk or RealDisk()
    identity = read_identity(path, store_id, disk)
    with opening_lock(path, disk, wait_s), contextlib.ExitStack() as stack:
        try:
            use_fd = disk.open(os.path.join(path, "lock.use"), os.O_RDWR | os.O_CREAT)
            stack.callback(disk.close, use_fd)
            alone = disk.lock(use_fd, exclusive=True)
            try:
                index, report = recovered_index(path, disk, index_vfs, alone=alone)
            except NodeError:
                # SQLite cannot even open a database on a disk that is full to the last byte.
                if disk.statvfs(path).free >= MIB or not release_reserve(path, disk):
                    raise
                index, report = recovered_index(path, disk, index_vfs, alone=alone)
            stack.callback(index.close)
            disk.lock(use_fd, exclusive=False)
            if reserve:
                make_reserve(path, disk, reserve)
        except OSError as error:
            raise NodeDown(f"{path}: {error.strerror}") from error
        stack.pop_all()
    return Drive(
        path,
        identity,
        disk,
        index,
        use_fd=use_fd,
        volume_size=volume_size,
        reserve=reserve,
        open_files=open_files,
        direct_min=direct_min,
        report=report,
    )


__all__ = ["Drive", "format_drive", "open_drive"]
