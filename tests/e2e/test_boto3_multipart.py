"""boto3 with today's defaults: multipart uploads, by its transfer layer and by hand."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from boto3.s3.transfer import TransferConfig
from botocore.exceptions import ClientError

from tests.support.clients import MIB, error_code, hash_stream, make_random_file

PART = 5 * MIB


def start(s3: Any, bucket: str, key: str = "k", **more: Any) -> str:
    upload: str = s3.create_multipart_upload(Bucket=bucket, Key=key, **more)["UploadId"]
    return upload


def put_part(s3: Any, bucket: str, upload: str, number: int, body: bytes, **more: Any) -> Any:
    """Upload a part and return its entry for Complete."""
    done = s3.upload_part(
        Bucket=bucket, Key="k", UploadId=upload, PartNumber=number, Body=body, **more
    )
    sums = {name: value for name, value in done.items() if name.startswith("Checksum")}
    sums.pop("ChecksumType", None)
    return {"PartNumber": number, "ETag": done["ETag"], **sums}


def complete(s3: Any, bucket: str, upload: str, parts: list[Any], **more: Any) -> Any:
    return s3.complete_multipart_upload(
        Bucket=bucket, Key="k", UploadId=upload, MultipartUpload={"Parts": parts}, **more
    )


def test_upload_file_sends_parts_that_come_back_as_one(
    s3: Any, bucket: str, tmp_path: Path
) -> None:
    digest = make_random_file(tmp_path / "in", 23 * MIB + 7, seed=1)
    config = TransferConfig(multipart_threshold=PART, multipart_chunksize=PART, max_concurrency=4)
    s3.upload_file(str(tmp_path / "in"), bucket, "k", Config=config)
    head = s3.head_object(Bucket=bucket, Key="k", ChecksumMode="ENABLED")
    assert head["ETag"].endswith('-5"')
    assert any(name.startswith("ChecksumCRC") for name in head)
    got = s3.get_object(Bucket=bucket, Key="k")
    assert hash_stream(got["Body"]) == (23 * MIB + 7, digest)
    s3.download_file(bucket, "k", str(tmp_path / "out"), Config=config)
    assert (tmp_path / "out").read_bytes() == (tmp_path / "in").read_bytes()
    last = s3.get_object(Bucket=bucket, Key="k", PartNumber=5)
    assert last["PartsCount"] == 5
    assert last["Body"].read() == (tmp_path / "in").read_bytes()[4 * PART :]
    s3.copy({"Bucket": bucket, "Key": "k"}, bucket, "copy", Config=config)
    copied = s3.get_object(Bucket=bucket, Key="copy")
    assert hash_stream(copied["Body"]) == (23 * MIB + 7, digest)


@pytest.mark.parametrize(
    ("algorithm", "kind"),
    [
        ("CRC32", "COMPOSITE"),
        ("CRC32", "FULL_OBJECT"),
        ("CRC32C", "COMPOSITE"),
        ("CRC32C", "FULL_OBJECT"),
        ("CRC64NVME", "FULL_OBJECT"),
        ("SHA1", "COMPOSITE"),
        ("SHA256", "COMPOSITE"),
    ],
)
def test_checksums_of_uploads_are_joined(s3: Any, bucket: str, algorithm: str, kind: str) -> None:
    name = f"Checksum{algorithm}"
    bodies = [os.urandom(PART), os.urandom(PART), os.urandom(1234)]
    upload = start(s3, bucket, ChecksumAlgorithm=algorithm, ChecksumType=kind)
    parts = [
        put_part(s3, bucket, upload, number, body, ChecksumAlgorithm=algorithm)
        for number, body in enumerate(bodies, 1)
    ]
    done = complete(s3, bucket, upload, parts, ChecksumType=kind)
    whole = s3.put_object(
        Bucket=bucket, Key="whole", Body=b"".join(bodies), ChecksumAlgorithm=algorithm
    )
    if kind == "FULL_OBJECT":
        assert done[name] == whole[name]
    else:
        assert done[name].endswith("-3")
    head = s3.head_object(Bucket=bucket, Key="k", ChecksumMode="ENABLED")
    assert (head[name], head["ChecksumType"]) == (done[name], kind)
    attributes = s3.get_object_attributes(
        Bucket=bucket, Key="k", ObjectAttributes=["ObjectParts", "Checksum"], MaxParts=2
    )
    assert attributes["ObjectParts"]["TotalPartsCount"] == 3
    if kind == "COMPOSITE":
        # S3 lists the parts only of uploads whose parts have checksums of their own.
        assert len(attributes["ObjectParts"]["Parts"]) == 2
    assert s3.get_object(Bucket=bucket, Key="k")["Body"].read() == b"".join(bodies)


def test_parts_can_be_copied_from_ranges(s3: Any, bucket: str) -> None:
    body = os.urandom(2 * PART)
    s3.put_object(Bucket=bucket, Key="source", Body=body)
    upload = start(s3, bucket)
    entries = []
    for number, (first, last) in enumerate([(PART, 2 * PART - 1), (0, 99)], 1):
        done = s3.upload_part_copy(
            Bucket=bucket,
            Key="k",
            UploadId=upload,
            PartNumber=number,
            CopySource={"Bucket": bucket, "Key": "source"},
            CopySourceRange=f"bytes={first}-{last}",
        )
        entries.append({"PartNumber": number, "ETag": done["CopyPartResult"]["ETag"]})
    complete(s3, bucket, upload, entries)
    assert s3.get_object(Bucket=bucket, Key="k")["Body"].read() == body[PART:] + body[:100]


def test_many_parts_are_listed_in_pages_and_aborted(s3: Any, bucket: str) -> None:
    upload = start(s3, bucket)

    def put(number: int) -> Any:
        return put_part(s3, bucket, upload, number, b"%d" % number)

    with ThreadPoolExecutor(8) as pool:
        sent = list(pool.map(put, [*range(1, 1201), 10_000]))
    for size in (100, 1000):
        pages = list(
            s3.get_paginator("list_parts").paginate(
                Bucket=bucket, Key="k", UploadId=upload, PaginationConfig={"PageSize": size}
            )
        )
        listed = [part for page in pages for part in page["Parts"]]
        assert [(part["PartNumber"], part["ETag"]) for part in listed] == [
            (part["PartNumber"], part["ETag"]) for part in sent
        ]
        assert len(pages) == -(-1201 // size)
    with pytest.raises(ClientError) as raised:
        put_part(s3, bucket, upload, 10_001, b"")
    assert error_code(raised) == (400, "InvalidArgument")
    s3.abort_multipart_upload(Bucket=bucket, Key="k", UploadId=upload)
    with pytest.raises(ClientError) as raised:
        s3.list_parts(Bucket=bucket, Key="k", UploadId=upload)
    assert error_code(raised) == (404, "NoSuchUpload")
    s3.delete_bucket(Bucket=bucket)


def test_forty_parts_make_one_object(s3: Any, bucket: str) -> None:
    body = os.urandom(PART)
    upload = start(s3, bucket)

    def put(number: int) -> Any:
        return put_part(s3, bucket, upload, number, body if number < 40 else b"the end")

    with ThreadPoolExecutor(4) as pool:
        parts = list(pool.map(put, range(1, 41)))
    complete(s3, bucket, upload, parts)
    head = s3.head_object(Bucket=bucket, Key="k", PartNumber=40)
    assert (head["PartsCount"], head["ContentLength"]) == (40, 7)
    # Ranges across the border of two parts, far behind and at the very end.
    for first, last in [(PART - 3, PART + 2), (30 * PART - 1, 30 * PART), (39 * PART - 2, -1)]:
        end = "" if last < 0 else str(last)
        got = s3.get_object(Bucket=bucket, Key="k", Range=f"bytes={first}-{end}")["Body"].read()
        meant = (body + body)[first % PART :][: last - first + 1]
        assert got == (body[-2:] + b"the end" if last < 0 else meant)


def test_complete_refuses_what_was_not_uploaded(s3: Any, bucket: str) -> None:
    upload = start(s3, bucket)
    small = [put_part(s3, bucket, upload, number, b"small") for number in (1, 2)]
    for parts, code in [
        (small, "EntityTooSmall"),
        (small[::-1], "InvalidPartOrder"),
        ([{**small[0], "ETag": '"' + "0" * 32 + '"'}], "InvalidPart"),
        ([*small[:1], {"PartNumber": 3, "ETag": small[0]["ETag"]}], "InvalidPart"),
        ([], "MalformedXML"),
    ]:
        with pytest.raises(ClientError) as raised:
            complete(s3, bucket, upload, parts)
        assert error_code(raised) == (400, code)
    done = complete(s3, bucket, upload, small[1:])
    again = complete(s3, bucket, upload, small[1:])
    assert again["ETag"] == done["ETag"]
    assert s3.get_object(Bucket=bucket, Key="k")["Body"].read() == b"small"
    assert "Uploads" not in s3.list_multipart_uploads(Bucket=bucket)


def test_complete_takes_conditions(s3: Any, bucket: str) -> None:
    etag = s3.put_object(Bucket=bucket, Key="k", Body=b"there")["ETag"]
    upload = start(s3, bucket)
    parts = [put_part(s3, bucket, upload, 1, b"new")]
    with pytest.raises(ClientError) as raised:
        complete(s3, bucket, upload, parts, IfNoneMatch="*")
    assert error_code(raised) == (412, "PreconditionFailed")
    complete(s3, bucket, upload, parts, IfMatch=etag)
    assert s3.get_object(Bucket=bucket, Key="k")["Body"].read() == b"new"


def test_a_part_with_a_wrong_checksum_is_no_part(s3: Any, bucket: str) -> None:
    upload = start(s3, bucket)
    with pytest.raises(ClientError) as raised:
        put_part(s3, bucket, upload, 1, os.urandom(PART), ChecksumCRC32="AAAAAA==")
    assert error_code(raised) == (400, "BadDigest")
    assert "Parts" not in s3.list_parts(Bucket=bucket, Key="k", UploadId=upload)
    s3.abort_multipart_upload(Bucket=bucket, Key="k", UploadId=upload)


def test_uploads_are_listed_in_pages_and_by_prefix(s3: Any, bucket: str) -> None:
    keys = sorted(f"{folder}/{number}" for folder in "abc" for number in range(10))
    uploads = {key: start(s3, bucket, key) for key in keys}
    paginator = s3.get_paginator("list_multipart_uploads")
    pages = list(paginator.paginate(Bucket=bucket, PaginationConfig={"PageSize": 7}))
    listed = {entry["Key"]: entry["UploadId"] for page in pages for entry in page["Uploads"]}
    assert listed == uploads
    assert len(pages) == 5
    folders = s3.list_multipart_uploads(Bucket=bucket, Delimiter="/")["CommonPrefixes"]
    assert [entry["Prefix"] for entry in folders] == ["a/", "b/", "c/"]
    some = s3.list_multipart_uploads(Bucket=bucket, Prefix="b/")["Uploads"]
    assert [entry["Key"] for entry in some] == [f"b/{number}" for number in range(10)]
    s3.delete_bucket(Bucket=bucket)
