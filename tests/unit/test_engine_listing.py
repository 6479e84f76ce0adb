"""What listings cost in rows read, and where their pages begin and end."""

from __future__ import annotations

import dataclasses
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TypeVar

import pytest

from engine.engine import Engine
from engine.ids import DataId
from engine.meta import keyspace
from engine.meta.kv import Database, ReadTransaction, Transaction
from engine.meta.records import FORMAT, InlineData, UploadRecord, VersionRecord, encode
from engine.types import Attributes
from tests.support.engine import engine_in, put

T = TypeVar("T")


class CountingTransaction:
    """Passes reads on and counts the rows that they returned."""

    def __init__(self, tr: ReadTransaction, counter: CountingDatabase) -> None:
        self._tr = tr
        self._counter = counter

    async def get(self, key: bytes, *, snapshot: bool = False) -> bytes | None:
        self._counter.rows += 1
        return await self._tr.get(key, snapshot=snapshot)

    async def get_cached(self, key: bytes) -> bytes | None:
        self._counter.rows += 1
        return await self._tr.get_cached(key)

    async def get_range(
        self,
        begin: bytes,
        end: bytes,
        *,
        limit: int = 0,
        reverse: bool = False,
        snapshot: bool = False,
    ) -> list[tuple[bytes, bytes]]:
        rows = await self._tr.get_range(begin, end, limit=limit, reverse=reverse, snapshot=snapshot)
        self._counter.rows += len(rows)
        self._counter.seeks += 1
        return rows


class CountingDatabase:
    def __init__(self, db: Database) -> None:
        self._db = db
        self.rows = 0
        self.seeks = 0

    async def run(self, body: Callable[[Transaction], Awaitable[T]]) -> T:
        return await self._db.run(body)

    async def read(self, body: Callable[[ReadTransaction], Awaitable[T]]) -> T:
        return await self._db.read(lambda tr: body(CountingTransaction(tr, self)))

    async def watch(self, key: bytes, value: bytes | None) -> None:
        await self._db.watch(key, value)

    async def aclose(self) -> None:
        await self._db.aclose()


def counted(opened: Engine) -> tuple[Engine, CountingDatabase]:
    """Return the engine with a database that counts."""
    counter = CountingDatabase(opened.store.db)
    return Engine(dataclasses.replace(opened.store, db=counter)), counter


def version_row(sequence: int) -> bytes:
    return encode(
        VersionRecord(
            format=FORMAT,
            sequence=sequence,
            size=1,
            modified_ms=1,
            etag="e",
            version_id="null",
            delete_marker=False,
            storage_class="STANDARD",
            checksum_shown="",
            data_id=DataId(b"0" * 16),
            data=InlineData(data=b"x"),
        )
    )


async def fill(opened: Engine, rows: list[tuple[bytes, bytes]]) -> None:
    """Write many rows at once; putting so many objects would take minutes."""
    for first in range(0, len(rows), 10_000):

        async def body(tr: Transaction, first: int = first) -> None:
            for key, value in rows[first : first + 10_000]:
                tr.set(key, value)

        await opened.store.db.run(body)


async def bucket_with_keys(opened: Engine, keys: list[str]) -> None:
    info = await opened.create_bucket("bucket", owner="owner")
    row = version_row(1)
    await fill(opened, [(keyspace.object_(info.bucket_id, key.encode()), row) for key in keys])


async def test_common_prefix_costs_a_seek_however_many_keys_are_below(tmp_path: Path) -> None:
    async with engine_in(tmp_path, drives=1, profile="1+0") as opened:
        below = [f"dir/{number:05}" for number in range(10_000)]
        await bucket_with_keys(opened, ["before", *below, "even", "later/x"])
        engine, counter = counted(opened)
        page = await engine.list_objects("bucket", delimiter="/", limit=10)
        assert page.prefixes == ["dir/", "later/"]
        assert [item.key for item in page.objects] == ["before", "even"]
        assert counter.rows < 50


async def test_prefix_with_keys_behind_costs_what_it_shows(tmp_path: Path) -> None:
    async with engine_in(tmp_path, drives=1, profile="1+0") as opened:
        keys = [f"{letter}/{number:04}" for letter in "abc" for number in range(3000)]
        await bucket_with_keys(opened, keys)
        engine, counter = counted(opened)
        page = await engine.list_objects("bucket", prefix="b/", limit=10)
        assert [item.key for item in page.objects] == keys[3000:3010]
        assert counter.rows < 20


async def test_page_of_a_thousand_keys_reads_a_thousand_rows(tmp_path: Path) -> None:
    async with engine_in(tmp_path, drives=1, profile="1+0") as opened:
        keys = [f"{number:06}" for number in range(100_000)]
        await bucket_with_keys(opened, keys)
        engine, counter = counted(opened)
        page = await engine.list_objects("bucket", after="050000", limit=1000)
        assert [item.key for item in page.objects] == keys[50_001:51_001]
        assert page.next_after == "051000"
        assert 1000 <= counter.rows <= 1010
        counter.rows = 0
        page = await engine.list_objects("bucket", delimiter="/", after="050000", limit=1000)
        assert len(page.objects) == 1000
        assert 1000 <= counter.rows <= 1010


async def test_thousand_prefixes_cost_a_few_rows_each(tmp_path: Path) -> None:
    async with engine_in(tmp_path, drives=1, profile="1+0") as opened:
        keys = [f"{number:03}/{below:02}" for number in range(1000) for below in range(50)]
        await bucket_with_keys(opened, keys)
        engine, counter = counted(opened)
        page = await engine.list_objects("bucket", delimiter="/", limit=1000)
        assert len(page.prefixes) == 1000
        assert page.next_after is None
        assert counter.rows < 5000
        assert counter.seeks < 1100


async def test_page_of_versions_costs_what_it_shows(tmp_path: Path) -> None:
    async with engine_in(tmp_path, drives=1, profile="1+0") as opened:
        info = await opened.create_bucket("bucket", owner="owner")
        await opened.set_versioning("bucket", "Enabled")
        bucket_id = info.bucket_id
        rows = [(keyspace.object_(bucket_id, b"key"), version_row(20_001))]
        rows += [
            (keyspace.version(bucket_id, b"key", sequence), version_row(sequence))
            for sequence in range(1, 20_001)
        ]
        rows += [
            (keyspace.version(bucket_id, b"dir/%05d" % number, 1), version_row(1))
            for number in range(10_000)
        ]
        await fill(opened, rows)
        engine, counter = counted(opened)
        page = await engine.list_versions("bucket", delimiter="/", limit=11)
        assert page.prefixes == ["dir/"]
        assert [item.version.sequence for item in page.versions] == list(range(20_001, 19_991, -1))
        assert counter.rows < 100


async def test_page_of_uploads_costs_what_it_shows(tmp_path: Path) -> None:
    async with engine_in(tmp_path, drives=1, profile="1+0") as opened:
        info = await opened.create_bucket("bucket", owner="owner")
        record = UploadRecord(
            format=FORMAT,
            started_ms=1,
            storage_class="STANDARD",
            headers=[],
            metadata=[],
            tags=[],
        )
        rows = [
            (keyspace.uploads(info.bucket_id, b"dir/%05d" % n) + b"u" * 16, encode(record))
            for n in range(10_000)
        ]
        await fill(opened, rows)
        last = await opened.create_upload("bucket", "last", attributes=Attributes())
        engine, counter = counted(opened)
        page = await engine.list_uploads("bucket", delimiter="/", limit=10)
        assert page.prefixes == ["dir/"]
        assert [item.upload_id for item in page.uploads] == [last.upload_id]
        assert counter.rows < 50


@pytest.mark.parametrize("limit", [1, 2, 3, 7])
async def test_version_pages_of_any_size_show_each_version_once(tmp_path: Path, limit: int) -> None:
    async with engine_in(tmp_path, drives=1, profile="1+0") as opened:
        await opened.create_bucket("bucket", owner="owner")
        await put(opened, "bucket", "a", b"null")
        await opened.set_versioning("bucket", "Enabled")
        for key in ("a", "a", "a\x00", "b"):
            await put(opened, "bucket", key, b"x")
        await opened.delete("bucket", "a")
        await opened.delete("bucket", "c")
        whole = (await opened.list_versions("bucket")).versions
        assert [(item.key, item.is_latest) for item in whole] == [
            ("a", True),
            ("a", False),
            ("a", False),
            ("a", False),
            ("a\x00", True),
            ("b", True),
            ("c", True),
        ]
        seen, key, version = [], "", ""
        while True:
            page = await opened.list_versions(
                "bucket", key_marker=key, version_id_marker=version, limit=limit
            )
            assert len(page.versions) <= limit
            seen += page.versions
            if page.next_key is None:
                break
            key, version = page.next_key, page.next_version_id or ""
        assert seen == whole
