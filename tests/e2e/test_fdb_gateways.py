"""Two gateways with data folders of their own and a mount, on one FoundationDB and the same drives:
what one acknowledged, every other shows at once."""

from __future__ import annotations

import os
import subprocess
import threading
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from botocore.exceptions import ClientError

from engine.meta.fdb import FdbLocation
from tests.support import fdb_server
from tests.support.clients import s3_client
from tests.support.fdb_server import FdbServer
from tests.support.server import (
    LODE,
    ROOT,
    Server,
    clean_environment,
    drive_folders,
    lode,
    serving,
)

KEYS = {"LODE_ACCESS_KEY": "gateways", "LODE_SECRET_KEY": "of one store, one secret"}
CHECKS = int(os.environ.get("LODE_TEST_FDB_CHECKS", "600"))
RACES = int(os.environ.get("LODE_TEST_FDB_RACES", "200"))
SEEN_S = 20.0
"""Longest time until a mount shows a change; a second is promised, on a quiet machine."""


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FdbServer]:
    if not fdb_server.has_server():
        pytest.skip("needs FoundationDB: fdbserver and fdbcli are not on the PATH")
    server = FdbServer(tmp_path_factory.mktemp("fdb"))
    yield server
    server.kill()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("gateways")


@pytest.fixture(scope="module")
def place(database: FdbServer) -> str:
    name = "test-" + uuid.uuid4().hex[:16]
    return str(FdbLocation(database.cluster_file, name, fdb_server.library()))


@pytest.fixture(scope="module")
def gateways(folder: Path, place: str) -> Iterator[list[Server]]:
    drives = [str(drive) for drive in drive_folders(folder)]
    more = ("--meta", place, "--workers", "1")
    with (
        serving(
            folder / "one",
            *(*more, "--profile", "4+2", "--drives", *drives),
            environment=KEYS,
        ) as one,
        serving(folder / "two", *more, environment=KEYS) as two,
    ):
        yield [one, two]


@pytest.fixture(scope="module")
def clients(gateways: list[Server]) -> list[Any]:
    keys = (KEYS["LODE_ACCESS_KEY"], KEYS["LODE_SECRET_KEY"])
    return [s3_client(gateway, keys=keys, max_pool_connections=20) for gateway in gateways]


@pytest.fixture
def bucket(clients: list[Any]) -> str:
    name = "b" + uuid.uuid4().hex[:12]
    clients[0].create_bucket(Bucket=name)
    return name


def test_what_one_gateway_wrote_the_other_reads_and_lists_at_once(clients, bucket):
    for number in range(CHECKS):
        writer, reader = clients[number % 2], clients[1 - number % 2]
        key = f"key-{number % 7}"
        if number % 5 == 4:
            writer.delete_object(Bucket=bucket, Key=key)
            with pytest.raises(reader.exceptions.NoSuchKey):
                reader.get_object(Bucket=bucket, Key=key)
        else:
            body = b"%d" % number * (1 + number % 3 * 30_000)
            writer.put_object(Bucket=bucket, Key=key, Body=body)
            assert reader.get_object(Bucket=bucket, Key=key)["Body"].read() == body
        listed = reader.list_objects_v2(Bucket=bucket, Prefix=key)["KeyCount"]
        assert listed == (number % 5 != 4)


def test_one_of_two_gateways_wins_every_conditional_put(clients, bucket):
    gate = threading.Barrier(2)

    def create(number: int, key: str) -> int:
        gate.wait(60)
        try:
            clients[number].put_object(Bucket=bucket, Key=key, Body=b"%d" % number, IfNoneMatch="*")
        except ClientError as error:
            status: int = error.response["ResponseMetadata"]["HTTPStatusCode"]
            return status
        return 200

    with ThreadPoolExecutor(2) as pool:
        for race in range(RACES):
            key = f"race-{race}"
            answers = list(pool.map(create, (0, 1), (key, key)))
            assert sorted(answers) in ([200, 409], [200, 412]), answers
            for client in clients:
                body = client.get_object(Bucket=bucket, Key=key)["Body"].read()
                assert body == b"%d" % answers.index(200)


def test_gateways_agree_on_their_store_and_remember_its_place(gateways, folder, place):
    texts = [
        lode("status", "--json", "--data", str(folder / name)).stdout for name in ("one", "two")
    ]
    ids = {line for text in texts for line in text.splitlines() if '"store_id"' in line}
    assert len(ids) == 1
    for name in ("one", "two"):
        assert place in (folder / name / "lode.json").read_text()


def test_changes_reach_a_mount_and_come_from_it(clients, bucket, folder, place, tmp_path):
    target = tmp_path / "mount"
    target.mkdir()
    # Not captured through pipes: the mount's process keeps standard error.
    words = ["mount", bucket, str(target), "--data", str(folder / "new"), "--meta", place]
    with open(tmp_path / "log", "wb") as log:
        subprocess.run(
            [*LODE, *words],
            stdout=log,
            stderr=log,
            check=True,
            env=clean_environment(),
            cwd=ROOT,
            timeout=120,
        )
    try:
        for number in range(20):
            body = b"%d" % number
            clients[number % 2].put_object(Bucket=bucket, Key="a/file", Body=body)
            until = time.monotonic() + SEEN_S
            while not _shows(target / "a" / "file", body):
                assert time.monotonic() < until, "the mount does not see the change"
        (target / "a" / "back").write_bytes(b"from the mount")
        for client in clients:
            assert (
                client.get_object(Bucket=bucket, Key="a/back")["Body"].read() == b"from the mount"
            )
    finally:
        unmounted = unmount(target)
    assert unmounted


def _shows(path: Path, body: bytes) -> bool:
    try:
        return path.read_bytes() == body
    except FileNotFoundError:
        return False


def unmount(target: Path) -> bool:
    return subprocess.run(["fusermount3", "-u", str(target)], check=False).returncode == 0


def test_nothing_acknowledged_is_lost_when_the_database_is_killed_under_load(
    database, clients, bucket
):
    acknowledged: dict[str, bytes] = {}
    lock = threading.Lock()
    stop = threading.Event()

    def write(worker: int) -> None:
        number = 0
        while not stop.is_set():
            number += 1
            key, body = f"{worker}/{number:05d}", os.urandom(100 + number % 3 * 40_000)
            try:
                clients[worker % 2].put_object(Bucket=bucket, Key=key, Body=body)
            except ClientError as error:
                if error.response["ResponseMetadata"]["HTTPStatusCode"] != 503:
                    raise
                continue
            with lock:
                acknowledged[key] = body

    with ThreadPoolExecutor(8) as pool:
        workers = [pool.submit(write, worker) for worker in range(8)]
        for _ in range(3):
            before, until = len(acknowledged), time.monotonic() + 120
            while len(acknowledged) < before + 50:
                assert time.monotonic() < until, "no write comes through any more"
                time.sleep(0.05)
            database.kill()
            database.start()
        stop.set()
        for worker in workers:
            worker.result(120)
    listed: set[str] = set()
    for page in clients[0].get_paginator("list_objects_v2").paginate(Bucket=bucket):
        listed.update(entry["Key"] for entry in page["Contents"])
    assert acknowledged.keys() <= listed
    for number, (key, body) in enumerate(acknowledged.items()):
        assert clients[number % 2].get_object(Bucket=bucket, Key=key)["Body"].read() == body
