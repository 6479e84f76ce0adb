"""What goes wrong in a simulated run: a plan drawn from the seed, and how it is carried out.

At most one machine per epoch loses or spoils data that it had made durable (the *victim*): more
than that, before repair, is more than a write of k + 1 fragments promises to survive. Everything
else passes, and any number of machines and gateways may suffer it at once.
"""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import trio

from engine.cluster.admin import ClusterAdmin
from engine.cluster.wire import MemberCalls
from engine.errors import ConfigError, EngineError
from tests.support.simulation_gateway import Gateway
from tests.support.simulation_machine import Countdown, Machine
from tests.support.simulation_network import Network

Kind = Literal[
    "kill", "power", "power all", "replace", "rot", "full", "slow", "cut", "cut to", "cut from",
    "loss", "drain", "crash gateway", "stop gateway", "clock", "metadata gone", "answers lost",
    "oversleep", "lean",
]  # fmt: skip
KINDS: tuple[Kind, ...] = get_args(Kind)
DESTRUCTIVE: tuple[Kind, ...] = ("replace", "rot")
OF_ALL = ("power all", "loss")
OF_GATEWAYS = (
    "crash gateway", "stop gateway", "clock", "metadata gone", "answers lost", "oversleep",
)  # fmt: skip
LENGTHS_S = (0.05, 0.5, 2.0, 6.0, 15.0)
LONG_S = (0.5, 5.0, 15.0, 20.0)
OVERSLEPT_S = (12.0, 20.0)
"""Of a gateway that stops between writing fragments and claiming them: its session and its leases
run out meanwhile, and another gateway collects what it wrote."""
OVERSLEEP = 0.06
"""So many epochs have such a gateway."""
LEAN = 0.1
"""So many epochs have a moment at which drives have room for k or k + 1 fragments only, and one of
these drives is replaced, or spoilt, once somebody has written: what was acknowledged survives."""
AIMED: tuple[Kind, ...] = ("oversleep", "lean")
UNDRAIN_TRIES = 60
PATIENCE_S = 3.0
CALLS_MAX = 40
"""Crashes and stops happen at one of the next so many calls: then, something is under way."""


@dataclass(frozen=True, slots=True)
class Fault:
    at_s: float
    """After the beginning of its epoch."""
    for_s: float
    kind: Kind
    target: str
    """A machine; of faults of gateways, nothing: whoever is there is drawn."""

    def __str__(self) -> str:
        return f"{self.kind} {self.target} for {self.for_s:.2f} s"


def plan(chance: random.Random, machines: Sequence[str], *, length_s: float) -> list[Fault]:
    """Return the faults of one epoch, in order of time."""
    victim = chance.choice(machines)
    # Few kinds at once, so that each gets its turn in force (Groce et al., "Swarm testing", 2012).
    kinds = chance.sample([kind for kind in KINDS if kind not in AIMED], chance.randint(1, 5))
    if chance.random() < 0.25:
        kinds.append(chance.choice((*DESTRUCTIVE, "stop gateway")))
    faults = []
    for kind in chance.choices(kinds, k=chance.choice((0, 2, 5, 10))):
        target = victim if kind in DESTRUCTIVE else chance.choice(machines)
        if kind in OF_GATEWAYS or kind in OF_ALL:
            target = ""
        # Now and then longer than any patience: lost, session expired.
        lengths = LONG_S if kind == "stop gateway" else LENGTHS_S
        for_s = chance.choice(lengths) * (0.5 + chance.random())
        faults.append(Fault(chance.random() * length_s, for_s, kind, target))
    if chance.random() < OVERSLEEP:
        faults.append(Fault(0.0, chance.uniform(*OVERSLEPT_S), "oversleep", ""))
    if chance.random() < LEAN:
        faults = [fault for fault in faults if fault.kind not in DESTRUCTIVE]
        faults.append(Fault(0.0, chance.random(), "lean", victim))
    return sorted(faults, key=lambda fault: fault.at_s)


class Faults:
    """Carries a plan out."""

    def __init__(
        self,
        chance: random.Random,
        network: Network,
        machines: Mapping[str, Machine],
        gateways: Mapping[str, Gateway],
        start_gateway: Callable[[], None],
        data_blocks: int,
        say: Callable[[str], None],
    ) -> None:
        self._hurry = trio.Event()
        self._data_blocks = data_blocks
        self._chance = chance
        self._network = network
        self._machines = machines
        self._gateways = gateways
        self._start_gateway = start_gateway
        self._say = say

    def hurry(self) -> None:
        """Let what goes on end now: nobody works any more."""
        self._hurry.set()

    async def _last(self, fault: Fault) -> None:
        with trio.move_on_after(fault.for_s):
            await self._hurry.wait()

    async def run(self, faults: Sequence[Fault]) -> None:
        """Return when all of them are over."""
        began = trio.current_time()
        async with trio.open_nursery() as nursery:
            for fault in faults:
                await trio.sleep_until(began + fault.at_s)
                nursery.start_soon(self._suffer, fault)

    async def _suffer(self, fault: Fault) -> None:
        self._say(f"fault: {fault}")
        if fault.kind in OF_GATEWAYS:
            known = [self._gateways[name] for name in sorted(self._gateways)]
            living = [gateway for gateway in known if not gateway.crashed]
            if living:
                # Stops hit one of them, so that the others declare it dead meanwhile.
                first = fault.kind in ("stop gateway", "oversleep")
                one = living[0] if first else self._chance.choice(living)
                await self._suffer_gateway(fault, one)
        elif fault.kind == "power all":
            await self._lose_all_power(fault)
        elif fault.kind == "lean":
            await self._have_little_room(fault, self._machines[fault.target])
        elif fault.kind == "drain":
            await self._drain(fault)
        elif fault.kind == "loss":
            self._network.loss += 0.1
            await self._last(fault)
            self._network.loss = max(0.0, self._network.loss - 0.1)
        elif fault.kind in ("slow", "full", "cut", "cut to", "cut from"):
            await self._suffer_for_a_while(fault, self._machines[fault.target])
        else:
            await self._suffer_crash(fault, self._machines[fault.target])
        self._say(f"over: {fault}")

    async def _suffer_crash(self, fault: Fault, machine: Machine) -> None:
        if fault.kind == "rot":
            count = machine.shelf.rot(self._chance, self._chance.random())
            self._say(f"{machine.name}: {count} fragments spoilt")
            machine.shelf.rotting = 0.3
            await self._last(fault)
            machine.shelf.rotting = 0.0
            return
        await self._at_a_call(machine.calls)
        machine.crash(power=fault.kind == "power")
        if fault.kind == "replace":
            machine.replace_drive()
        await self._last(fault)
        machine.restart()

    async def _have_little_room(self, fault: Fault, victim: Machine) -> None:
        others = [machine for _, machine in sorted(self._machines.items()) if machine is not victim]
        self._chance.shuffle(others)
        full = others[self._data_blocks - self._chance.randint(0, 1) :]
        for machine in full:
            machine.shelf.full = True
        for name in sorted(self._gateways)[:1]:
            with trio.move_on_after(PATIENCE_S):
                await self._gateways[name].db.claims.wait(self._chance.randint(1, 3))
        await trio.sleep(fault.for_s * 0.01)
        if self._chance.random() < 0.5:
            victim.shelf.rot(self._chance, 1.0)
        else:
            victim.crash(power=False)
            victim.replace_drive()
        for machine in full:
            machine.shelf.full = False
        await self._last(fault)
        victim.restart()

    async def _drain(self, fault: Fault) -> None:
        """Let an administrator empty a machine, and change their mind."""
        await self._administer(lambda admin: admin.drain(fault.target))
        await self._last(fault)
        for _ in range(UNDRAIN_TRIES):
            if await self._administer(lambda admin: admin.undrain(fault.target)):
                return
            await trio.sleep(1.0)

    async def _administer(self, work: Callable[[ClusterAdmin], Awaitable[str]]) -> bool:
        living = [self._gateways[name] for name in sorted(self._gateways)]
        if not living:
            return False
        gateway = self._chance.choice(living)
        try:
            await work(ClusterAdmin(gateway.engine.store, _connect_nobody))
        except EngineError as error:
            self._say(f"{gateway.name}: refused: {error}")
            return isinstance(error, ConfigError)
        return True

    async def _at_a_call(self, calls: Countdown, calls_max: int = CALLS_MAX) -> None:
        with trio.move_on_after(1.0):
            await calls.wait(self._chance.randrange(calls_max))

    async def _lose_all_power(self, fault: Fault) -> None:
        machines = [self._machines[name] for name in sorted(self._machines)]
        await self._at_a_call(self._chance.choice(machines).calls)
        for machine in machines:
            machine.crash(power=True)
        await self._last(fault)
        for machine in machines:
            machine.restart()

    async def _suffer_for_a_while(self, fault: Fault, machine: Machine) -> None:
        match fault.kind:
            case "slow":
                machine.slow_s += 2 * self._chance.random()
                await self._last(fault)
                machine.slow_s = 0.0
            case "full":
                machine.shelf.full = True
                await self._last(fault)
                machine.shelf.full = False
            case _:
                links = []
                for name in sorted(self._gateways):
                    if self._chance.random() < 0.3:
                        continue
                    if fault.kind != "cut from":
                        links.append((name, machine.name))
                    if fault.kind != "cut to":
                        links.append((machine.name, name))
                for link in links:
                    self._network.cut(*link)
                await self._last(fault)
                for link in links:
                    self._network.heal(*link)

    async def _suffer_gateway(self, fault: Fault, gateway: Gateway) -> None:
        self._say(f"{gateway.name}: {fault.kind}")
        match fault.kind:
            case "crash gateway":
                await self._at_a_call(gateway.calls)
                gateway.crash()
                await self._last(fault)
                self._start_gateway()
            case "stop gateway":
                await self._at_a_call(
                    self._chance.choice((gateway.calls, gateway.db.commits)), calls_max=4
                )
                gateway.stop()
                await self._last(fault)
                gateway.resume()
            case "oversleep":
                if len(self._gateways) < 2:
                    self._start_gateway()
                with trio.move_on_after(PATIENCE_S):
                    await gateway.db.claims.wait(self._chance.randint(1, 3))
                gateway.stop()
                await trio.sleep(fault.for_s)
                gateway.resume()
            case "clock":
                gateway.clock.offset_s += self._chance.uniform(-8.0, 8.0)
                await self._last(fault)
                gateway.clock.offset_s = 0.0
            case "metadata gone":
                gateway.db.unreachable = True
                await self._last(fault)
                gateway.db.unreachable = False
            case _:
                gateway.db.answers_lost = 0.3
                await self._last(fault)
                gateway.db.answers_lost = 0.0


def _connect_nobody(address: str, secret: bytes) -> MemberCalls:
    raise AssertionError("draining calls no member")
