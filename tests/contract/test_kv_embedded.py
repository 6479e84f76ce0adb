"""The embedded metadata store: processes, kills and limits of its own."""

from __future__ import annotations

import fcntl
import random
import signal
import sqlite3
import subprocess
from pathlib import Path

import pytest
import trio
import trio.testing

from engine.errors import ConfigError, SlowDown, Unavailable
from engine.meta.embedded import EmbeddedOptions, open_embedded
from engine.meta.kv import LimitExceeded, ReadTransaction, Transaction
from engine.meta.sqlite_lock import WriteLock
from tests.support.kv import SMALL, check_written, command, fetch, fetch_range, put

ROOT = Path(__file__).parents[2]


def start(role: str, path: Path, *arguments: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        command(role, path, *arguments), cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )


def numbers(output: bytes) -> set[int]:
    """Return the numbers of whole lines: a killed process may leave half a line."""
    return {int(line) for line in output.split(b"\n")[:-1]}


async def test_content_survives_closing(tmp_path):
    async with open_embedded(tmp_path / "meta.db") as db:
        await put(db, a=b"1")
    assert not (tmp_path / "meta.db-wal").exists()
    async with open_embedded(tmp_path / "meta.db") as db:
        assert await fetch(db, b"a") == b"1"


async def test_second_opening_sees_what_the_first_committed_at_once(tmp_path):
    async with (
        open_embedded(tmp_path / "meta.db") as one,
        open_embedded(tmp_path / "meta.db") as two,
    ):
        for n in range(20):
            await put(one, a=b"%d" % n)
            assert await fetch(two, b"a") == b"%d" % n
            await put(two, a=b"%d" % -n)
            assert await fetch(one, b"a") == b"%d" % -n


async def test_processes_that_increment_at_once_lose_no_update(tmp_path):
    path = tmp_path / "meta.db"
    processes = [start("increment", path, "200") for _ in range(3)]
    for process in processes:
        await trio.to_thread.run_sync(process.communicate)
        assert process.returncode == 0
    async with open_embedded(path) as db:
        assert await fetch(db, b"n") == b"600"
        assert len(await fetch_range(db, b"F", b"G")) == 600


async def test_watch_sees_the_commit_of_another_process(tmp_path):
    path = tmp_path / "meta.db"
    async with open_embedded(path) as db:
        process = start("increment", path, "4")
        with trio.fail_after(60):
            await db.watch(b"n", None)
        await trio.to_thread.run_sync(process.communicate)
        assert await fetch(db, b"n") == b"4"


async def test_kill_at_random_moments_loses_nothing_that_was_acknowledged(tmp_path):
    """Two writers at once, one of which is killed after a random number of answers."""
    path = tmp_path / "meta.db"
    chance = random.Random(11)
    acknowledged: dict[str, set[int]] = {}
    for round_number in range(8):
        victim = start("write", path, f"v{round_number}")
        other = start("write", path, f"o{round_number}")
        heads = {}
        for tag, process in (("v", victim), ("o", other)):
            assert process.stdout is not None
            lines = chance.randrange(1, 150)
            heads[tag] = b"".join(process.stdout.readline() for _ in range(lines))
            process.kill()
        for tag, process in (("v", victim), ("o", other)):
            rest, _ = process.communicate()
            acknowledged[f"{tag}{round_number}"] = numbers(heads[tag] + rest)
            assert process.returncode == -signal.SIGKILL
        async with open_embedded(path) as db:
            assert await check_written(db, acknowledged) >= sum(map(len, acknowledged.values()))


@pytest.mark.parametrize("event", ["write log", "sync log", "synced log", "write database"])
async def test_kill_inside_a_commit_leaves_each_transaction_whole(tmp_path, event):
    """``synced log`` is the moment between the commit and its acknowledgement."""
    path = tmp_path / "meta.db"
    chance = random.Random(event)
    acknowledged: dict[str, set[int]] = {}
    more = 0
    async with open_embedded(path, options=SMALL) as neighbour:
        for n in range(6):
            process = start("die", path, f"d{n}", *event.split(), str(chance.randrange(1, 40)))
            output, _ = await trio.to_thread.run_sync(process.communicate)
            assert process.returncode == -signal.SIGKILL
            acknowledged[f"d{n}"] = numbers(output)
            # Half of the time somebody who had it open goes on; else it is opened anew.
            if n % 2:
                count = await check_written(neighbour, acknowledged)
                await put(neighbour, after=b"%d" % n)
                more = count - sum(map(len, acknowledged.values()))
    async with open_embedded(path) as db:
        await check_written(db, acknowledged)
        assert await fetch(db, b"after") == b"5"
    if event == "synced log":
        assert more > 0, "no death came between commit and acknowledgement"


async def test_waiting_for_a_lock_that_is_never_released_ends(tmp_path):
    path = tmp_path / "meta.db"
    options = EmbeddedOptions(lock_s_max=0.2)
    async with open_embedded(path, options=options) as db:
        await put(db, a=b"1")
        holder = start("hold", path)
        assert holder.stdout is not None
        assert await trio.to_thread.run_sync(holder.stdout.readline) == b"held\n"
        with pytest.raises(Unavailable):
            await put(db, a=b"2")
        assert await fetch(db, b"a") == b"1"
        await trio.to_thread.run_sync(holder.communicate)
        await put(db, a=b"3")
        assert await fetch(db, b"a") == b"3"


async def test_lock_is_not_taken_past_one_who_waits(tmp_path):
    path = tmp_path / "meta.db"
    lock = WriteLock(path)
    with path.with_name("meta.db-turn").open("rb") as waiter:
        fcntl.flock(waiter, fcntl.LOCK_EX)
        assert not lock.acquire_nowait()
    assert lock.acquire_nowait()
    lock.close()


async def test_waiting_thread_gets_the_lock_and_hands_on_the_turn(tmp_path):
    path = tmp_path / "meta.db"
    first, second, third = (WriteLock(path) for _ in range(3))
    assert first.acquire_nowait()
    assert not second.acquire_nowait()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.to_thread.run_sync, second.acquire)
        await trio.testing.wait_all_tasks_blocked()
        first.release()
    assert not third.acquire_nowait()
    second.release()
    assert third.acquire_nowait()
    for lock in (first, second, third):
        lock.close()


async def test_abandoned_lock_is_given_up_when_it_is_had(tmp_path):
    path = tmp_path / "meta.db"
    first, second = WriteLock(path), WriteLock(path)
    assert first.acquire_nowait()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.to_thread.run_sync, second.acquire)
        await trio.testing.wait_all_tasks_blocked()
        second.abandon()
        first.release()
    assert first.acquire_nowait()
    first.close()


async def test_cancelled_in_the_queue_a_body_never_runs(tmp_path):
    ran: list[int] = []

    async def body(tr: Transaction) -> None:
        ran.append(1)

    async with open_embedded(tmp_path / "meta.db") as db:
        with trio.CancelScope() as scope:
            scope.cancel()
            await db.run(body)
        await put(db, a=b"1")
    assert scope.cancelled_caught
    assert ran == []


async def test_cancelled_during_the_commit_the_others_are_not_harmed(tmp_path):
    async with open_embedded(tmp_path / "meta.db") as db:
        scope = trio.CancelScope()

        async def cancelled() -> None:
            async def body(tr: Transaction) -> None:
                tr.set(b"mine", b"")
                # The body is in the batch, which commits in any case.
                scope.cancel()

            with scope:
                await db.run(body)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(cancelled)
            for n in range(10):
                nursery.start_soon(lambda n=n: put(db, **{f"k{n}": b""}))
        assert scope.cancelled_caught
        assert len(await fetch_range(db, b"k", b"l")) == 10
        assert await fetch(db, b"mine") == b""


async def test_transaction_that_takes_too_long_is_refused(tmp_path):
    now = 0.0
    async with open_embedded(
        tmp_path / "meta.db", options=EmbeddedOptions(clock=lambda: now)
    ) as db:

        async def slow(tr: Transaction) -> None:
            nonlocal now
            tr.set(b"a", b"1")
            now += 6

        async def slow_read(tr: ReadTransaction) -> None:
            nonlocal now
            now += 6
            await tr.get(b"a")

        with pytest.raises(LimitExceeded):
            await db.run(slow)
        with pytest.raises(LimitExceeded):
            await db.read(slow_read)
        assert await fetch(db, b"a") is None


async def test_full_queue_says_slow_down(tmp_path):
    async with open_embedded(tmp_path / "meta.db", options=EmbeddedOptions(queue_max=2)) as db:
        refused: list[SlowDown] = []

        async def one(n: int) -> None:
            try:
                await put(db, **{f"k{n}": b""})
            except SlowDown as error:
                refused.append(error)

        async with trio.open_nursery() as nursery:
            for n in range(5):
                nursery.start_soon(one, n)
        assert len(refused) == 3
        assert len(await fetch_range(db, b"k", b"l")) == 2


async def test_body_that_uses_the_store_is_refused(tmp_path):
    async with open_embedded(tmp_path / "meta.db") as db:

        async def reads(tr: ReadTransaction) -> None:
            await db.read(reads)

        async def runs(tr: Transaction) -> None:
            tr.set(b"a", b"")
            await db.run(runs)

        for call, body in ((db.read, reads), (db.run, reads), (db.run, runs)):
            with pytest.raises(RuntimeError, match="nothing but its transaction"):
                await call(body)
        assert await fetch(db, b"a") is None


async def test_text_for_bytes_is_refused_and_the_store_goes_on(tmp_path):
    async with open_embedded(tmp_path / "meta.db") as db:

        async def body(tr: Transaction) -> None:
            tr.set("text", b"")  # type: ignore[arg-type]  # the mistake that is tested

        with pytest.raises(TypeError):
            await db.run(body)
        await put(db, a=b"1")
        assert await fetch_range(db, b"", b"\xff") == [(b"a", b"1")]


async def test_closed_store_says_so_to_callers_and_watchers(tmp_path):
    async with open_embedded(tmp_path / "meta.db") as db:
        async with trio.open_nursery() as nursery:

            async def watch() -> None:
                with pytest.raises(Unavailable):
                    await db.watch(b"a", None)

            nursery.start_soon(watch)
            await trio.testing.wait_all_tasks_blocked()
            await db.aclose()
        with pytest.raises(Unavailable):
            await put(db, a=b"1")
        with pytest.raises(Unavailable):
            await fetch(db, b"a")
        await db.aclose()


async def test_closing_finishes_what_is_queued(tmp_path):
    async with open_embedded(tmp_path / "meta.db") as db, trio.open_nursery() as nursery:
        nursery.start_soon(lambda: put(db, a=b"1"))
        await trio.testing.wait_all_tasks_blocked(0)
        await db.aclose()
    async with open_embedded(tmp_path / "meta.db") as db:
        assert await fetch(db, b"a") == b"1"


async def test_exception_leaves_the_context_as_it_is(tmp_path):
    with pytest.raises(KeyError, match="mine"):
        async with open_embedded(tmp_path / "meta.db"):
            raise KeyError("mine")
    with trio.CancelScope() as scope:
        async with open_embedded(tmp_path / "meta.db"):
            scope.cancel()
            await trio.lowlevel.checkpoint()
    assert scope.cancelled_caught


@pytest.mark.parametrize("content", ["text", "foreign", "cut"])
async def test_foreign_or_damaged_file_is_named(tmp_path, content):
    path = tmp_path / "meta.db"
    match content:
        case "text":
            path.write_bytes(b"not a database at all" * 1000)
        case "foreign":
            connection = sqlite3.connect(path)
            connection.execute("CREATE TABLE other (a)")
            connection.commit()
            connection.close()
        case "cut":
            async with open_embedded(path) as db:
                await put(db, a=bytes(50_000))
            path.write_bytes(path.read_bytes()[:8192] + bytes(8192))
    before = path.read_bytes()
    with pytest.raises(ConfigError, match=r"meta\.db"):
        async with open_embedded(path):
            pass
    assert path.read_bytes() == before


async def test_missing_folder_is_named(tmp_path):
    with pytest.raises(ConfigError, match="nowhere"):
        async with open_embedded(tmp_path / "nowhere" / "meta.db"):
            pass


async def test_log_stays_bounded_while_readers_and_writers_work(tmp_path):
    path = tmp_path / "meta.db"
    async with open_embedded(path, options=SMALL) as db:
        for n in range(300):
            await put(db, **{f"k{n}": bytes(4000)})
            await fetch(db, b"k1")
        assert (tmp_path / "meta.db-wal").stat().st_size < 100 * 8192
        assert len(await fetch_range(db, b"k", b"l")) == 300
