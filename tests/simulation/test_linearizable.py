"""The checker itself: histories known to be good or bad, and brute force on small ones."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator, Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.linearizable import Operation, State, check, check_key


def put(value: str, begin: float, end: float | None, **more: str) -> Operation:
    return Operation(client=0, key="k", kind="put", begin=begin, end=end, value=value, **more)


def get(value: State, begin: float, end: float | None) -> Operation:
    return Operation(client=0, key="k", kind="get", begin=begin, end=end, value=value)


def delete(begin: float, end: float | None, **more: str) -> Operation:
    return Operation(client=0, key="k", kind="delete", begin=begin, end=end, **more)


GOOD = {
    "empty": [],
    "read what was put": [put("a", 0, 1), get("a", 2, 3)],
    "absent at first": [get(None, 0, 1), put("a", 2, 3)],
    "overlapping read sees the new or the old": [put("a", 0, 9), get(None, 1, 2), get("a", 3, 4)],
    "overlapping puts in either order": [put("a", 0, 5), put("b", 1, 6), get("a", 7, 8)],
    "touching intervals are concurrent": [put("a", 0, 1), get(None, 1, 2)],
    "unknown put never happens": [put("a", 0, None), get(None, 5, 6)],
    "unknown put happens late": [put("a", 0, None), put("b", 1, 2), get("b", 3, 4), get("a", 5, 6)],
    "unknown delete happens late": [
        put("b", 1, 2), delete(3, None), get("b", 4, 5), get(None, 6, 7)
    ],
    "create once": [
        put("a", 0, 1, if_none_match="*"),
        put("b", 2, 3, if_none_match="*", refused="condition"),
        get("a", 4, 5),
    ],
    "compare and swap": [put("a", 0, 1), put("b", 2, 3, if_match="a"), get("b", 4, 5)],
    "refused since it is absent": [put("a", 0, 1, if_match="x", refused="absent")],
    "refused because an unknown one came between": [
        put("a", 0, 1), put("b", 2, None), put("c", 3, 4, if_match="a", refused="condition"),
        get("b", 5, 6),
    ],
    "an unanswered read says nothing": [put("a", 0, 1), get(None, 2, None), get("a", 3, 4)],
    "a read before an unknown one is not bound": [
        put("a", 0, None), get(None, 1, 2), get("a", 3, 4), delete(5, 6), get(None, 7, 8)
    ],
}  # fmt: skip
BAD = {
    "value out of nowhere": [get("a", 0, 1)],
    "stale read": [put("a", 0, 1), put("b", 2, 3), get("a", 4, 5)],
    "lost put": [put("a", 0, 1), get(None, 2, 3)],
    "deleted comes back": [put("a", 0, 1), delete(2, 3), get("a", 4, 5)],
    "reads go back in time": [put("a", 0, 9), get("a", 1, 2), get(None, 3, 4)],
    "reads disagree on the order": [
        put("a", 0, 9), put("b", 0, 9), get("a", 1, 2), get("b", 3, 4), get("a", 5, 6)
    ],
    "unknown put happens twice": [
        put("a", 0, None), get("a", 1, 2), put("b", 3, 4), get("b", 5, 6), get("a", 7, 8)
    ],
    "unknown put before its call": [get("a", 0, 1), put("a", 2, None)],
    "two creators": [put("a", 0, 5, if_none_match="*"), put("b", 0, 5, if_none_match="*")],
    "two swaps of one value": [
        put("a", 0, 1), put("b", 2, 5, if_match="a"), put("c", 2, 5, if_match="a")
    ],
    "refused for nothing": [
        put("a", 0, 1), put("b", 2, 3, if_match="a", refused="condition")
    ],
    "refused as absent although it is there": [
        put("a", 0, 1), put("b", 2, 3, if_match="x", refused="absent")
    ],
    "refused create took effect": [
        put("a", 0, 1), put("b", 2, 3, if_none_match="*", refused="condition"), get("b", 4, 5)
    ],
    "condition of an unknown one never held": [
        put("a", 0, 1), put("b", 2, None, if_match="x"), get("b", 4, 5)
    ],
}  # fmt: skip


@pytest.mark.parametrize("name", GOOD)
def test_good_history_passes(name: str) -> None:
    assert check(GOOD[name]) == []


@pytest.mark.parametrize("name", BAD)
def test_bad_history_is_found(name: str) -> None:
    assert len(check(BAD[name])) == 1


def test_violation_names_the_answer_and_what_was_possible() -> None:
    [violation] = check(BAD["stale read"])
    assert violation.impossible == BAD["stale read"][2]
    assert violation.possible == ["b"]
    assert ">>" in str(violation)
    assert "could hold only: b" in str(violation)


def test_keys_are_checked_apart() -> None:
    good = [Operation(client=1, key="good", kind="put", begin=0, end=1, value="a")]
    assert [each.key for each in check([*good, *BAD["lost put"]])] == ["k"]


# Brute force


def _orders(operations: Sequence[Operation]) -> Iterator[tuple[Operation, ...]]:
    """Every order of every choice of operations that keeps to their times."""
    known = [op for op in operations if op.end is not None]
    unknown = [op for op in operations if op.end is None]
    for count in range(len(unknown) + 1):
        for chosen in itertools.combinations(unknown, count):
            for order in itertools.permutations([*known, *chosen]):
                if all(
                    later.end is None or later.end >= earlier.begin
                    for earlier, later in itertools.combinations(order, 2)
                ):
                    yield order


def explained(operations: Sequence[Operation]) -> bool:
    for order in _orders([op for op in operations if op.kind != "get" or op.end is not None]):
        state: State = None
        for operation in order:
            after = operation.step(state)
            if after is None:
                break
            state = after[0]
        else:
            return True
    return False


VALUES = st.sampled_from(["a", "b", "c"])


@st.composite
def operations(draw: st.DrawFn) -> Operation:
    begin = draw(st.integers(0, 8))
    end = None if draw(st.integers(0, 4)) == 0 else begin + draw(st.integers(0, 5))
    kind = draw(st.sampled_from(["put", "get", "delete"]))
    condition = {}
    if kind != "get" and draw(st.booleans()):
        name = draw(st.sampled_from(["if_match", "if_none_match"]))
        condition[name] = draw(st.one_of(st.just("*"), VALUES))
        if end is not None and draw(st.booleans()):
            absent = name == "if_match" and draw(st.booleans())
            condition["refused"] = "absent" if absent else "condition"
    value = None
    if kind == "put":
        value = draw(VALUES)
    elif kind == "get":
        value = draw(st.one_of(st.none(), VALUES))
    return Operation(client=0, key="k", kind=kind, begin=begin, end=end, value=value, **condition)


@settings(max_examples=400, deadline=None)
@given(st.lists(operations(), max_size=6))
def test_agrees_with_brute_force(history: list[Operation]) -> None:
    assert (check_key(history) is None) == explained(history)


# Long histories


def simulated(seed: int, *, keys: int, count: int, clients: int) -> list[Operation]:
    """A history that is linearizable by its making: each operation acts at one moment."""
    chance = random.Random(seed)
    store: dict[str, str] = {}
    calls = []
    for client in range(clients):
        at = 0.0
        for number in range(count // clients):
            begin, act, end = sorted(at + chance.random() for _ in range(3))
            calls.append((act, begin, end, client, number))
            at = end
    history = []
    for _, begin, answer, client, number in sorted(calls):
        key = f"key{chance.randrange(keys)}"
        kind = chance.choices(["put", "get", "delete"], [4, 5, 1])[0]
        unknown = chance.random() < 0.05
        end = None if unknown else answer
        happens = not unknown or chance.random() < 0.5
        value: State = f"{client}-{number}" if kind == "put" else None
        if kind == "get":
            value = store.get(key)
        elif happens and value is not None:
            store[key] = value
        elif happens:
            store.pop(key, None)
        history.append(
            Operation(client=client, key=key, kind=kind, begin=begin, end=end, value=value)
        )
    return history


def test_ten_thousand_operations_are_decided() -> None:
    history = simulated(1, keys=50, count=10_000, clients=20)
    assert check(history) == []
    reads = [i for i, op in enumerate(history) if op.kind == "get" and op.end is not None]
    for index in random.Random(2).sample(reads, 20):
        wrong = list(history)
        wrong[index] = Operation(
            client=0, key=wrong[index].key, kind="get", begin=wrong[index].begin,
            end=wrong[index].end, value="never written",
        )  # fmt: skip
        mine = [op for op in wrong if op.key == wrong[index].key]
        assert check_key(mine) is not None


def test_one_key_with_many_unknown_outcomes_is_decided() -> None:
    assert check(simulated(3, keys=1, count=500, clients=8)) == []
