"""The options of ``lode mount``, from the command line to what they do."""

from __future__ import annotations

import os
import re
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import pytest

from engine.engine import Engine
from tests.support.engine import pattern, put
from tests.support.mounts import ask, prepare
from tests.support.server import LODE, ROOT, clean_environment, lode

WAIT_S = 60.0
MIB = 1 << 20
NOBODY = 65534


@contextmanager
def mounting(data: Path, target: Path, *options: str) -> Iterator[subprocess.Popen[str]]:
    """Mount the bucket in the foreground while the block runs."""
    target.mkdir()
    command = [*LODE, "mount", "--foreground", "--data", str(data), *options, "bucket", str(target)]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, env=clean_environment(), cwd=ROOT
    ) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline().startswith("ready ")
            yield process
            process.terminate()
            assert process.wait(WAIT_S) == 0
        finally:
            if process.poll() is None:
                process.kill()
            subprocess.run(["umount", "-l", str(target)], check=False, capture_output=True)


def store(data: Path, key: str, content: bytes) -> None:
    async def question(engine: Engine) -> None:
        await put(engine, "bucket", key, content)

    ask(data, question)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    prepare(tmp_path / "store", versioning=True)
    return tmp_path / "store"


def test_other_users_are_let_in_only_when_asked_for(data: Path, tmp_path: Path) -> None:
    store(data, "file", b"content")
    for folder in (tmp_path, *tmp_path.parents):
        if folder.owner() == "root" and str(folder).startswith("/tmp/"):
            folder.chmod(folder.stat().st_mode | 0o055)

    def as_nobody(target: Path) -> subprocess.CompletedProcess[bytes]:
        return subprocess.run(
            ["cat", target / "file"],
            user=NOBODY,
            group=NOBODY,
            extra_groups=[],
            capture_output=True,
            check=False,
        )

    with mounting(data, tmp_path / "closed"):
        refused = as_nobody(tmp_path / "closed")
        assert b"Permission denied" in refused.stderr
    with mounting(data, tmp_path / "open", "--allow-other", "--file-mode", "640"):
        # The kernel checks modes.
        assert b"Permission denied" in as_nobody(tmp_path / "open").stderr
        (tmp_path / "open/file").chmod(0o644)
        assert as_nobody(tmp_path / "open").stdout == b"content"


def test_attributes_show_only_when_asked_for(data: Path, tmp_path: Path) -> None:
    store(data, "file", b"content")
    with mounting(data, tmp_path / "plain"), pytest.raises(OSError, match="not supported"):
        os.getxattr(tmp_path / "plain/file", "user.s3.etag")
    with mounting(data, tmp_path / "rich", "--xattr"):
        assert len(os.getxattr(tmp_path / "rich/file", "user.s3.etag")) == 32


def test_the_past_is_mounted_read_only(data: Path, tmp_path: Path) -> None:
    store(data, "file", b"old")
    # Moments are told to the millisecond.
    time.sleep(0.002)
    moment = datetime.now(UTC).isoformat(timespec="milliseconds")
    time.sleep(0.002)
    store(data, "file", b"new")
    store(data, "later", b"x")
    with mounting(data, tmp_path / "past", "--at", moment):
        assert os.listdir(tmp_path / "past") == ["file"]
        assert (tmp_path / "past/file").read_bytes() == b"old"
        with pytest.raises(OSError, match="Read-only"):
            (tmp_path / "past/file").write_bytes(b"x")


def test_what_is_not_committed_waits_in_the_staging_folder(data: Path, tmp_path: Path) -> None:
    staging = tmp_path / "elsewhere"
    with mounting(data, tmp_path / "mnt", "--staging", str(staging)):
        descriptor = os.open(tmp_path / "mnt/file", os.O_WRONLY | os.O_CREAT)
        os.write(descriptor, b"mine")
        store(data, "file", b"theirs")
        with pytest.raises(OSError, match="Stale"):
            os.close(descriptor)
        (kept,) = (staging / "recovery").iterdir()
        assert kept.read_bytes() == b"mine"
    assert not (data / "staging").exists()


def test_readers_stay_within_the_memory_that_they_are_given(data: Path, tmp_path: Path) -> None:
    content = pattern(24 * MIB)
    for number in range(6):
        store(data, str(number), content)

    def peak(process: subprocess.Popen[str]) -> int:
        status = Path(f"/proc/{process.pid}/status").read_text().splitlines()
        (line,) = [line for line in status if line.startswith("VmHWM:")]
        return int(line.split()[1]) * 1024

    with mounting(data, tmp_path / "mnt", "--memory", "32") as process:
        (tmp_path / "mnt/0").read_bytes()[:1]
        before = peak(process)
        with ThreadPoolExecutor(6) as readers:
            paths = [tmp_path / "mnt" / str(number) for number in range(6)]
            assert all(read == content for read in readers.map(Path.read_bytes, paths))
        # Requests and answers have buffers of their own, 1 MiB for each that is under way.
        assert peak(process) - before < (32 + 40) * MIB


@pytest.mark.parametrize(
    ("option", "value"),
    [("--memory", "15"), ("--uid", "-1"), ("--dir-mode", "77777"), ("--metrics", "nowhere")],
)
def test_values_that_cannot_be_are_refused(
    data: Path, tmp_path: Path, option: str, value: str
) -> None:
    done = lode("mount", "--data", str(data), option, value, "bucket", str(tmp_path))
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1


def test_the_fstab_helper_knows_every_option(tmp_path: Path) -> None:
    """But for those that make no sense there."""
    shown = lode("mount", "--help").stdout
    options = {word.strip("│,") for word in shown.split() if word.startswith("--")}
    words = re.split(r"[\s|)]+", (ROOT / "contrib/mount.lode").read_text())
    known = {f"--{word}" for word in words}
    assert options - known == {"--foreground", "--help"}
