"""Reading through a real mount while others, here an engine in the test's own process, change
what is stored."""

from __future__ import annotations

import filecmp
import mmap
import os
import random
import signal
import time
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import trio

from benchmarks.rows import write_rows
from engine.config import StoreConfig
from engine.engine import Engine
from engine.opening import open_engine
from engine.types import Attributes
from tests.support.engine import pattern, put
from tests.support.mounts import Mount, mounted, run

MIB = 1 << 20
SEEN_S = 60.0
"""Longer than changes may take to be seen on a busy machine; far less than time-outs."""

STRANGE_KEYS = [
    "a",
    "a/b",
    "a/c/d",
    "a.txt",
    "slash//slash",
    "/lead",
    "//two",
    "dot/./x",
    "dot/../x",
    ".",
    "..",
    "trail/",
    "trail/x",
    "bytes/",
    ".versions/x",
    "name%file",
    "name%25",
    "x%name%more",
    "\U0001f600" * 70,
    "nul\0byte",
    "new\nline",
    "é" * 200,
    "w" * 255,
    "w" * 256,
    "w" * 300,
    "w" * 300 + "/below",
    "w" * 600 + "/" + "v" * 300,
    "u" * 253,
    "u" * 253 + "/x",
    "k" * 1024,
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("reading")


@pytest.fixture(scope="module")
def mount(folder: Path) -> Iterator[Mount]:
    """A mount of the module; its process must end well and have had nothing to complain of."""
    with mounted(folder / "store", folder / "mnt", timeout_s=3600.0) as mount:
        yield mount
        assert mount.stop() == 0
    assert mount.troubles == []


@pytest.fixture
async def engine(mount: Mount, folder: Path) -> AsyncIterator[Engine]:
    async with open_engine(StoreConfig(data=folder / "store", services=False)) as engine:
        yield engine


async def seen(check: Callable[[], bool]) -> bool:
    """Say whether ``check`` comes true soon: changes take a moment to reach the kernel."""
    deadline = time.monotonic() + SEEN_S
    while not check():
        if time.monotonic() > deadline:
            return False
        await trio.sleep(0.01)  # another process is waited for
    return True


def has(path: Path, data: bytes) -> Callable[[], bool]:
    def check() -> bool:
        try:
            return path.read_bytes() == data
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
            return False

    return check


def files_below(path: Path) -> list[Path]:
    return [Path(at) / name for at, _, names in os.walk(path) for name in names]


async def test_every_key_has_one_path_and_its_bytes(engine: Engine, folder: Path) -> None:
    await engine.create_bucket("strange", owner="owner")
    for key in STRANGE_KEYS:
        await put(engine, "strange", key, b"" if key == "trail/" else key.encode())
    with mounted(folder / "store", folder / "strange", bucket="strange") as mount:
        found = [path.read_bytes().decode() for path in files_below(mount.path)]
        assert sorted(found) == sorted(set(STRANGE_KEYS) - {"trail/"})
        # Listed names are found by name as well, by a mount that has not listed them.
        paths = files_below(mount.path)
    with mounted(folder / "store", folder / "strange", bucket="strange") as mount:
        assert sorted(path.read_bytes().decode() for path in paths) == sorted(found)
        assert (mount.path / "a").is_dir()
        assert (mount.path / "a%file").read_bytes() == b"a"
        assert (mount.path / "bytes/%name").read_bytes() == b"bytes/"
        assert (mount.path / "%name/lead").read_bytes() == b"/lead"
        for absent in ("name%file%file", "zz%file", "zz%more", "a%name", "w" * 256):
            with pytest.raises(OSError, match=r"No such file|too long"):
                os.stat(mount.path / absent)
    assert mount.troubles == []


async def test_attributes_are_what_rclone_keeps(engine: Engine, mount: Mount) -> None:
    kept = [("mtime", "1600000000.123456789"), ("mode", "100640"), ("uid", "12"), ("gid", "34")]
    await put(engine, "bucket", "attr/kept", b"1234", attributes=Attributes(metadata=kept))
    await put(engine, "bucket", "attr/plain", b"")
    listed = {entry.name: entry.stat() for entry in os.scandir(mount.path / "attr")}
    for shown in (listed["kept"], os.stat(mount.path / "attr/kept")):
        assert (shown.st_mode, shown.st_uid, shown.st_gid) == (0o100640, 12, 34)
        assert (shown.st_size, shown.st_mtime_ns) == (4, 1_600_000_000_123_456_789)
    assert listed["plain"].st_mode == 0o100644


async def test_an_open_file_stays_the_version_that_it_was(engine: Engine, mount: Mount) -> None:
    old, new = pattern(5 * MIB, 1), pattern(6 * MIB, 2)
    path = mount.path / "pinned"
    await put(engine, "bucket", "pinned", old)
    with path.open("rb", buffering=0) as first:
        assert first.read(100) == old[:100]
        mapped = mmap.mmap(first.fileno(), 0, prot=mmap.PROT_READ)
        await put(engine, "bucket", "pinned", new)
        assert await seen(lambda: path.stat().st_size == len(new))
        with path.open("rb", buffering=0) as second:
            assert second.read(MIB) == new[:MIB]
            assert os.pread(first.fileno(), MIB, 100) == old[100 : 100 + MIB]
            assert os.fstat(first.fileno()).st_size == len(old)
            await engine.delete("bucket", "pinned")
            assert await seen(lambda: not path.exists())
            assert b"".join(iter(lambda: first.read(MIB), b"")) == old[100:]
            assert b"".join(iter(lambda: second.read(MIB), b"")) == new[MIB:]
            assert mapped[:] == old
        mapped.close()


async def test_what_others_change_is_seen_though_the_kernel_caches(
    engine: Engine, mount: Mount
) -> None:
    path = mount.path / "changing"
    assert not path.exists()
    await put(engine, "bucket", "changing", b"one")
    assert await seen(has(path, b"one"))
    await put(engine, "bucket", "changing", b"two!")
    assert await seen(has(path, b"two!"))
    await put(engine, "bucket", "changing", pattern(MIB))
    assert await seen(has(path, pattern(MIB)))
    await engine.rename("bucket", "changing", "changed")
    assert await seen(lambda: not path.exists())
    assert await seen(has(mount.path / "changed", pattern(MIB)))
    await engine.delete("bucket", "changed")
    assert await seen(lambda: not (mount.path / "changed").exists())


async def test_directories_come_and_go_with_what_is_in_them(engine: Engine, mount: Mount) -> None:
    top = mount.path / "come"
    assert not top.exists()
    await put(engine, "bucket", "come/and/go", b"1")
    assert await seen(has(top / "and/go", b"1"))
    await put(engine, "bucket", "come", b"a file")
    assert await seen(has(mount.path / "come%file", b"a file"))
    await engine.delete("bucket", "come/and/go")
    assert await seen(has(top, b"a file"))
    assert "come%file" not in os.listdir(mount.path)


async def test_a_directory_that_is_worked_in_stays_when_its_content_changes(
    engine: Engine, mount: Mount
) -> None:
    await put(engine, "bucket", "work/a", b"1")
    held = os.open(mount.path / "work", os.O_RDONLY)
    try:
        await put(engine, "bucket", "work/b", b"2")
        await engine.delete("bucket", "work/a")
        assert await seen(lambda: os.listdir(held) == ["b"])
        assert os.readlink(f"/proc/self/fd/{held}") == str(mount.path / "work")
    finally:
        os.close(held)


@pytest.mark.parametrize("size", [0, 1, 4096, 64 * 1024 + 1, 300_001, 9 * MIB + 17])
async def test_reads_at_any_place_give_the_right_bytes(
    engine: Engine, mount: Mount, size: int
) -> None:
    data = pattern(size, 3)
    path = mount.path / f"places{size}"
    await put(engine, "bucket", path.name, data)
    chance = random.Random(size)
    with path.open("rb", buffering=0) as file:
        for _ in range(60):
            offset = chance.randrange(size + 5000)
            length = chance.choice((1, 10, 4096, 200_000, 3 * MIB))
            assert os.pread(file.fileno(), length, offset) == data[offset : offset + length]
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        assert b"".join(iter(lambda: file.read(70_001), b"")) == data
    assert path.read_bytes() == data


async def test_direct_reads_go_round_the_page_cache(engine: Engine, mount: Mount) -> None:
    data = pattern(3 * MIB + 100, 4)
    await put(engine, "bucket", "direct", data)
    buffer = mmap.mmap(-1, MIB)
    descriptor = os.open(mount.path / "direct", os.O_RDONLY | os.O_DIRECT)
    try:
        for offset in (2 * MIB, 0, 3 * MIB, MIB):
            count = os.preadv(descriptor, [buffer], offset)
            assert buffer[:count] == data[offset : offset + MIB]
    finally:
        os.close(descriptor)


async def test_64_readers_at_once(engine: Engine, mount: Mount) -> None:
    data = pattern(8 * MIB + 5, 5)
    await put(engine, "bucket", "many", data)

    def read(number: int) -> bool:
        with (mount.path / "many").open("rb", buffering=0) as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            if number % 2:
                return b"".join(iter(lambda: file.read(MIB), b"")) == data
            chance = random.Random(number)
            offsets = [chance.randrange(len(data)) for _ in range(20)]
            return all(os.pread(file.fileno(), 9000, at) == data[at : at + 9000] for at in offsets)

    def read_all() -> list[bool]:
        with ThreadPoolExecutor(64) as pool:
            return list(pool.map(read, range(64)))

    assert all(await trio.to_thread.run_sync(read_all))


async def test_a_tree_copied_out_is_the_tree(engine: Engine, mount: Mount, folder: Path) -> None:
    for number in range(300):
        key = f"tree/{number % 7}/{number % 3}/file{number}"
        await put(engine, "bucket", key, pattern(number * 997, number))
    out = folder / "out"
    await trio.to_thread.run_sync(run, "cp", "-a", str(mount.path / "tree"), str(out))
    await trio.to_thread.run_sync(run, "diff", "-r", str(mount.path / "tree"), str(out))
    copied = files_below(out)
    assert len(copied) == 300
    source = mount.path / "tree/6/1"
    assert filecmp.dircmp(source, out / "6/1").diff_files == []
    for path in copied:
        assert (
            path.stat().st_mtime_ns
            == (mount.path / "tree" / path.relative_to(out)).stat().st_mtime_ns
        )


def test_100_000_entries_are_each_listed_once_in_flat_memory(tmp_path: Path) -> None:
    known = 5_000
    with mounted(tmp_path / "store", tmp_path / "mnt"):
        pass
    names = [f"{number:06d}" for number in range(100_000)]
    write_rows(tmp_path / "store", "bucket", (f"huge/{name}" for name in names), b"x")
    with mounted(tmp_path / "store", tmp_path / "mnt", known_inodes_max=known) as mount:

        def memory() -> int:
            status = Path(f"/proc/{mount.process.pid}/status").read_text()
            line = next(line for line in status.splitlines() if line.startswith("RssAnon:"))
            return int(line.split()[1])

        (mount.path / "huge/000000").stat()
        with os.scandir(mount.path / "huge") as entries:
            listed = [next(entries).name for _ in range(2 * known)]
            before = memory()
            listed += [entry.name for entry in entries]
        assert sorted(listed) == names
        # KiB. The metadata store caches what is listed; 90,000 inodes would take 55 MiB beside.
        assert memory() - before < 40 * 1024
        # Those listed without attributes have them when they are asked for.
        assert (mount.path / "huge/099999").stat().st_size == 1
        found = run("find", str(mount.path), "-type", "f", "-name", "*9999")
        assert len(found.split()) == 10
    assert mount.troubles == []


async def test_all_buckets_are_folders_at_the_top(engine: Engine, folder: Path) -> None:
    await engine.create_bucket("one-bucket", owner="owner")
    await put(engine, "one-bucket", "a/b", b"ab")
    with mounted(folder / "store", folder / "top", bucket="") as mount:
        assert "one-bucket" in os.listdir(mount.path)
        assert (mount.path / "one-bucket/a/b").read_bytes() == b"ab"
        assert not (mount.path / "no-bucket").exists()
        await put(engine, "one-bucket", "a/b", b"new")
        assert await seen(has(mount.path / "one-bucket/a/b", b"new"))
    assert mount.troubles == []


async def test_a_prefix_is_a_mount_of_its_own(engine: Engine, folder: Path) -> None:
    await put(engine, "bucket", "pre/fix/x", b"x")
    with mounted(folder / "store", folder / "prefix", prefix="pre/") as mount:
        assert os.listdir(mount.path) == ["fix"]
        assert not (mount.path / "y").exists()
        await put(engine, "bucket", "pre/y", b"y")
        assert await seen(has(mount.path / "y", b"y"))
        (mount.path / "y").unlink()
        (mount.path / "fix/x").unlink()
        (mount.path / "fix").rmdir()
        page = await engine.list_objects("bucket", prefix="pre")
        assert [entry.key for entry in page.objects] == ["pre/"], "the last goes, the folder stays"
    assert mount.troubles == []


def test_sigterm_unmounts_also_while_a_file_is_open(tmp_path: Path) -> None:
    with mounted(tmp_path / "store", tmp_path / "mnt") as mount:
        write_rows(tmp_path / "store", "bucket", ["key"], b"x")
        descriptor = os.open(mount.path / "key", os.O_RDONLY)
        assert mount.stop(signal.SIGTERM) == 0
        with pytest.raises(OSError, match="not connected"):
            os.close(descriptor)
        assert not os.path.ismount(mount.path)
        assert os.listdir(mount.path) == []


def test_umount_ends_the_process(tmp_path: Path) -> None:
    with mounted(tmp_path / "store", tmp_path / "mnt") as mount:
        run("umount", str(mount.path))
        assert mount.process.wait(30) == 0


def test_a_killed_mount_can_be_mounted_again(tmp_path: Path) -> None:
    with mounted(tmp_path / "store", tmp_path / "mnt") as mount:
        write_rows(tmp_path / "store", "bucket", ["key"], b"x")
        mount.stop(signal.SIGKILL)
        with pytest.raises(OSError, match="not connected"):
            os.listdir(mount.path)
        with mounted(tmp_path / "store", tmp_path / "mnt") as again:
            assert (again.path / "key").read_bytes() == b"x"
            again.stop()


async def test_statfs_shows_room(engine: Engine, mount: Mount) -> None:
    shown: Callable[[Path], os.statvfs_result] = os.statvfs
    room = shown(mount.path)
    assert 0 < room.f_bavail <= room.f_blocks
    assert room.f_namemax == 255


async def test_hard_links_and_devices_are_refused(engine: Engine, mount: Mount) -> None:
    await put(engine, "bucket", "refuse/x", b"x")
    with pytest.raises(PermissionError):
        os.link(mount.path / "refuse/x", mount.path / "refuse/y")
    with pytest.raises(PermissionError):
        os.mknod(mount.path / "refuse/null", 0o20666, os.makedev(1, 3))
    with pytest.raises(OSError, match="Invalid or incomplete multibyte"):
        os.stat(os.fsencode(mount.path) + b"/\xff")
