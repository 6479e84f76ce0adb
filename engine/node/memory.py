"""The memory twin of a node: the same contract, nothing durable. For tests of the data path."""

from __future__ import annotations

from collections.abc import Sequence

import trio

from engine.ids import FragmentId, NodeId
from engine.node.contract import (
    Blocking,
    Buffer,
    FragmentDamaged,
    FragmentInfo,
    FragmentMissing,
    NodeDown,
    NodeFull,
    Space,
)


class MemoryWriter:
    def __init__(self, node: MemoryNode, fragment: FragmentId, size_max: int) -> None:
        self._node = node
        self._fragment = fragment
        self._size_max = size_max
        self._content = bytearray()
        self._done = False

    async def write(self, buffers: Sequence[Buffer]) -> None:
        await trio.lowlevel.checkpoint()
        self._node.check()
        added = b"".join(buffers)
        if len(self._content) + len(added) > self._size_max:
            raise ValueError(f"a fragment of more than {self._size_max} bytes")
        self._content += added

    async def commit(self) -> None:
        await trio.lowlevel.checkpoint()
        self._node.check()
        self._done = True
        self._node.unpromise(self._size_max)
        self._node.fragments[self._fragment] = bytes(self._content)

    async def abort(self) -> None:
        if not self._done:
            self._done = True
            self._node.unpromise(self._size_max)


class MemoryNode:
    """``fragments`` may be read and damaged by tests; ``down`` makes every call fail."""

    def __init__(self, node_id: NodeId, *, capacity: int = 1 << 40) -> None:
        self.node_id = node_id
        self.blocking: Blocking | None = None
        self.fragments: dict[FragmentId, bytes] = {}
        self.capacity = capacity
        self.down = False
        self._promised = 0

    def check(self) -> None:
        if self.down:
            raise NodeDown("the node is down")

    def unpromise(self, size: int) -> None:
        self._promised -= size

    async def read_into(
        self, fragment: FragmentId, offset: int, buffers: Sequence[memoryview]
    ) -> None:
        await trio.lowlevel.checkpoint()
        self.check()
        content = self.fragments.get(fragment)
        if content is None:
            raise FragmentMissing(fragment.hex())
        if offset < 0 or offset + sum(buffer.nbytes for buffer in buffers) > len(content):
            raise FragmentDamaged(f"{fragment.hex()} has {len(content)} bytes")
        for buffer in buffers:
            flat = buffer.cast("B")
            flat[:] = content[offset : offset + flat.nbytes]
            offset += flat.nbytes

    async def open_writer(self, fragment: FragmentId, size_max: int) -> MemoryWriter:
        await trio.lowlevel.checkpoint()
        self.check()
        if self._free() < size_max:
            raise NodeFull("the node is full")
        self._promised += size_max
        return MemoryWriter(self, fragment, size_max)

    async def delete(self, fragments: Sequence[FragmentId]) -> None:
        await trio.lowlevel.checkpoint()
        self.check()
        for fragment in fragments:
            self.fragments.pop(fragment, None)

    async def stat(self, fragment: FragmentId) -> FragmentInfo | None:
        await trio.lowlevel.checkpoint()
        self.check()
        content = self.fragments.get(fragment)
        return None if content is None else FragmentInfo(fragment, len(content))

    async def list(self, after: bytes, limit: int) -> list[FragmentInfo]:
        await trio.lowlevel.checkpoint()
        self.check()
        names = sorted(fragment for fragment in self.fragments if fragment > after)[:limit]
        return [FragmentInfo(name, len(self.fragments[name])) for name in names]

    async def space(self) -> Space:
        await trio.lowlevel.checkpoint()
        self.check()
        live = sum(len(content) for content in self.fragments.values())
        return Space(self.capacity, self._free(), live, 0, len(self.fragments))

    def _free(self) -> int:
        live = sum(len(content) for content in self.fragments.values())
        return max(0, self.capacity - live - self._promised)

    async def aclose(self) -> None:
        self.down = True
