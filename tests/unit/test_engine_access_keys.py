"""Access keys: kept sealed, and known to every process that has the store open."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, TypeVar, cast

import pytest
import trio

from engine.access import FULL, Access
from engine.access_keys import LATE_S, RECHECK_S, AccessKeys
from engine.engine import Engine
from engine.errors import ConfigError, Corrupt, Unavailable
from engine.meta import keyspace
from engine.meta.kv import Database, ReadTransaction, Transaction
from engine.meta.memory import MemoryDatabase
from engine.meta.records import decode_access_key
from engine.sealing import Seal
from engine.store import Store
from tests.support.engine import ManualClock, SeededRandom, folder_in
from tests.support.kv import fetch_range
from tests.support.logs import Logs

T = TypeVar("T")


@pytest.fixture
async def engines(tmp_path: Path) -> AsyncIterator[list[Engine]]:
    """Two engines on one store, as two gateways have them."""
    folder = folder_in(tmp_path, drives=1, profile="1+0")
    await folder.prepare()
    async with folder.open() as one, folder.open() as two:
        yield [one, two]


@asynccontextmanager
async def following(*keys: AccessKeys) -> AsyncIterator[None]:
    async with trio.open_nursery() as nursery:
        for each in keys:
            await nursery.start(each.follow)
        yield
        nursery.cancel_scope.cancel()


async def until(holds: Callable[[], bool]) -> None:
    with trio.fail_after(30):
        while not holds():  # noqa: ASYNC110  what changes it is in another task
            await trio.sleep(0.01)


async def test_a_key_is_known_disabled_and_forgotten_by_all_who_follow(
    engines: list[Engine],
) -> None:
    one, two = (engine.access_keys for engine in engines)
    async with following(one, two):
        key = await one.create("website", read_only=True, buckets=["b", "a", "b"])
        await until(lambda: two.find(key.access_key) == key)
        assert key.access == Access(True, frozenset({"a", "b"}))
        assert two.find("NOBODY") is None
        await two.set_disabled("website", True)
        await until(lambda: one.find(key.access_key) is None)
        await one.set_disabled(key.access_key, False)
        await until(lambda: two.find(key.access_key) == key)
        assert await two.delete("website") == key
        await until(lambda: one.find(key.access_key) is None)


async def test_keys_that_are_there_are_known_once_following_began(engines: list[Engine]) -> None:
    key = await engines[0].access_keys.create("early")
    assert key.access == FULL
    async with following(engines[1].access_keys):
        assert engines[1].access_keys.find(key.access_key) == key


async def test_a_key_is_meant_by_its_name_if_that_is_its_own(engines: list[Engine]) -> None:
    keys = engines[0].access_keys
    first, second = await keys.create("twin"), await keys.create("twin")
    assert [key.access_key for key in await keys.list()] == [first.access_key, second.access_key]
    assert await keys.get(second.access_key) == second
    with pytest.raises(ConfigError, match="several keys"):
        await keys.delete("twin")
    with pytest.raises(ConfigError, match="no access key 'absent'"):
        await keys.get("absent")
    with pytest.raises(ConfigError, match="printable"):
        await keys.create("line\nbreak")


async def test_no_secret_is_in_the_metadata_as_it_is(engines: list[Engine]) -> None:
    keys = engines[0].access_keys
    made = await keys.create("lab")
    await keys.settle_root("ROOT", "a secret of the root")
    rows = await fetch_range(engines[0].store.db, b"", b"\xff")
    assert any(key == keyspace.access_key(made.access_key) for key, _ in rows)
    for _, value in rows:
        assert made.secret_key.encode() not in value
        assert b"a secret of the root" not in value
    assert made.secret_key not in repr(made)


async def test_a_sealed_secret_cannot_be_moved_to_another_key(
    engines: list[Engine], logs: Logs
) -> None:
    keys = engines[0].access_keys
    one, other = await keys.create("one"), await keys.create("other")

    async def move(tr: Transaction) -> None:
        row = await tr.get(keyspace.access_key(one.access_key))
        assert row is not None
        tr.set(keyspace.access_key(other.access_key), row)
        tr.add(keyspace.ACCESS_KEYS, 1)

    await engines[0].store.db.run(move)
    with pytest.raises(Corrupt):
        await keys.get("one")
    logs.expect("access key left out")
    async with following(keys):
        assert keys.find(one.access_key) == one
        assert keys.find(other.access_key) is None


async def test_gateways_settle_on_the_first_root_credentials(engines: list[Engine]) -> None:
    one, two = (engine.access_keys for engine in engines)
    assert await one.root() is None
    assert await one.settle_root("FIRST", "first secret") == ("FIRST", "first secret")
    assert await two.settle_root("SECOND", "second secret") == ("FIRST", "first secret")
    assert await two.root() == ("FIRST", "first secret")
    assert await two.list() == []


def test_a_seal_opens_only_what_it_has_sealed() -> None:
    random = SeededRandom()
    seal, other = Seal(random(32), random), Seal(random(32), random)
    sealed = seal.seal("secret", "KEY")
    assert seal.open(sealed, "KEY") == "secret"
    assert seal.seal("secret", "KEY") != sealed
    for wrong, owner in (
        (sealed, "OTHER"),
        (sealed[:-1], "KEY"),
        (bytes([sealed[0] ^ 1]) + sealed[1:], "KEY"),
        (b"", "KEY"),
    ):
        with pytest.raises(Corrupt, match=owner):
            seal.open(wrong, owner)
    with pytest.raises(Corrupt):
        other.open(sealed, "KEY")


class Faulty:
    """A database whose watches never wake, and whose reads can be made to fail."""

    def __init__(self) -> None:
        self._db = MemoryDatabase()
        self.silent = False

    async def run(self, body: Callable[[Transaction], Awaitable[T]]) -> T:
        return await self._db.run(body)

    async def read(self, body: Callable[[ReadTransaction], Awaitable[T]]) -> T:
        if self.silent:
            raise Unavailable("no answer")
        return await self._db.read(body)

    async def watch(self, key: bytes, value: bytes | None) -> None:
        if self.silent:
            raise Unavailable("no answer")
        await trio.sleep_forever()

    async def aclose(self) -> None:
        await self._db.aclose()


@pytest.fixture
def faulty() -> Faulty:
    return Faulty()


def keys_over(db: Faulty) -> AccessKeys:
    store: Any = SimpleNamespace(db=cast(Database, db), clock=ManualClock(), random=SeededRandom())
    return AccessKeys(cast(Store, store))


async def test_a_change_is_seen_after_a_while_though_no_watch_wakes(
    faulty: Faulty, autojump_clock: trio.testing.MockClock
) -> None:
    keys = keys_over(faulty)
    key = await keys.create("lab")
    async with following(keys):
        await keys.set_disabled("lab", True)
        assert keys.find(key.access_key) == key
        await trio.sleep(RECHECK_S + 0.1)
        assert keys.find(key.access_key) is None


async def test_keys_are_refused_when_they_could_not_be_checked_for_long(
    faulty: Faulty, autojump_clock: trio.testing.MockClock, logs: Logs
) -> None:
    logs.expect("access keys not looked at")
    keys = keys_over(faulty)
    key = await keys.create("lab")
    async with following(keys):
        faulty.silent = True
        await trio.sleep(LATE_S - RECHECK_S)
        assert keys.find(key.access_key) == key
        await trio.sleep(3 * RECHECK_S)
        with pytest.raises(Unavailable, match="cannot be checked"):
            keys.find(key.access_key)
        faulty.silent = False
        await trio.sleep(2 * RECHECK_S)
        assert keys.find(key.access_key) == key
    row = (await fetch_range(cast(Database, faulty), b"J", b"K"))[0][1]
    assert decode_access_key(row).name == "lab"
