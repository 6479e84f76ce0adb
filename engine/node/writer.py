"""One fragment on its way into a volume."""

from __future__ import annotations

import contextlib
import ctypes
import errno
from collections.abc import Sequence
from typing import TYPE_CHECKING, NoReturn

from awscrt.checksums import crc64nvme

from engine.ids import FragmentId
from engine.node.contract import Buffer, NodeDown, NodeError, NodeFull
from engine.node.disk import write_all
from engine.node.index import Update
from engine.node.needle import NEEDLE_OVERHEAD, PAGE
from engine.node.volume import FULL_ERRORS, Extent, Pending, Volume

if TYPE_CHECKING:
    from engine.node.drive import Drive

_WRITEBACK_SIZE = 8 << 20
"""The kernel is asked to begin writing whenever so much came: the sync at the end is short then."""

_DROP_SIZE_MIN = 4 << 20
"""Payloads from here on do not stay in the page cache (docs/decisions/0004)."""


class FragmentWriter:
    """A ``BlockingWriter``: streams a payload into a reserved extent.

    The payload's CRC64 goes into the commit record. It costs 20 µs per MiB, and lets recovery
    tell a whole needle from one of which a crash left a part.
    """

    __slots__ = (
        "_begin",
        "_crc",
        "_direct",
        "_done",
        "_drive",
        "_extent",
        "_flushed",
        "_fragment",
        "_promised",
        "_size",
        "_size_max",
        "_volume",
    )

    def __init__(
        self,
        drive: Drive,
        fragment: FragmentId,
        size_max: int,
        *,
        volume: Volume,
        extent: Extent,
        promised: int,
    ) -> None:
        """
        Args:
            promised: bytes that the drive holds back until they are written or given up.
        """
        self._drive = drive
        self._fragment = fragment
        self._size_max = size_max
        self._volume = volume
        self._extent = extent
        self._promised = promised
        self._direct = extent.extended
        self._begin = extent.offset + NEEDLE_OVERHEAD
        self._size = 0
        self._flushed = 0
        self._crc = 0
        self._done = False

    def write(self, buffers: Sequence[Buffer]) -> None:
        crc, added = self._crc, 0
        for buffer in buffers:
            crc = crc64nvme(buffer, crc)
            added += len(buffer) if isinstance(buffer, (bytes, bytearray)) else buffer.nbytes
        size = self._size + added
        if size > self._size_max:
            raise ValueError(f"{size} bytes for a fragment of at most {self._size_max}")
        if self._volume.failed:
            raise NodeDown(f"volume {self._volume.number:08x} failed")
        try:
            if added:
                self._append(buffers)
            if size - self._flushed >= _WRITEBACK_SIZE:
                self._start_writeback(size)
        except OSError as error:
            self._raise(error)
        self._crc = crc
        self._size = size
        if self._promised:
            self._promised -= added
            self._drive.unpromise(added)

    def _append(self, buffers: Sequence[Buffer]) -> None:
        disk, offset = self._drive.disk, self._begin + self._size
        if self._direct:
            aligned = _aligned(buffers) if offset % PAGE == 0 else 0
            if aligned:
                try:
                    written = write_all(disk, self._volume.direct_fd, buffers[:aligned], offset)
                except OSError as error:
                    if error.errno != errno.EINVAL:
                        raise
                    aligned = written = 0  # the drive wants a larger alignment
                    self._direct = False
                if offset == self._begin + self._flushed:
                    self._flushed += written
                buffers, offset = buffers[aligned:], offset + written
        if buffers:
            write_all(disk, self._volume.fd, buffers, offset)

    def _start_writeback(self, size: int) -> None:
        begin = self._begin + self._flushed
        self._drive.disk.start_writeback(self._volume.fd, begin, size - self._flushed)
        self._drop_cached(self._flushed)
        self._flushed = size

    def _drop_cached(self, size: int) -> None:
        """Let the first ``size`` bytes go from the page cache, as far as they are written."""
        if size >= _DROP_SIZE_MIN:
            self._drive.disk.drop_cached(self._volume.fd, self._begin, size)

    def commit(self) -> None:
        try:
            self._volume.write_commit(self._extent, self._size, self._crc)
            update = Update(inserts=[(self._fragment, self._extent.offset, self._size)])
            self._volume.commit(Pending([self._extent], update))
        except NodeError:
            self.abort()
            raise
        self._finish()
        if not self._direct:
            with contextlib.suppress(OSError):  # advice: the fragment is safe already
                self._drop_cached(self._size)
        if update.replaced:
            # Without a tombstone, the loss of the index would bring the older needle back.
            self._drive.bury(update.replaced)

    def abort(self) -> None:
        if not self._done:
            self._finish()
            self._volume.abort(self._extent)

    def _finish(self) -> None:
        self._done = True
        if self._promised:
            self._drive.unpromise(self._promised)

    def _raise(self, error: OSError) -> NoReturn:
        if error.errno in FULL_ERRORS:
            raise NodeFull(f"{self._drive.path}: the drive is full") from error
        raise NodeDown(f"{self._drive.path}: write: {error.strerror}") from error


def _aligned(buffers: Sequence[Buffer]) -> int:
    """Return how many buffers, from the first on, can be written past the page cache."""
    for count, buffer in enumerate(buffers):
        if not isinstance(buffer, memoryview) or buffer.readonly or buffer.nbytes % PAGE:
            return count
        if ctypes.addressof(ctypes.c_char.from_buffer(buffer)) % PAGE:
            return count
    return len(buffers)
