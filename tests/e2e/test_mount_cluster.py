"""A mount whose drives are those of other processes, as on a worker of a cluster."""

from __future__ import annotations

import os
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

from tests.support.clients import s3_client
from tests.support.daemons import daemons
from tests.support.engine import pattern
from tests.support.server import LODE, ROOT, clean_environment

WAIT_S = 60.0
MIB = 1 << 20


@contextmanager
def mounting(data: Path, target: Path, *options: str) -> Iterator[str]:
    """Mount the bucket ``box`` and yield the address of its figures."""
    target.mkdir(exist_ok=True)
    command = [*LODE, "mount", "--foreground", "--metrics", "127.0.0.1:0", "--data", str(data)]
    with subprocess.Popen(
        [*command, *options, "box", str(target)],
        stdout=subprocess.PIPE,
        text=True,
        env=clean_environment(),
        cwd=ROOT,
    ) as process:
        try:
            assert process.stdout is not None
            yield process.stdout.readline().split("metrics=")[1].strip()
            process.terminate()
            assert process.wait(WAIT_S) == 0
        finally:
            if process.poll() is None:
                process.kill()
            subprocess.run(["umount", "-l", str(target)], check=False, capture_output=True)


def figure(url: str, name: str, **labels: str) -> float:
    with urllib.request.urlopen(url + "/metrics", timeout=WAIT_S) as answer:
        text = answer.read().decode()
    return sum(
        sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name == name and labels.items() <= sample.labels.items()
    )


def test_what_was_read_from_other_machines_is_read_again_without_them(tmp_path: Path) -> None:
    content = pattern(5 * MIB)
    target, cache = tmp_path / "mnt", ("--cache-dir", str(tmp_path / "cache"))
    names = ("m1", "m2", "m3")
    with daemons(tmp_path, profile="2+1") as cluster:
        cluster.add(*names)
        with cluster.gateway() as gateway:
            s3 = s3_client(gateway)
            s3.create_bucket(Bucket="box")
            s3.put_object(Bucket="box", Key="file", Body=content)
            s3.close()
        with mounting(cluster.store, target, *cache) as url:
            assert (target / "file").read_bytes() == content
            (target / "written").write_bytes(content)
            deadline = time.monotonic() + WAIT_S
            while figure(url, "lode_mount_disk_cache_events_total", event="stored") < 20:
                assert time.monotonic() < deadline
        for name in names:
            cluster.kill(name)
        with mounting(cluster.store, target, *cache) as url:
            assert sorted(os.listdir(target)) == ["file", "written"]
            assert (target / "file").read_bytes() == content
            assert figure(url, "lode_mount_cache_blocks_total", cache="disk", result="hit") >= 20
