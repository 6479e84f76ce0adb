"""A file of several GiB, in parts and in one piece; the workers' memory stays bounded."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.support.clients import (
    MIB,
    Aws,
    find_command,
    hash_stream,
    make_random_file,
    run,
    s3_client,
)
from tests.support.server import Server

SIZE = 2200 * MIB + 12345
MEMORY_MAX = 250 * MIB
"""Of each worker, whatever streams through it."""


class LargeFile(NamedTuple):
    path: Path
    digest: str


@pytest.fixture(scope="module")
def large(store_folder: Path) -> Iterator[LargeFile]:
    path = store_folder / "large"
    yield LargeFile(path, make_random_file(path, SIZE, seed=5))
    path.unlink()


def check_memory(server: Server) -> None:
    peaks = server.peak_memory()
    assert len(peaks) == 2
    assert max(peaks.values()) < MEMORY_MAX, {pid: peak // MIB for pid, peak in peaks.items()}


def test_awscli_sends_it_in_parts(
    server: Server, s3: Any, bucket: str, large: LargeFile, tmp_path: Path
) -> None:
    Aws(server, tmp_path)("s3", "cp", "--only-show-errors", large.path, f"s3://{bucket}/large")
    head = s3.head_object(Bucket=bucket, Key="large")
    assert head["ContentLength"] == SIZE
    assert head["ETag"].endswith(f'-{-(-SIZE // (8 * MIB))}"')
    got = s3.get_object(Bucket=bucket, Key="large")
    assert hash_stream(got["Body"]) == (SIZE, large.digest)
    check_memory(server)
    with large.path.open("rb") as file:
        file.seek(SIZE - 3_000_000)
        tail = file.read()
    got = s3.get_object(Bucket=bucket, Key="large", Range="bytes=-3000000")
    assert got["Body"].read() == tail
    s3.delete_object(Bucket=bucket, Key="large")


def test_curl_sends_it_in_one_piece(server: Server, s3: Any, bucket: str, large: LargeFile) -> None:
    signer = s3_client(server, signature_version="s3v4")
    where = {"Bucket": bucket, "Key": "large"}
    put = signer.generate_presigned_url("put_object", Params=where)
    get = signer.generate_presigned_url("get_object", Params=where)
    signer.close()
    run("curl", "-sSf", "-T", large.path, put)
    with subprocess.Popen([find_command("curl"), "-sSf", get], stdout=subprocess.PIPE) as curl:
        assert hash_stream(curl.stdout) == (SIZE, large.digest)
        assert curl.wait() == 0
    check_memory(server)
    s3.delete_object(Bucket=bucket, Key="large")
