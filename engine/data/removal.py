"""Deleting fragments on many nodes at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import trio

from engine.data.nodes import NodePool
from engine.ids import FragmentId, NodeId
from engine.node.contract import Node, NodeDown, NodeError


async def delete_fragments(
    pool: NodePool,
    by_node: Mapping[NodeId, Sequence[FragmentId]],
    *,
    limiter: trio.CapacityLimiter,
    abandon: bool = False,
) -> set[NodeId]:
    """Delete durably, on all nodes in parallel; return the nodes where it could not be done.

    Args:
        abandon: when cancelled, do not wait for drives that hang; their threads go on.
    Cancelled, it leaves some fragments deleted and some not.
    """
    failed: set[NodeId] = set()

    async def one(node_id: NodeId, node: Node, fragments: Sequence[FragmentId]) -> None:
        try:
            if node.blocking is not None:
                await trio.to_thread.run_sync(
                    node.blocking.delete, fragments, limiter=limiter, abandon_on_cancel=abandon
                )
            else:
                await node.delete(fragments)
        except NodeError as error:
            pool.failed(node_id, error)
            failed.add(node_id)

    async with trio.open_nursery() as nursery:
        for node_id, fragments in by_node.items():
            node = pool.get(node_id)
            if node is None:
                failed.add(node_id)
                pool.failed(node_id, NodeDown())
            else:
                nursery.start_soon(one, node_id, node, fragments)
    return failed
