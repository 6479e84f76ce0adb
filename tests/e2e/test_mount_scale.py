"""Folders of very many files through a mount: each is listed once, and memory stays flat."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.rows import write_rows
from tests.support.mounts import Mount, mounted, run

KNOWN = 20_000
"""Inodes that the kernel remembers before names come alone; the smaller folder is above it."""

GROWTH_KIB_MAX = 24 * 1024
"""For ten times as many entries. A node in memory takes 0.6 KiB: 50 MiB for those of the smaller
default folder alone, and the metadata store's cache has its bound as well."""


def memory(mount: Mount) -> int:
    """Return the anonymous memory of the mount's process in KiB."""
    status = Path(f"/proc/{mount.process.pid}/status").read_text(encoding="ascii")
    line = next(line for line in status.splitlines() if line.startswith("RssAnon:"))
    return int(line.split()[1])


def names(count: int) -> Iterator[str]:
    return (f"{number:07d}" for number in range(count))


def fill(store: Path, path: Path, folders: dict[str, int]) -> None:
    """Make a store whose bucket has folders of so many empty files."""
    with mounted(store, path):
        pass
    for folder, count in folders.items():
        write_rows(store, "bucket", (f"{folder}/{name}" for name in names(count)), b"")


def list_unsorted(path: Path) -> list[bytes]:
    """Return what ``ls -f`` prints."""
    done = subprocess.run(["ls", "-f", path], check=True, capture_output=True, timeout=600)
    return done.stdout.split()


@pytest.mark.parametrize(
    ("few", "many"),
    [(25_000, 100_000), pytest.param(100_000, 1_000_000, marks=pytest.mark.soak)],
)
def test_ten_times_as_many_entries_take_no_more_memory(tmp_path: Path, few: int, many: int) -> None:
    store = tmp_path / "store"
    fill(store, tmp_path / "mnt", {"few": few, "many": many})
    with mounted(store, tmp_path / "mnt", known_inodes_max=KNOWN) as mount:
        assert len(list_unsorted(mount.path / "few")) == few + 2
        before = memory(mount)
        listed = list_unsorted(mount.path / "many")
        after = memory(mount)
        print(f"{before} KiB with {few} entries, {after} KiB with {many}")
        assert sorted(listed) == [b".", b".."] + [name.encode() for name in names(many)]
        assert after - before < GROWTH_KIB_MAX
        # Those that were listed by name only have attributes when they are asked for.
        assert (mount.path / f"many/{many - 1:07d}").stat().st_size == 0
        assert mount.stop() == 0
    assert mount.troubles == []


@pytest.mark.soak
def test_a_million_entries_with_the_defaults_take_what_the_known_inodes_take(
    tmp_path: Path,
) -> None:
    store, count = tmp_path / "store", 1_000_000
    fill(store, tmp_path / "mnt", {"huge": count})
    with mounted(store, tmp_path / "mnt") as mount:
        assert len(list_unsorted(mount.path / "huge")) == count + 2
        once = memory(mount)
        assert len(list_unsorted(mount.path / "huge")) == count + 2
        # What the allocator keeps between the inodes of the first time may be lost once.
        assert memory(mount) - once < 2 * GROWTH_KIB_MAX
        print(f"{once} KiB once, {memory(mount)} KiB after the second time")
        assert once < 400 * 1024
        found = run("find", str(mount.path), "-name", "*99999", "-type", "f", timeout=600.0)
        assert len(found.split()) == 10
        assert mount.stop() == 0
    assert mount.troubles == []


def test_many_programs_list_a_large_folder_at_once(tmp_path: Path) -> None:
    store, count = tmp_path / "store", 10_000
    fill(store, tmp_path / "mnt", {"large": count})
    with mounted(store, tmp_path / "mnt", known_inodes_max=KNOWN) as mount:
        command = ["ls", "-f", str(mount.path / "large")]
        programs = [subprocess.Popen(command, stdout=subprocess.PIPE) for _ in range(16)]
        for program in programs:
            said, _ = program.communicate(timeout=120)
            assert program.returncode == 0
            assert len(set(said.split())) == count + 2
        # Read half, go back to the beginning, and read all.
        with os.scandir(mount.path / "large") as entries:
            half = [next(entries).name for _ in range(count // 2)]
        assert len(set(half)) == count // 2
        assert mount.stop() == 0
    assert mount.troubles == []
