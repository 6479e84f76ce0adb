"""The volume that a process appends to: reservations, commits, and the sync that they share.

Each process holds the flock of the volumes that it appends to, so it alone knows their end.

Concurrency
* ``_lock`` guards ``end``, ``outstanding`` and the queue of commits. Under it are only short
  writes (a header, a commit record), never a sync. A header is written before any later extent is
  reserved, and a commit record before a shortened extent's rest is: so whatever a sync makes
  durable, the headers in front of it are durable too.
* Group commit: the first to wait leads; it syncs once for all who wrote their commit record before
  the sync began, hands the lead to the first that came later, and then enters its group into the
  index in one transaction. Only then are the commits of the group done.
* Who writes the index takes ``_lock`` then (``_finished``); so nobody who holds ``_lock`` may call
  the index.
* ``outstanding`` holds the extents that are neither in the index nor given up. ``indexed_to`` never
  passes the first of them.
"""

from __future__ import annotations

import contextlib
import errno
import threading
from dataclasses import dataclass
from typing import NoReturn

from engine.ids import FragmentId
from engine.node.contract import NodeDown, NodeError, NodeFull
from engine.node.disk import Disk, write_all
from engine.node.index import READ_ONLY, Index, Update
from engine.node.needle import (
    BLANK,
    FILE_HEADER_SIZE,
    FILLER,
    HEADER_SIZE,
    NEEDLE_OVERHEAD,
    NO_FRAGMENT,
    NO_SOURCE,
    PAGE,
    Commit,
    Source,
    extent_size,
    filler_size,
    pack_commit,
    pack_header,
)

SYNC_S_MAX = 120.0
"""A disk that takes longer for one sync counts as failed."""

FULL_ERRORS = (errno.ENOSPC, errno.EDQUOT)


@dataclass(slots=True)
class Extent:
    """A reserved range of a volume."""

    offset: int
    size: int
    """Shrinks at commit when it is the last one."""
    header: bytes
    whole: bool = False
    """Has a commit record."""
    extended: bool = False
    """All of it has blocks on the disk, and the file reaches at least to its end."""


class Pending:
    """One commit that waits for the sync: its extents and what it changes in the index."""

    __slots__ = ("done", "error", "extents", "lead", "update", "wake")

    def __init__(self, extents: list[Extent], update: Update) -> None:
        self.extents = extents
        self.update = update
        self.error: NodeError | None = None
        self.lead = False
        self.done = False
        self.wake = threading.Lock()
        self.wake.acquire()


class Volume:
    def __init__(
        self,
        disk: Disk,
        index: Index,
        fd: int,
        *,
        number: int,
        uuid: bytes,
        end: int,
        limit: int,
        direct_fd: int = -1,
    ) -> None:
        """Take over both descriptors; ``end`` is durable already.

        Args:
            fd: the caller holds the flock on it.
            direct_fd: of the same file, for writing past the page cache; -1: there is none.
        """
        self.number = number
        self.uuid = uuid
        self.fd = fd
        self.direct_fd = direct_fd
        self.failed = False
        self._disk = disk
        self._index = index
        self._limit = limit
        self._end = end
        self._synced_to = end
        self._lowest_end = end
        self._lock = threading.Lock()
        self._outstanding: dict[int, Extent] = {}
        self._queue: list[Pending] = []
        self._syncing = False
        self._sealed = False
        self._noted = False
        self._pins = 0

    # Reservations

    def reserve(
        self, kind: int, fragment: FragmentId, size_max: int, *, paged: bool = False
    ) -> Extent | None:
        """Reserve an extent and write its header; None when the volume is full or closed.

        Args:
            paged: let the payload begin at a page.
        Raises: NodeFull, NodeDown.
        """
        size = extent_size(size_max)
        with self._lock:
            begin = self._end
            filler = filler_size(begin) if paged else 0
            offset = begin + filler
            if self._sealed or self.failed:
                return None
            if offset + size > self._limit and begin > FILE_HEADER_SIZE:
                return None
            header = pack_header(kind, self.uuid, offset, fragment, size)
            try:
                if filler:
                    blank = pack_header(FILLER, self.uuid, begin, NO_FRAGMENT, filler) + BLANK
                    write_all(self._disk, self.fd, [blank], begin)
                write_all(self._disk, self.fd, [header + BLANK], offset)
            except OSError as error:
                self._raise(error)
            self._end = offset + size
            extent = self._outstanding[offset] = Extent(offset, size, header)
        return extent

    def extend(self, extent: Extent) -> bool:
        """Give the extent its blocks on the disk now, so that writing to it changes nothing but
        them; False: the file system cannot, and it is written like any other.

        Raises: NodeFull, NodeDown; abort the extent then.
        """
        try:
            extent.extended = self._disk.extend(self.fd, extent.offset, extent.size)
        except OSError as error:
            self._raise(error)
        return extent.extended

    def write_commit(self, extent: Extent, size: int, crc: int, source: Source = NO_SOURCE) -> None:
        """Make the needle whole, though not durable, and give back what it did not use."""
        used = extent_size(size)
        with self._lock:
            if self.failed:
                raise NodeDown(f"volume {self.number:08x} failed")
            last = extent.offset + extent.size == self._end
            final = used if last else extent.size
            commit = Commit(size, final, crc, source, self._synced_to)
            try:
                record = pack_commit(extent.header, commit)
                write_all(self._disk, self.fd, [record], extent.offset + HEADER_SIZE)
            except OSError as error:
                self._raise(error)
            reserved, extent.size = extent.offset + extent.size, final
            extent.whole = True
            if last:
                self._move_back(extent.offset + final)
            if extent.extended and extent.offset + used < reserved:
                with contextlib.suppress(OSError):  # only dead space is left then
                    self._shorten(extent.offset + used, reserved, last=last)

    def _shorten(self, begin: int, end: int, *, last: bool) -> None:
        """Give blocks back that were taken before it was known how many it takes."""
        if last:
            self._disk.ftruncate(self.fd, begin)
            return
        begin = (begin + PAGE - 1) & -PAGE
        if begin < end & -PAGE:
            self._disk.punch_hole(self.fd, begin, (end & -PAGE) - begin)

    def disown(self, extent: Extent) -> None:
        """Take the commit record away again: the needle was not, after all, to be."""
        try:
            write_all(self._disk, self.fd, [BLANK], extent.offset + HEADER_SIZE)
        except OSError as error:
            self._raise(error)
        extent.whole = False

    def abort(self, extent: Extent) -> None:
        """Give an extent back, together with its commit record. Never raises.

        On a failed volume nothing is given back: the index may point there.
        """
        with self._lock:
            if extent.offset not in self._outstanding:
                return
            if not self.failed:
                with contextlib.suppress(OSError, NodeError):  # only dead space is left then
                    if extent.whole:
                        self.disown(extent)
                    self._give_back(extent)
            del self._outstanding[extent.offset]
        self._close_if_idle()

    def _give_back(self, extent: Extent) -> None:
        end = extent.offset + extent.size
        if end == self._end:
            # The end moves first: should the truncation fail, the bytes are overwritten later.
            self._move_back(extent.offset)
            self._disk.ftruncate(self.fd, extent.offset)
            return
        begin = (extent.offset + NEEDLE_OVERHEAD + PAGE - 1) & -PAGE
        whole = (end & -PAGE) - begin
        if whole > 0:
            self._disk.punch_hole(self.fd, begin, whole)

    def _move_back(self, end: int) -> None:
        """A sync that runs now does not cover what will be written from ``end`` on."""
        self._end = end
        self._synced_to = min(self._synced_to, end)
        self._lowest_end = min(self._lowest_end, end)

    # Commits

    def commit(self, pending: Pending) -> None:
        """Return once the extents, whose commit records are written, are durable and indexed.

        Raises: NodeFull (the index has no room), NodeDown.
        """
        with self._lock:
            if self.failed:
                raise NodeDown(f"volume {self.number:08x} failed")
            self._queue.append(pending)
            pending.lead = not self._syncing
            self._syncing = True
        if not pending.lead and not pending.wake.acquire(timeout=SYNC_S_MAX):
            self._give_up(pending)
        if pending.lead and not pending.done:
            self._lead()
        if pending.error is not None:
            raise pending.error

    def _lead(self) -> None:
        with self._lock:
            group, self._queue = self._queue, []
            reached = self._unfinished()
            self._lowest_end = self._end
        error: NodeError | None = NodeDown("the sync was interrupted")
        try:
            error = self._sync()
        finally:
            self._hand_on(error, reached)
            try:
                if error is None:
                    error = self._enter(group)
            finally:
                for pending in group:
                    pending.error = error
                    pending.done = True
                    if not pending.lead:
                        pending.wake.release()
        self._close_if_idle()

    def _sync(self) -> NodeError | None:
        """A failed sync may have dropped what it did not write, and the next one would not
        say so: the volume takes no more commits.
        """
        if self.failed:
            return NodeDown(f"volume {self.number:08x} failed")
        try:
            self._disk.fdatasync(self.fd)
            links = self._disk.fstat(self.fd).links
        except OSError as error:
            self.fail()
            return NodeDown(f"volume {self.number:08x}: sync: {error.strerror}")
        if links == 0:
            self.fail()
            return NodeDown(f"volume {self.number:08x} was removed from its folder")
        return None

    def _hand_on(self, error: NodeError | None, reached: int) -> None:
        """Let the first commit that came during the sync lead the next one."""
        with self._lock:
            if error is None:
                self._synced_to = max(self._synced_to, min(reached, self._lowest_end))
                if self._queue:
                    self._queue[0].lead = True
                    self._queue[0].wake.release()
                else:
                    self._syncing = False
                return
            refused, self._queue = self._queue, []
            self._syncing = False
        for pending in refused:
            pending.error = error
            pending.done = True
            pending.wake.release()

    def _enter(self, group: list[Pending]) -> NodeError | None:
        done = [extent.offset for pending in group for extent in pending.extents]
        try:
            self._index.apply(
                self.number, lambda: self._finished(set(done)), [p.update for p in group]
            )
        except NodeFull as error:
            return error
        except NodeError as error:
            self.fail()  # the index may or may not point to these extents: never reuse them
            return error
        with self._lock:
            for offset in done:
                self._outstanding.pop(offset, None)
        return None

    def _unfinished(self) -> int:
        """Return where the first extent begins that is still written to: a sync that begins now
        says nothing of what comes to it later."""
        unfinished = [offset for offset, e in self._outstanding.items() if not e.whole]
        return min(unfinished, default=self._end)

    def _finished(self, done: set[int]) -> int:
        """Return where the first extent begins that is neither finished nor in ``done``."""
        with self._lock:
            left = [offset for offset in self._outstanding if offset not in done]
            return min(left, default=self._end)

    def _give_up(self, pending: Pending) -> None:
        """The sync takes too long. The leader, should it return, finds the volume failed."""
        self.fail()
        with self._lock:
            if pending.lead or pending.done:
                return
            if pending in self._queue:
                self._queue.remove(pending)
        raise NodeDown(f"volume {self.number:08x}: no sync within {SYNC_S_MAX:.0f} s")

    # The end of it

    def fail(self) -> None:
        """Take no more reservations and commits, for good."""
        self.failed = True
        self._note_failure()

    def _note_failure(self) -> None:
        """Say so in the index, without ``_lock``: whoever writes the index may wait for that."""
        if self.failed and not self._noted:
            self._noted = True
            with contextlib.suppress(NodeError):  # it is a hint to later opens, not a promise
                self._index.set_state(self.number, READ_ONLY)

    def seal(self) -> None:
        """Take no more reservations; closed, and its flock free, once the last writer is done."""
        self._note_failure()
        with self._lock:
            self._sealed = True
        self._close_if_idle()

    def close(self) -> None:
        """Close the file although writers are left: they are lost, and find the volume failed."""
        with self._lock:
            self._sealed = self.failed = True
            self._outstanding.clear()
        self._close_if_idle()

    @property
    def closed(self) -> bool:
        return self.fd < 0

    def pin(self) -> None:
        """Keep the file open, and its flock, until ``unpin``."""
        with self._lock:
            self._pins += 1

    def unpin(self) -> None:
        with self._lock:
            self._pins -= 1
        self._close_if_idle()

    def _close_if_idle(self) -> None:
        with self._lock:
            busy = self._outstanding or self._syncing or self._pins
            if busy or not self._sealed or self.fd < 0:
                return
            descriptors = self.fd, self.direct_fd
            self.fd = self.direct_fd = -1
        for fd in descriptors:
            if fd >= 0:
                with contextlib.suppress(OSError):
                    self._disk.close(fd)

    def usable(self) -> bool:
        return not (self._sealed or self.failed)

    def _raise(self, error: OSError) -> NoReturn:
        if error.errno in FULL_ERRORS:
            raise NodeFull(f"volume {self.number:08x}: the drive is full") from error
        self.failed = True  # the index is told when the volume is sealed: ``_lock`` is held here
        raise NodeDown(f"volume {self.number:08x}: {error.strerror}") from error
