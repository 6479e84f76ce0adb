"""The disk cache's folder: what comes back is what was stored, or nothing; and it stays in its
size."""

from __future__ import annotations

import errno
import os
import random
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import structlog
import trio
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.errors import ConfigError
from engine.opened import OpenedObject
from fs import cache_folder
from fs.cache_folder import BLOCK_SIZE, SEGMENT_BLOCKS, Block, Body, CacheFolder
from fs.disk_cache import CachedStream, DiskCache
from tests.support.engine import engine_in, pattern, put, scratch_folder
from tests.support.logs import Logs
from tests.support.server import ROOT

KIB = 1 << 10
MIB = 1 << 20


def body(name: int, size: int) -> Body:
    return Body(name.to_bytes(16, "big"), size)


def content(of: Body, number: int) -> bytes:
    return pattern(of.length(number), int.from_bytes(of.data_id, "big") * 10_000 + number)


def blocks(of: Body, *numbers: int) -> list[Block]:
    return [Block(of, number, memoryview(content(of, number))) for number in numbers]


def read(folder: CacheFolder, of: Body, number: int, size: int = BLOCK_SIZE) -> bytes:
    into = memoryview(bytearray(size))
    return bytes(into[: folder.read(of, number, into)])


def disk_usage(path: Path) -> int:
    found = [entry for entry in (path / cache_folder.BLOCKS).rglob("*") if entry.is_file()]
    return sum(entry.stat().st_blocks * 512 for entry in found)


def files(path: Path) -> list[Path]:
    return sorted(entry for entry in (path / cache_folder.BLOCKS).rglob("*") if entry.is_file())


def taken(path: Path, size_max: int = 64 * MIB) -> CacheFolder:
    folder = CacheFolder(path, size_max)
    folder.scan()
    return folder


def test_blocks_come_back_in_runs_and_over_a_restart(tmp_path: Path) -> None:
    long = body(1, 70 * BLOCK_SIZE + 5)
    folder = taken(tmp_path)
    folder.store(blocks(long, 0, 1, 3, 63, 64, 70))
    for _ in range(2):
        assert read(folder, long, 0, 8 * BLOCK_SIZE) == content(long, 0) + content(long, 1)
        assert read(folder, long, 2) == b""
        assert read(folder, long, 63, 3 * BLOCK_SIZE) == content(long, 63) + content(long, 64)
        assert read(folder, long, 70) == content(long, 70)
        assert read(folder, long, 3, BLOCK_SIZE - 1) == b"", "only whole blocks"
        firsts = [folder.next_run(long, number, 71, 1) for number in (0, 2, 4, 65)]
        assert firsts == [0, 3, 63, 70]
        assert [folder.next_run(long, number, 69, 2) for number in (0, 1, 64)] == [0, 63, 69]
        assert folder.next_run(long, 65, 71, 2) == 70, "no more follow"
        assert folder.next_run(long, 4, 20, 1) == 20
        assert folder.next_run(body(2, 10**9), 0, 1000, 1) == 1000
        folder.close()
        folder = taken(tmp_path)
        assert folder.used == disk_usage(tmp_path)
    folder.close()


def test_no_other_place_or_version_has_the_bytes(tmp_path: Path) -> None:
    """Also when files are exchanged behind the cache's back."""
    one, two = body(1, MIB), body(2, MIB)
    folder = taken(tmp_path)
    folder.store(blocks(one, 0))
    folder.store(blocks(two, 0, 1))
    folder.close()
    first, second = files(tmp_path)
    os.rename(first, tmp_path / "aside")
    os.rename(second, first)
    os.rename(tmp_path / "aside", second)
    folder = taken(tmp_path)
    assert read(folder, one, 0) == read(folder, two, 0) == b""
    assert folder.stats.damaged == 2
    assert files(tmp_path) == []
    folder.close()


@pytest.mark.parametrize("at", [0, 31, 4096, 4096 + BLOCK_SIZE // 2, 4096 + BLOCK_SIZE - 1])
def test_a_flipped_bit_is_never_read(tmp_path: Path, at: int) -> None:
    small = body(1, BLOCK_SIZE)
    folder = taken(tmp_path)
    folder.store(blocks(small, 0))
    folder.close()
    (path,) = files(tmp_path)
    with path.open("r+b") as file:
        file.seek(at)
        old = file.read(1)
        file.seek(at)
        file.write(bytes([old[0] ^ 0x10]))
    folder = taken(tmp_path)
    assert read(folder, small, 0) == b""
    assert (folder.stats.damaged, files(tmp_path)) == (1, [])
    assert folder.used == 0
    # And the place is free for the right bytes.
    folder.store(blocks(small, 0))
    assert read(folder, small, 0) == content(small, 0)
    folder.close()


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_whatever_a_crash_leaves_of_a_file_wrong_bytes_are_never_read(data: st.DataObject) -> None:
    """A crash loses pages of the file, in any combination, and may cut it."""
    of = body(7, 3 * BLOCK_SIZE + 100)
    with scratch_folder() as path:
        folder = taken(path)
        folder.store(blocks(of, 0, 1, 2, 3))
        folder.close()
        (file,) = files(path)
        raw = bytearray(file.read_bytes())
        for page in data.draw(st.sets(st.integers(0, len(raw) // 4096), max_size=8)):
            lost = raw[page * 4096 : (page + 1) * 4096]
            raw[page * 4096 : (page + 1) * 4096] = bytes(len(lost))
        file.write_bytes(raw[: data.draw(st.integers(0, len(raw)))])
        folder = taken(path)
        for number in range(4):
            assert read(folder, of, number) in (b"", content(of, number))
        folder.store(blocks(of, 0, 1, 2, 3))
        assert read(folder, of, 0, MIB) == b"".join(content(of, number) for number in range(4))
        folder.close()


@settings(max_examples=20, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(0, 40), st.integers(0, 2 * SEGMENT_BLOCKS - 1)),
        min_size=1,
        max_size=60,
    ),
    st.integers(4, 40),
)
def test_the_folder_never_takes_more_than_its_size(
    stored: list[tuple[int, int]], room: int
) -> None:
    """Whatever is stored in whatever order; and it knows what it takes."""
    with scratch_folder() as path:
        size_max = room * (BLOCK_SIZE + 4096)
        folder = taken(path, size_max)
        for name, number in stored:
            of = body(name, 2 * SEGMENT_BLOCKS * BLOCK_SIZE)
            folder.store(blocks(of, number))
            assert read(folder, of, number) == content(of, number)
            assert folder.used == disk_usage(path) <= size_max
        folder.close()


def test_what_was_used_lately_stays(tmp_path: Path) -> None:
    folder = taken(tmp_path, 80 * (BLOCK_SIZE + 4096))
    for name in range(60):
        folder.store(blocks(body(name, BLOCK_SIZE), 0))
    for number, path in enumerate(files(tmp_path)):
        os.utime(path, (number, number))
    hot = [int(path.name[:32], 16) for path in files(tmp_path)[:10]]
    for name in hot:
        assert read(folder, body(name, BLOCK_SIZE), 0)
    # A file used all the time has its time set now and then only.
    for path in files(tmp_path)[:10]:
        os.utime(path)
    for name in range(100, 150):
        folder.store(blocks(body(name, BLOCK_SIZE), 0))
    kept = sum(bool(read(folder, body(name, BLOCK_SIZE), 0)) for name in hot)
    assert kept >= 8, "approximately those used longest ago go"
    assert folder.stats.evicted >= 30
    folder.close()


def test_a_smaller_size_is_kept_from_the_start(tmp_path: Path) -> None:
    folder = taken(tmp_path)
    for name in range(40):
        folder.store(blocks(body(name, BLOCK_SIZE), 0))
    folder.close()
    folder = taken(tmp_path, 10 * (BLOCK_SIZE + 4096))
    assert folder.used == disk_usage(tmp_path) <= folder.size_max
    folder.close()


def test_a_file_is_read_on_while_it_is_evicted(tmp_path: Path) -> None:
    """Readers and the writer in threads, with room for a few files only."""
    folder = taken(tmp_path, 6 * (BLOCK_SIZE + 4096))
    of = [body(name, 2 * BLOCK_SIZE) for name in range(12)]
    wrong: list[str] = []
    done = threading.Event()

    def look() -> None:
        choice = random.Random(1)
        while not done.is_set():
            which = choice.choice(of)
            if read(folder, which, 0, 2 * BLOCK_SIZE) not in (
                b"",
                content(which, 0),
                content(which, 0) + content(which, 1),
            ):
                wrong.append(which.data_id.hex())

    readers = [threading.Thread(target=look) for _ in range(3)]
    for reader in readers:
        reader.start()
    for turn in range(60):
        folder.store(blocks(of[turn % 12], 0, 1))
    done.set()
    for reader in readers:
        reader.join()
    assert wrong == []
    assert folder.stats.damaged == 0
    assert folder.used == disk_usage(tmp_path)
    before = len(os.listdir("/proc/self/fd"))
    folder.close()
    assert len(os.listdir("/proc/self/fd")) < before


def test_a_folder_serves_one_mount_at_a_time(tmp_path: Path) -> None:
    folder = taken(tmp_path)
    with pytest.raises(ConfigError, match="in use by another mount"):
        CacheFolder(tmp_path)
    folder.close()
    code = (
        "import sys; from pathlib import Path; from fs.cache_folder import CacheFolder; "
        "CacheFolder(Path(sys.argv[1])); print('taken', flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    with subprocess.Popen(
        command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"taken\n"
        with pytest.raises(ConfigError, match="in use"):
            CacheFolder(tmp_path)
        other.kill()
    # A process that was killed has no folder any more.
    CacheFolder(tmp_path).close()


def test_a_folder_that_cannot_be_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="cache folder"):
        CacheFolder(tmp_path / "file")


def test_what_else_is_in_the_folder_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine").write_bytes(bytes(10 * MIB))
    folder = taken(tmp_path, 2 * (BLOCK_SIZE + 4096))
    for name in range(5):
        folder.store(blocks(body(name, BLOCK_SIZE), 0))
    folder.close()
    assert (tmp_path / "mine").stat().st_size == 10 * MIB


# With an engine


class Far:
    """A cache over an engine whose nodes are far away, or not."""

    def __init__(self, path: Path, *, remote: bool = True) -> None:
        self.folder = CacheFolder(path, 64 * MIB)
        self.remote = remote
        self.cache = DiskCache(self.folder, remote=lambda: self.remote, log=structlog.get_logger())

    async def stored(self, count: int) -> None:
        """Wait until so many blocks are stored."""
        with trio.fail_after(30):
            while self.folder.stats.stored < count:  # noqa: ASYNC110  a thread counts
                await trio.sleep(0.001)


def rename_in_drives(path: Path, old: str, new: str) -> None:
    for drive in path.glob("drive*"):
        (drive / old).rename(drive / new)


async def read_all(cache: DiskCache, opened: OpenedObject, start: int, end: int) -> bytes:
    stream = CachedStream(cache, opened, start, end)
    try:
        return b"".join([bytes(buffer) async for buffer in stream])
    finally:
        await stream.aclose()


async def test_what_was_fetched_once_is_not_fetched_again(tmp_path: Path) -> None:
    size = 29 * BLOCK_SIZE + 77
    data = pattern(size)
    far = Far(tmp_path / "cache")
    async with engine_in(tmp_path) as engine, trio.open_nursery() as nursery:
        nursery.start_soon(far.cache.run)
        await far.stored(0)
        await engine.create_bucket("bucket", owner="owner")
        await put(engine, "bucket", "key", data)
        async with await engine.open("bucket", "key") as opened:
            # The middle first, from within a block; then all.
            begin, end = 3 * BLOCK_SIZE - 5, 22 * BLOCK_SIZE + 5
            assert await read_all(far.cache, opened, begin, end) == data[begin:end]
            # The block that it began in is whole; the one that it ended in is not.
            await far.stored(20)
            assert await read_all(far.cache, opened, 0, size) == data
            await far.stored(30)
            assert far.cache.stats.hits == 20
            # Nothing is left to read from; and another version has other bytes.
            rename_in_drives(tmp_path, "volumes", "away")
            hits = far.cache.stats.hits
            for begin, end in ((0, size), (100, 200), (size - 1, size), (5, size - 5)):
                assert await read_all(far.cache, opened, begin, end) == data[begin:end]
            assert far.cache.stats.hits - hits == 30 + 1 + 1 + 30
            rename_in_drives(tmp_path, "away", "volumes")
        nursery.cancel_scope.cancel()
    far.cache.close()


async def test_a_store_that_is_near_and_quick_is_read_without_the_cache(
    tmp_path: Path, logs: Logs
) -> None:
    data = pattern(4 * BLOCK_SIZE)
    far = Far(tmp_path / "cache", remote=False)
    async with engine_in(tmp_path) as engine:
        await engine.create_bucket("bucket", owner="owner")
        await put(engine, "bucket", "key", data)
        async with await engine.open("bucket", "key") as opened:
            far.cache.observe(len(data), 0.0001)
            assert not far.cache.pays
            assert await read_all(far.cache, opened, 0, len(data)) == data
    assert (far.cache.stats.hits, far.cache.stats.misses) == (0, 0)
    for seconds in (0.1, 0.0001, 0.1, 0.0001):
        far.cache.observe(BLOCK_SIZE, seconds)
        assert not far.cache.pays, "a hiccup is not"
    for _ in range(4):
        far.cache.observe(BLOCK_SIZE, 0.1)
    assert far.cache.pays, "a slow one is worth it"
    far.cache.close()


async def test_trouble_with_the_disk_costs_the_cache_and_is_said_once(
    tmp_path: Path, logs: Logs, monkeypatch: pytest.MonkeyPatch
) -> None:
    logs.expect("disk cache fails")
    size = 3 * BLOCK_SIZE
    data = pattern(size)
    far = Far(tmp_path / "cache")

    def full(descriptor: int, what: memoryview, offset: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def broken(*_: object) -> int:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    async with engine_in(tmp_path) as engine, trio.open_nursery() as nursery:
        nursery.start_soon(far.cache.run)
        await engine.create_bucket("bucket", owner="owner")
        await put(engine, "bucket", "key", data)
        async with await engine.open("bucket", "key") as opened:
            with monkeypatch.context() as patch:
                patch.setattr(cache_folder, "_write_all", full)
                for _ in range(3):
                    assert await read_all(far.cache, opened, 0, size) == data
                await logs.wait_for("disk cache fails; going on without")
            with monkeypatch.context() as patch:
                patch.setattr(far.folder, "read", broken)
                for _ in range(3):
                    assert await read_all(far.cache, opened, 0, size) == data
        nursery.cancel_scope.cancel()
    far.cache.close()
    said = [entry["error"] for entry in logs.entries if "disk cache" in str(entry["event"])]
    assert said == [os.strerror(errno.ENOSPC), os.strerror(errno.EIO)]
    assert far.cache.stats.dropped > 0
