"""Multipart uploads: what Complete promises, alone and against others."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import trio

from engine.engine import Engine
from engine.errors import (
    BadPart,
    EntityTooSmall,
    InvalidArgument,
    InvalidPartOrder,
    InvalidRange,
    NoSuchBucket,
    NoSuchUpload,
    PreconditionFailed,
)
from engine.meta import keyspace
from engine.types import Attributes, CompletePart, Conditions, CopySource, PartInfo
from tests.support.engine import (
    count_fragments,
    count_rows,
    data_rows,
    engine_in,
    folder_in,
    part_size_min,
    pattern,
    put,
    put_part,
    read,
    scratch_folder,
    upload,
)

LARGE = 200_000


def chosen(*parts: PartInfo) -> list[CompletePart]:
    return [CompletePart(part.number, part.etag, []) for part in parts]


async def test_repeated_complete_answers_the_same(tmp_path: Path) -> None:
    async with engine_in(tmp_path) as opened:
        await opened.create_bucket("bucket", owner="owner")
        await opened.set_versioning("bucket", "Enabled")
        info = await opened.create_upload("bucket", "key", attributes=Attributes())
        part = await put_part(opened, "bucket", "key", info.upload_id, 1, pattern(LARGE))
        first = await opened.complete_upload("bucket", "key", info.upload_id, chosen(part))
        again = await opened.complete_upload("bucket", "key", info.upload_id, chosen(part))
        assert (again.etag, again.version_id, again.size, again.modified_ms) == (
            first.etag,
            first.version_id,
            first.size,
            first.modified_ms,
        )
        assert len((await opened.list_versions("bucket")).versions) == 1


async def test_two_completes_at_once_make_one_version(tmp_path: Path) -> None:
    async with engine_in(tmp_path) as opened:
        await opened.create_bucket("bucket", owner="owner")
        await opened.set_versioning("bucket", "Enabled")
        info = await opened.create_upload("bucket", "key", attributes=Attributes())
        part = await put_part(opened, "bucket", "key", info.upload_id, 1, pattern(LARGE))
        answers: set[str | None] = set()

        async def complete() -> None:
            done = await opened.complete_upload("bucket", "key", info.upload_id, chosen(part))
            answers.add(done.version_id)

        async with trio.open_nursery() as nursery:
            for _ in range(8):
                nursery.start_soon(complete)
        assert len(answers) == 1
        assert len((await opened.list_versions("bucket")).versions) == 1


async def race(opened: Engine, key: str, seed: int) -> str:
    """Complete an upload while its only part is replaced; return which of both was refused."""
    info = await opened.create_upload("bucket", key, attributes=Attributes())
    old = await put_part(opened, "bucket", key, info.upload_id, 1, pattern(LARGE))
    refused: list[str] = []

    async def replace() -> None:
        try:
            await put_part(opened, "bucket", key, info.upload_id, 1, pattern(1000, seed))
        except NoSuchUpload:
            refused.append("part")

    async def complete() -> None:
        try:
            await opened.complete_upload("bucket", key, info.upload_id, chosen(old))
        except BadPart:
            refused.append("complete")
            await opened.abort_upload("bucket", key, info.upload_id)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(complete)
        nursery.start_soon(replace)
    (one,) = refused
    return one


async def test_complete_and_part_that_come_together_make_a_whole_object(tmp_path: Path) -> None:
    """One of both is refused; the bytes are always those of the ETag."""
    async with engine_in(tmp_path) as opened:
        await opened.create_bucket("bucket", owner="owner")
        for number in range(10):
            key = f"key{number}"
            if await race(opened, key, number) == "part":
                data = await read(opened, "bucket", key)
                assert data == pattern(LARGE)
                etag = hashlib.md5(hashlib.md5(data).digest()).hexdigest() + "-1"
                assert (await opened.head("bucket", key)).etag == etag
        await opened.collect_garbage(grace_s=0)
        report = await opened.fsck(deep=True)
        assert report.clean, report.problems


async def test_complete_of_ten_thousand_parts_in_any_class() -> None:
    with scratch_folder() as path, part_size_min(1):
        async with engine_in(path, drives=1, profile="1+0") as opened:
            await opened.create_bucket("bucket", owner="owner")
            info = await opened.create_upload("bucket", "key", attributes=Attributes())
            pieces = {number: b"%05d" % number for number in range(1, 10_001)}
            pieces[5000] = pattern(500)
            pieces[7000] = pattern(LARGE)
            numbers = iter(sorted(pieces))
            done: dict[int, PartInfo] = {}

            async def work() -> None:
                for number in numbers:
                    done[number] = await put_part(
                        opened, "bucket", "key", info.upload_id, number, pieces[number]
                    )

            async with trio.open_nursery() as nursery:
                for _ in range(100):
                    nursery.start_soon(work)
            parts = [done[number] for number in sorted(done)]
            result = await opened.complete_upload("bucket", "key", info.upload_id, chosen(*parts))
            whole = b"".join(pieces[number] for number in sorted(pieces))
            assert result.size == len(whole)
            assert result.etag.endswith("-10000")
            assert await read(opened, "bucket", "key") == whole
            assert (
                await read(opened, "bucket", "key", first=24_990, end=26_000)
                == (whole[24_990:26_000])
            )
            page, more = await opened.object_parts(result, after=9_990)
            assert [part.number for part in page] == list(range(9_991, 10_001))
            assert not more
            assert await opened.part_range(result, 2) == (5, 10)
            await opened.delete("bucket", "key")
            await opened.collect_garbage(grace_s=0)
            assert await count_rows(opened, keyspace.PART) == 0
            assert await count_rows(opened, keyspace.MANIFEST) == 0
            assert await count_fragments(opened) == 0


async def test_parts_that_complete_leaves_out_become_garbage(tmp_path: Path) -> None:
    async with engine_in(tmp_path) as opened:
        await opened.create_bucket("bucket", owner="owner")
        info = await opened.create_upload("bucket", "key", attributes=Attributes())
        kept = await put_part(opened, "bucket", "key", info.upload_id, 2, pattern(LARGE))
        for number, size in ((1, 10), (3, 500), (4, LARGE)):
            await put_part(opened, "bucket", "key", info.upload_id, number, pattern(size))
        await opened.complete_upload("bucket", "key", info.upload_id, chosen(kept))
        before = await count_fragments(opened)
        await opened.collect_garbage(grace_s=0)
        assert await count_fragments(opened) == before // 2
        assert await count_rows(opened, keyspace.PART) == 1
        assert await count_rows(opened, keyspace.INLINE) == 0
        assert await read(opened, "bucket", "key") == pattern(LARGE)


async def test_complete_refuses_what_is_no_list_of_uploaded_parts(tmp_path: Path) -> None:
    async with engine_in(tmp_path) as opened:
        await opened.create_bucket("bucket", owner="owner")
        info = await opened.create_upload("bucket", "key", attributes=Attributes())
        one = await put_part(opened, "bucket", "key", info.upload_id, 1, b"small")
        two = await put_part(opened, "bucket", "key", info.upload_id, 2, b"last")

        async def complete(parts: list[CompletePart], *, size: int | None = None) -> None:
            await opened.complete_upload("bucket", "key", info.upload_id, parts, size=size)

        with pytest.raises(InvalidArgument):
            await complete([])
        with pytest.raises(InvalidPartOrder):
            await complete(chosen(two, one))
        with pytest.raises(InvalidPartOrder):
            await complete(chosen(one, one))
        with pytest.raises(BadPart):
            await complete([*chosen(one), CompletePart(3, one.etag, [])])
        with pytest.raises(BadPart):
            await complete([CompletePart(1, two.etag, [])])
        with pytest.raises(EntityTooSmall):
            await complete(chosen(one, two))
        with pytest.raises(InvalidArgument):
            await complete(chosen(one), size=6)
        await complete(chosen(one), size=5)
        assert await read(opened, "bucket", "key") == b"small"


async def test_refused_complete_can_be_made_good(tmp_path: Path) -> None:
    async with engine_in(tmp_path) as opened:
        await opened.create_bucket("bucket", owner="owner")
        await put(opened, "bucket", "key", b"there")
        info = await opened.create_upload("bucket", "key", attributes=Attributes())
        part = await put_part(opened, "bucket", "key", info.upload_id, 1, b"new")
        with pytest.raises(PreconditionFailed):
            await opened.complete_upload(
                "bucket",
                "key",
                info.upload_id,
                chosen(part),
                conditions=Conditions(if_none_match=("*",)),
            )
        assert await read(opened, "bucket", "key") == b"there"
        await opened.complete_upload("bucket", "key", info.upload_id, chosen(part))
        assert await read(opened, "bucket", "key") == b"new"


async def test_abort_gives_all_parts_back(tmp_path: Path) -> None:
    folder = folder_in(tmp_path)
    await folder.prepare()
    async with folder.open() as opened:
        await opened.create_bucket("bucket", owner="owner")
        info = await opened.create_upload("bucket", "key", attributes=Attributes())
        for number, size in enumerate((0, 10, 500, 3000, LARGE), 1):
            await put_part(opened, "bucket", "key", info.upload_id, number, pattern(size))
        await opened.abort_upload("bucket", "key", info.upload_id)
        with pytest.raises(NoSuchUpload):
            await put_part(opened, "bucket", "key", info.upload_id, 9, pattern(LARGE))
        with pytest.raises(NoSuchUpload):
            await opened.complete_upload(
                "bucket", "key", info.upload_id, [CompletePart(1, "0" * 32, [])]
            )
        await opened.collect_garbage(grace_s=0)
        assert await count_fragments(opened) == 0
        assert await data_rows(opened) == {}


async def test_part_is_copied_from_a_range_of_a_version(tmp_path: Path) -> None:
    async with engine_in(tmp_path) as opened:
        await opened.create_bucket("bucket", owner="owner")
        await opened.set_versioning("bucket", "Enabled")
        old = await put(opened, "bucket", "source", pattern(LARGE))
        await put(opened, "bucket", "source", b"newer")
        info = await opened.create_upload("bucket", "key", attributes=Attributes())
        source = CopySource("bucket", "source", old.version_id, first=1000, last=150_999)
        part, _ = await opened.copy_part(source, "bucket", "key", info.upload_id, 1)
        assert part.size == 150_000
        with pytest.raises(InvalidRange):
            await opened.copy_part(source._replace(last=LARGE), "bucket", "key", info.upload_id, 2)
        await opened.complete_upload("bucket", "key", info.upload_id, chosen(part))
        assert await read(opened, "bucket", "key") == pattern(LARGE)[1000:151_000]


async def test_ranges_of_an_object_in_parts_of_every_class(tmp_path: Path) -> None:
    with part_size_min(0):
        async with engine_in(tmp_path) as opened:
            await opened.create_bucket("bucket", owner="owner")
            pieces = [pattern(size, 1) for size in (10, 0, 500, 3000, LARGE, 1, 20_000)]
            whole = b"".join(pieces)
            await upload(opened, "bucket", "key", pieces)
            borders = [0]
            for piece in pieces:
                borders.append(borders[-1] + len(piece))
            for border in borders:
                for first in (max(border - 2, 0), border, border + 1):
                    for end in (first + 1, first + 600, len(whole)):
                        if first < end <= len(whole):
                            found = await read(opened, "bucket", "key", first=first, end=end)
                            assert found == whole[first:end]


async def test_a_deleted_bucket_takes_all_its_uploads_along(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("engine.buckets._UPLOADS_AT_ONCE", 3)
    async with engine_in(tmp_path) as opened:
        await opened.create_bucket("bucket", owner="owner")
        for number in range(6):
            info = await opened.create_upload("bucket", f"key{number}", attributes=Attributes())
            await put_part(opened, "bucket", info.key, info.upload_id, 1, pattern(LARGE))
        await opened.delete_bucket("bucket")
        with pytest.raises(NoSuchBucket):
            await opened.bucket("bucket")
        await opened.create_bucket("bucket", owner="owner")
        assert (await opened.list_uploads("bucket")).uploads == []
        with pytest.raises(NoSuchUpload):
            await put_part(opened, "bucket", info.key, info.upload_id, 2, b"x")
        await opened.collect_garbage(grace_s=0)
        assert (await opened.fsck(deep=True)).clean
        for prefix in (keyspace.UPLOAD, keyspace.PART, keyspace.PART_COUNT):
            assert await count_rows(opened, prefix) == 0
