"""Power fails at every step of writing, deleting and compacting; no acknowledged needle is lost."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from engine.ids import FragmentId
from engine.node.compaction import compact
from engine.node.drive import Drive
from tests.support.disk import OperationLog, RecordingDisk, RecordingVFS, UnsyncedDisk
from tests.support.drives import (
    check_sums,
    content,
    everything,
    fragment,
    get,
    lose_index,
    new_drive,
    pieces,
    put,
    reopen,
)

VOLUME_SIZE = 24 * 1024
DIRECT_MIN = 3_000
"""About half of the fragments go past the page cache."""
SIZES = [700, 5_000, 100, 0, 9_000, 2_000, 513, 8_192]


def payload(number: int) -> bytes:
    return content(number, SIZES[number % len(SIZES)])


class Scenario:
    """Uses a drive and notes what was acknowledged."""

    def __init__(self, drive: Drive, log: OperationLog) -> None:
        self.drive = drive
        self.log = log

    def put(self, number: int, size_max: int | None = None) -> None:
        put(self.drive, fragment(number), payload(number), size_max)
        self.log.mark(("put", number))

    def delete(self, *numbers: int) -> None:
        for number in numbers:
            self.log.mark(("deleting", number))
        self.drive.delete([fragment(number) for number in numbers])
        for number in numbers:
            self.log.mark(("deleted", number))

    def interleave(self, *numbers: int) -> None:
        """Several writers at once; the commits come in another order, one aborts."""
        writers = {n: self.drive.open_writer(fragment(n), 3_000) for n in numbers}
        for half in (0, 1):
            for number, writer in writers.items():
                data = payload(number)
                writer.write(pieces(data)[1:] if half else pieces(data)[:1])
        order = list(reversed(numbers))
        writers.pop(order[1]).abort()
        for number in order:
            if number in writers:
                writers[number].commit()
                self.log.mark(("put", number))

    def overtake(self, number: int, *others: int) -> None:
        """One writer is half done while others commit behind it, and sync."""
        data = payload(number)
        writer = self.drive.open_writer(fragment(number), len(data))
        writer.write([data[:4_000]])
        for other in others:
            self.put(other)
        writer.write([data[4_000:]])
        writer.commit()
        self.log.mark(("put", number))

    def run(self) -> None:
        self.overtake(12, 24, 25)
        for number in range(6):
            self.put(number)
        self.put(6, size_max=10_000)
        self.interleave(16, 10, 13)
        self.delete(1, 4)
        self.put(20)
        self.put(4)
        compact(self.drive, dead_ratio=0.2)
        self.put(21, size_max=5_000)
        self.delete(0, 16, 20)
        self.put(2)
        compact(self.drive, dead_ratio=0.1)
        self.put(22)


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder in memory, where that is possible: hundreds of crashes are written to it."""
    with tempfile.TemporaryDirectory(dir="/dev/shm" if os.path.isdir("/dev/shm") else None) as name:
        yield Path(name)


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> OperationLog:
    root = tmp_path_factory.mktemp("recorded")
    drive = new_drive(root / "drive", volume_size=VOLUME_SIZE, direct_min=DIRECT_MIN)
    drive.close()
    log = OperationLog(root)
    vfs = RecordingVFS("recorded-node", log)
    drive = reopen(
        root / "drive",
        RecordingDisk(log),
        volume_size=VOLUME_SIZE,
        direct_min=DIRECT_MIN,
        index_vfs="recorded-node",
    )
    Scenario(drive, log).run()
    drive.close()
    vfs.unregister()
    return log


def check(drive: Drive, marks: list[object]) -> None:
    kept: set[FragmentId] = set()
    gone: set[FragmentId] = set()
    for mark in marks:
        event, number = mark  # type: ignore[misc]
        name = fragment(number)
        kept.discard(name)
        gone.discard(name)
        if event == "put":
            kept.add(name)
        elif event == "deleted":
            gone.add(name)
    found = everything(drive)
    assert kept - set(found) == set()
    # One that is written again may be there before it is acknowledged.
    assert (gone - {fragment(4)}) & set(found) == set()
    for name, data in found.items():
        assert data == payload(int.from_bytes(name[:16], "big"))
    check_sums(drive)


def check_state(log: OperationLog, crash_at: int, seed: int, target: Path) -> None:
    log.materialize(crash_at, seed, target)
    marks = log.marked(crash_at)
    folder = target / "drive"
    drive = reopen(folder, volume_size=VOLUME_SIZE, direct_min=DIRECT_MIN)
    try:
        assert drive.report.damage == []
        assert drive.report.missing == 0
        check(drive, marks)
        put(drive, fragment(99), b"after")
        compact(drive, dead_ratio=0.01)
        assert get(drive, fragment(99)) == b"after"
        drive.delete([fragment(99)])
        check(drive, marks)
    finally:
        drive.close()
    lose_index(folder)
    drive = reopen(folder, volume_size=VOLUME_SIZE, direct_min=DIRECT_MIN)
    try:
        assert drive.report.damage == []
        check(drive, marks)
        assert get(drive, fragment(99)) is None
    finally:
        drive.close()


def test_nothing_acknowledged_is_lost_by_a_crash_at_any_step(
    recorded: OperationLog, folder: Path
) -> None:
    assert len(recorded.operations) > 200
    for crash_at, seed in recorded.states(seeds=6):
        try:
            check_state(recorded, crash_at, seed, folder / "crashed")
        except BaseException as error:
            error.add_note(f"crash after operation {crash_at}, seed {seed}")
            raise


def test_kill_without_power_loss_loses_nothing_at_any_step(
    recorded: OperationLog, folder: Path
) -> None:
    for crash_at, _ in recorded.states(step=3):
        try:
            check_state(recorded, crash_at, 7, folder / "killed")
        except BaseException as error:
            error.add_note(f"killed after operation {crash_at}")
            raise


def test_index_lost_in_the_crash_is_built_again(recorded: OperationLog, folder: Path) -> None:
    for crash_at, seed in recorded.states(step=5):
        recorded.materialize(crash_at, seed, folder / "crashed")
        lose_index(folder / "crashed" / "drive")
        drive = reopen(folder / "crashed" / "drive", volume_size=VOLUME_SIZE, direct_min=DIRECT_MIN)
        try:
            assert drive.report.rebuilt == bool(drive.index.volumes())
            check(drive, recorded.marked(crash_at))
        except BaseException as error:
            error.add_note(f"crash after operation {crash_at}, seed {seed}")
            raise
        finally:
            drive.close()


def test_crash_during_recovery_is_recovered_from(recorded: OperationLog, folder: Path) -> None:
    total = len(recorded.operations)
    for crash_at in range(total // 4, total, total // 12):
        first = folder / "first"
        recorded.materialize(crash_at, crash_at, first)
        log = OperationLog(first)
        vfs = RecordingVFS("recorded-again", log)
        drive = reopen(
            first / "drive",
            RecordingDisk(log),
            volume_size=VOLUME_SIZE,
            direct_min=DIRECT_MIN,
            index_vfs="recorded-again",
        )
        drive.close()
        vfs.unregister()
        for again, seed in log.states(step=2):
            log.materialize(again, seed, folder / "second")
            drive = reopen(
                folder / "second" / "drive",
                UnsyncedDisk(),
                volume_size=VOLUME_SIZE,
                direct_min=DIRECT_MIN,
            )
            try:
                check(drive, recorded.marked(crash_at))
                assert drive.report.damage == []
            except BaseException as error:
                error.add_note(f"crash after {crash_at}, again after {again}, seed {seed}")
                raise
            finally:
                drive.close()
        shutil.rmtree(first)
