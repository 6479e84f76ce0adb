"""Opened objects: one version, pinned, and its bytes as a stream."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from types import TracebackType

from engine.data.reader import ChunkStream, Segment
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


class OpenedObject:
    """One version, pinned: readable until ``aclose`` whatever happens to the key meanwhile."""

    __slots__ = ("_store", "_token", "info", "inline")

    def __init__(self, store: Store, info: ObjectInfo, inline: bytes | None) -> None:
        self._store = store
        self._token = store.sessions.read_started() if inline is None else 0
        self.info = info
        self.inline = inline
        """All bytes of a small object, else None."""

    async def stream(self, start: int, end: int) -> ChunkStream | BufferStream:
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
        stream = self._store.data.stream(_segments(self._store, self.info.record, start, end))
        try:
            await stream.prime()
        except BaseException:
            await stream.aclose()
            raise
        return stream

    async def aclose(self) -> None:
        self._store.sessions.read_ended(self._token)

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


async def _chunk_segments(
    store: Store, chunks: Sequence[tuple[ChunkId, int]], start: int, end: int
) -> AsyncIterator[Segment]:
    offset = 0
    for chunk_id, size in chunks:
        if offset >= end:
            return
        if offset + size > start:
            record = await _chunk_record(store, chunk_id)
            first, last = max(start - offset, 0), min(end - offset, size)
            yield Segment(chunk_id, record, first, last)
        offset += size


async def _segments(
    store: Store, record: VersionRecord, start: int, end: int
) -> AsyncIterator[Segment]:
    """Yield what to read, in order; chunk records are looked up as they are needed."""
    match record.data:
        case ChunkData(chunks=chunks):
            async for segment in _chunk_segments(store, chunks, start, end):
                yield segment
        case PartData(upload_id=upload_id):
            async for number, first, last in _parts_between(store, record, start, end):

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
                        async for segment in _chunk_segments(store, chunks, first, last):
                            yield segment
                    case InlineData(data=data):
                        yield Segment.of_bytes(data[first:last])
                    case _:
                        if inline is None:
                            raise Corrupt(f"part {number} of upload {upload_id.hex()} has no bytes")
                        yield Segment.of_bytes(inline[first:last])
        case _:
            raise AssertionError("inline objects are not read by segments")


async def _parts_between(
    store: Store, record: VersionRecord, start: int, end: int
) -> AsyncIterator[tuple[int, int, int]]:
    """Yield (part number, first, end) for the parts that hold bytes ``start`` to ``end``."""
    offset = 0
    for number, size in (await read_manifest(store, record)):
        if offset >= end:
            return
        if offset + size > start:
            yield number, max(start - offset, 0), min(end - offset, size)
        offset += size


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

    def __init__(self, stream: ChunkStream | BufferStream) -> None:
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
