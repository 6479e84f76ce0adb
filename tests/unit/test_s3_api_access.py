"""The S3 API over HTTP: who may, bodies in every framing, forms, and errors before operations."""

from __future__ import annotations

import base64
import json
import os
import zlib
from collections.abc import AsyncIterator, Mapping
from datetime import UTC, datetime
from pathlib import Path

import pytest

from s3.auth.credentials import Credential
from s3.auth.presign import encode_chunks, sign_policy, sign_request
from tests.support.s3 import ROOT, Answer, S3Server, running_s3


@pytest.fixture
async def s3(tmp_path: Path) -> AsyncIterator[S3Server]:
    async with running_s3(tmp_path) as server:
        await server.put("/bucket")
        await server.put("/bucket/key", b"data")
        yield server


def crc32_text(data: bytes) -> str:
    return base64.b64encode(zlib.crc32(data).to_bytes(4, "big")).decode()


async def test_anonymous_requests_are_refused_whatever_they_ask(s3: S3Server) -> None:
    for method, path, query in (
        ("GET", "/", ""),
        ("GET", "/bucket/key", ""),
        ("GET", "/absent/key", ""),
        ("PUT", "/bucket/new", ""),
        ("PUT", "/bucket", "policy"),
        ("PATCH", "/bucket/key", ""),
        ("POST", "/bucket", "delete"),
    ):
        answer = await s3.request(method, path, query, signed=False)
        assert (answer.status, answer.code) == (403, "AccessDenied"), (method, path)


async def test_wrong_credentials(s3: S3Server) -> None:
    unknown = Credential("NOBODY", "x", "n", "n")
    answer = await s3.request("GET", "/bucket/key", credential=unknown)
    assert (answer.status, answer.code) == (403, "InvalidAccessKeyId")
    wrong = Credential(ROOT.access_key, "wrong", "n", "n")
    answer = await s3.request("GET", "/bucket/key", credential=wrong)
    assert (answer.status, answer.code) == (403, "SignatureDoesNotMatch")
    assert answer.text("StringToSign")
    head = await s3.request("HEAD", "/bucket/key", credential=wrong)
    assert (head.status, head.body) == (403, b"")


async def test_another_region_is_told_the_right_one(s3: S3Server) -> None:
    s3.region = "eu-west-1"
    answer = await s3.request("GET", "/bucket/key")
    assert (answer.status, answer.code) == (400, "AuthorizationHeaderMalformed")
    assert answer.text("Region") == "us-east-1"
    assert (await s3.request("GET", "/bucket", "location")).status == 200
    assert (await s3.request("HEAD", "/bucket")).headers["x-amz-bucket-region"] == "us-east-1"


async def test_presigned_urls(s3: S3Server) -> None:
    host = [(b"host", s3.host.encode())]
    got = await s3.send("GET", s3.presigned("GET", "/bucket/key"), host)
    assert (got.status, got.body) == (200, b"data")
    named = s3.presigned("GET", "/bucket/key", "response-content-type=text%2Fx")
    assert (await s3.send("GET", named, host)).headers["content-type"] == "text/x"
    other = await s3.send(
        "GET", s3.presigned("GET", "/bucket/other").replace(b"other", b"key"), host
    )
    assert other.code == "SignatureDoesNotMatch"
    put = await s3.send(
        "PUT", s3.presigned("PUT", "/bucket/new"), [*host, (b"content-length", b"3")], b"new"
    )
    assert put.status == 200
    assert (await s3.get("/bucket/new")).body == b"new"


async def send_chunked(
    s3: S3Server,
    mode: str,
    pieces: list[bytes],
    *,
    trailer: tuple[bytes, bytes] | None = None,
    length: int | None = None,
    damage: tuple[bytes, bytes] = (b"", b""),
) -> Answer:
    decoded = sum(map(len, pieces)) if length is None else length
    headers = [
        (b"host", s3.host.encode()),
        (b"content-encoding", b"aws-chunked"),
        (b"x-amz-decoded-content-length", str(decoded).encode()),
    ]
    if trailer is not None:
        headers.append((b"x-amz-trailer", trailer[0]))
    headers, context = sign_request(
        "PUT",
        b"/bucket/chunked",
        b"",
        headers,
        credential=ROOT,
        region="us-east-1",
        at_ms=s3.clock(),
        payload=mode.encode(),
    )
    body = b"".join(
        encode_chunks(
            pieces,
            context if "HMAC" in mode else None,
            [trailer] if trailer is not None else None,
        )
    )
    body = body.replace(*damage) if damage[0] else body
    headers.append((b"content-length", str(len(body)).encode()))
    return await s3.send("PUT", b"/bucket/chunked", headers, body)


SIGNED = "STREAMING-AWS4-HMAC-SHA256-PAYLOAD"


@pytest.mark.parametrize("size", [0, 1, 70_000, 400_000])
@pytest.mark.parametrize(
    "mode", [SIGNED, SIGNED + "-TRAILER", "STREAMING-UNSIGNED-PAYLOAD-TRAILER"]
)
async def test_aws_chunked_bodies(s3: S3Server, mode: str, size: int) -> None:
    data = os.urandom(size)
    pieces = [data[start : start + 65536] for start in range(0, size, 65536)]
    trailer = (b"x-amz-checksum-crc32", crc32_text(data).encode())
    answer = await send_chunked(
        s3, mode, pieces, trailer=trailer if mode.endswith("TRAILER") else None
    )
    assert answer.status == 200, answer
    if mode.endswith("TRAILER"):
        assert answer.headers["x-amz-checksum-crc32"] == crc32_text(data)
    got = await s3.get("/bucket/chunked")
    assert got.body == data
    assert "content-encoding" not in got.headers


async def test_damaged_chunked_bodies_leave_nothing(s3: S3Server) -> None:
    data = b"a" * 100_000
    unsigned = "STREAMING-UNSIGNED-PAYLOAD-TRAILER"
    trailer = (b"x-amz-checksum-crc32", crc32_text(data).encode())
    wrong = (b"x-amz-checksum-crc32", crc32_text(b"other").encode())
    refused = await send_chunked(s3, SIGNED, [data], damage=(b"aaa\r\n", b"aab\r\n"))
    assert refused.code == "SignatureDoesNotMatch"
    assert (await send_chunked(s3, unsigned, [data], trailer=wrong)).code == "BadDigest"
    empty = await send_chunked(s3, unsigned, [], trailer=wrong)
    assert empty.code == "BadDigest"
    for length in (99_999, 100_001):
        answer = await send_chunked(s3, unsigned, [data], trailer=trailer, length=length)
        assert answer.status == 400
    assert (await s3.get("/bucket/chunked")).status == 404


async def test_documents_may_be_chunked_too(s3: S3Server) -> None:
    body = b"<VersioningConfiguration><Status>Enabled</Status></VersioningConfiguration>"
    answer = await s3.request(
        "PUT", "/bucket", "versioning", body=body, payload=b"UNSIGNED-PAYLOAD"
    )
    assert answer.status == 200
    answer = await s3.request("PUT", "/bucket", "versioning", body=body, payload=b"0" * 64)
    assert answer.code == "XAmzContentSHA256Mismatch"
    large = b"<VersioningConfiguration>" + b" " * (1 << 20)
    answer = await s3.request("PUT", "/bucket", "versioning", body=large)
    assert (answer.status, answer.code) == (400, "MaxMessageLengthExceeded")


async def test_methods_and_operations_that_are_not_there(s3: S3Server) -> None:
    for method, path, query, status, code in (
        ("PATCH", "/bucket/key", "", 405, "MethodNotAllowed"),
        ("POST", "/bucket/key", "", 405, "MethodNotAllowed"),
        ("DELETE", "/", "", 405, "MethodNotAllowed"),
        ("PUT", "/bucket", "policy", 501, "NotImplemented"),
        ("GET", "/bucket/key", "torrent", 501, "NotImplemented"),
        ("GET", "/bucket", "inventory&id=1", 501, "NotImplemented"),
        ("GET", "/bucket", "acl&cors", 400, "InvalidArgument"),
    ):
        answer = await s3.request(method, path, query)
        assert (answer.status, answer.code) == (status, code)
    patched = await s3.request("PATCH", "/bucket/key")
    assert patched.headers["allow"] == "DELETE, GET, HEAD, PUT"


TAGGING = "<Tagging><TagSet><Tag><Key>a</Key><Value>b</Value></Tag></TagSet></Tagging>"
BOUNDARY = "xxBOUNDARYxx"


def form_body(fields: Mapping[str, str], file: bytes, file_name: str = "up.txt") -> bytes:
    lines = []
    for name, value in fields.items():
        lines.append(
            f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'
        )
    lines.append(
        f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="file"; filename="{file_name}"\r\n'
        "Content-Type: text/plain\r\n\r\n"
    )
    return "".join(lines).encode() + file + f"\r\n--{BOUNDARY}--\r\n".encode()


async def post_form(
    s3: S3Server,
    fields: dict[str, str],
    file: bytes = b"file data",
    *,
    conditions: list[object] | None = None,
    seconds: int = 60,
    credential: Credential = ROOT,
) -> Answer:
    expires = datetime.fromtimestamp(s3.clock() / 1000 + seconds, UTC)
    covered: list[object] = [["starts-with", f"${name}", ""] for name in fields]
    policy = {
        "expiration": expires.strftime("%Y-%m-%dT%H:%M:%SZ"),
        "conditions": [{"bucket": "bucket"}, *covered, *(conditions or [])],
    }
    signature = sign_policy(
        _with_signing_conditions(policy, s3, credential),
        credential=credential,
        region="us-east-1",
        at_ms=s3.clock(),
    )
    signed = {name.decode(): value.decode() for name, value in signature}
    body = form_body(fields | signed, file)
    return await s3.request(
        "POST",
        "/bucket",
        headers={"content-type": f"multipart/form-data; boundary={BOUNDARY}"},
        body=body,
        signed=False,
    )


def _with_signing_conditions(
    policy: dict[str, object], s3: S3Server, credential: Credential
) -> bytes:
    conditions = policy["conditions"]
    assert isinstance(conditions, list)
    for name in ("x-amz-algorithm", "x-amz-credential", "x-amz-date"):
        conditions.append(["starts-with", f"${name}", ""])
    return json.dumps(policy).encode()


async def test_forms_upload_files(s3: S3Server) -> None:
    answer = await post_form(
        s3,
        {
            "key": "up/${filename}",
            "Content-Type": "image/x",
            "x-amz-meta-m": "1",
            "success_action_status": "201",
            "tagging": TAGGING,
        },
    )
    assert answer.status == 201, answer
    assert answer.text("Key") == "up/up.txt"
    assert answer.text("Location") == f"http://{s3.host}/bucket/up/up.txt"
    got = await s3.get("/bucket/up/up.txt")
    assert (got.body, got.headers["content-type"]) == (b"file data", "image/x")
    assert (got.headers["x-amz-meta-m"], got.headers["x-amz-tagging-count"]) == ("1", "1")
    large = os.urandom(700_000)
    assert (await post_form(s3, {"key": "large"}, large)).status == 204
    assert (await s3.get("/bucket/large")).body == large
    sent_on = await post_form(s3, {"key": "k", "success_action_redirect": "https://a.test/x?y=1"})
    assert sent_on.status == 303
    assert sent_on.headers["location"].startswith("https://a.test/x?y=1&bucket=bucket&key=k&etag=")


async def test_forms_that_are_refused_store_nothing(s3: S3Server) -> None:
    wrong = Credential(ROOT.access_key, "wrong", "n", "n")
    assert (await post_form(s3, {"key": "f"}, credential=wrong)).code == "SignatureDoesNotMatch"
    assert (await post_form(s3, {"key": "f"}, seconds=-1)).code == "AccessDenied"
    exact = [["eq", "$key", "other"]]
    assert (await post_form(s3, {"key": "f"}, conditions=list(exact))).code == "AccessDenied"
    for low, high, code in ((0, 3, "EntityTooLarge"), (100, 200, "EntityTooSmall")):
        limits: list[object] = [["content-length-range", low, high]]
        assert (await post_form(s3, {"key": "f"}, conditions=limits)).code == code
    assert (await post_form(s3, {"key": "f", "acl": "public-read"})).code == (
        "AccessControlListNotSupported"
    )
    assert (await post_form(s3, {"key": "f" * 1025})).code == "KeyTooLongError"
    plain = await s3.request("POST", "/bucket", body=b"x")
    assert (plain.status, plain.code) == (412, "PreconditionFailed")
    assert (await s3.get("/bucket", "list-type=2")).texts("Contents/Key") == ["key"]
