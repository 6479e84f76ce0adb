"""A draft: what this mount writes to one file, until it is committed as a whole.

All descriptors of a file share its draft, the readers too, as they share the kernel's page cache.
A draft stands on a base, the version that was opened (or nothing, for a new file), and commits on
the condition that the base is still what is there. Then the new version is the base.

      clean ── write, truncate ──▶ dirty ── flush, fsync ──▶ clean
                                     │
                                     └── somebody else committed ──▶ failed; bytes in recovery

Concurrency: ``lock`` is held over every change and every commit, by ``Draft`` itself or by
renames and deletes of the file; reading the base of a clean draft takes no lock.
"""

from __future__ import annotations

import errno
import stat as modes
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import structlog
import trio

from engine.engine import Engine
from engine.errors import (
    EngineError,
    NoSpace,
    NoSuchBucket,
    PreconditionFailed,
    QuotaExceeded,
)
from engine.meta.records import Checksum
from engine.opened import OpenedObject
from engine.types import Attributes, Conditions, Digests, ObjectInfo, Pairs
from fs.attributes import Stat, format_mode, format_time
from fs.errors import Refused
from fs.handles import Readable
from fs.inodes import Node
from fs.reading import ReadHandle
from fs.space import Quotas
from fs.staging import MEMORY_MAX, Content, MemoryContent, StagingFolder, StreamContent

CHECKSUM = "CRC64NVME"

STALE_WITH_OTHER_BYTES = frozenset({"md5chksum", "s3cmd-attrs"})
"""User metadata in which other programs keep a digest of the bytes."""


@dataclass(frozen=True, slots=True)
class Workshop:
    """What all drafts of a mount work with."""

    engine: Engine
    quotas: Quotas
    folder: StagingFolder
    nursery: trio.Nursery
    now_ns: Callable[[], int]
    read_base: Callable[[Node, OpenedObject], ReadHandle]
    saved: Callable[[Node], None]
    """Called when a new file is committed for the first time, and later ones."""
    log: structlog.typing.FilteringBoundLogger


class Draft:
    def __init__(
        self,
        shop: Workshop,
        node: Node,
        *,
        stat: Stat,
        attributes: Attributes,
        base: OpenedObject | None,
    ) -> None:
        """Take over ``base``; without it the file is new."""
        self._shop = shop
        self._node = node
        self._headers = attributes.headers
        self._metadata = dict(attributes.metadata)
        self._tags = attributes.tags
        self._storage_class = attributes.storage_class
        self._base = base
        self._reader = None if base is None else shop.read_base(node, base)
        self._content: Content | StreamContent | None = None if base else MemoryContent()
        """None: the bytes are the base's."""
        self._failure: Exception | None = None
        self._unsaved_close = False
        self._refused: tuple[int, Exception] | None = None
        """Where a write found no room, and what it was told. Until it succeeds, or the file is
        cut, nothing is committed: half of what a program wrote must not replace a whole file."""
        self._base_size = 0 if base is None else base.info.size
        self.base_id: bytes = b"" if base is None else base.info.record.data_id
        """Data id of the version that the commit replaces; empty: there is none."""
        self.dirty = base is None
        """There is something to commit."""
        self.bare = False
        """All that is to be committed is that the file was opened: it is new, or was emptied by
        opening it, and nothing was written since. A shell that redirects output closes a
        duplicate of the descriptor before it writes; committing then would show everybody an
        empty file. So such a draft is committed by the last close, not by the first."""
        self.unlinked = False
        """The name is gone: nothing is committed any more."""
        self.writers = 0
        self.lock = trio.Lock()
        self.stat = stat
        node.open_stat = stat

    @property
    def staged(self) -> int:
        """Bytes that wait to be committed, in memory, in a private file or in the store."""
        return 0 if self._content is None else self._content.size

    @property
    def told(self) -> bool:
        """A descriptor's ``close`` has something to say, or to commit."""
        return not self.bare or self._refused is not None

    @property
    def base(self) -> OpenedObject | None:
        """The base as it was opened; None once it was replaced."""
        return self._base

    # Bytes

    async def read(self, offset: int, size: int) -> Readable:
        if self._content is None and self._reader is not None:
            return await self._reader.read(offset, size)
        async with self.lock:
            self._check()
            if isinstance(self._content, StreamContent):
                self._content = await self._unstream(self._content)
            if self._content is not None:
                return await self._content.read(offset, size)
            reader = await self._pinned()
        return await reader.read(offset, size)

    async def write(self, offset: int | None, data: bytes) -> int:
        """``offset`` None: at the end. Raises Refused, OSError, and what the store raises."""
        async with self.lock:
            self._check()
            at = self.stat.size if offset is None else offset
            try:
                await self._check_room(at + len(data))
                await self._write(at, data)
            except (QuotaExceeded, NoSpace, OSError) as error:
                self._refused = (at, error)
                raise
            if self._refused is not None and at <= self._refused[0]:
                self._refused = None
            return len(data)

    async def _check_room(self, size: int) -> None:
        """Raises: QuotaExceeded, when it is clear that a file of this size cannot be committed."""
        if size > self.stat.size:
            await self._shop.quotas.check(self._node.bucket, size - self._base_size, 0)

    async def _write(self, at: int, data: bytes) -> None:
        content = self._content
        if content is None:
            content = self._content = await self._loaded()
        if isinstance(content, StreamContent):
            if at == content.size:
                await self._append(content, data)
                self._changed(content.size)
                return
            content = self._content = await self._unstream(content)
        if isinstance(content, MemoryContent) and at + len(data) > MEMORY_MAX:
            begun = bytes(await content.read(0, content.size))
            if at == content.size:
                stream = StreamContent(self._shop.engine, self._shop.nursery, begun)
                self._content = stream
                await self._append(stream, data)
                self._changed(stream.size)
                return
            content = self._content = await self._shop.folder.make(begun)
        await content.write(at, data)
        self._changed(content.size)

    async def _append(self, stream: StreamContent, data: bytes) -> None:
        try:
            await stream.append(data)
        except Exception as error:
            # What went into the stream before is gone with it.
            self._failure = error
            raise

    async def truncate(self, size: int) -> None:
        async with self.lock:
            self._check()
            await self._check_room(size)
            content = self._content
            if isinstance(content, StreamContent) and size != content.size:
                if size:
                    content = self._content = await self._unstream(content)
                else:
                    await content.aclose()
                    content = self._content = MemoryContent()
            if content is None:
                content = MemoryContent() if size == 0 else await self._loaded()
                self._content = content
            if not isinstance(content, StreamContent):
                if isinstance(content, MemoryContent) and size > MEMORY_MAX:
                    begun = bytes(await content.read(0, content.size))
                    content = self._content = await self._shop.folder.make(begun)
                await content.truncate(size)
            self._refused = None
            self._changed(size)

    def _changed(self, size: int) -> None:
        now_ns = self._shop.now_ns()
        self._show(self.stat._replace(size=size, mtime_ns=now_ns, ctime_ns=now_ns))
        self.dirty = True
        self.bare = False

    def _show(self, stat: Stat) -> None:
        self.stat = stat
        if self._node.draft is self:
            self._node.open_stat = stat

    def _check(self) -> None:
        if self._failure is not None:
            raise self._failure

    async def _loaded(self) -> Content:
        """Return the base's bytes as a content that can be changed."""
        await self._pinned()
        assert self._base is not None
        size = self._base.info.size
        content: Content = MemoryContent() if size <= MEMORY_MAX else await self._shop.folder.make()
        stream = await self._base.stream(0, size)
        try:
            async for buffer in stream:
                await content.write(content.size, bytes(buffer))
        except BaseException:
            with trio.CancelScope(shield=True):
                await content.aclose()
            raise
        finally:
            await stream.aclose()  # noqa: ASYNC102  does not wait
        return content

    async def _unstream(self, stream: StreamContent) -> Content:
        """Return a stream's bytes as a content that can be changed: they are read back."""
        try:
            staged = await stream.finish()
        except Exception as error:
            self._failure = error
            raise
        content = await self._shop.folder.make()
        bytes_ = await staged.stream()
        try:
            async for buffer in bytes_:
                await content.write(content.size, bytes(buffer))
        except BaseException:
            with trio.CancelScope(shield=True):
                await content.aclose()
            raise
        finally:
            await bytes_.aclose()  # noqa: ASYNC102  does not wait
        await stream.aclose()
        return content

    async def _pinned(self) -> ReadHandle:
        """Return what reads the base, which is not open yet when this draft committed it."""
        if self._reader is None:
            node = self._node
            opened = await self._shop.engine.open(node.bucket, node.key)
            if opened.info.record.data_id != self.base_id:
                await opened.aclose()
                raise Refused(errno.ESTALE)
            self._base = opened
            self._reader = self._shop.read_base(node, opened)
        return self._reader

    # Attributes

    async def set_attributes(
        self,
        *,
        mode: int | None = None,
        mtime_ns: int | None = None,
        uid: int | None = None,
        gid: int | None = None,
    ) -> None:
        """Change what is given: with the next commit, or at once when there is nothing else to
        commit."""
        async with self.lock:
            self._check()
            stat = self.stat
            changes = attribute_changes(modes.S_IFMT(stat.mode), mode, mtime_ns, uid, gid)
            if not self.dirty and not self.unlinked:
                await self._shop.engine.set_metadata(
                    self._node.bucket,
                    self._node.key,
                    lambda pairs: list({**dict(pairs), **changes}.items()),
                    conditions=Conditions(if_match_data_id=self.base_id),
                )
            self._metadata.update(changes)
            self._show(changed_stat(stat, mode, mtime_ns, uid, gid))

    @property
    def metadata(self) -> Pairs:
        """The user metadata, as the next commit will keep it."""
        return list(self._metadata.items())

    async def set_metadata(self, change: Callable[[Pairs], Pairs]) -> None:
        """Change user metadata, with the next commit or at once as ``set_attributes`` does.

        ``change`` is pure. Raises what it raises: then nothing is changed.
        """
        async with self.lock:
            self._check()
            changed = dict(change(self.metadata))
            if not self.dirty and not self.unlinked:
                await self._shop.engine.set_metadata(
                    self._node.bucket,
                    self._node.key,
                    change,
                    conditions=Conditions(if_match_data_id=self.base_id),
                )
            self._metadata = changed

    # Committing

    async def commit(self) -> None:
        """Make what was written the file's current version; durable on return.

        Raises: PreconditionFailed (ESTALE): another one is there; what was written is in the
        recovery folder. Any other error leaves the draft dirty: it can be tried again.
        """
        async with self.lock:
            await self.commit_locked()

    async def commit_locked(self) -> None:
        """``commit``, for who holds the lock."""
        self._check()
        if not self.dirty or self.unlinked:
            return
        if self._refused is not None:
            self._unsaved_close = True
            raise self._refused[1]
        try:
            info, opened = await self._store()
        except (PreconditionFailed, NoSuchBucket) as error:
            self._failure = error
            await self._keep(error)  # noqa: ASYNC120  cancelled, the error is told to nobody
            raise
        except Exception:
            self._unsaved_close = True
            raise
        self.dirty = self.bare = False
        self._unsaved_close = False
        self.base_id = info.record.data_id
        self._base_size = info.size
        node = self._node
        unsure = node.size_unsure
        node.stand_for(info.record.data_id)
        node.size_unsure = unsure
        # What the kernel has in its page cache is what it has written.
        node.cached = info.record.data_id
        self._shop.saved(node)
        self._show(self.stat._replace(ctime_ns=info.record.modified_ms * 1_000_000))
        await self._drop_base()
        if opened is not None:
            # Its bytes are here no more: who has it open reads them from the store.
            self._base, self._reader = opened, self._shop.read_base(node, opened)

    async def _store(self) -> tuple[ObjectInfo, OpenedObject | None]:
        """Return what is there now, and open if its bytes are nowhere else."""
        node, content = self._node, self._content
        metadata = {k: v for k, v in self._metadata.items() if k not in STALE_WITH_OTHER_BYTES}
        metadata["mtime"] = format_time(self.stat.mtime_ns)
        self._metadata = metadata
        attributes = Attributes(
            headers=self._headers,
            metadata=list(metadata.items()),
            tags=self._tags,
            storage_class=self._storage_class,
        )
        conditions = Conditions(if_match_data_id=self.base_id)
        if isinstance(content, StreamContent):
            try:
                staged = await content.finish()
            except Exception as error:
                self._failure = error
                raise
            opened = await staged.commit_opened(
                node.bucket, node.key, attributes=attributes, conditions=conditions
            )
            content.committed()
            self._content = None
            return opened.info, opened
        assert content is not None
        info = await self._shop.engine.put(
            node.bucket,
            node.key,
            content.source(),
            size=content.size,
            algorithms=frozenset({CHECKSUM}),
            attributes=attributes,
            check=_keep_checksum,
            conditions=conditions,
        )
        return info, None

    async def _keep(self, error: Exception) -> None:
        """Put the bytes that were not committed into the recovery folder, and say so."""
        node = self._node
        path: Path | None = None
        try:
            content = self._content
            if isinstance(content, StreamContent):
                content = self._content = await self._unstream(content)
            if content is not None and content.size:
                path = await content.keep(self._shop.folder, node.key)
        except (EngineError, OSError) as trouble:
            self._shop.log.error("bytes not kept", key=node.key, error=str(trouble))
        self._shop.log.warning(
            "file not committed",
            bucket=node.bucket,
            key=node.key,
            error=str(error),
            kept=str(path) if path else "",
        )

    async def _drop_base(self) -> None:
        reader, self._reader, self._base = self._reader, None, None
        if reader is not None:
            await reader.aclose()

    # The end

    async def unlink_locked(self) -> None:
        """The name is gone, or stands for another file: commit no more. Holds the lock."""
        self.unlinked = True

    async def aclose(self) -> None:
        """Let go of everything. What nobody tried to commit yet is committed; what could not be
        goes to the recovery folder. Never raises but for cancellation."""
        async with self.lock:
            if self.dirty and not self.unlinked and self._failure is None:
                try:
                    if self._unsaved_close:
                        raise Refused(errno.EIO, "closed although it could not be committed")
                    await self.commit_locked()
                except (EngineError, OSError) as error:
                    if self._failure is None:
                        await self._keep(error)
            if self.dirty and not self.unlinked:
                # The kernel's pages of the file are those of no version, as is its size.
                self._node.cached = b""
                self._node.size_unsure = True
            if self._content is not None:
                await self._content.aclose()
            await self._drop_base()


def attribute_changes(
    kind: int, mode: int | None, mtime_ns: int | None, uid: int | None, gid: int | None
) -> dict[str, str]:
    """Return the user metadata that says so; ``kind`` is the file's type."""
    changes = {}
    if mode is not None:
        changes["mode"] = format_mode(kind | mode & 0o7777)
    if mtime_ns is not None:
        changes["mtime"] = format_time(mtime_ns)
    if uid is not None:
        changes["uid"] = str(uid)
    if gid is not None:
        changes["gid"] = str(gid)
    return changes


def changed_stat(
    stat: Stat, mode: int | None, mtime_ns: int | None, uid: int | None, gid: int | None
) -> Stat:
    """Return ``stat`` with what is given; its file type stays."""
    return stat._replace(
        mode=stat.mode if mode is None else modes.S_IFMT(stat.mode) | mode & 0o7777,
        mtime_ns=stat.mtime_ns if mtime_ns is None else mtime_ns,
        uid=stat.uid if uid is None else uid,
        gid=stat.gid if gid is None else gid,
    )


def _keep_checksum(digests: Digests) -> list[Checksum]:
    return [Checksum(algorithm=CHECKSUM, value=digests[CHECKSUM])]
