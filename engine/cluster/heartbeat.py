"""Heartbeat: how members and drives are, written down when it changes. Leased: one process asks.

Each round every member is asked for its health, and each drive of this machine for its space. What
answers is ``up`` again at once; what is silent becomes suspect, down and lost
(``membership.next_health``). The answers also tell of drives that were replaced: an empty folder in
a known slot is formatted for its node again, which is then filled (``rebuilding``).

Concurrency: one task; the answers of a round are gathered in tasks of its own.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec
import structlog
import trio

from engine.cluster.membership import (
    Patience,
    Row,
    Rows,
    ask_for,
    next_health,
    read_rows,
    set_member,
    set_node,
    with_health,
)
from engine.cluster.view import ClusterView
from engine.ids import MemberId, NodeId
from engine.meta import keyspace
from engine.meta.kv import Transaction
from engine.meta.records import NodeRecord
from engine.node.contract import NodeError
from engine.node.wire.messages import DriveHealth, MemberHealth
from engine.store import Store

ANSWER_S_MAX = 3.0
EMPTY_ROUNDS = 2
"""So often a replaced drive is seen empty before it is formatted: it may be about to be mounted."""


class Heartbeat:
    def __init__(self, store: Store, view: ClusterView) -> None:
        self._store = store
        self._view = view
        config = store.config
        self._patience = Patience(config.suspect_s, config.down_s, config.lost_s)
        self._seen: dict[bytes, float] = {}
        """When each member and node answered last, by trio's clock."""
        self._empty: dict[NodeId, int] = {}
        self._opening: set[NodeId] = set()
        """Drives that are being recovered by a member that answers: late, not lost."""
        self._log = structlog.get_logger()

    async def work(self) -> None:
        """Ask again and again, until cancelled: the lease is lost."""
        self._seen.clear()
        while True:
            await self.round()
            await trio.sleep(self._store.config.heartbeat_s)

    async def wait(self) -> None:
        await trio.sleep(self._store.config.heartbeat_s)

    async def round(self) -> None:
        """Ask everybody once and write down what changed.

        Raises: StorageError.
        """
        rows = self._view.rows
        answers: dict[MemberId, MemberHealth] = {}
        drives: dict[NodeId, DriveHealth | None] = {}
        async with trio.open_nursery() as nursery:
            for member_id in rows.members:
                nursery.start_soon(self._ask_member, member_id, answers)
            for node_id, record in rows.nodes.items():
                if record.member is None:
                    nursery.start_soon(self._ask_drive, node_id, drives)
        self._opening.clear()
        for answer in answers.values():
            for drive in answer.drives:
                if drive.state == "up" and drive.node:
                    drives[NodeId(bytes.fromhex(drive.node))] = drive
                elif drive.state == "opening" and drive.node:
                    self._opening.add(NodeId(bytes.fromhex(drive.node)))
        now = trio.current_time()
        for name in (*rows.members, *rows.nodes):
            if name in answers or name in drives or name not in self._seen:
                self._seen[name] = now
        answered = {*answers, *drives}
        silent = {
            name: max(now - self._seen[name], 0.001) if name not in answered else 0.0
            for name in (*rows.members, *rows.nodes)
        }
        if self._may_change(rows, silent, answers, drives):
            await self._write(silent, answers, drives)
        for member_id, answer in answers.items():
            await self._format_replaced(rows, member_id, answer)

    async def _ask_member(self, member_id: MemberId, answers: dict[MemberId, MemberHealth]) -> None:
        calls = self._view.member(member_id)
        if calls is None:
            return
        with trio.move_on_after(ANSWER_S_MAX):
            try:
                answer = await calls.health()
            except NodeError as error:
                self._log.debug("member silent", member=member_id.hex(), error=str(error))
                return
            if (answer.member, answer.store) == (member_id.hex(), self._store.store_id):
                answers[member_id] = answer

    async def _ask_drive(self, node_id: NodeId, drives: dict[NodeId, DriveHealth | None]) -> None:
        node = self._store.pool.get(node_id)
        if node is None:
            return
        with trio.move_on_after(ANSWER_S_MAX):
            try:
                await node.space()
            except NodeError:
                return
            drives[node_id] = None

    def _may_change(
        self,
        rows: Rows,
        silent: Mapping[bytes, float],
        answers: Mapping[MemberId, MemberHealth],
        drives: Mapping[NodeId, DriveHealth | None],
    ) -> bool:
        """Return whether writing may be needed; so that a quiet cluster costs no transactions."""
        for member_id, member in rows.members.items():
            answer = answers.get(member_id)
            if answer is not None and answer.version != member.version:
                return True
            if self._next(member_id, member, silent) != member.health:
                return True
        return any(
            self._next(node_id, node, silent) != node.health
            or self._with_answers(rows, node_id, node, answers, drives) != node
            for node_id, node in rows.nodes.items()
        )

    def _next(self, name: bytes, record: Row, silent: Mapping[bytes, float]) -> str:
        silent_s = silent.get(name)
        if silent_s is None:
            return record.health
        # When most of all are silent it is more likely that this process is cut off.
        quiet = sum(silence > 0 for silence in silent.values())
        return next_health(
            record.health,
            record.health_ms,
            silent_s=silent_s,
            now_ms=self._store.clock(),
            patience=self._patience,
            may_be_lost=quiet * 2 <= len(silent) and name not in self._opening,
        )

    def _with_answers(
        self,
        rows: Rows,
        node_id: NodeId,
        record: NodeRecord,
        answers: Mapping[MemberId, MemberHealth],
        drives: Mapping[NodeId, DriveHealth | None],
    ) -> NodeRecord:
        """Return the record with what its member says of the drive: where it is, which it is."""
        drive = drives.get(node_id)
        if drive is None:
            return record
        for member_id, answer in answers.items():
            if drive in answer.drives and member_id in rows.members:
                record = msgspec.structs.replace(record, member=member_id, location=drive.folder)
        if drive.drive and drive.drive != record.drive_id:
            record = msgspec.structs.replace(record, drive_id=drive.drive)
            if record.state in ("up", "rebuilding"):
                record = msgspec.structs.replace(record, state="rebuilding")
        return record

    async def _write(
        self,
        silent: Mapping[bytes, float],
        answers: Mapping[MemberId, MemberHealth],
        drives: Mapping[NodeId, DriveHealth | None],
    ) -> None:
        changes: list[tuple[str, str, str]] = []
        now = self._store.clock()

        async def body(tr: Transaction) -> None:
            changes.clear()
            rows = await read_rows(tr)
            walks: set[str] = set()
            silent_members: set[MemberId] = set()
            for member_id, member in rows.members.items():
                health = self._next(member_id, member, silent)
                answer = answers.get(member_id)
                version = answer.version if answer is not None else member.version
                if health != member.health:
                    changes.append((member.name, member.health, health))
                    member = with_health(member, health, now)
                if health != "up":
                    silent_members.add(member_id)
                if health != rows.members[member_id].health or version != member.version:
                    member = msgspec.structs.replace(member, version=version)
                    set_member(tr, member_id, member)
                    walks |= _walks_after(rows.members[member_id].health, health)
            for node_id, before in rows.nodes.items():
                node = self._with_answers(rows, node_id, before, answers, drives)
                health = self._next(node_id, node, silent)
                if health != node.health:
                    if node.member not in silent_members:
                        changes.append((node.location, node.health, health))
                    node = with_health(node, health, now)
                    walks |= _walks_after(before.health, health)
                if node.drive_id != before.drive_id:
                    tr.clear(keyspace.work(f"rebuild {node_id.hex()}"))
                if node != before:
                    set_node(tr, node_id, node)
            ask_for(tr, sorted(walks), now)

        await self._store.db.run(body)
        for name, was, is_now in changes:
            log = self._log.info if is_now == "up" else self._log.warning
            log("health changed", what=name, was=was, now=is_now)

    async def _format_replaced(self, rows: Rows, member_id: MemberId, answer: MemberHealth) -> None:
        """Have empty folders in known slots formatted, once they were seen often enough."""
        slots = {record.location: node for node, record in rows.nodes_of(member_id).items()}
        wanted: dict[str, NodeId] = {}
        for drive in answer.drives:
            node_id = slots.get(drive.folder)
            if node_id is None or drive.state != "empty":
                continue
            self._empty[node_id] = self._empty.get(node_id, 0) + 1
            if self._empty[node_id] >= EMPTY_ROUNDS:
                wanted[drive.folder] = node_id
        calls = self._view.member(member_id)
        if not wanted or calls is None:
            return
        try:
            await calls.adopt(member_id, self._store.store_id, wanted)
        except NodeError as error:
            self._log.error("replaced drive not formatted", member=answer.name, error=str(error))
            return
        for folder, node_id in wanted.items():
            self._empty.pop(node_id, None)
            self._log.warning("drive replaced", member=answer.name, drive=folder)


def _walks_after(was: str, health: str) -> set[str]:
    """Return the services that are to walk when the health changes so."""
    if health == "lost":
        return {"census"}
    if health != "up" or was == "up":
        return set()
    return {"census", "rebalance"} if was == "lost" else {"census"}
