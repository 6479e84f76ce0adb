"""Renaming objects, and the feed that tells of changes."""

from __future__ import annotations

from contextlib import aclosing
from pathlib import Path

import pytest
import trio

from engine.errors import NoSuchKey, PreconditionFailed
from engine.types import Conditions
from tests.support.engine import border_sizes, engine_in, folder_in, pattern, put, read

OWNER = "owner"


async def test_rename_moves_bytes_of_every_class_and_leaves_no_orphans(tmp_path: Path) -> None:
    async with engine_in(tmp_path) as engine:
        await engine.create_bucket("bucket", owner=OWNER)
        for size in border_sizes():
            before = await put(engine, "bucket", "from", pattern(size))
            moved = await engine.rename("bucket", "from", "to")
            assert moved.etag == before.etag
            assert moved.modified_ms == before.modified_ms
            assert await read(engine, "bucket", "to") == pattern(size)
            with pytest.raises(NoSuchKey):
                await engine.head("bucket", "from")
        report = await engine.fsck(deep=True)
        assert report.clean, report.problems
        status = await engine.status()
        assert (status.objects, status.bytes) == (1, border_sizes()[-1])


async def test_rename_with_versioning_keeps_the_history_of_both_keys(tmp_path: Path) -> None:
    async with engine_in(tmp_path) as engine:
        await engine.create_bucket("bucket", owner=OWNER)
        await engine.set_versioning("bucket", "Enabled")
        old_from = await put(engine, "bucket", "from", b"from 1")
        await put(engine, "bucket", "from", b"from 2")
        old_to = await put(engine, "bucket", "to", b"to 1")
        await engine.rename("bucket", "from", "to")
        assert await read(engine, "bucket", "to") == b"from 2"
        assert await read(engine, "bucket", "to", version_id=old_to.version_id) == b"to 1"
        assert await read(engine, "bucket", "from", version_id=old_from.version_id) == b"from 1"
        with pytest.raises(NoSuchKey) as hidden:
            await engine.head("bucket", "from")
        assert hidden.value.delete_marker is not None
        await put(engine, "bucket", "from", b"from 3")
        assert await read(engine, "bucket", "from") == b"from 3"
        report = await engine.fsck(deep=True)
        assert report.clean, report.problems


@pytest.mark.parametrize("state", ["Enabled", "Suspended"])
async def test_rename_of_a_null_version_that_has_history(tmp_path: Path, state: str) -> None:
    async with engine_in(tmp_path) as engine:
        await engine.create_bucket("bucket", owner=OWNER)
        await engine.set_versioning("bucket", "Enabled")
        kept = await put(engine, "bucket", "from", b"kept")
        await engine.set_versioning("bucket", "Suspended")
        await put(engine, "bucket", "from", b"null")
        await engine.set_versioning("bucket", state)
        await engine.rename("bucket", "from", "to")
        assert await read(engine, "bucket", "to") == b"null"
        assert await read(engine, "bucket", "from", version_id=kept.version_id) == b"kept"
        with pytest.raises(NoSuchKey):
            await engine.head("bucket", "from")
        report = await engine.fsck(deep=True)
        assert report.clean, report.problems


async def test_rename_honours_conditions_on_both_ends(tmp_path: Path) -> None:
    async with engine_in(tmp_path) as engine:
        await engine.create_bucket("bucket", owner=OWNER)
        source = await put(engine, "bucket", "from", b"source")
        await put(engine, "bucket", "to", b"target")
        absent = Conditions(if_none_match=("*",))
        with pytest.raises(PreconditionFailed):
            await engine.rename("bucket", "from", "to", new_conditions=absent)
        with pytest.raises(PreconditionFailed):
            await engine.rename("bucket", "from", "new", conditions=Conditions(if_match=("x",)))
        unchanged = Conditions(if_match=(source.etag,))
        await engine.rename("bucket", "from", "new", conditions=unchanged, new_conditions=absent)
        assert await read(engine, "bucket", "new") == b"source"


async def test_rename_onto_itself_changes_nothing(tmp_path: Path) -> None:
    async with engine_in(tmp_path) as engine:
        await engine.create_bucket("bucket", owner=OWNER)
        before = await put(engine, "bucket", "key", b"bytes")
        assert await engine.rename("bucket", "key", "key") == before
        with pytest.raises(NoSuchKey):
            await engine.rename("bucket", "absent", "absent")


async def test_followers_see_each_change_once_and_in_order(tmp_path: Path) -> None:
    folder = folder_in(tmp_path)
    await folder.prepare()
    seen: list[tuple[bytes, str]] = []
    async with folder.open() as writer, folder.open() as reader:
        await writer.create_bucket("bucket", owner=OWNER)
        cursor = await reader.changes.latest()
        ready = trio.Event()

        async def follow() -> None:
            ready.set()
            async with aclosing(reader.changes.follow(cursor)) as pages:
                async for changes, _ in pages:
                    seen.extend((change.key, change.kind) for change in changes)
                    if seen[-1][0] == b"last":
                        return

        with trio.fail_after(30):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(follow)
                await ready.wait()
                await put(writer, "bucket", "a", b"1")
                await put(writer, "bucket", "a", b"2")
                await writer.rename("bucket", "a", "b")
                await writer.delete("bucket", "b")
                await put(writer, "bucket", "last", b"3")
    assert seen == [
        (b"a", "put"),
        (b"a", "put"),
        (b"a", "delete"),
        (b"b", "put"),
        (b"b", "delete"),
        (b"last", "put"),
    ]
