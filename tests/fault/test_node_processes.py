"""Several processes use one drive at once and are killed in the middle."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from engine.node.compaction import compact
from engine.node.disk import RealDisk
from tests.support.drives import content, everything, fragment, lose_index, new_drive, reopen

ROOT = Path(__file__).parents[2]
SIZE = 6_000
WORKER = """
import sys
from pathlib import Path
from engine.node.compaction import compact
from engine.node.disk import RealDisk
from tests.support.drives import content, fragment, put, reopen
path, first = Path(sys.argv[1]), int(sys.argv[2])
drive = reopen(path, RealDisk(), volume_size=200_000)
for number in range(first, first + 100_000):
    put(drive, fragment(number), content(number, 6_000), size_max=10_000)
    print("put", number, flush=True)
    if number % 3 == 0:
        drive.delete([fragment(number)])
        print("deleted", number, flush=True)
    if number % 40 == 39:
        compact(drive, dead_ratio=0.2)
"""


def start(path: Path, first: int) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", WORKER, str(path), str(first)],
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )


def test_killed_processes_lose_nothing_that_they_acknowledged(tmp_path: Path) -> None:
    drive = new_drive(tmp_path, RealDisk())
    drive.close()
    put: set[int] = set()
    deleted: set[int] = set()
    for turn in range(3):
        workers = [start(tmp_path, (turn * 10 + worker) * 1_000_000) for worker in range(2)]
        try:
            for lines, worker in zip((60 + turn * 17, 110), workers, strict=True):
                assert worker.stdout is not None
                for _ in range(lines):
                    note(worker.stdout.readline(), put, deleted)
        finally:
            for worker in workers:
                worker.kill()
        for worker in workers:
            assert worker.stdout is not None
            for line in worker.stdout:
                note(line, put, deleted)
            worker.wait()
            worker.stdout.close()
        check(tmp_path, put, deleted)
    lose_index(tmp_path)
    check(tmp_path, put, deleted)


def note(line: str, put: set[int], deleted: set[int]) -> None:
    if line.endswith("\n"):
        event, number = line.split()
        (put if event == "put" else deleted).add(int(number))


def check(path: Path, put: set[int], deleted: set[int]) -> None:
    drive = reopen(path, RealDisk(), volume_size=200_000)
    try:
        assert drive.report.damage == []
        assert drive.report.missing == 0
        compact(drive, dead_ratio=0.1)
        found = everything(drive)
    finally:
        drive.close()
    # A delete may have happened without its acknowledgement having been read.
    assert {fragment(n) for n in put - deleted if n % 3} - set(found) == set()
    assert {fragment(n) for n in deleted} & set(found) == set()
    for name, data in found.items():
        assert data == content(int.from_bytes(name[:16], "big"), SIZE)
