"""s3fs: a bucket as a folder, through a real mount."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support.clients import MIB, copy_library, find_command, run
from tests.support.server import Server

MOUNT_S = 120.0


@contextmanager
def mounted(server: Server, bucket: str, folder: Path) -> Iterator[Path]:
    """Mount the bucket with an empty cache; unmounted and ended whatever happens."""
    if not os.access("/dev/fuse", os.R_OK | os.W_OK):
        pytest.fail("no access to /dev/fuse: s3fs cannot be tested", pytrace=False)
    point, passwords = folder / "mount", folder / "passwd-s3fs"
    point.mkdir(exist_ok=True)
    passwords.write_text(":".join(server.credentials))
    passwords.chmod(0o600)
    options = f"url={server.url},use_path_request_style,passwd_file={passwords},retries=1"
    # In the foreground: the process is ours to end.
    with (folder / "s3fs.log").open("ab") as log:
        process = subprocess.Popen(
            [find_command("s3fs"), bucket, str(point), "-f", "-o", options],
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    try:
        deadline = time.monotonic() + MOUNT_S
        while not os.path.ismount(point):
            said = (folder / "s3fs.log").read_text(errors="replace")
            assert process.poll() is None, said
            assert time.monotonic() < deadline, said
            time.sleep(0.02)
        yield point
        run("fusermount3", "-u", point)
        assert process.wait(MOUNT_S) == 0
    finally:
        if os.path.ismount(point):
            subprocess.run([find_command("fusermount3"), "-u", "-z", str(point)], check=False)
        if process.poll() is None:
            process.kill()
            process.wait(MOUNT_S)


def test_a_source_tree_can_be_copied_in_and_compared(
    server: Server, bucket: str, tmp_path: Path
) -> None:
    tree = tmp_path / "tree"
    copy_library(tree, "json", "email", "asyncio", "unittest", "abc.py")
    with mounted(server, bucket, tmp_path) as point:
        shutil.copytree(tree, point / "Lib")
        run("diff", "-r", tree, point / "Lib")
    with mounted(server, bucket, tmp_path) as point:
        run("diff", "-r", tree, point / "Lib")
        (point / "Lib" / "json").rename(point / "Lib" / "json2")
        assert not (point / "Lib" / "json").exists()
        run("diff", "-r", tree / "json", point / "Lib" / "json2")
        shutil.rmtree(point / "Lib")
        assert list(point.iterdir()) == []


def test_a_file_can_be_changed_in_place(server: Server, bucket: str, tmp_path: Path) -> None:
    # Large enough for s3fs to upload in parts, and to copy the parts that did not change.
    body = bytearray(os.urandom(45 * MIB))
    with mounted(server, bucket, tmp_path) as point:
        (point / "file").write_bytes(body)
        with (point / "file").open("r+b") as file:
            file.seek(30 * MIB)
            file.write(b"changed")
        body[30 * MIB : 30 * MIB + 7] = b"changed"
        with (point / "file").open("ab") as file:
            file.write(b"more")
        os.chmod(point / "file", 0o640)
    with mounted(server, bucket, tmp_path) as point:
        assert (point / "file").read_bytes() == body + b"more"
        assert (point / "file").stat().st_mode & 0o777 == 0o640
        # By descriptor: s3fs 1.90 fills a file that is truncated by its path with zeros.
        with (point / "file").open("r+b") as file:
            file.truncate(5)
    with mounted(server, bucket, tmp_path) as point:
        assert (point / "file").read_bytes() == body[:5]
