"""A bucket's quota through a mount: what a program is told, and what is there afterwards."""

from __future__ import annotations

import errno
import os
import time
from pathlib import Path

import pytest

from engine.engine import Engine
from engine.types import Quota
from tests.support.engine import pattern
from tests.support.mounts import ask, mounted, prepare, run

MIB = 1 << 20


def limit(data: Path, quota: Quota) -> None:
    async def question(engine: Engine) -> None:
        await engine.set_quota("bucket", quota)

    ask(data, question)


def used(data: Path) -> tuple[int, int]:
    async def question(engine: Engine) -> tuple[int, int]:
        usage = await engine.bucket_usage("bucket")
        return usage.bytes, usage.objects

    return ask(data, question)


def write(path: Path, data: bytes, *, piece: int = 128 * 1024) -> int:
    """Write and close; return the errno of what failed first, or 0."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    numbers = []
    try:
        for first in range(0, len(data), piece):
            os.write(descriptor, data[first : first + piece])
    except OSError as error:
        numbers.append(error.errno or -1)
    try:
        os.close(descriptor)
    except OSError as error:
        numbers.append(error.errno or -1)
    assert len(set(numbers)) <= 1
    return numbers[0] if numbers else 0


def test_a_quota_is_told_early_and_keeps_the_old_file_whole(tmp_path: Path) -> None:
    data, path = tmp_path / "store", tmp_path / "mnt"
    prepare(data)
    limit(data, Quota(bytes=2 * MIB))
    with mounted(data, path) as mount:
        old = pattern(MIB)
        assert write(path / "file", old) == 0
        # Longer than memory holds, so it would stream into the store; and a short one.
        for size in (3 * MIB, 2 * MIB + 1):
            assert write(path / "file", pattern(size, 1)) == errno.EDQUOT
            assert (path / "file").read_bytes() == old
        assert write(path / "other", pattern(3 * MIB)) == errno.EDQUOT
        # It is gone with its last descriptor, which is a moment after close has returned.
        deadline = time.monotonic() + 120
        while os.listdir(path) != ["file"]:
            assert time.monotonic() < deadline
        with pytest.raises(OSError, match="quota") as caught:
            os.truncate(path / "file", 5 * MIB)
        assert caught.value.errno == errno.EDQUOT
        assert (path / "file").read_bytes() == old
        # The room of what is replaced is there for what replaces it.
        assert write(path / "file", pattern(2 * MIB, 2)) == 0
        assert used(data) == (2 * MIB, 1)
        (path / "file").unlink()
        assert write(path / "other", pattern(2 * MIB)) == 0
        assert not [entry for entry in mount.troubles if "exception" in entry]


def test_room_that_is_made_while_a_file_is_open_lets_it_go_on(tmp_path: Path) -> None:
    data, path = tmp_path / "store", tmp_path / "mnt"
    prepare(data)
    limit(data, Quota(bytes=MIB))
    with mounted(data, path):
        assert write(path / "big", pattern(MIB)) == 0
        descriptor = os.open(path / "file", os.O_WRONLY | os.O_CREAT)
        with pytest.raises(OSError, match="quota"):
            os.write(descriptor, b"x" * 1000)
        with pytest.raises(OSError, match="quota"):
            os.fsync(descriptor)
        (path / "big").unlink()
        os.write(descriptor, b"x" * 1000)
        os.close(descriptor)
        assert (path / "file").read_bytes() == b"x" * 1000
        assert used(data) == (1000, 1)


def test_what_another_door_takes_meanwhile_is_told_by_close(tmp_path: Path) -> None:
    data, path = tmp_path / "store", tmp_path / "mnt"
    prepare(data)
    with mounted(data, path) as mount:
        descriptor = os.open(path / "file", os.O_WRONLY | os.O_CREAT)
        os.write(descriptor, b"x" * 1000)
        limit(data, Quota(bytes=999))
        with pytest.raises(OSError, match="quota"):
            os.close(descriptor)
        run("sync")
        assert used(data) == (0, 0)
    entries = [entry for entry in mount.log if entry["event"] == "file not committed"]
    assert [Path(entry["kept"]).read_bytes() for entry in entries] == [b"x" * 1000]


def test_the_number_of_files_is_limited_when_they_are_made(tmp_path: Path) -> None:
    data, path = tmp_path / "store", tmp_path / "mnt"
    prepare(data)
    limit(data, Quota(objects=2))
    with mounted(data, path):
        (path / "a").touch()
        (path / "b").mkdir()
        for make in ((path / "c").touch, (path / "c").mkdir, lambda: os.symlink("a", path / "c")):
            with pytest.raises(OSError, match="quota") as caught:
                make()
            assert caught.value.errno == errno.EDQUOT
        assert sorted(os.listdir(path)) == ["a", "b"]
        (path / "a").rename(path / "c")
        (path / "c").write_bytes(b"x")
        (path / "c").unlink()
        (path / "d").touch()


def test_df_shows_what_the_quota_leaves(tmp_path: Path) -> None:
    data, path = tmp_path / "store", tmp_path / "mnt"
    prepare(data)
    limit(data, Quota(bytes=10 * MIB, objects=5))
    with mounted(data, path):
        assert write(path / "file", bytes(4 * MIB)) == 0
        shown = os.statvfs(path)
        assert shown.f_blocks * shown.f_frsize == 10 * MIB
        assert shown.f_bavail * shown.f_frsize == 6 * MIB
        assert (shown.f_files, shown.f_favail) == (5, 4)
        limit(data, Quota(bytes=MIB))
        shown = os.statvfs(path)
        assert shown.f_blocks * shown.f_frsize == 4 * MIB
        assert shown.f_bavail == 0
        limit(data, Quota())
        shown = os.statvfs(path)
        assert shown.f_bavail * shown.f_frsize > 10 * MIB
