"""boto3 with today's defaults: objects, their metadata, checksums, conditions and copies."""

from __future__ import annotations

import base64
import hashlib
import io
import os
from datetime import UTC, datetime, timedelta
from typing import Any

import boto3
import pytest
from botocore.exceptions import ClientError

from tests.support.clients import error_code, s3_client
from tests.support.server import Server

SIZES = [0, 1, 1024, 1025, 65536, 65537, 262144, 262145, (1 << 20) + 1, 5 << 20, (67 << 20) + 3]

# Every kind of character that S3 takes in a key, and the longest one.
KEYS = [
    "plain",
    "a/b/c",
    "a//b",
    "a/",
    "a/./b/../c",
    "space in it and at the end ",
    "plus+and%41percent%",
    "!-_.*'()&$@=;:,?#[]{}^~`|\\\"<>",
    "日本語/ключ/🙂",
    "line\nbreak\ttab",
    "é" * 512,
    "x" * 1024,
]

ALGORITHMS = ["CRC32", "CRC32C", "CRC64NVME", "SHA1", "SHA256"]


@pytest.mark.parametrize("size", SIZES)
def test_bytes_and_their_ranges_come_back(s3: Any, bucket: str, size: int) -> None:
    body = os.urandom(size)
    put = s3.put_object(Bucket=bucket, Key="k", Body=body)
    assert put["ETag"] == f'"{hashlib.md5(body).hexdigest()}"'
    got = s3.get_object(Bucket=bucket, Key="k")
    assert got["Body"].read() == body
    assert (got["ContentLength"], got["ETag"]) == (size, put["ETag"])
    if size > 2:
        middle = size // 2
        for given, meant in [
            (f"bytes={middle}-{middle + 1}", body[middle : middle + 2]),
            (f"bytes={middle}-", body[middle:]),
            ("bytes=-2", body[-2:]),
            (f"bytes=0-{size * 2}", body),
        ]:
            part = s3.get_object(Bucket=bucket, Key="k", Range=given)
            assert part["ResponseMetadata"]["HTTPStatusCode"] == 206
            assert part["Body"].read() == meant
    with pytest.raises(ClientError) as raised:
        s3.get_object(Bucket=bucket, Key="k", Range=f"bytes={size}-")
    assert error_code(raised) == (416, "InvalidRange")


def test_a_stream_of_unknown_origin_is_stored_whole(s3: Any, bucket: str) -> None:
    body = os.urandom(3_000_001)
    s3.put_object(Bucket=bucket, Key="k", Body=io.BytesIO(body))
    into = io.BytesIO()
    s3.download_fileobj(bucket, "k", into)
    assert into.getvalue() == body


@pytest.mark.parametrize("key", KEYS)
def test_every_key_is_kept_byte_for_byte(s3: Any, bucket: str, key: str) -> None:
    s3.put_object(Bucket=bucket, Key=key, Body=b"bytes")
    assert s3.get_object(Bucket=bucket, Key=key)["Body"].read() == b"bytes"
    assert [entry["Key"] for entry in s3.list_objects_v2(Bucket=bucket)["Contents"]] == [key]
    assert [entry["Key"] for entry in s3.list_objects(Bucket=bucket)["Contents"]] == [key]
    versions = s3.list_object_versions(Bucket=bucket)["Versions"]
    assert [entry["Key"] for entry in versions] == [key]
    s3.copy_object(Bucket=bucket, Key="copy", CopySource={"Bucket": bucket, "Key": key})
    assert s3.get_object(Bucket=bucket, Key="copy")["Body"].read() == b"bytes"
    deleted = s3.delete_objects(Bucket=bucket, Delete={"Objects": [{"Key": key}]})
    assert [entry["Key"] for entry in deleted["Deleted"]] == [key]
    assert [e["Key"] for e in s3.list_objects_v2(Bucket=bucket)["Contents"]] == ["copy"]


def test_headers_and_metadata_are_kept(s3: Any, bucket: str) -> None:
    expires = datetime(2031, 5, 6, 7, 8, 9, tzinfo=UTC)
    given = {
        "CacheControl": "max-age=60, public",
        "ContentDisposition": 'attachment; filename="a b.txt"',
        "ContentEncoding": "gzip",
        "ContentLanguage": "de, en",
        "ContentType": "text/plain; charset=utf-8",
        "Metadata": {"mtime": "1700000000.123456789", "with-dash": "a  b", "empty": ""},
    }
    s3.put_object(Bucket=bucket, Key="k", Body=b"x", Expires=expires, **given)
    head = s3.head_object(Bucket=bucket, Key="k")
    assert {name: head[name] for name in given} == given
    assert head["ExpiresString"] == "Tue, 06 May 2031 07:08:09 GMT"
    changed = s3.get_object(
        Bucket=bucket, Key="k", ResponseContentType="a/b", ResponseCacheControl="no-cache"
    )
    assert (changed["ContentType"], changed["CacheControl"]) == ("a/b", "no-cache")


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_checksums_of_every_kind_are_kept_and_shown(s3: Any, bucket: str, algorithm: str) -> None:
    body = os.urandom(400_000)
    put = s3.put_object(Bucket=bucket, Key="k", Body=body, ChecksumAlgorithm=algorithm)
    name = f"Checksum{algorithm}"
    head = s3.head_object(Bucket=bucket, Key="k", ChecksumMode="ENABLED")
    assert put[name] == head[name]
    assert head["ChecksumType"] == put["ChecksumType"] == "FULL_OBJECT"
    got = s3.get_object(Bucket=bucket, Key="k", ChecksumMode="ENABLED")
    assert got["Body"].read() == body
    assert got[name] == put[name]
    attributes = s3.get_object_attributes(
        Bucket=bucket, Key="k", ObjectAttributes=["ETag", "Checksum", "ObjectSize", "StorageClass"]
    )
    assert attributes["Checksum"][name] == put[name]
    assert attributes["ObjectSize"] == len(body)
    assert attributes["ETag"] == put["ETag"].strip('"')
    listed = s3.list_objects_v2(Bucket=bucket)["Contents"][0]
    assert listed["ChecksumAlgorithm"] == [algorithm]


def test_crc32_is_what_boto3_sends_by_itself(s3: Any, bucket: str) -> None:
    put = s3.put_object(Bucket=bucket, Key="k", Body=b"123456789")
    crc = base64.b64encode((0xCBF43926).to_bytes(4, "big")).decode()
    assert put["ChecksumCRC32"] == crc


def test_crc64nvme_is_made_when_the_client_sends_none(server: Server, bucket: str) -> None:
    plain = s3_client(server, request_checksum_calculation="when_required")
    put = plain.put_object(Bucket=bucket, Key="k", Body=b"123456789")
    assert put["ChecksumCRC64NVME"] == base64.b64encode(bytes.fromhex("ae8b14860a799888")).decode()
    plain.close()


@pytest.mark.parametrize(
    "wrong",
    [
        {"ChecksumSHA256": base64.b64encode(bytes(32)).decode()},
        {"ChecksumCRC32": "AAAAAA=="},
        {"ContentMD5": base64.b64encode(bytes(16)).decode()},
    ],
)
@pytest.mark.parametrize("size", [5, 2_000_000])
def test_a_wrong_checksum_stores_nothing(
    s3: Any, bucket: str, wrong: dict[str, str], size: int
) -> None:
    with pytest.raises(ClientError) as raised:
        s3.put_object(Bucket=bucket, Key="k", Body=os.urandom(size), **wrong)
    assert error_code(raised) == (400, "BadDigest")
    assert s3.list_objects_v2(Bucket=bucket)["KeyCount"] == 0


def test_conditional_puts_never_overwrite_what_they_did_not_mean(s3: Any, bucket: str) -> None:
    first = s3.put_object(Bucket=bucket, Key="k", Body=b"1", IfNoneMatch="*")["ETag"]
    with pytest.raises(ClientError) as raised:
        s3.put_object(Bucket=bucket, Key="k", Body=b"2", IfNoneMatch="*")
    assert error_code(raised) == (412, "PreconditionFailed")
    second = s3.put_object(Bucket=bucket, Key="k", Body=b"3", IfMatch=first)["ETag"]
    with pytest.raises(ClientError) as raised:
        s3.put_object(Bucket=bucket, Key="k", Body=b"4", IfMatch=first)
    assert error_code(raised) == (412, "PreconditionFailed")
    with pytest.raises(ClientError) as raised:
        s3.put_object(Bucket=bucket, Key="absent", Body=b"5", IfMatch=first)
    assert error_code(raised) == (404, "NoSuchKey")
    with pytest.raises(ClientError) as raised:
        s3.delete_object(Bucket=bucket, Key="k", IfMatch=first)
    assert error_code(raised) == (412, "PreconditionFailed")
    assert s3.get_object(Bucket=bucket, Key="k")["Body"].read() == b"3"
    s3.delete_object(Bucket=bucket, Key="k", IfMatch=second)
    assert s3.list_objects_v2(Bucket=bucket)["KeyCount"] == 0


def test_conditional_reads_answer_304_and_412(s3: Any, bucket: str) -> None:
    etag = s3.put_object(Bucket=bucket, Key="k", Body=b"1")["ETag"]
    now = datetime.now(UTC)
    day = timedelta(days=1)
    for call in (s3.get_object, s3.head_object):
        for good in (
            {"IfMatch": etag},
            {"IfNoneMatch": '"other"'},
            {"IfModifiedSince": now - day},
            {"IfUnmodifiedSince": now + day},
        ):
            assert call(Bucket=bucket, Key="k", **good)["ETag"] == etag
        for bad, status in (
            ({"IfMatch": '"other"'}, 412),
            ({"IfNoneMatch": etag}, 304),
            ({"IfModifiedSince": now + timedelta(seconds=1)}, 304),
            ({"IfUnmodifiedSince": now - day}, 412),
        ):
            if "IfModifiedSince" in bad:
                # A date in the future is no condition at all (RFC 9110, section 13.1.3).
                bad = {"IfModifiedSince": s3.head_object(Bucket=bucket, Key="k")["LastModified"]}
            with pytest.raises(ClientError) as raised:
                call(Bucket=bucket, Key="k", **bad)
            assert error_code(raised)[0] == status, bad


def test_copies_keep_or_replace_what_belongs_to_the_object(s3: Any, make_bucket: Any) -> None:
    source, target = make_bucket(), make_bucket()
    body = os.urandom(1_500_000)
    put = s3.put_object(
        Bucket=source, Key="k", Body=body, ContentType="a/b", Metadata={"m": "1"}, Tagging="t=1"
    )
    where = {"Bucket": source, "Key": "k"}
    copied = s3.copy_object(Bucket=target, Key="kept", CopySource=where)
    assert copied["CopyObjectResult"]["ETag"] == put["ETag"]
    kept = s3.get_object(Bucket=target, Key="kept")
    assert kept["Body"].read() == body
    assert (kept["ContentType"], kept["Metadata"], kept["TagCount"]) == ("a/b", {"m": "1"}, 1)
    s3.copy_object(
        Bucket=target,
        Key="replaced",
        CopySource=where,
        MetadataDirective="REPLACE",
        ContentType="c/d",
        Metadata={"n": "2"},
        TaggingDirective="REPLACE",
        Tagging="u=2&v=3",
    )
    head = s3.head_object(Bucket=target, Key="replaced")
    assert (head["ContentType"], head["Metadata"]) == ("c/d", {"n": "2"})
    tags = s3.get_object_tagging(Bucket=target, Key="replaced")["TagSet"]
    assert tags == [{"Key": "u", "Value": "2"}, {"Key": "v", "Value": "3"}]
    with pytest.raises(ClientError) as raised:
        s3.copy_object(Bucket=source, Key="k", CopySource=where)
    assert error_code(raised) == (400, "InvalidRequest")
    with pytest.raises(ClientError) as raised:
        s3.copy_object(Bucket=target, Key="x", CopySource=where, CopySourceIfMatch='"other"')
    assert error_code(raised) == (412, "PreconditionFailed")
    with pytest.raises(ClientError) as raised:
        s3.copy_object(Bucket=target, Key="kept", CopySource=where, IfNoneMatch="*")
    assert error_code(raised) == (412, "PreconditionFailed")
    s3.delete_object(Bucket=source, Key="k")
    assert s3.get_object(Bucket=target, Key="replaced")["Body"].read() == body


def test_tags_of_objects_can_be_read_replaced_and_removed(s3: Any, bucket: str) -> None:
    s3.put_object(Bucket=bucket, Key="k", Body=b"x", Tagging="a=1&b=two%20words")
    tags = s3.get_object_tagging(Bucket=bucket, Key="k")["TagSet"]
    assert tags == [{"Key": "a", "Value": "1"}, {"Key": "b", "Value": "two words"}]
    new = [{"Key": "c", "Value": "a+b = c:d/e_f.g@h-ü"}]
    s3.put_object_tagging(Bucket=bucket, Key="k", Tagging={"TagSet": new})
    assert s3.get_object_tagging(Bucket=bucket, Key="k")["TagSet"] == new
    s3.delete_object_tagging(Bucket=bucket, Key="k")
    assert s3.get_object_tagging(Bucket=bucket, Key="k")["TagSet"] == []
    assert s3.get_object(Bucket=bucket, Key="k")["Body"].read() == b"x"


def test_many_objects_are_deleted_by_one_request(s3: Any, bucket: str) -> None:
    for number in range(20):
        s3.put_object(Bucket=bucket, Key=f"k{number}", Body=b"x")
    wanted = [{"Key": f"k{number}"} for number in range(1000)]
    done = s3.delete_objects(Bucket=bucket, Delete={"Objects": wanted})
    assert [entry["Key"] for entry in done["Deleted"]] == [entry["Key"] for entry in wanted]
    assert s3.list_objects_v2(Bucket=bucket)["KeyCount"] == 0
    s3.put_object(Bucket=bucket, Key="k", Body=b"x")
    quiet = s3.delete_objects(Bucket=bucket, Delete={"Objects": [{"Key": "k"}], "Quiet": True})
    assert "Deleted" not in quiet
    with pytest.raises(ClientError) as raised:
        s3.delete_objects(Bucket=bucket, Delete={"Objects": [*wanted, {"Key": "more"}]})
    assert error_code(raised) == (400, "MalformedXML")


def test_what_is_not_there_is_said(s3: Any, bucket: str) -> None:
    with pytest.raises(s3.exceptions.NoSuchKey):
        s3.get_object(Bucket=bucket, Key="absent")
    with pytest.raises(ClientError) as raised:
        s3.head_object(Bucket=bucket, Key="absent")
    assert error_code(raised) == (404, "404")
    with pytest.raises(s3.exceptions.NoSuchBucket):
        s3.get_object(Bucket="no-such-bucket", Key="k")
    assert (
        s3.delete_object(Bucket=bucket, Key="absent")["ResponseMetadata"]["HTTPStatusCode"] == 204
    )


def test_the_resource_interface_works(server: Server, bucket: str) -> None:
    access, secret = server.credentials
    resource = boto3.resource(
        "s3",
        endpoint_url=server.url,
        aws_access_key_id=access,
        aws_secret_access_key=secret,
        region_name="us-east-1",
    )
    box = resource.Bucket(bucket)
    assert box.creation_date is not None
    for number in range(5):
        box.put_object(Key=f"a/{number}", Body=b"x" * number)
    box.upload_fileobj(io.BytesIO(b"up"), "b/up", ExtraArgs={"ContentType": "t/u"})
    assert [entry.key for entry in box.objects.filter(Prefix="a/")] == [f"a/{n}" for n in range(5)]
    thing = resource.Object(bucket, "b/up")
    assert (thing.content_type, thing.content_length) == ("t/u", 2)
    thing.copy_from(CopySource={"Bucket": bucket, "Key": "a/4"})
    assert thing.get()["Body"].read() == b"xxxx"
    box.objects.all().delete()
    assert list(box.objects.all()) == []
    box.delete()
    assert bucket not in [found.name for found in resource.buckets.all()]
    resource.meta.client.close()
