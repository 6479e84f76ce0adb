"""What the kernel asks, one line each: pyfuse3's handlers over the parts that do the work.

Every handler passes ``Guard`` (``wrap.py``), so handlers raise whatever says best what is wrong.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence

import pyfuse3
from pyfuse3 import EntryAttributes, FileInfo, RequestContext, SetattrFields, StatvfsData

from fs.attributes import Stat, fill
from fs.directory import DirectoryHandle, Directories
from fs.errors import Refused
from fs.handles import Handles
from fs.inodes import Node
from fs.reading import Reading
from fs.space import Space
from fs.view import View
from fs.wrap import Guard

HANDLERS = (
    "access create flush fsync fsyncdir getattr getxattr link listxattr lookup mkdir mknod open "
    "opendir read readdir readlink release releasedir removexattr rename rmdir setattr setxattr "
    "statfs symlink unlink write"
).split()
"""All that have an answer; ``forget`` has none."""

SLOW_HANDLERS = frozenset({"create", "flush", "fsync", "release", "rename", "setattr", "write"})
"""These may move any number of bytes, so their time limit is another."""

SLOW_S = 3600.0


class Operations(pyfuse3.Operations):
    """Handlers of one mount."""

    supports_dot_lookup = True
    enable_writeback_cache = False

    def __init__(self, view: View, guard: Guard, space: Space) -> None:
        super().__init__()
        self._view = view
        self._table = view.table
        self._files = view.files
        self._reading = Reading(view)
        self._directories = Directories(view)
        self._space = space
        self._open_directories: Handles[DirectoryHandle] = Handles()
        for name in HANDLERS:
            limit_s = SLOW_S if name in SLOW_HANDLERS else None
            setattr(self, name, guard.wrapped(name, getattr(self, name), limit_s=limit_s))
        self.forget = guard.wrapped_quiet("forget", self.forget)  # type: ignore[method-assign]

    def _entry(self, node: Node, stat: Stat, epoch: int) -> EntryAttributes:
        return fill(EntryAttributes(), node.inode, stat, self._view.timeout_s(epoch))

    # Inodes

    async def lookup(self, parent_inode: int, name: bytes, ctx: RequestContext) -> EntryAttributes:
        view = self._view
        epoch = view.epoch
        parent = self._table.directory(parent_inode)
        found = await view.look_up(parent, name)
        if found is None:
            absent = EntryAttributes()
            absent.st_ino = 0
            absent.entry_timeout = view.timeout_s(epoch)
            return absent
        self._table.looked_up(found.node, parent_inode)
        return self._entry(found.node, found.stat, epoch)

    async def forget(self, inode_list: Sequence[tuple[int, int]]) -> None:
        for inode, count in inode_list:
            self._table.forget(inode, count)

    async def getattr(self, inode: int, ctx: RequestContext) -> EntryAttributes:
        epoch = self._view.epoch
        found = await self._view.describe(self._table.get(inode))
        return self._entry(found.node, found.stat, epoch)

    async def access(self, inode: int, mode: int, ctx: RequestContext) -> bool:
        # The kernel checks modes itself (default_permissions).
        return True

    async def statfs(self, ctx: RequestContext) -> StatvfsData:
        return await self._space.statfs()

    # Directories

    async def opendir(self, inode: int, ctx: RequestContext) -> int:
        handle = self._directories.open(self._table.directory(inode))
        return self._open_directories.add(handle)

    async def readdir(self, fh: int, start_id: int, token: pyfuse3.ReaddirToken) -> None:
        await self._open_directories.get(fh).read(start_id, token)

    async def releasedir(self, fh: int) -> None:
        self._open_directories.remove(fh)

    async def fsyncdir(self, fh: int, datasync: bool) -> None:
        """Names are durable when the call that changed them returns."""

    # Open files

    async def open(self, inode: int, flags: int, ctx: RequestContext) -> FileInfo:
        node = self._table.get(inode)
        if node.is_directory:
            raise Refused(errno.EISDIR)
        if flags & os.O_ACCMODE == os.O_RDONLY and not flags & os.O_TRUNC:
            handle, keep_cache = await self._reading.open(node)
            return FileInfo(fh=self._files.add(handle), keep_cache=keep_cache)
        raise Refused(errno.EROFS)

    async def read(self, fh: int, off: int, size: int) -> bytes:
        return await self._files.get(fh).read(off, size)  # type: ignore[return-value]

    async def write(self, fh: int, off: int, buf: bytes) -> int:
        return await self._files.get(fh).write(off, buf)

    async def flush(self, fh: int) -> None:
        await self._files.get(fh).flush()

    async def fsync(self, fh: int, datasync: bool) -> None:
        await self._files.get(fh).fsync()

    async def release(self, fh: int) -> None:
        handle = self._files.remove(fh)
        if handle is not None:
            await handle.aclose()

    # Changing names and attributes

    async def setattr(
        self, inode: int, attr: EntryAttributes, fields: SetattrFields, fh: int | None,
        ctx: RequestContext,
    ) -> EntryAttributes:
        raise Refused(errno.EROFS)

    async def create(
        self, parent_inode: int, name: bytes, mode: int, flags: int, ctx: RequestContext
    ) -> tuple[FileInfo, EntryAttributes]:
        raise Refused(errno.EROFS)

    async def mknod(
        self, parent_inode: int, name: bytes, mode: int, rdev: int, ctx: RequestContext
    ) -> EntryAttributes:
        raise Refused(errno.EPERM)

    async def mkdir(
        self, parent_inode: int, name: bytes, mode: int, ctx: RequestContext
    ) -> EntryAttributes:
        raise Refused(errno.EROFS)

    async def unlink(self, parent_inode: int, name: bytes, ctx: RequestContext) -> None:
        raise Refused(errno.EROFS)

    async def rmdir(self, parent_inode: int, name: bytes, ctx: RequestContext) -> None:
        raise Refused(errno.EROFS)

    async def symlink(
        self, parent_inode: int, name: bytes, target: bytes, ctx: RequestContext
    ) -> EntryAttributes:
        raise Refused(errno.EROFS)

    async def readlink(self, inode: int, ctx: RequestContext) -> bytes:
        return await self._reading.link_target(self._table.get(inode))

    async def rename(
        self, parent_inode_old: int, name_old: bytes, parent_inode_new: int, name_new: bytes,
        flags: int, ctx: RequestContext,
    ) -> None:
        raise Refused(errno.EROFS)

    async def link(
        self, inode: int, new_parent_inode: int, new_name: bytes, ctx: RequestContext
    ) -> EntryAttributes:
        raise Refused(errno.EPERM)

    # Extended attributes

    async def getxattr(self, inode: int, name: bytes, ctx: RequestContext) -> bytes:
        raise Refused(errno.ENOSYS)

    async def setxattr(self, inode: int, name: bytes, value: bytes, ctx: RequestContext) -> None:
        raise Refused(errno.ENOSYS)

    async def listxattr(self, inode: int, ctx: RequestContext) -> Sequence[bytes]:
        raise Refused(errno.ENOSYS)

    async def removexattr(self, inode: int, name: bytes, ctx: RequestContext) -> None:
        raise Refused(errno.ENOSYS)
