"""One simulated life of a cluster: machines, network, clocks, gateways and clients in one trio run.

The engine, its services and its membership are the real ones; what is simulated is listed in
docs/decisions/0011-simulation.md. An epoch is: clients work while faults happen; the faults end;
the services heal; everything is looked at. In the end all is deleted, and nothing may be left.
"""

from __future__ import annotations

import hashlib
import random
import traceback
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import trio

from engine.cluster.membership import SECRET, set_member, set_node
from engine.config import Profile
from engine.errors import EngineError
from engine.ids import MemberId, NodeId
from engine.meta import keyspace
from engine.meta.kv import ReadTransaction, Transaction
from engine.meta.memory import MemoryDatabase
from engine.meta.records import FORMAT, MemberRecord, NodeRecord
from tests.support.engine import START_MS, scratch_folder
from tests.support.history import Call, History, Workload
from tests.support.simulation_clients import BUCKET, Clients, get, listing
from tests.support.simulation_drive import DriveShelf
from tests.support.simulation_faults import Faults, plan
from tests.support.simulation_gateway import Gateway, Gateways
from tests.support.simulation_machine import Machine, Shelf
from tests.support.simulation_network import Network
from tests.support.simulation_run import run_deterministic

SHAPES = (
    ("2+1", 3), ("2+1", 4), ("2+1", 4), ("2+1", 5), ("1+1", 2), ("1+1", 3), ("1+2", 4), ("2+2", 5),
    ("3+2", 6), ("4+2", 6), ("4+2", 7),
)  # fmt: skip
"""Profiles and how many machines there are; small ones more often, since they cost less."""
SIZES = (16, 30, 40, 60, 100, 130, 250, 640, 700, 1500)
DRIVES_EVERY = 8
"""One seed of so many has real drives."""
IMPATIENT = 0.8
"""In so many epochs the faults end with the last call; else they take their time, of which some
need much: a machine is lost, a session expires."""
HEAL_S_MAX = 120.0
LOOK_S = 3.0
"""So often we look whether it has healed."""
NO_PROMISE = (
    "replace", "lean", "rot", "stop gateway", "oversleep", "clock", "metadata gone", "answers lost",
)  # fmt: skip
"""Faults after which a read may find its object corrupt: damage, or a session that lapsed, so that
what it reads is collected. Else the bytes of a version that was opened stay."""
LEFT_OVER = {
    "inline": keyspace.INLINE,
    "chunk": keyspace.CHUNK,
    "part": keyspace.PART,
    "part count": keyspace.PART_COUNT,
    "manifest": keyspace.MANIFEST,
    "garbage": keyspace.GARBAGE,
    "repair": keyspace.REPAIR,
    "stray": keyspace.STRAY,
}
"""Subspaces that are empty once everything was deleted and collected."""


class Failed(Exception):
    """What must not be; the message says what."""


@dataclass
class Outcome:
    seed: int
    problems: list[str] = field(default_factory=list)
    trace: list[str] = field(default_factory=list)
    operations: int = 0
    virtual_s: float = 0.0

    @property
    def digest(self) -> str:
        """Of the whole trace: the same for each run of the seed."""
        return hashlib.blake2b("\n".join(self.trace).encode(), digest_size=8).hexdigest()


def simulate(seed: int) -> Outcome:
    """Run the life of a seed and return what went wrong; never raises."""
    outcome = Outcome(seed)
    try:
        with scratch_folder() if seed % DRIVES_EVERY == 0 else nullcontext() as folder:
            world = World(seed, outcome, folder)
            try:
                run_deterministic(seed, world.main, world.say)
            finally:
                for machine in world.machines.values():
                    machine.shelf.close()
    except BaseException as error:  # noqa: ASYNC103  outside of any run
        if isinstance(error, KeyboardInterrupt):
            raise
        outcome.problems.append("".join(traceback.format_exception(error)))
    return outcome


class World:
    def __init__(self, seed: int, outcome: Outcome, folder: Path | None = None) -> None:
        """``folder``: for real drives; None: without."""
        self._folder = folder
        self._shelves = 0
        self._seed = seed
        self._outcome = outcome
        self._chance = random.Random(f"world {seed}")
        name, count = self._chance.choice(SHAPES)
        self.profile = Profile.parse(name)
        self.machines: dict[str, Machine] = {}
        for number in range(count):
            name = f"m{number}"
            node_id = NodeId(self._chance.randbytes(8))
            luck = random.Random(f"{name} {seed}")
            self.machines[name] = Machine(
                name,
                node_id,
                MemberId(self._chance.randbytes(8)),
                luck,
                partial(self._new_shelf, name, node_id, luck),
            )
        self.gateways: dict[str, Gateway] = {}
        """Those that run."""
        self._gateways_started = 0
        self._keys = ["a/1", "a/2", "b/1"]
        self._reads_may_fail = False

    def _new_shelf(self, name: str, node_id: NodeId, luck: random.Random) -> Shelf | DriveShelf:
        if self._folder is None:
            return Shelf(luck)
        self._shelves += 1
        return DriveShelf(self._folder / f"{name}-{self._shelves}", node_id, luck)

    def say(self, text: str) -> None:
        try:
            now = trio.current_time()
        except RuntimeError:
            now = 0.0
        self._outcome.trace.append(f"{now:10.4f} {text}")

    async def main(self) -> None:
        self._db = MemoryDatabase(random.Random(f"db {self._seed}"), clock=trio.current_time)
        self._history = History(trio.current_time, self._keys)
        self.say(f"seed {self._seed}: {self.profile} on {len(self.machines)} machines")
        await self._describe_cluster()
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            self._network = Network(random.Random(f"network {self._seed}"), nursery)
            self._opener = Gateways(
                self._seed,
                profile=self.profile,
                db=self._db,
                network=self._network,
                machines=self.machines,
            )
            self._clients = Clients(
                random.Random(f"clients {self._seed}"), self._history, self.gateways
            )
            with self._opener.patched():
                try:
                    await self._live()
                finally:
                    self._outcome.operations = self._history.answered
                    self._outcome.virtual_s = trio.current_time()
                    nursery.cancel_scope.cancel()

    async def _describe_cluster(self) -> None:
        async def body(tr: Transaction) -> None:
            tr.set(keyspace.setting("profile"), str(self.profile).encode())
            tr.set(SECRET, b"secret")
            for machine in self.machines.values():
                member = MemberRecord(
                    format=FORMAT, name=machine.name, address=machine.name, added_ms=START_MS
                )
                node = NodeRecord(
                    format=FORMAT,
                    drive_id=machine.drive_id,
                    location=machine.folder,
                    added_ms=START_MS,
                    member=machine.member_id,
                )
                set_member(tr, machine.member_id, member)
                set_node(tr, machine.node_id, node)

        await self._db.run(body)

    # Gateways

    def start_gateway(self) -> None:
        self._gateways_started += 1
        self._nursery.start_soon(self._host, f"g{self._gateways_started}")

    async def _host(self, name: str) -> None:
        try:
            async with self._opener.open(name) as gateway:
                self.gateways[name] = gateway
                self.say(f"{name}: ready")
                await gateway.leave.wait()
                del self.gateways[name]
        finally:
            self.gateways.pop(name, None)
        self.say(f"{name}: ended")

    async def _any_gateway(self) -> Gateway:
        while True:
            for name in sorted(self.gateways):
                return self.gateways[name]
            self.start_gateway()
            await trio.sleep(1.0)

    # A life

    async def _live(self) -> None:
        for _ in range(self._chance.choice((1, 1, 2, 2, 3))):
            self.start_gateway()
        await trio.sleep(0.1)
        await (await self._any_gateway()).engine.create_bucket(BUCKET, owner="owner")
        for epoch in range(self._chance.choice((1, 1, 1, 2))):
            await self._epoch(epoch)
        await self._close_gateways()
        await self._leave_nothing()
        self._judge()

    async def _epoch(self, epoch: int) -> None:
        chance = self._chance
        length_s = chance.choice([0.2, 1.0, 4.0, 12.0])
        pause_s = chance.choice([0.0, 0.01, 1.0])
        faults = plan(chance, sorted(self.machines), length_s=length_s)
        self._reads_may_fail |= any(fault.kind in NO_PROMISE for fault in faults)
        clients, count = chance.randint(1, 4), chance.randint(5, 10)
        self.say(f"epoch {epoch}: {clients} clients, {count} calls each")
        suffering = Faults(
            random.Random(f"faults {self._seed} {epoch}"),
            self._network,
            self.machines,
            self.gateways,
            self.start_gateway,
            self.profile.data,
            self.say,
        )
        async with trio.open_nursery() as nursery:
            nursery.start_soon(suffering.run, faults)
            async with trio.open_nursery() as working:
                for number in range(clients):
                    name = f"{epoch}.{number}"
                    workload = Workload(
                        random.Random(f"client {self._seed} {name}"), self._keys, name, sizes=SIZES
                    )
                    working.start_soon(
                        self._clients.run, number, workload, count, 2 * pause_s * length_s / count
                    )
            if chance.random() < IMPATIENT:
                suffering.hurry()
        self.say("faults are over")
        self._network.calm = True
        await self._heal()
        await self._read_all("healed", through=1)
        lost = chance.sample(sorted(self.machines), self.profile.parity)
        self.say(f"switch off {', '.join(lost)}")
        for name in lost:
            self.machines[name].up = False
        await self._read_all(f"{len(lost)} machines are off")
        for name in lost:
            self.machines[name].restart()
        self._network.calm = False

    async def _heal(self) -> None:
        """Wait until the services have made everything whole."""
        deadline = trio.current_time() + HEAL_S_MAX
        while True:
            await trio.sleep(LOOK_S)
            wrong = await self._unhealed()
            if not wrong:
                self.say("healed")
                return
            if trio.current_time() > deadline:
                wrong += await self._fsck()
                raise Failed(f"not healed {HEAL_S_MAX:.0f} s after the last fault: {wrong}")

    async def _unhealed(self) -> list[str]:
        rows = await self._count("repair", "stray")
        if rows:
            return [f"{count} {name} rows" for name, count in rows.items()]
        return await self._fsck()

    async def _fsck(self) -> list[str]:
        gateway = await self._any_gateway()
        try:
            report = await gateway.engine.fsck(deep=True)
        except EngineError as error:
            return [repr(error)]
        return [] if report.clean else report.problems

    async def _count(self, *names: str) -> dict[str, int]:
        async def body(tr: ReadTransaction) -> dict[str, int]:
            found = {}
            for name in names:
                prefix = LEFT_OVER[name]
                rows = await tr.get_range(prefix, keyspace.after_prefix(prefix))
                if rows:
                    found[name] = len(rows)
            return found

        return await self._db.read(body)

    async def _read_all(self, when: str, *, through: int = 100) -> None:
        """Read every key through every gateway, or some; all of them must answer."""
        if not self.gateways:
            await self._any_gateway()
        names = sorted(self.gateways)
        for name in sorted(self._chance.sample(names, min(through, len(names)))):
            gateway = self.gateways[name]
            for key in self._keys:
                call = Call(kind="get", key=key)
                begun = self._history.begin(99, call, name)
                try:
                    begun.found(await get(gateway.engine, key))
                except EngineError as error:
                    begun.unknown()
                    raise Failed(f"{when}: {key} through {name}: {error!r}") from error
            begun = self._history.begin(99, Call(kind="list", key=""), name)
            begun.listed(await listing(gateway.engine, ""))

    # The end

    async def _close_gateways(self) -> None:
        for gateway in list(self.gateways.values()):
            if self._chance.random() < 0.5:
                gateway.leave.set()
            else:
                gateway.crash()
        while self.gateways:  # noqa: ASYNC110  virtual time costs nothing
            await trio.sleep(0.5)

    async def _leave_nothing(self) -> None:
        """Delete everything and let the services collect it."""
        self._network.calm = True
        async with self._auditor() as auditor:
            if self._chance.random() < 0.3:
                await self._heal()
            await self._read_all("after the last gateway was replaced")
            engine = auditor.engine
            uploads = await engine.list_uploads(BUCKET)
            for upload in uploads.uploads:
                await engine.abort_upload(BUCKET, upload.key, upload.upload_id)
            for key in self._keys:
                await engine.delete(BUCKET, key)
            deadline = trio.current_time() + HEAL_S_MAX
            while left := await self._left_over():
                if trio.current_time() > deadline:
                    raise Failed(f"left over after everything was deleted: {left}")
                await trio.sleep(LOOK_S)
            await engine.delete_bucket(BUCKET)

    @asynccontextmanager
    async def _auditor(self) -> AsyncIterator[Gateway]:
        async with self._opener.open("auditor") as auditor:
            self.gateways["auditor"] = auditor
            try:
                yield auditor
            finally:
                del self.gateways["auditor"]

    async def _left_over(self) -> dict[str, object]:
        left: dict[str, object] = dict(await self._count(*LEFT_OVER))
        for name, machine in self.machines.items():
            if machine.shelf.synced:
                left[name] = [fragment.hex() for fragment in machine.shelf.synced][:5]
        return left

    def _judge(self) -> None:
        problems = self._outcome.problems
        problems += self._history.problems()
        problems += [f"no engine may raise this: {error}" for error in self._clients.errors]
        if not self._reads_may_fail:
            problems += [f"for no reason: {error}" for error in self._clients.corrupt]
