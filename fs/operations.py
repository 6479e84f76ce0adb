"""What the kernel asks, one line each: pyfuse3's handlers over the parts that do the work.

Every handler passes ``Guard`` (``wrap.py``), so handlers raise whatever says best what is wrong.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat as modes
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

import pyfuse3
import trio
from pyfuse3 import EntryAttributes, FileInfo, RequestContext, SetattrFields, StatvfsData

from fs.attributes import Stat, fill, kept_time
from fs.directory import Directories, DirectoryHandle
from fs.errors import Refused
from fs.handles import FileHandle, Handles
from fs.inodes import Kind, Node
from fs.namespace import Namespace
from fs.reading import ReadHandle, Reading
from fs.retries import Replaced, Retries
from fs.space import Space
from fs.versions import VersionedFiles, Versions, VersionsOfFile, is_versions
from fs.view import Found, View
from fs.wrap import Guard
from fs.writing import Owner, Writing
from fs.xattrs import ExtendedAttributes

HANDLERS = (
    "access",
    "create",
    "flush",
    "fsync",
    "fsyncdir",
    "getattr",
    "getxattr",
    "link",
    "listxattr",
    "lookup",
    "mkdir",
    "mknod",
    "open",
    "opendir",
    "read",
    "readdir",
    "readlink",
    "release",
    "releasedir",
    "removexattr",
    "rename",
    "rmdir",
    "setattr",
    "setxattr",
    "statfs",
    "symlink",
    "unlink",
    "write",
)
"""All that have an answer; ``forget`` has none."""

NEVER_KEPT = -1
"""An epoch that never is: an answer from it is not kept by the kernel."""

OF_VERSIONS = (Kind.VERSIONS, Kind.VERSIONS_OF, Kind.VERSION)

SLOW_HANDLERS = frozenset(
    {"create", "flush", "fsync", "open", "read", "release", "rename", "setattr", "write"}
)
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
        self._versions = Versions(view.engine, view.attributes, view.table)
        self._writing: Writing | None = None
        self._namespace: Namespace | None = None
        self._xattrs: ExtendedAttributes | None = None
        self._open_directories: Handles[DirectoryHandle] = Handles()
        self._retries = Retries(trio.current_time)
        self.begun = trio.Event()
        """The kernel has said INIT, so that it asks from now on."""
        at_once: dict[str, Callable[..., bool]] = {
            "flush": self._flushes_at_once,
            "getattr": self._describes_at_once,
            "release": self._closes_at_once,
        }
        for name in HANDLERS:
            limit_s = SLOW_S if name in SLOW_HANDLERS else None
            handler = getattr(self, name)
            guarded = guard.wrapped(name, handler, limit_s=limit_s, at_once=at_once.get(name))
            setattr(self, name, guarded)
        self.read = guard.wrapped_quick(  # type: ignore[assignment, method-assign]
            "read", self._read_now, self.read
        )
        # Coroutine functions in and out; the types say only that they are awaited.
        self.forget = guard.wrapped_quiet(  # type: ignore[assignment, method-assign]
            "forget", self.forget
        )

    def init(self) -> None:
        # Its answer is written before any task runs again.
        self.begun.set()

    def start_writing(self, folder: Path, nursery: trio.Nursery) -> None:
        """Call before the first request; ``folder`` and ``nursery`` are for ``Writing``."""
        self._writing = Writing(self._view, folder, nursery)
        self._namespace = Namespace(self._view, self._writing)
        self._xattrs = ExtendedAttributes(self._view, self._writing)

    @property
    def writing(self) -> Writing:
        assert self._writing is not None
        return self._writing

    @property
    def namespace(self) -> Namespace:
        assert self._namespace is not None
        return self._namespace

    @property
    def xattrs(self) -> ExtendedAttributes:
        assert self._xattrs is not None
        return self._xattrs

    @property
    def services(self) -> list[Callable[[], Awaitable[None]]]:
        """What runs beside the handlers as long as the mount lives."""
        services: list[Callable[[], Awaitable[None]]] = [self._reading.close_idle_forever]
        if self._view.cache is not None:
            services.append(self._view.cache.run)
        return services

    @property
    def open_directories(self) -> int:
        return len(self._open_directories)

    async def aclose(self) -> None:
        """Close what programs left open, as ``release`` would."""
        for handle in self._files.all():
            await handle.aclose()

    def _entry(self, node: Node, stat: Stat, epoch: int) -> EntryAttributes:
        entry = fill(EntryAttributes(), node.inode, stat, self._view.timeout_s(epoch))
        if self._view.is_written(node):
            # It changes when it is committed, and is gone when it cannot be.
            entry.entry_timeout = entry.attr_timeout = 0.0
        if node.unlinked:
            entry.st_nlink = 0
        return entry

    def _new_entry(self, found: Found, parent_inode: int, epoch: int) -> EntryAttributes:
        """Answer with something that was made, which the kernel counts as looked up."""
        self._table.looked_up(found.node, parent_inode)
        return self._entry(found.node, found.stat, epoch)

    # Inodes

    async def lookup(self, parent_inode: int, name: bytes, ctx: RequestContext) -> EntryAttributes:
        view = self._view
        epoch = view.epoch
        parent = self._table.directory(parent_inode)
        if is_versions(parent, name):
            found = await self._versions.look_up(parent, name)
            # Nobody tells the kernel when versions come and go.
            epoch = NEVER_KEPT
        else:
            found = await view.look_up(parent, name)
        if self._retries.waiting:
            self._retries.looked_up(ctx.pid, None if found is None else found.node)
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
        node = self._table.get(inode)
        if node.kind in OF_VERSIONS:
            found = await self._versions.describe(node)
        else:
            found = await self._view.describe(node)
        return self._entry(found.node, found.stat, epoch)

    def _describes_at_once(self, inode: int, ctx: RequestContext) -> bool:
        node = self._table.get(inode)
        return node.kind is Kind.FILE and node.open_stat is not None

    async def access(self, inode: int, mode: int, ctx: RequestContext) -> bool:
        # The kernel checks modes itself (default_permissions).
        return True

    async def statfs(self, ctx: RequestContext) -> StatvfsData:
        return await self._space.statfs()

    # Directories

    async def opendir(self, inode: int, ctx: RequestContext) -> int:
        node = self._table.directory(inode)
        engine = self._view.engine
        match node.kind:
            case Kind.VERSIONS:
                files = VersionedFiles(engine, self._versions, node)
                handle = self._directories.listing(node, files)
            case Kind.VERSIONS_OF:
                versions = VersionsOfFile(engine, self._versions, node)
                handle = self._directories.listing(node, versions)
            case _:
                handle = self._directories.open(node)
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
        handle: FileHandle
        reads = flags & os.O_ACCMODE == os.O_RDONLY and not flags & os.O_TRUNC
        retries = self._retries
        older = bool(retries.waiting) and retries.is_second(ctx.pid, node)
        await self.writing.settled(node)
        try:
            if reads and node.draft is None:
                may_push = not flags & os.O_DIRECT
                handle, keep_cache = await self._reading.open(
                    node, may_push=may_push, may_be_older=older
                )
            else:
                handle, keep_cache = await self.writing.open(node, flags, may_be_older=older)
        except Replaced:
            retries.refused(ctx.pid, node)
            raise
        if node.changed:
            node.changed = False
            _doubt_attributes(node)
        # Another open may have its answer, and the kernel the older pages yet.
        if not keep_cache or node.dropping:
            keep_cache, handle.dropping = False, True
            node.dropping += 1
        return FileInfo(fh=self._files.add(handle), keep_cache=keep_cache)

    def _open_file(self, fh: int) -> FileHandle:
        """Return the handle of a request that uses it: the kernel is done with opening it."""
        handle = self._files.get(fh)
        if handle.dropping:
            handle.dropping = False
            handle.node.dropping -= 1
        return handle

    def _read_now(self, fh: int, off: int, size: int) -> bytes | None:
        handle = self._open_file(fh)
        if handle.node.draft is None and isinstance(handle, ReadHandle):
            answer = handle.read_now(off, size)
            if answer is not None:
                self._view.tally.read_bytes += len(answer)
            return answer  # type: ignore[return-value]
        return None

    async def read(self, fh: int, off: int, size: int) -> bytes:
        handle = self._open_file(fh)
        # All descriptors of a file see what is written to it, as they share the page cache.
        draft = handle.node.draft
        answer = await (handle if draft is None else draft).read(off, size)
        self._view.tally.read_bytes += len(answer)
        return answer  # type: ignore[return-value]

    async def write(self, fh: int, off: int, buf: bytes) -> int:
        count = await self._open_file(fh).write(off, buf)
        self._view.tally.written_bytes += count
        return count

    async def flush(self, fh: int) -> None:
        if not self._view.options.writable:
            # The kernel asks no more at any close, as there is nothing to commit.
            raise Refused(errno.ENOSYS)
        await self._open_file(fh).flush()

    def _flushes_at_once(self, fh: int) -> bool:
        return isinstance(self._files.get(fh), ReadHandle)

    async def fsync(self, fh: int, datasync: bool) -> None:
        await self._open_file(fh).fsync()

    async def release(self, fh: int) -> None:
        handle = self._open_file(fh)
        self._files.remove(fh)
        await handle.aclose()
        await self.writing.left(handle.node)

    def _closes_at_once(self, fh: int) -> bool:
        handle = self._files.get(fh)
        return isinstance(handle, ReadHandle) and handle.node.draft is None and not handle.streams

    # Changing names and attributes

    async def setattr(
        self,
        inode: int,
        attr: EntryAttributes,
        fields: SetattrFields,
        fh: int | None,
        ctx: RequestContext,
    ) -> EntryAttributes:
        node = self._table.get(inode)
        if fields.update_size:
            if node.is_directory:
                raise Refused(errno.EISDIR)
            # Sets the time of modification as well.
            await self.writing.truncate(node, attr.st_size)
        changes = {
            "mode": attr.st_mode if fields.update_mode else None,
            "mtime_ns": kept_time(attr.st_mtime_ns)
            if fields.update_mtime and not fields.update_size
            else None,
            "uid": attr.st_uid if fields.update_uid else None,
            "gid": attr.st_gid if fields.update_gid else None,
        }
        if any(value is not None for value in changes.values()):
            await self.writing.set_attributes(node, **changes)
        epoch = self._view.epoch
        found = await self._view.describe(node)
        return self._entry(found.node, found.stat, epoch)

    async def create(
        self, parent_inode: int, name: bytes, mode: int, flags: int, ctx: RequestContext
    ) -> tuple[FileInfo, EntryAttributes]:
        epoch = self._view.epoch
        parent = self._table.directory(parent_inode)
        owner = Owner(ctx.uid, ctx.gid)
        try:
            node, handle = await self.writing.create(parent, name, mode, flags, owner)
        except Replaced as replaced:
            self._retries.refused(ctx.pid, replaced.node)
            raise
        stat = node.open_stat
        assert stat is not None
        entry = self._new_entry(Found(node, stat, None), parent_inode, epoch)
        return FileInfo(fh=self._files.add(handle)), entry

    async def mknod(
        self, parent_inode: int, name: bytes, mode: int, rdev: int, ctx: RequestContext
    ) -> EntryAttributes:
        if not modes.S_ISREG(mode):
            raise Refused(errno.EPERM)
        epoch = self._view.epoch
        parent = self._table.directory(parent_inode)
        owner = Owner(ctx.uid, ctx.gid)
        found = await self.namespace.make_file(parent, name, mode, owner)
        return self._new_entry(found, parent_inode, epoch)

    async def mkdir(
        self, parent_inode: int, name: bytes, mode: int, ctx: RequestContext
    ) -> EntryAttributes:
        epoch = self._view.epoch
        parent = self._table.directory(parent_inode)
        owner = Owner(ctx.uid, ctx.gid)
        found = await self.namespace.make_directory(parent, name, mode, owner)
        return self._new_entry(found, parent_inode, epoch)

    async def unlink(self, parent_inode: int, name: bytes, ctx: RequestContext) -> None:
        await self.namespace.unlink(self._table.directory(parent_inode), name)

    async def rmdir(self, parent_inode: int, name: bytes, ctx: RequestContext) -> None:
        await self.namespace.remove_directory(self._table.directory(parent_inode), name)

    async def symlink(
        self, parent_inode: int, name: bytes, target: bytes, ctx: RequestContext
    ) -> EntryAttributes:
        epoch = self._view.epoch
        parent = self._table.directory(parent_inode)
        owner = Owner(ctx.uid, ctx.gid)
        found = await self.namespace.make_link(parent, name, target, owner)
        return self._new_entry(found, parent_inode, epoch)

    async def readlink(self, inode: int, ctx: RequestContext) -> bytes:
        return await self._reading.link_target(self._table.get(inode))

    async def rename(
        self,
        parent_inode_old: int,
        name_old: bytes,
        parent_inode_new: int,
        name_new: bytes,
        flags: int,
        ctx: RequestContext,
    ) -> None:
        await self.namespace.rename(
            self._table.directory(parent_inode_old),
            name_old,
            self._table.directory(parent_inode_new),
            name_new,
            flags,
        )

    async def link(
        self, inode: int, new_parent_inode: int, new_name: bytes, ctx: RequestContext
    ) -> EntryAttributes:
        raise Refused(errno.EPERM)

    # Extended attributes

    async def getxattr(self, inode: int, name: bytes, ctx: RequestContext) -> bytes:
        return await self.xattrs.get(self._table.get(inode), name)

    async def setxattr(self, inode: int, name: bytes, value: bytes, ctx: RequestContext) -> None:
        await self.xattrs.set(self._table.get(inode), name, value)

    async def listxattr(self, inode: int, ctx: RequestContext) -> Sequence[bytes]:
        return await self.xattrs.names(self._table.get(inode))

    async def removexattr(self, inode: int, name: bytes, ctx: RequestContext) -> None:
        await self.xattrs.remove(self._table.get(inode), name)


def _doubt_attributes(node: Node) -> None:
    """Let the kernel ask for a node's attributes before it uses them again: by another version's
    size it would cut the file, or show zeros behind its end.

    This takes no lock of the kernel's whose holder could be waiting for this process.
    """
    with contextlib.suppress(OSError):
        pyfuse3.invalidate_inode(node.inode, attr_only=True)
