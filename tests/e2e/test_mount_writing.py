"""Writing through mounts, seen from the store: what is committed when, who wins a race, and what
a kill leaves behind."""

from __future__ import annotations

import errno
import mmap
import os
import random
import signal
import time
from pathlib import Path
from typing import TypeVar

import pytest

from engine.engine import Engine
from engine.errors import NoSuchKey
from engine.types import Attributes
from tests.support.engine import pattern, put, read
from tests.support.mounts import Mount, ask, mounted, prepare, run

T = TypeVar("T")
MIB = 1 << 20


def content(data: Path, key: str) -> bytes | None:
    """Return an object's bytes as the store has them; None: there is none."""

    async def question(engine: Engine) -> bytes | None:
        try:
            return await read(engine, "bucket", key)
        except NoSuchKey:
            return None

    return ask(data, question)


def replace(data: Path, key: str, new: bytes) -> None:
    async def question(engine: Engine) -> None:
        await put(engine, "bucket", key, new)

    ask(data, question)


def kept(mount: Mount) -> list[bytes]:
    """Return what the log says was kept in the recovery folder."""
    entries = [entry for entry in mount.log if entry["event"] == "file not committed"]
    return [Path(entry["kept"]).read_bytes() for entry in entries if entry["kept"]]


class Twin:
    """A file in the mount and the same bytes in memory, changed together."""

    def __init__(self, path: Path, seed: int) -> None:
        self.path = path
        self.random = random.Random(seed)
        self.expected = bytearray()
        self.descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)

    def offset(self) -> int:
        most = len(self.expected) + self.random.choice((0, 0, 1000, 100_000))
        return self.random.choice((0, len(self.expected), self.random.randint(0, most)))

    def write(self) -> None:
        size = self.random.choice((1, 100, 4096, 70_000, 300_000))
        offset, data = self.offset(), self.random.randbytes(size)
        assert os.pwrite(self.descriptor, data, offset) == size
        if offset > len(self.expected):
            self.expected.extend(bytes(offset - len(self.expected)))
        self.expected[offset : offset + size] = data

    def append_much(self) -> None:
        for _ in range(5):
            data = self.random.randbytes(120_000)
            os.pwrite(self.descriptor, data, len(self.expected))
            self.expected += data

    def truncate(self) -> None:
        size = self.random.choice((0, self.offset(), self.offset()))
        os.ftruncate(self.descriptor, size)
        if size < len(self.expected):
            del self.expected[size:]
        else:
            self.expected.extend(bytes(size - len(self.expected)))

    def read(self) -> None:
        offset, size = self.offset(), self.random.choice((1, 5000, 1_000_000))
        assert os.pread(self.descriptor, size, offset) == self.expected[offset : offset + size]

    def sync(self) -> None:
        os.fsync(self.descriptor)

    def reopen(self) -> None:
        os.close(self.descriptor)
        assert self.path.read_bytes() == self.expected
        self.descriptor = os.open(self.path, os.O_RDWR)

    def open_to_truncate(self) -> None:
        os.close(self.descriptor)
        self.descriptor = os.open(self.path, os.O_RDWR | os.O_TRUNC)
        self.expected.clear()

    def rename(self) -> None:
        new = self.path.with_name(f"file{self.random.randint(0, 3)}")
        os.rename(self.path, new)
        self.path = new

    def map(self) -> None:
        if self.expected:
            with mmap.mmap(self.descriptor, len(self.expected)) as view:
                at = self.random.randrange(len(self.expected))
                view[at] = self.expected[at] = self.random.randrange(256)
                view.flush()

    def check(self) -> None:
        assert os.fstat(self.descriptor).st_size == len(self.expected)
        assert self.path.stat().st_size == len(self.expected)


def test_random_changes_agree_with_a_twin_in_memory(tmp_path: Path) -> None:
    with mounted(tmp_path / "store", tmp_path / "mnt") as mount:
        for seed in range(6):
            folder = mount.path / str(seed)
            folder.mkdir()
            twin = Twin(folder / "file", seed)
            actions = (
                (twin.write, 10),
                (twin.read, 10),
                (twin.truncate, 3),
                (twin.append_much, 2),
                (twin.sync, 1),
                (twin.reopen, 3),
                (twin.open_to_truncate, 1),
                (twin.rename, 1),
                (twin.map, 2),
            )
            weights = [weight for _, weight in actions]
            for _ in range(120):
                [(action, _)] = twin.random.choices(actions, weights)
                action()
                twin.check()
            os.close(twin.descriptor)
            key = f"{seed}/{twin.path.name}"
            assert content(tmp_path / "store", key) == twin.expected
        assert mount.stop() == 0
        assert mount.troubles == []


def test_nothing_is_visible_before_close_and_everything_after(tmp_path: Path) -> None:
    data = tmp_path / "store"
    with mounted(data, tmp_path / "mnt") as mount:
        (mount.path / "old").write_bytes(b"old")
        with (mount.path / "new").open("wb") as new, (mount.path / "old").open("wb") as old:
            for _ in range(20):
                new.write(bytes(MIB))
            old.write(b"changed")
            old.flush()
            assert content(data, "new") is None
            assert content(data, "old") == b"old"
            os.fsync(old.fileno())
            assert content(data, "old") == b"changed"
        assert content(data, "new") == bytes(20 * MIB)


def test_a_long_file_streams_and_can_still_be_read_and_changed_before_it_is_closed(
    tmp_path: Path,
) -> None:
    data = tmp_path / "store"
    expected = bytearray(pattern(12 * MIB))
    with mounted(data, tmp_path / "mnt") as mount:
        with (mount.path / "file").open("w+b", buffering=0) as file:
            for first in range(0, len(expected), MIB):
                file.write(expected[first : first + MIB])
            assert os.pread(file.fileno(), 1000, 5 * MIB) == expected[5 * MIB : 5 * MIB + 1000]
            file.write(b"more")
            file.seek(3)
            file.write(b"header")
        expected += b"more"
        expected[3:9] = b"header"
        assert content(data, "file") == expected
        with (mount.path / "file").open("ab") as file:
            file.write(b"end")
        assert content(data, "file") == expected + b"end"
        assert mount.stop() == 0
        assert mount.troubles == []


def test_streaming_takes_little_memory(tmp_path: Path) -> None:
    with mounted(tmp_path / "store", tmp_path / "mnt") as mount:
        block = pattern(MIB)
        with (mount.path / "file").open("wb", buffering=0) as file:
            for _ in range(400):
                file.write(block)
        status = Path(f"/proc/{mount.process.pid}/status").read_text()
        peak = next(line for line in status.splitlines() if line.startswith("VmHWM:"))
        assert int(peak.split()[1]) < 300 * 1024
        assert list((tmp_path / "store/staging").iterdir()) == []


def test_who_closes_second_is_told_and_keeps_the_bytes(tmp_path: Path) -> None:
    data = tmp_path / "store"
    prepare(data)
    with mounted(data, tmp_path / "one") as one, mounted(data, tmp_path / "two") as two:
        (one.path / "file").write_bytes(b"base")
        first = os.open(one.path / "file", os.O_WRONLY | os.O_APPEND)
        second = os.open(two.path / "file", os.O_WRONLY | os.O_APPEND)
        os.write(first, b" first")
        os.write(second, b" second")
        os.close(first)
        with pytest.raises(OSError) as failed:
            os.close(second)
        assert failed.value.errno == errno.ESTALE
        assert content(data, "file") == b"base first"
        assert (two.path / "file").read_bytes() == b"base first"
        assert kept(two) == [b"base second"]
        assert kept(one) == []


@pytest.mark.parametrize("size", [10, 1 * MIB])
def test_only_one_of_two_mounts_makes_a_file(tmp_path: Path, size: int) -> None:
    data = tmp_path / "store"
    prepare(data)
    with mounted(data, tmp_path / "one") as one, mounted(data, tmp_path / "two") as two:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
        first = os.open(one.path / "file", flags)
        second = os.open(two.path / "file", flags)
        os.write(first, b"1" * size)
        os.write(second, b"2" * size)
        os.close(second)
        with pytest.raises(OSError) as failed:
            os.close(first)
        assert failed.value.errno == errno.ESTALE
        assert content(data, "file") == b"2" * size
        assert kept(one) == [b"1" * size]
        with pytest.raises(FileExistsError):
            os.open(one.path / "file", flags)


def test_a_file_replaced_through_s3_is_not_overwritten(tmp_path: Path) -> None:
    data = tmp_path / "store"
    with mounted(data, tmp_path / "mnt") as mount:
        (mount.path / "file").write_bytes(b"base")
        descriptor = os.open(mount.path / "file", os.O_RDWR)
        os.write(descriptor, b"mine")
        replace(data, "file", b"theirs")
        with pytest.raises(OSError) as failed:
            os.fsync(descriptor)
        assert failed.value.errno == errno.ESTALE
        with pytest.raises(OSError) as failed:
            os.write(descriptor, b"again")
        assert failed.value.errno == errno.ESTALE
        with pytest.raises(OSError):
            os.close(descriptor)
        assert content(data, "file") == b"theirs"
        assert kept(mount) == [b"mine"]


def test_appending_goes_to_the_end_that_somebody_else_moved(tmp_path: Path) -> None:
    data = tmp_path / "store"
    with mounted(data, tmp_path / "mnt") as mount:
        path = mount.path / "file"
        for other in (b"longer than before", b"short", b"", b"long again"):
            path.write_bytes(b"mine")
            assert path.stat().st_size == 4
            replace(data, "file", other)
            descriptor = os.open(path, os.O_WRONLY | os.O_APPEND)
            os.write(descriptor, b"+")
            os.write(descriptor, b"++")
            os.close(descriptor)
            assert content(data, "file") == other + b"+++"


def test_a_long_file_is_read_on_by_its_writer_though_it_was_replaced(tmp_path: Path) -> None:
    data, expected = tmp_path / "store", pattern(3 * MIB)
    with mounted(data, tmp_path / "mnt") as mount:
        with (mount.path / "file").open("w+b", buffering=0) as file:
            file.write(expected)
            os.fsync(file.fileno())
            replace(data, "file", b"theirs")
            assert os.pread(file.fileno(), 4 * MIB, 0) == expected
        assert content(data, "file") == b"theirs"
        assert mount.troubles == []


@pytest.mark.parametrize("size", [1000, 10 * MIB])
def test_a_kill_while_writing_leaves_the_old_and_nothing_half(tmp_path: Path, size: int) -> None:
    data = tmp_path / "store"
    with mounted(data, tmp_path / "mnt") as mount:
        (mount.path / "old").write_bytes(b"old")
        new = os.open(mount.path / "new", os.O_WRONLY | os.O_CREAT)
        old = os.open(mount.path / "old", os.O_WRONLY | os.O_TRUNC)
        for descriptor in (new, old):
            os.write(descriptor, pattern(size))
        mount.stop(signal.SIGKILL)
        for descriptor in (new, old):
            with pytest.raises(OSError):
                os.close(descriptor)
    assert content(data, "new") is None
    assert content(data, "old") == b"old"
    assert list((data / "staging").iterdir()) == []
    with mounted(data, tmp_path / "mnt") as mount:
        assert os.listdir(mount.path) == ["old"]
        assert (mount.path / "old").read_bytes() == b"old"


def test_a_stop_commits_what_is_still_open(tmp_path: Path) -> None:
    data = tmp_path / "store"
    with mounted(data, tmp_path / "mnt") as mount:
        descriptor = os.open(mount.path / "file", os.O_WRONLY | os.O_CREAT)
        os.write(descriptor, b"written")
        assert mount.stop() == 0
        with pytest.raises(OSError):
            os.close(descriptor)
        assert mount.troubles == []
    assert content(data, "file") == b"written"


def test_one_version_for_each_close_and_none_for_attributes(tmp_path: Path) -> None:
    data = tmp_path / "store"
    prepare(data, versioning=True)
    with mounted(data, tmp_path / "mnt") as mount:
        file = mount.path / "file"
        file.write_bytes(b"one")
        file.write_bytes(b"two")
        file.chmod(0o600)
        os.utime(file, ns=(0, 1_500_000_000_123_456_789))
        with file.open("rb+"):
            pass

    async def question(engine: Engine) -> tuple[int, dict[str, str]]:
        versions = (await engine.list_versions("bucket", prefix="file")).versions
        return len(versions), dict((await engine.head("bucket", "file")).record.metadata)

    count, metadata = ask(data, question)
    assert count == 2
    # The names that rclone uses.
    assert metadata == {"mtime": "1500000000.123456789", "mode": "100600"}


@pytest.mark.parametrize("size", [200_000, 3 * MIB])
def test_no_space_is_told_by_close_and_the_old_file_stays(tmp_path: Path, size: int) -> None:
    data = tmp_path / "store"
    prepare(data)
    replace(data, "file", b"old")
    with mounted(data, tmp_path / "mnt", full=True) as mount:
        descriptor = os.open(mount.path / "file", os.O_WRONLY | os.O_TRUNC)

        def fill() -> None:
            for first in range(0, size, 100_000):
                os.write(descriptor, bytes(min(100_000, size - first)))
            os.fsync(descriptor)

        with pytest.raises(OSError) as failed:
            fill()
        assert failed.value.errno == errno.ENOSPC
        with pytest.raises(OSError) as failed:
            os.close(descriptor)
        assert failed.value.errno == errno.ENOSPC
        assert (mount.path / "file").read_bytes() == b"old"
        assert mount.stop() == 0
        # What was streaming into the full store is not kept.
        assert kept(mount) == ([bytes(size)] if size < MIB else [])
    assert content(data, "file") == b"old"


def test_a_redirection_of_the_shell_makes_one_version(tmp_path: Path) -> None:
    data = tmp_path / "store"
    prepare(data, versioning=True)
    with mounted(data, tmp_path / "mnt") as mount:
        run("bash", "-c", "echo one > file; seq 3 > file; : > empty", cwd=mount.path)
        assert mount.stop() == 0

    async def question(engine: Engine) -> list[tuple[str, int]]:
        versions = (await engine.list_versions("bucket")).versions
        return [(found.key, found.version.size) for found in versions]

    assert ask(data, question) == [("empty", 0), ("file", 6), ("file", 4)]


def test_a_file_that_is_only_opened_is_committed_when_it_is_closed_for_good(tmp_path: Path) -> None:
    """``touch file`` and ``: > file``; by ``fsync`` at once, and with ``O_EXCL`` by ``close``."""
    data = tmp_path / "store"
    prepare(data)
    replace(data, "full", b"old")
    with mounted(data, tmp_path / "mnt") as mount:
        path = mount.path

        def until(key: str, wanted: bytes) -> None:
            deadline = time.monotonic() + 120
            while content(data, key) != wanted:
                assert time.monotonic() < deadline

        run("touch", "made", cwd=path)
        until("made", b"")
        run("bash", "-c", ": > full", cwd=path)
        until("full", b"")
        replace(data, "full", b"old")
        descriptor = os.open(path / "full", os.O_WRONLY | os.O_TRUNC)
        second = os.dup(descriptor)
        os.close(second)
        assert content(data, "full") == b"old", "one of two descriptors is closed"
        os.fsync(descriptor)
        assert content(data, "full") == b""
        os.close(descriptor)
        os.close(os.open(path / "own", os.O_WRONLY | os.O_CREAT | os.O_EXCL))
        assert content(data, "own") == b""
        assert mount.troubles == []


def test_overwriting_keeps_the_headers_and_drops_a_digest_of_the_old_bytes(tmp_path: Path) -> None:
    data = tmp_path / "store"
    prepare(data)

    async def before(engine: Engine) -> None:
        attributes = Attributes(
            headers=[("content-type", "text/odd")],
            metadata=[("colour", "red"), ("md5chksum", "stale")],
        )
        await put(engine, "bucket", "file", b"old", attributes=attributes)

    ask(data, before)
    with mounted(data, tmp_path / "mnt") as mount:
        (mount.path / "file").write_bytes(b"new")
        (mount.path / "new.html").write_bytes(b"<p>")

    async def after(engine: Engine) -> None:
        record = (await engine.head("bucket", "file")).record
        assert record.headers == [("content-type", "text/odd")]
        assert {name for name, _ in record.metadata} == {"colour", "mtime"}
        assert (await engine.head("bucket", "new.html")).record.headers == [
            ("content-type", "text/html")
        ]

    ask(data, after)


def test_a_directory_of_more_files_than_one_transaction_takes_is_renamed(tmp_path: Path) -> None:
    data = tmp_path / "store"
    prepare(data)

    async def fill(engine: Engine) -> None:
        for number in range(1100):
            await put(engine, "bucket", f"dir/{number}", b"x")

    ask(data, fill)
    with mounted(data, tmp_path / "mnt") as mount:
        os.rename(mount.path / "dir", mount.path / "new")
        assert os.listdir(mount.path) == ["new"]
        assert len(os.listdir(mount.path / "new")) == 1100
