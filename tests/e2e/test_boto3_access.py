"""Who may: signatures, presigned URLs, forms, virtual hosts; clients are boto3 and urllib."""

from __future__ import annotations

import io
import os
import socket
import urllib.error
import urllib.parse
import urllib.request
import uuid
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import boto3
import botocore.auth
import botocore.compat
import botocore.crt.auth
import pytest
from botocore import UNSIGNED
from botocore.config import Config
from botocore.exceptions import ClientError

from tests.support.clients import error_code, s3_client
from tests.support.server import Server


@pytest.fixture(scope="module", params=["default", "s3v4"])
def signer(request: pytest.FixtureRequest, server: Server) -> Iterator[Any]:
    """A client that presigns by boto3's default, Version 2 in us-east-1, or by Version 4."""
    more = {} if request.param == "default" else {"signature_version": request.param}
    client = s3_client(server, **more)
    yield client
    client.close()


def fetch(
    url: str, method: str = "GET", body: bytes | None = None, **headers: str
) -> tuple[int, bytes]:
    """Return status and body of one request, whatever the status."""
    sent = {name.replace("_", "-"): value for name, value in headers.items()}
    request = urllib.request.Request(url, data=body, method=method, headers=sent)
    try:
        with urllib.request.urlopen(request, timeout=30) as response:
            return response.status, response.read()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read()


def send_form(url: str, fields: dict[str, str], body: bytes, name: str = "f.bin") -> Any:
    """Post a form as a browser does; return status, headers and body."""
    boundary = uuid.uuid4().hex
    out = io.BytesIO()
    for field, value in fields.items():
        out.write(
            f'--{boundary}\r\nContent-Disposition: form-data; name="{field}"\r\n\r\n'.encode()
        )
        out.write(value.encode() + b"\r\n")
    out.write(f'--{boundary}\r\nContent-Disposition: form-data; name="file"; '.encode())
    out.write(f'filename="{name}"\r\nContent-Type: a/b\r\n\r\n'.encode())
    out.write(body + f"\r\n--{boundary}--\r\n".encode())
    request = urllib.request.Request(
        url,
        data=out.getvalue(),
        headers={"Content-Type": f"multipart/form-data; boundary={boundary}"},
    )
    try:
        with urllib.request.urlopen(request, timeout=30) as response:
            return response.status, response.headers, response.read()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.headers, error.read()


def set_back(monkeypatch: pytest.MonkeyPatch, time: timedelta) -> None:
    """Let botocore sign with a clock that is late."""
    now = botocore.compat.get_current_datetime

    def past(*arguments: Any, **more: Any) -> Any:
        return now(*arguments, **more) - time

    for module in (botocore.auth, botocore.crt.auth):
        monkeypatch.setattr(module, "get_current_datetime", past)


def test_presigned_urls_get_and_put(signer: Any, bucket: str) -> None:
    where = {"Bucket": bucket, "Key": "a b/ü+.txt"}
    body = os.urandom(300_000)
    put = signer.generate_presigned_url("put_object", Params={**where, "ContentType": "a/b"})
    assert fetch(put, "PUT", body, Content_Type="a/b")[0] == 200
    assert fetch(put, "PUT", body, Content_Type="c/d")[0] == 403
    get = signer.generate_presigned_url("get_object", Params=where, ExpiresIn=60)
    assert fetch(get) == (200, body)
    assert fetch(get, Range="bytes=5-9") == (206, body[5:10])
    assert fetch(get, "DELETE")[0] == 403
    assert fetch(get.replace("%20b", "%20c"))[0] == 403
    named = signer.generate_presigned_url(
        "get_object", Params={**where, "ResponseContentDisposition": 'attachment; filename="x"'}
    )
    with urllib.request.urlopen(named, timeout=30) as response:
        assert response.headers["Content-Disposition"] == 'attachment; filename="x"'


def test_a_presigned_url_expires(
    server: Server, s3: Any, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    signer = s3_client(server, signature_version="s3v4")
    s3.put_object(Bucket=bucket, Key="k", Body=b"x")
    set_back(monkeypatch, timedelta(seconds=61))
    url = signer.generate_presigned_url(
        "get_object", Params={"Bucket": bucket, "Key": "k"}, ExpiresIn=60
    )
    signer.close()
    status, said = fetch(url)
    assert status == 403
    assert b"Request has expired" in said


def test_a_skewed_clock_is_told(
    server: Server, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_back(monkeypatch, timedelta(minutes=16))
    client = s3_client(server, retries={"total_max_attempts": 1, "mode": "standard"})
    with pytest.raises(ClientError) as raised:
        client.list_objects_v2(Bucket=bucket)
    assert error_code(raised) == (403, "RequestTimeTooSkewed")
    client.close()


def test_forms_upload_within_their_policy(signer: Any, s3: Any, bucket: str) -> None:
    post = signer.generate_presigned_post(
        bucket,
        "up/${filename}",
        Fields={"success_action_status": "201", "x-amz-meta-tag": "t", "Content-Type": "a/b"},
        Conditions=[
            {"success_action_status": "201"},
            {"x-amz-meta-tag": "t"},
            {"Content-Type": "a/b"},
            ["content-length-range", 1, 200_000],
        ],
    )
    body = os.urandom(200_000)
    status, _, said = send_form(post["url"], post["fields"], body, "name.bin")
    assert (status, b"<Key>up/name.bin</Key>" in said) == (201, True)
    got = s3.get_object(Bucket=bucket, Key="up/name.bin")
    assert got["Body"].read() == body
    assert (got["Metadata"], got["ContentType"]) == ({"tag": "t"}, "a/b")
    status, _, said = send_form(post["url"], post["fields"], body + b"x", "more.bin")
    assert (status, b"EntityTooLarge" in said) == (400, True)
    status, _, said = send_form(post["url"], {**post["fields"], "x-amz-meta-tag": "u"}, b"x")
    assert (status, b"AccessDenied" in said) == (403, True)
    assert s3.list_objects_v2(Bucket=bucket)["KeyCount"] == 1


def test_wrong_keys_are_refused(server: Server, bucket: str) -> None:
    access, secret = server.credentials
    for keys, code in [
        ((access, "x" * 40), "SignatureDoesNotMatch"),
        (("AKIA" + "X" * 16, secret), "InvalidAccessKeyId"),
    ]:
        client = s3_client(server, keys=keys)
        for call in (client.list_objects_v2, client.list_object_versions, client.delete_bucket):
            with pytest.raises(ClientError) as raised:
                call(Bucket=bucket)
            assert error_code(raised) == (403, code)
        with pytest.raises(ClientError) as raised:
            client.put_object(Bucket=bucket, Key="k", Body=os.urandom(200_000))
        assert error_code(raised) == (403, code)
        client.close()


def test_nobody_gets_anything_without_a_signature(server: Server, s3: Any, bucket: str) -> None:
    s3.put_object(Bucket=bucket, Key="k", Body=b"x")
    client = s3_client(server, signature_version=UNSIGNED)
    for call, arguments in (
        (client.list_buckets, {}),
        (client.list_objects_v2, {"Bucket": bucket}),
        (client.get_object, {"Bucket": bucket, "Key": "k"}),
        (client.get_object, {"Bucket": bucket, "Key": "absent"}),
        (client.get_object, {"Bucket": "no-such-bucket", "Key": "k"}),
        (client.put_object, {"Bucket": bucket, "Key": "new", "Body": b"x"}),
        (client.delete_object, {"Bucket": bucket, "Key": "k"}),
    ):
        with pytest.raises(ClientError) as raised:
            call(**arguments)
        assert error_code(raised) == (403, "AccessDenied")
    client.close()
    assert s3.list_objects_v2(Bucket=bucket)["KeyCount"] == 1


def test_a_wrong_region_is_named(server: Server, bucket: str) -> None:
    access, secret = server.credentials
    client = boto3.client(
        "s3",
        endpoint_url=server.url,
        aws_access_key_id=access,
        aws_secret_access_key=secret,
        region_name="eu-central-1",
        config=Config(retries={"total_max_attempts": 2}),
    )
    # boto3 reads the right region from the refusal and asks again.
    client.put_object(Bucket=bucket, Key="k", Body=b"x")
    assert client.get_object(Bucket=bucket, Key="k")["Body"].read() == b"x"
    client.close()


def test_buckets_are_hosts_below_the_domain(
    server: Server, s3: Any, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    port = urllib.parse.urlsplit(server.url).port
    resolve = socket.getaddrinfo

    def local(host: Any, *arguments: Any, **more: Any) -> Any:
        # Not every resolver knows names below localhost.
        return resolve("127.0.0.1" if str(host).endswith("localhost") else host, *arguments, **more)

    monkeypatch.setattr(socket, "getaddrinfo", local)
    client = s3_client(
        server,
        url=f"http://localhost:{port}",
        signature_version="s3v4",
        s3={"addressing_style": "virtual"},
    )
    hosts = []
    client.meta.events.register(
        "before-send.s3",
        lambda request, **_: hosts.append(urllib.parse.urlsplit(request.url).netloc),
    )
    body = os.urandom(100_000)
    client.put_object(Bucket=bucket, Key="a/b c", Body=body)
    assert client.get_object(Bucket=bucket, Key="a/b c")["Body"].read() == body
    assert client.list_objects_v2(Bucket=bucket)["KeyCount"] == 1
    assert client.head_bucket(Bucket=bucket)["BucketRegion"] == "us-east-1"
    assert set(hosts) == {f"{bucket}.localhost:{port}"}
    url = client.generate_presigned_url("get_object", Params={"Bucket": bucket, "Key": "a/b c"})
    assert url.startswith(f"http://{bucket}.localhost:{port}/a/b%20c?")
    assert fetch(url) == (200, body)
    assert bucket in [entry["Name"] for entry in client.list_buckets()["Buckets"]]
    client.create_bucket(Bucket="made-as-a-host")
    assert s3.head_bucket(Bucket="made-as-a-host")
    assert s3.get_object(Bucket=bucket, Key="a/b c")["Body"].read() == body
    client.close()
