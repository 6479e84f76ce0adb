"""What boto3 presigns when nobody tells it how, over real HTTP.

That is Signature Version 2 in us-east-1; the tests say so, to notice when it changes.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
import trio
from botocore.config import Config
from botocore.exceptions import ClientError

from tests.support.s3 import ROOT, Answer, S3Server, running_s3

BOUNDARY = "boundary"


@pytest.fixture
async def s3(tmp_path: Path) -> AsyncIterator[S3Server]:
    async with running_s3(tmp_path, domains=("localhost",)) as server:
        await server.put("/bucket")
        yield server


@pytest.fixture(params=["path", "virtual"])
def boto(request: pytest.FixtureRequest, s3: S3Server) -> Iterator[Any]:
    host = "127.0.0.1" if request.param == "path" else "localhost"
    client = boto3.client(
        "s3",
        endpoint_url=f"http://{host}:{s3.port}",
        aws_access_key_id=ROOT.access_key,
        aws_secret_access_key=ROOT.secret_key,
        region_name="us-east-1",
        config=Config(s3={"addressing_style": request.param}),
    )
    yield client
    client.close()


async def fetch(
    s3: S3Server, url: str, method: str = "GET", body: bytes = b"", **headers: str
) -> Answer:
    """Request the URL as any HTTP client would."""
    host, _, target = url.removeprefix("http://").partition("/")
    lines = [(b"host", host.encode())]
    if body or method in ("PUT", "POST"):
        lines.append((b"content-length", str(len(body)).encode()))
    lines += [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    return await s3.send(method, b"/" + target.encode(), lines, body)


def presign(boto: Any, operation: str, *, expires_s: int = 60, **params: Any) -> str:
    url: str = boto.generate_presigned_url(
        operation, Params={"Bucket": "bucket", **params}, ExpiresIn=expires_s
    )
    assert "AWSAccessKeyId=" in url
    return url


async def test_presigned_urls_put_get_list_and_delete(s3: S3Server, boto: Any) -> None:
    key = "a b/ü+~.txt"
    put = presign(boto, "put_object", Key=key)
    assert (await fetch(s3, put, "PUT", b"data")).status == 200
    get = presign(boto, "get_object", Key=key)
    got = await fetch(s3, get)
    assert (got.status, got.body) == (200, b"data")
    assert (await fetch(s3, get, range="bytes=1-2")).body == b"at"
    named = presign(
        boto, "get_object", Key=key, ResponseContentDisposition='attachment; filename="x & y"'
    )
    answer = await fetch(s3, named)
    assert answer.headers["content-disposition"] == 'attachment; filename="x & y"'
    for operation in ("head_object", "head_bucket"):
        params = {"Key": key} if operation == "head_object" else {}
        assert (await fetch(s3, presign(boto, operation, **params), "HEAD")).status == 200
    listed = await fetch(s3, presign(boto, "list_objects_v2", Prefix="a b/"))
    assert listed.text("KeyCount") == "1"
    assert (await fetch(s3, presign(boto, "get_bucket_acl"))).status == 200
    assert (await fetch(s3, presign(boto, "delete_object", Key=key), "DELETE")).status == 204
    assert (await fetch(s3, get)).code == "NoSuchKey"


async def test_what_the_url_says_of_the_object_is_stored(s3: S3Server, boto: Any) -> None:
    put = presign(boto, "put_object", Key="k", ContentType="a/b", Metadata={"Colour": "red"})
    assert (await fetch(s3, put, "PUT", b"1")).status == 200
    headers = (await s3.get("/bucket/k")).headers
    assert (headers["content-type"], headers["x-amz-meta-colour"]) == ("a/b", "red")
    sent = {"content_type": "a/b", "x_amz_meta_colour": "red"}
    assert (await fetch(s3, put, "PUT", b"2", **sent)).status == 200
    for other in ({"content_type": "c/d"}, {"x_amz_meta_colour": "blue"}, {"x_amz_meta_b": "x"}):
        refused = await fetch(s3, put, "PUT", b"3", **{**sent, **other})
        assert (refused.status, refused.code) == (403, "SignatureDoesNotMatch")
    copy = presign(boto, "copy_object", Key="copy", CopySource="bucket/k")
    assert (await fetch(s3, copy, "PUT")).status == 200
    assert (await s3.get("/bucket/copy")).body == b"2"


async def test_an_upload_in_parts_works_with_presigned_urls(s3: S3Server, boto: Any) -> None:
    created = await fetch(s3, presign(boto, "create_multipart_upload", Key="parts"), "POST")
    upload_id = created.text("UploadId")
    part_url = presign(boto, "upload_part", Key="parts", UploadId=upload_id, PartNumber=1)
    part = await fetch(s3, part_url, "PUT", b"part")
    listed = await fetch(s3, presign(boto, "list_parts", Key="parts", UploadId=upload_id))
    assert listed.texts("Part/Size") == ["4"]
    complete = presign(boto, "complete_multipart_upload", Key="parts", UploadId=upload_id)
    entry = f"<Part><PartNumber>1</PartNumber><ETag>{part.headers['etag']}</ETag></Part>"
    body = f"<CompleteMultipartUpload>{entry}</CompleteMultipartUpload>".encode()
    assert (await fetch(s3, complete, "POST", body)).status == 200
    assert (await s3.get("/bucket/parts")).body == b"part"


async def test_a_presigned_url_is_for_one_operation_on_one_key(s3: S3Server, boto: Any) -> None:
    await s3.put("/bucket/k", b"data")
    await s3.put("/bucket/other", b"data")
    get = presign(boto, "get_object", Key="k")
    for method, url in (
        ("DELETE", get),
        ("PUT", get),
        ("GET", get.replace("/k?", "/other?")),
        ("GET", get.replace("/k?", "/?")),
        ("GET", get + "&tagging"),
        ("GET", get + "&attributes"),
        ("GET", get + "&versionId=null"),
        ("GET", get + "&response-content-type=text/html"),
    ):
        answer = await fetch(s3, url, method)
        assert (answer.status, answer.code) == (403, "SignatureDoesNotMatch"), (method, url)
    expired = await fetch(s3, presign(boto, "get_object", Key="k", expires_s=-1))
    assert (expired.status, expired.code) == (403, "AccessDenied")
    assert expired.text("Message") == "Request has expired"
    assert (await fetch(s3, get)).status == 200


def form_body(fields: dict[str, str], file: bytes) -> bytes:
    parts = [
        f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'
        for name, value in fields.items()
    ]
    head = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="file"; filename="f.txt"\r\n\r\n'
    return "".join([*parts, head]).encode() + file + f"\r\n--{BOUNDARY}--\r\n".encode()


async def test_presigned_forms_upload_within_their_policy(s3: S3Server, boto: Any) -> None:
    post = boto.generate_presigned_post(
        "bucket",
        "up/${filename}",
        Fields={"x-amz-meta-a": "1"},
        Conditions=[{"x-amz-meta-a": "1"}, ["content-length-range", 1, 4]],
    )
    assert "AWSAccessKeyId" in post["fields"]
    kind = f"multipart/form-data; boundary={BOUNDARY}"

    async def send(file: bytes, **changed: str) -> Answer:
        body = form_body({**post["fields"], **changed}, file)
        return await fetch(s3, post["url"], "POST", body, content_type=kind)

    assert (await send(b"data")).status == 204
    stored = await s3.get("/bucket/up/f.txt")
    assert (stored.body, stored.headers["x-amz-meta-a"]) == (b"data", "1")
    assert (await send(b"longer")).code == "EntityTooLarge"
    assert (await send(b"x", key="down")).code == "AccessDenied"
    assert (await send(b"x", signature="x")).code == "SignatureDoesNotMatch"
    assert (await s3.get("/bucket/up/f.txt")).body == b"data"


async def test_signature_version_2_is_refused_in_the_header(s3: S3Server) -> None:
    client = boto3.client(
        "s3",
        endpoint_url=f"http://{s3.host}",
        aws_access_key_id=ROOT.access_key,
        aws_secret_access_key=ROOT.secret_key,
        region_name="us-east-1",
        config=Config(signature_version="s3"),
    )
    for call in (client.list_buckets, lambda: client.get_object(Bucket="bucket", Key="k")):
        with pytest.raises(ClientError) as raised:
            await trio.to_thread.run_sync(call)
        assert raised.value.response["Error"]["Code"] == "InvalidRequest"
        assert "Please use AWS4-HMAC-SHA256." in raised.value.response["Error"]["Message"]
    client.close()
