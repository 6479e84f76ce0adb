"""The file systems that are measured: ours and the yardsticks, each mounted when it is its turn.

Every one of them is a process that we started, in the foreground, and is unmounted and ended when
its context is left. All read the same objects: ours from the store's folder, rclone and s3fs from
a ``lode serve`` on that store.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path

import msgspec

from benchmarks.measure import BenchmarkFailed
from benchmarks.servers import ROOT, START_S_MAX, STOP_S_MAX, Lode

READ_AHEAD_KB = 4096
"""What ``lode mount`` asks of the kernel; the null file system gets the same."""

SLOW_S = 0.005


class Mounted(msgspec.Struct, frozen=True):
    """A file system under measurement."""

    name: str
    path: Path
    pid: int


Open = Callable[[str], AbstractContextManager[Mounted]]
"""Mounts a bucket, with nothing in any cache of the mount."""


class Systems(msgspec.Struct, frozen=True):
    """What can be mounted, by the name in the report; ``null`` shows one file, whatever bucket."""

    server: Lode
    open: dict[str, Open]
    folder: Path
    file_size: int


def require(*programs: str) -> None:
    """Raises: BenchmarkFailed: says what to install."""
    missing = [name for name in programs if shutil.which(name) is None]
    if missing:
        raise BenchmarkFailed(f"not installed: apt-get install {' '.join(missing)}")
    if not os.access("/dev/fuse", os.R_OK | os.W_OK):
        raise BenchmarkFailed("no access to /dev/fuse")


def systems(server: Lode, folder: Path, *, file_size: int) -> Systems:
    """Return everything that can be mounted below ``folder``."""
    (folder / "mnt").mkdir()
    lode = [sys.executable, "-m", "cli.main", "mount", "--foreground", "--log-level", "error"]
    lode += ["--data", str(server.data)]
    null = [sys.executable, str(ROOT / "benchmarks/mount_null.py"), str(file_size)]
    slow = [sys.executable, "-m", "benchmarks.mount_slow", str(server.data)]
    run = partial(_run, folder)
    return Systems(
        server=server,
        open={
            "lode": lambda bucket: run("lode", [*lode, bucket]),
            "slow": lambda bucket: run("slow", [*slow, bucket], after=(str(SLOW_S),)),
            "cached": lambda bucket: run(
                "cached", [*slow, bucket], after=(str(SLOW_S), str(folder / "cache"))
            ),
            "null": lambda bucket: run("null", null, read_ahead=True),
            "rclone": lambda bucket: run(
                "rclone",
                # The listed objects' ETags are made up, so rclone must not compare them.
                ["rclone", "mount", "--read-only", "--no-checksum", f"lode:{bucket}"],
                environment=_rclone_environment(server, folder),
            ),
            "s3fs": lambda bucket: run(
                "s3fs", ["s3fs", bucket], after=("-f", "-o", _s3fs_options(server, folder))
            ),
        },
        folder=folder,
        file_size=file_size,
    )


def _rclone_environment(server: Lode, folder: Path) -> dict[str, str]:
    credential = server.endpoint.credential
    assert credential is not None
    config = folder / "rclone.conf"
    config.touch()
    return {
        "RCLONE_CONFIG": str(config),
        "RCLONE_CONFIG_LODE_TYPE": "s3",
        "RCLONE_CONFIG_LODE_PROVIDER": "Other",
        "RCLONE_CONFIG_LODE_ENDPOINT": f"http://{server.endpoint.authority}",
        "RCLONE_CONFIG_LODE_ACCESS_KEY_ID": credential.access_key,
        "RCLONE_CONFIG_LODE_SECRET_ACCESS_KEY": credential.secret_key,
        "RCLONE_CONFIG_LODE_REGION": "us-east-1",
    }


def _s3fs_options(server: Lode, folder: Path) -> str:
    credential = server.endpoint.credential
    assert credential is not None
    passwords = folder / "passwd-s3fs"
    passwords.touch(mode=0o600)
    passwords.write_text(f"{credential.access_key}:{credential.secret_key}")
    url = f"http://{server.endpoint.authority}"
    return f"ro,url={url},use_path_request_style,passwd_file={passwords},stat_cache_expire=300"


@contextlib.contextmanager
def _run(
    folder: Path,
    name: str,
    command: list[str],
    *,
    after: tuple[str, ...] = (),
    environment: Mapping[str, str] | None = None,
    read_ahead: bool = False,
) -> Iterator[Mounted]:
    """Run ``command DIR after...`` until the context is left.

    Raises: BenchmarkFailed: it did not mount; with the end of what it said.
    """
    path = folder / "mnt" / name
    path.mkdir(exist_ok=True)
    log = folder / f"{name}.log"
    with log.open("wb") as said:
        process = subprocess.Popen(
            [*command, str(path), *after],
            cwd=folder,
            env={**_clean_environment(), **(environment or {})},
            stdout=said,
            stderr=said,
        )
    try:
        _wait_until_usable(name, path, process, log)
        if read_ahead:
            _raise_read_ahead(path)
        yield Mounted(name, path, process.pid)
    finally:
        _end(path, process)


def _clean_environment() -> dict[str, str]:
    """Return this process's environment without what tells S3 clients other things than we do."""
    foreign = ("AWS_", "RCLONE_", "LODE_")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(foreign)}
    return {**kept, "PYTHONPATH": str(ROOT)}


def _wait_until_usable(name: str, path: Path, process: subprocess.Popen[bytes], log: Path) -> None:
    ends_at = time.monotonic() + START_S_MAX
    # Asking the file system itself proves that somebody answers.
    while not (os.path.ismount(path) and _answers(path)):
        if process.poll() is not None or time.monotonic() > ends_at:
            end = log.read_text(errors="replace")[-600:]
            raise BenchmarkFailed(f"{name} did not mount: {end}")
        time.sleep(0.02)
    if name in ("lode", "slow", "cached"):
        while b"ready" not in log.read_bytes():
            time.sleep(0.02)


def _answers(path: Path) -> bool:
    try:
        os.statvfs(path)
    except OSError as error:
        # The null file system does not know the call.
        return error.errno == errno.ENOSYS
    return True


def _raise_read_ahead(path: Path) -> None:
    device = path.stat().st_dev
    setting = Path(f"/sys/class/bdi/{os.major(device)}:{os.minor(device)}/read_ahead_kb")
    setting.write_text(f"{READ_AHEAD_KB}\n")


def _end(path: Path, process: subprocess.Popen[bytes]) -> None:
    """Unmount, so that the process ends by itself; by force if that takes too long."""
    subprocess.run(["umount", str(path)], capture_output=True, check=False)
    try:
        process.wait(STOP_S_MAX)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    if os.path.ismount(path) or not os.access(path, os.F_OK):
        subprocess.run(["umount", "-l", str(path)], capture_output=True, check=False)
