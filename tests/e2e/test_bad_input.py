"""Uploads that break off or lie, over the wire: nothing of them is left behind."""

from __future__ import annotations

import base64
import hashlib
import http.client
import json
import os
import socket
import struct
import time
import urllib.parse
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from botocore.auth import S3SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials

from tests.support.clients import MIB
from tests.support.server import STOP_S, Server, lode

SIZES = [200, 30_000, 200_000, 3 * MIB]
"""Kept in a record, beside it, as copies, and coded."""

TIME_S = 120.0


def sign(
    server: Server, path: str, headers: dict[str, str], payload: str, method: str = "PUT"
) -> dict[str, str]:
    """Return the headers with a signature that holds for ``payload`` as the payload's hash."""
    request = AWSRequest(
        method, server.url + path, headers={**headers, "x-amz-content-sha256": payload}
    )
    request.context["payload_signing_enabled"] = True

    class Auth(S3SigV4Auth):  # type: ignore[misc]  # botocore has no types
        def payload(self, request: Any) -> str:
            return payload

    Auth(Credentials(*server.credentials), "s3", "us-east-1").add_auth(request)
    return dict(request.headers.items())


@contextmanager
def connected(server: Server) -> Iterator[http.client.HTTPConnection]:
    where = urllib.parse.urlsplit(server.url)
    assert where.hostname is not None
    connection = http.client.HTTPConnection(where.hostname, where.port, timeout=TIME_S)
    try:
        yield connection
    finally:
        connection.close()


def put(server: Server, path: str, headers: dict[str, str], body: bytes) -> tuple[int, str]:
    """Return the status and S3's code of a PUT that is sent as it is."""
    with connected(server) as connection:
        connection.request("PUT", path, body, headers)
        response = connection.getresponse()
        said = response.read().decode()
    code = said.partition("<Code>")[2].partition("</Code>")[0]
    return response.status, code


def cut_off(
    server: Server, path: str, headers: dict[str, str], body: bytes, *, reset: bool
) -> None:
    """Send a request whose body ends early, and close the connection."""
    with connected(server) as connection:
        connection.putrequest("PUT", path, skip_accept_encoding=True, skip_host=True)
        for name, value in headers.items():
            connection.putheader(name, value)
        connection.endheaders(body)
        if reset:
            option = struct.pack("ii", 1, 0)
            connection.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, option)
            return
        connection.sock.shutdown(socket.SHUT_WR)
        answer = connection.sock.recv(12)
        # Either nothing or a refusal; never success.
        assert answer in (b"", b"HTTP/1.1 400"), answer


def chunked(body: bytes, trailer: str, size: int = 65536) -> bytes:
    """Return the body in unsigned aws-chunked framing."""
    out = []
    for start in range(0, len(body), size):
        piece = body[start : start + size]
        out.append(b"%x\r\n%b\r\n" % (len(piece), piece))
    return b"".join(out) + f"0\r\n{trailer}\r\n\r\n".encode()


def fragments(server: Server) -> int:
    data = Path(server.credentials_path).parent
    shown = json.loads(lode("status", "--data", str(data), "--json").stdout)
    return sum(drive["fragments"] for drive in shown["drives"])


@pytest.fixture
def path(server: Server, s3: Any, bucket: str) -> Iterator[str]:
    """The path of a key that must not come to be; afterwards the store is as it was."""
    before = fragments(server)
    yield f"/{bucket}/k"
    assert s3.list_objects_v2(Bucket=bucket)["KeyCount"] == 0
    assert "Versions" not in s3.list_object_versions(Bucket=bucket)
    # A body that was cut off is cleaned away when the server sees the connection end.
    deadline = time.monotonic() + STOP_S
    while fragments(server) != before:
        assert time.monotonic() < deadline, f"{fragments(server)} fragments, not {before}"
    data = Path(server.credentials_path).parent
    report = json.loads(lode("fsck", "--data", str(data), "--deep", "--json").stdout)
    assert report["clean"], report
    assert report["objects"] == 0


@pytest.mark.parametrize("reset", [False, True])
@pytest.mark.parametrize("size", SIZES)
def test_a_body_that_ends_early_is_not_stored(
    server: Server, path: str, size: int, reset: bool
) -> None:
    body = os.urandom(size)
    headers = sign(server, path, {"Content-Length": str(size)}, "UNSIGNED-PAYLOAD")
    headers["Host"] = urllib.parse.urlsplit(server.url).netloc
    cut_off(server, path, headers, body[: size - 1], reset=reset)
    cut_off(server, path, headers, body[: size // 2], reset=reset)
    cut_off(server, path, headers, b"", reset=reset)


@pytest.mark.parametrize("size", SIZES)
def test_a_part_that_ends_early_is_no_part(
    server: Server, s3: Any, bucket: str, path: str, size: int
) -> None:
    upload = s3.create_multipart_upload(Bucket=bucket, Key="k")["UploadId"]
    target = f"{path}?partNumber=1&uploadId={upload}"
    headers = sign(server, target, {"Content-Length": str(size)}, "UNSIGNED-PAYLOAD")
    headers["Host"] = urllib.parse.urlsplit(server.url).netloc
    cut_off(server, target, headers, bytes(size - 1), reset=False)
    assert "Parts" not in s3.list_parts(Bucket=bucket, Key="k", UploadId=upload)
    s3.abort_multipart_upload(Bucket=bucket, Key="k", UploadId=upload)


@pytest.mark.parametrize("size", SIZES)
def test_a_body_that_is_not_what_was_announced_is_not_stored(
    server: Server, path: str, size: int
) -> None:
    body = os.urandom(size)
    digest = hashlib.sha256(body).hexdigest()
    other = os.urandom(size)

    headers = sign(server, path, {}, hashlib.sha256(other).hexdigest())
    assert put(server, path, headers, body) == (400, "XAmzContentSHA256Mismatch")

    md5 = base64.b64encode(hashlib.md5(other).digest()).decode()
    headers = sign(server, path, {"Content-MD5": md5}, digest)
    assert put(server, path, headers, body) == (400, "BadDigest")
    headers = sign(server, path, {"Content-MD5": "rubbish"}, digest)
    assert put(server, path, headers, body) == (400, "InvalidDigest")

    wrong = base64.b64encode(hashlib.sha256(other).digest()).decode()
    headers = sign(server, path, {"x-amz-checksum-sha256": wrong}, digest)
    assert put(server, path, headers, body) == (400, "BadDigest")
    headers = sign(server, path, {"x-amz-checksum-crc32": "short"}, digest)
    assert put(server, path, headers, body) == (400, "InvalidRequest")

    if size < MIB:
        # What is refused unread is read no further than that; then sending fails.
        headers = sign(server, path, {}, digest)
        assert put(server, path + "2", headers, body) == (403, "SignatureDoesNotMatch")


@pytest.mark.parametrize("size", SIZES)
def test_chunks_and_trailers_that_lie_are_not_stored(server: Server, path: str, size: int) -> None:
    body = os.urandom(size)
    kind = "STREAMING-UNSIGNED-PAYLOAD-TRAILER"

    def send(trailer: str, length: int = size, cut: int = 0) -> tuple[int, str]:
        framed = chunked(body, trailer)
        framed = framed[: len(framed) - cut]
        announced = {
            "Content-Encoding": "aws-chunked",
            "x-amz-decoded-content-length": str(length),
            "x-amz-trailer": "x-amz-checksum-sha256",
        }
        return put(server, path, sign(server, path, announced, kind), framed)

    right = base64.b64encode(hashlib.sha256(body).digest()).decode()
    wrong = base64.b64encode(hashlib.sha256(b"other").digest()).decode()
    assert send(f"x-amz-checksum-sha256:{wrong}") == (400, "BadDigest")
    assert send(f"x-amz-checksum-sha1:{right}") == (400, "MalformedTrailerError")
    assert send("")[0] == 400
    assert send(f"x-amz-checksum-sha256:{right}", length=size + 1) == (400, "IncompleteBody")
    assert send(f"x-amz-checksum-sha256:{right}", length=size - 1)[0] == 400
    assert send(f"x-amz-checksum-sha256:{right}", cut=4)[0] == 400
    # Cut inside of the last chunk: the frame ends early although Content-Length is kept.
    assert send(f"x-amz-checksum-sha256:{right}", cut=len(right) + 40)[0] == 400
