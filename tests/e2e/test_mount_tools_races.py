"""Several doors to one file at once, and mounts that are killed while programs write."""

from __future__ import annotations

import errno
import hashlib
import os
import random
import subprocess
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from botocore.exceptions import ClientError

from tests.support.clients import s3_client
from tests.support.lode_mount import lode_mount
from tests.support.server import Server

MIB = 1 << 20
TRIES_MAX = 2000
WRITE_S_MAX = 60.0


def test_no_update_is_lost_between_two_mounts_and_s3(
    server: Server, s3: Any, bucket: str, store_folder: Path, tmp_path: Path
) -> None:
    """Each adds one again and again, and tries anew when it is told that others were quicker."""
    times, store = 20, store_folder / "store"
    s3.put_object(Bucket=bucket, Key="count", Body=b"0")
    with (
        lode_mount(store, bucket, tmp_path / "one"),
        lode_mount(store, bucket, tmp_path / "two"),
        ThreadPoolExecutor(3) as pool,
    ):
        client = s3_client(server)
        adders: list[Callable[[], bool]] = [
            lambda: add_in_mount(tmp_path / "one" / "count"),
            lambda: add_in_mount(tmp_path / "two" / "count"),
            lambda: add_in_s3(client, bucket),
        ]
        done = [pool.submit(add_often, add, times) for add in adders]
        refused = [adding.result() for adding in done]
        client.close()
    stored = s3.get_object(Bucket=bucket, Key="count")["Body"].read()
    assert int(stored) == 3 * times
    # They did meet.
    assert sum(refused) > 0


def add_often(add: Callable[[], bool], times: int) -> int:
    """Return how often it was refused."""
    refused = 0
    for _ in range(times):
        while not add():
            refused += 1
            assert refused < TRIES_MAX
            time.sleep(random.random() * 0.01)  # let the others have a turn
    return refused


def add_in_mount(path: Path) -> bool:
    descriptor = -1
    try:
        descriptor = os.open(path, os.O_RDWR)
        count = int(os.read(descriptor, 100))
        os.pwrite(descriptor, str(count + 1).encode(), 0)
        closing, descriptor = descriptor, -1
        os.close(closing)
    except OSError as error:
        if error.errno != errno.ESTALE:
            raise
        return False
    finally:
        if descriptor >= 0:
            # What it wrote was refused already, or it wrote nothing.
            close_quietly(descriptor)
    return True


def close_quietly(descriptor: int) -> None:
    try:
        os.close(descriptor)
    except OSError as error:
        if error.errno != errno.ESTALE:
            raise


def add_in_s3(client: Any, bucket: str) -> bool:
    found = client.get_object(Bucket=bucket, Key="count")
    count = int(found["Body"].read())
    try:
        client.put_object(
            Bucket=bucket, Key="count", Body=str(count + 1).encode(), IfMatch=found["ETag"]
        )
    except ClientError as error:
        if error.response["ResponseMetadata"]["HTTPStatusCode"] not in (409, 412):
            raise
        return False
    return True


class Writer:
    """Writes files that say what they should be, until the mount is gone under it."""

    def __init__(self, folder: Path, number: int, seed: int) -> None:
        self._folder = folder
        self._number = number
        self._random = random.Random(seed)
        self.begun: dict[str, int] = {}
        """Per file: the latest write that was begun, ..."""
        self.ended: dict[str, int] = {}
        """... and the latest whose ``close`` said that it is safe."""
        self.writes = 0

    def write_until_gone(self, first: int) -> None:
        self.writes = first
        try:
            while True:
                self.writes += 1
                self._write(f"file-{self._number}-{self.writes % 3}")
        except OSError as error:
            if error.errno not in (errno.ENOTCONN, errno.ECONNABORTED, errno.EIO):
                raise

    def _write(self, name: str) -> None:
        size = self._random.choice((0, 100, 70_000, 700_000, 3 * MIB))
        body = self._random.randbytes(size)
        head = f"{self.writes} {size} {hashlib.sha256(body).hexdigest()}\n".encode()
        way = self._random.choice(("replace", "truncate", "rename"))
        path = self._folder / (f"{name}.new" if way == "rename" else name)
        self.begun[name] = self.writes
        if way == "replace":
            # Written in the middle first: it waits in the staging folder.
            flags = os.O_WRONLY | os.O_CREAT
        else:
            flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
        descriptor = os.open(path, flags, 0o644)
        try:
            if way == "replace":
                os.pwrite(descriptor, body, len(head))
                os.pwrite(descriptor, head, 0)
                os.ftruncate(descriptor, len(head) + size)
            else:
                for begin in range(0, len(head) + size, 100_000):
                    os.write(descriptor, (head + body)[begin : begin + 100_000])
        except BaseException:
            close_in_vain(descriptor)
            raise
        os.close(descriptor)
        if way == "rename":
            path.rename(self._folder / name)
        self.ended[name] = self.writes


def close_in_vain(descriptor: int) -> None:
    with pytest.raises(OSError, match=r"onnect|abort"):
        os.close(descriptor)


def number_of(stored: bytes) -> int:
    """Return which write an object is; it has to be the whole of it."""
    head, _, body = stored.partition(b"\n")
    number, size, digest = head.split(b" ")
    assert len(body) == int(size)
    assert hashlib.sha256(body).hexdigest().encode() == digest
    return int(number)


@pytest.mark.parametrize("kills", [4, pytest.param(40, marks=pytest.mark.soak)])
def test_a_mount_that_is_killed_while_programs_write_leaves_whole_files(
    s3: Any, bucket: str, store_folder: Path, tmp_path: Path, kills: int
) -> None:
    writers = [Writer(tmp_path / "mnt", number, number) for number in range(3)]
    chance = random.Random(kills)
    for _ in range(kills):
        with lode_mount(store_folder / "store", bucket, tmp_path / "mnt") as process:
            threads = [
                threading.Thread(target=writer.write_until_gone, args=(writer.writes,), daemon=True)
                for writer in writers
            ]
            for thread in threads:
                thread.start()
            began = sum(writer.writes for writer in writers)
            enough = began + chance.randrange(5, 40)
            deadline = time.monotonic() + WRITE_S_MAX
            while sum(writer.writes for writer in writers) < enough:
                assert time.monotonic() < deadline
                assert any(thread.is_alive() for thread in threads)
                time.sleep(0.005)  # they write
            process.kill()
            process.wait(WRITE_S_MAX)
            for thread in threads:
                thread.join(60)
                assert not thread.is_alive()
        subprocess.run(["umount", "-l", str(tmp_path / "mnt")], check=False, capture_output=True)
        check_stored(s3, bucket, writers)


def check_stored(s3: Any, bucket: str, writers: list[Writer]) -> None:
    """All that a ``close`` has confirmed is there, and whatever is there is whole."""
    listed = s3.list_objects_v2(Bucket=bucket).get("Contents", [])
    stored = {
        entry["Key"]: s3.get_object(Bucket=bucket, Key=entry["Key"])["Body"].read()
        for entry in listed
    }
    for name, body in stored.items():
        # An open that truncates and a close without a write make an empty file on purpose; no
        # writer here does that.
        assert number_of(body) > 0, name
    for writer in writers:
        for name, ended in writer.ended.items():
            assert ended <= number_of(stored[name]) <= writer.begun[name]
