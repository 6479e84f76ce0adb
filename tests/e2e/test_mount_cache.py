"""The disk cache of a mount, with real mounts: it outlives them, and is never wrong."""

from __future__ import annotations

import os
import random
import signal
import time
from contextlib import suppress
from pathlib import Path

from engine.engine import Engine
from tests.support.engine import pattern, put
from tests.support.mounts import ask, mounted, prepare

MIB = 1 << 20
SIZE = 6 * MIB + 12_345


def store(data: Path, key: str, content: bytes) -> None:
    async def question(engine: Engine) -> None:
        await put(engine, "bucket", key, content)

    ask(data, question)


def blocks_in(cache: Path) -> list[Path]:
    return [path for path in (cache / "blocks-1").rglob("*") if path.is_file()]


def taken_by(files: list[Path]) -> int:
    """Return the bytes on disk of those that are still there: blocks come and go meanwhile."""
    taken = 0
    for file in files:
        with suppress(FileNotFoundError):
            taken += file.stat().st_blocks * 512
    return taken


def wait_stored(cache: Path, size: int) -> None:
    """Wait until the cache takes so much room: it stores behind the reader's back."""
    deadline = time.monotonic() + 120
    while taken_by(blocks_in(cache)) < size:
        assert time.monotonic() < deadline


def read_anyhow(path: Path, content: bytes, seed: int = 0) -> None:
    """Read here and there, then all."""
    choice = random.Random(seed)
    with path.open("rb", buffering=0) as file:
        for _ in range(30):
            offset, size = choice.randrange(len(content)), choice.choice((1, 4096, 300_000))
            file.seek(offset)
            assert file.read(size) == content[offset : offset + size]
    assert path.read_bytes() == content


def test_what_was_read_before_is_read_without_the_drives(tmp_path: Path) -> None:
    data, path, cache = tmp_path / "store", tmp_path / "mnt", tmp_path / "cache"
    prepare(data)
    long, short = pattern(SIZE), pattern(100_000)
    store(data, "long", long)
    store(data, "short", short)
    with mounted(data, path, far=True, cache_dir=str(cache)) as mount:
        assert (path / "long").read_bytes() == long
        assert (path / "short").read_bytes() == short
        wait_stored(cache, SIZE + 100_000)
        assert mount.stop() == 0
        assert mount.troubles == []
    (data / "drive/volumes").rename(data / "drive/away")
    (data / "drive/volumes").mkdir()
    with mounted(data, path, far=True, cache_dir=str(cache)):
        read_anyhow(path / "long", long)
        read_anyhow(path / "short", short)
        # Under another name it is the same version.
        (path / "long").rename(path / "renamed")
        read_anyhow(path / "renamed", long)


def test_a_new_version_is_read_and_the_old_one_stays_with_who_opened_it(tmp_path: Path) -> None:
    data, path, cache = tmp_path / "store", tmp_path / "mnt", tmp_path / "cache"
    prepare(data)
    old, new = pattern(SIZE), pattern(SIZE, 1)
    store(data, "file", old)
    with mounted(data, path, far=True, cache_dir=str(cache)), (path / "file").open("rb") as file:
        assert file.read(MIB) == old[:MIB]
        (path / "new").write_bytes(new)
        (path / "new").rename(path / "file")
        assert (path / "file").read_bytes() == new
        assert file.read() == old[MIB:]


def test_a_mount_that_is_killed_leaves_a_cache_that_is_right(tmp_path: Path) -> None:
    """And so does damage to the files meanwhile."""
    data, path, cache = tmp_path / "store", tmp_path / "mnt", tmp_path / "cache"
    prepare(data)
    contents = {f"file{number}": pattern(SIZE, number) for number in range(4)}
    for key, content in contents.items():
        store(data, key, content)
    with mounted(data, path, far=True, cache_dir=str(cache)) as mount:
        for key, content in contents.items():
            assert (path / key).read_bytes() == content
        mount.process.send_signal(signal.SIGKILL)
        mount.process.wait()
    choice = random.Random(0)
    for file in blocks_in(cache):
        size = file.stat().st_size
        with file.open("r+b") as raw:
            for _ in range(3):
                raw.seek(choice.randrange(size))
                raw.write(b"?")
            raw.truncate(choice.randrange(size // 2, size))
    with mounted(data, path, far=True, cache_dir=str(cache)) as mount:
        for key, content in contents.items():
            read_anyhow(path / key, content)
        assert mount.stop() == 0
        assert mount.troubles == []


def test_the_cache_stays_within_its_size_while_more_is_read(tmp_path: Path) -> None:
    data, path, cache = tmp_path / "store", tmp_path / "mnt", tmp_path / "cache"
    prepare(data)
    limit = 64 * MIB
    content = pattern(8 * MIB)
    for number in range(12):
        store(data, str(number), content + bytes([number]))
    with mounted(data, path, far=True, cache_dir=str(cache), cache_size=limit):
        for turn in range(24):
            number = turn % 12
            assert (path / str(number)).read_bytes() == content + bytes([number])
            # What the kernel keeps would hide the mount from the next turn.
            os.truncate(path / str(number), len(content) + 1)
            assert taken_by(blocks_in(cache)) <= limit
