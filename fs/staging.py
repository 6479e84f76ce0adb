"""Where bytes wait that are written and not yet committed: in memory, in a private file, or on
their way into the store.

=========  ==================================================  =================================
content    when                                                how it ends
=========  ==================================================  =================================
memory     up to ``MEMORY_MAX`` bytes                          grows into one of the other two
stream     longer, written from beginning to end               a staged object; or back, to a file
file       longer, written in any order, or read back          stays until the last close
=========  ==================================================  =================================

Private files have no name (``O_TMPFILE``), so a process that is killed leaves none behind. What
could not be committed gets a name in the recovery folder.
"""

from __future__ import annotations

import errno
import os
import re
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Protocol, TypeVar

import trio

from engine.engine import Engine
from engine.staging import StagedObject

T = TypeVar("T")

MEMORY_MAX = 256 * 1024
"""Bytes of one file that stay in memory."""

INLINE_IO_MAX = 64 * 1024
"""Writing so many bytes to the page cache takes less time than a trip to a thread."""

COPY_SIZE = 1 << 20
QUEUE_MAX = 8
"""Writes of the kernel, at most 1 MiB each, that wait on their way into the store."""

RECOVERY = "recovery"

Readable = bytes | bytearray | memoryview


class Content(Protocol):
    """Bytes that can be read and changed anywhere. One task at a time."""

    @property
    def size(self) -> int: ...

    async def read(self, offset: int, size: int) -> Readable:
        """Return up to ``size`` bytes; fewer only at the end."""

    async def write(self, offset: int, data: bytes) -> None: ...

    async def truncate(self, size: int) -> None:
        """Cut, or extend with zeros."""

    def source(self) -> ContentSource:
        """Return all bytes, from the first one, for the engine to pull."""

    async def keep(self, folder: StagingFolder, name: str) -> Path:
        """Give the bytes a name in the recovery folder; durable on return."""

    async def aclose(self) -> None: ...


class ContentSource:
    """A content from its beginning to its end, for the engine to pull."""

    __slots__ = ("_content", "_offset")

    def __init__(self, content: MemoryContent | FileContent) -> None:
        self._content = content
        self._offset = 0

    async def readinto(self, buffer: memoryview) -> int:
        count = await self._content.readinto(self._offset, buffer)
        self._offset += count
        return count


class MemoryContent:
    __slots__ = ("_bytes",)

    def __init__(self, initial: bytes = b"") -> None:
        self._bytes = bytearray(initial)

    @property
    def size(self) -> int:
        return len(self._bytes)

    async def read(self, offset: int, size: int) -> Readable:
        return bytes(self._bytes[offset : offset + size])

    async def readinto(self, offset: int, buffer: memoryview) -> int:
        data = self._bytes[offset : offset + len(buffer)]
        buffer[: len(data)] = data
        return len(data)

    async def write(self, offset: int, data: bytes) -> None:
        if offset > len(self._bytes):
            self._bytes.extend(bytes(offset - len(self._bytes)))
        self._bytes[offset : offset + len(data)] = data

    async def truncate(self, size: int) -> None:
        if size < len(self._bytes):
            del self._bytes[size:]
        else:
            self._bytes.extend(bytes(size - len(self._bytes)))

    def source(self) -> ContentSource:
        return ContentSource(self)

    async def keep(self, folder: StagingFolder, name: str) -> Path:
        return await folder.keep_bytes(name, self._bytes)

    async def aclose(self) -> None:
        """Nothing to give back."""


class StagingFolder:
    """Makes private files, and keeps in its recovery folder what could not be committed."""

    def __init__(self, path: Path, *, threads: int = 8) -> None:
        """``path`` has to be there, private to the user of the mount."""
        self._path = path
        self._limiter = trio.CapacityLimiter(threads)

    async def run(self, call: Callable[[], T]) -> T:
        """Run what waits for the disk in a thread; it ends before cancellation is seen."""
        return await trio.to_thread.run_sync(call, limiter=self._limiter)

    def make_file(self) -> int:
        """Return the descriptor of a new file without a name; the caller closes it."""
        try:
            return os.open(self._path, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)
        except OSError as error:
            if error.errno not in (errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL):
                raise
        descriptor, name = tempfile.mkstemp(dir=self._path, prefix=".staged-")
        os.unlink(name)
        return descriptor

    async def make(self, initial: bytes | bytearray = b"") -> FileContent:
        """Raises OSError."""
        content = FileContent(self, self.make_file())
        if initial:
            await content.write(0, bytes(initial))
        return content

    async def keep_bytes(self, name: str, data: bytes | bytearray) -> Path:
        content = await self.make(data)
        try:
            return await content.keep(self, name)
        finally:
            await content.aclose()

    async def keep_file(self, descriptor: int, name: str) -> Path:
        return await self.run(partial(self._keep_file, descriptor, name))

    def _keep_file(self, descriptor: int, name: str) -> Path:
        folder = self._path / RECOVERY
        folder.mkdir(mode=0o700, exist_ok=True)
        safe = re.sub(r"[^\w.-]", "_", name)[-100:]
        for number in range(1_000_000):
            path = folder / f"{number:06d}-{safe}"
            try:
                target = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
                break
            except FileExistsError:
                continue
        else:
            raise OSError(errno.ENOSPC, f"{folder} is full of names")
        # A copy and no link: a file that had a name once has no links left to be made from.
        try:
            size, offset = os.fstat(descriptor).st_size, 0
            while offset < size:
                count = os.copy_file_range(descriptor, target, size - offset, offset, offset)
                if count == 0:
                    raise OSError(errno.EIO, "the staged file ends early")
                offset += count
            os.fsync(target)
        finally:
            os.close(target)
        self._sync_folder(folder)
        return path

    @staticmethod
    def _sync_folder(folder: Path) -> None:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


class FileContent:
    __slots__ = ("_descriptor", "_folder", "_size")

    def __init__(self, folder: StagingFolder, descriptor: int) -> None:
        """Take over ``descriptor``, of an empty file."""
        self._folder = folder
        self._descriptor = descriptor
        self._size = 0

    @property
    def size(self) -> int:
        return self._size

    async def read(self, offset: int, size: int) -> Readable:
        if size <= INLINE_IO_MAX:
            return os.pread(self._descriptor, size, offset)
        return await self._folder.run(partial(os.pread, self._descriptor, size, offset))

    async def readinto(self, offset: int, buffer: memoryview) -> int:
        return await self._folder.run(partial(os.preadv, self._descriptor, [buffer], offset))

    async def write(self, offset: int, data: bytes) -> None:
        if len(data) <= INLINE_IO_MAX:
            self._write(offset, data)
        else:
            await self._folder.run(partial(self._write, offset, data))
        self._size = max(self._size, offset + len(data))

    def _write(self, offset: int, data: bytes) -> None:
        rest = memoryview(data)
        while rest:
            count = os.pwrite(self._descriptor, rest, offset)
            offset += count
            rest = rest[count:]

    async def truncate(self, size: int) -> None:
        await self._folder.run(partial(os.ftruncate, self._descriptor, size))
        self._size = size

    def source(self) -> ContentSource:
        return ContentSource(self)

    async def keep(self, folder: StagingFolder, name: str) -> Path:
        return await folder.keep_file(self._descriptor, name)

    async def aclose(self) -> None:
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            # In a thread: letting go of a large file frees all its blocks.
            await self._folder.run(partial(os.close, descriptor))


class StreamContent:
    """Bytes that go into the store as they are written; only the next one can be written.

    Concurrency: the task in the nursery pulls from the channel; everything else is the writer's.
    """

    def __init__(self, engine: Engine, nursery: trio.Nursery, first: bytes) -> None:
        self._engine = engine
        self._send, self._receive = trio.open_memory_channel[bytes](QUEUE_MAX)
        self._rest = memoryview(first)
        self._scope = trio.CancelScope()
        self._done = trio.Event()
        self._staged: StagedObject | None = None
        self._error: Exception | None = None
        self.size = len(first)
        nursery.start_soon(self._run)

    async def _run(self) -> None:
        try:
            with self._scope:
                self._staged = await self._engine.stage(self, size=None)
        except Exception as error:  # noqa: BLE001  raised to the writer, in its request
            self._error = error
        finally:
            self._receive.close()
            self._done.set()

    async def readinto(self, buffer: memoryview) -> int:
        """The engine pulls."""
        while not self._rest:
            try:
                self._rest = memoryview(await self._receive.receive())
            except trio.EndOfChannel:
                return 0
        count = min(len(buffer), len(self._rest))
        buffer[:count] = self._rest[:count]
        self._rest = self._rest[count:]
        return count

    async def append(self, data: bytes) -> None:
        """Raises what the store raises: what was written before is lost then as well."""
        try:
            await self._send.send(data)
        except trio.BrokenResourceError:
            await self._done.wait()  # noqa: ASYNC120  it only finds out why
            raise self._failure() from None
        self.size += len(data)

    async def finish(self) -> StagedObject:
        """Return all that was written, durable; the caller commits or discards it.

        May be called again: a commit that failed can be repeated.
        """
        self._send.close()
        await self._done.wait()
        if self._staged is None:
            raise self._failure()
        return self._staged

    def _failure(self) -> Exception:
        return self._error or OSError(errno.EIO, "the mount is ending")

    async def aclose(self) -> None:
        """Drop what was written and not committed."""
        self._scope.cancel()
        self._send.close()
        await self._done.wait()
        if self._staged is not None:
            staged, self._staged = self._staged, None
            await staged.discard()

    def committed(self) -> None:
        """The staged bytes are an object's now."""
        self._staged = None
