"""Objects in two steps: bytes first, name, attributes and conditions later.

``Engine.put`` is both at once. Who learns the attributes only after the bytes (a file system: a
file's time is set before it is closed), or may yet want the bytes back, stages them, and commits
or discards what was staged.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator

from engine.data.reader import Segment
from engine.data.writer import StagedData
from engine.ids import BucketId, DataId
from engine.meta.records import Checksum, ChunkData, ChunkOwner, InlineData
from engine.objects import DEFAULT_CHECKSUM, MD5, Objects
from engine.opened import BufferStream, ObjectStream, OpenedObject
from engine.store import Store, key_bytes
from engine.types import NO_CONDITIONS, Attributes, Conditions, ObjectInfo, Source

_NOBODY = ChunkOwner(BucketId(b""), b"", 0, DataId(b""))


class StagedObject:
    """Durable bytes that are no object yet. Whoever has it commits it, or discards it.

    A process that ends leaves its staged bytes to the collector.
    """

    __slots__ = ("_objects", "_staged", "_store")

    def __init__(self, store: Store, objects: Objects, staged: StagedData) -> None:
        self._store = store
        self._objects = objects
        self._staged = staged

    @property
    def size(self) -> int:
        return self._staged.size

    async def stream(self) -> ObjectStream | BufferStream:
        """Return all bytes as an async iterator of buffers, each valid until the next one is
        asked for; the caller closes it. Not possible any more once committed or discarded."""
        data = self._staged.data
        if isinstance(data, InlineData):
            return BufferStream(data.data)
        if not isinstance(data, ChunkData):
            return BufferStream(self._staged.inline)
        records = dict(self._staged.chunk_records(_NOBODY))
        segments = [Segment(chunk, records[chunk], 0, size) for chunk, size in data.chunks]
        return ObjectStream(self._store.data, _each(segments))

    async def commit(
        self,
        bucket: str,
        key: str,
        *,
        attributes: Attributes,
        conditions: Conditions = NO_CONDITIONS,
    ) -> ObjectInfo:
        """Make the bytes the key's new current version; durable on return.

        When it is refused the bytes stay staged: they can be committed otherwise, read, or
        discarded. Raises what ``Engine.put`` raises at its end.
        """
        digest = self._staged.digests[DEFAULT_CHECKSUM]
        checksums = [Checksum(algorithm=DEFAULT_CHECKSUM, value=digest)]
        self._staged.kept = True
        return await self._objects.commit_put(
            bucket, key, key_bytes(key), self._staged, attributes, checksums, conditions, None
        )

    async def commit_opened(
        self,
        bucket: str,
        key: str,
        *,
        attributes: Attributes,
        conditions: Conditions = NO_CONDITIONS,
    ) -> OpenedObject:
        """``commit``, and return the new version pinned: whatever others do at once, it can be
        read until the caller closes it."""
        data, inline = self._staged.data, None
        if isinstance(data, InlineData):
            inline = data.data
        elif not isinstance(data, ChunkData):
            inline = self._staged.inline
        sessions = self._store.sessions
        pin = sessions.read_started()
        try:
            info = await self.commit(bucket, key, attributes=attributes, conditions=conditions)
        except BaseException:
            sessions.read_ended(pin)
            raise
        return OpenedObject(self._store, info, inline, pin)

    async def discard(self) -> None:
        """Delete the bytes. Never raises; shielded and limited in time."""
        await self._staged.discard()


async def _each(segments: list[Segment]) -> AsyncGenerator[Segment | bytes, None]:
    for segment in segments:
        yield segment


async def stage(store: Store, objects: Objects, source: Source, size: int | None) -> StagedObject:
    algorithms = MD5 | {DEFAULT_CHECKSUM}
    staged = await store.data.stage(source, size=size, algorithms=algorithms)
    return StagedObject(store, objects, staged)
