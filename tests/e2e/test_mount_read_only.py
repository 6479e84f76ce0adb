"""A mount while its store's metadata is copied: reads go on, changes are EROFS."""

from __future__ import annotations

import contextlib
import errno
import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import trio

from engine.config import StoreConfig
from engine.meta.kv import Database
from engine.meta.read_only import clear_read_only, set_read_only
from engine.metadata import open_place
from tests.support.engine import pattern
from tests.support.mounts import mounted, prepare

GONE_S = 120.0
NAMES = ["file", "folder"]


def change(data: Path, what: Callable[[Database], object]) -> None:
    async def main() -> None:
        async with open_place(StoreConfig(data=data), None) as db:
            await what(db)  # type: ignore[misc]

    trio.run(main)


def write(path: Path, data: bytes) -> int:
    """Write and close; return the errno of what failed first, or 0."""
    descriptor = -1
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        os.write(descriptor, data)
        os.fsync(descriptor)
    except OSError as error:
        return error.errno or -1
    finally:
        if descriptor >= 0:
            with contextlib.suppress(OSError):
                os.close(descriptor)
    return 0


def test_reads_go_on_and_changes_are_refused_until_it_ends(tmp_path: Path) -> None:
    data, path = tmp_path / "store", tmp_path / "mnt"
    prepare(data)
    with mounted(data, path) as mount:
        old = pattern(200_000)
        assert write(path / "file", old) == 0
        (path / "folder").mkdir()
        change(data, lambda db: set_read_only(db, "being copied to fdb:/there"))
        assert write(path / "file", pattern(200_000, 1)) == errno.EROFS
        assert write(path / "new", b"x") == errno.EROFS
        for refused in (
            lambda: (path / "file").unlink(),
            lambda: (path / "other").mkdir(),
            lambda: (path / "folder").rmdir(),
            lambda: (path / "file").rename(path / "moved"),
            lambda: (path / "file").chmod(0o600),
        ):
            with pytest.raises(OSError) as caught:
                refused()
            assert caught.value.errno == errno.EROFS
        # The kernel tells of the last close when it likes; until then the file is the writer's.
        deadline = time.monotonic() + GONE_S
        while (path / "file").read_bytes() != old or sorted(os.listdir(path)) != NAMES:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        change(data, clear_read_only)
        assert write(path / "file", b"new") == 0
        assert (path / "file").read_bytes() == b"new"
        assert mount.process.poll() is None
