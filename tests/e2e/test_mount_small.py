"""Small files, whose bytes the mount hands to the kernel at ``open``: they are those of the version
that was opened, whoever replaces it meanwhile, and nobody waits for anybody."""

from __future__ import annotations

import errno
import mmap
import os
import random
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from engine.config import StoreConfig
from engine.engine import Engine
from engine.opening import open_engine
from tests.support.engine import pattern, put
from tests.support.mounts import Mount, ask, mounted, prepare

INLINE_MAX = 64 * 1024
SEEN_S = 30.0
"""Far longer than changes take to be seen."""

SIZES = (1, 100, 4095, 4096, 4097, 8192, INLINE_MAX - 1, INLINE_MAX)


def store(data: Path, contents: dict[str, bytes]) -> None:
    async def question(engine: Engine) -> None:
        for key, content in contents.items():
            await put(engine, "bucket", key, content)

    ask(data, question)


def requests(mount: Mount) -> dict[str, int]:
    """End the mount, and return how often the kernel asked for what."""
    assert mount.stop() == 0
    assert mount.troubles == []
    [ended] = [entry for entry in mount.log if entry["event"] == "unmounted"]
    counts: dict[str, Any] = ended["requests"]
    return counts


@pytest.fixture
def data(tmp_path: Path) -> Path:
    prepare(tmp_path / "store")
    return tmp_path / "store"


def read_all(path: Path) -> dict[str, bytes]:
    """Read as tar does: list, open each, read so much as was listed."""
    found = {}
    with os.scandir(path) as entries:
        for entry in sorted(entries, key=lambda entry: entry.name):
            with open(entry.path, "rb", buffering=0) as file:
                found[entry.name] = file.read(os.fstat(file.fileno()).st_size)
    return found


@pytest.mark.parametrize("read_only", [False, True])
def test_each_small_file_costs_no_more_than_its_open_and_close(
    data: Path, tmp_path: Path, read_only: bool
) -> None:
    contents = {f"{size:05}": pattern(size) for size in SIZES}
    store(data, contents)
    with mounted(data, tmp_path / "mnt", read_only=read_only) as mount:
        assert read_all(mount.path) == contents
        counts = requests(mount)
    count = len(contents)
    assert (counts["open"], counts["release"], counts["read"]) == (count, count, 0)
    assert counts["flush"] == (1 if read_only else count)  # refused once, and never again
    assert counts["lookup"] == 0
    assert counts["getattr"] <= 2  # of the folder


def test_what_is_not_small_is_asked_for(data: Path, tmp_path: Path) -> None:
    contents = {"empty": b"", "large": pattern(INLINE_MAX + 1)}
    store(data, contents)
    with mounted(data, tmp_path / "mnt") as mount:
        assert read_all(mount.path) == contents
        assert requests(mount)["read"] >= 1


def test_direct_reads_of_small_files_are_asked_for(data: Path, tmp_path: Path) -> None:
    content = pattern(8192)
    store(data, {"file": content})
    with mounted(data, tmp_path / "mnt") as mount:
        descriptor = os.open(mount.path / "file", os.O_RDONLY | os.O_DIRECT)
        with open(descriptor, "rb", buffering=0) as file, mmap.mmap(-1, 8192) as aligned:
            assert file.readinto(aligned) == 8192
            assert aligned[:] == content
        assert requests(mount)["read"] >= 1


def test_what_was_opened_is_read_when_the_kernel_forgot_it(data: Path, tmp_path: Path) -> None:
    old, new = pattern(6000), bytes(3000)
    store(data, {"file": old})
    with mounted(data, tmp_path / "mnt") as mount:
        path = mount.path / "file"
        with path.open("rb", buffering=0) as file:
            store(data, {"file": new})
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            assert os.pread(file.fileno(), 10_000, 0) == old
            os.unlink(path)
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            assert os.pread(file.fileno(), 10_000, 0) == old
        assert requests(mount)["read"] >= 2


@pytest.fixture
def listed(data: Path, tmp_path: Path) -> Iterator[tuple[Path, Mount]]:
    """A mount that keeps what it listed for an hour, but for what it is told to forget."""
    with mounted(data, tmp_path / "mnt", timeout_s=3600.0) as mount:
        yield data, mount
        assert mount.stop() == 0
    assert mount.troubles == []


async def test_a_version_that_came_after_the_listing_never_mixes_with_another(
    listed: tuple[Path, Mount],
) -> None:
    """The kernel goes by the size that was listed until it is told, which a GETATTR that is
    answered at that moment may delay."""
    data, mount = listed
    choice = random.Random(0)
    sizes = [0, 1, 100, 4095, 4096, 4097, 5000, 8192, 12_000]
    contents = {}
    async with open_engine(StoreConfig(data=data, services=False)) as engine:
        for number in range(100):
            key = f"{number:03}"
            old, new = (choice.randbytes(choice.choice(sizes)) for _ in range(2))
            await put(engine, "bucket", key, old)
            assert os.stat(mount.path / key).st_size == len(old)
            await put(engine, "bucket", key, new)
            # Whether the mount was told before it is asked is left to chance.
            with (mount.path / key).open("rb", buffering=0) as file:
                found = file.read(20_000)
            assert found == new.ljust(len(old), b"\0")[: len(found)]
            assert len(found) in (len(new), len(old))
            contents[key] = new
    deadline = time.monotonic() + SEEN_S
    while read_all(mount.path) != contents:
        assert time.monotonic() < deadline


def test_many_at_once_read_what_is_replaced_all_the_time(data: Path, tmp_path: Path) -> None:
    """First opens, later opens, forgotten pages and maps of the same few files meet."""
    letters = b"abcdefghij"
    sizes = (1, 4096, 5000, 20_000)

    def content(number: int, turn: int) -> bytes:
        return letters[turn % 10 : turn % 10 + 1] * sizes[(number + turn) % len(sizes)]

    keys = 6
    store(data, {str(number): content(number, 0) for number in range(keys)})
    turns = 30
    with mounted(data, tmp_path / "mnt") as mount, ThreadPoolExecutor(9) as pool:

        async def replace(engine: Engine) -> None:
            for turn in range(1, turns):
                for number in range(keys):
                    await put(engine, "bucket", str(number), content(number, turn))

        def read(seed: int) -> None:
            choice = random.Random(seed)
            for _ in range(150):
                try:
                    file = (mount.path / str(choice.randrange(keys))).open("rb", buffering=0)
                except OSError as error:
                    # Replaced twice between the kernel's two looks at the name.
                    if error.errno != errno.ESTALE:
                        raise
                    continue
                with file:
                    found = file.read()
                    again = found
                    if choice.random() < 0.3:
                        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
                        again = os.pread(file.fileno(), 30_000, 0)
                    elif found and choice.random() < 0.3:
                        with mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as mapped:
                            again = mapped[:1]
                    # Zeros: behind the end, should the kernel be told of the size just now.
                    assert len((set(found) | set(again)) - {0}) <= 1

        replacing = pool.submit(ask, data, replace)
        for reading in [pool.submit(read, seed) for seed in range(8)]:
            reading.result()
        replacing.result()
        mount.stop()
    with mounted(data, tmp_path / "mnt") as mount:
        expected = {str(number): content(number, turns - 1) for number in range(keys)}
        assert read_all(mount.path) == expected
