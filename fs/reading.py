"""Reading files: a handle is one pinned version and reads it to its end.

A sequential reader gets a stream of the engine, which reads ahead by ever larger batches within
the memory bound of the engine; this mount's engine is its own, so that bound and the windows'
share of ``--memory`` are the budget of the mount. Other reads fetch the windows that they touch
(``windows.py``) and nothing else. Both go by the disk cache, if there is one. A stream that is not
used for some seconds is closed, so that its memory serves others.

Concurrency: the kernel reads ahead with several requests at once. ``_lock`` orders those that one
stream serves; the bytes that it returns are valid until the next await, and the answer is
written before that.
"""

from __future__ import annotations

import errno
from time import perf_counter

import pyfuse3
import trio

from engine.opened import BufferStream, ObjectStream, OpenedObject
from fs.attributes import Stat
from fs.cache_folder import Body
from fs.disk_cache import CachedStream
from fs.errors import Refused
from fs.handles import Readable
from fs.inodes import Node
from fs.retries import Replaced
from fs.view import View
from fs.windows import WINDOW_SIZE

RUN_SIZE_MIN = 256 * 1024
"""Who has read so many bytes one after the other is a sequential reader."""

SKIP_SIZE_MAX = 2 << 20
"""A stream is read on over a gap so large: requests that the kernel made at once come unordered."""

IDLE_S = 5.0
"""A stream not used for so long is closed."""


class Stream:
    """A stream and its latest buffer."""

    __slots__ = ("_buffer", "_iterator", "_joined", "end", "start", "used_at")

    def __init__(self, stream: ObjectStream | BufferStream | CachedStream, start: int) -> None:
        self._iterator = stream
        self._buffer = memoryview(b"")
        self._joined = bytearray()
        self.start = start
        """Of the buffer, in the object."""
        self.end = start
        self.used_at = 0.0

    async def _advance(self) -> None:
        try:
            self._buffer = memoryview(await self._iterator.__anext__())
        except StopAsyncIteration:
            raise Refused(errno.EIO, "the object ended early") from None
        self.start = self.end
        self.end += len(self._buffer)

    def buffered(self, offset: int, end: int) -> Readable | None:
        """Return bytes that need not be waited for; None: not all of these."""
        if self.start <= offset and end <= self.end:
            return self._buffer[offset - self.start : end - self.start]
        return None

    async def read(self, offset: int, end: int) -> Readable:
        """Return bytes of the object; valid until the next call."""
        while self.end <= offset:
            await self._advance()
        if end <= self.end:
            return self._buffer[offset - self.start : end - self.start]
        size = end - offset
        if len(self._joined) < size:
            self._joined = bytearray(size)
        joined = memoryview(self._joined)
        done = 0
        while done < size:
            if self.end <= offset + done:
                await self._advance()
            piece = self._buffer[offset + done - self.start : end - self.start]
            joined[done : done + len(piece)] = piece
            done += len(piece)
        return joined[:size]

    async def aclose(self) -> None:
        self._buffer = memoryview(b"")
        await self._iterator.aclose()


class ReadHandle:
    """One descriptor, open for reading."""

    __slots__ = (
        "_expected",
        "_inline",
        "_lock",
        "_opened",
        "_owner",
        "_run",
        "_size",
        "_stream",
        "dropping",
        "node",
    )

    def __init__(self, owner: Reading, node: Node, opened: OpenedObject) -> None:
        self.node = node
        self.dropping = False
        self._owner = owner
        self._opened = opened
        self._inline = None if opened.inline is None else memoryview(opened.inline)
        self._size = opened.info.size
        self._expected = 0
        """Where the next read begins if it is sequential."""
        self._run = 0
        """Bytes read one after the other so far."""
        self._stream: Stream | None = None
        self._lock = trio.Lock()

    async def read(self, offset: int, size: int) -> Readable:
        if self._inline is not None:
            return self._inline[offset : offset + size]
        end = min(offset + size, self._size)
        if offset >= end:
            return b""
        follows = offset == self._expected
        self._expected = end
        self._run = self._run + end - offset if follows else end - offset
        stream = self._stream
        if stream is not None and stream.start <= offset <= stream.end + SKIP_SIZE_MAX:
            return await self._read_on(offset, end)
        if follows and end < self._size and self._run >= RUN_SIZE_MIN:
            return await self._read_on(offset, end)
        return await self._read_once(offset, end)

    def read_now(self, offset: int, size: int) -> Readable | None:
        """Return what ``read`` would, if that needs no waiting, else None."""
        if self._inline is not None:
            return self._inline[offset : offset + size]
        end = min(offset + size, self._size)
        if offset >= end:
            return b""
        follows = offset == self._expected
        run = self._run + end - offset if follows else end - offset
        stream = self._stream
        found: Readable | None = None
        if stream is not None and stream.start <= offset <= stream.end + SKIP_SIZE_MAX:
            if not self._lock.locked():
                found = stream.buffered(offset, end)
                stream.used_at = trio.current_time()
        elif not follows or end == self._size or run < RUN_SIZE_MIN:
            number = offset // WINDOW_SIZE
            window = self._owner.windows.get(self._opened.info.record.data_id, number)
            begin = number * WINDOW_SIZE
            if window is not None and end - begin <= WINDOW_SIZE:
                found = memoryview(window)[offset - begin : end - begin]
        if found is not None:
            self._expected, self._run = end, run
        return found

    async def _read_once(self, offset: int, end: int) -> Readable:
        number = offset // WINDOW_SIZE
        if (end - 1) // WINDOW_SIZE != number:
            return await self._fetch(offset, end)
        windows = self._owner.windows
        data_id = self._opened.info.record.data_id
        begin = number * WINDOW_SIZE
        window = windows.get(data_id, number)
        if window is None:
            window = await self._window(number)
            windows.put(data_id, number, window)
        return memoryview(window)[offset - begin : end - begin]

    async def _window(self, number: int) -> bytes | bytearray:
        """Return a window from the disk cache or the store."""
        begin = number * WINDOW_SIZE
        end = min(begin + WINDOW_SIZE, self._size)
        cache = self._owner.cache
        if cache is None:
            return await self._fetch(begin, end)
        body = Body(bytes(self._opened.info.record.data_id), self._size)
        found = await cache.read_block(body, number) if cache.pays else None
        if found is not None:
            return found
        began = perf_counter()
        fetched = await self._read_through(await self._opened.stream(begin, end))
        cache.observe(len(fetched), perf_counter() - began)
        if cache.pays and len(fetched) == body.length(number):
            cache.offer(body, number, fetched)
        return fetched

    async def _stream_of(self, start: int, end: int) -> ObjectStream | BufferStream | CachedStream:
        cache = self._owner.cache
        if cache is None:
            return await self._opened.stream(start, end)
        return CachedStream(cache, self._opened, start, end)

    async def _fetch(self, offset: int, end: int) -> bytes:
        return await self._read_through(await self._stream_of(offset, end))

    async def _read_through(self, stream: ObjectStream | BufferStream | CachedStream) -> bytes:
        try:
            buffers = [bytes(buffer) async for buffer in stream]
        finally:
            await stream.aclose()
        return buffers[0] if len(buffers) == 1 else b"".join(buffers)

    async def _read_on(self, offset: int, end: int) -> Readable:
        """Read by the stream, beginning one here if there is none."""
        try:
            self._lock.acquire_nowait()
        except trio.WouldBlock:
            await self._lock.acquire()
        try:
            stream = self._stream
            if stream is None:
                stream = Stream(await self._stream_of(offset, self._size), offset)
                self._stream = stream
                self._owner.streaming.add(self)
            elif not stream.start <= offset <= stream.end + SKIP_SIZE_MAX:
                # The stream moved on while this request waited.
                return await self._read_once(offset, end)
            stream.used_at = trio.current_time()
            try:
                return await stream.read(offset, end)
            except BaseException:
                self._stream = None
                self._owner.streaming.discard(self)
                await stream.aclose()  # noqa: ASYNC102  does not wait
                raise
        finally:
            self._lock.release()

    def opened_again(self) -> OpenedObject:
        """Return the version that is read here once more; the caller closes it."""
        return self._opened.again()

    @property
    def streams(self) -> bool:
        """A stream is open, which closing has to end."""
        return self._stream is not None

    async def close_idle(self, now: float) -> None:
        """Close the stream unless it was used lately or is being used."""
        stream = self._stream
        if stream is None:
            self._owner.streaming.discard(self)
        elif now - stream.used_at > IDLE_S and not self._lock.locked():
            await self._close_stream()

    async def _close_stream(self) -> None:
        stream, self._stream = self._stream, None
        self._owner.streaming.discard(self)
        if stream is not None:
            await stream.aclose()

    async def write(self, offset: int, data: bytes) -> int:
        raise Refused(errno.EBADF)

    async def flush(self) -> None:
        """Nothing was written."""

    async def fsync(self) -> None:
        """Nothing was written."""

    async def aclose(self) -> None:
        try:
            await self._close_stream()
        finally:
            await self._opened.aclose()  # noqa: ASYNC102  does not wait
            self._owner.closed(self)


class Reading:
    """Opens files of one mount for reading."""

    def __init__(self, view: View) -> None:
        self._view = view
        self.streaming: set[ReadHandle] = set()
        """Handles that hold a stream."""
        self.windows = view.windows
        self.cache = view.cache

    async def open(
        self, node: Node, *, may_push: bool, may_be_older: bool = False
    ) -> tuple[ReadHandle, bool]:
        """Return a handle on the current version, and whether the kernel may keep what it has
        in its page cache. ``may_push``: a small file's bytes may be put there before anybody
        asks for them; not for who reads past it. ``may_be_older``: the version that is open
        through this inode will do.

        Raises: Replaced: another version is open through this inode; when the kernel looks the
        name up again, it gets another inode. NoSuchKey, Unavailable, Corrupt.
        """
        if node.unlinked:
            opened = open_already(self._view, node)
        else:
            opened = await self._opened(node)
            if node.handles and node.data_id != opened.info.record.data_id:
                await opened.aclose()
                if not may_be_older:
                    raise Replaced(node)
                opened = open_already(self._view, node)
        record = opened.info.record
        keep_cache = node.cached == record.data_id
        if opened.inline and may_push and node.pristine and node.data_id == record.data_id:
            self._push(node, opened.inline)
            keep_cache = True
        node.stand_for(record.data_id)
        node.cached = record.data_id
        if node.open_stat is None:
            node.open_stat = self._view.attributes.of_file(record)
        self._view.table.opened(node)
        return ReadHandle(self, node, opened), keep_cache

    def _push(self, node: Node, data: bytes) -> None:
        """Put all bytes of a file into the kernel's page cache, so that it need not ask for them.

        Only for a pristine node. Then the kernel holds no page of it locked for a request to this
        process, for which it would wait here for ever; there is no page of another version that
        keeping the cache would keep; and the size is right, without which the last page is not
        taken for a whole one.
        """
        try:
            pyfuse3.notify_store(node.inode, 0, data)
        except OSError:
            return  # it asks then; what it took are these bytes
        self._view.tally.read_bytes += len(data)

    async def _opened(self, node: Node) -> OpenedObject:
        """Pin the version that the node stands for: a named one, that of the moment which is
        mounted, or the current one."""
        view = self._view
        version_id = node.version_id or None
        if version_id is None and view.options.at_ms is not None:
            record = (await view.paths.find(node.bucket, node.key)).record
            if record is None:
                raise Refused(errno.ENOENT)
            version_id = record.version_id
        return await view.engine.open(node.bucket, node.key, version_id=version_id)

    def closed(self, handle: ReadHandle) -> None:
        self._view.table.closed(handle.node)

    async def link_target(self, node: Node) -> bytes:
        """Return where a symbolic link leads. Raises Refused (EINVAL): it is none."""
        opened = await self._opened(node)
        async with opened:
            stat: Stat = self._view.attributes.of_file(opened.info.record)
            if not stat.is_symlink or opened.inline is None:
                raise Refused(errno.EINVAL)
            return opened.inline

    async def close_idle_forever(self) -> None:
        """Give back the memory of streams that nobody reads on."""
        while True:
            await trio.sleep(IDLE_S / 2)
            now = trio.current_time()
            for handle in list(self.streaming):
                await handle.close_idle(now)


def open_already(view: View, node: Node) -> OpenedObject:
    """Return the version that somebody reads through the inode; the caller closes it.

    Raises: Replaced: nobody does.
    """
    for handle in view.files.all():
        if handle.node is node and isinstance(handle, ReadHandle):
            return handle.opened_again()
    raise Replaced(node)
