"""What a census settles about nodes that are to be empty: proved, not believed."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from engine.cluster.membership import bump, read_rows, set_node
from engine.ids import NodeId
from engine.meta import keyspace
from engine.meta.kv import Transaction


async def after_census(tr: Transaction, named: Mapping[NodeId, int], started_ms: int) -> list[str]:
    """Take draining nodes that no chunk names as removed, and forget those that were given up.

    A drained member stays known until its administrator removes it.

    Args:
        named: how many fragments chunks have on each node; absent: none.
        started_ms: when the census began; what began to drain later has to wait for the next.
    Returns: what to log.
    """
    rows = await read_rows(tr)
    events: list[str] = []
    gone: set[NodeId] = set()
    for node_id, record in rows.nodes.items():
        if named.get(node_id) or record.state not in ("draining", "removed"):
            continue
        if record.changed_ms >= started_ms:
            continue
        member = rows.members.get(record.member) if record.member is not None else None
        if record.state == "draining":
            events.append(f"drained: {record.location}")
            set_node(tr, node_id, msgspec.structs.replace(record, state="removed"))
        elif member is None or member.state != "draining":
            events.append(f"removed: {record.location}")
            tr.clear(keyspace.node(node_id))
            for prefix in (keyspace.NODE_COUNTER + node_id, keyspace.STRAY + node_id):
                tr.clear_range(prefix, keyspace.after_prefix(prefix))
            gone.add(node_id)
            bump(tr)
    for member_id, member in rows.members.items():
        left = rows.nodes_of(member_id).keys() - gone
        if member.state == "removed" and not left:
            events.append(f"removed: {member.name}")
            tr.clear(keyspace.member(member_id))
            bump(tr)
    return events
