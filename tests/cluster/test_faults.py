"""Seven daemons and two gateways on machines of their own, while one thing after another breaks.

After each fault: every acknowledged object reads back with its hash through both gateways, nothing
that was not acknowledged is visible in part, every fragment is there again, and fsck is clean.
Clients work meanwhile; their history has to be linearizable.
"""

from __future__ import annotations

import hashlib
import itertools
import os
import random
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from botocore.exceptions import BotoCoreError, ClientError

from tests.support.cluster import BUCKET, Cluster, Member, running_cluster
from tests.support.history import Boto3Door, Door, History, run_clients
from tests.support.netns import missing
from tests.support.slow_link import slow_link

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.skipif(bool(missing()), reason=missing() or "-"),
]

SIZES = (20_000, 300_000, 1_500_000)
"""Inline, replicated and coded."""


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with running_cluster(tmp_path_factory.mktemp("cluster")) as running:
        yield running


class Ledger:
    """Objects written once each, and which of them were acknowledged."""

    def __init__(self, cluster: Cluster, seed: int) -> None:
        self._cluster = cluster
        self._chance = random.Random(seed)
        self._prefix = f"{seed}/"
        self._numbers = itertools.count()
        self.acknowledged: dict[str, str] = {}
        self.refused: list[str] = []
        self._tried: set[str] = set()

    def put(self, count: int, *, timeout_s: float = 60.0) -> None:
        """Write objects through one gateway after another; a refusal is noted."""
        clients = [self._cluster.client(g, timeout_s=timeout_s) for g in self._cluster.gateways]
        for client in itertools.islice(itertools.cycle(clients), count):
            key = f"{self._prefix}{next(self._numbers)}"
            body = self._chance.randbytes(self._chance.choice(SIZES))
            self._tried.add(key)
            try:
                client.put_object(Bucket=BUCKET, Key=key, Body=body)
            except (ClientError, BotoCoreError) as error:
                self.refused.append(_code(error))
            else:
                self.acknowledged[key] = hashlib.sha256(body).hexdigest()

    def check(self) -> None:
        """Compare all objects, through both gateways."""
        for gateway in self._cluster.gateways:
            client = self._cluster.client(gateway, timeout_s=60.0)
            pages = client.get_paginator("list_objects_v2")
            listed = {
                entry["Key"]: entry["Size"]
                for page in pages.paginate(Bucket=BUCKET, Prefix=self._prefix)
                for entry in page.get("Contents", ())
            }
            assert self.acknowledged.keys() <= listed.keys() <= self._tried
            for key, size in listed.items():
                content = client.get_object(Bucket=BUCKET, Key=key)["Body"].read()
                assert len(content) == size
                if key in self.acknowledged:
                    assert hashlib.sha256(content).hexdigest() == self.acknowledged[key], key


def _code(error: Exception) -> str:
    return str(error.response["Error"]["Code"]) if isinstance(error, ClientError) else str(error)


_SEEDS = itertools.count(1)


@contextmanager
def under_load(cluster: Cluster) -> Iterator[Ledger]:
    """Let clients work while the block breaks things; then prove that all is well again."""
    seed = next(_SEEDS)
    ledger = Ledger(cluster, seed)
    ledger.put(8)
    assert ledger.refused == []
    history = History()
    bucket = f"history-{seed}"
    cluster.client().create_bucket(Bucket=bucket)

    def door(number: int) -> Door:
        gateway = cluster.gateways[number]
        return Boto3Door(cluster.client(gateway, timeout_s=15.0), bucket, gateway.url)

    keys = [f"key-{number}" for number in range(8)]
    doors = [lambda: door(0), lambda: door(1)]
    sizes = (16, 2_000, 100_000, 300_000)
    with run_clients(doors, history, clients=3, seed=seed, keys=keys, sizes=sizes):
        yield ledger
    assert history.answered > 0
    cluster.wait_whole()
    ledger.check()
    report = cluster.fsck("--deep")
    assert report["clean"], report
    assert history.problems() == []


def wait_health(cluster: Cluster, member: Member, *health: str) -> None:
    cluster.wait_until(
        f"{member.name} is {health}", lambda: cluster.health()[member.name] in health
    )


@pytest.mark.parametrize("direction", ["both", "in", "out"])
def test_a_node_is_cut_off(cluster: Cluster, direction: str) -> None:
    member = cluster.members[0]
    with under_load(cluster) as ledger:
        member.machine.cut(direction)
        ledger.put(8)
        wait_health(cluster, member, "down", "lost")
        ledger.put(4)
        ledger.check()
        member.machine.mend()
    assert ledger.refused == []


def test_a_node_stands_still(cluster: Cluster) -> None:
    member = cluster.members[1]
    with under_load(cluster) as ledger:
        member.pause()
        ledger.put(8)
        ledger.check()
        member.resume()
    assert ledger.refused == []


def test_a_node_is_killed_and_started_again(cluster: Cluster) -> None:
    member = cluster.members[2]
    with under_load(cluster) as ledger:
        member.kill()
        ledger.put(8)
        ledger.check()
        member.start()
    assert ledger.refused == []


def test_a_gateway_is_killed_and_started_again(cluster: Cluster) -> None:
    with under_load(cluster) as ledger:
        writing = threading.Thread(target=ledger.put, args=(12,))
        writing.start()
        cluster.gateways[1].kill()
        writing.join()
        cluster.gateways[1].start()


def test_a_drive_is_replaced_by_an_empty_one(cluster: Cluster) -> None:
    member = cluster.members[3]
    with under_load(cluster) as ledger:
        member.kill()
        member.wipe()
        member.start()
        ledger.put(4)
        ledger.check()
    assert ledger.refused == []


def test_bits_flip_in_a_volume(cluster: Cluster) -> None:
    member = cluster.members[4]
    chance = random.Random(1)
    with under_load(cluster) as ledger:
        ledger.put(4)
        for volume in member.volumes():
            data = os.stat(volume)
            with volume.open("r+b") as file:
                for _ in range(12):
                    at = chance.randrange(4096, data.st_blocks * 512)
                    file.seek(at)
                    byte = file.read(1)
                    if byte:
                        file.seek(at)
                        file.write(bytes([byte[0] ^ 0x40]))
        ledger.check()
        cluster.wait_until("the scrub finds it", lambda: drives_of(cluster, member, "damaged") > 0)
        cluster.wait_until(
            "all of it is repaired", lambda: cluster.fsck("--deep")["damaged_fragments"] == 0
        )
    assert ledger.refused == []


def drives_of(cluster: Cluster, member: Member, what: str) -> int:
    """Add up a figure of the member's drives."""
    drives = cluster.status()["drives"]
    return sum(drive[what] for drive in drives if drive["member"] == member.name)


def test_a_node_is_slow(cluster: Cluster) -> None:
    member = cluster.members[5]
    with slow_link(member.address, cluster.net.hub.address) as link:
        cluster.lode("node", "add", link.address)
        try:
            with under_load(cluster) as ledger:
                link.behave(delay_s=2.0)
                ledger.put(8)
                ledger.check()
                link.behave(delay_s=0.0)
            assert ledger.refused == []
        finally:
            cluster.add(member)


def test_a_disk_fills_up(cluster: Cluster) -> None:
    """On the way a member is added, gets its share, is drained and removed."""
    member = cluster.new_member("small")
    [drive] = member.drives
    with tmpfs(drive, 48 << 20):
        member.start()
        try:
            with under_load(cluster) as ledger:
                cluster.lode("node", "add", member.address, "--weight", "1")
                cluster.wait_until("it is full", lambda: _fill(cluster, ledger, member))
                ledger.put(4)
                ledger.check()
                cluster.lode("node", "drain", member.name, "--wait")
                assert drives_of(cluster, member, "fragments") == 0
                cluster.lode("node", "remove", member.name)
            assert ledger.refused == []
        finally:
            member.end()


def _fill(cluster: Cluster, ledger: Ledger, member: Member) -> bool:
    ledger.put(10)
    states = [d["state"] for d in cluster.status()["drives"] if d["member"] == member.name]
    return states == ["full"]


@contextmanager
def tmpfs(path: Path, size: int) -> Iterator[None]:
    path.mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "none", path], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", path], check=True)


def test_all_are_restarted_at_once(cluster: Cluster) -> None:
    with under_load(cluster) as ledger:
        for process in (*cluster.members, *cluster.gateways):
            process.kill()
        for process in (*cluster.members, *cluster.gateways):
            process.start(wait=False)
        for process in (*cluster.members, *cluster.gateways):
            process.wait_ready()
        ledger.put(4)


def test_every_node_is_upgraded_one_after_another(cluster: Cluster) -> None:
    with under_load(cluster) as ledger:
        for member in cluster.members:
            member.stop()
            ledger.put(2)
            member.start()
            wait_health(cluster, member, "up")
    assert ledger.refused == []


def test_as_many_nodes_as_parity_are_lost_at_once(cluster: Cluster) -> None:
    lost = cluster.members[:2]
    with under_load(cluster) as ledger:
        for member in lost:
            member.kill()
        ledger.check()
        ledger.put(6)
        ledger.check()
        for member in lost:
            member.start()


def test_one_node_more_than_parity_is_a_clear_error_until_they_return(cluster: Cluster) -> None:
    lost = cluster.members[:3]
    with under_load(cluster) as ledger:
        for member in lost:
            member.kill()
        for member in lost:
            wait_health(cluster, member, "down", "lost")
        before = dict(ledger.acknowledged)
        client = cluster.client(timeout_s=60.0)
        codes = {_read(client, key, digest) for key, digest in before.items()}
        assert codes <= {"", "ServiceUnavailable", "SlowDown", "InternalError"}
        assert codes & {"ServiceUnavailable", "SlowDown"}
        assert cluster.status()["census"]["chunks_unreadable"] >= 0
        for member in lost:
            member.start()


def _read(client: Any, key: str, digest: str) -> str:
    """Return an error's code, or nothing: it is all there."""
    try:
        content = client.get_object(Bucket=BUCKET, Key=key)["Body"].read()
    except (ClientError, BotoCoreError) as error:
        return _code(error)
    assert hashlib.sha256(content).hexdigest() == digest
    return ""
