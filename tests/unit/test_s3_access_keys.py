"""What an access key may do through S3, operation by operation."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trio

from engine.access_keys import AccessKey
from s3.auth.credentials import Credential
from s3.auth.presign import sign_policy
from s3.routing import _ROUTES, Level
from tests.support.s3 import ROOT, Answer, S3Server, running_s3


@pytest.fixture
async def s3(tmp_path: Path) -> AsyncIterator[S3Server]:
    async with running_s3(tmp_path) as server:
        for bucket in ("mine", "other"):
            await server.put(f"/{bucket}")
            await server.put(f"/{bucket}/key", b"data")
        yield server


async def key_of(s3: S3Server, **settings: object) -> Credential:
    """Make a key, and wait until the server knows it."""
    key: AccessKey = await s3.engine.access_keys.create("test", **settings)  # type: ignore[arg-type]
    with trio.fail_after(30):
        while s3.engine.access_keys.find(key.access_key) is None:  # noqa: ASYNC110
            await trio.sleep(0.01)
    return Credential(key.access_key, key.secret_key, ROOT.owner_id, "root")


Asked = tuple[str, str, str, str]
"""Operation, method, path, query."""


def operations(bucket: str) -> list[Asked]:
    """Return every operation on the bucket or its key."""
    asked = []
    for (method, level, name), route in _ROUTES.items():
        if level == Level.SERVICE or not route.signed:
            continue
        path = f"/{bucket}" if level == Level.BUCKET else f"/{bucket}/key"
        query = name.removesuffix(" copy")
        if query == "uploadId":
            query = "uploadId=x&partNumber=1"
        asked.append((route.name, method, path, query))
    return asked


async def ask(s3: S3Server, asked: Asked, credential: Credential) -> Answer:
    name, method, path, query = asked
    headers = {"x-amz-copy-source": "/mine/key"} if "Copy" in name else {}
    return await s3.request(method, path, query, headers=headers, credential=credential)


def is_refused(answer: Answer, method: str) -> bool:
    return answer.status == 403 and (method == "HEAD" or answer.code == "AccessDenied")


async def test_a_key_of_other_buckets_is_refused_whatever_it_asks(s3: S3Server) -> None:
    key = await key_of(s3, buckets=["mine"])
    for bucket in ("other", "absent"):
        for asked in operations(bucket):
            assert is_refused(await ask(s3, asked, key), asked[1]), asked
    assert (await s3.get("/other/key")).body == b"data"


async def test_a_key_for_reading_is_refused_whatever_changes_something(s3: S3Server) -> None:
    key = await key_of(s3, read_only=True)
    refused = set()
    for asked in operations("mine"):
        answer = await ask(s3, asked, key)
        if is_refused(answer, asked[1]):
            refused.add(asked[0])
        else:
            assert asked[1] in ("GET", "HEAD"), asked
    assert refused == {
        name for name, method, _, _ in operations("mine") if method not in "GET HEAD"
    }
    assert (await s3.request("GET", "/mine/key", credential=key)).body == b"data"
    listed = await s3.request("GET", "/mine", "list-type=2", credential=key)
    assert listed.texts("Contents/Key") == ["key"]


async def test_a_key_of_some_buckets_does_all_there_and_sees_no_others(s3: S3Server) -> None:
    key = await key_of(s3, buckets=["mine", "new"])
    assert (await s3.request("PUT", "/mine/a", body=b"1", credential=key)).status == 200
    assert (await s3.request("PUT", "/new", credential=key)).status == 200
    listed = await s3.request("GET", "/", credential=key)
    assert listed.texts("Buckets/Bucket/Name") == ["mine", "new"]
    page = await s3.request("GET", "/", "max-buckets=1", credential=key)
    assert page.texts("Buckets/Bucket/Name") == ["mine"]
    token = page.text("ContinuationToken")
    rest = await s3.request("GET", "/", f"max-buckets=1&continuation-token={token}", credential=key)
    assert rest.texts("Buckets/Bucket/Name") == ["new"]
    assert rest.text("ContinuationToken") is None
    assert (await s3.request("DELETE", "/new", credential=key)).status == 204


async def test_bytes_of_another_bucket_are_not_copied(s3: S3Server) -> None:
    key = await key_of(s3, buckets=["mine"])
    for source in ("/other/key", "/absent/key"):
        copied = await s3.request(
            "PUT", "/mine/copy", headers={"x-amz-copy-source": source}, credential=key
        )
        assert (copied.status, copied.code) == (403, "AccessDenied")
    answer = await s3.request("POST", "/mine/copy", "uploads", credential=key)
    part = await s3.request(
        "PUT",
        "/mine/copy",
        f"partNumber=1&uploadId={answer.text('UploadId')}",
        headers={"x-amz-copy-source": "/other/key"},
        credential=key,
    )
    assert (part.status, part.code) == (403, "AccessDenied")


async def test_what_a_key_signed_in_advance_ends_with_it(s3: S3Server) -> None:
    key = await key_of(s3)
    s3.credential = key
    target = s3.presigned("GET", "/mine/key")
    host = [(b"host", s3.host.encode())]
    assert (await s3.send("GET", target, host)).body == b"data"
    await s3.engine.access_keys.delete(key.access_key)
    with trio.fail_after(30):
        while s3.engine.access_keys.find(key.access_key) is not None:  # noqa: ASYNC110
            await trio.sleep(0.01)
    answer = await s3.send("GET", target, host)
    assert (answer.status, answer.code) == (403, "InvalidAccessKeyId")


@pytest.mark.parametrize("settings", [{"read_only": True}, {"buckets": ["mine"]}])
async def test_a_form_needs_a_key_that_may_write_there(
    s3: S3Server, settings: dict[str, object]
) -> None:
    key = await key_of(s3, **settings)
    bucket = "other"
    policy = (
        b'{"expiration": "2099-01-01T00:00:00Z", "conditions": [{"bucket": "other"},'
        b'["starts-with", "$key", ""], ["starts-with", "$x-amz-algorithm", ""],'
        b'["starts-with", "$x-amz-credential", ""], ["starts-with", "$x-amz-date", ""]]}'
    )
    status = {}
    for credential in (key, ROOT):
        fields = sign_policy(policy, credential=credential, region=s3.region, at_ms=s3.clock())
        lines = b""
        for name, value in [(b"key", b"form"), *fields, (b"file", b"bytes")]:
            extra = b'; filename="f"' if name == b"file" else b""
            lines += b'--B\r\nContent-Disposition: form-data; name="%b"%b\r\n\r\n%b\r\n' % (
                *(name, extra, value),
            )
        body = lines + b"--B--\r\n"
        answer = await s3.request(
            "POST",
            f"/{bucket}",
            headers={"content-type": "multipart/form-data; boundary=B"},
            body=body,
            signed=False,
        )
        status[credential.access_key] = answer.status
    assert status == {key.access_key: 403, ROOT.access_key: 204}
