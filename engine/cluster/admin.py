"""What an administrator does to members: add, drain, remove, replace.

Each is one transaction on the rows, after what has to be said to the member itself; the services of
the gateways do the rest (``engine.services.upkeep``). Works beside running gateways, from any
process that can open the store. Each can be repeated after it was cut short.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

import msgspec
import trio

from engine.cluster.membership import SECRET, Rows, ask_for, bump, read_rows, set_member, set_node
from engine.cluster.wire import Connect, MemberCalls
from engine.errors import ConfigError, Unavailable
from engine.ids import NODE_ID_SIZE, MemberId, NodeId
from engine.meta import keyspace
from engine.meta.kv import Database, ReadTransaction, Transaction
from engine.meta.records import FORMAT, MemberRecord, NodeRecord, decode_chunk
from engine.node.contract import NodeError
from engine.node.wire.messages import DriveHealth, MemberHealth
from engine.services.scan import scan_prefix
from engine.store import Store

ANSWER_S_MAX = 10.0
ADOPT_S_MAX = 120.0
TIB = 1 << 40


@dataclass(frozen=True, slots=True, kw_only=True)
class Placing:
    """What the administrator says of a member; None: what the member says itself."""

    name: str | None = None
    zone: str | None = None
    rack: str | None = None
    host: str | None = None
    weight: float | None = None
    """Of each of its drives; None: their size in TiB."""


async def cluster_secret(db: Database) -> bytes:
    """Return the cluster's secret. Raises: ConfigError: the store is no cluster."""

    async def body(tr: ReadTransaction) -> bytes | None:
        return await tr.get(SECRET)

    secret = await db.read(body)
    if secret is None:
        raise ConfigError("this store is no cluster: make its secret with `lode cluster secret`")
    return secret


async def make_secret(db: Database, secret: bytes | None = None) -> bytes:
    """Make the store a cluster, with this secret or a new one; return the one that it has."""
    fresh = secret or os.urandom(32).hex().encode()

    async def body(tr: Transaction) -> bytes:
        known = await tr.get(SECRET)
        if known is not None:
            if secret is not None and secret != known:
                raise ConfigError("the cluster has another secret already")
            return known
        tr.set(SECRET, fresh)
        bump(tr)
        return fresh

    return await db.run(body)


class ClusterAdmin:
    def __init__(self, store: Store, connect: Connect) -> None:
        self._store = store
        self._connect = connect

    async def rows(self) -> Rows:
        return await self._store.db.read(read_rows)

    # Adding and replacing

    async def add(self, address: str, placing: Placing) -> tuple[str, list[str]]:
        """Take a daemon in as a member, format its empty drives, and give them a share.

        A member that is known already gets a new address, drives that are new, or is taken back
        from draining.

        Returns: its name, and the folders of its drives.
        Raises: ConfigError: it cannot be a member of this store; Unavailable: it does not answer.
        """
        calls = self._connect(address, await cluster_secret(self._store.db))
        try:
            health = await _ask(calls, address)
            rows = await self.rows()
            member_id = self._member_id(rows, health)
            name = placing.name or (
                rows.members[member_id].name if member_id in rows.members else health.name
            )
            _check_name(rows, member_id, name)
            health = await self._adopt(
                calls, address, member_id, health, _known_slots(rows, member_id)
            )
            await self._store.db.run(
                lambda tr: self._write_member(tr, member_id, name, address, health, placing)
            )
            return name, [drive.folder for drive in health.drives if drive.state == "up"]
        finally:
            await calls.aclose()

    def _member_id(self, rows: Rows, health: MemberHealth) -> MemberId:
        if not health.member:
            return MemberId(os.urandom(NODE_ID_SIZE))
        if health.store != self._store.store_id:
            raise ConfigError(
                f"{health.name} is a member of the store {health.store}; empty its folders first"
            )
        return MemberId(bytes.fromhex(health.member))

    async def _adopt(
        self,
        calls: MemberCalls,
        address: str,
        member_id: MemberId,
        health: MemberHealth,
        slots: Mapping[str, NodeId],
    ) -> MemberHealth:
        """Make the daemon this member; its empty drives become the nodes in ``slots``, or new."""
        wanted = {
            drive.folder: slots.get(drive.folder) or NodeId(os.urandom(NODE_ID_SIZE))
            for drive in health.drives
            if drive.state == "empty"
        }
        try:
            with trio.fail_after(ADOPT_S_MAX):
                answer = await calls.adopt(member_id, self._store.store_id, wanted)
                while any(drive.state == "opening" for drive in answer.drives):
                    await trio.sleep(0.2)
                    answer = await calls.health()
        except trio.TooSlowError:
            raise Unavailable(f"{address} does not open its drives in time") from None
        except NodeError as error:
            raise ConfigError(f"{address}: {error}") from None
        for drive in answer.drives:
            if drive.state == "foreign":
                raise ConfigError(f"{address}: {drive.folder}: {drive.reason or 'is foreign'}")
        return answer

    async def _write_member(
        self,
        tr: Transaction,
        member_id: MemberId,
        name: str,
        address: str,
        health: MemberHealth,
        placing: Placing,
    ) -> None:
        rows = await read_rows(tr)
        _check_name(rows, member_id, name)
        now = self._store.clock()
        before = rows.members.get(member_id)
        said = (placing.zone, placing.rack, placing.host)
        own = (health.zone, health.rack, health.host)
        zone, rack, host = (o if s is None else s for s, o in zip(said, own, strict=True))
        record = MemberRecord(
            format=FORMAT,
            name=name,
            address=address,
            added_ms=before.added_ms if before is not None else now,
            zone=zone,
            rack=rack,
            host=host,
            version=health.version,
        )
        set_member(tr, member_id, record)
        for drive in health.drives:
            if drive.state == "up" and drive.node:
                node_id = NodeId(bytes.fromhex(drive.node))
                known = rows.nodes.get(node_id)
                set_node(tr, node_id, _node_record(member_id, drive, known, placing.weight, now))
        # A rebalance ends with a census.
        ask_for(tr, ["rebalance"], now)

    async def replace(self, name: str, address: str, placing: Placing) -> tuple[str, str]:
        """Put a new machine in the place of one that is gone.

        The daemon at ``address`` takes over the old member's name, domains and slots, and its
        drives are filled again. An old member that still answers is drained instead, and the new
        one is added beside it: nothing is less safe meanwhile.

        Returns: (name of the member that has the drives now, ``taken over`` or ``draining``).
        Raises: ConfigError, Unavailable.
        """
        rows = await self.rows()
        member_id, old = rows.find(name)
        if old.health == "up":
            new_name, _ = await self.add(address, placing)
            await self.drain(name)
            return new_name, "draining"
        calls = self._connect(address, await cluster_secret(self._store.db))
        try:
            health = await _ask(calls, address)
            if health.member and health.member != member_id.hex():
                raise ConfigError(f"{address} is a member already; give an empty one")
            # The new folders need not be called like the old ones: they are taken in order.
            free = iter(sorted(rows.nodes_of(member_id)))
            slots = {
                drive.folder: node_id
                for drive, node_id in zip(
                    [drive for drive in health.drives if drive.state == "empty"], free, strict=False
                )
            }
            health = await self._adopt(calls, address, member_id, health, slots)
            own = Placing(
                zone=old.zone if placing.zone is None else placing.zone,
                rack=old.rack if placing.rack is None else placing.rack,
                host=old.host if placing.host is None else placing.host,
                weight=placing.weight,
            )
            await self._store.db.run(
                lambda tr: self._take_over(tr, member_id, address, health, own)
            )
        finally:
            await calls.aclose()
        return old.name, "taken over"

    async def _take_over(
        self,
        tr: Transaction,
        member_id: MemberId,
        address: str,
        health: MemberHealth,
        placing: Placing,
    ) -> None:
        rows = await read_rows(tr)
        await self._write_member(
            tr, member_id, rows.members[member_id].name, address, health, placing
        )
        there = {drive.node for drive in health.drives if drive.state == "up"}
        now = self._store.clock()
        for node_id, record in rows.nodes_of(member_id).items():
            if node_id.hex() in there:
                tr.clear(keyspace.work(f"rebuild {node_id.hex()}"))
            else:
                given_up = msgspec.structs.replace(record, state="removed", changed_ms=now)
                set_node(tr, node_id, given_up)
                ask_for(tr, ["census"], now)

    # Taking away

    async def drain(self, name: str, *, force: bool = False) -> str:
        """Have a member's fragments moved elsewhere; it serves reads meanwhile. Returns its name.

        Raises: ConfigError: too few drives would be left to write to (unless ``force``).
        """
        width = self._store.profile.width

        async def body(tr: Transaction) -> str:
            rows = await read_rows(tr)
            member_id, member = rows.find(name)
            left = [
                node_id
                for node_id, node in rows.nodes.items()
                if node.member != member_id
                and node.state in ("up", "rebuilding")
                and node.health != "lost"
            ]
            if len(left) < width and not force:
                raise ConfigError(
                    f"without {member.name} {len(left)} drives are left, and the profile "
                    f"{self._store.profile} needs {width}: add a member first"
                )
            self._set_states(tr, rows, member_id, "draining")
            return member.name

        return await self._store.db.run(body)

    async def undrain(self, name: str) -> str:
        """Let a draining or drained member get fragments again; return its name."""

        async def body(tr: Transaction) -> str:
            rows = await read_rows(tr)
            member_id, member = rows.find(name)
            self._set_states(tr, rows, member_id, "up")
            return member.name

        return await self._store.db.run(body)

    async def remove(self, name: str, *, force: bool = False) -> tuple[str, bool]:
        """Forget a member that holds nothing any more.

        With ``force`` also one that does: its fragments count as lost, and are made anew elsewhere;
        its rows go once they are.

        Returns: its name, and whether it is forgotten already.
        Raises: ConfigError: chunks still name its drives.
        """
        rows = await self.rows()
        member_id, member = rows.find(name)
        named = await self._named(rows.nodes_of(member_id))
        if named and not force:
            raise ConfigError(
                f"{member.name} still has {named} fragments: `lode node drain {member.name}` moves "
                "them; if it is gone for good, --force has them made anew"
            )

        async def body(tr: Transaction) -> bool:
            rows = await read_rows(tr)
            nodes = rows.nodes_of(member_id)
            if member_id not in rows.members:
                return True
            idle = all(node.state == "removed" for node in nodes.values())
            if named or not idle:
                self._set_states(tr, rows, member_id, "removed")
                return False
            for node_id in nodes:
                tr.clear(keyspace.node(node_id))
                for prefix in (keyspace.NODE_COUNTER + node_id, keyspace.STRAY + node_id):
                    tr.clear_range(prefix, keyspace.after_prefix(prefix))
            tr.clear(keyspace.member(member_id))
            bump(tr)
            return True

        return member.name, await self._store.db.run(body)

    async def _named(self, nodes: Mapping[NodeId, NodeRecord]) -> int:
        """Return how many fragments chunks have on these nodes."""
        count = 0
        async for _, row in scan_prefix(self._store.db, keyspace.CHUNK):
            count += sum(node_id in nodes for node_id in decode_chunk(row).nodes)
        return count

    def _set_states(self, tr: Transaction, rows: Rows, member_id: MemberId, state: str) -> None:
        now = self._store.clock()
        member = rows.members[member_id]
        set_member(tr, member_id, msgspec.structs.replace(member, state=state))
        for node_id, node in rows.nodes_of(member_id).items():
            # What is being filled still is; what is empty need not be emptied.
            stays = (state, node.state) in (("up", "rebuilding"), ("draining", "removed"))
            changed = node.state if stays else state
            set_node(tr, node_id, msgspec.structs.replace(node, state=changed, changed_ms=now))
        # What is given up has to be counted as missing, so that it is repaired.
        ask_for(tr, ["census"] if state == "removed" else ["rebalance"], now)


async def _ask(calls: MemberCalls, address: str) -> MemberHealth:
    try:
        with trio.fail_after(ANSWER_S_MAX):
            return await calls.health()
    except trio.TooSlowError:
        raise Unavailable(f"{address} does not answer") from None
    except NodeError as error:
        raise Unavailable(f"{address}: {error}") from None


def _check_name(rows: Rows, member_id: MemberId, name: str) -> None:
    for other_id, other in rows.members.items():
        if other_id != member_id and other.name == name:
            raise ConfigError(f"the member at {other.address} is called {name} too; give --name")


def _known_slots(rows: Rows, member_id: MemberId) -> dict[str, NodeId]:
    return {record.location: node_id for node_id, record in rows.nodes_of(member_id).items()}


def _node_record(
    member_id: MemberId,
    drive: DriveHealth,
    before: NodeRecord | None,
    weight: float | None,
    now_ms: int,
) -> NodeRecord:
    state = "up"
    if before is not None and (before.drive_id != drive.drive or before.state == "rebuilding"):
        state = "rebuilding"
    return NodeRecord(
        format=FORMAT,
        drive_id=drive.drive,
        location=drive.folder,
        added_ms=before.added_ms if before is not None else now_ms,
        state=state,
        member=member_id,
        weight=weight or max(round(drive.total / TIB, 4), 0.001),
        changed_ms=now_ms,
    )
