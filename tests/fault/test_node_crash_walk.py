"""A drive whose power fails again and again: random lives of a drive, each begun with what the
last crash has left, and each checked against what was acknowledged."""

from __future__ import annotations

import os
import random
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from engine.ids import FragmentId
from engine.node.compaction import compact
from engine.node.drive import Drive
from engine.node.writer import FragmentWriter
from tests.support.disk import OperationLog, RecordingDisk, RecordingVFS
from tests.support.drives import (
    check_sums,
    content,
    everything,
    fragment,
    lose_index,
    new_drive,
    pieces,
    reopen,
)

WALKS, WALKS_SOAK = 150, 20_000
LIVES = 4
STEPS_MAX = 30
FRAGMENTS = 12
WRITERS_MAX = 4
SIZES = [0, 100, 700, 5_000, 8_192, 9_000, 12_000]
VOLUME_SIZE = 24 * 1024
DIRECT_MIN = 6_000
"""About half of the fragments go past the page cache."""


def payload(number: int) -> bytes:
    return content(number, SIZES[number % len(SIZES)])


@dataclass
class Mark:
    """What is on the drive, and what the call that is under way would change of it."""

    there: frozenset[int]
    changing: frozenset[int] = frozenset()


@dataclass
class Life:
    """Uses a drive at random, and notes what was acknowledged."""

    drive: Drive
    log: OperationLog
    chance: random.Random
    there: set[int]
    open: dict[int, tuple[FragmentWriter, list[bytes | memoryview]]] = field(default_factory=dict)

    def acknowledge(self, *changing: int) -> None:
        self.log.mark(Mark(frozenset(self.there), frozenset(changing)))

    def run(self) -> None:
        self.acknowledge()
        steps: list[Callable[[], None]] = [self.begin, self.write, self.end, self.delete]
        for _ in range(self.chance.randrange(STEPS_MAX)):
            step = self.chance.choices([*steps, self.compact], [4, 4, 6, 2, 1])[0]
            step()
            self.acknowledge()

    def begin(self) -> None:
        number = self.chance.randrange(FRAGMENTS)
        if number not in self.open and len(self.open) < WRITERS_MAX:
            data = payload(number)
            spare = self.chance.choice([0, 0, 600, 5_000])
            writer = self.drive.open_writer(fragment(number), len(data) + spare)
            half = len(data) // 2 & -4096
            self.open[number] = writer, [*pieces(data[:half]), *pieces(data[half:])]

    def write(self) -> None:
        if self.open:
            writer, left = self.open[self.chance.choice(sorted(self.open))]
            if left:
                writer.write([left.pop(0)])

    def end(self) -> None:
        if not self.open:
            return
        number = self.chance.choice(sorted(self.open))
        writer, left = self.open.pop(number)
        if self.chance.random() < 0.2:
            writer.abort()
            return
        writer.write(left)
        self.acknowledge(number)
        writer.commit()
        self.there.add(number)

    def delete(self) -> None:
        numbers = self.chance.sample(range(FRAGMENTS), self.chance.randint(1, 4))
        self.acknowledge(*numbers)
        self.drive.delete([fragment(number) for number in numbers])
        self.there.difference_update(numbers)

    def compact(self) -> None:
        compact(self.drive, dead_ratio=self.chance.choice([0.01, 0.3]))


def opened(path: Path, log: OperationLog, vfs: str) -> Drive:
    return reopen(
        path,
        RecordingDisk(log),
        volume_size=VOLUME_SIZE,
        direct_min=DIRECT_MIN,
        index_vfs=vfs,
    )


def check(drive: Drive, mark: Mark) -> set[int]:
    """Return what is on the drive: all that was acknowledged, each whole, and nothing else."""
    assert drive.report.damage == []
    assert drive.report.missing == 0
    check_sums(drive)
    found = everything(drive)
    numbers = {number_of(name) for name in found}
    assert numbers - mark.changing == mark.there - mark.changing
    for name, data in found.items():
        assert data == payload(number_of(name))
    return numbers


def number_of(name: FragmentId) -> int:
    return int.from_bytes(name[:16], "big")


def walk(seed: int, folder: Path) -> None:
    """Let a drive live ``LIVES`` times; between them its power fails, or its process is killed."""
    chance = random.Random(seed)
    here, there = folder / "a", folder / "b"
    shutil.rmtree(here, ignore_errors=True)
    new_drive(here / "drive", volume_size=VOLUME_SIZE, direct_min=DIRECT_MIN).close()
    mark = Mark(frozenset())
    for life in range(LIVES):
        log = OperationLog(here)
        vfs = RecordingVFS(f"walk-{seed}-{life}", log)
        drive = opened(here / "drive", log, f"walk-{seed}-{life}")
        try:
            log.mark(mark)  # while it is opened
            now = Life(drive, log, chance, check(drive, mark))
            now.run()
        finally:
            drive.close()
            vfs.unregister()
        crash_at = chance.randint(0, len(log.operations))
        log.materialize(crash_at, chance.randrange(1 << 30), there)
        marks = log.marked(crash_at)
        mark = marks[-1] if marks else mark  # type: ignore[assignment]
        if chance.random() < 0.2:
            lose_index(there / "drive")
        here, there = there, here
    drive = opened(here / "drive", OperationLog(here), "")
    try:
        check(drive, mark)
    finally:
        drive.close()


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder in memory, where that is possible."""
    with tempfile.TemporaryDirectory(dir="/dev/shm" if os.path.isdir("/dev/shm") else None) as name:
        yield Path(name)


def walk_all(seeds: range, folder: Path) -> None:
    for seed in seeds:
        try:
            walk(seed, folder)
        except BaseException as error:
            error.add_note(f"seed {seed}")
            raise


def test_what_was_acknowledged_outlives_one_crash_after_another(folder: Path) -> None:
    walk_all(range(WALKS), folder)


@pytest.mark.soak
def test_what_was_acknowledged_outlives_thousands_of_crashes(folder: Path) -> None:
    walk_all(range(WALKS, WALKS_SOAK), folder)
