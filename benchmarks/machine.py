"""What the figures were measured on: the machine, the versions, and what the disk itself can do."""

from __future__ import annotations

import contextlib
import importlib.metadata
import mmap
import os
import platform
import shutil
import statistics
import subprocess
import time
from pathlib import Path

import msgspec

from benchmarks.measure import MIB

SMALL_WRITE = 4096
SMALL_S = 1.0
PACKAGES = ("apsw", "awscrt", "blake3", "httptools", "msgspec", "pyeclib", "trio")


class Disk(msgspec.Struct, frozen=True):
    """Of the folder that the benchmark uses."""

    syncs_per_second: float
    """Appends of 4 KiB, each with fdatasync, by one thread."""
    write_mib_per_second: float
    """1 MiB writes and one fdatasync at the end."""
    wrote_mib: int


class Machine(msgspec.Struct, frozen=True):
    cpu: str
    cores: int
    memory_mib: int
    kernel: str
    python: str
    filesystem: str
    load_before: float
    """1 minute load average before the run: above 0 means that others use the machine."""
    commit: str
    versions: dict[str, str]


def measure_disk(folder: Path, *, wrote_mib: int = 1024) -> Disk:
    """Measure what the disk gives without us; takes a few seconds and ``wrote_mib`` of room."""
    path = folder / "disk-probe"
    descriptor = os.open(path, os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o600)
    try:
        block = os.urandom(SMALL_WRITE)
        times = []
        ends_at = time.monotonic() + SMALL_S
        while (started := time.monotonic()) < ends_at:
            os.write(descriptor, block)
            os.fdatasync(descriptor)
            times.append(time.monotonic() - started)
        block = os.urandom(MIB)
        started = time.monotonic()
        for _ in range(wrote_mib):
            os.write(descriptor, block)
        os.fdatasync(descriptor)
        elapsed = time.monotonic() - started
    finally:
        os.close(descriptor)
        path.unlink()
    return Disk(1 / statistics.mean(times), wrote_mib / elapsed, wrote_mib)


def write_rate(folder: Path, size: int) -> float:
    """Return the bytes per second at which one file of ``size`` bytes is written: 1 MiB at a time,
    then one fdatasync, which counts."""
    path = folder / "disk-probe"
    block = memoryview(os.urandom(MIB))
    descriptor = os.open(path, os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o600)
    try:
        started = time.monotonic()
        for done in range(0, size, MIB):
            os.write(descriptor, block[: size - done])
        os.fdatasync(descriptor)
        return size / (time.monotonic() - started)
    finally:
        os.close(descriptor)
        path.unlink()


def repair_io_rate(folder: Path, size: int, reads: int) -> float:
    """Return ``size`` by the seconds that one thread takes to read ``reads`` times as much and to
    write it, 1 MiB at a time, all past the page cache, and one fdatasync at the end.

    It takes ``(reads + 1) * size`` bytes of room.
    """
    block = mmap.mmap(-1, MIB)  # pages, as O_DIRECT wants them
    block.write(os.urandom(MIB))
    size = size // MIB * MIB
    source, target = folder / "disk-probe-source", folder / "disk-probe"
    flags = os.O_CREAT | os.O_TRUNC | os.O_DIRECT | os.O_RDWR
    reading, writing = os.open(source, flags, 0o600), os.open(target, flags, 0o600)
    try:
        for _ in range(0, reads * size, MIB):
            os.write(reading, block)
        os.fdatasync(reading)
        started = time.monotonic()
        for done in range(0, size, MIB):
            for part in range(reads):
                os.preadv(reading, [block], done * reads + part * MIB)
            os.write(writing, block)
        os.fdatasync(writing)
        return size / (time.monotonic() - started)
    finally:
        for descriptor, path in ((reading, source), (writing, target)):
            os.close(descriptor)
            path.unlink()


def forget_pages(folder: Path) -> None:
    """Let the files below the folder leave the page cache, so that reads meet the disk."""
    for path in folder.rglob("*"):
        if path.is_file():
            descriptor = os.open(path, os.O_RDONLY)
            try:
                os.fdatasync(descriptor)
                os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            finally:
                os.close(descriptor)


def _output(*command: str) -> str:
    """Return what a command prints first, or an empty text when it cannot run."""
    if shutil.which(command[0]) is None:
        return ""
    done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    return (done.stdout.strip() or done.stderr.strip()).split("\n", 1)[0]


def _first_field(path: str, name: str) -> str:
    for line in Path(path).read_text().splitlines():
        if line.startswith(name):
            return line.split(":", 1)[1].strip()
    return ""


def filesystem_of(folder: Path) -> str:
    """Return the type of the file system, from the longest mount point that holds the folder."""
    best, kind = "", ""
    for line in Path("/proc/mounts").read_text().splitlines():
        _, point, type_, *_ = line.split(" ")
        if folder.is_relative_to(point) and len(point) >= len(best):
            best, kind = point, type_
    return kind


def describe(folder: Path) -> Machine:
    root = Path(__file__).resolve().parents[1]
    commit = _output("git", "-C", str(root), "rev-parse", "HEAD")
    if _output("git", "-C", str(root), "status", "--porcelain", "-uno"):
        commit += " (changed)"
    versions = {name: importlib.metadata.version(name) for name in PACKAGES}
    versions["nginx"] = _output("/usr/sbin/nginx", "-v").rpartition("/")[2]
    versions["wrk"] = _output("wrk", "-v").partition(" [")[0].removeprefix("wrk ")
    return Machine(
        cpu=_first_field("/proc/cpuinfo", "model name"),
        cores=len(os.sched_getaffinity(0)),
        memory_mib=int(_first_field("/proc/meminfo", "MemTotal").split()[0]) // 1024,
        kernel=platform.release(),
        python=platform.python_version(),
        filesystem=filesystem_of(folder.resolve()),
        load_before=os.getloadavg()[0],
        commit=commit,
        versions=versions,
    )


def process_tree(pid: int) -> list[int]:
    """Return the process and those that it started itself."""
    children = ""
    # A child belongs to the thread that started it, and trio starts processes from threads.
    for path in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            children += path.read_text()
    return [pid, *map(int, children.split())]


def cpu_seconds(pids: tuple[int, ...]) -> float:
    """Return the CPU time that processes and their children have used so far."""
    ticks = 0
    for root in pids:
        for pid in process_tree(root):
            # The name in parentheses may itself have spaces (proc(5)).
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def peak_memory_mib(pid: int) -> float:
    """Return the most resident memory that a process has had (VmHWM)."""
    return int(_first_field(f"/proc/{pid}/status", "VmHWM").split()[0]) / 1024
