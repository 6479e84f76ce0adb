"""A drive of this process as an asynchronous ``Node``."""

from __future__ import annotations

from collections.abc import Sequence

import trio

from engine.ids import FragmentId
from engine.node.contract import Buffer, FragmentInfo, NodeDown, Space
from engine.node.drive import Drive
from engine.node.writer import FragmentWriter

_INLINE_SIZE_MAX = 1 << 20
"""Copying more than that out of the page cache would hold the event loop for too long."""


class LocalWriter:
    """One call at a time. Cancellation takes effect between calls, never within one."""

    def __init__(self, writer: FragmentWriter, limiter: trio.CapacityLimiter) -> None:
        self._writer = writer
        self._limiter = limiter

    async def write(self, buffers: Sequence[Buffer]) -> None:
        await trio.to_thread.run_sync(self._writer.write, buffers, limiter=self._limiter)

    async def commit(self) -> None:
        await trio.to_thread.run_sync(self._writer.commit, limiter=self._limiter)

    async def abort(self) -> None:
        # The space is given back also when the caller is being cancelled. It takes as long as
        # the disk needs for a truncation; a disk that hangs is noticed by the sync's limit.
        with trio.CancelScope(shield=True):
            await trio.to_thread.run_sync(self._writer.abort, limiter=self._limiter)


class LocalNode:
    def __init__(self, drive: Drive, *, limiter: trio.CapacityLimiter) -> None:
        """``limiter`` bounds the worker threads; the node owns the drive and closes it."""
        self.drive = drive
        self.node_id = drive.node_id
        self.blocking: Drive | None = drive
        self._limiter = limiter
        self._closed = False

    def _open_drive(self) -> Drive:
        if self._closed:
            raise NodeDown(f"{self.drive.path} is closed")
        return self.drive

    async def read_into(
        self, fragment: FragmentId, offset: int, buffers: Sequence[memoryview]
    ) -> None:
        drive = self._open_drive()
        if sum([buffer.nbytes for buffer in buffers]) <= _INLINE_SIZE_MAX and drive.read_into(
            fragment, offset, buffers, nowait=True
        ):
            await trio.lowlevel.checkpoint()
            return
        await trio.to_thread.run_sync(
            lambda: drive.read_into(fragment, offset, buffers, nowait=False),
            limiter=self._limiter,
        )

    async def open_writer(self, fragment: FragmentId, size_max: int) -> LocalWriter:
        writer = await trio.to_thread.run_sync(
            self._open_drive().open_writer, fragment, size_max, limiter=self._limiter
        )
        return LocalWriter(writer, self._limiter)

    async def delete(self, fragments: Sequence[FragmentId]) -> None:
        await trio.to_thread.run_sync(self._open_drive().delete, fragments, limiter=self._limiter)

    async def stat(self, fragment: FragmentId) -> FragmentInfo | None:
        return await trio.to_thread.run_sync(
            self._open_drive().stat, fragment, limiter=self._limiter
        )

    async def list(self, after: bytes, limit: int) -> list[FragmentInfo]:
        return await trio.to_thread.run_sync(
            self._open_drive().list, after, limit, limiter=self._limiter
        )

    async def space(self) -> Space:
        return await trio.to_thread.run_sync(self._open_drive().space, limiter=self._limiter)

    async def aclose(self) -> None:
        """Close the drive. Calls that still run, or come later, raise NodeDown or an OSError."""
        if not self._closed:
            self._closed = True
            with trio.CancelScope(shield=True):
                await trio.to_thread.run_sync(self.drive.close, limiter=self._limiter)
