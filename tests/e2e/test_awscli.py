"""awscli with its defaults, on the standard library's sources and on odd files."""

from __future__ import annotations

import json
import os
import urllib.request
from pathlib import Path

import pytest

from tests.support.clients import MIB, Aws, copy_library, files_below, hash_file, make_random_file
from tests.support.server import Server


@pytest.fixture
def aws(server: Server, tmp_path: Path) -> Aws:
    return Aws(server, tmp_path)


def same(left: Path, right: Path) -> bool:
    """Say whether two folders hold the same files with the same bytes."""
    ours, theirs = files_below(left), files_below(right)
    return ours.keys() == theirs.keys() and all(
        path.read_bytes() == theirs[name].read_bytes() for name, path in ours.items()
    )


def test_sync_carries_a_source_tree_there_and_back(aws: Aws, tmp_path: Path) -> None:
    tree, back = tmp_path / "tree", tmp_path / "back"
    files = copy_library(tree)
    assert len(files) > 1500
    assert any(path.stat().st_size == 0 for path in files.values())
    aws("s3", "mb", "s3://library")
    aws("s3", "sync", tree, "s3://library/Lib", "--only-show-errors")
    listed = aws("s3", "ls", "--recursive", "--summarize", "s3://library/Lib/")
    assert f"Total Objects: {len(files)}" in listed
    assert f"Total Size: {sum(path.stat().st_size for path in files.values())}" in listed
    aws("s3", "sync", "s3://library/Lib", back, "--only-show-errors")
    assert same(tree, back)

    # Nothing to do, then only what changed, then also what went away.
    assert aws("s3", "sync", tree, "s3://library/Lib") == ""
    (tree / "abc.py").write_text("changed, and of another size")
    (tree / "json" / "tool.py").unlink()
    said = aws("s3", "sync", "--delete", "--no-progress", tree, "s3://library/Lib")
    assert said.count("\n") == 2
    assert "upload: " in said
    assert "delete: s3://library/Lib/json/tool.py" in said
    aws("s3", "sync", "--delete", "s3://library/Lib", back, "--only-show-errors")
    assert same(tree, back)

    # From bucket to bucket: copies made by the server.
    aws("s3", "mb", "s3://second")
    aws("s3", "sync", "s3://library/Lib/email", "s3://second/email", "--only-show-errors")
    aws("s3", "sync", "s3://second/email", tmp_path / "email", "--only-show-errors")
    assert same(tree / "email", tmp_path / "email")
    aws("s3", "rb", "--force", "s3://second")
    assert "second" not in aws("s3", "ls")


def test_cp_mv_and_rm_do_what_they_say(aws: Aws, tmp_path: Path) -> None:
    digest = make_random_file(tmp_path / "large", 30 * MIB + 1, seed=2)
    aws("s3", "mb", "s3://moves")
    aws("s3", "cp", "--only-show-errors", tmp_path / "large", "s3://moves/a/large")
    aws("s3", "cp", "--only-show-errors", "s3://moves/a/large", "s3://moves/a/copy")
    aws("s3", "mv", "--only-show-errors", "s3://moves/a/large", "s3://moves/b c/ü+large")
    assert "large" not in aws("s3", "ls", "s3://moves/a/l", status=1)
    aws("s3", "mv", "--only-show-errors", "s3://moves/b c/ü+large", tmp_path / "back")
    assert hash_file(tmp_path / "back") == digest
    streamed = aws("s3", "cp", "-", "s3://moves/stream", stdin=b"from a pipe")
    assert streamed == ""
    assert aws("s3", "cp", "s3://moves/stream", "-") == "from a pipe"
    folders = aws("s3", "ls", "s3://moves/")
    assert ["PRE", "a/"] in [line.split() for line in folders.splitlines()]
    aws("s3", "rm", "--only-show-errors", "--recursive", "s3://moves/", "--exclude", "stream")
    left = aws("s3", "ls", "--recursive", "s3://moves/").split()
    assert left[2:] == ["11", "stream"]
    assert "NoSuchBucket" in aws("s3", "cp", tmp_path / "back", "s3://not-there/x", status=1)


def test_presigned_urls_can_be_opened_by_anyone(aws: Aws) -> None:
    aws("s3", "mb", "s3://shared")
    aws("s3", "cp", "-", "s3://shared/a b.txt", stdin=b"shared")
    url = aws("s3", "presign", "s3://shared/a b.txt", "--expires-in", "60").strip()
    with urllib.request.urlopen(url, timeout=30) as response:
        assert response.read() == b"shared"


def test_s3api_writes_on_conditions(aws: Aws, tmp_path: Path) -> None:
    body = tmp_path / "body"
    body.write_bytes(os.urandom(100_000))
    aws("s3api", "create-bucket", "--bucket", "conditions")
    put = ("s3api", "put-object", "--bucket", "conditions", "--key", "k", "--body", body)
    etag = json.loads(aws(*put, "--if-none-match", "*"))["ETag"]
    assert "PreconditionFailed" in aws(*put, "--if-none-match", "*", status=255)
    assert json.loads(aws(*put, "--if-match", etag))["ETag"] == etag
    assert "PreconditionFailed" in aws(*put, "--if-match", '"' + "0" * 32 + '"', status=255)
    sums = json.loads(aws(*put, "--checksum-algorithm", "CRC64NVME"))
    head = ("s3api", "head-object", "--bucket", "conditions", "--key", "k")
    shown = json.loads(aws(*head, "--checksum-mode", "ENABLED"))
    assert shown["ChecksumCRC64NVME"] == sums["ChecksumCRC64NVME"]
    get = ("s3api", "get-object", "--bucket", "conditions", "--key", "k")
    aws(*get, "--range", "bytes=10-19", tmp_path / "part")
    assert (tmp_path / "part").read_bytes() == body.read_bytes()[10:20]
    assert "304" in aws(*get, "--if-none-match", etag, tmp_path / "none", status=255)
