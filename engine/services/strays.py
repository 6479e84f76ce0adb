"""Strays: fragments that are to be deleted from a node once it can be asked.

Repair and rebalance leave them behind when they move a fragment, the collector when a node did not
answer, the census when it finds a fragment without an owner.

Runs in turn with repair and rebalance, in one service: these could otherwise move a fragment back
at the same moment.
"""

from __future__ import annotations

import structlog

from engine.ids import FragmentId, NodeId, chunk_of
from engine.meta import keyspace
from engine.meta.kv import ReadTransaction, Transaction
from engine.meta.records import decode_chunk
from engine.node.contract import NodeError
from engine.store import Store

BATCH = 500


async def delete_strays(store: Store) -> int:
    """Delete from nodes that answer what is elsewhere now, or nowhere; return the fragments."""
    deleted = 0
    begin: bytes | None = keyspace.STRAY
    while begin is not None:
        node_id = await _next_node(store, begin)
        if node_id is None:
            break
        deleted += await _delete_on(store, node_id)
        begin = keyspace.after_prefix(keyspace.STRAY + node_id)
    if deleted:
        structlog.get_logger().info("strays deleted", fragments=deleted)
    return deleted


async def _next_node(store: Store, begin: bytes) -> NodeId | None:
    async def body(tr: ReadTransaction) -> NodeId | None:
        rows = await tr.get_range(begin, keyspace.after_prefix(keyspace.STRAY), limit=1)
        return keyspace.split_stray(rows[0][0])[0] if rows else None

    return await store.db.read(body)


async def _delete_on(store: Store, node_id: NodeId) -> int:
    deleted = 0
    if node_id not in store.pool.ids():
        await _forget(store, node_id)
        return 0
    while (node := store.pool.usable(node_id)) is not None:
        rows, strays = await _page(store, node_id)
        if not rows:
            break
        if strays:
            try:
                await node.delete(strays)
            except NodeError as error:
                store.pool.failed(node_id, error)
                break
            deleted += len(strays)
        await _clear(store, rows)
    return deleted


async def _page(store: Store, node_id: NodeId) -> tuple[list[bytes], list[FragmentId]]:
    """Return keys of rows, and which of their fragments really are strays."""
    prefix = keyspace.STRAY + node_id

    async def body(tr: ReadTransaction) -> tuple[list[bytes], list[FragmentId]]:
        rows = await tr.get_range(prefix, keyspace.after_prefix(prefix), limit=BATCH)
        strays = []
        for key, _ in rows:
            fragment = keyspace.split_stray(key)[1]
            chunk_id, index = chunk_of(fragment)
            row = await tr.get(keyspace.chunk(chunk_id))
            if row is None or decode_chunk(row).nodes[index] != node_id:
                strays.append(fragment)
        return [key for key, _ in rows], strays

    return await store.db.read(body)


async def _clear(store: Store, keys: list[bytes]) -> None:
    async def body(tr: Transaction) -> None:
        for key in keys:
            tr.clear(key)

    await store.db.run(body)


async def _forget(store: Store, node_id: NodeId) -> None:
    """Drop the rows of a node that the store does not know any more."""
    prefix = keyspace.STRAY + node_id

    async def body(tr: Transaction) -> None:
        if await tr.get(keyspace.node(node_id)) is None:
            tr.clear_range(prefix, keyspace.after_prefix(prefix))

    await store.db.run(body)
