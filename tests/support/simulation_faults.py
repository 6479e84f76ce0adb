"""What goes wrong in a simulated run: a plan drawn from the seed, and how it is carried out.

At most one machine per epoch loses or spoils data that it had made durable (the *victim*): more
than that, before repair, is more than a write of k + 1 fragments promises to survive. Everything
else passes, and any number of machines and gateways may suffer it at once.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import trio

from tests.support.simulation_gateway import Gateway
from tests.support.simulation_machine import Machine
from tests.support.simulation_network import Network

Kind = Literal[
    "kill", "power", "replace", "rot", "full", "slow", "cut", "cut to", "cut from", "loss",
    "crash gateway", "stop gateway", "clock", "metadata gone", "answers lost",
]  # fmt: skip
WEIGHTS: dict[Kind, int] = {
    "kill": 4, "power": 4, "replace": 3, "rot": 4, "full": 2, "slow": 3, "cut": 3, "cut to": 2,
    "cut from": 3, "loss": 3, "crash gateway": 3, "stop gateway": 5, "clock": 2,
    "metadata gone": 2, "answers lost": 2,
}  # fmt: skip
DESTRUCTIVE = ("replace", "rot")
OF_GATEWAYS = ("crash gateway", "stop gateway", "clock", "metadata gone", "answers lost")


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
    faults = []
    for kind in chance.choices([*WEIGHTS], [*WEIGHTS.values()], k=chance.randint(0, 7)):
        target = victim if kind in DESTRUCTIVE else chance.choice(machines)
        if kind in OF_GATEWAYS or kind == "loss":
            target = ""
        # Now and then longer than any patience: lost, session expired.
        for_s = chance.choice([0.05, 0.5, 2.0, 6.0, 15.0]) * (0.5 + chance.random())
        faults.append(Fault(chance.random() * length_s, for_s, kind, target))
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
        say: Callable[[str], None],
    ) -> None:
        self._chance = chance
        self._network = network
        self._machines = machines
        self._gateways = gateways
        self._start_gateway = start_gateway
        self._say = say

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
            living = [self._gateways[name] for name in sorted(self._gateways)]
            if living:
                await self._suffer_gateway(fault, self._chance.choice(living))
        elif fault.kind == "loss":
            self._network.loss += 0.1
            await trio.sleep(fault.for_s)
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
            return
        machine.crash(power=fault.kind == "power")
        if fault.kind == "replace":
            machine.replace_drive()
        await trio.sleep(fault.for_s)
        machine.restart()

    async def _suffer_for_a_while(self, fault: Fault, machine: Machine) -> None:
        match fault.kind:
            case "slow":
                machine.slow_s += 2 * self._chance.random()
                await trio.sleep(fault.for_s)
                machine.slow_s = 0.0
            case "full":
                machine.shelf.full = True
                await trio.sleep(fault.for_s)
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
                await trio.sleep(fault.for_s)
                for link in links:
                    self._network.heal(*link)

    async def _suffer_gateway(self, fault: Fault, gateway: Gateway) -> None:
        self._say(f"{gateway.name}: {fault.kind}")
        match fault.kind:
            case "crash gateway":
                gateway.crash()
                await trio.sleep(fault.for_s)
                self._start_gateway()
            case "stop gateway":
                gateway.stop()
                await trio.sleep(fault.for_s)
                gateway.resume()
            case "clock":
                gateway.clock.offset_s += self._chance.uniform(-8.0, 8.0)
                await trio.sleep(fault.for_s)
                gateway.clock.offset_s = 0.0
            case "metadata gone":
                gateway.db.unreachable = True
                await trio.sleep(fault.for_s)
                gateway.db.unreachable = False
            case _:
                gateway.db.answers_lost = 0.3
                await trio.sleep(fault.for_s)
                gateway.db.answers_lost = 0.0
