"""Strays: fragments that are to be deleted from a node once it can be asked.

Repair and rebalance leave them behind when they move a fragment, the collector when a node did not
answer, the census when it finds a fragment without an owner.

Runs in turn with repair and rebalance, in one service: these could otherwise move a fragment back
at the same moment.
"""

from __future__ import annotations

from typing import NamedTuple

import structlog

from engine.ids import FragmentId, NodeId, chunk_of
from engine.meta import keyspace
from engine.meta.kv import ReadTransaction, Transaction
from engine.meta.records import decode_chunk
from engine.node.contract import NodeError
from engine.store import Store

BATCH = 500


async def delete_strays(store: Store, *, keep_wanted: bool = False) -> int:
    """Delete from nodes that answer what is elsewhere now, or nowhere; return the fragments.

    Args:
        keep_wanted: leave what a rebalance is about to want exactly there: a node that was lost
            and is back need not be given again what it has.
    """
    deleted = 0
    begin: bytes | None = keyspace.STRAY
    while begin is not None:
        node_id = await _next_node(store, begin)
        if node_id is None:
            break
        deleted += await _delete_on(store, node_id, keep_wanted)
        begin = keyspace.after_prefix(keyspace.STRAY + node_id)
    if deleted:
        structlog.get_logger().info("strays deleted", fragments=deleted)
    return deleted


async def _next_node(store: Store, begin: bytes) -> NodeId | None:
    async def body(tr: ReadTransaction) -> NodeId | None:
        rows = await tr.get_range(begin, keyspace.after_prefix(keyspace.STRAY), limit=1)
        return keyspace.split_stray(rows[0][0])[0] if rows else None

    return await store.db.read(body)


async def _delete_on(store: Store, node_id: NodeId, keep_wanted: bool) -> int:
    deleted = 0
    if node_id not in store.pool.ids():
        await _forget(store, node_id)
        return 0
    begin = keyspace.STRAY + node_id
    while (node := store.pool.usable(node_id)) is not None:
        page = await _page(store, node_id, begin, keep_wanted)
        if page.last is None:
            break
        if page.strays:
            try:
                await node.delete(page.strays)
            except NodeError as error:
                store.pool.failed(node_id, error)
                break
            deleted += len(page.strays)
        await _clear(store, page.done)
        begin = keyspace.after(page.last)
    return deleted


class _Page(NamedTuple):
    last: bytes | None
    """Key of the last row; None: there is none."""
    done: list[bytes]
    """Rows that can go once ``strays`` are deleted."""
    strays: list[FragmentId]
    """Fragments that really are strays."""


async def _page(store: Store, node_id: NodeId, begin: bytes, keep_wanted: bool) -> _Page:
    async def body(tr: ReadTransaction) -> _Page:
        end = keyspace.after_prefix(keyspace.STRAY + node_id)
        rows = await tr.get_range(begin, end, limit=BATCH)
        page = _Page(rows[-1][0] if rows else None, [], [])
        for key, _ in rows:
            fragment = keyspace.split_stray(key)[1]
            chunk_id, index = chunk_of(fragment)
            row = await tr.get(keyspace.chunk(chunk_id))
            nodes = decode_chunk(row).nodes if row is not None else []
            if nodes and nodes[index] == node_id:
                page.done.append(key)
                continue
            if keep_wanted and nodes and node_id in store.pool.wanted(chunk_id, len(nodes)):
                continue
            page.done.append(key)
            page.strays.append(fragment)
        return page

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
