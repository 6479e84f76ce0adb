"""Objects: races of conditional writes, null versions, copies in place, tags and counters."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
import trio

from engine.engine import Engine
from engine.errors import (
    BadDigest,
    ConditionConflict,
    IncompleteBody,
    IsDeleteMarker,
    NoSuchKey,
    NoSuchVersion,
    NotModified,
    PreconditionFailed,
)
from engine.meta import keyspace
from engine.meta.records import Checksum
from engine.types import (
    Attributes,
    Conditions,
    CopySource,
    Deleted,
    DeleteItem,
    Digests,
    ObjectInfo,
)
from tests.support.engine import (
    CRC64,
    BytesSource,
    count_fragments,
    count_rows,
    data_rows,
    engine_in,
    folder_in,
    keep_crc64,
    pattern,
    put,
    read,
    upload,
)

ANY_ABSENT = Conditions(if_none_match=("*",))
SIZES = (10, 500, 3000, 200_000)


@pytest.mark.parametrize("size", SIZES)
async def test_of_many_writers_who_want_the_key_absent_one_wins(tmp_path: Path, size: int) -> None:
    folder = folder_in(tmp_path)
    await folder.prepare()
    async with folder.open() as one, folder.open() as two:
        await one.create_bucket("bucket", owner="owner")
        outcomes: Counter[str] = Counter()
        winners: list[ObjectInfo] = []

        async def write(opened: Engine, seed: int) -> None:
            data = pattern(size, seed)
            try:
                winners.append(await put(opened, "bucket", "key", data, conditions=ANY_ABSENT))
                outcomes["won"] += 1
            except (PreconditionFailed, ConditionConflict):
                outcomes["lost"] += 1

        async with trio.open_nursery() as nursery:
            for seed in range(20):
                nursery.start_soon(write, (one, two)[seed % 2], seed)
        assert outcomes == {"won": 1, "lost": 19}
        data = await read(two, "bucket", "key")
        assert winners[0].etag == (await one.head("bucket", "key")).etag
        assert data in [pattern(size, seed) for seed in range(20)]
        await one.delete("bucket", "key")
        await one.store.sessions.renew()
        await two.store.sessions.renew()
        folder.clock.advance(60)
        await one.store.sessions.renew()
        await two.collect_garbage(grace_s=0)
        assert await count_fragments(one) == 0


async def test_of_many_who_replace_the_same_version_one_wins(tmp_path: Path) -> None:
    folder = folder_in(tmp_path)
    await folder.prepare()
    async with folder.open() as one, folder.open() as two:
        await one.create_bucket("bucket", owner="owner")
        etag = (await put(one, "bucket", "key", b"first")).etag
        outcomes: Counter[str] = Counter()

        async def write(opened: Engine, seed: int) -> None:
            try:
                await put(
                    opened,
                    "bucket",
                    "key",
                    pattern(10, seed),
                    conditions=Conditions(if_match=(etag,)),
                )
                outcomes["won"] += 1
            except PreconditionFailed:
                outcomes["lost"] += 1

        async with trio.open_nursery() as nursery:
            for seed in range(20):
                nursery.start_soon(write, (one, two)[seed % 2], seed)
        assert outcomes == {"won": 1, "lost": 19}


async def test_versions_written_at_once_are_all_kept(tmp_path: Path) -> None:
    folder = folder_in(tmp_path)
    await folder.prepare()
    async with folder.open() as one, folder.open() as two:
        await one.create_bucket("bucket", owner="owner")
        await one.set_versioning("bucket", "Enabled")
        made: dict[str | None, bytes] = {}

        async def write(opened: Engine, seed: int) -> None:
            data = pattern(2000, seed)
            made[(await put(opened, "bucket", "key", data)).version_id] = data

        async with trio.open_nursery() as nursery:
            for seed in range(20):
                nursery.start_soon(write, (one, two)[seed % 2], seed)
        listed = (await two.list_versions("bucket")).versions
        assert {item.version.version_id for item in listed} == set(made)
        assert [item.is_latest for item in listed] == [True] + 19 * [False]
        for version_id, data in made.items():
            assert await read(one, "bucket", "key", version_id=version_id) == data


async def shown(opened: Engine) -> list[tuple[bool, bool]]:
    """Return (is it the null version, is it a marker) of the bucket's versions, newest first."""
    listed = (await opened.list_versions("bucket")).versions
    return [(item.version.version_id == "null", item.version.delete_marker) for item in listed]


async def test_null_version_goes_through_all_states_of_versioning(tmp_path: Path) -> None:
    async with engine_in(tmp_path) as opened:
        await opened.create_bucket("bucket", owner="owner")
        await put(opened, "bucket", "key", pattern(3000, 1))
        await opened.set_versioning("bucket", "Enabled")
        await put(opened, "bucket", "key", pattern(3000, 2))
        assert await shown(opened) == [(False, False), (True, False)]
        await opened.set_versioning("bucket", "Suspended")
        await put(opened, "bucket", "key", pattern(3000, 3))
        assert await shown(opened) == [(True, False), (False, False)]
        await put(opened, "bucket", "key", pattern(3000, 4))
        assert await shown(opened) == [(True, False), (False, False)]
        assert await read(opened, "bucket", "key", version_id="null") == pattern(3000, 4)
        marker = await opened.delete("bucket", "key")
        assert marker == Deleted("key", "null", True)
        assert await shown(opened) == [(True, True), (False, False)]
        with pytest.raises(IsDeleteMarker):
            await opened.head("bucket", "key", version_id="null")
        with pytest.raises(NoSuchKey) as caught:
            await opened.head("bucket", "key")
        assert caught.value.delete_marker == "null"
        await opened.set_versioning("bucket", "Enabled")
        await put(opened, "bucket", "key", pattern(3000, 5))
        assert await shown(opened) == [(False, False), (True, True), (False, False)]
        await opened.delete("bucket", "key", version_id="null")
        assert await shown(opened) == [(False, False), (False, False)]
        assert await read(opened, "bucket", "key") == pattern(3000, 5)
        assert await count_rows(opened, keyspace.NULL) == 0
        await opened.collect_garbage(grace_s=0)
        assert (await opened.fsck(deep=True)).clean
        assert (await opened.status()).objects == 2


async def test_removing_the_newest_version_brings_the_one_before_back(tmp_path: Path) -> None:
    async with engine_in(tmp_path) as opened:
        await opened.create_bucket("bucket", owner="owner")
        await opened.set_versioning("bucket", "Enabled")
        first = await put(opened, "bucket", "key", b"1")
        second = await put(opened, "bucket", "key", b"2")
        marker = await opened.delete("bucket", "key")
        assert (await opened.list_objects("bucket")).objects == []
        await opened.delete("bucket", "key", version_id=marker.version_id)
        assert await read(opened, "bucket", "key") == b"2"
        await opened.delete("bucket", "key", version_id=second.version_id)
        assert await read(opened, "bucket", "key") == b"1"
        with pytest.raises(NoSuchVersion):
            await opened.head("bucket", "key", version_id=second.version_id)
        third = await put(opened, "bucket", "key", b"3")
        assert third.version_id not in (first.version_id, second.version_id)


async def test_usage_counts_all_versions_and_nothing_else(tmp_path: Path) -> None:
    async with engine_in(tmp_path) as opened:
        await opened.create_bucket("bucket", owner="owner")

        async def usage() -> tuple[int, int]:
            status = await opened.status()
            return status.objects, status.bytes

        for size in SIZES:
            await put(opened, "bucket", "key", pattern(size))
            assert await usage() == (1, size)
        await opened.set_versioning("bucket", "Enabled")
        kept = await put(opened, "bucket", "key", pattern(7))
        assert await usage() == (2, SIZES[-1] + 7)
        await opened.delete("bucket", "key")
        assert await usage() == (2, SIZES[-1] + 7)
        await opened.delete("bucket", "key", version_id="null")
        assert await usage() == (1, 7)
        await upload(opened, "bucket", "parts", [pattern(5 << 20), pattern(9)])
        assert await usage() == (2, 7 + (5 << 20) + 9)
        await opened.delete("bucket", "key", version_id=kept.version_id)
        assert await usage() == (1, (5 << 20) + 9)


@pytest.mark.parametrize("size", SIZES)
async def test_copy_in_place_changes_attributes_and_moves_no_bytes(
    tmp_path: Path, size: int
) -> None:
    async with engine_in(tmp_path) as opened:
        await opened.create_bucket("bucket", owner="owner")
        await put(opened, "bucket", "key", pattern(size), attributes=Attributes(tags=[("t", "1")]))
        before = await opened.head("bucket", "key")
        fragments = await count_fragments(opened)
        after = await opened.copy(
            CopySource("bucket", "key"),
            "bucket",
            "key",
            attributes=Attributes(metadata=[("mtime", "1")]),
            tags=None,
        )
        assert after.record.data_id == before.record.data_id
        assert after.record.metadata == [("mtime", "1")]
        assert after.record.tags == [("t", "1")]
        assert after.modified_ms > before.modified_ms
        assert await count_fragments(opened) == fragments
        assert (await opened.status()).garbage_queue == 0
        assert await read(opened, "bucket", "key") == pattern(size)
        await opened.set_versioning("bucket", "Enabled")
        kept = await opened.copy(
            CopySource("bucket", "key"), "bucket", "key", attributes=None, tags=[]
        )
        assert kept.version_id != "null"
        assert await shown(opened) == [(False, False), (True, False)]
        await opened.delete("bucket", "key", version_id="null")
        await opened.collect_garbage(grace_s=0)
        assert await read(opened, "bucket", "key") == pattern(size)


async def test_tags_of_one_version_change_alone(tmp_path: Path) -> None:
    async with engine_in(tmp_path) as opened:
        await opened.create_bucket("bucket", owner="owner")
        await opened.set_versioning("bucket", "Enabled")
        old = await put(opened, "bucket", "key", pattern(3000))
        new = await put(opened, "bucket", "key", b"new")
        await opened.set_tags("bucket", "key", [("old", "1")], version_id=old.version_id)
        await opened.set_tags("bucket", "key", [("new", "1")])
        found = [
            (await opened.head("bucket", "key", version_id=info.version_id)).record
            for info in (old, new)
        ]
        assert [record.tags for record in found] == [[("old", "1")], [("new", "1")]]
        assert [record.modified_ms for record in found] == [old.modified_ms, new.modified_ms]
        assert await read(opened, "bucket", "key", version_id=old.version_id) == pattern(3000)
        await opened.set_tags("bucket", "key", [])
        assert (await opened.head("bucket", "key")).record.tags == []


async def test_time_conditions_look_at_whole_seconds(tmp_path: Path) -> None:
    async with engine_in(tmp_path) as opened:
        await opened.create_bucket("bucket", owner="owner")
        info = await put(opened, "bucket", "key", b"x")
        second = info.modified_ms // 1000 * 1000
        with pytest.raises(NotModified):
            await opened.head("bucket", "key", conditions=Conditions(if_modified_since_ms=second))
        await opened.head(
            "bucket", "key", conditions=Conditions(if_modified_since_ms=second - 1000)
        )
        await opened.head("bucket", "key", conditions=Conditions(if_unmodified_since_ms=second))
        with pytest.raises(PreconditionFailed):
            await opened.head(
                "bucket", "key", conditions=Conditions(if_unmodified_since_ms=second - 1000)
            )
        # An ETag that is given decides alone (RFC 9110, section 13.2.2).
        await opened.head(
            "bucket",
            "key",
            conditions=Conditions(if_match=(info.etag,), if_unmodified_since_ms=0),
        )


async def test_items_of_a_large_delete_are_answered_one_by_one(tmp_path: Path) -> None:
    async with engine_in(tmp_path) as opened:
        await opened.create_bucket("bucket", owner="owner")
        for number in range(150):
            await put(opened, "bucket", f"{number:03}", b"x")
        items = [DeleteItem(f"{number:03}") for number in range(150)]
        items[70] = items[70]._replace(conditions=Conditions(if_match=("0" * 32,)))
        items.append(DeleteItem("k" * 1025))
        answers = await opened.delete_many("bucket", items)
        refused = [n for n, answer in enumerate(answers) if not isinstance(answer, Deleted)]
        assert refused == [70, 150]
        assert [item.key for item in (await opened.list_objects("bucket")).objects] == ["070"]


@pytest.mark.parametrize("size", SIZES)
async def test_refused_bytes_leave_nothing_behind(tmp_path: Path, size: int) -> None:
    def refuse(digests: Digests) -> list[Checksum]:
        raise BadDigest("CRC64NVME")

    async with engine_in(tmp_path) as opened:
        await opened.create_bucket("bucket", owner="owner")
        for check, announced, error in (
            (refuse, size, BadDigest),
            (keep_crc64, size + 1, IncompleteBody),
        ):
            with pytest.raises(error):
                await opened.put(
                    "bucket",
                    "key",
                    BytesSource(pattern(size)),
                    size=announced,
                    algorithms=CRC64,
                    attributes=Attributes(),
                    check=check,
                )
        assert await count_fragments(opened) == 0
        assert await data_rows(opened) == {}
