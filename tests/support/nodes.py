"""Nodes in memory with faults that a test switches on, and sources and stores made of them."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import trio

from engine.config import Profile, StoreConfig
from engine.data.context import Limiters
from engine.data.nodes import NodePool
from engine.data.reader import Segment
from engine.data.store import DataStore
from engine.data.writer import StagedData
from engine.ids import BucketId, ChunkId, DataId, FragmentId, NodeId
from engine.meta.records import ChunkData, ChunkOwner, ChunkRecord
from engine.node.contract import (
    Buffer,
    FragmentDamaged,
    FragmentInfo,
    FragmentMissing,
    NodeDown,
    NodeFull,
    Space,
)

OWNER = ChunkOwner(BucketId(b"bucket00"), b"key", 1, DataId(b"d" * 16))


class MemoryBlocking:
    """Fragments in a dict. The attributes are the faults."""

    def __init__(self) -> None:
        self.fragments: dict[FragmentId, bytearray] = {}
        self.down = False
        self.full = False
        self.cold = False
        """Nothing is in the page cache."""
        self.writes_left: int | None = None
        """So many more writes work; then the node is down."""
        self.fail_commit = False
        self.hang: threading.Event | None = None
        """Deletes wait for it."""
        self.open_writers = 0
        self.reads = 0
        self._lock = threading.Lock()

    def _check(self) -> None:
        if self.down:
            raise NodeDown

    def read_into(
        self, fragment: FragmentId, offset: int, buffers: Sequence[memoryview], *, nowait: bool
    ) -> bool:
        self._check()
        if nowait and self.cold:
            return False
        self.reads += 1
        content = self.fragments.get(fragment)
        if content is None:
            raise FragmentMissing
        if offset + sum(map(len, buffers)) > len(content):
            raise FragmentDamaged
        for buffer in buffers:
            buffer[:] = content[offset : offset + len(buffer)]
            offset += len(buffer)
        return True

    def open_writer(self, fragment: FragmentId, size_max: int) -> MemoryWriter:
        self._check()
        if self.full:
            raise NodeFull
        return MemoryWriter(self, fragment, size_max)

    def count_writers(self, change: int) -> None:
        with self._lock:
            self.open_writers += change

    def delete(self, fragments: Sequence[FragmentId]) -> None:
        self._check()
        if self.hang is not None:
            self.hang.wait()
        for fragment in fragments:
            self.fragments.pop(fragment, None)

    def stat(self, fragment: FragmentId) -> FragmentInfo | None:
        self._check()
        content = self.fragments.get(fragment)
        return FragmentInfo(fragment, len(content)) if content is not None else None

    def list(self, after: bytes, limit: int) -> list[FragmentInfo]:
        self._check()
        found = sorted(fragment for fragment in self.fragments if fragment > after)[:limit]
        return [FragmentInfo(fragment, len(self.fragments[fragment])) for fragment in found]

    def space(self) -> Space:
        self._check()
        live = sum(map(len, self.fragments.values()))
        return Space(1 << 40, 1 << 40, live, 0, len(self.fragments))


class MemoryWriter:
    def __init__(self, node: MemoryBlocking, fragment: FragmentId, size_max: int) -> None:
        self._node = node
        self._fragment = fragment
        self._size_max = size_max
        self._content = bytearray()
        self._open = True
        node.count_writers(1)

    def write(self, buffers: Sequence[Buffer]) -> None:
        assert self._open
        self._node._check()
        if self._node.writes_left is not None:
            if self._node.writes_left == 0:
                raise NodeDown
            self._node.writes_left -= 1
        for buffer in buffers:
            self._content += buffer
        assert len(self._content) <= self._size_max, "more than was reserved"

    def commit(self) -> None:
        assert self._open
        self._node._check()
        if self._node.fail_commit:
            raise NodeDown
        self._node.fragments[self._fragment] = self._content
        self._close()

    def abort(self) -> None:
        self._close()

    def _close(self) -> None:
        if self._open:
            self._open = False
            self._node.count_writers(-1)


class MemoryNode:
    """A node over ``MemoryBlocking``; ``local=False`` makes it one of another process."""

    def __init__(self, node_id: NodeId, *, local: bool = True) -> None:
        self.node_id = node_id
        self.memory = MemoryBlocking()
        self.blocking: MemoryBlocking | None = self.memory if local else None
        self.delay_s = 0.0
        """Every call of the asynchronous side takes so long."""
        self.open_delay_s: float | None = None
        """Opening a writer takes so long, if it is another time."""
        self.commit_delay_s: float | None = None
        """The same for its commit."""
        self.pause_s = 0.0
        """A read waits so long once it has the first block and its hash."""

    async def _wait(self, delay_s: float | None = None) -> None:
        await trio.sleep(self.delay_s if delay_s is None else delay_s)

    async def read_into(
        self, fragment: FragmentId, offset: int, buffers: Sequence[memoryview]
    ) -> None:
        await self._wait()
        if self.pause_s:
            self.memory.read_into(fragment, offset, buffers[:2], nowait=False)
            await trio.sleep(self.pause_s)
        self.memory.read_into(fragment, offset, buffers, nowait=False)

    async def open_writer(self, fragment: FragmentId, size_max: int) -> AsyncMemoryWriter:
        await self._wait(self.open_delay_s)
        return AsyncMemoryWriter(self, self.memory.open_writer(fragment, size_max))

    async def delete(self, fragments: Sequence[FragmentId]) -> None:
        await self._wait()
        self.memory.delete(fragments)

    async def stat(self, fragment: FragmentId) -> FragmentInfo | None:
        await self._wait()
        return self.memory.stat(fragment)

    async def list(self, after: bytes, limit: int) -> list[FragmentInfo]:
        await self._wait()
        return self.memory.list(after, limit)

    async def space(self) -> Space:
        await self._wait()
        return self.memory.space()

    async def aclose(self) -> None:
        pass


class AsyncMemoryWriter:
    def __init__(self, node: MemoryNode, writer: MemoryWriter) -> None:
        self._node = node
        self._writer = writer

    async def write(self, buffers: Sequence[Buffer]) -> None:
        await self._node._wait()
        self._writer.write(buffers)

    async def commit(self) -> None:
        await self._node._wait(self._node.commit_delay_s)
        self._writer.commit()

    async def abort(self) -> None:
        self._writer.abort()


class BytesSource:
    """Gives ``content`` in steps of at most ``step`` bytes."""

    def __init__(self, content: bytes, *, step: int = 1 << 30) -> None:
        self._left = memoryview(content)
        self._step = step
        self.ends_seen = 0

    async def readinto(self, buffer: memoryview) -> int:
        await trio.lowlevel.checkpoint()
        count = min(len(buffer), self._step, len(self._left))
        buffer[:count] = self._left[:count]
        self._left = self._left[count:]
        if count == 0:
            self.ends_seen += 1
        return count


class Cluster:
    """A ``DataStore`` over memory nodes, and what a test wants to see of it."""

    def __init__(self, store: DataStore, nodes: list[MemoryNode], clock: list[float]) -> None:
        self.store = store
        self.nodes = nodes
        self.clock = clock
        """[seconds]: the pool's clock; a test moves it."""
        self.damage: list[tuple[ChunkId, int, str]] = []

    @property
    def fragments(self) -> int:
        return sum(len(node.memory.fragments) for node in self.nodes)

    @property
    def open_writers(self) -> int:
        return sum(node.memory.open_writers for node in self.nodes)

    def holder(self, record: ChunkRecord, index: int) -> MemoryBlocking:
        """Return the node that has fragment ``index``."""
        [node] = [node for node in self.nodes if node.node_id == record.nodes[index]]
        return node.memory

    def fragment(self, chunk_id: ChunkId, record: ChunkRecord, index: int) -> bytearray:
        content = self.holder(record, index).fragments
        return content[FragmentId(chunk_id + bytes([index]))]

    async def put(
        self, content: bytes, *, announce: bool = True, step: int = 1 << 30
    ) -> StagedData:
        size = len(content) if announce else None
        return await self.store.stage(
            BytesSource(content, step=step), size=size, algorithms=frozenset()
        )

    async def get(self, staged: StagedData, start: int = 0, end: int | None = None) -> bytes:
        """Read bytes ``start`` to ``end`` of a chunked object back."""
        stream = self.store.stream(list(segments(staged, start, end)))
        try:
            return b"".join([bytes(view) async for view in stream])
        finally:
            await stream.aclose()


def segments(staged: StagedData, start: int = 0, end: int | None = None) -> Iterator[Segment]:
    assert isinstance(staged.data, ChunkData)
    end = staged.size if end is None else end
    at = 0
    for chunk_id, record in staged.chunk_records(OWNER):
        first, last = max(start - at, 0), min(end - at, record.size)
        if first < last:
            yield Segment(chunk_id, record, first, last)
        at += record.size


def small_config(**changes: object) -> StoreConfig:
    """Sizes at which a few KiB already make several chunks and stripes."""
    sizes: dict[str, object] = {
        "data": Path("unused"),
        "chunk_size": 10_000,
        "block_size": 256,
        "inline_record_max": 16,
        "inline_max": 64,
        "replicated_max": 300,
        "memory": 1 << 20,
    }
    return StoreConfig(**{**sizes, **changes})  # type: ignore[arg-type]  (keywords by name)


@asynccontextmanager
async def open_cluster(
    profile: str = "4+2",
    *,
    nodes: int | None = None,
    remote: Sequence[int] = (),
    config: StoreConfig | None = None,
    limiters: Limiters | None = None,
) -> AsyncIterator[Cluster]:
    """Open a store over ``nodes`` memory nodes (default: as many as the profile is wide).

    ``remote``: positions of nodes that do not live in this process.
    """
    parsed = Profile.parse(profile)
    made = [
        MemoryNode(NodeId(b"node%04d" % position), local=position not in remote)
        for position in range(nodes or parsed.width)
    ]
    clock = [time.monotonic()]
    pool = NodePool(clock=lambda: clock[0])
    for node in made:
        pool.add(node)
    counter = itertools.count(1)
    async with trio.open_nursery() as nursery:
        store = DataStore(
            config or small_config(),
            parsed,
            pool,
            new_chunk_id=lambda: ChunkId(b"session-ID" + next(counter).to_bytes(6, "big")),
            on_damage=lambda chunk_id, index, kind: cluster.damage.append((chunk_id, index, kind)),
            nursery=nursery,
            limiters=limiters,
        )
        cluster = Cluster(store, made, clock)
        yield cluster
        nursery.cancel_scope.cancel()
