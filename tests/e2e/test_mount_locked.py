"""What programs on the mount are told of files that a WebDAV client has locked."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from engine.engine import Engine
from engine.types import LockInfo, LockRequest
from tests.support.engine import put
from tests.support.mounts import ask, mounted, prepare

LOCK = LockRequest(principal="someone", owner="", exclusive=True, deep=False, timeout_s=600)


def refused(action: Callable[[], object]) -> None:
    with pytest.raises(OSError, match="busy") as error:
        action()
    assert error.value.errno == errno.EBUSY


def test_a_locked_file_is_busy_until_it_is_unlocked(tmp_path: Path) -> None:
    data, path = tmp_path / "data", tmp_path / "mnt"
    prepare(data)

    async def lock(engine: Engine) -> LockInfo:
        await put(engine, "bucket", "file", b"old")
        info, _ = await engine.locking.lock("bucket", "file", LOCK)
        return info

    info = ask(data, lock)
    with mounted(data, path) as mount:
        file = mount.path / "file"
        refused(lambda: file.write_bytes(b"new"))
        refused(file.unlink)
        refused(lambda: file.rename(mount.path / "moved"))
        (mount.path / "other").write_bytes(b"other")
        refused(lambda: os.replace(mount.path / "other", file))
        assert file.read_bytes() == b"old"

        async def unlock(engine: Engine) -> None:
            await engine.locking.unlock("bucket", "file", info.token, principal="someone")

        ask(data, unlock)
        file.write_bytes(b"new")
        os.replace(mount.path / "other", file)
        assert file.read_bytes() == b"other"
        assert mount.stop() == 0
