"""What the metadata store on FoundationDB promises beyond the contract, on a real server."""

from __future__ import annotations

import os
import subprocess
import sys
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trio
import trio.testing

from engine.errors import ConfigError, NoSuchBucket, Unavailable
from engine.meta.fdb import FdbDatabase, FdbLocation, FdbOptions, open_fdb
from engine.meta.fdb_configuration import METADATA_VERSION
from engine.meta.fdb_library import Library, load
from engine.meta.fdb_transaction import FdbTransaction
from engine.meta.kv import ReadTransaction, Transaction
from tests.support import fdb_server
from tests.support.engine import Folder, folder_in
from tests.support.engine import put as engine_put
from tests.support.engine import read as engine_read
from tests.support.fdb_server import FdbServer
from tests.support.kv import counter, fetch, fetch_range, put

COMMIT_UNKNOWN_RESULT = 1021


@pytest.fixture
async def db(tmp_path: Path) -> AsyncIterator[FdbDatabase]:
    async with open_fdb(fdb_server.location(tmp_path)) as database:
        yield database


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FdbServer]:
    """A server of this module's own, for tests that stop it."""
    if not fdb_server.has_server():
        pytest.skip("needs FoundationDB: fdbserver and fdbcli are not on the PATH")
    server = FdbServer(tmp_path_factory.mktemp("fdb"))
    yield server
    server.kill()


@pytest.fixture
def location(server: FdbServer) -> FdbLocation:
    name = "test-" + uuid.uuid4().hex[:16]
    return FdbLocation(server.cluster_file, name, fdb_server.library())


async def markers(db: FdbDatabase, location: FdbLocation) -> int:
    """Return how many markers of commits are in the store."""

    async def body(tr: Transaction) -> int:
        return len(await tr.get_range(location.prefix + b"r", location.prefix + b"s"))

    return await db._transact(body, prefix=b"")


async def test_stores_on_one_cluster_do_not_see_each_other(tmp_path, db):
    await put(db, a=b"1")
    async with open_fdb(fdb_server.location(tmp_path / "other")) as other:
        assert await fetch_range(other, b"", b"\xff") == []
        await put(other, a=b"2")
    assert await fetch_range(db, b"", b"\xff") == [(b"a", b"1")]


async def test_what_one_gateway_wrote_every_other_reads_at_once(tmp_path, db):
    async with open_fdb(fdb_server.location(tmp_path)) as other:
        for n in range(300):
            writer, reader = (db, other) if n % 2 else (other, db)
            await put(writer, a=b"%d" % n)
            assert await fetch(reader, b"a") == b"%d" % n


async def test_change_by_one_gateway_wakes_the_watches_of_another(tmp_path, db):
    await put(db, a=b"0")
    async with open_fdb(fdb_server.location(tmp_path)) as other:
        for n in range(20):
            woken = trio.Event()

            async def watch(n: int = n, woken: trio.Event = woken) -> None:
                await other.watch(b"a", b"%d" % n)
                woken.set()

            async with trio.open_nursery() as nursery:
                nursery.start_soon(watch)
                await trio.testing.wait_all_tasks_blocked()
                await put(db, a=b"%d" % (n + 1))
                # The bound for caches of other gateways.
                with trio.fail_after(1):
                    await woken.wait()


async def test_writers_of_different_keys_and_of_counters_never_conflict(db):
    runs = 0

    async def one(n: int) -> None:
        async def body(tr: Transaction) -> None:
            nonlocal runs
            runs += 1
            await tr.get(b"bucket")
            await tr.get(b"O%d" % n)
            tr.set(b"O%d" % n, b"")
            tr.add(b"usage", 1)
            tr.set_versionstamped_key(b"F", b"%d" % n, b"")

        await db.run(body)

    async with trio.open_nursery() as nursery:
        for n in range(100):
            nursery.start_soon(one, n)
    assert runs == 100
    assert counter(await fetch(db, b"usage")) == 100


async def test_markers_are_as_many_as_commits_at_a_time_and_go_at_the_end(tmp_path, db):
    location = fdb_server.location(tmp_path)
    async with open_fdb(location) as other:
        for n in range(30):
            await put(other, a=b"%d" % n)
        assert await markers(db, location) <= 2
    assert await markers(db, location) <= 1


class LostAnswers:
    """Puts itself between the store and the client library, and loses answers of commits."""

    def __init__(self, db: FdbDatabase, monkeypatch: pytest.MonkeyPatch) -> None:
        self._library = db._library
        self._lost: set[int] = set()
        self.before_commit = 0
        """So many of the next commits don't happen, and nobody knows."""
        self.after_commit = 0
        """So many of the next commits happen, and nobody knows."""
        self._commit, self._error_of = self._library.commit, self._library.error_of
        monkeypatch.setattr(self._library, "commit", self.commit)
        monkeypatch.setattr(self._library, "error_of", self.error_of)

    def commit(self, pointer: int) -> int:
        if self.before_commit:
            self.before_commit -= 1
            future = self._library.get(pointer, b"x", 1, False)
        elif self.after_commit:
            self.after_commit -= 1
            future = self._commit(pointer)
        else:
            return self._commit(pointer)
        self._lost.add(future)
        return future

    def error_of(self, future: int) -> int:
        if future in self._lost:
            self._lost.remove(future)
            assert self._error_of(future) == 0
            return COMMIT_UNKNOWN_RESULT
        return self._error_of(future)


@pytest.mark.parametrize(("before", "after"), [(0, 1), (1, 0), (2, 1), (3, 0)])
async def test_commit_whose_answer_is_lost_is_done_once(db, monkeypatch, before, after):
    answers = LostAnswers(db, monkeypatch)
    runs = 0

    async def body(tr: Transaction) -> int:
        nonlocal runs
        runs += 1
        tr.add(b"n", 1)
        tr.set_versionstamped_key(b"F", b"", b"")
        return runs

    answers.before_commit, answers.after_commit = before, after
    result = await db.run(body)
    assert counter(await fetch(db, b"n")) == 1
    assert len(await fetch_range(db, b"F", b"G")) == 1
    # The result is of the attempt that was committed, which the lost one may be.
    assert result == runs == before + 1


async def test_blind_write_whose_answer_is_lost_does_not_undo_a_later_one(db, monkeypatch):
    """Between the lost answer and the next attempt somebody else writes the same key."""
    answers = LostAnswers(db, monkeypatch)
    answers.after_commit = 1
    attempts = 0

    async def body(tr: Transaction) -> None:
        nonlocal attempts
        attempts += 1
        tr.set(b"a", b"first")

    on_error = db._library.on_error

    async with trio.open_nursery() as nursery:
        overtaken = trio.Event()

        async def overtake() -> None:
            await put(db, a=b"second")
            overtaken.set()

        def recover(pointer: int, code: int) -> int:
            if code == COMMIT_UNKNOWN_RESULT:
                nursery.start_soon(overtake)
            return on_error(pointer, code)

        monkeypatch.setattr(db._library, "on_error", recover)
        await db.run(body)
        await overtaken.wait()
    assert attempts == 1
    assert await fetch(db, b"a") == b"second"


INCREMENTS = """
import sys, trio
from pathlib import Path
from engine.meta.fdb import FdbLocation, open_fdb

import fdb
fdb.api_version(730)
# FoundationDB's own faults: conflicts, lost answers, refused commits, slow reads.
fdb.options.set_client_buggify_enable()
fdb.options.set_client_buggify_section_activated_probability(100)
fdb.options.set_client_buggify_section_fired_probability(25)

async def main():
    attempts = 0
    async with open_fdb(FdbLocation(Path(sys.argv[1]), sys.argv[2])) as db:
        # Time-outs are faults of the client too, and end in Unavailable: their outcome is unknown.
        db._library.set_defaults(db._pointer, timeout_ms=0, retry_ms_max=100)
        async def many(task):
            for n in range(10):
                async def body(tr):
                    nonlocal attempts
                    attempts += 1
                    value = int(await tr.get(b"read") or b"0")
                    tr.set(b"read", b"%d" % (value + 1))
                    tr.add(b"blind", 1)
                    tr.set_versionstamped_key(b"F", b"%d/%d" % (task, n), b"")
                await db.run(body)
        async with trio.open_nursery() as nursery:
            for task in range(4):
                nursery.start_soon(many, task)
    print(attempts)

trio.run(main)
"""


async def test_nothing_is_done_twice_under_the_faults_of_the_client_itself(db, tmp_path):
    location = fdb_server.location(tmp_path)
    environment = dict(os.environ)
    if location.library is not None:
        environment["LD_LIBRARY_PATH"] = str(location.library.parent)
    done = await trio.run_process(
        [sys.executable, "-c", INCREMENTS, str(location.cluster_file), location.store],
        capture_stdout=True,
        env=environment,
    )
    assert int(done.stdout) > 40, "no fault was injected"
    assert await fetch(db, b"read") == b"40"
    assert counter(await fetch(db, b"blind")) == 40
    assert len(await fetch_range(db, b"F", b"G")) == 40


async def test_calls_end_unavailable_in_time_while_the_server_is_silent(server, location):
    options = FdbOptions(timeout_s=1.0)
    async with open_fdb(location, options=options) as db:
        await put(db, a=b"1")
        server.pause()
        try:
            with trio.fail_after(20):
                with pytest.raises(Unavailable):
                    await put(db, a=b"2")
                with pytest.raises(Unavailable):
                    await fetch(db, b"a")
                with pytest.raises(Unavailable):
                    await db.watch(b"a", b"1")
        finally:
            server.resume()
        with trio.fail_after(60):
            while True:
                try:
                    assert await fetch(db, b"a") in (b"1", b"2")
                    break
                except Unavailable:
                    continue


async def test_callers_deadline_is_kept_and_told_as_unavailable(server, location):
    async with open_fdb(location, options=FdbOptions(timeout_s=60.0)) as db:
        await put(db, a=b"1")
        server.pause()
        try:
            with trio.fail_after(3), pytest.raises(Unavailable):
                await fetch(db, b"a")
            with trio.fail_after(3), pytest.raises(Unavailable):
                await put(db, a=b"2")
        finally:
            server.resume()


async def test_store_closes_in_time_while_the_server_is_silent(server, location):
    options = FdbOptions(timeout_s=30.0, close_s_max=0.5)
    ended: list[type[BaseException]] = []

    async with trio.open_nursery() as nursery, open_fdb(location, options=options) as db:
        await put(db, a=b"1")
        server.pause()

        async def call(key: bytes) -> None:
            try:
                await (db.watch(key, b"1") if key == b"w" else fetch(db, key))
            except Unavailable as error:
                ended.append(type(error))

        for key in (b"a", b"b", b"w"):
            nursery.start_soon(call, key)
        await trio.testing.wait_all_tasks_blocked()
        with trio.fail_after(20):
            await db.aclose()
    server.resume()
    assert ended == [Unavailable] * 3


async def test_cancelled_calls_leave_the_store_in_order(server, location):
    async with open_fdb(location) as db:
        await put(db, a=b"1")
        server.pause()
        try:
            for call in (lambda: fetch(db, b"a"), lambda: put(db, b=b"2")):
                with trio.CancelScope() as scope:
                    async with trio.open_nursery() as nursery:
                        for _ in range(20):
                            nursery.start_soon(call)
                        await trio.testing.wait_all_tasks_blocked()
                        scope.cancel()
                assert scope.cancelled_caught
        finally:
            server.resume()
        assert await fetch(db, b"a") == b"1"


async def test_nothing_acknowledged_is_lost_when_the_server_is_killed_under_load(server, location):
    acknowledged: set[int] = set()
    numbers = iter(range(10**9))
    stop = False

    async def write() -> None:
        while not stop:
            number = next(numbers)

            async def body(tr: Transaction, number: int = number) -> None:
                tr.set(b"w%d" % number, b"")
                tr.add(b"n", 1)

            try:
                await db.run(body)
            except Unavailable:
                continue
            acknowledged.add(number)

    async with open_fdb(location) as db:
        async with trio.open_nursery() as nursery:
            for _ in range(16):
                nursery.start_soon(write)
            for _ in range(3):
                before = len(acknowledged)
                with trio.fail_after(60):
                    while len(acknowledged) < before + 200:  # noqa: ASYNC110
                        await trio.sleep(0.01)
                await trio.to_thread.run_sync(server.kill)
                server.start()
            stop = True
        rows = {int(key[1:]) for key, _ in await fetch_range(db, b"w", b"x")}
        assert acknowledged <= rows
        assert counter(await fetch(db, b"n")) == len(rows)


async def test_missing_cluster_file_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"fdb\.cluster: No such file.*copy the"):
        async with open_fdb(FdbLocation(tmp_path / "fdb.cluster")):
            pass


def test_missing_client_library_says_where_it_was_looked_for_and_what_to_install(tmp_path):
    """In a process of its own: a library that is loaded once is found for ever."""
    (tmp_path / "fdb.cluster").write_text("a:b@127.0.0.1:1\n")
    script = (
        "import sys, trio\n"
        "from pathlib import Path\n"
        "from engine.meta.fdb import FdbLocation, open_fdb\n"
        "async def main():\n"
        "    async with open_fdb(FdbLocation.parse(sys.argv[1])):\n"
        "        pass\n"
        "trio.run(main)\n"
    )
    environment = {k: v for k, v in os.environ.items() if k != "LD_LIBRARY_PATH"}
    place = f"fdb:{tmp_path}/fdb.cluster?library={tmp_path}/libfdb_c.so"
    done = subprocess.run(
        [sys.executable, "-c", script, place],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )
    last = done.stderr.strip().splitlines()[-1]
    assert "ConfigError" in last
    assert f"{tmp_path}/libfdb_c.so" in last
    assert "foundationdb-clients" in last


async def test_cluster_that_is_not_there_is_told_in_time(tmp_path):
    file = tmp_path / "fdb.cluster"
    file.write_text("a:b@127.0.0.1:1\n")
    location = FdbLocation(file, library=fdb_server.location(tmp_path).library)
    with trio.fail_after(20), pytest.raises(Unavailable, match="does not answer"):
        async with open_fdb(location, options=FdbOptions(open_s_max=0.5)):
            pass


class Reads:
    """Counts what a library is asked to read, but for what comes with the read version."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, library: Library) -> None:
        self.count = 0
        get, get_range = library.get, library.get_range

        def counted_get(pointer: int, key: bytes, size: int, snapshot: bool) -> int:
            self.count += key != METADATA_VERSION
            return get(pointer, key, size, snapshot)

        def counted_range(*arguments: Any, **more: Any) -> int:
            self.count += 1
            return get_range(*arguments, **more)

        monkeypatch.setattr(library, "get", counted_get)
        monkeypatch.setattr(library, "get_range", counted_range)

    async def of(self, call: Awaitable[object]) -> int:
        before = self.count
        await call
        return self.count - before


async def test_configuration_is_read_once_and_again_when_a_gateway_changed_it(
    tmp_path, db, monkeypatch
):
    await put(db, Bphotos=b"1", O1=b"")

    async def body(tr: ReadTransaction) -> tuple[bytes | None, bytes | None]:
        return await tr.get_cached(b"Bphotos"), await tr.get(b"O1")

    reads = Reads(monkeypatch, db._library)
    assert [await reads.of(db.read(body)) for _ in range(3)] == [2, 1, 1]
    async with open_fdb(fdb_server.location(tmp_path)) as other:
        await put(other, O2=b"")
        assert await reads.of(db.read(body)) == 1
        await put(other, Bphotos=b"2")
        assert await db.read(body) == (b"2", b"")
    assert await reads.of(db.read(body)) <= 2
    assert await reads.of(db.read(body)) == 1


async def test_error_that_comes_of_old_configuration_is_not_believed(tmp_path, db):
    async def body(tr: ReadTransaction) -> bytes:
        row = await tr.get_cached(b"Bphotos")
        if row is None:
            raise NoSuchBucket("photos")
        return row

    with pytest.raises(NoSuchBucket):
        await db.read(body)
    async with open_fdb(fdb_server.location(tmp_path)) as other:
        await put(other, Bphotos=b"1")
        assert await db.read(body) == b"1"
        assert await db.run(body) == b"1"
        await other.run(clear_photos)
        with pytest.raises(NoSuchBucket):
            await db.run(body)


async def clear_photos(tr: Transaction) -> None:
    tr.clear(b"Bphotos")


async def test_configuration_changed_behind_the_snapshot_fails_the_commit(tmp_path, db):
    await put(db, Bphotos=b"1")
    seen: list[bytes | None] = []
    async with open_fdb(fdb_server.location(tmp_path)) as other:
        await db.read(lambda tr: tr.get_cached(b"Bphotos"))
        commit = db._library.commit

        async def body(tr: Transaction) -> None:
            seen.append(await tr.get_cached(b"Bphotos"))
            tr.set(b"O1", b"")

        def late(pointer: int) -> int:
            """Commit only when another gateway has changed the configuration."""
            db._library.commit = commit
            changed = other._library.create_transaction(other._pointer)
            inner = FdbTransaction(other._library, changed, other._prefix)
            inner.set(b"Bphotos", b"2")
            inner.finish()
            future = commit(changed)
            while not other._library.is_ready(future):
                time.sleep(0.001)
            assert other._library.error_of(future) == 0
            other._library.destroy(future)
            other._library.destroy_transaction(changed)
            return commit(pointer)

        db._library.commit = late
        try:
            await db.run(body)
        finally:
            db._library.commit = commit
    # Run again, from memory once more; then it is found out, and read.
    assert (seen[0], seen[-1]) == (b"1", b"2")


async def test_object_is_read_and_written_with_no_more_reads_than_it_needs(tmp_path, monkeypatch):
    """Bucket and read-only mark cost nothing; a PUT reads the key's row and its locks."""
    folder = folder_in(tmp_path, drives=1, profile="1+0")
    location = fdb_server.location(tmp_path)
    folder = Folder(msgspec.structs.replace(folder.config, meta=str(location)))
    await folder.prepare()
    async with folder.open() as engine:
        await engine.create_bucket("photos", owner="me")
        await engine_put(engine, "photos", "key", b"1")
        reads = Reads(monkeypatch, load(location.library))
        counts = {
            "get": await reads.of(engine_read(engine, "photos", "key")),
            "head": await reads.of(engine.head("photos", "key")),
            "put": await reads.of(engine_put(engine, "photos", "key", b"2")),
            "delete": await reads.of(engine.delete("photos", "key")),
        }
    assert counts == {"get": 1, "head": 1, "put": 3, "delete": 2}
