"""Opening files for writing, making new ones, and changing what ``stat`` shows of them.

A file has at most one ``Draft`` in a mount, on its node, from the first open for writing until
its last descriptor is closed.
"""

from __future__ import annotations

import errno
import mimetypes
import os
import stat as modes
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import NamedTuple

import trio

from engine.errors import NoSuchKey, PreconditionFailed
from engine.meta.records import Checksum
from engine.opened import OpenedObject
from engine.types import NO_CONDITIONS, Attributes, Conditions, Digests, ObjectInfo
from fs.attributes import Stat, format_time
from fs.draft import CHECKSUM, Draft, Workshop, attribute_changes, changed_stat
from fs.errors import Refused
from fs.handles import Readable
from fs.inodes import Kind, Node
from fs.names import Mark
from fs.reading import ReadHandle, Reading, open_already
from fs.retries import Replaced
from fs.space import Quotas
from fs.staging import StagingFolder
from fs.view import Place, View

ABSENT = Conditions(if_match_data_id=b"")


class Owner(NamedTuple):
    """Who makes a file."""

    uid: int
    gid: int


class WriteHandle:
    """One descriptor of a file that has a draft; also one that is open for reading only."""

    __slots__ = ("_append", "_draft", "_writing", "dropping", "node", "writable")

    def __init__(self, writing: Writing, node: Node, draft: Draft, flags: int) -> None:
        self._writing = writing
        self.node = node
        self.dropping = False
        self._draft = draft
        self._append = bool(flags & os.O_APPEND)
        self.writable = flags & os.O_ACCMODE != os.O_RDONLY

    async def read(self, offset: int, size: int) -> Readable:
        return await self._draft.read(offset, size)

    async def write(self, offset: int, data: bytes) -> int:
        # The kernel says where the end is, unless it may be mistaken. And not all that it writes by
        # such a descriptor is appended: it may take any to write back what is mapped into memory.
        at_end = self._append and self.node.size_unsure
        return await self._draft.write(None if at_end else offset, data)

    async def flush(self) -> None:
        if self.writable and self._draft.told:
            await self._draft.commit()

    async def fsync(self) -> None:
        await self._draft.commit()

    async def aclose(self) -> None:
        if self.writable:
            self._draft.writers -= 1
        await self._writing.closed(self.node)


class _BaseReading(Reading):
    """Reads the bases of drafts: such handles are nobody's descriptors."""

    def closed(self, handle: ReadHandle) -> None:
        """Nothing was counted."""


class Writing:
    def __init__(self, view: View, folder: Path, nursery: trio.Nursery) -> None:
        """``folder`` is there and private; ``nursery`` runs the streams into the store, so it
        has to live until ``closed`` was called for every handle."""
        self._view = view
        self._closing: dict[Node, trio.Event] = {}
        """Files whose draft commits with the last close, when nobody waits for it."""
        self._ending: dict[Node, Draft] = {}
        """Their drafts."""
        self._types = mimetypes.MimeTypes()
        self._quotas = Quotas(view.engine)
        base_reading = _BaseReading(view)
        self._shop = Workshop(
            engine=view.engine,
            quotas=self._quotas,
            folder=StagingFolder(folder),
            nursery=nursery,
            now_ns=time.time_ns,
            read_base=lambda node, opened: ReadHandle(base_reading, node, opened),
            saved=view.unsaved.discard,
            log=view.log,
        )

    def check_writable(self, node: Node) -> None:
        """Raises Refused: EROFS."""
        if not self._view.options.writable or node.kind not in (
            Kind.FILE,
            Kind.DIRECTORY,
            Kind.TOP,
        ):
            raise Refused(errno.EROFS)

    # Opening

    async def open(
        self, node: Node, flags: int, *, may_be_older: bool = False
    ) -> tuple[WriteHandle, bool]:
        """Return a handle, and whether the kernel may keep what it has in its page cache.
        ``may_be_older``: as for ``Reading.open``.

        Raises: Replaced.
        """
        self.check_writable(node)
        await self.settled(node)
        draft = node.draft
        if draft is not None and not may_be_older:
            await self._check_current(node, draft)
            draft = node.draft
        if draft is None:
            opened = await self._base_of(node, may_be_older=may_be_older)
            # Another open may have made the draft meanwhile.
            draft = node.draft or self._draft_of(node, opened)
            if draft.base is not opened:
                await opened.aclose()
        keep_cache = bool(draft.base_id) and node.cached == draft.base_id
        if draft.base_id:
            node.cached = draft.base_id
        handle = self._handle(node, draft, flags)
        if flags & os.O_TRUNC:
            bare = draft.bare or not draft.dirty
            try:
                await draft.truncate(0)
                draft.bare = bare
            except BaseException:
                with trio.CancelScope(shield=True):
                    await handle.aclose()
                raise
        return handle, keep_cache

    async def _check_current(self, node: Node, draft: Draft) -> None:
        """Raises Replaced: others replaced what the draft stands on, and nothing is written."""
        base_id = draft.base_id
        if draft.dirty or draft.unlinked:
            return
        record = (await self._view.paths.find(node.bucket, node.key)).record
        if record is not None and record.data_id == base_id:
            return
        # Unless it was written, renamed or closed meanwhile.
        if node.draft is draft and draft.base_id == base_id and not draft.dirty:
            raise Replaced(node)

    async def _base_of(self, node: Node, *, may_be_older: bool) -> OpenedObject:
        if node.unlinked:
            return open_already(self._view, node)
        opened = await self._view.engine.open(node.bucket, node.key)
        if node.draft is None and node.handles and node.data_id != opened.info.record.data_id:
            await opened.aclose()
            if not may_be_older:
                raise Replaced(node)
            return open_already(self._view, node)
        return opened

    def _draft_of(self, node: Node, opened: OpenedObject) -> Draft:
        record = opened.info.record
        attributes = Attributes(
            headers=record.headers,
            metadata=record.metadata,
            tags=record.tags,
            storage_class=record.storage_class,
        )
        node.stand_for(record.data_id)
        stat = self._view.attributes.of_file(record)
        if node.unlinked and node.open_stat is not None:
            stat = node.open_stat
        draft = Draft(self._shop, node, stat=stat, attributes=attributes, base=opened)
        draft.unlinked = node.unlinked
        node.draft = draft
        return draft

    def _handle(self, node: Node, draft: Draft, flags: int) -> WriteHandle:
        self._view.table.opened(node)
        handle = WriteHandle(self, node, draft, flags)
        if handle.writable:
            draft.writers += 1
        return handle

    async def closed(self, node: Node) -> None:
        """A handle of the node is closed, one of this module or for reading."""
        draft = node.draft
        if draft is not None and node.handles == 1:
            await self._close_draft(node, draft)
            self._view.table.closed(node)
        else:
            self._view.table.closed(node)

    async def left(self, node: Node) -> None:
        """A handle of the node that was opened before the draft was there is closed."""
        draft = node.draft
        if draft is not None and not node.handles:
            await self._close_draft(node, draft)

    async def _close_draft(self, node: Node, draft: Draft) -> None:
        # Taken off first: who opens the file from now on waits, and then begins anew.
        node.draft = None
        closed = self._closing[node] = trio.Event()
        self._ending[node] = draft
        self._view.settling.add(node)
        try:
            await draft.aclose()
        finally:
            del self._closing[node], self._ending[node]
            self._view.settling.discard(node)
            closed.set()
            self._view.unsaved.discard(node)

    async def settled(self, node: Node) -> None:
        """Return once no draft of the node is committing after its last close."""
        while (closed := self._closing.get(node)) is not None:
            await closed.wait()

    @asynccontextmanager
    async def held_below(self, directory: Node) -> AsyncGenerator[None, None]:
        """Nothing below the directory is committed while the block runs. One task at a time."""
        held: dict[Draft, None] = {}
        try:
            while fresh := [draft for draft in self._drafts_below(directory) if draft not in held]:
                for draft in fresh:
                    await draft.lock.acquire()
                    held[draft] = None
            yield
        finally:
            for draft in held:
                draft.lock.release()

    def _drafts_below(self, directory: Node) -> list[Draft]:
        drafts = [(node, node.draft) for node in self._view.table if node.draft is not None]
        return [
            draft
            for node, draft in [*drafts, *self._ending.items()]
            if node.bucket_id == directory.bucket_id and node.key.startswith(directory.key)
        ]

    # New files

    def new_place(self, parent: Node, name: bytes) -> Place:
        """Return where a new file or directory goes.

        Raises Refused: EROFS, EPERM (at the top, where only buckets are), EINVAL (a marked name
        that stands for nothing).
        """
        self.check_writable(parent)
        if parent.kind is not Kind.DIRECTORY:
            raise Refused(errno.EPERM)
        place = self._view.place(parent, name)
        if place.mark is not Mark.NONE or not self._view.can_be_new(parent, place):
            raise Refused(errno.EINVAL)
        return place

    async def create(
        self, parent: Node, name: bytes, mode: int, flags: int, owner: Owner
    ) -> tuple[Node, WriteHandle]:
        """Make a file that is there in this mount at once, and for all others when committed."""
        place = self.new_place(parent, name)
        view = self._view
        path = await view.paths.find(place.bucket, place.text)
        if path.is_directory:
            raise Refused(errno.EEXIST if flags & os.O_EXCL else errno.EISDIR)
        known = view.known_file(path.bucket.bucket_id, place.text)
        if path.record is not None or (known is not None and known in view.unsaved):
            if flags & os.O_EXCL:
                raise Refused(errno.EEXIST)
            if path.record is None:
                assert known is not None
                node = known
            else:
                node = view.file(path.bucket, place.text, path.record).node
            handle, _ = await self.open(node, flags)
            return node, handle
        # A file that waits for its last close to be committed has its place already.
        waiting = sum(node.bucket == place.bucket for node in view.unsaved)
        await self._quotas.check(place.bucket, 0, 1 + waiting)
        if not place.text.startswith(parent.key):
            raise Refused(errno.ESTALE)  # renamed meanwhile: the kernel asks again
        known = view.known_file(path.bucket.bucket_id, place.text)
        if known is not None and known.handles:
            view.table.detach(known)  # a file that is gone and still open
        node = view.table.find(Kind.FILE, place.bucket, path.bucket.bucket_id, place.text)
        node.data_id = node.cached = b""
        draft = Draft(
            self._shop,
            node,
            stat=self._new_stat(modes.S_IFREG | mode & 0o7777, owner),
            attributes=self.new_attributes(place.text, modes.S_IFREG | mode, owner),
            base=None,
        )
        # Who asks to be the only one to make it is told at the first close.
        draft.bare = not flags & os.O_EXCL
        node.draft = draft
        view.unsaved.add(node)
        return node, self._handle(node, draft, flags)

    def _new_stat(self, mode: int, owner: Owner) -> Stat:
        now_ns = time.time_ns()
        return Stat(mode, 0, now_ns, now_ns, owner.uid, owner.gid)

    def new_attributes(self, key: str, mode: int, owner: Owner) -> Attributes:
        """Return what is kept of something new: of what everybody has nothing."""
        options = self._view.options
        kind = modes.S_IFMT(mode)
        default = {modes.S_IFREG: options.file_mode, modes.S_IFDIR: options.dir_mode}.get(kind)
        changes = attribute_changes(
            kind,
            None if mode & 0o7777 == default else mode,
            time.time_ns(),
            None if owner.uid == options.uid else owner.uid,
            None if owner.gid == options.gid else owner.gid,
        )
        headers = []
        if kind == modes.S_IFREG:
            content_type, encoding = self._types.guess_type(key, strict=False)
            if content_type is None or encoding is not None:
                content_type = "application/octet-stream"
            headers = [("content-type", content_type)]
        return Attributes(headers=headers, metadata=list(changes.items()))

    async def put_small(
        self, bucket: str, key: str, data: bytes, attributes: Attributes
    ) -> ObjectInfo:
        """Store a marker or link where nothing is. Raises Refused: EEXIST."""
        try:
            return await self._view.engine.put(
                bucket,
                key,
                _BytesSource(data),
                size=len(data),
                algorithms=frozenset({CHECKSUM}),
                attributes=attributes,
                check=_keep_checksum,
                conditions=ABSENT,
            )
        except PreconditionFailed:
            raise Refused(errno.EEXIST) from None

    # Attributes

    async def truncate(self, node: Node, size: int) -> None:
        """Cut or extend a file; committed on return unless a program has it open to write."""
        handle, _ = await self.open(node, os.O_WRONLY)
        try:
            draft = node.draft
            assert draft is not None
            if draft.stat.size != size:
                await draft.truncate(size)
            else:
                await draft.set_attributes(mtime_ns=time.time_ns())
            if draft.writers == 1:
                await draft.commit()
        finally:
            with trio.CancelScope(shield=True):
                await handle.aclose()

    async def set_attributes(
        self,
        node: Node,
        *,
        mode: int | None = None,
        mtime_ns: int | None = None,
        uid: int | None = None,
        gid: int | None = None,
    ) -> None:
        """Keep mode, time and owner in the user metadata."""
        self.check_writable(node)
        await self.settled(node)
        if node.draft is not None:
            await node.draft.set_attributes(mode=mode, mtime_ns=mtime_ns, uid=uid, gid=gid)
            return
        if node.unlinked:
            # What has its name now, if anything, is not meant.
            if node.open_stat is not None:
                node.open_stat = changed_stat(node.open_stat, mode, mtime_ns, uid, gid)
            return
        if node.kind is Kind.FILE:
            found = await self._view.describe(node)
            changes = attribute_changes(modes.S_IFMT(found.stat.mode), mode, mtime_ns, uid, gid)
            # Somebody else may have replaced what is open here.
            is_open = node.handles and node.data_id
            conditions = Conditions(if_match_data_id=node.data_id) if is_open else NO_CONDITIONS
            info = await self._change_metadata(node, changes, conditions)
            if node.open_stat is not None:
                node.open_stat = self._view.attributes.of_file(info.record)
            return
        changes = attribute_changes(modes.S_IFDIR, mode, mtime_ns, uid, gid)
        if not node.key or node is self._view.table.root or node.base != len(node.key):
            # No object stands for it. Programs that copy trees set the time of the top as well.
            if mode is not None or uid is not None or gid is not None:
                await self._refuse_difference(node, mode, uid, gid)
            return
        try:
            await self._change_metadata(node, changes)
        except NoSuchKey:
            # No object stands for it yet; one that is gone does not come back.
            await self._view.describe(node)
            metadata = {"mtime": format_time(time.time_ns()), **changes}
            attributes = Attributes(metadata=list(metadata.items()))
            await self.put_small(node.bucket, node.key, b"", attributes)

    async def _change_metadata(
        self, node: Node, changes: dict[str, str], conditions: Conditions = NO_CONDITIONS
    ) -> ObjectInfo:
        return await self._view.engine.set_metadata(
            node.bucket,
            node.key,
            lambda pairs: list({**dict(pairs), **changes}.items()),
            conditions=conditions,
        )

    async def _refuse_difference(
        self, node: Node, mode: int | None, uid: int | None, gid: int | None
    ) -> None:
        """Raises Refused (EPERM) unless everything is as wanted."""
        stat = (await self._view.describe(node)).stat
        wanted = (
            stat.mode & 0o7777 if mode is None else mode & 0o7777,
            stat.uid if uid is None else uid,
            stat.gid if gid is None else gid,
        )
        if wanted != (stat.mode & 0o7777, stat.uid, stat.gid):
            raise Refused(errno.EPERM)


class _BytesSource:
    def __init__(self, data: bytes) -> None:
        self._rest = data

    async def readinto(self, buffer: memoryview) -> int:
        size = min(len(buffer), len(self._rest))
        buffer[:size] = self._rest[:size]
        self._rest = self._rest[size:]
        return size


def _keep_checksum(digests: Digests) -> list[Checksum]:
    return [Checksum(algorithm=CHECKSUM, value=digests[CHECKSUM])]
