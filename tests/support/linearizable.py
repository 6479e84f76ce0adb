"""Is a history of operations on keys linearizable? A checker in the manner of Porcupine.

Linearizable: each operation can be given one moment between its call and its answer, so that the
operations, done one by one at their moments, give the answers that were seen (Herlihy and Wing,
"Linearizability: a correctness condition for concurrent objects", 1990). It is a local property:
each key is checked for itself, which is what makes long histories checkable.

The search is Wing and Gong's in Lowe's just-in-time form ("Testing for linearizability", 2016):
walk through calls and answers in time order, keeping every *configuration* that the past allows:
what the key holds, and which operations without an answer yet have taken effect. An operation is
made to take effect only when its answer comes, together with others that must go before it. When
no configuration is left, the answer just met is impossible. Configurations are remembered, and

* an operation that changes nothing takes effect as soon as it can: that never spoils anything;
* a put or delete that nobody has to see may be *hidden*: it took effect right before another one
  that overwrote it. Which ones are hidden is left open in one configuration, instead of having one
  configuration for each choice;
* an operation is tried only when it lets a read, or a condition, come true (or is the one whose
  answer came): else hiding it, or leaving it for later, is as good;
* of two configurations that differ only in operations of *unknown outcome* used, or in what may be
  hidden, the one that has used fewer and may hide more stands for both.

An operation of unknown outcome (a time-out, a lost connection, a 5xx) has no answer for ever: it
may take effect at any time after its call, or never.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import msgspec

State: TypeAlias = str | None
"""What a key holds: the name of a value (its ETag, or a hash), or None: nothing."""

_Config: TypeAlias = tuple[State, int, int]
"""State; the operations without an answer that have taken effect, and those that may have done so
unseen; as bits."""

CONFIGURATIONS_MAX = 200_000
WINDOW = 16
"""Operations shown before the impossible one."""


class TooHard(Exception):
    """More configurations than can be searched; nothing is known of the history."""


class Operation(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One operation on one key, as its client saw it."""

    client: int
    key: str
    kind: Literal["put", "get", "delete"]
    begin: float
    """Seconds; one monotonic clock for all clients."""
    end: float | None = None
    """None: the outcome is unknown."""
    value: State = None
    """What was put, or what a read found (None: nothing)."""
    if_match: str | None = None
    """``*``, or the value that the key had to hold."""
    if_none_match: str | None = None
    """``*``: the key had to hold nothing; or a value that it had not to hold."""
    refused: Literal["", "condition", "absent"] = ""
    """The condition did not hold: because of what the key held, or because it held nothing."""
    where: str = ""
    """For people: which gateway answered."""

    def observes(self) -> bool:
        """Return whether the operation changes nothing, whenever it takes effect."""
        return self.kind == "get" or bool(self.refused)

    def step(self, state: State) -> tuple[State] | None:
        """Return what the key holds after the operation; None if it could not be answered so."""
        if self.kind == "get":
            return (state,) if state == self.value else None
        held = self._condition_holds(state)
        if self.refused:
            absent = state is None and self.if_match is not None
            wanted = "absent" if absent else "condition"
            return (state,) if not held and self.refused == wanted else None
        if not held:
            return None
        return (self.value if self.kind == "put" else None,)

    def _condition_holds(self, state: State) -> bool:
        if self.if_match is not None and (
            state is None or (self.if_match != "*" and self.if_match != state)
        ):
            return False
        return not (
            self.if_none_match is not None
            and state is not None
            and self.if_none_match in ("*", state)
        )

    def __str__(self) -> str:
        condition = ""
        if self.if_match is not None:
            condition += f" if-match {short(self.if_match)}"
        if self.if_none_match is not None:
            condition += f" if-none-match {short(self.if_none_match)}"
        what = {
            "put": f"put {short(self.value)}{condition}",
            "get": f"get -> {short(self.value)}" if self.end is not None else "get",
            "delete": f"delete{condition}",
        }[self.kind]
        if self.refused:
            what += f" -> refused ({self.refused})"
        elif self.end is None:
            what += " -> ?"
        end = "?" if self.end is None else f"{self.end:.6f}"
        where = f" @{self.where}" if self.where else ""
        return f"{self.begin:12.6f} .. {end:>12}  client {self.client:<3}{where} {what}"


def short(value: State) -> str:
    return "nothing" if value is None else value[:10]


@dataclass(frozen=True, slots=True)
class Violation:
    """A key whose history no order explains."""

    key: str
    impossible: Operation
    """The first answer that cannot be, given everything answered before."""
    possible: list[State]
    """What the key could have held when that answer came."""
    history: list[Operation]
    """The key's operations, by their calls."""

    def __str__(self) -> str:
        assert self.impossible.end is not None
        last = self.impossible.end
        before = [op for op in self.history if op.begin <= last]
        relevant = [op for op in before if op.end is None or op.end >= self.impossible.begin]
        shown = [op for op in before if op in before[-WINDOW:] or op in relevant]
        states = ", ".join(sorted(short(state) for state in self.possible))
        lines = [f"key {self.key!r} is not linearizable:"]
        lines += [f"{'>>' if op is self.impossible else '  '} {op}" for op in shown]
        lines.append(f"   before that answer the key could hold only: {states}")
        return "\n".join(lines)


def check(operations: Iterable[Operation]) -> list[Violation]:
    """Return a violation for each key whose history is not linearizable; every key holds nothing
    at first.

    Cost: about 10 µs per operation as long as few of one key overlap.
    Raises: TooHard.
    """
    by_key: dict[str, list[Operation]] = {}
    for operation in operations:
        by_key.setdefault(operation.key, []).append(operation)
    found = [check_key(history) for _, history in sorted(by_key.items())]
    return [violation for violation in found if violation is not None]


def check_key(history: Sequence[Operation]) -> Violation | None:
    """Check the operations of one key. Raises: TooHard."""
    ordered = sorted(history, key=lambda op: op.begin)
    # A read without an answer says nothing.
    relevant = [op for op in ordered if op.end is not None or op.kind != "get"]
    impossible = _Search(relevant).run()
    if impossible is None:
        return None
    operation, possible = impossible
    return Violation(operation.key, operation, possible, ordered)


class _Search:
    def __init__(self, operations: Sequence[Operation]) -> None:
        self._operations = operations
        self._bits = [1 << index for index in range(len(operations))]
        self._unknown = 0
        for operation, bit in zip(operations, self._bits, strict=True):
            if operation.end is None:
                self._unknown |= bit
        self._blind: dict[int, Operation] = {}
        """Operations called and not answered, by bit: those that change the key in any case,"""
        self._conditional: dict[int, Operation] = {}
        """those that change it if a condition holds,"""
        self._looks: dict[int, Operation] = {}
        """and those that change nothing."""

    def run(self) -> tuple[Operation, list[State]] | None:
        """Return the first impossible answer with the states possible before it."""
        events: list[tuple[float, int, int]] = []
        for index, operation in enumerate(self._operations):
            events.append((operation.begin, 0, index))
            if operation.end is not None:
                events.append((operation.end, 1, index))
        # At the same moment calls come before answers: such operations count as concurrent.
        events.sort()
        configs: list[_Config] = [(None, 0, 0)]
        for _, is_answer, index in events:
            bit, operation = self._bits[index], self._operations[index]
            if not is_answer:
                configs = self._called(configs, bit, operation)
                continue
            left = self._answered(configs, bit)
            for pending in (self._blind, self._conditional, self._looks):
                pending.pop(bit, None)
            if not left:
                return operation, sorted({state for state, _, _ in configs}, key=str)
            configs = left
        return None

    def _called(self, configs: list[_Config], bit: int, operation: Operation) -> list[_Config]:
        if operation.observes():
            self._looks[bit] = operation
            return [
                (state, done | bit if operation.step(state) is not None else done, hidden)
                for state, done, hidden in configs
            ]
        if operation.if_match is None and operation.if_none_match is None:
            self._blind[bit] = operation
        else:
            self._conditional[bit] = operation
        return configs

    def _answered(self, configs: list[_Config], bit: int) -> list[_Config]:
        """Return what is left of the configurations when the operation must have taken effect."""
        left = _Best(self._unknown)
        seen = _Best(self._unknown)
        frontier: list[_Config] = []
        for state, done, hidden in configs:
            if done & bit:
                left.add(state, done ^ bit, hidden)
                continue
            if hidden & bit:
                left.add(state, done, hidden ^ bit)
            if seen.add(state, done, hidden):
                frontier.append((state, done, hidden))
        while frontier:
            following: list[_Config] = []
            for config in frontier:
                for state, done, hidden in self._steps(config, bit):
                    if done & bit:
                        left.add(state, done ^ bit, hidden & ~bit)
                    elif seen.add(state, done, hidden):
                        following.append((state, done, hidden))
            frontier = following
        return left.all()

    def _steps(self, config: _Config, bit: int) -> Iterator[_Config]:
        """Yield what one more operation that is worth trying makes of the configuration."""
        before, done, hidden = config
        looks = [op for other, op in self._looks.items() if not done & other]
        waiting = [(other, op) for other, op in self._conditional.items() if not done & other]
        # Conditions that do not hold now, and might after a change.
        barred = [op for _, op in waiting if op.step(before) is None]
        wanted = {op.value for op in looks if op.kind == "get"}
        others = [op for op in looks if op.kind != "get"] + barred
        candidates = [item for item in self._blind.items() if not done & item[0]] + waiting
        for other, operation in candidates:
            value = operation.value if operation.kind == "put" else None
            # Next to conditions, what hides what may be coupled: all orders are tried.
            must = other == bit or (waiting and not other & self._unknown)
            if not (must or value in wanted or any(op.step(value) is not None for op in others)):
                continue
            if operation.step(before) is None:
                continue
            now = done | other
            may_hide = hidden
            for known, unseen in self._blind.items():
                if not known & (self._unknown | now) and operation.step(unseen.value) is not None:
                    may_hide |= known
            yield value, self._look(value, now), may_hide & ~other

    def _look(self, state: State, done: int) -> int:
        for bit, operation in self._looks.items():
            if not done & bit and operation.step(state) is not None:
                done |= bit
        return done


class _Best:
    """Configurations, without those for which another one stands (see above)."""

    def __init__(self, unknown: int) -> None:
        self._unknown = unknown
        self._kept: dict[tuple[State, int], list[tuple[int, int]]] = {}
        """(operations of unknown outcome used, hidden), by state and the other operations."""
        self._count = 0

    def add(self, state: State, done: int, hidden: int) -> bool:
        """Return whether no configuration seen before stands for this one."""
        used = done & self._unknown
        kept = self._kept.setdefault((state, done ^ used), [])
        for other_used, other_hidden in kept:
            if other_used & used == other_used and hidden & other_hidden == hidden:
                return False
        kept[:] = [
            (other_used, other_hidden)
            for other_used, other_hidden in kept
            if other_used & used != used or hidden & other_hidden != other_hidden
        ]
        kept.append((used, hidden))
        self._count += 1
        if self._count > CONFIGURATIONS_MAX:
            raise TooHard(f"more than {CONFIGURATIONS_MAX} configurations")
        return True

    def all(self) -> list[_Config]:
        return [
            (state, done | used, hidden)
            for (state, done), kept in self._kept.items()
            for used, hidden in kept
        ]
