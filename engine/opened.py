"""Opened objects: one version, pinned, and its bytes as a stream."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Iterator
from types import TracebackType
from typing import TypeVar

from engine.data.reader import ChunkStream, Segment
from engine.data.store import DataStore
from engine.errors import Corrupt, InvalidRange
from engine.ids import ChunkId
from engine.meta import keyspace
from engine.meta.kv import ReadTransaction
from engine.meta.records import (
    ChunkData,
    ChunkRecord,
    InlineData,
    InlineRow,
    PartData,
    VersionRecord,
    decode_chunk,
    decode_manifest,
    decode_part,
)
from engine.store import Store
from engine.types import ObjectInfo

T = TypeVar("T")


class BufferStream:
    """A stream of one buffer, for bytes that are in memory already."""

    __slots__ = ("_buffer",)

    def __init__(self, buffer: bytes | memoryview) -> None:
        self._buffer: bytes | memoryview | None = buffer

    def __aiter__(self) -> AsyncIterator[bytes | memoryview]:
        return self

    async def __anext__(self) -> bytes | memoryview:
        buffer, self._buffer = self._buffer, None
        if not buffer:
            raise StopAsyncIteration
        return buffer

    async def aclose(self) -> None:
        self._buffer = None


class ObjectStream:
    """The bytes of an object whose pieces are chunks and, for small parts, bytes in memory."""

    __slots__ = ("_data", "_first", "_pieces", "_pushed_back", "_stream")

    def __init__(self, data: DataStore, pieces: AsyncGenerator[Segment | bytes, None]) -> None:
        self._data = data
        self._pieces = pieces
        self._stream: ChunkStream | None = None
        self._pushed_back: bytes | None = None
        self._first: bytes | memoryview | None = None

    async def prime(self) -> None:
        """Read and verify the first bytes now; iterating begins with them."""
        self._first = await self.__anext__()

    def __aiter__(self) -> AsyncIterator[bytes | memoryview]:
        return self

    async def __anext__(self) -> bytes | memoryview:
        if self._first is not None:
            first, self._first = self._first, None
            return first
        while True:
            if self._stream is not None:
                async for buffer in self._stream:
                    return buffer
                await self._stream.aclose()
                self._stream = None
            if self._pushed_back is not None:
                piece: Segment | bytes = self._pushed_back
                self._pushed_back = None
            else:
                piece = await self._pieces.__anext__()
            if isinstance(piece, bytes):
                return piece
            self._stream = self._data.stream(self._run_of_segments(piece))

    async def _run_of_segments(self, first: Segment) -> AsyncGenerator[Segment, None]:
        """Yield segments up to the next piece in memory, so that reading ahead spans them."""
        yield first
        async for piece in self._pieces:
            if isinstance(piece, bytes):
                self._pushed_back = piece
                return
            yield piece

    async def aclose(self) -> None:
        """Release buffers; the stream ends. Does not wait for a disk."""
        self._first = None
        if self._stream is not None:
            await self._stream.aclose()
            self._stream = None
        # A task that still reads ahead is being cancelled, and ends the pieces itself.
        with contextlib.suppress(RuntimeError):
            await self._pieces.aclose()


class OpenedObject:
    """One version, pinned: readable until ``aclose`` whatever happens to the key meanwhile."""

    __slots__ = ("_pin", "_store", "info", "inline")

    def __init__(self, store: Store, info: ObjectInfo, inline: bytes | None, pin: int) -> None:
        """Take over ``pin``, of ``Sessions.read_started``."""
        self._store = store
        self._pin = pin
        self.info = info
        self.inline = inline
        """All bytes of a small object, else None."""

    async def stream(self, start: int, end: int) -> ObjectStream | BufferStream:
        """Return the bytes ``start`` to ``end`` (exclusive) as an async iterator of buffers.

        The first bytes are read and verified on return, so that damage beyond repair shows as
        an error here and not in the middle. Each buffer is valid until the next one is asked
        for. The caller closes the stream.

        Raises: InvalidRange, Corrupt, Unavailable.
        """
        if not 0 <= start <= end <= self.info.size:
            raise InvalidRange(self.info.size)
        if self.inline is not None:
            return BufferStream(memoryview(self.inline)[start:end])
        if start == end:
            return BufferStream(b"")
        pieces = _pieces(self._store, self.info.record, start, end)
        stream = ObjectStream(self._store.data, pieces)
        try:
            await stream.prime()
        except BaseException:
            await stream.aclose()
            raise
        return stream

    def again(self) -> OpenedObject:
        """Return the same version once more, to be closed on its own; call before ``aclose``."""
        pin = self._store.sessions.read_shared(self._pin)
        return OpenedObject(self._store, self.info, self.inline, pin)

    async def aclose(self) -> None:
        self._store.sessions.read_ended(self._pin)

    async def __aenter__(self) -> OpenedObject:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.aclose()


async def _chunk_record(store: Store, chunk_id: ChunkId) -> ChunkRecord:
    async def body(tr: ReadTransaction) -> bytes | None:
        return await tr.get(keyspace.chunk(chunk_id))

    row = await store.db.read(body)
    if row is None:
        raise Corrupt(f"chunk {chunk_id.hex()} has no record")
    return decode_chunk(row)


def _between(pieces: Iterable[tuple[T, int]], start: int, end: int) -> Iterator[tuple[T, int, int]]:
    """Yield (piece, first, end) for the pieces of given sizes that hold bytes ``start`` to
    ``end`` of them all; positions are those within the piece."""
    offset = 0
    for piece, size in pieces:
        if offset >= end:
            return
        first, last = max(start - offset, 0), min(end - offset, size)
        if first < last:
            yield piece, first, last
        offset += size


async def _pieces(
    store: Store, record: VersionRecord, start: int, end: int
) -> AsyncGenerator[Segment | bytes, None]:
    """Yield what to read, in order, or the bytes themselves of small parts; chunk records are
    looked up as they are needed."""
    match record.data:
        case ChunkData(chunks=chunks):
            for chunk_id, first, last in _between(chunks, start, end):
                yield Segment(chunk_id, await _chunk_record(store, chunk_id), first, last)
        case PartData(upload_id=upload_id):
            for number, begin, stop in _between(await read_manifest(store, record), start, end):

                async def read_part(
                    tr: ReadTransaction, key: bytes = keyspace.part(upload_id, number)
                ) -> tuple[bytes | None, bytes | None]:
                    row = await tr.get(key)
                    if row is None:
                        return None, None
                    part = decode_part(row)
                    if isinstance(part.data, InlineRow):
                        return row, await tr.get(keyspace.inline(part.data_id))
                    return row, None

                row, inline = await store.db.read(read_part)
                if row is None:
                    raise Corrupt(f"part {number} of upload {upload_id.hex()} has no record")
                part = decode_part(row)
                match part.data:
                    case ChunkData(chunks=chunks):
                        for chunk_id, first, last in _between(chunks, begin, stop):
                            chunk = await _chunk_record(store, chunk_id)
                            yield Segment(chunk_id, chunk, first, last)
                    case InlineData(data=data):
                        yield data[begin:stop]
                    case _:
                        if inline is None:
                            raise Corrupt(f"part {number} of upload {upload_id.hex()} has no bytes")
                        yield inline[begin:stop]
        case _:
            raise AssertionError("inline objects are not read by segments")


async def read_manifest(store: Store, record: VersionRecord) -> list[tuple[int, int]]:
    """Return (part number, size) of a multipart object's parts, ascending."""
    assert isinstance(record.data, PartData)
    key = keyspace.manifest(record.data.upload_id)

    async def body(tr: ReadTransaction) -> bytes | None:
        return await tr.get(key)

    row = await store.db.read(body)
    if row is None:
        raise Corrupt(f"upload {record.data.upload_id.hex()} has no manifest")
    return decode_manifest(row).parts


class StreamSource:
    """The bytes of a stream as a ``Source``."""

    __slots__ = ("_iterator", "_rest")

    def __init__(self, stream: ObjectStream | BufferStream) -> None:
        self._iterator = stream.__aiter__()
        self._rest = memoryview(b"")

    async def readinto(self, buffer: memoryview) -> int:
        while not self._rest:
            try:
                self._rest = memoryview(await self._iterator.__anext__())
            except StopAsyncIteration:
                return 0
        size = min(len(buffer), len(self._rest))
        buffer[:size] = self._rest[:size]
        self._rest = self._rest[size:]
        return size
