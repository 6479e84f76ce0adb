"""What is done with a mounted file system, and how long it takes: plain programs and fio."""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path

import msgspec

from benchmarks.machine import cpu_seconds
from benchmarks.measure import KIB, MIB, BenchmarkFailed
from benchmarks.mount_systems import Mounted

STEP = 1 * MIB
PROGRAM_S_MAX = 600.0


class Run(msgspec.Struct, frozen=True):
    """One run of one load."""

    value: float
    """In the figure's unit."""
    cpu_s: float
    """CPU time of the file system's process; not of the server that it asks."""


def drop_pages(path: Path) -> None:
    """Let the kernel forget the file's pages; they are clean."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(descriptor)


def read_file(mounted: Mounted, size: int) -> Run:
    """Read ``file`` from its beginning to its end, 1 MiB at a time; MiB/s.

    Raises: BenchmarkFailed: it had another size.
    """
    buffer = bytearray(STEP)
    cpu_before = cpu_seconds((mounted.pid,))
    started = time.monotonic()
    count = 0
    with (mounted.path / "file").open("rb", buffering=0) as file:
        while got := file.readinto(buffer):
            count += got
    seconds = time.monotonic() - started
    if count != size:
        raise BenchmarkFailed(f"{mounted.name}: {count} bytes of {size}")
    return Run(size / MIB / seconds, cpu_seconds((mounted.pid,)) - cpu_before)


class _Side(msgspec.Struct):
    iops: float
    total_ios: int


class _Job(msgspec.Struct):
    read: _Side
    error: int


class _Answer(msgspec.Struct):
    jobs: list[_Job]


def random_reads(mounted: Mounted, size: int, *, seconds: int, readers: int = 1) -> Run:
    """Read 4 KiB at random places of the first ``size`` bytes of ``file`` with O_DIRECT, so that
    each is asked of the file system; reads/s. Raises: BenchmarkFailed."""
    command = ["fio", "--name=random", f"--filename={mounted.path / 'file'}", f"--size={size}"]
    command += ["--rw=randread", f"--bs={4 * KIB}", "--direct=1", "--ioengine=psync"]
    command += ["--norandommap", "--randrepeat=0", f"--numjobs={readers}", "--group_reporting"]
    command += ["--time_based", f"--runtime={seconds}", "--thread", "--output-format=json"]
    cpu_before = cpu_seconds((mounted.pid,))
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=PROGRAM_S_MAX
    )
    cpu_s = cpu_seconds((mounted.pid,)) - cpu_before
    if done.returncode:
        raise BenchmarkFailed(f"fio on {mounted.name}: {done.stderr.strip()[-300:]}")
    begin = done.stdout.index("{")
    [job] = msgspec.json.decode(done.stdout[begin:], type=_Answer).jobs
    if job.error:
        raise BenchmarkFailed(f"fio on {mounted.name}: errno {job.error}")
    return Run(job.read.iops, cpu_s)


def timed(mounted: Mounted, script: str, *, lines: int) -> Run:
    """Run a shell script in the mounted folder that prints so many lines; seconds.

    Raises: BenchmarkFailed: it failed, took too long or printed another number.
    """
    cpu_before = cpu_seconds((mounted.pid,))
    started = time.monotonic()
    try:
        done = subprocess.run(
            ["bash", "-c", f"set -o pipefail; {script} | wc -l"],
            cwd=mounted.path,
            env={**os.environ, "LC_ALL": "C"},
            capture_output=True,
            text=True,
            check=False,
            timeout=PROGRAM_S_MAX,
        )
    except subprocess.TimeoutExpired:
        raise BenchmarkFailed(f"{mounted.name}: {script}: over {PROGRAM_S_MAX:.0f} s") from None
    seconds = time.monotonic() - started
    if done.returncode or int(done.stdout) != lines:
        said = (done.stderr or done.stdout).strip()[-300:]
        raise BenchmarkFailed(f"{mounted.name}: {script}: {said}")
    return Run(seconds, cpu_seconds((mounted.pid,)) - cpu_before)
