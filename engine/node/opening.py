"""What opening a drive takes beyond reading its identity: the lock, a whole index, the reserve."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator

from engine.node.contract import NodeDown
from engine.node.disk import Disk
from engine.node.identity import DriveBusy
from engine.node.index import Index, IndexDamaged, remove_files
from engine.node.recovery import Recovery, RecoveryReport, unlink_if_there

OPEN_S_MAX = 600.0
"""How long to wait for another process that recovers the drive."""
RESERVE_FILE = "reserve"
RESERVE_FILE_SIZE = 8 << 20

_POLL_S = 0.01


def recovered_index(
    path: str, disk: Disk, vfs: str, *, alone: bool
) -> tuple[Index, RecoveryReport]:
    """Return the drive's index, complete; built again from the volumes if it is no good."""
    index_path = os.path.join(path, "index.sqlite")
    index = None
    try:
        if os.path.exists(index_path):
            index = Index(index_path, vfs=vfs)
            return index, Recovery(disk, path, index, rebuild=False).run()
        if not alone:
            raise IndexDamaged(f"{index_path} is gone")
    except IndexDamaged as error:
        if index is not None:
            index.close()
        if not alone:
            raise DriveBusy(path, f"needs repair, but another process uses it: {error}") from error
    except BaseException:
        if index is not None:
            index.close()
        raise
    remove_files(index_path)
    index = Index(index_path, vfs=vfs, create=True)
    try:
        return index, Recovery(disk, path, index, rebuild=True).run()
    except BaseException:
        index.close()
        raise


def release_reserve(path: str, disk: Disk) -> bool:
    """Give the reserved blocks up; return whether there were any."""
    try:
        disk.unlink(os.path.join(path, RESERVE_FILE))
    except OSError:
        return False
    return True


def make_reserve(path: str, disk: Disk, reserve: int) -> None:
    """Set blocks aside for tombstones on a full disk; without room for them, do without."""
    file = os.path.join(path, RESERVE_FILE)
    try:
        if RESERVE_FILE in disk.listdir(path) or disk.statvfs(path).free < reserve:
            return
        fd = disk.open(file, os.O_RDWR | os.O_CREAT)
        try:
            disk.allocate(fd, min(RESERVE_FILE_SIZE, reserve))
        finally:
            disk.close(fd)
    except OSError:
        with contextlib.suppress(OSError):
            unlink_if_there(disk, file)


@contextlib.contextmanager
def opening_lock(path: str, disk: Disk, wait_s: float = OPEN_S_MAX) -> Iterator[None]:
    """Hold the drive's opening lock; raises DriveBusy after ``wait_s``, NodeDown."""
    try:
        fd = disk.open(os.path.join(path, "lock.open"), os.O_RDWR | os.O_CREAT)
    except OSError as error:
        raise NodeDown(f"{path}: {error.strerror}") from error
    try:
        deadline = time.monotonic() + wait_s
        while not disk.lock(fd, exclusive=True):
            if time.monotonic() > deadline:
                raise DriveBusy(path, f"another process recovers it since {wait_s:.0f} s")
            time.sleep(_POLL_S)
        yield
    finally:
        disk.close(fd)
