"""``lode mount`` and ``lode serve --mount`` from the command line."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from benchmarks.rows import write_rows
from fs.kernel import abort
from tests.support.clients import s3_client
from tests.support.mounts import Mount, mounted, run
from tests.support.server import LODE, ROOT, clean_environment, lode, serving

STOP_S = 120.0


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """A store with a bucket and two objects in it."""
    with mounted(tmp_path / "store", tmp_path / "made"):
        pass
    write_rows(tmp_path / "store", "bucket", ["a/b", "c"], b"x")
    return tmp_path / "store"


@pytest.fixture
def target(tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "mnt"
    path.mkdir()
    yield path
    if os.path.ismount(path):
        subprocess.run(["umount", "-l", str(path)], check=False)


def server_of(target: Path) -> int:
    """Return the process that serves a mount: the one that names it on its command line."""
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit() and int(folder.name) != os.getpid():
            try:
                words = (folder / "cmdline").read_bytes().split(b"\0")
            except OSError:
                continue
            if os.fsencode(target) in words:
                return int(folder.name)
    raise AssertionError(f"nobody serves {target}")


def has_fuse(process: int) -> bool:
    """Say whether a process serves a mount."""
    for link in Path(f"/proc/{process}/fd").iterdir():
        with suppress(FileNotFoundError):  # closed meanwhile
            if os.readlink(link) == "/dev/fuse":
                return True
    return False


def wait_gone(descriptor: int) -> None:
    """Wait for a process, by its pidfd; it is no child of this one."""
    try:
        assert select.select([descriptor], [], [], STOP_S)[0], "it does not end"
    finally:
        os.close(descriptor)


@contextmanager
def in_foreground(*arguments: str) -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen(
        [*LODE, "mount", "--foreground", *arguments],
        stdout=subprocess.PIPE,
        text=True,
        env=clean_environment(),
        cwd=ROOT,
    ) as process:
        try:
            yield process
        finally:
            if process.poll() is None:
                process.terminate()


def test_in_the_background_it_returns_when_the_folder_can_be_used(
    store: Path, target: Path
) -> None:
    done = subprocess.run(
        [*LODE, "mount", "--data", str(store), "bucket", str(target)],
        stderr=subprocess.DEVNULL,
        env=clean_environment(),
        cwd=ROOT,
        timeout=STOP_S,
        check=False,
    )
    assert done.returncode == 0
    assert sorted(os.listdir(target)) == ["a", "c"]
    process = server_of(target)
    descriptor = os.pidfd_open(process)
    run("umount", str(target))
    wait_gone(descriptor)
    assert not os.path.ismount(target)


def test_in_the_foreground_it_says_ready_and_stops_on_a_signal(store: Path, target: Path) -> None:
    for number in (signal.SIGTERM, signal.SIGINT):
        with in_foreground("--data", str(store), "bucket/a", str(target)) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == f"ready mount={target}\n"
            assert os.listdir(target) == ["b"]
            process.send_signal(number)
            assert process.wait(STOP_S) == 0
        assert not os.path.ismount(target)


def test_options_reach_the_mount(store: Path, target: Path) -> None:
    options = ("--read-only", "--uid", "12", "--gid", "34", "--file-mode", "640", "--dir-mode")
    with in_foreground("--data", str(store), *options, "750", "/", str(target)) as process:
        assert process.stdout is not None
        process.stdout.readline()
        shown = (target / "bucket/c").stat()
        assert (shown.st_mode, shown.st_uid, shown.st_gid) == (0o100640, 12, 34)
        assert (target / "bucket/a").stat().st_mode == 0o40750
        with pytest.raises(OSError, match="Read-only"):
            (target / "bucket/new").touch()


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["nobucket", "TARGET"], "no bucket 'nobucket'"),
        (["bucket", "TARGET/missing"], "No such file"),
        (["bucket", "STORE/lode.json"], "is no folder"),
        (["", "TARGET"], "write BUCKET"),
        (["--file-mode", "9", "bucket", "TARGET"], "in octal"),
        (["--at", "noon", "bucket", "TARGET"], "2026-"),
        (["--cache-size", "10G", "bucket", "TARGET"], "cache-dir"),
        (["--cache-dir", "STORE/c", "--cache-size", "1M", "bucket", "TARGET"], "at least 64"),
        (["--cache-dir", "STORE/lode.json", "bucket", "TARGET"], "cache folder"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(
    store: Path, target: Path, arguments: list[str], complaint: str
) -> None:
    words = [word.replace("TARGET", str(target)).replace("STORE", str(store)) for word in arguments]
    done = lode("mount", "--data", str(store), *words)
    assert done.returncode == 2
    assert complaint in done.stderr
    assert done.stderr.count("\n") == 1
    assert not os.path.ismount(target)


def test_a_folder_is_mounted_once(store: Path, target: Path) -> None:
    with in_foreground("--data", str(store), "bucket", str(target)) as process:
        assert process.stdout is not None
        process.stdout.readline()
        done = lode("mount", "--data", str(store), "bucket", str(target))
        assert done.returncode == 2
        assert "mounted" in done.stderr


def test_a_cache_folder_serves_one_mount_at_a_time(
    store: Path, target: Path, tmp_path: Path
) -> None:
    cache = ("--cache-dir", str(tmp_path / "cache"), "--cache-size", "1G")
    other = tmp_path / "other"
    other.mkdir()
    with in_foreground("--data", str(store), *cache, "bucket", str(target)) as process:
        assert process.stdout is not None
        process.stdout.readline()
        done = lode("mount", "--data", str(store), *cache, "bucket", str(other))
        assert done.returncode == 2
        assert "in use by another mount" in done.stderr
        assert done.stderr.count("\n") == 1
        assert not os.path.ismount(other)


def test_a_store_that_is_not_there_is_not_made(tmp_path: Path, target: Path) -> None:
    done = lode("mount", "--data", str(tmp_path / "nothing"), "bucket", str(target))
    assert done.returncode == 2
    assert "no store" in done.stderr
    assert not (tmp_path / "nothing").exists()


def test_the_server_mounts_every_bucket_and_mounts_again_after_a_kill(
    store: Path, target: Path, tmp_path: Path
) -> None:
    cache = tmp_path / "cache"
    options = ["--mount", str(target), "--mount-cache-dir", str(cache)]
    options += ["--mount-cache-size", "1G", "--mount-memory", "64"]
    with serving(store, "--workers", "1", *options) as server:
        assert f"mount={target}" in server.ready
        assert cache.is_dir()
        assert (target / "bucket/c").read_bytes() == b"x"
        (mounting,) = [worker for worker in server.workers if has_fuse(worker)]
        os.kill(mounting, signal.SIGKILL)
        deadline = time.monotonic() + STOP_S
        while True:
            try:
                assert (target / "bucket/c").read_bytes() == b"x"
                break
            except OSError:
                assert time.monotonic() < deadline
        assert server.stop() == 0
    assert not os.path.ismount(target)


def test_the_server_goes_on_without_a_mount_that_somebody_unmounts(
    store: Path, target: Path
) -> None:
    with serving(store, "--workers", "1", "--mount", str(target)) as server:
        (mounting,) = [worker for worker in server.workers if has_fuse(worker)]
        descriptor = os.pidfd_open(mounting)
        run("umount", str(target))
        wait_gone(descriptor)
        deadline = time.monotonic() + STOP_S
        while not [
            entry for entry in server.log if "unmounted by somebody;" in str(entry["event"])
        ]:
            assert time.monotonic() < deadline
        s3 = s3_client(server)
        s3.put_object(Bucket="bucket", Key="new", Body=b"y")
        assert s3.get_object(Bucket="bucket", Key="new")["Body"].read() == b"y"
        s3.close()
        assert not [worker for worker in server.workers if has_fuse(worker)]
        assert not os.path.ismount(target)
        assert server.stop() == 0


def test_a_request_that_never_ends_does_not_keep_the_mount_from_ending(
    store: Path, tmp_path: Path
) -> None:
    with stuck_reader(store, tmp_path / "mnt") as (mount, reader):
        assert mount.stop() == 0
        assert reader.wait(STOP_S) != 0
        (said,) = [entry for entry in mount.troubles if "still run" in entry["event"]]
        assert said["running"] == {"open": 1}
    assert not os.path.ismount(tmp_path / "mnt")


def test_who_waits_in_the_kernel_is_set_free(store: Path, tmp_path: Path) -> None:
    with stuck_reader(store, tmp_path / "mnt") as (mount, reader):
        abort(mount.path)
        assert reader.wait(STOP_S) != 0
        assert mount.process.wait(STOP_S) == 0
    with pytest.raises(OSError, match="Invalid"):
        abort(tmp_path / "mnt")


@contextmanager
def stuck_reader(store: Path, path: Path) -> Iterator[tuple[Mount, subprocess.Popen[bytes]]]:
    """Mount, and let a program wait in the kernel for an answer that never comes."""
    with mounted(store, path, stuck=True) as mount:
        reader = subprocess.Popen(["cat", path / "c"], stderr=subprocess.DEVNULL)
        try:
            deadline = time.monotonic() + STOP_S
            while not [entry for entry in mount.log if entry["event"] == "stuck"]:
                assert time.monotonic() < deadline
            yield mount, reader
        finally:
            reader.kill()
            reader.wait()


def test_fstab_helper_translates_options(store: Path, target: Path) -> None:
    helper = ROOT / "contrib/mount.lode"
    shown = subprocess.run(
        ["sh", str(helper), "bucket", str(target), "-n", "-o", f"rw,noauto,data={store},uid=7,ro"],
        env={**clean_environment(), "LODE": "echo"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert shown.stdout.split() == [
        *("mount", "bucket", str(target), "--data", str(store), "--uid", "7", "--read-only"),
    ]
    wrong = subprocess.run(
        ["sh", str(helper), "bucket", str(target), "-o", "sparkle"],
        env={**clean_environment(), "LODE": "echo"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert wrong.returncode == 1
    assert "sparkle" in wrong.stderr
