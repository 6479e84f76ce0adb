"""Older versions in ``.versions``, mounts of the past, and extended attributes."""

from __future__ import annotations

import errno
import os
import time
from pathlib import Path

import pytest

from tests.support.mounts import Mount, mounted, prepare


def moment() -> int:
    """Return a time in ms that lies between what was before and what comes."""
    before = time.time_ns() // 1_000_000
    while time.time_ns() // 1_000_000 <= before + 1:
        pass
    return before + 1


def versions_of(mount: Mount, path: str) -> list[bytes]:
    folder, _, name = path.rpartition("/")
    place = mount.path / folder / ".versions" / name
    return [(place / version).read_bytes() for version in sorted(os.listdir(place))]


def test_older_versions_are_read_only_files(tmp_path: Path) -> None:
    data = tmp_path / "store"
    prepare(data, versioning=True)
    with mounted(data, tmp_path / "mnt") as mount:
        (mount.path / "dir").mkdir()
        for text in (b"one", b"two", b"three"):
            (mount.path / "dir/file").write_bytes(text)
            moment()
        (mount.path / "dir/gone").write_bytes(b"gone")
        (mount.path / "dir/gone").unlink()
        assert sorted(os.listdir(mount.path / "dir")) == ["file"]
        assert sorted(os.listdir(mount.path / "dir/.versions")) == ["file", "gone"]
        assert versions_of(mount, "dir/file") == [b"one", b"two", b"three"]
        assert versions_of(mount, "dir/gone") == [b"gone"]
        place = mount.path / "dir/.versions/file"
        version = place / sorted(os.listdir(place))[0]
        assert version.stat().st_mode & 0o222 == 0
        assert version.stat().st_size == 3
        for change in (
            lambda: version.write_bytes(b"x"),
            lambda: version.unlink(),
            lambda: (place / "new").write_bytes(b"x"),
            lambda: version.rename(mount.path / "taken"),
            lambda: place.rmdir(),
        ):
            with pytest.raises(OSError) as failed:
                change()
            assert failed.value.errno == errno.EROFS
        # Getting one back is copying it.
        (mount.path / "dir/file").write_bytes(version.read_bytes())
        assert len(os.listdir(place)) == 4
        assert not (place / "absent").exists()
        assert not (mount.path / "dir/.versions/absent").exists()
        assert mount.stop() == 0
        assert mount.troubles == []


def test_without_versioning_there_is_no_such_folder(tmp_path: Path) -> None:
    with mounted(tmp_path / "store", tmp_path / "mnt") as mount:
        assert not (mount.path / ".versions").exists()


def test_the_past_can_be_mounted(tmp_path: Path) -> None:
    data = tmp_path / "store"
    prepare(data, versioning=True)
    with mounted(data, tmp_path / "mnt") as mount:
        (mount.path / "dir").mkdir()
        (mount.path / "dir/changed").write_bytes(b"then")
        (mount.path / "dir/removed").write_bytes(b"removed")
        (mount.path / "whole/tree").mkdir(parents=True)
        (mount.path / "whole/tree/file").write_bytes(bytes(100_000))
        os.symlink("changed", mount.path / "dir/link")
        at_ms = moment()
        (mount.path / "dir/changed").write_bytes(b"now")
        (mount.path / "dir/removed").unlink()
        (mount.path / "dir/later").write_bytes(b"later")
        (mount.path / "whole/tree/file").unlink()
        (mount.path / "whole/tree").rmdir()
        (mount.path / "whole").rmdir()
    with mounted(data, tmp_path / "past", at_ms=at_ms) as past:
        assert sorted(os.listdir(past.path)) == ["dir", "whole"]
        assert sorted(os.listdir(past.path / "dir")) == ["changed", "link", "removed"]
        assert (past.path / "dir/link").read_bytes() == b"then"
        assert (past.path / "dir/removed").read_bytes() == b"removed"
        assert (past.path / "whole/tree/file").read_bytes() == bytes(100_000)
        assert not (past.path / "dir/later").exists()
        with pytest.raises(OSError) as failed:
            (past.path / "dir/changed").write_bytes(b"x")
        assert failed.value.errno == errno.EROFS
        assert past.stop() == 0
        assert past.troubles == []
