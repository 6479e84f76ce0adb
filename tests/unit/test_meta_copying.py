"""Metadata copied from one database to another, and backed up while it is in use."""

from __future__ import annotations

import itertools
import random
from pathlib import Path

import pytest
import trio

from cli import meta
from engine.config import StoreConfig
from engine.errors import ConfigError, Corrupt, StoreReadOnly
from engine.identity import read_identity
from engine.meta import keyspace
from engine.meta.body import BodySuspended
from engine.meta.copying import (
    CURSOR,
    STORE_ID,
    abort_copy,
    copy_metadata,
    end_copy,
    is_unfinished,
)
from engine.meta.embedded import open_embedded
from engine.meta.kv import Database, Transaction
from engine.meta.memory import MemoryDatabase
from engine.meta.read_only import GuardedDatabase, read_only_reason, set_read_only
from engine.meta.records import FORMAT, SessionRecord, encode
from engine.meta.sqlite_backup import back_up, restore
from engine.metadata import embedded_file
from tests.support.engine import Folder, engine_in, folder_in, put
from tests.support.kv import fetch, fetch_range

STORE = "0123456789abcdef" * 2
NOW = 1_795_262_400_000
PLACE = "fdb:/there"


def unheard(phase: str, done: int) -> None:
    """Take progress and do nothing with it."""


async def fill(db: Database, rows: int = 3000) -> dict[bytes, bytes]:
    source = random.Random(7)
    made = {
        source.choice([b"A", b"O", b"V", b"Z"]) + source.randbytes(20): source.randbytes(
            source.choice([0, 8, 400, 60_000 if n % 50 == 0 else 10])
        )
        for n in range(rows)
    }
    for begin in range(0, rows, 200):

        async def body(tr: Transaction, begin: int = begin) -> None:
            for key, value in list(made.items())[begin : begin + 200]:
                tr.set(key, value)
            tr.set_versionstamped_key(keyspace.FEED, b"key", b"what changed")

        await db.run(body)
    return made


@pytest.fixture
def source() -> MemoryDatabase:
    return MemoryDatabase()


@pytest.fixture
def target() -> MemoryDatabase:
    return MemoryDatabase()


async def rows(db: Database) -> dict[bytes, bytes]:
    return dict(await fetch_range(db, b"", b"\xff"))


async def test_copy_has_every_row_but_the_feed(source, target):
    made = await fill(source)
    seen: list[tuple[str, int]] = []
    count = await copy_metadata(
        source, target, STORE, place=PLACE, progress=lambda *what: seen.append(what)
    )
    assert count == len(made)
    assert await rows(target) == {**made, STORE_ID: STORE.encode()}
    assert ("copied", count) in seen
    assert ("compared", count) in seen


class Interrupted(Exception):
    pass


async def test_interrupted_copy_goes_on_where_it_stopped(source, target):
    made = await fill(source)

    def interrupt(phase: str, done: int) -> None:
        if done > 1000:
            raise Interrupted

    with pytest.raises(Interrupted):
        await copy_metadata(source, target, STORE, place=PLACE, progress=interrupt)
    assert await is_unfinished(target)
    seen: list[tuple[str, int]] = []
    await copy_metadata(
        source, target, STORE, place=PLACE, progress=lambda *what: seen.append(what)
    )
    copied = [done for phase, done in seen if phase == "copied"]
    assert 0 < max(copied) < len(made) - 1000
    assert await rows(target) == {**made, STORE_ID: STORE.encode()}
    assert not await is_unfinished(target)


async def test_change_of_the_source_meanwhile_is_found(source, target):
    made = await fill(source)

    async def change() -> None:
        await source.run(lambda tr: put_row(tr, min(made), b"changed"))

    async with trio.open_nursery() as nursery:

        def begun(phase: str, done: int) -> None:
            if phase == "copied" and len(nursery.child_tasks) == 0:
                nursery.start_soon(change)

        with pytest.raises(Corrupt, match="differs"):
            await copy_metadata(source, target, STORE, place=PLACE, progress=begun)
    assert await is_unfinished(target)


async def test_target_that_holds_something_else_is_refused(source, target):
    await fill(source, 10)
    await target.run(lambda tr: put_row(tr, b"O1", b""))
    with pytest.raises(ConfigError, match="holds metadata already"):
        await copy_metadata(source, target, STORE, place=PLACE, progress=unheard)
    await target.run(lambda tr: put_row(tr, CURSOR, b"f" * 32 + b"O"))
    with pytest.raises(ConfigError, match="copy of another store"):
        await copy_metadata(source, target, STORE, place=PLACE, progress=unheard)


async def put_row(tr: Transaction, key: bytes, value: bytes) -> None:
    tr.set(key, value)


async def test_copy_takes_sessions_as_they_are_at_its_end(source, target):
    await fill(source)
    session = keyspace.SESSION + bytes(10)
    record = SessionRecord(FORMAT, "gate1", 4711, NOW, NOW + 1, NOW)

    async def renew() -> None:
        await source.run(lambda tr: put_row(tr, session, encode(record)))

    async with trio.open_nursery() as nursery:

        def copied(phase: str, done: int) -> None:
            nursery.start_soon(renew)

        await copy_metadata(source, target, STORE, place=PLACE, progress=copied)
    assert await fetch(target, session) == encode(record)


async def test_nobody_changes_the_store_from_the_first_row_on(source, target):
    await fill(source)
    users = GuardedDatabase(source)
    accepted: list[bytes] = []
    refused: list[str] = []

    async def change(number: int) -> None:
        # Rows all over the keyspace, behind and before the cursor.
        key = b"%c%06d" % (b"ABCOVXZ"[number % 7], number)
        try:
            await users.run(lambda tr: put_row(tr, key, b"new"))
        except StoreReadOnly as error:
            refused.append(error.why)
        else:
            accepted.append(key)

    async def change_again_and_again() -> None:
        for number in itertools.count():
            await change(number)
            await trio.lowlevel.checkpoint()

    async with trio.open_nursery() as nursery:
        for _ in range(4):
            nursery.start_soon(change_again_and_again)
        while len(accepted) < 50:  # noqa: ASYNC110
            await trio.lowlevel.checkpoint()
        await copy_metadata(source, target, STORE, place=PLACE, progress=unheard)
        nursery.cancel_scope.cancel()
    assert set(refused) == {f"being copied to {PLACE}"}
    copy = await rows(target)
    assert [key for key in accepted if key not in copy] == []
    assert keyspace.READ_ONLY not in copy
    assert await read_only_reason(source) == f"being copied to {PLACE}"


async def test_a_transaction_under_way_does_not_commit_behind_the_mark():
    db = MemoryDatabase()
    users = GuardedDatabase(db)
    attempts = 0

    async def body(tr: Transaction) -> None:
        nonlocal attempts
        attempts += 1
        tr.set(b"O1", b"late")
        if attempts == 1:
            nursery.start_soon(set_read_only, db, "being copied")
            await trio.testing.wait_all_tasks_blocked()

    async with trio.open_nursery() as nursery:
        with pytest.raises((StoreReadOnly, BodySuspended)):
            await users.run(body)
    assert await fetch(db, b"O1") is None


async def test_a_copy_is_ended_only_once_the_folder_uses_it(source, target):
    made = await fill(source, 100)
    await copy_metadata(source, target, STORE, place=PLACE, progress=unheard)
    with pytest.raises(ConfigError, match="the copy is complete"):
        await abort_copy(source, target, STORE)
    # As after a crash before the folder's identity was written.
    count = await copy_metadata(source, target, STORE, place=PLACE, progress=unheard)
    assert count == len(made)
    await end_copy(source, PLACE)
    assert await read_only_reason(source) == f"moved to {PLACE}"
    with pytest.raises(StoreReadOnly, match="moved to"):
        await GuardedDatabase(source).run(lambda tr: put_row(tr, b"O1", b""))
    await GuardedDatabase(target).run(lambda tr: put_row(tr, b"O1", b""))


async def test_an_aborted_copy_leaves_the_target_empty_and_the_source_as_it_was(source, target):
    made = await fill(source)

    def interrupt(phase: str, done: int) -> None:
        if done > 1000:
            raise Interrupted

    with pytest.raises(Interrupted):
        await copy_metadata(source, target, STORE, place=PLACE, progress=interrupt)
    with pytest.raises(ConfigError, match="copy of another store"):
        await abort_copy(source, target, "f" * 32)
    assert await abort_copy(source, target, STORE)
    assert await rows(target) == {}
    found = await rows(source)
    assert {key: value for key, value in found.items() if key[:1] != b"F"} == made
    await GuardedDatabase(source).run(lambda tr: put_row(tr, b"O1", b""))
    assert not await abort_copy(source, target, STORE)


async def test_backup_of_a_busy_store_is_one_state_of_it(tmp_path):
    file = tmp_path / "meta.db"
    async with open_embedded(file) as db:
        count = 0

        async def write() -> None:
            nonlocal count
            while True:

                async def body(tr: Transaction, number: int = count) -> None:
                    tr.set(b"O%d" % number, bytes(2000))
                    tr.add(b"Zcount", 1)

                await db.run(body)
                count += 1

        async with trio.open_nursery() as nursery:
            nursery.start_soon(write)
            while count < 300:  # noqa: ASYNC110
                await trio.lowlevel.checkpoint()
            await trio.to_thread.run_sync(back_up, file, tmp_path / "backup", STORE)
            nursery.cancel_scope.cancel()
    await trio.to_thread.run_sync(restore, tmp_path / "backup", tmp_path / "new.db", STORE)
    async with open_embedded(tmp_path / "new.db") as db:
        found = await fetch_range(db, b"O", b"P")
        assert int.from_bytes(await fetch(db, b"Zcount") or b"", "little") == len(found) >= 300
        assert await fetch(db, STORE_ID) == STORE.encode()


async def test_restored_store_is_as_it_was_at_the_backup(tmp_path):
    file, copy = tmp_path / "meta.db", tmp_path / "backup"
    async with open_embedded(file) as db:
        made = await fill(db, 500)
        await trio.to_thread.run_sync(back_up, file, copy, STORE)
        await db.run(lambda tr: put_row(tr, b"Olater", b""))
    kept = await trio.to_thread.run_sync(restore, copy, file, STORE)
    async with open_embedded(file) as db:
        found = await rows(db)
        assert {k: v for k, v in found.items() if k[:1] != b"F" and k != STORE_ID} == made
    assert kept is not None
    async with open_embedded(kept) as db:
        assert await fetch(db, b"Olater") == b""


async def test_backup_of_another_store_or_a_damaged_one_is_refused(tmp_path):
    file, copy = tmp_path / "meta.db", tmp_path / "backup"
    async with open_embedded(file) as db:
        await fill(db, 500)
    back_up(file, copy, STORE)
    with pytest.raises(ConfigError, match="this one is f00d"):
        restore(copy, file, "f00d")
    with pytest.raises(ConfigError, match="is there already"):
        back_up(file, copy, STORE)
    damaged = bytearray(copy.read_bytes())
    damaged[len(damaged) // 2 : len(damaged) // 2 + 20_000] = bytes(20_000)
    copy.write_bytes(damaged)
    with pytest.raises(ConfigError, match="backup"):
        restore(copy, file, STORE)
    async with open_embedded(file) as db:
        assert len(await rows(db)) > 500


def folder_with(path: Path) -> Folder:
    return folder_in(path, drives=1, profile="1+0")


def test_commands_back_up_and_restore_a_store(tmp_path, capsys):
    async def make() -> None:
        async with engine_in(tmp_path, drives=1, profile="1+0") as engine:
            await engine.create_bucket("photos", owner="root")
            await put(engine, "photos", "before", b"1")

    async def change() -> None:
        async with folder_with(tmp_path).open() as engine:
            await put(engine, "photos", "after", b"2")

    async def keys() -> list[str]:
        async with folder_with(tmp_path).open() as engine:
            page = await engine.list_objects("photos")
            return [entry.key for entry in page.objects]

    trio.run(make)
    data = tmp_path / "data"
    meta.backup(data, tmp_path / "backup")
    trio.run(change)
    meta.restore_backup(data, tmp_path / "backup")
    assert "what was there is" in capsys.readouterr().out
    assert trio.run(keys) == ["before"]
    assert read_identity(data).meta == ""
    assert embedded_file(data).exists()


def test_copy_wants_places_that_fit_the_folder(tmp_path):
    async def make() -> None:
        async with engine_in(tmp_path, drives=1, profile="1+0"):
            pass

    trio.run(make)
    data = tmp_path / "data"
    with pytest.raises(ConfigError, match="the same"):
        meta.copy(data, "embedded", "embedded")
    with pytest.raises(ConfigError, match="name a place as embedded or fdb:"):
        meta.copy(data, "embedded", "/etc/fdb.cluster")
    with pytest.raises(ConfigError, match="name that as the source"):
        meta.copy(data, "fdb:/a", "fdb:/b")
    assert StoreConfig(data=data).meta == read_identity(data).meta
