"""The embedded metadata store on a disk that fails or is full."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import apsw
import pytest
import trio

from engine.errors import NoSpace
from engine.meta.embedded import EmbeddedOptions, open_embedded
from engine.meta.kv import Database, MetadataFailed, Transaction
from tests.support.kv import FaultVfs, counter, fetch, fetch_range, put

RESERVE = 1 << 20


@pytest.fixture
def vfs() -> Iterator[FaultVfs]:
    vfs = FaultVfs("faulty")
    yield vfs
    vfs.unregister()


class SmallDisk:
    """Full whenever it is told so, until the reserve has been given up."""

    def __init__(self, vfs: FaultVfs, path: Path) -> None:
        self.full = False
        self.broken_reserve = False
        self._reserve = path.with_name(path.name + "-reserve")
        vfs.before = self._before

    def _before(self, event: str, kind: str) -> None:
        if event == "write" and self.full and (self.broken_reserve or self._reserve.stat().st_size):
            raise apsw.FullError("disk is full")

    def free(self, _path: Path) -> int:
        return 0 if self.full else 1 << 40

    @property
    def options(self) -> EmbeddedOptions:
        return EmbeddedOptions(reserve_size=RESERVE, free_space=self.free)


async def commit_many(db: Database, names: list[str]) -> list[BaseException | None]:
    """Set all names in transactions of their own at once; return how each ended."""
    results: list[BaseException | None] = [None] * len(names)

    async def one(n: int) -> None:
        try:
            await put(db, **{names[n]: b""})
        except (MetadataFailed, NoSpace) as error:
            results[n] = error

    async with trio.open_nursery() as nursery:
        for n in range(len(names)):
            nursery.start_soon(one, n)
    return results


@pytest.mark.parametrize("event", ["sync", "write"])
async def test_failed_commit_fails_its_whole_batch_and_all_later_writes(tmp_path, vfs, event):
    async with open_embedded(tmp_path / "meta.db", vfs="faulty") as db:
        await put(db, a=b"1")

        def fail_once(seen: str, kind: str) -> None:
            if seen == event:
                vfs.before = lambda *_: None
                raise apsw.IOError("injected")

        vfs.before = fail_once
        names = [f"k{n}" for n in range(10)]
        results = await commit_many(db, names)
        assert [type(result) for result in results] == [MetadataFailed] * 10
        # The disk works again, and yet nobody can know what it holds.
        with pytest.raises(MetadataFailed):
            await put(db, a=b"2")
        assert await fetch(db, b"a") == b"1"
        assert await fetch_range(db, b"k", b"l") == []
    async with open_embedded(tmp_path / "meta.db") as db:
        await put(db, a=b"3")
        assert await fetch(db, b"a") == b"3"


async def test_failed_checkpoint_stops_writes_and_loses_no_commit(tmp_path, vfs):
    options = EmbeddedOptions(checkpoint_pages=5, reserve_size=0)
    async with open_embedded(tmp_path / "meta.db", vfs="faulty", options=options) as db:

        def fail(seen: str, kind: str) -> None:
            if (seen, kind) == ("sync", "database"):
                raise apsw.IOError("injected")

        vfs.before = fail
        committed = 0
        try:
            while committed < 100:
                await put(db, **{f"k{committed:03}": bytes(3000)})
                committed += 1
        except MetadataFailed:
            pass
        assert 0 < committed < 100
    vfs.before = lambda *_: None
    async with open_embedded(tmp_path / "meta.db") as db:
        assert len(await fetch_range(db, b"k", b"l")) == committed


async def test_failed_read_is_an_error_of_the_store_and_the_next_one_works(tmp_path, vfs):
    path = tmp_path / "meta.db"
    async with open_embedded(path) as db:
        await put(db, a=b"1")
    async with open_embedded(path, vfs="faulty") as db:
        vfs.before_read = fail_read
        with pytest.raises(MetadataFailed):
            await fetch(db, b"a")
        vfs.before_read = lambda: None
        assert await fetch(db, b"a") == b"1"


def fail_read() -> None:
    raise apsw.IOError("injected")


async def test_full_disk_refuses_new_data_and_lets_deletes_through(tmp_path, vfs):
    path = tmp_path / "meta.db"
    disk = SmallDisk(vfs, path)
    async with open_embedded(path, vfs="faulty", options=disk.options) as db:
        await put(db, a=b"1" * 500, b=b"2" * 500, c=b"3")

        async def delete(tr: Transaction) -> None:
            """As deleting an object does, it leaves a few small rows."""
            tr.clear(b"a")
            tr.set(b"garbage", bytes(100))
            tr.set_versionstamped_key(b"F", b"", bytes(100))
            tr.add(b"usage", -1)

        async def renew(tr: Transaction) -> None:
            tr.set(b"c", b"4")

        disk.full = True
        outcomes: dict[str, BaseException | None] = {}

        async def attempt(name: str, body: object) -> None:
            try:
                await (db.run(body) if callable(body) else put(db, new=bytes(2000)))
            except NoSpace as error:
                outcomes[name] = error
            else:
                outcomes[name] = None

        async with trio.open_nursery() as nursery:
            nursery.start_soon(attempt, "put", None)
            nursery.start_soon(attempt, "delete", delete)
            nursery.start_soon(attempt, "renew", renew)
        assert isinstance(outcomes.pop("put"), NoSpace)
        assert outcomes == {"delete": None, "renew": None}
        assert await fetch(db, b"a") is None
        assert await fetch(db, b"c") == b"4"
        assert await fetch(db, b"new") is None
        assert counter(await fetch(db, b"usage")) == -1

        async def sweep(tr: Transaction) -> None:
            tr.clear_range(b"b", b"c")
            tr.set(b"c", bytes(400))

        await db.run(sweep)
        with pytest.raises(NoSpace):
            await put(db, new=bytes(2000))

        disk.full = False
        await put(db, new=bytes(2000))
        assert path.with_name("meta.db-reserve").stat().st_size == RESERVE
        assert await fetch(db, b"new") == bytes(2000)


async def test_full_disk_without_a_reserve_says_so_and_the_store_goes_on(tmp_path, vfs):
    path = tmp_path / "meta.db"
    disk = SmallDisk(vfs, path)
    disk.broken_reserve = True
    async with open_embedded(path, vfs="faulty", options=disk.options) as db:
        await put(db, a=b"1")
        disk.full = True
        for _ in range(3):
            results = await commit_many(db, [f"k{n}" for n in range(5)])
            assert [type(result) for result in results] == [NoSpace] * 5
        assert await fetch(db, b"a") == b"1"
        disk.full = False
        await put(db, a=b"2")
        assert await fetch_range(db, b"", b"\xff") == [(b"a", b"2")]


async def test_disk_that_fills_up_inside_a_body_fails_it_and_the_store_goes_on(tmp_path, vfs):
    """More than the page cache holds is written to the log before the commit."""
    path = tmp_path / "meta.db"
    disk = SmallDisk(vfs, path)
    options = EmbeddedOptions(reserve_size=RESERVE, free_space=disk.free, cache_size=1 << 16)
    async with open_embedded(path, vfs="faulty", options=options) as db:
        disk.full = True

        async def large(tr: Transaction) -> None:
            for n in range(50):
                tr.set(b"%03d" % n, bytes(50_000))

        with pytest.raises(NoSpace):
            await db.run(large)
        disk.full = False
        await db.run(large)
        assert len(await fetch_range(db, b"", b"\xff")) == 50
