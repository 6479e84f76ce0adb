"""Machines of a cluster inside the test: daemons in memory, and a store whose members they are.

What lies between is ``engine.cluster.wire.Connect``; the real wire has tests of its own.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import trio

from engine.cluster.admin import ClusterAdmin, Placing
from engine.cluster.heartbeat import Heartbeat
from engine.cluster.membership import Rows, read_rows
from engine.cluster.view import ClusterView
from engine.cluster.wire import MemberCalls
from engine.config import Profile, StoreConfig
from engine.data.nodes import NodePool
from engine.engine import Engine
from engine.ids import FragmentId, MemberId, NodeId
from engine.meta import keyspace
from engine.meta.kv import ReadTransaction, Transaction
from engine.node.contract import Node, NodeDown, Space
from engine.node.wire.messages import DriveHealth, MemberHealth
from engine.opening import open_engine, prepare_store
from engine.services.upkeep import Upkeep
from tests.support.engine import ManualClock, SeededRandom, folder_in
from tests.support.nodes import MemoryNode

GIB = 1 << 30


class Drive:
    """One drive of a machine: its folder's content."""

    def __init__(self, folder: str) -> None:
        self.folder = folder
        self.node: MemoryNode | None = None
        self.drive_id = ""
        self.opening = False
        """It is being recovered."""

    def format(self, node_id: NodeId) -> None:
        self.node = FullableNode(node_id)
        self.drive_id = os.urandom(8).hex()

    def wipe(self) -> None:
        """Put an empty drive in its place."""
        self.node = None
        self.drive_id = ""


class FullableNode(MemoryNode):
    """Says in ``space`` what ``memory.full`` does."""

    def __init__(self, node_id: NodeId) -> None:
        super().__init__(node_id, local=False)

    async def space(self) -> Space:
        space = await super().space()
        if self.memory.full:
            return Space(space.total, 0, space.live, space.dead, space.fragments)
        return space


class Machine:
    """A daemon; ``off`` makes everything that it is asked fail."""

    def __init__(self, number: int, drives: int) -> None:
        self.name = f"m{number}"
        self.address = f"10.0.0.{number}:9100"
        self.drives = [Drive(f"/srv/d{position}") for position in range(1, drives + 1)]
        self.off = False
        self.member = ""
        self.store = ""
        self.zone = ""
        self.version = "1"

    def health(self) -> MemberHealth:
        return MemberHealth(
            member=self.member,
            store=self.store,
            name=self.name,
            zone=self.zone,
            version=self.version,
            drives=[
                DriveHealth(
                    folder=drive.folder,
                    state="opening" if drive.opening else "up" if drive.node else "empty",
                    node=drive.node.node_id.hex() if drive.node is not None else "",
                    drive=drive.drive_id,
                    total=1024 * GIB,
                    free=512 * GIB,
                )
                for drive in self.drives
            ],
        )

    def node(self, node_id: NodeId) -> MemoryNode:
        for drive in self.drives:
            if drive.node is not None and drive.node.node_id == node_id and not self.off:
                return drive.node
        raise NodeDown(f"{self.name} has no such drive, or is off")

    @property
    def fragments(self) -> int:
        return sum(len(drive.node.memory.fragments) for drive in self.drives if drive.node)

    def switch(self, *, on: bool) -> None:
        self.off = not on


class _Calls:
    """``MemberCalls`` of one machine."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine

    async def health(self) -> MemberHealth:
        await trio.lowlevel.checkpoint()
        if self._machine.off:
            raise NodeDown("off")
        return self._machine.health()

    async def adopt(
        self, member: MemberId, store: str, drives: Mapping[str, NodeId]
    ) -> MemberHealth:
        await self.health()
        self._machine.member, self._machine.store = member.hex(), store
        for drive in self._machine.drives:
            if drive.folder in drives and drive.node is None:
                drive.format(drives[drive.folder])
        return self._machine.health()

    def node(self, node_id: NodeId) -> Node:
        return _Remote(self._machine, node_id)

    async def aclose(self) -> None:
        pass


class _Remote(MemoryNode):
    """A node as gateways see it: whatever drive the machine has in the slot now."""

    def __init__(self, machine: Machine, node_id: NodeId) -> None:
        super().__init__(node_id, local=False)
        self._machine = machine

    async def _wait(self, _delay_s: float = 0.0) -> None:
        await trio.lowlevel.checkpoint()
        self.memory = self._machine.node(self.node_id).memory

    async def space(self) -> Space:
        await self._wait()
        return await self._machine.node(self.node_id).space()


@dataclass
class Cluster:
    """A store over machines in memory. Services run when a test says so."""

    engine: Engine
    machines: dict[str, Machine]
    view: ClusterView
    clock: ManualClock
    seconds: list[float] = field(default_factory=lambda: [0.0])

    def __post_init__(self) -> None:
        self.store = self.engine.store
        self.pool: NodePool = self.store.pool
        self.admin = ClusterAdmin(self.store, self.connect)
        self.heartbeat = Heartbeat(self.store, self.view)
        self.upkeep = Upkeep(self.store)

    def connect(self, address: str, secret: bytes) -> MemberCalls:
        return _Calls(at(self.machines, address))

    async def add(self, *names: str, **placing: str) -> None:
        for name in names:
            await self.admin.add(self.machines[name].address, Placing(**placing))  # type: ignore[arg-type]
        await self.view.sync()

    async def rows(self) -> Rows:
        return await self.store.db.read(read_rows)

    async def healths(self) -> dict[str, str]:
        """Return the members that are not up, as metadata say."""
        rows = await self.rows()
        return {m.name: m.health for m in rows.members.values() if m.health != "up"}

    async def set_health(self, name: str, health: str) -> None:
        """Write down what the heartbeat would after a while."""

        async def body(tr: Transaction) -> None:
            from engine.cluster.membership import ask_for, set_member, with_health

            rows = await read_rows(tr)
            member_id, record = rows.find(name)
            set_member(tr, member_id, with_health(record, health, self.clock()))
            ask_for(tr, ["census", "rebalance"], self.clock())

        await self.store.db.run(body)
        await self.view.sync()

    async def lose(self, name: str) -> None:
        self.machines[name].switch(on=False)
        await self.set_health(name, "lost")

    async def settle(self) -> None:
        """Let upkeep do all that can be done now."""
        for _ in range(4):
            # A census waits a moment after the one before.
            self.clock.advance(600)
            self.upkeep.wake()
            await self.upkeep.work()
            await self.view.sync()

    def fragments(self) -> dict[str, int]:
        return {name: machine.fragments for name, machine in self.machines.items()}

    def found(self) -> dict[FragmentId, list[str]]:
        """Return which machines have each fragment."""
        found: dict[FragmentId, list[str]] = {}
        for name, machine in self.machines.items():
            for drive in machine.drives:
                for fragment in drive.node.memory.fragments if drive.node else ():
                    found.setdefault(fragment, []).append(name)
        return found

    async def count(self, prefix: bytes) -> int:
        async def body(tr: ReadTransaction) -> int:
            return len(await tr.get_range(prefix, keyspace.after_prefix(prefix)))

        return await self.store.db.read(body)


def at(machines: Mapping[str, Machine], address: str) -> Machine:
    return next(machine for machine in machines.values() if machine.address == address)


@asynccontextmanager
async def open_cluster(
    path: Path,
    *,
    machines: int = 7,
    drives: int = 1,
    members: int = 6,
    profile: str = "4+2",
    **settings: object,
) -> AsyncIterator[Cluster]:
    """Make a store in ``path`` with the first ``members`` of the machines as its members."""
    folder = folder_in(path, profile=profile)
    config: StoreConfig = msgspec.structs.replace(
        folder.config, drives=(), profile=Profile.parse(profile), **settings
    )
    made = {f"m{number}": Machine(number, drives) for number in range(1, machines + 1)}
    await prepare_store(config, clock=folder.clock, cluster=True)
    async with open_again(config, made, folder.clock) as cluster:
        await cluster.add(*list(made)[:members])
        yield cluster


@asynccontextmanager
async def open_again(
    config: StoreConfig, machines: dict[str, Machine], clock: ManualClock
) -> AsyncIterator[Cluster]:
    """Open the store as another process would."""

    def connect(address: str, secret: bytes) -> MemberCalls:
        return _Calls(at(machines, address))

    async with open_engine(config, clock=clock, random=SeededRandom(), connect=connect) as engine:
        view = ClusterView(engine.store.db, engine.store.pool, connect, _no_local)
        await view.sync()
        yield Cluster(engine, machines, view, clock)


async def _no_local(nodes: object) -> None:
    assert not nodes
