"""What every metadata store must do: engine/meta/kv.py."""

from __future__ import annotations

import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trio
import trio.testing
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.meta import keyspace
from engine.meta.kv import (
    CONFIGURATION,
    KEY_SIZE_MAX,
    VALUE_SIZE_MAX,
    VERSIONSTAMP_SIZE,
    Database,
    LimitExceeded,
    ReadTransaction,
    Transaction,
)
from tests.support.kv import IMPLEMENTATIONS, counter, fetch, fetch_range, put


@pytest.fixture(params=IMPLEMENTATIONS)
async def db(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Database]:
    async with IMPLEMENTATIONS[request.param](tmp_path) as database:
        yield database


async def test_value_is_read_back_and_an_absent_key_is_none(db):
    await put(db, a=b"1", empty=b"")
    assert await fetch(db, b"a") == b"1"
    assert await fetch(db, b"empty") == b""
    assert await fetch(db, b"b") is None


async def test_run_and_read_return_what_the_body_returns(db):
    async def body(tr: ReadTransaction) -> str:
        await tr.get(b"a")
        return "result"

    assert await db.run(body) == "result"
    assert await db.read(body) == "result"


async def test_later_set_replaces_and_clear_removes(db):
    await put(db, a=b"1")
    await put(db, a=b"2")
    assert await fetch(db, b"a") == b"2"

    async def clear(tr: Transaction) -> None:
        tr.clear(b"a")
        tr.clear(b"never there")

    await db.run(clear)
    assert await fetch(db, b"a") is None


def test_configuration_is_what_nearly_every_transaction_reads() -> None:
    assert CONFIGURATION == (keyspace.BUCKET, keyspace.READ_ONLY)


async def cached(db: Database, key: bytes) -> bytes | None:
    return await db.read(lambda tr: tr.get_cached(key))


async def test_configuration_is_read_as_it_is_however_it_was_changed(db):
    assert await cached(db, b"Bphotos") is None
    await put(db, Bphotos=b"1")
    for _ in range(2):
        assert await cached(db, b"Bphotos") == b"1"
    await put(db, Bphotos=b"2", other=b"")
    assert await cached(db, b"Bphotos") == b"2"

    async def clear(tr: Transaction) -> None:
        tr.clear(b"Bphotos")

    await db.run(clear)
    assert await cached(db, b"Bphotos") is None
    await put(db, Bphotos=b"3")
    assert await cached(db, b"Bphotos") == b"3"

    async def clear_all(tr: Transaction) -> None:
        tr.clear_range(b"A", b"Bz")

    await db.run(clear_all)
    assert await cached(db, b"Bphotos") is None


async def test_transaction_reads_the_configuration_that_it_wrote(db):
    await put(db, Bphotos=b"1")
    assert await cached(db, b"Bphotos") == b"1"

    async def body(tr: Transaction) -> list[bytes | None]:
        before = await tr.get_cached(b"Bphotos")
        tr.set(b"Bphotos", b"2")
        written = await tr.get_cached(b"Bphotos")
        tr.clear(b"Bphotos")
        return [before, written, await tr.get_cached(b"Bphotos")]

    assert await db.run(body) == [b"1", b"2", None]


async def test_nothing_commits_under_configuration_that_was_replaced(db):
    """A flag that every writer reads: behind the commit that sets it there is no other."""
    flag = b"Aread only"

    async def write(number: int) -> None:
        async def body(tr: Transaction) -> bool:
            if await tr.get_cached(flag) is not None:
                return False
            tr.set(b"O%06d" % number, b"")
            return True

        while await db.run(body):
            number += 100
            await trio.lowlevel.checkpoint()

    async def close(tr: Transaction) -> int:
        tr.set(flag, b"closed")
        return len(await tr.get_range(b"O", b"P", snapshot=True))

    async with trio.open_nursery() as nursery:
        for number in range(8):
            nursery.start_soon(write, number)
        while not await fetch_range(db, b"O000700", b"P"):  # noqa: ASYNC110
            await trio.lowlevel.checkpoint()
        await db.run(close)
        closed_with = len(await fetch_range(db, b"O", b"P"))
    assert len(await fetch_range(db, b"O", b"P")) == closed_with


async def test_range_includes_its_begin_and_excludes_its_end(db):
    await put(db, a=b"1", b=b"2", c=b"3")
    assert await fetch_range(db, b"a", b"c") == [(b"a", b"1"), (b"b", b"2")]
    assert await fetch_range(db, b"b", b"b") == []
    assert await fetch_range(db, b"c", b"a") == []


async def test_range_limit_takes_from_the_side_it_starts_at(db):
    await put(db, a=b"1", b=b"2", c=b"3")

    async def body(tr: ReadTransaction) -> tuple[list[bytes], list[bytes], list[bytes]]:
        first = await tr.get_range(b"a", b"z", limit=2)
        last = await tr.get_range(b"a", b"z", limit=2, reverse=True)
        everything = await tr.get_range(b"a", b"z", reverse=True)
        return [k for k, _ in first], [k for k, _ in last], [k for k, _ in everything]

    assert await db.read(body) == ([b"a", b"b"], [b"c", b"b"], [b"c", b"b", b"a"])


async def test_transaction_reads_its_own_writes(db):
    await put(db, a=b"1", b=b"2", c=b"3")

    async def body(tr: Transaction) -> tuple[bytes | None, bytes | None, list[bytes]]:
        tr.set(b"a", b"new")
        tr.clear_range(b"b", b"d")
        tr.set(b"c", b"again")
        tr.add(b"n", 5)
        keys = [key for key, _ in await tr.get_range(b"", b"z")]
        return await tr.get(b"a"), await tr.get(b"b"), keys

    assert await db.run(body) == (b"new", None, [b"a", b"c", b"n"])
    assert await fetch_range(db, b"a", b"n") == [(b"a", b"new"), (b"c", b"again")]


async def test_add_counts_signed_and_wraps(db):
    async def body(tr: Transaction) -> None:
        tr.add(b"n", 5)
        tr.add(b"n", -7)
        tr.add(b"top", 2**63 - 1)
        tr.add(b"top", 1)

    await db.run(body)
    assert await fetch(db, b"n") == (-2).to_bytes(8, "little", signed=True)
    assert counter(await fetch(db, b"top")) == -(2**63)


async def test_versionstamps_ascend_in_the_order_of_commits(db):
    for n in range(20):

        async def body(tr: Transaction, n: int = n) -> None:
            tr.set_versionstamped_key(b"F", b"/end", b"%d" % n)
            assert await tr.get_range(b"F", b"G") == [
                pair for pair in await tr.get_range(b"F", b"G") if pair[1] != b"%d" % n
            ]

        await db.run(body)
    rows = await fetch_range(db, b"F", b"G")
    assert [value for _, value in rows] == [b"%d" % n for n in range(20)]
    assert {len(key) for key, _ in rows} == {1 + VERSIONSTAMP_SIZE + 4}


async def test_concurrent_versionstamps_are_all_different(db):
    async def one(n: int) -> None:
        async def body(tr: Transaction) -> None:
            tr.set_versionstamped_key(b"F", b"", b"%d" % n)

        await db.run(body)

    async with trio.open_nursery() as nursery:
        for n in range(50):
            nursery.start_soon(one, n)
    values = [value for _, value in await fetch_range(db, b"F", b"G")]
    assert sorted(values) == sorted(b"%d" % n for n in range(50))


async def test_exception_in_a_body_takes_all_its_writes_back(db):
    await put(db, a=b"1", b=b"2")

    async def body(tr: Transaction) -> None:
        tr.set(b"a", b"wrong")
        tr.clear_range(b"b", b"c")
        tr.add(b"n", 1)
        tr.set_versionstamped_key(b"F", b"", b"")
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        await db.run(body)
    assert await fetch_range(db, b"", b"\xff") == [(b"a", b"1"), (b"b", b"2")]


async def test_exception_in_one_body_leaves_the_others_alone(db):
    async def one(n: int) -> None:
        async def body(tr: Transaction) -> None:
            tr.set(b"k%d" % n, b"")
            tr.add(b"n", 1)
            if n % 3 == 0:
                raise KeyError(n)

        try:
            await db.run(body)
        except KeyError:
            assert n % 3 == 0
        else:
            assert n % 3

    async with trio.open_nursery() as nursery:
        for n in range(30):
            nursery.start_soon(one, n)
    assert len(await fetch_range(db, b"k", b"l")) == 20
    assert counter(await fetch(db, b"n")) == 20


async def test_exception_in_a_read_reaches_its_caller_and_the_store_goes_on(db):
    async def body(tr: ReadTransaction) -> None:
        await tr.get(b"a")
        raise KeyError("mine")

    with pytest.raises(KeyError):
        await db.read(body)
    await put(db, a=b"1")
    assert await fetch(db, b"a") == b"1"


async def test_body_that_suspends_is_refused_and_changes_nothing(db):
    async def body(tr: Transaction) -> None:
        tr.set(b"a", b"1")
        await trio.sleep(1)

    with pytest.raises(RuntimeError, match="nothing but its transaction"):
        await db.run(body)

    async def read(tr: ReadTransaction) -> None:
        await trio.sleep(1)

    with pytest.raises(RuntimeError, match="nothing but its transaction"):
        await db.read(read)
    assert await fetch(db, b"a") is None


async def test_transaction_is_of_no_use_after_its_body(db):
    kept: list[Transaction] = []

    async def body(tr: Transaction) -> None:
        kept.append(tr)

    await db.run(body)
    with pytest.raises(RuntimeError):
        await kept[-1].get(b"a")


async def test_largest_key_and_value_are_stored_and_larger_ones_refused(db):
    key, value = b"k" * KEY_SIZE_MAX, b"v" * VALUE_SIZE_MAX

    async def largest(tr: Transaction) -> None:
        tr.set(key, value)

    await db.run(largest)
    assert await fetch(db, key) == value
    for wrong_key, wrong_value in ((key + b"k", b""), (b"a", value + b"v"), (b"\xffx", b"")):

        async def body(tr: Transaction, k: bytes = wrong_key, v: bytes = wrong_value) -> None:
            tr.set(k, v)

        with pytest.raises(LimitExceeded):
            await db.run(body)
    with pytest.raises(LimitExceeded):
        await fetch(db, key + b"k")
    with pytest.raises(LimitExceeded):
        await fetch_range(db, b"", b"\xff\x00")


async def test_store_keeps_its_own_keys_to_itself(db):
    async def body(tr: Transaction) -> None:
        tr.set_versionstamped_key(b"F", b"", b"")

    await db.run(body)
    rows = await fetch_range(db, b"", b"\xff")
    assert len(rows) == 1
    assert rows[0][0].startswith(b"F")


async def test_transaction_beyond_its_size_is_refused_even_if_the_body_looks_away(db):
    def write(tr: Transaction, count: int) -> None:
        for n in range(count):
            tr.set(b"%08d" % n, bytes(99_992))

    async def largest(tr: Transaction) -> None:
        write(tr, 100)

    await db.run(largest)

    async def too_large(tr: Transaction) -> None:
        tr.clear_range(b"", b"\xff")
        try:
            write(tr, 101)
        except LimitExceeded:
            return

    with pytest.raises(LimitExceeded):
        await db.run(too_large)
    assert len(await fetch_range(db, b"", b"\xff")) == 100


async def test_concurrent_increments_lose_no_update(db):
    async def increment(tr: Transaction) -> None:
        tr.set(b"n", b"%d" % (int(await tr.get(b"n") or b"0") + 1))

    async def many() -> None:
        for _ in range(10):
            await db.run(increment)

    async with trio.open_nursery() as nursery:
        for _ in range(10):
            nursery.start_soon(many)
    assert await fetch(db, b"n") == b"100"


async def test_concurrent_adds_lose_no_update(db):
    async def add(tr: Transaction) -> None:
        tr.add(b"n", 3)

    async with trio.open_nursery() as nursery:
        for _ in range(100):
            nursery.start_soon(db.run, add)
    assert counter(await fetch(db, b"n")) == 300


async def test_write_skew_cannot_happen(db):
    """Each of two doctors may leave only while the other stays."""
    for _ in range(20):
        await put(db, ann=b"on", bob=b"on")

        async def leave(name: bytes) -> None:
            async def body(tr: Transaction) -> None:
                if len([v for _, v in await tr.get_range(b"a", b"c") if v == b"on"]) > 1:
                    tr.set(name, b"off")

            await db.run(body)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(leave, b"ann")
            nursery.start_soon(leave, b"bob")
        assert sorted(v for _, v in await fetch_range(db, b"a", b"c")) == [b"off", b"on"]


async def test_insert_into_a_range_that_another_transaction_found_empty_is_noticed(db):
    """Phantoms: of many that insert only into an empty range, one succeeds."""
    inserted: list[int] = []

    async def insert(n: int) -> None:
        async def body(tr: Transaction) -> bool:
            if await tr.get_range(b"r", b"s", limit=1):
                return False
            tr.set(b"r%d" % n, b"")
            return True

        if await db.run(body):
            inserted.append(n)

    async with trio.open_nursery() as nursery:
        for n in range(10):
            nursery.start_soon(insert, n)
    assert len(inserted) == 1
    assert await fetch_range(db, b"r", b"s") == [(b"r%d" % inserted[0], b"")]


async def test_readers_see_transactions_whole(db):
    await put(db, a=b"0", b=b"0")
    done = False

    async def write() -> None:
        nonlocal done
        for n in range(50):
            await put(db, a=b"%d" % n, b=b"%d" % n)
        done = True

    async with trio.open_nursery() as nursery:
        nursery.start_soon(write)
        while not done:
            (_, a), (_, b) = await fetch_range(db, b"a", b"c")
            assert a == b
            await trio.lowlevel.checkpoint()


async def test_cancelled_before_its_turn_a_body_never_runs(db):
    ran = False

    async def body(tr: Transaction) -> None:
        nonlocal ran
        ran = True

    with trio.CancelScope() as scope:
        scope.cancel()
        await db.run(body)
    await put(db, a=b"1")
    # The twin runs bodies at once, so there a body may have run; but nothing may be committed.
    assert scope.cancelled_caught
    assert not ran or type(db).__name__ == "MemoryDatabase"


async def test_watch_returns_at_once_when_the_value_differs_already(db):
    await put(db, a=b"1")
    await db.watch(b"a", None)
    await db.watch(b"a", b"0")
    await db.watch(b"b", b"0")


@pytest.mark.parametrize("change", ["set", "clear", "clear_range", "add"])
async def test_watch_wakes_when_its_key_changes(db, change):
    await put(db, a=b"12345678")
    woken = trio.Event()

    async def watch() -> None:
        await db.watch(b"a", b"12345678")
        woken.set()

    async def body(tr: Transaction) -> None:
        match change:
            case "set":
                tr.set(b"a", b"2")
            case "clear":
                tr.clear(b"a")
            case "clear_range":
                tr.clear_range(b"", b"b")
            case "add":
                tr.add(b"a", 1)

    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(watch)
            await trio.testing.wait_all_tasks_blocked()
            assert not woken.is_set()
            await db.run(body)
            await woken.wait()


KEYS = st.lists(st.sampled_from([b"\0", b"\xff", b"a", b"b", b"\x01"]), max_size=4).map(
    lambda parts: b"k" + b"".join(parts)
)
OPERATIONS = st.one_of(
    st.tuples(st.just("set"), KEYS, st.binary(max_size=3)),
    st.tuples(st.just("clear"), KEYS, st.just(b"")),
    st.tuples(st.just("clear_range"), KEYS, KEYS),
    st.tuples(st.just("range"), KEYS, KEYS),
    st.tuples(st.just("commit"), st.just(b""), st.just(b"")),
    st.tuples(st.just("abort"), st.just(b""), st.just(b"")),
)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@given(
    operations=st.lists(OPERATIONS, max_size=40),
    limit=st.integers(0, 5),
    reverse=st.booleans(),
)
@settings(deadline=None, max_examples=60)
def test_ranges_answer_like_a_dict(implementation, operations, limit, reverse):
    """Random transactions, some aborted, and range reads inside and after them."""

    def expected(model: dict[bytes, bytes], begin: bytes, end: bytes) -> list[tuple[bytes, bytes]]:
        rows = sorted(((k, v) for k, v in model.items() if begin <= k < end), reverse=reverse)
        return rows[:limit] if limit else rows

    async def main() -> None:
        model: dict[bytes, bytes] = {}
        with tempfile.TemporaryDirectory() as folder:
            async with IMPLEMENTATIONS[implementation](Path(folder)) as db:
                rest = list(operations)
                while rest:
                    model = await transact(db, rest, model)
                    everything = await fetch_range(db, b"", b"\xff")
                    assert everything == sorted(model.items())
                    for kind, begin, end in operations:
                        if kind == "range":
                            rows = await db.read(
                                lambda tr, begin=begin, end=end: tr.get_range(
                                    begin, end, limit=limit, reverse=reverse
                                )
                            )
                            assert rows == expected(model, begin, end)

    async def transact(
        db: Database, rest: list[tuple[str, bytes, bytes]], model: dict[bytes, bytes]
    ) -> dict[bytes, bytes]:
        """Run the operations up to the next commit or abort, and return the model after."""
        ends = [n for n, (kind, _, _) in enumerate(rest) if kind in ("commit", "abort")]
        count = ends[0] + 1 if ends else len(rest)
        mine, rest[:] = rest[:count], rest[count:]
        results: list[dict[bytes, bytes]] = []

        async def body(tr: Transaction) -> None:
            own = dict(model)
            for kind, first, second in mine:
                if kind == "set":
                    tr.set(first, second)
                    own[first] = second
                elif kind == "clear":
                    tr.clear(first)
                    own.pop(first, None)
                elif kind == "clear_range":
                    tr.clear_range(first, second)
                    own = {k: v for k, v in own.items() if not first <= k < second}
                elif kind == "range":
                    rows = await tr.get_range(first, second, limit=limit, reverse=reverse)
                    assert rows == expected(own, first, second)
                elif kind == "abort":
                    raise KeyError
            results.append(own)

        try:
            await db.run(body)
        except KeyError:
            return model
        return results[-1]

    trio.run(main)
