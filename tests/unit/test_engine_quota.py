"""Bucket quotas: what counts, what is refused and when, and that the counters can be trusted."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.engine import Engine
from engine.errors import InvalidArgument, NoSuchBucket, QuotaExceeded
from engine.meta import keyspace
from engine.meta.kv import Transaction
from engine.types import Attributes, BucketUsage, CompletePart, CopySource, Quota
from tests.support.engine import CRC64 as ALGORITHMS
from tests.support.engine import (
    BytesSource,
    count_fragments,
    engine_in,
    keep_crc64,
    part_size_min,
    pattern,
    put,
    put_part,
    read,
    scratch_folder,
)

SIZES = (10, 500, 3000, 200_000)
"""One for each way to keep bytes: in the record, in a row, as copies, coded."""


async def usage(opened: Engine) -> tuple[int, int]:
    found = await opened.bucket_usage("bucket")
    return found.bytes, found.objects


async def bucket_with(opened: Engine, quota: Quota, *, versioning: str = "") -> None:
    await opened.create_bucket("bucket", owner="owner")
    if versioning:
        await opened.set_versioning("bucket", versioning)
    await opened.set_quota("bucket", quota)


@pytest.mark.parametrize("size", SIZES)
async def test_bytes_up_to_the_quota_fit_and_one_more_does_not(tmp_path: Path, size: int) -> None:
    async with engine_in(tmp_path) as opened:
        await bucket_with(opened, Quota(bytes=2 * size))
        await put(opened, "bucket", "a", pattern(size))
        with pytest.raises(QuotaExceeded) as caught:
            await put(opened, "bucket", "b", pattern(size + 1))
        error = caught.value
        assert (error.bucket, error.limit, error.used, error.quota) == (
            "bucket",
            "bytes",
            size,
            2 * size,
        )
        await put(opened, "bucket", "b", pattern(size))
        assert await usage(opened) == (2 * size, 2)


async def test_what_is_refused_at_the_commit_leaves_no_bytes_behind(tmp_path: Path) -> None:
    async with engine_in(tmp_path) as opened:
        await bucket_with(opened, Quota(bytes=150_000))
        source = BytesSource(pattern(200_000))
        with pytest.raises(QuotaExceeded):
            await opened.put(
                "bucket",
                "a",
                source,
                size=None,
                algorithms=ALGORITHMS,
                attributes=Attributes(),
                check=keep_crc64,
            )
        assert await count_fragments(opened) == 0
        assert await usage(opened) == (0, 0)


async def test_a_body_that_cannot_fit_is_not_read(tmp_path: Path) -> None:
    async with engine_in(tmp_path) as opened:
        await bucket_with(opened, Quota(bytes=100))

        class Untouched:
            async def readinto(self, buffer: memoryview) -> int:
                raise AssertionError("nobody needs these bytes")

        with pytest.raises(QuotaExceeded):
            await opened.put(
                "bucket",
                "a",
                Untouched(),
                size=10_000,
                algorithms=ALGORITHMS,
                attributes=Attributes(),
                check=keep_crc64,
            )


async def test_replacing_counts_the_difference_and_less_is_always_possible(tmp_path: Path) -> None:
    async with engine_in(tmp_path) as opened:
        await bucket_with(opened, Quota(bytes=1000, objects=1))
        await put(opened, "bucket", "a", pattern(900))
        await put(opened, "bucket", "a", pattern(1000))
        with pytest.raises(QuotaExceeded):
            await put(opened, "bucket", "a", pattern(1001))
        await opened.set_quota("bucket", Quota(bytes=10, objects=0))
        await put(opened, "bucket", "a", pattern(999))
        await opened.rename("bucket", "a", "b")
        await opened.delete("bucket", "b")
        assert await usage(opened) == (0, 0)
        with pytest.raises(QuotaExceeded) as caught:
            await put(opened, "bucket", "a", b"")
        assert caught.value.limit == "objects"


async def test_older_versions_count_until_they_are_deleted(tmp_path: Path) -> None:
    async with engine_in(tmp_path) as opened:
        await bucket_with(opened, Quota(bytes=2000), versioning="Enabled")
        first = await put(opened, "bucket", "a", pattern(1000))
        await put(opened, "bucket", "a", pattern(1000, 1))
        with pytest.raises(QuotaExceeded):
            await put(opened, "bucket", "a", pattern(1, 2))
        await opened.delete("bucket", "a")  # a marker: it frees nothing, and takes nothing
        assert await usage(opened) == (2000, 2)
        await opened.delete("bucket", "a", version_id=first.record.version_id)
        await put(opened, "bucket", "a", pattern(1000, 3))


async def test_a_suspended_bucket_replaces_its_null_version(tmp_path: Path) -> None:
    async with engine_in(tmp_path) as opened:
        await bucket_with(opened, Quota(bytes=2000), versioning="Enabled")
        await put(opened, "bucket", "a", pattern(1000))
        await opened.set_versioning("bucket", "Suspended")
        for seed in range(3):
            await put(opened, "bucket", "a", pattern(1000, seed))
        assert await usage(opened) == (2000, 2)


async def test_parts_are_counted_when_they_become_an_object(tmp_path: Path) -> None:
    async with engine_in(tmp_path) as opened:
        with part_size_min(1):
            await bucket_with(opened, Quota(bytes=5000))
            info = await opened.create_upload("bucket", "a", attributes=Attributes())
            parts = []
            for number in (1, 2, 3):
                part = await put_part(opened, "bucket", "a", info.upload_id, number, pattern(2000))
                parts.append(CompletePart(number, part.etag, []))
            assert await usage(opened) == (0, 0)
            with pytest.raises(QuotaExceeded):
                await put_part(opened, "bucket", "a", info.upload_id, 4, pattern(5001))
            with pytest.raises(QuotaExceeded):
                await opened.complete_upload("bucket", "a", info.upload_id, parts)
            # The upload is still there: more room, or fewer parts, and it completes.
            await opened.complete_upload("bucket", "a", info.upload_id, parts[:2])
            assert await usage(opened) == (4000, 1)


async def test_a_copy_counts_in_the_bucket_that_it_goes_to(tmp_path: Path) -> None:
    async with engine_in(tmp_path) as opened:
        await bucket_with(opened, Quota(bytes=1000))
        await opened.create_bucket("other", owner="owner")
        await put(opened, "other", "a", pattern(900))
        source = CopySource("other", "a")
        await opened.copy(source, "bucket", "a", attributes=None, tags=None)
        with pytest.raises(QuotaExceeded):
            await opened.copy(source, "bucket", "b", attributes=None, tags=None)
        await opened.copy(source, "other", "b", attributes=None, tags=None)


async def test_staged_bytes_that_do_not_fit_can_be_committed_later(tmp_path: Path) -> None:
    async with engine_in(tmp_path) as opened:
        await bucket_with(opened, Quota(bytes=1000))
        staged = await opened.stage(BytesSource(pattern(200_000)), size=None)
        with pytest.raises(QuotaExceeded):
            await staged.commit("bucket", "a", attributes=Attributes())
        await opened.set_quota("bucket", Quota())
        await staged.commit("bucket", "a", attributes=Attributes())
        assert await read(opened, "bucket", "a") == pattern(200_000)


async def test_of_many_writers_at_once_as_many_win_as_fit(tmp_path: Path) -> None:
    async with engine_in(tmp_path) as opened:
        await bucket_with(opened, Quota(bytes=5 * 700, objects=1000))
        refused = 0

        async def write(number: int) -> None:
            nonlocal refused
            try:
                await put(opened, "bucket", str(number), pattern(700, number))
            except QuotaExceeded:
                refused += 1

        async with trio.open_nursery() as nursery:
            for number in range(20):
                nursery.start_soon(write, number)
        assert refused == 15
        assert await usage(opened) == (5 * 700, 5)


async def test_a_quota_is_kept_shown_and_taken_away(tmp_path: Path) -> None:
    async with engine_in(tmp_path) as opened:
        await bucket_with(opened, Quota(bytes=10, objects=3))
        await opened.set_versioning("bucket", "Enabled")
        assert await opened.bucket_usage("bucket") == BucketUsage("bucket", 0, 0, 10, 3)
        assert (await opened.bucket("bucket")).quota == Quota(10, 3)
        await opened.set_quota("bucket", Quota())
        assert (await opened.bucket("bucket")).quota is None
        with pytest.raises(InvalidArgument):
            await opened.set_quota("bucket", Quota(bytes=-1))
        with pytest.raises(NoSuchBucket):
            await opened.set_quota("absent", Quota())
        with pytest.raises(NoSuchBucket):
            await opened.bucket_usage("absent")


async def test_fsck_finds_wrong_counters_and_puts_them_right(tmp_path: Path) -> None:
    async with engine_in(tmp_path) as opened:
        await bucket_with(opened, Quota(bytes=1000))
        await put(opened, "bucket", "a", pattern(300))
        bucket_id = (await opened.bucket("bucket")).bucket_id

        async def spoil(tr: Transaction) -> None:
            tr.add(keyspace.usage(bucket_id, 3, b"b"), 5000)
            tr.add(keyspace.usage(bucket_id, 5, b"n"), -7)

        await opened.store.db.run(spoil)
        report = await opened.fsck()
        assert (report.clean, report.wrong_counters) == (False, 1)
        assert await usage(opened) == (5300, -6)
        report = await opened.fsck(repair_counters=True)
        assert (report.clean, report.repaired_counters) == (True, 1)
        assert await usage(opened) == (300, 1)
        assert (await opened.fsck(repair_counters=True)).repaired_counters == 0


ACTIONS = st.lists(
    st.one_of(
        st.tuples(st.just("put"), st.sampled_from("abc"), st.integers(0, 400)),
        st.tuples(st.just("delete"), st.sampled_from("abc"), st.just(0)),
        st.tuples(st.just("rename"), st.sampled_from("abc"), st.integers(0, 2)),
        st.tuples(st.just("versioning"), st.sampled_from(("Enabled", "Suspended")), st.just(0)),
        st.tuples(st.just("purge"), st.sampled_from("abc"), st.integers(0, 3)),
    ),
    max_size=25,
)


@settings(max_examples=20, deadline=None)
@given(ACTIONS)
def test_no_sequence_of_writes_gets_over_the_quota(actions: list[tuple[str, str, int]]) -> None:
    """And the counters agree with what is there, which fsck counts one by one."""

    async def main() -> None:
        with scratch_folder() as path:
            async with engine_in(path, drives=1, profile="1+0") as opened:
                await bucket_with(opened, Quota(bytes=1000, objects=4))
                for action, key, number in actions:
                    await act(opened, action, key, number)
                    size, count = await usage(opened)
                    assert 0 <= size <= 1000
                    assert 0 <= count <= 4
                assert (await opened.fsck()).clean

    trio.run(main)


async def act(opened: Engine, action: str, key: str, number: int) -> None:
    listing = await opened.list_objects("bucket")
    there = [entry.key for entry in listing.objects]
    match action:
        case "put":
            try:
                await put(opened, "bucket", key, bytes(number))
            except QuotaExceeded:
                return
        case "delete":
            await opened.delete("bucket", key)
        case "rename" if key in there:
            await opened.rename("bucket", key, "abc"[number])
        case "versioning":
            await opened.set_versioning("bucket", key)
        case "purge":
            versions = (await opened.list_versions("bucket", prefix=key)).versions
            if number < len(versions):
                version_id = versions[number].version.version_id
                await opened.delete("bucket", key, version_id=version_id)
        case _:
            return
