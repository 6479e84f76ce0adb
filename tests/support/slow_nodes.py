"""Nodes that answer late, or not any more, put before the nodes of a real store."""

from __future__ import annotations

from collections.abc import Sequence

import trio

from engine.data.nodes import NodePool
from engine.ids import FragmentId, NodeId
from engine.node.contract import Buffer, FragmentInfo, Node, NodeDown, Space, Writer


class SlowNode:
    """A node as one of another process is seen: it has no plain functions, and takes time."""

    blocking = None

    def __init__(self, node: Node, delay_s: float) -> None:
        self._node = node
        self.node_id: NodeId = node.node_id
        self.delay_s = delay_s
        """Every call takes so much longer."""
        self.gone = False
        self.calls = 0
        self.refused = 0
        """Calls since it is gone."""

    async def _reach(self) -> Node:
        self.calls += 1
        await trio.sleep(self.delay_s)
        if self.gone:
            self.refused += 1
            raise NodeDown("gone")
        return self._node

    async def read_into(
        self, fragment: FragmentId, offset: int, buffers: Sequence[memoryview]
    ) -> None:
        await (await self._reach()).read_into(fragment, offset, buffers)

    async def open_writer(self, fragment: FragmentId, size_max: int) -> SlowWriter:
        node = await self._reach()
        return SlowWriter(self, await node.open_writer(fragment, size_max))

    async def delete(self, fragments: Sequence[FragmentId]) -> None:
        await (await self._reach()).delete(fragments)

    async def stat(self, fragment: FragmentId) -> FragmentInfo | None:
        return await (await self._reach()).stat(fragment)

    async def list(self, after: bytes, limit: int) -> list[FragmentInfo]:
        return await (await self._reach()).list(after, limit)

    async def space(self) -> Space:
        return await (await self._reach()).space()

    async def aclose(self) -> None:
        await self._node.aclose()


class SlowWriter:
    def __init__(self, node: SlowNode, writer: Writer) -> None:
        self._node = node
        self._writer = writer

    async def write(self, buffers: Sequence[Buffer]) -> None:
        await self._node._reach()
        await self._writer.write(buffers)

    async def commit(self) -> None:
        await self._node._reach()
        await self._writer.commit()

    async def abort(self) -> None:
        await self._writer.abort()


def slow_down(pool: NodePool, delay_s: float) -> list[SlowNode]:
    """Put a ``SlowNode`` before every node of the pool, and return them."""
    slow = []
    for node_id in pool.ids():
        node = pool.get(node_id)
        if node is not None:
            slow.append(SlowNode(node, delay_s))
            pool.add(slow[-1])
    return slow
