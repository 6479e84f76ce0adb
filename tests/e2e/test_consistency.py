"""Two workers share a store: what one acknowledged, the other shows at once."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from botocore.exceptions import ClientError

from tests.support.clients import error_code, s3_client
from tests.support.server import Server

READERS = 4
ROUNDS = 300


@pytest.fixture(scope="module")
def readers(server: Server) -> Iterator[list[Any]]:
    """Clients with connections of their own, spread over both workers."""
    clients: list[Any] = []
    workers: list[str] = []
    while len(set(workers)) < 2 or len(clients) < READERS:
        assert len(clients) < 200, "all connections reach the same worker"
        client = s3_client(server, max_pool_connections=1)
        clients.append(client)
        workers.append(client.list_buckets()["ResponseMetadata"]["HostId"])
    # The first, the last, and what lies between: both workers are among them.
    chosen = [clients[0], *clients[-READERS + 1 :]]
    yield chosen
    for client in clients:
        client.close()


def test_every_reader_sees_what_was_just_written(s3: Any, readers: list[Any], bucket: str) -> None:
    def see(reader: Any, key: str) -> tuple[bytes | None, bool]:
        try:
            body = reader.get_object(Bucket=bucket, Key=key)["Body"].read()
        except reader.exceptions.NoSuchKey:
            body = None
        listed = reader.list_objects_v2(Bucket=bucket, Prefix=key).get("KeyCount") == 1
        return body, listed

    with ThreadPoolExecutor(READERS) as pool:
        for number in range(ROUNDS):
            key = f"key-{number % 7}"
            writer = readers[number % READERS]
            body = None if number % 5 == 4 else b"%d" % number * (1 + number % 2 * 30_000)
            if body is None:
                writer.delete_object(Bucket=bucket, Key=key)
            else:
                writer.put_object(Bucket=bucket, Key=key, Body=body)
            for seen in pool.map(see, readers, [key] * len(readers)):
                assert seen == (body, body is not None)


def test_one_of_many_creators_wins(readers: list[Any], bucket: str) -> None:
    gate = threading.Barrier(READERS)

    def create(reader: Any, key: str, number: int) -> int | None:
        gate.wait(30)
        try:
            reader.put_object(Bucket=bucket, Key=key, Body=b"%d" % number, IfNoneMatch="*")
        except ClientError as error:
            if error.response["ResponseMetadata"]["HTTPStatusCode"] not in (409, 412):
                raise
            return None
        return number

    with ThreadPoolExecutor(READERS) as pool:
        for attempt in range(50):
            keys = [f"race-{attempt}"] * READERS
            won = [n for n in pool.map(create, readers, keys, range(READERS)) if n is not None]
            assert len(won) == 1
            body = readers[0].get_object(Bucket=bucket, Key=keys[0])["Body"].read()
            assert body == b"%d" % won[0]


def test_no_conditional_update_is_lost(s3: Any, readers: list[Any], bucket: str) -> None:
    s3.put_object(Bucket=bucket, Key="counter", Body=b"0")
    times = 40

    def count(reader: Any) -> None:
        done = 0
        while done < times:
            now = reader.get_object(Bucket=bucket, Key="counter")
            body = b"%d" % (int(now["Body"].read()) + 1)
            try:
                reader.put_object(Bucket=bucket, Key="counter", Body=body, IfMatch=now["ETag"])
            except ClientError as error:
                if error.response["ResponseMetadata"]["HTTPStatusCode"] not in (409, 412):
                    raise
                continue
            done += 1

    with ThreadPoolExecutor(READERS) as pool:
        list(pool.map(count, readers))
    final = s3.get_object(Bucket=bucket, Key="counter")["Body"].read()
    assert int(final) == times * READERS


def test_a_reader_keeps_the_version_that_it_opened(
    s3: Any, readers: list[Any], bucket: str
) -> None:
    old, new = b"o" * (40 << 20), b"n" * (41 << 20)
    s3.put_object(Bucket=bucket, Key="k", Body=old)
    streams = [reader.get_object(Bucket=bucket, Key="k")["Body"] for reader in readers]
    begun = [stream.read(1000) for stream in streams]
    s3.put_object(Bucket=bucket, Key="k", Body=new)
    assert s3.get_object(Bucket=bucket, Key="k")["Body"].read() == new
    for first, stream in zip(begun, streams, strict=True):
        assert first + stream.read() == old
    with pytest.raises(ClientError) as raised:
        s3.get_object(Bucket=bucket, Key="k", IfMatch='"old"')
    assert error_code(raised) == (412, "PreconditionFailed")
