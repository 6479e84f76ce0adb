"""Dead properties stay with their object, whatever happens to its bytes."""

from __future__ import annotations

from pathlib import Path

import pytest

from engine.engine import Engine
from engine.errors import EntityTooLarge, NoSuchKey, PreconditionFailed
from engine.meta import keyspace
from engine.types import Attributes, Conditions, CopySource, PropertyChange
from tests.support.engine import count_rows, engine_in, put, read

OWNER = "owner"
B = "bucket"
COLOUR, SIZE = "{urn:x}colour", "{urn:x}size"


async def change(engine: Engine, key: str, **values: str | None) -> None:
    changes = [PropertyChange("{urn:x}" + name, xml) for name, xml in values.items()]
    await engine.properties.change(B, key, changes)


async def store_with(engine: Engine, *keys: str) -> None:
    await engine.create_bucket(B, owner=OWNER)
    for key in keys:
        await put(engine, B, key, key.encode())


async def test_properties_are_set_replaced_and_removed(tmp_path: Path) -> None:
    async with engine_in(tmp_path) as engine:
        await store_with(engine, "key")
        before = await engine.head(B, "key")
        await change(engine, "key", colour="<c>red</c>", size="<s/>")
        await change(engine, "key", colour="<c>blue</c>")
        assert await engine.properties.get(B, "key") == [(COLOUR, "<c>blue</c>"), (SIZE, "<s/>")]
        assert await engine.head(B, "key") == before
        await change(engine, "key", colour=None, size=None, never=None)
        assert await engine.properties.get(B, "key") == []
        assert await count_rows(engine, keyspace.PROPERTIES) == 0


async def test_changes_of_one_request_happen_in_their_order(tmp_path: Path) -> None:
    async with engine_in(tmp_path) as engine:
        await store_with(engine, "key")
        steps = [PropertyChange(COLOUR, "<a/>"), PropertyChange(COLOUR, None)]
        await engine.properties.change(B, "key", steps)
        assert await engine.properties.get(B, "key") == []
        await engine.properties.change(B, "key", list(reversed(steps)))
        assert await engine.properties.get(B, "key") == [(COLOUR, "<a/>")]


async def test_put_keeps_them_and_delete_drops_them(tmp_path: Path) -> None:
    async with engine_in(tmp_path) as engine:
        await store_with(engine, "key")
        await change(engine, "key", colour="<c/>")
        await put(engine, B, "key", b"new bytes")
        assert await engine.properties.get(B, "key") == [(COLOUR, "<c/>")]
        await engine.delete(B, "key")
        await put(engine, B, "key", b"another")
        assert await engine.properties.get(B, "key") == []


@pytest.mark.parametrize("state", ["Enabled", "Suspended"])
async def test_a_delete_marker_drops_them_and_an_older_version_has_none(
    tmp_path: Path, state: str
) -> None:
    async with engine_in(tmp_path) as engine:
        await store_with(engine)
        await engine.set_versioning(B, "Enabled")
        await put(engine, B, "key", b"old")
        newest = await put(engine, B, "key", b"new")
        await change(engine, "key", colour="<c/>")
        await engine.delete(B, "key", version_id=newest.version_id)
        # The key never went: its properties stay.
        assert await engine.properties.get(B, "key") == [(COLOUR, "<c/>")]
        await engine.set_versioning(B, state)
        marker = await engine.delete(B, "key")
        await engine.delete(B, "key", version_id=marker.version_id)
        assert await read(engine, B, "key") == b"old"
        assert await engine.properties.get(B, "key") == []


async def test_the_last_version_takes_them_along(tmp_path: Path) -> None:
    async with engine_in(tmp_path) as engine:
        await store_with(engine)
        await engine.set_versioning(B, "Enabled")
        only = await put(engine, B, "key", b"only")
        await change(engine, "key", colour="<c/>")
        await engine.delete(B, "key", version_id=only.version_id)
        assert await count_rows(engine, keyspace.PROPERTIES) == 0


async def test_rename_moves_them_and_the_targets_go(tmp_path: Path) -> None:
    async with engine_in(tmp_path) as engine:
        await store_with(engine, "from", "to", "plain")
        await change(engine, "from", colour="<c/>")
        await change(engine, "to", size="<s/>")
        await engine.rename(B, "from", "to")
        assert await engine.properties.get(B, "to") == [(COLOUR, "<c/>")]
        assert await engine.properties.get(B, "from") == []
        await engine.rename(B, "plain", "to")
        assert await count_rows(engine, keyspace.PROPERTIES) == 0


async def test_rename_of_a_tree_moves_those_of_files_and_folders(tmp_path: Path) -> None:
    async with engine_in(tmp_path) as engine:
        await store_with(engine, "a/", "a/b/file")
        for key in ("a/", "a/b/file"):
            await change(engine, key, colour=f"<c>{key}</c>")
        await engine.rename_tree(B, "a/", "z/")
        assert await engine.properties.get(B, "z/") == [(COLOUR, "<c>a/</c>")]
        assert await engine.properties.get(B, "z/b/file") == [(COLOUR, "<c>a/b/file</c>")]
        assert await count_rows(engine, keyspace.PROPERTIES) == 2


async def test_copies_get_them_and_lose_their_own(tmp_path: Path) -> None:
    async with engine_in(tmp_path) as engine:
        await store_with(engine, "from", "to")
        await change(engine, "from", colour="<c/>")
        await change(engine, "to", size="<s/>")

        async def copy(source: str, target: str, attributes: Attributes | None = None) -> None:
            await engine.copy(CopySource(B, source), B, target, attributes=attributes, tags=None)

        await copy("from", "to")
        assert await engine.properties.get(B, "to") == [(COLOUR, "<c/>")]
        assert await engine.properties.get(B, "from") == [(COLOUR, "<c/>")]
        # As rclone sets a time: in place, with new attributes.
        await copy("from", "from", Attributes(metadata=[("mtime", "1")]))
        assert await engine.properties.get(B, "from") == [(COLOUR, "<c/>")]
        await change(engine, "from", colour=None)
        await copy("from", "to")
        assert await count_rows(engine, keyspace.PROPERTIES) == 0


async def test_a_folder_without_a_marker_gets_one_and_a_bucket_needs_none(tmp_path: Path) -> None:
    async with engine_in(tmp_path) as engine:
        await store_with(engine, "a/b/file")
        await change(engine, "a/b/", colour="<c/>")
        await change(engine, "", colour="<bucket/>")
        await engine.delete(B, "a/b/file")
        assert (await engine.head(B, "a/b/")).size == 0
        assert await engine.properties.get(B, "a/b/") == [(COLOUR, "<c/>")]
        assert await engine.properties.get(B, "") == [(COLOUR, "<bucket/>")]
        await engine.delete(B, "a/b/")
        await engine.delete_bucket(B)
        assert await count_rows(engine, keyspace.PROPERTIES) == 0


async def test_what_is_not_there_has_none_and_gets_none(tmp_path: Path) -> None:
    async with engine_in(tmp_path) as engine:
        await store_with(engine, "key")
        for key in ("absent", "absent/", "key/"):
            with pytest.raises(NoSuchKey):
                await change(engine, key, colour="<c/>")
        with pytest.raises(PreconditionFailed):
            await engine.properties.change(
                B, "key", [PropertyChange(COLOUR, "")], conditions=Conditions(if_match=("x",))
            )
        assert await count_rows(engine, keyspace.PROPERTIES) == 0


async def test_too_many_are_refused_and_change_nothing(tmp_path: Path) -> None:
    async with engine_in(tmp_path) as engine:
        await store_with(engine, "key")
        await change(engine, "key", colour="<c/>")
        with pytest.raises(EntityTooLarge):
            await change(engine, "key", size="x" * 66_000, colour=None)
        assert await engine.properties.get(B, "key") == [(COLOUR, "<c/>")]


async def test_a_time_of_modification_is_set_with_them(tmp_path: Path) -> None:
    async with engine_in(tmp_path) as engine:
        await store_with(engine)
        before = await put(
            engine, B, "key", b"", attributes=Attributes(metadata=[("mtime", "1"), ("a", "b")])
        )
        await engine.properties.change(B, "key", [], modified="1234567890")
        after = await engine.head(B, "key")
        assert sorted(after.record.metadata) == [("a", "b"), ("mtime", "1234567890")]
        assert (after.etag, after.modified_ms) == (before.etag, before.modified_ms)


async def test_members_of_a_folder_are_found_without_what_is_below(tmp_path: Path) -> None:
    async with engine_in(tmp_path) as engine:
        keys = ["a", "f/", "f/1", "f/2/", "f/2/x", "f/2/y", "f/3", "f/4/deep/x", "f/5", "g"]
        await store_with(engine, *keys)
        for key in keys:
            await change(engine, key, colour=f"<c>{key}</c>")
        found = await engine.properties.of_members(B, "f/", "f/1", "f/5")
        assert list(found) == ["f/1", "f/2/", "f/3", "f/5"]
        assert found["f/2/"] == [(COLOUR, "<c>f/2/</c>")]
        assert list(await engine.properties.of_members(B, "f/", "f/2/", "f/3")) == ["f/2/", "f/3"]
        assert list(await engine.properties.of_members(B, "", "a", "g")) == ["a", "f/", "g"]
