"""What was there at a moment is what was seen at that moment."""

from __future__ import annotations

from typing import NamedTuple

import trio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from engine.engine import Engine
from engine.past import PastPaths
from engine.paths import Paths
from tests.support.engine import folder_in, put, read, scratch_folder

KEYS = st.sampled_from(["a", "a/", "a/b", "a/b/c", "a/c", "a0", "ab", "b/x", "b/y/z", "\0/n", "ü"])
PATHS = ["a", "a/b", "b", "b/y", "ü", "absent"]
FOLDERS = ["", "a/", "a/b/", "b/"]


class Put(NamedTuple):
    key: str


class Delete(NamedTuple):
    key: str


STEPS = st.lists(st.one_of(st.builds(Put, KEYS), st.builds(Delete, KEYS)), max_size=14)


async def look(paths: Paths | PastPaths, limit: int) -> list[object]:
    """Return everything that can be seen: all pages of all folders, and some paths."""
    seen: list[object] = []
    for folder in FOLDERS:
        after: str | None = ""
        while after is not None:
            page = await paths.page("bucket", folder, after, limit)
            for entry in page.entries:
                version = entry.version and (entry.version.version_id, entry.version.size)
                seen.append((folder, entry.key, entry.is_directory, version, entry.shadowed))
            after = page.next_after
    for name in PATHS:
        found = await paths.find("bucket", name)
        record = found.record and found.record.version_id
        marker = found.marker and found.marker.version_id
        seen.append((name, record, marker, found.is_directory))
    return seen


async def apply(engine: Engine, step: Put | Delete) -> None:
    match step:
        case Put(key):
            await put(engine, "bucket", key, b"" if key.endswith("/") else key.encode())
        case Delete(key):
            await engine.delete("bucket", key)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(STEPS, st.integers(1, 5))
def test_every_moment_can_be_seen_again(steps: list[Put | Delete], limit: int) -> None:
    async def main() -> None:
        with scratch_folder() as path:
            folder = folder_in(path, drives=1, profile="1+0")
            await folder.prepare()
            async with folder.open() as engine:
                await engine.create_bucket("bucket", owner="owner")
                await engine.set_versioning("bucket", "Enabled")
                moments = []
                for step in steps:
                    await apply(engine, step)
                    moments.append((folder.clock(), await look(engine.paths, limit)))
                for at_ms, seen in moments:
                    assert await look(engine.paths_at(at_ms), limit) == seen
                assert await look(engine.paths_at(0), limit) == [
                    (name, None, None, False) for name in PATHS
                ]

    trio.run(main)


def test_bytes_of_the_past_are_read_by_the_version_that_was_found() -> None:
    async def main() -> None:
        with scratch_folder() as path:
            folder = folder_in(path, drives=1, profile="1+0")
            await folder.prepare()
            async with folder.open() as engine:
                await engine.create_bucket("bucket", owner="owner")
                await put(engine, "bucket", "key", b"null version")
                await engine.set_versioning("bucket", "Enabled")
                at_ms = folder.clock()
                await put(engine, "bucket", "key", b"later")
                record = (await engine.paths_at(at_ms).find("bucket", "key")).record
                assert record is not None
                found = await read(engine, "bucket", "key", version_id=record.version_id)
                assert found == b"null version"

    trio.run(main)
