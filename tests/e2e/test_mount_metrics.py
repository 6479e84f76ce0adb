"""``--metrics`` of a mount: what Prometheus sees of it."""

from __future__ import annotations

import os
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from engine.engine import Engine
from tests.support.engine import pattern, put
from tests.support.mounts import ask, prepare
from tests.support.server import LODE, ROOT, clean_environment, lode, serving

WAIT_S = 120.0
MIB = 1 << 20


class Figures:
    """What a /metrics page says."""

    def __init__(self, text: str) -> None:
        self.families = {family.name: family for family in text_string_to_metric_families(text)}

    def __call__(self, name: str, **labels: str) -> float:
        """Add up all samples of that name that have these labels."""
        return sum(
            sample.value
            for family in self.families.values()
            for sample in family.samples
            if sample.name == name and labels.items() <= sample.labels.items()
        )


def fetch(url: str) -> Figures:
    with urllib.request.urlopen(url + "/metrics", timeout=WAIT_S) as answer:
        return Figures(answer.read().decode())


def until(url: str, holds: Callable[[Figures], bool]) -> None:
    deadline = time.monotonic() + WAIT_S
    while not holds(fetch(url)):
        assert time.monotonic() < deadline


@contextmanager
def mounted(data: Path, target: Path, *options: str) -> Iterator[str]:
    """Mount a bucket in the foreground and yield the URL of the figures."""
    command = [*LODE, "mount", "--foreground", "--metrics", "127.0.0.1:0", "--data", str(data)]
    target.mkdir(exist_ok=True)
    with subprocess.Popen(
        [*command, *options, "bucket", str(target)],
        stdout=subprocess.PIPE,
        text=True,
        env=clean_environment(),
        cwd=ROOT,
    ) as process:
        try:
            assert process.stdout is not None
            words = process.stdout.readline().split()
            assert words[:2] == ["ready", f"mount={target}"]
            yield words[2].removeprefix("metrics=")
            process.terminate()
            assert process.wait(WAIT_S) == 0
        finally:
            if process.poll() is None:
                process.kill()
            subprocess.run(["umount", "-l", str(target)], check=False, capture_output=True)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    prepare(tmp_path / "store")
    return tmp_path / "store"


def store(data: Path, key: str, content: bytes) -> None:
    async def question(engine: Engine) -> None:
        await put(engine, "bucket", key, content)

    ask(data, question)


def test_requests_are_counted_by_name_and_errno_and_timed(data: Path, tmp_path: Path) -> None:
    target = tmp_path / "mnt"
    with mounted(data, target) as url:
        os.mkdir(target / "made")
        for _ in range(3):
            with pytest.raises(FileExistsError):
                # The kernel would answer for a name that it knows.
                os.open(target / "made", os.O_CREAT | os.O_EXCL)
        with pytest.raises(PermissionError):
            os.mkfifo(target / "pipe")
        figures = fetch(url)
        assert figures("lode_mount_requests_total", request="mkdir", errno="ok") == 1
        assert figures("lode_mount_requests_total", request="mknod", errno="EPERM") == 1
        assert figures("lode_mount_request_seconds_count", request="mkdir") == 1
        assert 0 < figures("lode_mount_request_seconds_sum", request="mkdir") < WAIT_S
        assert figures("lode_mount_inodes") >= 1
        assert figures("lode_mount_feed_followed") == 1


def test_bytes_handles_and_what_is_staged_are_shown(data: Path, tmp_path: Path) -> None:
    target = tmp_path / "mnt"
    with mounted(data, target) as url:
        descriptor = os.open(target / "file", os.O_WRONLY | os.O_CREAT)
        os.write(descriptor, bytes(100_000))
        figures = fetch(url)
        assert figures("lode_mount_bytes_total", direction="write") == 100_000
        assert figures("lode_mount_staged_bytes") == 100_000
        assert figures("lode_mount_unsaved_files") == 1
        assert figures("lode_mount_open_handles", kind="file") == 1
        os.close(descriptor)
        until(url, lambda now: now("lode_mount_open_handles", kind="file") == 0)
        assert fetch(url)("lode_mount_staged_bytes") == 0
        assert fetch(url)("lode_mount_unsaved_files") == 0
        store(data, "other", pattern(MIB))
        assert (target / "other").read_bytes() == pattern(MIB)
        assert fetch(url)("lode_mount_bytes_total", direction="read") >= MIB
        with os.scandir(target):
            pass
        until(url, lambda now: now("lode_mount_open_handles", kind="directory") == 0)


def test_caches_and_invalidations_are_counted(data: Path, tmp_path: Path) -> None:
    target, cache = tmp_path / "mnt", tmp_path / "cache"
    content = pattern(3 * MIB)
    store(data, "file", content)
    with mounted(data, target, "--cache-dir", str(cache)) as url:
        with (target / "file").open("rb", buffering=0) as file:
            for offset in (2 * MIB, 2 * MIB + 8192, MIB):
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_RANDOM)
                assert os.pread(file.fileno(), 4096, offset) == content[offset : offset + 4096]
        figures = fetch(url)
        assert figures("lode_mount_cache_blocks_total", cache="memory", result="miss") == 2
        assert figures("lode_mount_cache_blocks_total", cache="memory", result="hit") == 1
        assert figures("lode_mount_cache_bytes", cache="memory") == 512 << 10
        # The drives are near and quick: the disk cache was not even asked.
        assert figures("lode_mount_cache_blocks_total", cache="disk") == 0
        assert figures("lode_mount_disk_cache_events_total") == 0
        before = figures("lode_mount_invalidations_total")
        store(data, "file", b"new")
        until(url, lambda now: now("lode_mount_invalidations_total") > before)
        assert (target / "file").read_bytes() == b"new"


def test_only_metrics_are_there(data: Path, tmp_path: Path) -> None:
    with mounted(data, tmp_path / "mnt") as url:
        for path, status in (("/", 404), ("/metrics/x", 404)):
            with pytest.raises(urllib.error.HTTPError) as caught:
                urllib.request.urlopen(url + path, timeout=WAIT_S)
            assert caught.value.code == status
            caught.value.close()
        address = url.removeprefix("http://")
        (tmp_path / "other").mkdir()
        done = lode(
            *("mount", "--data", str(data), "--metrics", address, "bucket"),
            str(tmp_path / "other"),
        )
        assert done.returncode == 2
        assert "--metrics" in done.stderr
        assert done.stderr.count("\n") == 1


def test_a_mount_under_the_server_is_seen_in_the_servers_figures(
    data: Path, tmp_path: Path
) -> None:
    target = tmp_path / "mnt"
    target.mkdir()
    with serving(
        data, "--workers", "1", "--mount", str(target), "--metrics", "127.0.0.1:0"
    ) as server:
        assert os.listdir(target) == ["bucket"]
        url = server.metrics_url
        until(url, lambda now: now("lode_mount_requests_total", request="readdir") >= 1)
        assert server.stop() == 0
