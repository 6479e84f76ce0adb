"""rclone with its defaults, on the standard library's sources."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from tests.support.clients import MIB, Rclone, copy_library, hash_file, make_random_file
from tests.support.server import Server


@pytest.fixture
def rclone(server: Server, tmp_path: Path) -> Rclone:
    return Rclone(server, tmp_path)


def test_sync_and_check_agree_on_a_source_tree(rclone: Rclone, tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    files = copy_library(tree)
    rclone("mkdir", "lode:library")
    rclone("sync", tree, "lode:library/Lib")
    rclone("check", tree, "lode:library/Lib")
    rclone("check", "--download", tree / "email", "lode:library/Lib/email")
    listed = json.loads(rclone("lsjson", "--recursive", "--files-only", "lode:library/Lib"))
    assert {entry["Path"]: entry["Size"] for entry in listed} == {
        name: path.stat().st_size for name, path in files.items()
    }
    size = json.loads(rclone("size", "--json", "lode:library"))
    assert size["count"] == len(files)

    # Times of modification are kept as metadata: a second run has nothing to send.
    said = rclone("sync", "--use-json-log", "-v", "--stats=0", tree, "lode:library/Lib")
    assert said == ""
    (tree / "abc.py").write_text("changed")
    (tree / "ast.py").unlink()
    rclone("check", tree, "lode:library/Lib", status=1)
    rclone("sync", tree, "lode:library/Lib")
    rclone("check", tree, "lode:library/Lib")

    rclone("sync", "lode:library/Lib", tmp_path / "back")
    rclone("check", "--download", "lode:library/Lib", tmp_path / "back")
    kept = (tmp_path / "back" / "base64.py").stat().st_mtime_ns
    assert kept == (tree / "base64.py").stat().st_mtime_ns

    rclone("purge", "lode:library/Lib/encodings")
    assert "encodings/" not in rclone("lsf", "lode:library/Lib")
    rclone("purge", "lode:library")
    assert "library/" not in rclone("lsf", "lode:")


def test_files_are_copied_and_moved_by_the_server(rclone: Rclone, tmp_path: Path) -> None:
    # Above rclone's limit for a single part.
    digest = make_random_file(tmp_path / "large", 206 * MIB, seed=3)
    rclone("mkdir", "lode:moves")
    rclone("copyto", tmp_path / "large", "lode:moves/in/large")
    rclone("copyto", "lode:moves/in/large", "lode:moves/out/copy of large")
    rclone("moveto", "lode:moves/in/large", "lode:moves/out/moved ü+%")
    assert rclone("lsf", "--recursive", "--files-only", "lode:moves").splitlines() == [
        "out/copy of large",
        "out/moved ü+%",
    ]
    rclone("copyto", "lode:moves/out/moved ü+%", tmp_path / "back")
    assert hash_file(tmp_path / "back") == digest
    (tmp_path / "back").unlink()
    rclone("rcat", "lode:moves/text", stdin=b"some bytes of text")
    rclone("rcat", "lode:moves/stream", stdin=os.urandom(3 * MIB))
    assert json.loads(rclone("lsjson", "lode:moves/stream"))[0]["Size"] == 3 * MIB
    part = rclone("cat", "--offset", "5", "--count", "7", "lode:moves/text")
    assert part == "bytes o"
    rclone("purge", "lode:moves")


def test_old_versions_can_be_seen_and_restored(rclone: Rclone, tmp_path: Path) -> None:
    rclone("mkdir", "lode:history")
    rclone("backend", "versioning", "lode:history", "Enabled")
    for text in ("one", "two"):
        rclone("rcat", "lode:history/note.txt", stdin=text.encode())
    assert rclone("cat", "lode:history/note.txt") == "two"
    # Names of old versions tell their second (S3's listings have no finer times).
    old, current = sorted(rclone("lsf", "--s3-versions", "lode:history").splitlines())
    assert current == "note.txt"
    assert rclone("cat", "--s3-versions", f"lode:history/{old}") == "one"
    rclone("copyto", "--s3-versions", f"lode:history/{old}", tmp_path / "restored")
    assert (tmp_path / "restored").read_text() == "one"
    rclone("deletefile", "lode:history/note.txt")
    assert rclone("lsf", "lode:history") == ""
    assert rclone("lsf", "--s3-versions", "lode:history") != ""
