"""A file system that does nothing: ``python benchmarks/mount_null.py SIZE DIR``.

The most that a file system in Python through pyfuse3 can give: ``DIR/file`` has ``SIZE`` bytes, all
from one buffer that is in memory; nothing is kept, checked, counted or logged. Prints ``ready``.
"""

from __future__ import annotations

import errno
import os
import signal
import stat
import sys

import pyfuse3
import trio
from pyfuse3 import EntryAttributes, FileInfo, RequestContext

FILE = 2
BUFFER_SIZE = 4 << 20
KEPT_S = 300.0
TASKS_MAX = 128
"""As many as the mount has."""


class Null(pyfuse3.Operations):
    enable_writeback_cache = False

    def __init__(self, size: int) -> None:
        super().__init__()
        self._size = size
        self._buffer = memoryview(os.urandom(BUFFER_SIZE) * 2)

    def _entry(self, inode: int) -> EntryAttributes:
        entry = EntryAttributes()
        is_file = inode == FILE
        entry.st_ino = inode
        entry.st_mode = stat.S_IFREG | 0o444 if is_file else stat.S_IFDIR | 0o555
        entry.st_size = self._size if is_file else 0
        entry.st_nlink = 1
        entry.entry_timeout = entry.attr_timeout = KEPT_S
        return entry

    async def getattr(self, inode: int, ctx: RequestContext) -> EntryAttributes:
        return self._entry(inode)

    async def lookup(self, parent_inode: int, name: bytes, ctx: RequestContext) -> EntryAttributes:
        if name != b"file":
            raise pyfuse3.FUSEError(errno.ENOENT)
        return self._entry(FILE)

    async def open(self, inode: int, flags: int, ctx: RequestContext) -> FileInfo:
        return FileInfo(fh=inode)

    async def read(self, fh: int, off: int, size: int) -> bytes:
        start = off % BUFFER_SIZE
        end = min(start + size, start + self._size - off)
        return self._buffer[start:end]  # type: ignore[return-value]


async def main(size: int, target: str) -> None:
    pyfuse3.init(Null(size), target, {*pyfuse3.default_options, "fsname=null"})
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_terminate_on_signal)
            print("ready", flush=True)
            await pyfuse3.main(max_tasks=TASKS_MAX)
            nursery.cancel_scope.cancel()
    finally:
        pyfuse3.close(unmount=True)


async def _terminate_on_signal() -> None:
    with trio.open_signal_receiver(signal.SIGTERM) as signals:
        async for _ in signals:
            pyfuse3.terminate()
            return


if __name__ == "__main__":
    trio.run(main, int(sys.argv[1]), sys.argv[2])
