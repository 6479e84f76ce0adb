"""Every file operation of the node's storage, behind one protocol: ``Disk``.

``RealDisk`` is the operating system. Tests put a disk that fails or records in its place
(``tests.support.disk``). All methods raise ``OSError`` as the system calls do, and none retries:
what a failure means is decided by the caller.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
from collections.abc import Sequence
from typing import NamedTuple, Protocol

from engine.node.contract import Buffer

READ_NOWAIT = os.RWF_NOWAIT
"""Flag of ``Disk.preadv``: only from the page cache, else ``BlockingIOError`` or a short read."""

_FALLOC_FL_KEEP_SIZE = 1
_FALLOC_FL_PUNCH_HOLE = 2
_SYNC_FILE_RANGE_WRITE = 2


class FileState(NamedTuple):
    size: int
    links: int
    """0: the file was unlinked while it was open."""


class DiskSpace(NamedTuple):
    """In bytes."""

    total: int
    free: int
    """What an unprivileged process may still use."""


class Disk(Protocol):
    def open(self, path: str, flags: int, mode: int = 0o644) -> int: ...
    def close(self, fd: int) -> None: ...
    def preadv(self, fd: int, buffers: Sequence[Buffer], offset: int, flags: int = 0) -> int: ...
    def pwritev(self, fd: int, buffers: Sequence[Buffer], offset: int) -> int: ...
    def fdatasync(self, fd: int) -> None: ...
    def fsync_dir(self, path: str) -> None: ...
    def ftruncate(self, fd: int, size: int) -> None: ...

    def punch_hole(self, fd: int, offset: int, size: int) -> None:
        """Give the range's blocks back; it reads as zeros. The file keeps its size."""

    def allocate(self, fd: int, size: int) -> None:
        """Make sure that ``size`` bytes of the file have blocks on the disk."""

    def extend(self, fd: int, offset: int, size: int) -> bool:
        """Give the range blocks on the disk, and the file at least its end as size; what was
        not written reads as zeros. False, with nothing done: the file system cannot.
        """

    def open_direct(self, path: str) -> int:
        """Open a file for writing past the page cache: offsets, sizes and memory have to be
        multiples of 4096 then. -1: its file system cannot.
        """

    def start_writeback(self, fd: int, offset: int, size: int) -> None:
        """Let the kernel begin to write the range; durable is nothing by that."""

    def drop_cached(self, fd: int, offset: int, size: int) -> None:
        """Ask the kernel to forget its copy of bytes that are on the disk; advice only."""

    def unlink(self, path: str) -> None: ...
    def rename(self, old: str, new: str) -> None: ...
    def mkdir(self, path: str) -> None: ...
    def listdir(self, path: str) -> list[str]: ...
    def fstat(self, fd: int) -> FileState: ...
    def statvfs(self, path: str) -> DiskSpace: ...

    def lock(self, fd: int, *, exclusive: bool) -> bool:
        """Take or convert the file's flock, at once or not at all. Closing ``fd`` releases it."""


class RealDisk:
    """The operating system's files."""

    def __init__(self) -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        c_range = [ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint]
        self._sync_file_range = libc.sync_file_range
        self._sync_file_range.argtypes = c_range
        self._fallocate = libc.fallocate64 if hasattr(libc, "fallocate64") else libc.fallocate
        self._fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]

    def open(self, path: str, flags: int, mode: int = 0o644) -> int:
        return os.open(path, flags, mode)

    def close(self, fd: int) -> None:
        os.close(fd)

    def preadv(self, fd: int, buffers: Sequence[Buffer], offset: int, flags: int = 0) -> int:
        return os.preadv(fd, buffers, offset, flags)

    def pwritev(self, fd: int, buffers: Sequence[Buffer], offset: int) -> int:
        return os.pwritev(fd, buffers, offset)

    def fdatasync(self, fd: int) -> None:
        os.fdatasync(fd)

    def fsync_dir(self, path: str) -> None:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)

    def ftruncate(self, fd: int, size: int) -> None:
        os.ftruncate(fd, size)

    def punch_hole(self, fd: int, offset: int, size: int) -> None:
        mode = _FALLOC_FL_PUNCH_HOLE | _FALLOC_FL_KEEP_SIZE
        if self._fallocate(fd, mode, offset, size) != 0:
            raise _last_error()

    def allocate(self, fd: int, size: int) -> None:
        os.posix_fallocate(fd, 0, size)

    def extend(self, fd: int, offset: int, size: int) -> bool:
        if self._fallocate(fd, 0, offset, size) == 0:
            return True
        error = _last_error()
        if error.errno in (errno.EOPNOTSUPP, errno.ENOSYS):
            return False
        raise error

    def open_direct(self, path: str) -> int:
        try:
            return self.open(path, os.O_RDWR | os.O_DIRECT)
        except OSError as error:
            if error.errno == errno.EINVAL:
                return -1
            raise

    def start_writeback(self, fd: int, offset: int, size: int) -> None:
        if self._sync_file_range(fd, offset, size, _SYNC_FILE_RANGE_WRITE) != 0:
            raise _last_error()

    def drop_cached(self, fd: int, offset: int, size: int) -> None:
        os.posix_fadvise(fd, offset, size, os.POSIX_FADV_DONTNEED)

    def unlink(self, path: str) -> None:
        os.unlink(path)

    def rename(self, old: str, new: str) -> None:
        os.rename(old, new)

    def mkdir(self, path: str) -> None:
        os.mkdir(path)

    def listdir(self, path: str) -> list[str]:
        return os.listdir(path)

    def fstat(self, fd: int) -> FileState:
        state = os.fstat(fd)
        return FileState(state.st_size, state.st_nlink)

    def statvfs(self, path: str) -> DiskSpace:
        state = os.statvfs(path)
        return DiskSpace(state.f_blocks * state.f_frsize, state.f_bavail * state.f_frsize)

    def lock(self, fd: int, *, exclusive: bool) -> bool:
        kind = fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH
        try:
            fcntl.flock(fd, kind | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True


def _last_error() -> OSError:
    number = ctypes.get_errno()
    return OSError(number, os.strerror(number))


def write_all(disk: Disk, fd: int, buffers: Sequence[Buffer], offset: int) -> int:
    """Write all bytes of the buffers at ``offset`` and return their number.

    A disk that takes nothing and reports nothing counts as full.
    """
    total = sum([memoryview(buffer).nbytes for buffer in buffers])
    if len(buffers) <= _VECTOR_MAX:
        written = disk.pwritev(fd, buffers, offset)
        if written == total:
            return total
    else:
        written = 0
    done = written
    for rest in _after(buffers, written):
        while rest:
            count = disk.pwritev(fd, [rest], offset + done)
            if count == 0:
                raise OSError(28, os.strerror(28))
            done += count
            rest = rest[count:]
    return total


def read_all(disk: Disk, fd: int, buffers: Sequence[Buffer], offset: int) -> int:
    """Fill the buffers from ``offset`` on; return how many bytes there were before the end."""
    done = 0
    if len(buffers) <= _VECTOR_MAX:
        done = disk.preadv(fd, buffers, offset)
    for rest in _after(buffers, done):
        while rest:
            count = disk.preadv(fd, [rest], offset + done)
            if count == 0:
                return done
            done += count
            rest = rest[count:]
    return done


_VECTOR_MAX = 1024
"""IOV_MAX on Linux."""


def _after(buffers: Sequence[Buffer], skip: int) -> list[memoryview]:
    """Return views of what the first ``skip`` bytes of the buffers leave over."""
    views: list[memoryview] = []
    for buffer in buffers:
        view = memoryview(buffer).cast("B") if memoryview(buffer).nbytes else memoryview(b"")
        if skip >= view.nbytes:
            skip -= view.nbytes
        else:
            views.append(view[skip:])
            skip = 0
    return views
