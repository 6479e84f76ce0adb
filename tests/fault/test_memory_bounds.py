"""Many clients at once, also ones that stall, cannot make a worker large."""

from __future__ import annotations

import os
import shutil
import socket
import urllib.parse
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any

import pytest

from tests.support.clients import MIB, s3_client
from tests.support.server import STOP_S, Server, serving_coded

MEMORY_MAX = 250 * MIB
CLIENTS = 64


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("served")
    with serving_coded(folder) as server:
        yield server
        assert server.stop() == 0
    assert server.troubles == []
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def s3(server: Server) -> Iterator[Any]:
    client = s3_client(server, signature_version="s3v4", max_pool_connections=CLIENTS)
    client.create_bucket(Bucket="box")
    yield client
    client.close()


def connect(server: Server) -> socket.socket:
    where = urllib.parse.urlsplit(server.url)
    return socket.create_connection((where.hostname, where.port), STOP_S)


def head(method: str, url: str, **headers: str) -> bytes:
    where = urllib.parse.urlsplit(url)
    lines = [f"{method} {where.path}?{where.query} HTTP/1.1", f"Host: {where.netloc}"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return ("\r\n".join(lines) + "\r\n\r\n").encode()


def peak(server: Server) -> int:
    return max(server.peak_memory().values())


def test_many_uploads_and_downloads_at_once(server: Server, s3: Any) -> None:
    body = os.urandom(8 * MIB)

    def go(number: int) -> bool:
        s3.put_object(Bucket="box", Key=str(number), Body=body)
        stored: bytes = s3.get_object(Bucket="box", Key=str(number))["Body"].read()
        return stored == body

    with ThreadPoolExecutor(CLIENTS) as pool:
        assert all(pool.map(go, range(CLIENTS)))
    assert peak(server) < MEMORY_MAX, peak(server) // MIB


def test_readers_and_writers_that_stall(server: Server, s3: Any) -> None:
    s3.put_object(Bucket="box", Key="large", Body=os.urandom(64 * MIB))
    where = {"Bucket": "box", "Key": "large"}
    get = s3.generate_presigned_url("get_object", Params=where)
    put = s3.generate_presigned_url("put_object", Params=where)
    with ExitStack() as stack:
        for _ in range(CLIENTS):
            reader = stack.enter_context(connect(server))
            reader.sendall(head("GET", get))
            assert reader.recv(15) == b"HTTP/1.1 200 OK"
            writer = stack.enter_context(connect(server))
            writer.sendall(head("PUT", put, Content_Length=str(64 * MIB)) + bytes(3 * MIB))
        assert peak(server) < MEMORY_MAX, peak(server) // MIB
        # Those who do not stall are served all the while.
        assert s3.list_objects_v2(Bucket="box", Prefix="large")["KeyCount"] == 1
        s3.put_object(Bucket="box", Key="small", Body=b"small")
        assert s3.get_object(Bucket="box", Key="small")["Body"].read() == b"small"
    assert peak(server) < MEMORY_MAX, peak(server) // MIB
