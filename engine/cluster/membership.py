"""The rows of members and nodes: what they say together, and which change follows which.

Every transaction that changes one of them calls ``bump``, so that all processes look again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import msgspec

from engine.errors import ConfigError
from engine.ids import MemberId, NodeId
from engine.meta import keyspace
from engine.meta.kv import ReadTransaction, Transaction
from engine.meta.records import MemberRecord, NodeRecord, decode_member, decode_node, encode

HEALTHS = ("up", "suspect", "down", "lost")
"""From best to worst."""

SECRET = keyspace.setting("cluster secret")
"""What all parts of the cluster know; the store is one of members since it is there."""

Row = TypeVar("Row", MemberRecord, NodeRecord)


@dataclass(frozen=True, slots=True)
class Rows:
    """All rows of one moment."""

    members: dict[MemberId, MemberRecord]
    nodes: dict[NodeId, NodeRecord]
    counter: bytes | None
    """Value of ``keyspace.CLUSTER``: differs once any of them was changed."""

    def nodes_of(self, member_id: MemberId) -> dict[NodeId, NodeRecord]:
        return {
            node_id: record for node_id, record in self.nodes.items() if record.member == member_id
        }

    def find(self, name: str) -> tuple[MemberId, MemberRecord]:
        """Return the member that a person means: by name, address or id.

        Raises: ConfigError: there is none.
        """
        for member_id, record in self.members.items():
            if name in (record.name, record.address, member_id.hex()):
                return member_id, record
        known = ", ".join(sorted(record.name for record in self.members.values())) or "none"
        raise ConfigError(f"no member {name!r}; known: {known}")


async def read_rows(tr: ReadTransaction) -> Rows:
    """Return all rows; a transaction that goes on to change some conflicts with other changes."""
    members = await tr.get_range(keyspace.MEMBER, keyspace.after_prefix(keyspace.MEMBER))
    nodes = await tr.get_range(keyspace.NODE, keyspace.after_prefix(keyspace.NODE))
    return Rows(
        {MemberId(key[1:]): decode_member(row) for key, row in members},
        {NodeId(key[1:]): decode_node(row) for key, row in nodes},
        await tr.get(keyspace.CLUSTER),
    )


def bump(tr: Transaction) -> None:
    """Tell all processes that rows of members or nodes change in this transaction."""
    tr.add(keyspace.CLUSTER, 1)


def set_member(tr: Transaction, member_id: MemberId, record: MemberRecord) -> None:
    tr.set(keyspace.member(member_id), encode(record))
    bump(tr)


def set_node(tr: Transaction, node_id: NodeId, record: NodeRecord) -> None:
    tr.set(keyspace.node(node_id), encode(record))
    bump(tr)


def domain_of(member: MemberRecord) -> tuple[str, ...]:
    """Return the failure domains of a member's nodes, outermost first."""
    return (member.zone, member.rack, member.host or member.name)


def worse(one: str, other: str) -> str:
    return max(one, other, key=HEALTHS.index)


@dataclass(frozen=True, slots=True)
class Patience:
    """How long a member may be silent, in seconds."""

    suspect_s: float
    down_s: float
    lost_s: float


def next_health(
    health: str,
    since_ms: int,
    *,
    silent_s: float,
    now_ms: int,
    patience: Patience,
    may_be_lost: bool = True,
) -> str:
    """Return the health that follows.

    Args:
        since_ms: when the present health began.
        silent_s: time since the last answer; 0: it answered just now.
        may_be_lost: False when so many are silent that it is rather we who are cut off.
    """
    if silent_s == 0:
        return "up"
    match health:
        case "up" if silent_s >= patience.suspect_s:
            return "suspect"
        case "suspect" if silent_s >= patience.down_s:
            return "down"
        case "down" if may_be_lost and now_ms - since_ms >= patience.lost_s * 1000:
            return "lost"
        case _:
            return health


def with_health(record: Row, health: str, now_ms: int) -> Row:
    return msgspec.structs.replace(record, health=health, health_ms=now_ms)


# Services that walk all chunks are asked for by a moment: a walk that began later has done it.


def ask_for(tr: Transaction, names: Sequence[str], now_ms: int) -> None:
    """Have services (``census``, ``rebalance``) walk again, from now on or later."""
    for name in names:
        tr.set(_asked(name), now_ms.to_bytes(8, "big"))


async def asked_for(tr: ReadTransaction, name: str) -> int:
    """Return when the service was asked for last, in ms; 0: never."""
    return int.from_bytes(await tr.get(_asked(name)) or b"", "big")


def _asked(name: str) -> bytes:
    return keyspace.setting(f"asked {name}")
