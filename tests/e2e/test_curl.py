"""curl with presigned URLs, and what only a bare socket can do."""

from __future__ import annotations

import os
import re
import socket
import urllib.parse
from pathlib import Path
from typing import Any

import pytest

from tests.support.clients import MIB, run, s3_client
from tests.support.server import Server

READ_S = 120.0


@pytest.fixture
def presign(server: Server, bucket: str) -> Any:
    """Return URLs for an operation on a key of the bucket."""
    client = s3_client(server, signature_version="s3v4")

    def url(operation: str, key: str = "k") -> str:
        made: str = client.generate_presigned_url(operation, Params={"Bucket": bucket, "Key": key})
        return made

    yield url
    client.close()


def test_curl_puts_and_gets_by_url(presign: Any, tmp_path: Path) -> None:
    body = os.urandom(20 * MIB)
    (tmp_path / "body").write_bytes(body)
    sent = run("curl", "-sSvf", "-T", tmp_path / "body", presign("put_object"))
    # curl asks by itself before it sends more than 1 MiB.
    assert b"> Expect: 100-continue" in sent.stderr
    assert b"< HTTP/1.1 100 Continue" in sent.stderr
    assert run("curl", "-sSf", presign("get_object")).stdout == body
    some = run("curl", "-sSf", "-r", "1048570-1048580", presign("get_object"))
    assert some.stdout == body[1048570:1048581]
    run("curl", "-sSf", "-C", "-", "-o", tmp_path / "out", presign("get_object"))
    half = (tmp_path / "out").read_bytes()[: 10 * MIB]
    (tmp_path / "out").write_bytes(half)
    run("curl", "-sSf", "-C", "-", "-o", tmp_path / "out", presign("get_object"))
    assert (tmp_path / "out").read_bytes() == body
    head = run("curl", "-sSfI", presign("head_object")).stdout.decode()
    assert f"Content-Length: {20 * MIB}" in head


def test_a_body_of_unknown_length_is_stored_whole(presign: Any) -> None:
    body = os.urandom(3 * MIB + 1)
    sent = run("curl", "-sSvf", "-T", "-", presign("put_object"), stdin=body)
    assert b"> Transfer-Encoding: chunked" in sent.stderr
    assert run("curl", "-sSf", presign("get_object")).stdout == body


def test_100_continue_is_not_sent_to_whom_may_not(presign: Any, tmp_path: Path) -> None:
    (tmp_path / "body").write_bytes(bytes(5 * MIB))
    url = re.sub(
        "(?<=Signature=).", lambda digit: "1" if digit[0] == "0" else "0", presign("put_object")
    )
    sent = run("curl", "-sSv", "-H", "Expect: 100-continue", "-T", tmp_path / "body", url)
    assert b"100 Continue" not in sent.stderr
    assert b"< HTTP/1.1 403 Forbidden" in sent.stderr
    assert b"SignatureDoesNotMatch" in sent.stdout


def test_many_files_come_over_one_connection(presign: Any, s3: Any, bucket: str) -> None:
    bodies = {f"k{number}": os.urandom(1000 * number) for number in range(20)}
    urls = []
    for key, body in bodies.items():
        s3.put_object(Bucket=bucket, Key=key, Body=body)
        urls.append(presign("get_object", key))
    got = run("curl", "-sSvf", *urls)
    assert got.stdout == b"".join(bodies.values())
    assert got.stderr.count(b"Re-using existing connection") == 19


def test_pipelined_requests_are_answered_in_order(
    server: Server, presign: Any, s3: Any, bucket: str
) -> None:
    bodies = {f"k{number}": os.urandom(7000 * number) for number in range(30)}
    requests = []
    for key, body in bodies.items():
        s3.put_object(Bucket=bucket, Key=key, Body=body)
        url = urllib.parse.urlsplit(presign("get_object", key))
        target = f"{url.path}?{url.query}"
        requests.append(f"GET {target} HTTP/1.1\r\nHost: {url.netloc}\r\n\r\n".encode())
    where = urllib.parse.urlsplit(server.url)
    with socket.create_connection((where.hostname, where.port), READ_S) as connection:
        connection.sendall(b"".join(requests))
        with connection.makefile("rb") as stream:
            for body in bodies.values():
                assert stream.readline() == b"HTTP/1.1 200 OK\r\n"
                headers = {}
                while (line := stream.readline()) != b"\r\n":
                    name, _, value = line.decode().partition(":")
                    headers[name.lower()] = value.strip()
                assert stream.read(int(headers["content-length"])) == body
