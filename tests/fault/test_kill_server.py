"""Kill -9 of a busy server, again and again over one store."""

from __future__ import annotations

import itertools
import json
import os
import random
import shutil
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from botocore.exceptions import BotoCoreError, ClientError

from tests.support.clients import MIB, s3_client
from tests.support.server import STOP_S, Server, lode, serving_coded

KILLS = 20
WRITERS = 5
KEYS = 6
"""Of each writer."""

BUCKET = "box"

# Inline in the record, inline beside it, copies, coded, and coded over several stripes.
SIZES = [100, 20_000, 200_000, 700_000, 2_500_000]

_POOL = random.Random(7).randbytes(8 * MIB)


class Write(NamedTuple):
    """What a key holds: its bytes follow from a number that no other write has."""

    number: int
    size: int

    @property
    def body(self) -> bytes:
        return (b"%016d" % self.number + _POOL[self.number % 4096 :])[: self.size]


class Journal:
    """What every key may hold: what was acknowledged last, and what was sent since."""

    def __init__(self, seed: int) -> None:
        self.numbers = itertools.count(1)
        self.random = random.Random(seed)
        self.state: dict[str, Write | None] = {}
        self.unknown: dict[str, Write | None] = {}
        """Sent and not answered when the server was killed. Each key has one writer."""

    def new(self, sizes: list[int]) -> Write:
        return Write(next(self.numbers), self.random.choice(sizes))


class Round:
    """One life of the server: writers that go on until it is killed."""

    def __init__(self, s3: Any, journal: Journal) -> None:
        self.s3 = s3
        self.journal = journal
        self.killed = threading.Event()
        self.acknowledged = threading.Semaphore(0)

    def write(self, writer: int) -> None:
        """Write until the server is gone; anything else that fails is raised."""
        choose = random.Random(self.journal.random.random())
        while not self.killed.is_set():
            key = f"{writer}/{choose.randrange(KEYS)}"
            step = choose.choices([self._put, self._delete, self._upload], [8, 2, 1])[0]
            try:
                step(key)
            except (BotoCoreError, ClientError):
                if not self.killed.is_set():
                    raise
                return
            self.acknowledged.release()

    def _put(self, key: str) -> None:
        write = self.journal.new(SIZES)
        self._begin(key, write)
        self.s3.put_object(Bucket=BUCKET, Key=key, Body=write.body)
        self._end(key, write)

    def _delete(self, key: str) -> None:
        self._begin(key, None)
        self.s3.delete_object(Bucket=BUCKET, Key=key)
        self._end(key, None)

    def _upload(self, key: str) -> None:
        write = self.journal.new([5 * MIB + 1000, 6 * MIB])
        body = write.body
        name = {"Bucket": BUCKET, "Key": key}
        upload = self.s3.create_multipart_upload(**name)["UploadId"]
        parts = []
        for number, part in enumerate((body[: 5 * MIB], body[5 * MIB :]), 1):
            done = self.s3.upload_part(**name, UploadId=upload, PartNumber=number, Body=part)
            parts.append({"PartNumber": number, "ETag": done["ETag"]})
        self._begin(key, write)
        self.s3.complete_multipart_upload(**name, UploadId=upload, MultipartUpload={"Parts": parts})
        self._end(key, write)

    def _begin(self, key: str, write: Write | None) -> None:
        self.journal.unknown[key] = write

    def _end(self, key: str, write: Write | None) -> None:
        self.journal.state[key] = write
        del self.journal.unknown[key]


def kill(server: Server, order: random.Random) -> None:
    """Kill -9 the supervisor and all workers, in any order."""
    processes = [server.process.pid, *server.workers]
    order.shuffle(processes)
    for process in processes:
        try:
            os.kill(process, signal.SIGKILL)
        except ProcessLookupError:
            # A worker ends by itself as soon as its supervisor is gone.
            assert process != server.process.pid
    server.process.wait(STOP_S)


def verify(s3: Any, journal: Journal) -> None:
    """Every key holds what was acknowledged, or whole what was on its way; listings agree."""
    listed = {
        entry["Key"]: entry["Size"]
        for entry in s3.list_objects_v2(Bucket=BUCKET).get("Contents", [])
    }
    for key in sorted(journal.state.keys() | journal.unknown.keys()):
        allowed = [journal.state.get(key)]
        if key in journal.unknown:
            allowed.append(journal.unknown.pop(key))
        try:
            body = s3.get_object(Bucket=BUCKET, Key=key)["Body"].read()
        except s3.exceptions.NoSuchKey:
            body = None
        found = [write for write in allowed if (write.body if write else None) == body]
        assert found, f"{key} holds {None if body is None else body[:16]}, allowed: {allowed}"
        journal.state[key] = found[0]
        assert listed.pop(key, None) == (None if body is None else len(body)), key
    assert listed == {}


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path
    shutil.rmtree(tmp_path)


def test_nothing_acknowledged_is_lost_when_a_busy_server_is_killed(folder: Path) -> None:
    journal = Journal(seed=20)
    acknowledged = 0
    for life in range(KILLS):
        with serving_coded(folder) as server:
            s3 = s3_client(server, max_pool_connections=WRITERS)
            if life == 0:
                s3.create_bucket(Bucket=BUCKET)
            verify(s3, journal)
            current = Round(s3, journal)
            with ThreadPoolExecutor(WRITERS) as pool:
                writers = [pool.submit(current.write, number) for number in range(WRITERS)]
                for _ in range(journal.random.randrange(1, 60)):
                    assert current.acknowledged.acquire(timeout=STOP_S)
                    acknowledged += 1
                current.killed.set()
                kill(server, journal.random)
            for writer in writers:
                writer.result()
            s3.close()
            # A supervisor that is the last to be killed may still see its workers die.
            seen = {trouble["event"] for trouble in server.troubles}
            assert seen <= {"worker died; starting another"}
    assert acknowledged > KILLS * 10

    with serving_coded(folder) as server:
        s3 = s3_client(server)
        verify(s3, journal)
        for upload in s3.list_multipart_uploads(Bucket=BUCKET).get("Uploads", []):
            name = {"Bucket": BUCKET, "Key": upload["Key"], "UploadId": upload["UploadId"]}
            s3.abort_multipart_upload(**name)
        data = str(folder / "store")
        # The killed sessions have not expired yet: what they may still read has to stay.
        collected = lode("gc", "--data", data, "--grace", "0", "--json")
        assert collected.returncode == 0, collected.stderr
        verify(s3, journal)
        s3.close()
        assert server.stop() == 0
    checked = lode("fsck", "--data", data, "--deep", "--json")
    report = json.loads(checked.stdout)
    assert report["clean"], checked.stdout
    assert checked.returncode == 0
    assert report["objects"] == sum(write is not None for write in journal.state.values())
    assert report["uploads"] == 0
