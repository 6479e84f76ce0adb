"""The S3 API over HTTP: multipart uploads."""

from __future__ import annotations

import base64
import hashlib
import os
import zlib
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import pytest

from tests.support.s3 import Answer, S3Server, running_s3

MIB = 1 << 20


@pytest.fixture
async def s3(tmp_path: Path) -> AsyncIterator[S3Server]:
    async with running_s3(tmp_path) as server:
        await server.put("/bucket")
        yield server


def crc32_text(data: bytes) -> str:
    return base64.b64encode(zlib.crc32(data).to_bytes(4, "big")).decode()


async def create(s3: S3Server, key: str = "key", **headers: str) -> str:
    given = {name.replace("_", "-"): value for name, value in headers.items()}
    answer = await s3.request("POST", f"/bucket/{key}", "uploads", headers=given)
    assert answer.status == 200, answer
    upload_id = answer.text("UploadId")
    assert upload_id
    return upload_id


async def put_part(
    s3: S3Server, upload_id: str, number: int | str, data: bytes, **headers: str
) -> Answer:
    given = {name.replace("_", "-"): value for name, value in headers.items()}
    query = f"partNumber={number}&uploadId={upload_id}"
    return await s3.request("PUT", "/bucket/key", query, headers=given, body=data)


def complete_document(parts: Sequence[tuple[int, str]], more: str = "") -> bytes:
    rows = "".join(
        f"<Part><PartNumber>{number}</PartNumber><ETag>{etag}</ETag>{more}</Part>"
        for number, etag in parts
    )
    return f"<CompleteMultipartUpload>{rows}</CompleteMultipartUpload>".encode()


async def complete(
    s3: S3Server, upload_id: str, parts: Sequence[tuple[int, str]], **headers: str
) -> Answer:
    given = {name.replace("_", "-"): value for name, value in headers.items()}
    body = complete_document(parts)
    return await s3.request(
        "POST", "/bucket/key", f"uploadId={upload_id}", headers=given, body=body
    )


async def uploaded(s3: S3Server, upload_id: str, parts: dict[int, bytes]) -> list[tuple[int, str]]:
    etags = []
    for number, data in parts.items():
        answer = await put_part(s3, upload_id, number, data)
        assert answer.status == 200, answer
        etags.append((number, answer.headers["etag"]))
    return etags


async def test_parts_become_one_object(s3: S3Server) -> None:
    parts = {1: os.urandom(5 * MIB), 7: os.urandom(5 * MIB + 1), 9: os.urandom(10)}
    upload_id = await create(s3, content_type="text/x", x_amz_meta_m="1", x_amz_tagging="a=b")
    etags = await uploaded(s3, upload_id, parts)
    assert (await s3.get("/bucket/key")).status == 404
    done = await complete(s3, upload_id, etags)
    assert done.status == 200
    digests = b"".join(hashlib.md5(data, usedforsecurity=False).digest() for data in parts.values())
    etag = f'"{hashlib.md5(digests, usedforsecurity=False).hexdigest()}-3"'
    assert done.text("ETag") == etag
    assert done.text("Location") == f"http://{s3.host}/bucket/key"
    whole = b"".join(parts.values())
    got = await s3.get("/bucket/key", x_amz_checksum_mode="ENABLED")
    assert got.body == whole
    assert (got.headers["etag"], got.headers["content-type"]) == (etag, "text/x")
    assert got.headers["x-amz-checksum-type"] == "FULL_OBJECT"
    assert got.headers["x-amz-tagging-count"] == "1"
    again = await complete(s3, upload_id, etags)
    assert (again.status, again.text("ETag")) == (200, etag)
    for number, data in enumerate(parts.values(), 1):
        part = await s3.get("/bucket/key", f"partNumber={number}")
        assert (part.status, part.body) == (206, data)
        assert part.headers["x-amz-mp-parts-count"] == "3"
    assert (await s3.get("/bucket/key", "partNumber=4")).code == "InvalidPartNumber"
    ranged = await s3.get("/bucket/key", range=f"bytes={5 * MIB - 3}-{5 * MIB + 2}")
    assert ranged.body == whole[5 * MIB - 3 : 5 * MIB + 3]


async def test_composite_checksums(s3: S3Server) -> None:
    parts = {1: os.urandom(5 * MIB), 2: b"tail"}
    upload_id = await create(s3, x_amz_checksum_algorithm="CRC32")
    etags = []
    for number, data in parts.items():
        answer = await put_part(s3, upload_id, number, data, x_amz_checksum_crc32=crc32_text(data))
        assert answer.headers["x-amz-checksum-crc32"] == crc32_text(data)
        etags.append((number, answer.headers["etag"]))
    other = await put_part(s3, upload_id, 3, b"x", x_amz_checksum_sha1="0beec7b5ea3f0fdbc95d0dd4")
    assert other.code == "InvalidRequest"
    assert (await put_part(s3, upload_id, 3, b"x")).code == "InvalidRequest"
    listed = await s3.get("/bucket/key", f"uploadId={upload_id}")
    assert listed.texts("Part/ChecksumCRC32") == [crc32_text(data) for data in parts.values()]
    assert listed.text("ChecksumType") == "COMPOSITE"
    joined = b"".join(zlib.crc32(data).to_bytes(4, "big") for data in parts.values())
    whole = await complete(s3, upload_id, etags, x_amz_checksum_type="FULL_OBJECT")
    assert (whole.status, whole.code) == (400, "BadDigest")
    done = await complete(s3, upload_id, etags, x_amz_checksum_type="COMPOSITE")
    assert done.text("ChecksumCRC32") == f"{crc32_text(joined)}-2"
    assert done.text("ChecksumType") == "COMPOSITE"
    head = await s3.request("HEAD", "/bucket/key", headers={"x-amz-checksum-mode": "ENABLED"})
    assert head.headers["x-amz-checksum-crc32"] == f"{crc32_text(joined)}-2"
    described = await s3.get(
        "/bucket/key", "attributes", x_amz_object_attributes="ObjectParts,Checksum"
    )
    assert described.text("ObjectParts/PartsCount") == "2"
    assert described.texts("ObjectParts/Part/Size") == [str(5 * MIB), "4"]


async def test_full_object_checksums_are_compared(s3: S3Server) -> None:
    parts = {1: os.urandom(5 * MIB), 2: b"tail"}
    upload_id = await create(
        s3, x_amz_checksum_algorithm="CRC32", x_amz_checksum_type="FULL_OBJECT"
    )
    etags = await uploaded(s3, upload_id, parts)
    right = crc32_text(b"".join(parts.values()))
    wrong = await complete(s3, upload_id, etags, x_amz_checksum_crc32=crc32_text(b"x"))
    assert wrong.code == "BadDigest"
    size = await complete(s3, upload_id, etags, x_amz_mp_object_size="3")
    assert (size.status, size.code) == (400, "InvalidRequest")
    kind = await complete(s3, upload_id, etags, x_amz_checksum_type="COMPOSITE")
    assert (kind.status, kind.code) == (400, "BadDigest")
    other = await complete(s3, upload_id, etags, x_amz_checksum_type="ODD")
    assert (other.status, other.code) == (400, "InvalidRequest")
    done = await complete(
        s3,
        upload_id,
        etags,
        x_amz_checksum_crc32=right,
        x_amz_mp_object_size=str(5 * MIB + 4),
    )
    assert (done.status, done.text("ChecksumCRC32")) == (200, right)
    assert done.text("ChecksumType") == "FULL_OBJECT"


@pytest.mark.parametrize(
    ("headers", "code"),
    [
        ({"x_amz_checksum_algorithm": "CRC99"}, "InvalidRequest"),
        ({"x_amz_checksum_type": "COMPOSITE"}, "InvalidRequest"),
        (
            {"x_amz_checksum_algorithm": "CRC64NVME", "x_amz_checksum_type": "COMPOSITE"},
            "InvalidRequest",
        ),
        (
            {"x_amz_checksum_algorithm": "SHA1", "x_amz_checksum_type": "FULL_OBJECT"},
            "InvalidRequest",
        ),
        ({"x_amz_storage_class": "X"}, "InvalidStorageClass"),
        ({"x_amz_server_side_encryption": "AES256"}, "NotImplemented"),
    ],
)
async def test_creates_that_are_refused(s3: S3Server, headers: dict[str, str], code: str) -> None:
    given = {name.replace("_", "-"): value for name, value in headers.items()}
    answer = await s3.request("POST", "/bucket/key", "uploads", headers=given)
    assert answer.code == code
    assert (await s3.get("/bucket", "uploads")).xml.findall("Upload") == []


async def test_completes_that_are_refused(s3: S3Server) -> None:
    upload_id = await create(s3)
    etags = await uploaded(s3, upload_id, {1: b"small", 2: b"tail"})
    small = await complete(s3, upload_id, etags)
    assert (small.status, small.code) == (400, "EntityTooSmall")
    assert (small.text("ProposedSize"), small.text("PartNumber")) == ("5", "1")
    assert (await complete(s3, upload_id, etags[::-1])).code == "InvalidPartOrder"
    assert (await complete(s3, upload_id, [etags[0], etags[0]])).code == "InvalidPartOrder"
    assert (await complete(s3, upload_id, [(3, etags[0][1])])).code == "InvalidPart"
    assert (await complete(s3, upload_id, [(1, '"other"')])).code == "InvalidPart"
    for body in (
        b"",
        b"<CompleteMultipartUpload/>",
        b"<CompleteMultipartUpload><Part/></CompleteMultipartUpload>",
        complete_document([(1, "x")]).replace(b">1<", b">one<"),
    ):
        answer = await s3.request("POST", "/bucket/key", f"uploadId={upload_id}", body=body)
        assert answer.code == "MalformedXML", body
    refused = await complete(s3, upload_id, [etags[0]], if_match='"x"')
    assert refused.status == 404
    done = await complete(s3, upload_id, [etags[0]], if_none_match="*")
    assert done.status == 200
    assert (await s3.get("/bucket/key")).body == b"small"


async def test_conditional_complete_keeps_what_is_there(s3: S3Server) -> None:
    await s3.put("/bucket/key", b"there")
    upload_id = await create(s3)
    etags = await uploaded(s3, upload_id, {1: b"new"})
    answer = await complete(s3, upload_id, etags, if_none_match="*")
    assert (answer.status, answer.code) == (412, "PreconditionFailed")
    assert (await s3.get("/bucket/key")).body == b"there"


@pytest.mark.parametrize("number", ["0", "10001", "x", "-1", ""])
async def test_wrong_part_numbers(s3: S3Server, number: str) -> None:
    upload_id = await create(s3)
    assert (await put_part(s3, upload_id, number, b"x")).code == "InvalidArgument"


@pytest.mark.parametrize("upload_id", ["x", "0" * 32, "zz" * 16, "%00", "../.."])
async def test_unknown_uploads(s3: S3Server, upload_id: str) -> None:
    for answer in (
        await put_part(s3, upload_id, 1, b"x"),
        await complete(s3, upload_id, [(1, "x")]),
        await s3.get("/bucket/key", f"uploadId={upload_id}"),
        await s3.request("DELETE", "/bucket/key", f"uploadId={upload_id}"),
    ):
        assert (answer.status, answer.code) == (404, "NoSuchUpload")


async def test_abort_forgets_the_upload(s3: S3Server) -> None:
    upload_id = await create(s3)
    etags = await uploaded(s3, upload_id, {1: b"x"})
    assert (await s3.request("DELETE", "/bucket/key", f"uploadId={upload_id}")).status == 204
    assert (await put_part(s3, upload_id, 2, b"x")).code == "NoSuchUpload"
    assert (await complete(s3, upload_id, etags)).code == "NoSuchUpload"
    assert (await s3.get("/bucket", "uploads")).xml.findall("Upload") == []


async def test_parts_are_listed_in_pages_and_replaced(s3: S3Server) -> None:
    upload_id = await create(s3)
    await uploaded(s3, upload_id, {3: b"old", 1: b"1", 5: b"55555"})
    await uploaded(s3, upload_id, {3: b"333"})
    first = await s3.get("/bucket/key", f"uploadId={upload_id}&max-parts=2")
    assert first.texts("Part/PartNumber") == ["1", "3"]
    assert first.texts("Part/Size") == ["1", "3"]
    assert first.text("IsTruncated") == "true"
    marker = first.text("NextPartNumberMarker")
    assert marker == "3"
    second = await s3.get("/bucket/key", f"uploadId={upload_id}&part-number-marker={marker}")
    assert second.texts("Part/PartNumber") == ["5"]
    assert second.text("IsTruncated") == "false"
    wrong = await s3.get("/bucket/key", f"uploadId={upload_id}&max-parts=x")
    assert wrong.code == "InvalidArgument"


async def test_uploads_are_listed_with_prefixes_and_pages(s3: S3Server) -> None:
    for key in ("a", "b/1", "b/2", "c"):
        await create(s3, key)
    second_of_a = await create(s3, "a")
    grouped = await s3.get("/bucket", "uploads&delimiter=/")
    assert grouped.texts("Upload/Key") == ["a", "a", "c"]
    assert grouped.texts("CommonPrefixes/Prefix") == ["b/"]
    assert second_of_a in grouped.texts("Upload/UploadId")
    keys: list[str] = []
    query = "uploads&max-uploads=2"
    while True:
        page = await s3.get("/bucket", query)
        keys += page.texts("Upload/Key")
        if page.text("IsTruncated") == "false":
            break
        query = (
            f"uploads&max-uploads=2&key-marker={page.text('NextKeyMarker')}"
            f"&upload-id-marker={page.text('NextUploadIdMarker')}"
        )
    assert keys == ["a", "a", "b/1", "b/2", "c"]


async def copy_part(
    s3: S3Server, upload_id: str, number: int, source: str, **headers: str
) -> Answer:
    given = {name.replace("_", "-"): value for name, value in headers.items()}
    given["x-amz-copy-source"] = source
    query = f"partNumber={number}&uploadId={upload_id}"
    return await s3.request("PUT", "/bucket/key", query, headers=given)


async def test_parts_are_copied_whole_and_in_ranges(s3: S3Server) -> None:
    data = os.urandom(5 * MIB + 100)
    await s3.put("/bucket/source", data)
    upload_id = await create(s3)
    whole = await copy_part(s3, upload_id, 1, "/bucket/source")
    some = await copy_part(
        s3, upload_id, 2, "/bucket/source", x_amz_copy_source_range="bytes=10-109"
    )
    assert (whole.status, some.status) == (200, 200)
    etags = [(1, whole.text("ETag") or ""), (2, some.text("ETag") or "")]
    assert (await complete(s3, upload_id, etags)).status == 200
    assert (await s3.get("/bucket/key")).body == data + data[10:110]


@pytest.mark.parametrize(
    ("source", "headers", "code"),
    [
        ("/bucket/source", {"x_amz_copy_source_range": "bytes=0-10"}, "InvalidArgument"),
        ("/bucket/source", {"x_amz_copy_source_range": "bytes=-1"}, "InvalidArgument"),
        ("/bucket/absent", {}, "NoSuchKey"),
        ("/bucket/source", {"x_amz_copy_source_if_match": "x"}, "PreconditionFailed"),
        ("source", {}, "InvalidArgument"),
    ],
)
async def test_part_copies_that_are_refused(
    s3: S3Server, source: str, headers: dict[str, str], code: str
) -> None:
    await s3.put("/bucket/source", b"0123456789")
    upload_id = await create(s3)
    assert (await copy_part(s3, upload_id, 1, source, **headers)).code == code
    listed = await s3.get("/bucket/key", f"uploadId={upload_id}")
    assert listed.xml.findall("Part") == []


async def test_an_abort_may_name_the_time_at_which_the_upload_began(s3: S3Server) -> None:
    upload_id = await create(s3)
    initiated = (await s3.get("/bucket", "uploads")).text("Upload/Initiated")
    assert initiated is not None

    async def abort(time: str) -> Answer:
        headers = {"x-amz-if-match-initiated-time": time}
        return await s3.request("DELETE", "/bucket/key", f"uploadId={upload_id}", headers=headers)

    for time, status, code in (
        ("Sun, 06 Nov 1994 08:49:37 GMT", 412, "PreconditionFailed"),
        ("yesterday", 400, "InvalidArgument"),
    ):
        refused = await abort(time)
        assert (refused.status, refused.code) == (status, code)
    assert (await abort(initiated)).status == 204
    assert (await s3.get("/bucket", "uploads")).texts("Upload") == []
