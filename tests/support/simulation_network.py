"""The simulated network: messages are late, lost, or wait for a cut to heal; and nodes as the
gateways see them through it."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from typing import Generic, Protocol, TypeVar

import trio

from engine.ids import FragmentId, MemberId, NodeId
from engine.node.contract import (
    BlockingWriter,
    Buffer,
    FragmentInfo,
    NodeDown,
    NodeError,
    Space,
)
from engine.node.wire.messages import MemberHealth
from tests.support.simulation_machine import Machine

T = TypeVar("T")

TICK_S = 0.0005
_TICKS = (1, 1, 2, 4)
CALL_S_MAX = 1.5
"""So long a gateway waits for an answer."""


class Network:
    """Links are one way, from one name to another."""

    def __init__(self, chance: random.Random, nursery: trio.Nursery) -> None:
        self.chance = chance
        self.nursery = nursery
        self.cuts: set[tuple[str, str]] = set()
        self.loss = 0.0
        self.calm = False
        """Nothing goes wrong and no client calls: then most messages arrive at once, since their
        order decides little, and time costs."""
        self._healed = trio.Event()

    def cut(self, sender: str, receiver: str) -> None:
        self.cuts.add((sender, receiver))

    def heal(self, sender: str, receiver: str) -> None:
        self.cuts.discard((sender, receiver))
        self._healed.set()
        self._healed = trio.Event()

    async def carry(self, sender: str, receiver: str) -> bool:
        """Return True once a message has arrived, False when it never will.

        What is sent into a cut is lost, or comes when the cut has healed, as TCP would have it:
        whoever sent it may have given up long ago.
        """
        await self.travel()
        if self.loss and self.chance.random() < self.loss:
            return False
        if (sender, receiver) in self.cuts:
            if self.chance.random() < 0.5:
                return False
            while (sender, receiver) in self.cuts:
                await self._healed.wait()
            await trio.sleep(self.chance.random() * 0.05)
        return True

    async def travel(self) -> None:
        """Take as long as a message does: on a grid, so that many arrive at one moment, which the
        scheduler then puts into any order."""
        if self.calm and self.chance.random() < 0.8:
            return
        ticks = _TICKS[int(self.chance.random() * 4)]
        await trio.sleep_until((int(trio.current_time() / TICK_S + 0.5) + ticks) * TICK_S)

    def healthy(self, one: str, other: str) -> bool:
        """Return whether messages arrive for certain, both ways."""
        return not self.loss and not (
            self.cuts and ((one, other) in self.cuts or (other, one) in self.cuts)
        )


class Caller(Protocol):
    """A gateway, as far as its calls need it."""

    name: str
    has_written: bool

    def passes(self) -> bool:
        """Count a call; return whether it has to wait at the ``gate``."""

    async def gate(self) -> None:
        """Wait while the process is stopped. Raises NodeDown once it has crashed."""


class _Reply(Generic[T]):
    __slots__ = ("came", "error", "value")

    def __init__(self) -> None:
        self.came = trio.Event()
        self.value: T | None = None
        self.error: NodeError | None = None


class RemoteMember:
    """A machine behind the network, as one gateway sees it: ``engine.cluster.wire.MemberCalls``."""

    def __init__(self, network: Network, caller: Caller, machine: Machine) -> None:
        self.machine = machine
        self._network = network
        self.caller = caller

    async def health(self) -> MemberHealth:
        return await self.call(self.machine.health)

    async def adopt(
        self, member: MemberId, store: str, drives: Mapping[str, NodeId]
    ) -> MemberHealth:
        return await self.call(lambda: self.machine.adopt(drives))

    def node(self, node_id: NodeId) -> RemoteNode:
        assert node_id == self.machine.node_id
        return RemoteNode(self)

    async def aclose(self) -> None:
        pass

    async def call(self, function: Callable[[], T], *, incarnation: int | None = None) -> T:
        """Do it on the machine and return its answer.

        Cancelled, or without an answer in time, it may be done all the same, now or later.
        """
        caller, network = self.caller, self._network
        if caller.passes():
            await caller.gate()
        if not self.machine.slow_s and network.healthy(caller.name, self.machine.name):
            value = await self._call_at_once(function, incarnation)
            if caller.passes():
                await caller.gate()
            return value
        reply: _Reply[T] = _Reply()
        network.nursery.start_soon(self._serve, function, reply, incarnation)
        with trio.move_on_after(CALL_S_MAX):
            await reply.came.wait()
        if caller.passes():
            await caller.gate()
        if not reply.came.is_set():
            raise NodeDown(f"{self.machine.name} does not answer")
        if reply.error is not None:
            raise reply.error
        return reply.value  # type: ignore[return-value]  # set together with ``came``

    async def _call_at_once(self, function: Callable[[], T], incarnation: int | None) -> T:
        """Without a task of its own: most calls meet no fault, and these decide the speed."""
        network = self._network
        try:
            await network.travel()
        except trio.Cancelled:
            if network.chance.random() < 0.5:  # it was sent already
                network.nursery.start_soon(self._serve, function, _Reply[T](), incarnation)
            raise
        value = self._act(function, incarnation)
        if network.chance.random() < 0.1:
            await network.travel()
        return value

    def _act(self, function: Callable[[], T], incarnation: int | None) -> T:
        if incarnation is not None and incarnation != self.machine.incarnation:
            raise NodeDown(f"{self.machine.name} has restarted")
        self.machine.calls.passed()
        return function()

    async def _serve(
        self, function: Callable[[], T], reply: _Reply[T], incarnation: int | None
    ) -> None:
        machine, network = self.machine, self._network
        if not await network.carry(self.caller.name, machine.name):
            return
        if machine.slow_s:
            await trio.sleep(machine.slow_s)
        try:
            reply.value = self._act(function, incarnation)
        except NodeError as error:
            reply.error = error
        if await network.carry(machine.name, self.caller.name):
            reply.came.set()


class RemoteNode:
    """The drive of a machine: ``engine.node.contract.Node``."""

    blocking = None

    def __init__(self, member: RemoteMember) -> None:
        self.node_id: NodeId = member.machine.node_id
        self._machine = member.machine
        self.caller = member.caller
        self.call = member.call

    async def read_into(
        self, fragment: FragmentId, offset: int, buffers: Sequence[memoryview]
    ) -> None:
        sizes = [len(buffer) for buffer in buffers]

        def read() -> bytearray:
            content = bytearray(sum(sizes))
            self._machine.drive.read_into(fragment, offset, [memoryview(content)], nowait=False)
            return content

        content = await self.call(read)
        at = 0
        for buffer in buffers:
            buffer[:] = content[at : at + len(buffer)]
            at += len(buffer)

    async def open_writer(self, fragment: FragmentId, size_max: int) -> RemoteWriter:
        writer, incarnation = await self.call(
            lambda: (
                self._machine.drive.open_writer(fragment, size_max),
                self._machine.incarnation,
            )
        )
        return RemoteWriter(self, writer, incarnation)

    async def delete(self, fragments: Sequence[FragmentId]) -> None:
        await self.call(lambda: self._machine.drive.delete(fragments))

    async def stat(self, fragment: FragmentId) -> FragmentInfo | None:
        return await self.call(lambda: self._machine.drive.stat(fragment))

    async def list(self, after: bytes, limit: int) -> list[FragmentInfo]:
        return await self.call(lambda: self._machine.drive.list(after, limit))

    async def space(self) -> Space:
        return await self.call(lambda: self._machine.drive.space())

    async def aclose(self) -> None:
        pass


class RemoteWriter:
    """A transfer on a connection of its own: nothing that was sent later is done earlier, and
    whatever breaks it ends it."""

    def __init__(self, node: RemoteNode, writer: BlockingWriter, incarnation: int) -> None:
        self._node = node
        self._writer = writer
        self._incarnation = incarnation
        self._broken = False
        self._received = 0
        self._sent = 0

    async def _in_order(self, function: Callable[[], None]) -> None:
        if self._broken:
            raise NodeDown("the connection is gone")
        number, self._sent = self._sent, self._sent + 1

        def act() -> None:
            if self._received != number:
                raise NodeDown("the connection is gone")
            self._received += 1
            function()

        self._broken = True
        await self._node.call(act, incarnation=self._incarnation)
        self._broken = False

    async def write(self, buffers: Sequence[Buffer]) -> None:
        copies = [bytes(buffer) for buffer in buffers]
        await self._in_order(lambda: self._writer.write(copies))

    async def commit(self) -> None:
        await self._in_order(self._writer.commit)
        self._node.caller.has_written = True

    async def abort(self) -> None:
        # The machine sees the connection end, at its own time.
        self._broken = True
