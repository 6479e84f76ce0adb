"""``ClusterView``: this process's ``NodePool``, kept in step with the rows of members and nodes.

Concurrency: ``sync`` is called by one task at a time: while the store is opened, then by ``run``.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import structlog
import trio

from engine.cluster.membership import SECRET, Rows, domain_of, read_rows, worse
from engine.cluster.wire import Connect, MemberCalls
from engine.data.nodes import NodePool
from engine.errors import StorageError
from engine.ids import MemberId, NodeId
from engine.meta import keyspace
from engine.meta.kv import Database, ReadTransaction
from engine.meta.records import NodeRecord

AGAIN_S = 1.0
"""After a failure of the metadata store."""
LOCAL_DOMAIN = ("", "", "(this machine)")
"""Of drives in the serving processes themselves, beside those of members."""

AttachLocal = Callable[[dict[NodeId, NodeRecord]], Awaitable[None]]


class ClusterView:
    def __init__(
        self, db: Database, pool: NodePool, connect: Connect, attach_local: AttachLocal
    ) -> None:
        """``attach_local`` opens the drives of this machine that are not open yet."""
        self._db = db
        self._pool = pool
        self._connect = connect
        self._attach_local = attach_local
        self._members: dict[MemberId, tuple[str, MemberCalls]] = {}
        self._remote: dict[NodeId, MemberCalls] = {}
        self._known: set[NodeId] = set()
        self._secret = b""
        self.rows = Rows({}, {}, None)
        """As of the last look."""

    def member(self, member_id: MemberId) -> MemberCalls | None:
        """Return the calls of a member that this process knows."""
        found = self._members.get(member_id)
        return found[1] if found is not None else None

    async def sync(self) -> None:
        """Look at the rows and bring the pool in step with them.

        Raises: StorageError.
        """

        async def body(tr: ReadTransaction) -> tuple[Rows, bytes]:
            return await read_rows(tr), await tr.get(SECRET) or b""

        rows, self._secret = await self._db.read(body)
        gone = self._connect_members(rows)
        local = {node_id: node for node_id, node in rows.nodes.items() if node.member is None}
        await self._attach_local(local)
        for node_id, record in rows.nodes.items():
            self._describe(rows, node_id, record)
        for node_id in self._known - rows.nodes.keys():
            self._pool.remove(node_id)
            self._remote.pop(node_id, None)
        self._known = set(rows.nodes)
        self.rows = rows
        for calls in gone:
            await calls.aclose()

    def _connect_members(self, rows: Rows) -> list[MemberCalls]:
        """Return the calls of members that are gone or have moved, to be closed."""
        gone = []
        for member_id, (address, calls) in list(self._members.items()):
            record = rows.members.get(member_id)
            if record is None or record.address != address:
                del self._members[member_id]
                gone.append(calls)
        for member_id, record in rows.members.items():
            if member_id not in self._members and self._secret:
                calls = self._connect(record.address, self._secret)
                self._members[member_id] = (record.address, calls)
        return gone

    def _describe(self, rows: Rows, node_id: NodeId, record: NodeRecord) -> None:
        domain: tuple[str, ...] = ()
        health = record.health
        if record.member is None:
            domain = LOCAL_DOMAIN if rows.members else ()
        else:
            member = rows.members.get(record.member)
            if member is None:
                health = "lost"
            else:
                domain, health = domain_of(member), worse(member.health, record.health)
                calls = self._members.get(record.member)
                if calls is not None and self._remote.get(node_id) is not calls[1]:
                    self._remote[node_id] = calls[1]
                    self._pool.add(calls[1].node(node_id))
        self._pool.describe(
            node_id, weight=record.weight, domain=domain, health=health, state=record.state
        )

    async def run(self, changed: Callable[[], None]) -> None:
        """Follow the rows until cancelled; ``changed`` is called after each look."""
        while True:
            try:
                await self._db.watch(keyspace.CLUSTER, self.rows.counter)
                await self.sync()
            except StorageError as error:
                structlog.get_logger().error("members not read", error=str(error))
                await trio.sleep(AGAIN_S)
            else:
                changed()

    async def aclose(self) -> None:
        for _, calls in self._members.values():
            await calls.aclose()
        self._members.clear()
