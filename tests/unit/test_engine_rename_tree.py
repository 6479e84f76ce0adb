"""Renaming all keys below a prefix: at once, in steps, and when the process ends on the way."""

from __future__ import annotations

from pathlib import Path
from unittest.mock import patch

import pytest
import trio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from engine.engine import Engine
from engine.errors import (
    ConditionConflict,
    InvalidArgument,
    InvalidName,
    NoSuchKey,
    PreconditionFailed,
)
from engine.meta import keyspace
from engine.rename_tree import TreeRenames, finish_all, step
from engine.types import Conditions
from tests.support.engine import (
    border_sizes,
    count_rows,
    engine_in,
    pattern,
    put,
    read,
    scratch_folder,
)
from tests.support.logs import Logs


async def contents(engine: Engine) -> dict[str, bytes]:
    listing = await engine.list_objects("bucket")
    assert listing.next_after is None
    return {found.key: await read(engine, "bucket", found.key) for found in listing.objects}


async def fill(engine: Engine, keys: list[str]) -> dict[str, bytes]:
    for number, key in enumerate(keys):
        await put(engine, "bucket", key, pattern(5, number))
    return await contents(engine)


async def make_bucket(engine: Engine, keys: list[str]) -> dict[str, bytes]:
    await engine.create_bucket("bucket", owner="owner")
    return await fill(engine, keys)


async def test_all_classes_of_objects_move_and_fsck_stays_clean(tmp_path: Path) -> None:
    async with engine_in(tmp_path) as engine:
        await engine.create_bucket("bucket", owner="owner")
        for size in border_sizes():
            await put(engine, "bucket", f"a/{size}", pattern(size))
        count = await engine.rename_tree("bucket", "a/", "b/")
        assert count == len(border_sizes())
        assert await contents(engine) == {f"b/{size}": pattern(size) for size in border_sizes()}
        report = await engine.fsck(deep=True)
        assert report.clean, report.problems


async def test_what_only_begins_like_the_tree_stays(tmp_path: Path) -> None:
    async with engine_in(tmp_path) as engine:
        before = await make_bucket(engine, ["a", "a-b/x", "a/", "a/x", "a0"])
        assert await engine.rename_tree("bucket", "a/", "b/") == 2
        expected = {
            key.replace("a/", "b/") if "a/" in key else key: value for key, value in before.items()
        }
        assert await contents(engine) == expected


async def test_the_target_may_be_an_empty_folder_and_nothing_else(tmp_path: Path) -> None:
    async with engine_in(tmp_path) as engine:
        await make_bucket(engine, ["a/x", "full/y"])
        await put(engine, "bucket", "empty/", b"")
        await put(engine, "bucket", "odd/", b"bytes")
        for target in ("full/", "odd/"):
            with pytest.raises(PreconditionFailed):
                await engine.rename_tree("bucket", "a/", target)
        await engine.rename_tree("bucket", "a/", "empty/")
        assert sorted(await contents(engine)) == ["empty/", "empty/x", "full/y", "odd/"]


async def test_what_cannot_be_is_refused_and_changes_nothing(tmp_path: Path) -> None:
    async with engine_in(tmp_path) as engine:
        before = await make_bucket(engine, ["a/" + "x" * 1000, "a/b/c"])
        with pytest.raises(InvalidArgument):
            await engine.rename_tree("bucket", "a/", "a/b/d/")
        with pytest.raises(InvalidName):
            await engine.rename_tree("bucket", "a/", "b" * 50 + "/")
        with pytest.raises(NoSuchKey):
            await engine.rename_tree("bucket", "absent/", "b/")
        with pytest.raises(PreconditionFailed):
            await engine.rename_tree("bucket", "a/b/", "a/")
        assert await contents(engine) == before


@pytest.mark.parametrize("versioning", ["", "Enabled"])
async def test_more_keys_than_one_transaction_takes_move_in_steps(
    tmp_path: Path, versioning: str
) -> None:
    async with engine_in(tmp_path) as engine:
        await engine.create_bucket("bucket", owner="owner")
        if versioning:
            await engine.set_versioning("bucket", versioning)
        before = await fill(engine, [f"a/{number:02}" for number in range(20)])
        with patch("engine.rename_tree.ATOMIC_MAX", 7):
            assert await engine.rename_tree("bucket", "a/", "b/") == 20
        assert await contents(engine) == {
            key.replace("a/", "b/"): value for key, value in before.items()
        }
        assert await count_rows(engine, keyspace.TREE_RENAME) == 0
        report = await engine.fsck(deep=True)
        assert report.clean, report.problems


async def begin(engine: Engine, source: str, target: str) -> bytes:
    """Begin a rename in steps as a process does that ends then."""
    with patch("engine.rename_tree.ATOMIC_MAX", 1):
        begun = await TreeRenames(engine.store)._begin("bucket", source.encode(), target.encode())
    assert not isinstance(begun, int)
    return begun.key


async def test_a_rename_left_half_done_is_finished_by_the_service(tmp_path: Path) -> None:
    async with engine_in(tmp_path) as engine:
        before = await make_bucket(engine, [f"a/{number}" for number in range(9)])
        row_key = await begin(engine, "a/", "b/")
        with patch("engine.rename_tree.ATOMIC_MAX", 2):
            await step(engine.store, row_key)
        half = await contents(engine)
        assert sorted(half) == ["a/2", "a/3", "a/4", "a/5", "a/6", "a/7", "a/8", "b/0", "b/1"]
        await finish_all(engine.store)
        assert await contents(engine) == {
            key.replace("a/", "b/"): value for key, value in before.items()
        }


async def test_another_rename_first_finishes_the_one_that_it_meets(tmp_path: Path) -> None:
    async with engine_in(tmp_path) as engine:
        await make_bucket(engine, ["a/1", "a/2", "other/1", "other/2"])
        await begin(engine, "other/", "elsewhere/")
        await begin(engine, "a/", "b/")
        await engine.rename_tree("bucket", "b/", "c/")
        found = sorted(await contents(engine))
        assert found == ["c/1", "c/2", "other/1", "other/2"]


async def test_repeating_a_rename_goes_on_with_it(tmp_path: Path) -> None:
    async with engine_in(tmp_path) as engine:
        await make_bucket(engine, ["a/1", "a/2", "a/3"])
        await begin(engine, "a/", "b/")
        assert await engine.rename_tree("bucket", "a/", "b/") == 3
        assert sorted(await contents(engine)) == ["b/1", "b/2", "b/3"]


async def test_a_key_written_at_the_target_meanwhile_is_not_overwritten(
    tmp_path: Path, logs: Logs
) -> None:
    logs.expect("some keys stay")
    async with engine_in(tmp_path) as engine:
        await make_bucket(engine, ["a/1", "a/2"])
        await begin(engine, "a/", "b/")
        await put(engine, "bucket", "b/1", b"theirs")
        with pytest.raises(ConditionConflict):
            await engine.rename_tree("bucket", "a/", "b/")
        assert sorted(await contents(engine)) == ["a/1", "b/1", "b/2"]
        assert await read(engine, "bucket", "b/1") == b"theirs"


async def test_steps_end_although_keys_are_written_behind_them(tmp_path: Path) -> None:
    async with engine_in(tmp_path) as engine:
        await make_bucket(engine, ["a/5", "a/6"])
        row_key = await begin(engine, "a/", "b/")
        await step(engine.store, row_key)
        await put(engine, "bucket", "a/1", b"behind")
        await finish_all(engine.store)
        assert sorted(await contents(engine)) == ["a/1", "b/5", "b/6"]


async def test_a_rename_ends_with_its_bucket(tmp_path: Path) -> None:
    async with engine_in(tmp_path) as engine:
        await make_bucket(engine, ["a/1", "a/2"])
        await begin(engine, "a/", "b/")
        await engine.delete("bucket", "a/1")
        await engine.delete("bucket", "a/2")
        await engine.delete_bucket("bucket")
        await make_bucket(engine, ["a/1"])
        await finish_all(engine.store)
        assert sorted(await contents(engine)) == ["a/1"]
        assert await count_rows(engine, keyspace.TREE_RENAME) == 0


NAMES = st.lists(st.sampled_from(["a", "b", "a/", "b/", "x", "\0", "ü"]), min_size=1, max_size=4)
KEYS = st.sets(NAMES.map("".join), max_size=8)
PREFIXES = st.sampled_from(["a/", "b/", "a/a/", "a/b/", "a", "ab", "\0"])


def renamed(keys: dict[str, bytes], source: str, target: str) -> dict[str, bytes] | type[Exception]:
    """The reference: what is to be there afterwards, or the error."""
    if source != target and target.startswith(source):
        return InvalidArgument
    if not any(key.startswith(source) for key in keys):
        return NoSuchKey
    if source == target:
        return keys
    if any(key.startswith(target) and (key != target or keys[key]) for key in keys):
        return PreconditionFailed
    return {
        target + key[len(source) :] if key.startswith(source) else key: value
        for key, value in keys.items()
        if key != target
    } | ({target: b""} if target in keys and source not in keys else {})


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(KEYS, PREFIXES, PREFIXES, st.integers(1, 4))
def test_the_tree_is_where_a_dictionary_says(
    keys: set[str], source: str, target: str, at_once: int
) -> None:
    async def main() -> None:
        with scratch_folder() as path:
            async with engine_in(path, drives=1, profile="1+0") as engine:
                await engine.create_bucket("bucket", owner="owner")
                for key in keys:
                    await put(engine, "bucket", key, b"" if key.endswith("/") else key.encode())
                before = await contents(engine)
                expected = renamed(before, source, target)
                with patch("engine.rename_tree.ATOMIC_MAX", at_once):
                    if isinstance(expected, dict):
                        await engine.rename_tree("bucket", source, target)
                        assert await contents(engine) == expected
                    else:
                        with pytest.raises(expected):
                            await engine.rename_tree("bucket", source, target)
                        assert await contents(engine) == before

    trio.run(main)


async def test_only_who_knows_the_very_version_may_replace_it(tmp_path: Path) -> None:
    async with engine_in(tmp_path) as engine:
        await engine.create_bucket("bucket", owner="owner")
        absent = Conditions(if_match_data_id=b"")
        opened = await put(engine, "bucket", "key", b"same", conditions=absent)
        with pytest.raises(PreconditionFailed):
            await put(engine, "bucket", "key", b"late", conditions=absent)
        known = Conditions(if_match_data_id=opened.record.data_id)
        again = await put(engine, "bucket", "key", b"same", conditions=known)
        assert again.etag == opened.etag
        with pytest.raises(PreconditionFailed):
            await put(engine, "bucket", "key", b"late", conditions=known)
        with pytest.raises(PreconditionFailed):
            await engine.delete("bucket", "key", conditions=known)
        with pytest.raises(PreconditionFailed):
            await put(engine, "bucket", "gone", b"late", conditions=known)
        assert await read(engine, "bucket", "key") == b"same"


@pytest.mark.parametrize("versioning", ["", "Enabled"])
async def test_metadata_change_without_a_new_version(tmp_path: Path, versioning: str) -> None:
    async with engine_in(tmp_path) as engine:
        await engine.create_bucket("bucket", owner="owner")
        if versioning:
            await engine.set_versioning("bucket", versioning)
        before = await put(engine, "bucket", "key", pattern(3000))
        changed = await engine.set_metadata("bucket", "key", lambda pairs: [*pairs, ("mode", "1")])
        assert changed.record.metadata == [("mode", "1")]
        assert (changed.version_id, changed.etag) == (before.version_id, before.etag)
        assert changed.modified_ms == before.modified_ms
        assert await read(engine, "bucket", "key") == pattern(3000)
        stale = Conditions(if_match_data_id=b"0" * 16)
        with pytest.raises(PreconditionFailed):
            await engine.set_metadata("bucket", "key", lambda pairs: [], conditions=stale)
        assert len((await engine.list_versions("bucket")).versions) == 1
