"""What ``lode status`` shows: members, drives, space, what the census proved, queues and work."""

from __future__ import annotations

import trio

from engine.cluster.membership import Rows, read_rows, worse
from engine.ids import NodeId
from engine.meta import keyspace
from engine.meta.kv import ReadTransaction
from engine.meta.read_only import read_only_reason
from engine.meta.records import NodeRecord
from engine.node.contract import NodeError, Space
from engine.services.census import census_status
from engine.services.progress import running_work
from engine.services.scan import scan_prefix
from engine.store import Store
from engine.types import CensusStatus, DriveStatus, MemberStatus, StoreStatus

NOTHING = Space(total=0, free=0, live=0, dead=0, fragments=0)
ANSWER_S_MAX = 3.0
FULL_BELOW = 1 << 20
"""A drive that has less to give is full: few of the smallest fragments find room in it."""


async def store_status(store: Store) -> StoreStatus:
    rows = await store.db.read(read_rows)
    found: dict[NodeId, DriveStatus] = {}
    async with trio.open_nursery() as nursery:
        for node_id in rows.nodes:
            nursery.start_soon(_drive_status, store, rows, node_id, found)
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
    census = await census_status(store)
    read_only = await read_only_reason(store.db)
    drives = [found[node_id] for node_id in rows.nodes]
    return StoreStatus(
        store_id=store.store_id,
        profile=str(store.profile),
        drives=drives,
        buckets=buckets,
        objects=objects,
        bytes=size,
        repair_queue=await _count(store, keyspace.REPAIR),
        garbage_queue=await _count(store, keyspace.GARBAGE),
        members=_members(rows),
        domains=store.pool.domains(),
        census=census,
        work=await running_work(store),
        warnings=[
            *([] if read_only is None else [f"the store is read-only: {read_only}"]),
            *_warnings(store, drives, census),
        ],
    )


def _members(rows: Rows) -> list[MemberStatus]:
    found = []
    for member_id, record in rows.members.items():
        nodes = rows.nodes_of(member_id).values()
        state = record.state
        if state == "draining" and all(node.state == "removed" for node in nodes):
            state = "drained"
        found.append(
            MemberStatus(
                member_id=member_id.hex(),
                name=record.name,
                address=record.address,
                zone=record.zone,
                rack=record.rack,
                host=record.host,
                state=state,
                health=record.health,
                since_ms=record.health_ms,
                version=record.version,
                drives=len(nodes),
            )
        )
    return sorted(found, key=lambda member: member.name)


def _warnings(store: Store, drives: list[DriveStatus], census: CensusStatus | None) -> list[str]:
    width = store.profile.width
    domains, keeping = store.pool.domains(), store.pool.keeping()
    warnings = []
    if keeping < width:
        warnings.append(
            f"{width} drives are needed to keep all fragments by {store.profile}, there are "
            f"{keeping} that are not lost or leaving"
        )
    elif domains < width:
        share = -(-width // max(domains, 1))
        warnings.append(
            f"{domains} failure domains for {width} fragments: up to {share} fragments of a chunk "
            f"share one, and {store.profile} may not survive the loss of a domain"
        )
    ill = sum(drive.state in ("suspect", "down", "lost", "failed", "missing") for drive in drives)
    if ill:
        warnings.append(f"{ill} of {len(drives)} drives do not answer")
    if census is None:
        warnings.append("no census was taken yet: nobody knows whether all fragments are there")
        return warnings
    if census.chunks_unreadable:
        warnings.append(f"{census.chunks_unreadable} chunks cannot be read now")
    if census.chunks_at_risk:
        warnings.append(f"{census.chunks_at_risk} chunks have no redundancy left")
    if census.missing:
        warnings.append(f"{census.missing} fragments are missing")
    if census.unasked:
        warnings.append(f"{census.unasked} fragments are on drives that could not be asked")
    return warnings


async def _drive_status(
    store: Store, rows: Rows, node_id: NodeId, found: dict[NodeId, DriveStatus]
) -> None:
    record = rows.nodes[node_id]
    member = rows.members.get(record.member) if record.member is not None else None
    counters = await node_counters(store, node_id)
    state, space = await _look(store, node_id, record)
    if state != "missing" or record.member is not None:
        health = worse(record.health, member.health) if member is not None else record.health
        state = health if health != "up" else state
    found[node_id] = DriveStatus(
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
        member=member.name if member is not None else "",
        weight=record.weight,
    )


async def _look(store: Store, node_id: NodeId, record: NodeRecord) -> tuple[str, Space]:
    node = store.pool.get(node_id)
    if node is None:
        return "missing", NOTHING
    space = None
    if store.pool.health(node_id) not in ("down", "lost"):
        with trio.move_on_after(ANSWER_S_MAX):
            try:
                space = await node.space()
            except NodeError:
                space = None
    if space is None:
        return "failed", NOTHING
    return "full" if space.free < FULL_BELOW and record.state == "up" else record.state, space


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
