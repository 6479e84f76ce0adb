"""What ``lode status`` shows: drives, space, damage found and repaired, queues."""

from __future__ import annotations

from engine.ids import NodeId
from engine.meta import keyspace
from engine.meta.kv import ReadTransaction
from engine.meta.records import NodeRecord, decode_node
from engine.node.contract import NodeError, Space
from engine.services.scan import scan_prefix
from engine.store import Store
from engine.types import DriveStatus, StoreStatus

NOTHING = Space(total=0, free=0, live=0, dead=0, fragments=0)


async def store_status(store: Store) -> StoreStatus:
    drives = []
    async for key, row in scan_prefix(store.db, keyspace.NODE):
        drives.append(await _drive_status(store, NodeId(key[1:]), decode_node(row)))
    buckets = 0
    async for _ in scan_prefix(store.db, keyspace.BUCKET):
        buckets += 1
    size = objects = 0
    async for key, row in scan_prefix(store.db, keyspace.USAGE):
        value = int.from_bytes(row, "little", signed=True)
        if key.endswith(b"b"):
            size += value
        else:
            objects += value
    return StoreStatus(
        store_id=store.store_id,
        profile=str(store.profile),
        drives=drives,
        buckets=buckets,
        objects=objects,
        bytes=size,
        repair_queue=await _count(store, keyspace.REPAIR),
        garbage_queue=await _count(store, keyspace.GARBAGE),
    )


async def _drive_status(store: Store, node_id: NodeId, record: NodeRecord) -> DriveStatus:
    counters = await node_counters(store, node_id)
    node = store.pool.get(node_id)
    state, space = "missing", NOTHING
    if node is not None:
        try:
            space = await node.space()
            state = "full" if space.free <= 0 else record.state
        except NodeError:
            state = "failed"
    return DriveStatus(
        node_id=node_id.hex(),
        location=record.location,
        state=state,
        total=space.total,
        free=space.free,
        live=space.live,
        dead=space.dead,
        fragments=space.fragments,
        damaged=counters.get("damaged", 0),
        repaired=counters.get("repaired", 0),
    )


async def node_counters(store: Store, node_id: NodeId) -> dict[str, int]:
    prefix = keyspace.NODE_COUNTER + node_id

    async def body(tr: ReadTransaction) -> list[tuple[bytes, bytes]]:
        return await tr.get_range(prefix, keyspace.after_prefix(prefix))

    return {
        key[len(prefix) :].decode(): int.from_bytes(row, "little", signed=True)
        for key, row in await store.db.read(body)
    }


async def _count(store: Store, prefix: bytes) -> int:
    count = 0
    async for _ in scan_prefix(store.db, prefix):
        count += 1
    return count
