"""``lode meta copy`` while servers and writers run: what was acknowledged is in the copy."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
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
from tests.support.server import ROOT, clean_environment, lode, serving

WAIT_S = 120.0


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FdbServer]:
    if not fdb_server.has_server():
        pytest.skip("needs FoundationDB: fdbserver and fdbcli are not on the PATH")
    server = FdbServer(tmp_path_factory.mktemp("fdb"))
    yield server
    server.kill()


@pytest.fixture
def place(database: FdbServer) -> str:
    name = "test-" + uuid.uuid4().hex[:16]
    return str(FdbLocation(database.cluster_file, name, fdb_server.library()))


class Writers:
    """Clients that put objects until told to end, and remember what was acknowledged."""

    def __init__(self, clients: list[Any]) -> None:
        self.acknowledged: dict[str, bytes] = {}
        self.refused = 0
        self.unexpected: list[str] = []
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._pool = ThreadPoolExecutor(len(clients))
        self._running = [
            self._pool.submit(self._write, number, client) for number, client in enumerate(clients)
        ]

    def _write(self, number: int, client: Any) -> None:
        count = 0
        while not self._stop.is_set():
            count += 1
            key, body = f"{number}/{count:06d}", os.urandom(100 + count % 3 * 80_000)
            try:
                client.put_object(Bucket="bucket", Key=key, Body=body)
            except ClientError as error:
                code = error.response["Error"]["Code"]
                with self._lock:
                    self.refused += 1
                    if code != "ServiceUnavailable":
                        self.unexpected.append(code)
                time.sleep(0.05)  # as a client that is told to come back
                continue
            with self._lock:
                self.acknowledged[key] = body

    def wait(self, *, acknowledged: int = 0, refused: int = 0) -> None:
        deadline = time.monotonic() + WAIT_S
        while len(self.acknowledged) < acknowledged or self.refused < refused:
            assert time.monotonic() < deadline, (len(self.acknowledged), self.refused)
            time.sleep(0.01)

    def end(self) -> None:
        self._stop.set()
        for running in self._running:
            running.result(WAIT_S)
        self._pool.shutdown()
        assert self.unexpected == []


def check(client: Any, acknowledged: dict[str, bytes]) -> None:
    listed: set[str] = set()
    for page in client.get_paginator("list_objects_v2").paginate(Bucket="bucket"):
        listed.update(entry["Key"] for entry in page.get("Contents", ()))
    assert acknowledged.keys() <= listed
    # The latest of each writer were nearest to the moment.
    for key, body in list(acknowledged.items())[-100:]:
        assert client.get_object(Bucket="bucket", Key=key)["Body"].read() == body


def test_what_busy_servers_acknowledged_is_in_the_copy(tmp_path: Path, place: str) -> None:
    data = tmp_path / "store"
    with (
        serving(data, "--workers", "1") as one,
        serving(data, "--workers", "1") as two,
    ):
        clients = [s3_client(server) for server in (one, two)]
        clients[0].create_bucket(Bucket="bucket")
        writers = Writers([s3_client(server) for server in (one, two, one, two)])
        try:
            writers.wait(acknowledged=60)
            done = lode("meta", "copy", "embedded", place, "--data", str(data))
            assert done.returncode == 0, done.stderr
            writers.wait(refused=4)
        finally:
            writers.end()
        # The servers go on reading, and tell where it went.
        for client in clients:
            check(client, writers.acknowledged)
            with pytest.raises(ClientError, match="ServiceUnavailable"):
                client.put_object(Bucket="bucket", Key="late", Body=b"")
    with serving(data, "--workers", "1") as server:
        client = s3_client(server)
        check(client, writers.acknowledged)
        client.put_object(Bucket="bucket", Key="new", Body=b"new")
    fsck = lode("fsck", "--data", str(data))
    assert fsck.returncode == 0, fsck.stdout + fsck.stderr


DIES = """
import os, signal, sys
from pathlib import Path
from cli import meta
meta._update = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
meta.copy(Path(sys.argv[1]), "embedded", sys.argv[2])
"""
"""A copy that is killed when it has copied its first rows."""


def killed_copy(data: Path, place: str) -> None:
    words = [sys.executable, "-c", DIES, str(data), place]
    done = subprocess.run(words, env=clean_environment(), cwd=ROOT, check=False, timeout=WAIT_S)
    assert done.returncode == -signal.SIGKILL


def test_a_copy_that_was_killed_goes_on_or_is_given_up(tmp_path: Path, place: str) -> None:
    data = tmp_path / "store"
    copy = ("meta", "copy", "embedded", place, "--data", str(data))
    with serving(data, "--workers", "1") as server:
        client = s3_client(server)
        client.create_bucket(Bucket="bucket")
        for number in range(20):
            client.put_object(Bucket="bucket", Key=f"{number}", Body=b"%d" % number)
        killed_copy(data, place)
        with pytest.raises(ClientError, match="ServiceUnavailable"):
            client.put_object(Bucket="bucket", Key="0", Body=b"late")
        assert "read-only: being copied to" in lode("status", "--data", str(data)).stdout
        aborted = lode(*copy, "--abort")
        assert aborted.returncode == 0, aborted.stderr
        client.put_object(Bucket="bucket", Key="0", Body=b"after the abort")
        killed_copy(data, place)
        done = lode(*copy)
        assert done.returncode == 0, done.stderr
        late = lode(*copy, "--abort")
        assert (late.returncode, "the copy has ended" in late.stderr) == (2, True)
    with serving(data, "--workers", "1") as server:
        client = s3_client(server)
        found = client.get_object(Bucket="bucket", Key="0")["Body"].read()
        assert found == b"after the abort"
        client.put_object(Bucket="bucket", Key="0", Body=b"in the copy")
