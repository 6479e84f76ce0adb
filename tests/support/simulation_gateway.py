"""A simulated gateway: the real engine, opened by ``engine.opening``, over the metadata twin and
the simulated network.

What a gateway does to the world goes through ``gate``: a process that is stopped waits there, one
that has crashed does nothing any more.
"""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import TypeVar
from unittest.mock import patch

import msgspec
import trio

import engine.meta.memory
import engine.opening
from engine.config import Profile, StoreConfig
from engine.data.context import first_error
from engine.engine import Engine
from engine.errors import Unavailable
from engine.identity import StoreIdentity
from engine.meta.kv import ReadTransaction, Transaction
from engine.meta.memory import MemoryDatabase
from engine.node.contract import NodeDown
from engine.opening import open_engine
from engine.services import leases
from engine.services.upkeep import Upkeep
from tests.support.engine import START_MS
from tests.support.simulation_machine import STORE_ID, Countdown, Machine
from tests.support.simulation_network import TICK_S, Network, RemoteMember

T = TypeVar("T")

SESSION_S = 6.0
LEASE_S = 6.0
UPKEEP_S = 4.0
GRACE_S = 1.0
VISIBLE_MS_MAX = 1000
"""Of the collector, whose own is ten times as long: here commits take milliseconds."""

CONSTANTS: dict[str, object] = {
    "engine.opening.COLLECT_EVERY_S": 5.0,
    "engine.services.scrub.LOOK_AGAIN_S": 8.0,
    "engine.services.collector.VISIBLE_MS_MAX": VISIBLE_MS_MAX,
    # 600 s beside an interval of 30 s: short here as the interval is.
    "engine.services.upkeep.PATIENCE_S": 60.0,
    "engine.completion.PART_SIZE_MIN": 1,
    # So that objects of a few hundred bytes are read and written in several batches.
    "engine.data.reader.FIRST_BATCH_SIZE": 256,
    "engine.data.reader.AHEAD_SIZE_MIN": 64,
    "engine.data.reader.BATCH_SIZE_MAX": 512,
    "engine.data.pipeline.BATCH_SIZE_MAX": 512,
    "engine.data.rebuild.BATCH_SIZE_MAX": 512,
}


def simulated_config(profile: Profile, name: str) -> StoreConfig:
    """Return settings with which a few hundred bytes meet every class of durability."""
    return StoreConfig(
        data=Path("/nonexistent") / name,
        profile=profile,
        session_s=SESSION_S,
        grace_s=GRACE_S,
        chunk_size=profile.data * 64 * 5,
        block_size=64,
        inline_record_max=24,
        inline_max=40,
        replicated_max=100,
        memory=1 << 20,
        services=True,
        heartbeat_s=1.5,
        suspect_s=2.5,
        down_s=5.0,
        lost_s=10.0,
        straggler_s=0.5,
        scrub_period_s=12.0,
        census_period_s=20.0,
    )


class GatewayClock:
    """Wall-clock ms of one process: virtual time, wrong by ``offset_s``; never goes back."""

    def __init__(self) -> None:
        self.offset_s = 0.0
        self._last = 0

    def __call__(self) -> int:
        now = START_MS + int((trio.current_time() + self.offset_s) * 1000)
        self._last = max(self._last, now)
        return self._last


class GatewayGone(NodeDown, Unavailable):
    """The gateway has crashed: its code runs on for a moment, to no effect."""

    def __init__(self) -> None:
        Unavailable.__init__(self, "this gateway has crashed")


class GatewayDatabase:
    """The metadata store as one gateway sees it: ``engine.meta.kv.Database``."""

    def __init__(self, gateway: Gateway, inner: MemoryDatabase, chance: random.Random) -> None:
        self._gateway = gateway
        self._inner = inner
        self._chance = chance
        self.unreachable = False
        self.answers_lost = 0.0
        """How many commits are done without the gateway learning of it."""
        self.commits = Countdown()
        """Transactions of requests."""
        self.claims = Countdown()
        """Those that come after fragments were written: most of them claim these."""

    async def _enter(self) -> None:
        if self._gateway.passes():
            await self._gateway.gate()
        if self.unreachable:
            await trio.sleep(0.5)
            raise Unavailable("the metadata store does not answer")

    async def _wander(self) -> None:
        if self._chance.random() < 0.1:
            await trio.sleep(self._chance.random() * 0.01)
        if self._gateway.passes():
            await self._gateway.gate()

    async def read(self, body: Callable[[ReadTransaction], Awaitable[T]]) -> T:
        await self._enter()
        return await self._inner.read(body)

    async def run(self, body: Callable[[Transaction], Awaitable[T]]) -> T:
        if trio.lowlevel.current_task().parent_nursery is self._gateway.tasks:
            hit = self.commits.passed()
            if self._gateway.has_written:
                self._gateway.has_written = False
                hit |= self.claims.passed()
            if hit:
                await trio.sleep(TICK_S)  # the fault is to come first
        await self._enter()
        await self._wander()
        result = await self._inner.run(body)
        await self._wander()
        if self._chance.random() < self.answers_lost:
            raise Unavailable("the answer to a commit was lost")
        return result

    async def watch(self, key: bytes, value: bytes | None) -> None:
        await self._inner.watch(key, value)
        if self._gateway.passes():
            await self._gateway.gate()

    async def aclose(self) -> None:
        pass


class Gateway:
    """One process; ``engine`` is there once it has opened the store."""

    def __init__(self, name: str, seed: str, inner: MemoryDatabase) -> None:
        self.name = name
        self.clock = GatewayClock()
        self.crashed = False
        self.scope = trio.CancelScope()
        self.engine: Engine
        self.leave = trio.Event()
        """Set, it closes in order."""
        self.tasks: trio.Nursery = None  # type: ignore[assignment]  # until the store is open
        """Its requests."""
        self.db = GatewayDatabase(self, inner, random.Random(f"db {seed}"))
        self.chance = random.Random(f"ids {seed}")
        self.calls = Countdown()
        self.has_written = False
        """A fragment, since a request last changed metadata."""
        self._stops = 0
        self._running = trio.Event()
        self._running.set()

    @property
    def stopped(self) -> bool:
        return not self._running.is_set()

    def passes(self) -> bool:
        """Count a call; return whether it has to wait at the ``gate``. Most have not, and here each
        await costs."""
        self.calls.passed()
        return self.crashed or not self._running.is_set()

    async def gate(self) -> None:
        """Wait while the process is stopped. Raises NodeDown, Unavailable once it has crashed."""
        while not self._running.is_set():
            await self._running.wait()
        if self.crashed:
            raise GatewayGone

    def stop(self) -> None:
        self._stops += 1
        if self._running.is_set():
            self._running = trio.Event()

    def resume(self) -> None:
        """Undo one ``stop``."""
        self._stops -= 1
        if not self._stops:
            self._running.set()

    def crash(self) -> None:
        """Nothing it does from now on has an effect, but for messages that are under way."""
        self.crashed = True
        self._running.set()
        self.scope.cancel()


class Gateways:
    """Opens gateways. ``patched`` is around their whole life."""

    def __init__(
        self,
        seed: int,
        *,
        profile: Profile,
        db: MemoryDatabase,
        network: Network,
        machines: dict[str, Machine],
    ) -> None:
        self._seed = seed
        self._profile = profile
        self._db = db
        self._network = network
        self._machines = machines
        self._opening: dict[str, Gateway] = {}

    @contextmanager
    def patched(self) -> Iterator[None]:
        """Put what is simulated in the place of files and the machine's clock."""

        @asynccontextmanager
        async def open_metadata(config: StoreConfig) -> AsyncIterator[GatewayDatabase]:
            yield self._opening[config.data.name].db

        async def find_identity(config: StoreConfig, now_ms: int) -> StoreIdentity:
            return StoreIdentity(1, STORE_ID, START_MS)

        clock = SimpleNamespace(monotonic=trio.current_time, time_ns=_no_clock)
        with ExitStack() as stack:
            for name, value in CONSTANTS.items():
                stack.enter_context(patch(name, value))
            stack.enter_context(patch.object(engine.opening, "open_metadata", open_metadata))
            stack.enter_context(patch.object(engine.opening, "find_identity", find_identity))
            stack.enter_context(patch.object(engine.opening, "time", clock))
            stack.enter_context(patch.object(engine.meta.memory, "trio", self._slow_trio()))
            upkeep = partial(Upkeep, interval_s=UPKEEP_S)
            stack.enter_context(patch.object(engine.opening, "Upkeep", upkeep))
            stack.enter_context(patch.object(leases, "LEASE_S", LEASE_S))
            stack.enter_context(patch.dict(leases.acquire.__kwdefaults__, lease_s=LEASE_S))
            yield

    def _slow_trio(self) -> SimpleNamespace:
        """Return what the metadata twin uses of trio. Between the reads of a transaction and its
        commit it lets others run; here, at times, for as long as a real commit takes."""
        chance = random.Random(f"commits {self._seed}")

        async def checkpoint() -> None:
            if chance.random() < 0.25:
                await trio.sleep(0.001)
            else:
                await trio.lowlevel.checkpoint()

        return SimpleNamespace(Event=trio.Event, lowlevel=SimpleNamespace(checkpoint=checkpoint))

    @asynccontextmanager
    async def open(self, name: str, *, services: bool = True) -> AsyncIterator[Gateway]:
        """Open a gateway. After a crash the context ends by itself."""
        gateway = Gateway(name, f"{self._seed} {name}", self._db)
        self._opening[name] = gateway
        config = simulated_config(self._profile, name)
        config = msgspec.structs.replace(config, services=services)

        def connect(address: str, secret: bytes) -> RemoteMember:
            return RemoteMember(self._network, gateway, self._machines[address])

        with gateway.scope:
            try:
                async with (
                    open_engine(
                        config,
                        clock=gateway.clock,
                        random=lambda size: gateway.chance.randbytes(size),
                        connect=connect,
                    ) as opened,
                    trio.open_nursery() as gateway.tasks,
                ):
                    gateway.engine = opened
                    yield gateway
                    gateway.tasks.cancel_scope.cancel()
            except BaseException as error:  # noqa: ASYNC103  Cancelled is no Exception
                cause = first_error(error) if isinstance(error, BaseExceptionGroup) else error
                # Code that runs on after the crash may stumble over it.
                if not (gateway.crashed and isinstance(cause, Exception)):
                    raise


def _no_clock() -> int:
    raise AssertionError("the simulation has a clock of its own")
