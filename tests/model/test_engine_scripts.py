"""Short scripts that once told a wrong engine from a right one, or easily could."""

from __future__ import annotations

import pytest
import trio

from tests.model.test_engine_model import run_scenario
from tests.support.engine import pattern, scratch_folder
from tests.support.scenario import Call, Parts, UploadOf, VersionOf

A = "bucket-a"
MADE = Call("create_bucket", A)
ENABLED = Call("set_versioning", A, "Enabled")
SUSPENDED = Call("set_versioning", A, "Suspended")


def put(key: str, size: int = 1, seed: int = 0) -> Call:
    return Call("put", A, key, pattern(size, seed))


SCRIPTS = {
    "null version behind goes when suspended": [
        MADE,
        put("a", 3000),
        ENABLED,
        put("a", 3000, 1),
        SUSPENDED,
        put("a", 3000, 2),
    ],
    "null marker replaces null version behind": [
        MADE,
        put("a", 3000),
        ENABLED,
        put("a"),
        SUSPENDED,
        Call("delete", A, "a"),
        Call("delete", A, "a"),
    ],
    "keys with NUL keep their versions apart": [
        MADE,
        ENABLED,
        put("a\x00"),
        put("a"),
        put("a"),
        put("a\x00\x00b"),
        Call("delete", A, "a\x00"),
        Call("delete", A, "a", version_id=VersionOf(A, "a", 0)),
    ],
    "common prefix that is a key is skipped with all below": [
        MADE,
        put("a/"),
        put("a/b"),
        put("a0"),
        Call("list_objects", A, delimiter="/", after="a/"),
        Call("list_objects", A, prefix="a/", delimiter="/", after="a/"),
        Call("list_versions", A, delimiter="/", key_marker="a/"),
    ],
    "complete is repeated until the bytes are gone": [
        MADE,
        Call("create_upload", A, "a"),
        Call("put_part", UploadOf(0), 1, pattern(5000)),
        Call("complete", UploadOf(0), Parts(0, (0,))),
        Call("complete", UploadOf(0), Parts(0, (0,))),
        Call("copy", A, "a", A, "a", metadata=(("m", "1"),)),
        Call("collect"),
        Call("complete", UploadOf(0), Parts(0, (0,))),
        put("a"),
        Call("collect"),
        Call("complete", UploadOf(0), Parts(0, (0,))),
    ],
    "bucket that is made again has nothing of the old one": [
        MADE,
        ENABLED,
        put("a", 3000),
        Call("delete", A, "a", version_id=VersionOf(A, "a", 0)),
        Call("delete_bucket", A),
        MADE,
        Call("get", A, "a", version_id=VersionOf(A, "a", 0)),
        put("a", 200_000),
    ],
}


@pytest.mark.parametrize("name", SCRIPTS)
def test_script_ends_as_in_the_model(name: str) -> None:
    with scratch_folder() as path:
        trio.run(run_scenario, path, SCRIPTS[name])
