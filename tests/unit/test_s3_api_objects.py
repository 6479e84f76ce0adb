"""The S3 API over HTTP: objects, their attributes, conditions, copies and versions."""

from __future__ import annotations

import base64
import hashlib
import os
import zlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.s3 import Answer, S3Server, running_s3


@pytest.fixture
async def s3(tmp_path: Path) -> AsyncIterator[S3Server]:
    async with running_s3(tmp_path) as server:
        await server.put("/bucket")
        yield server


async def enable_versioning(s3: S3Server, status: str = "Enabled") -> None:
    body = f"<VersioningConfiguration><Status>{status}</Status></VersioningConfiguration>"
    answer = await s3.request("PUT", "/bucket", "versioning", body=body.encode())
    assert answer.status == 200


def md5_hex(data: bytes) -> str:
    return hashlib.md5(data, usedforsecurity=False).hexdigest()


def crc32_text(data: bytes) -> str:
    return base64.b64encode(zlib.crc32(data).to_bytes(4, "big")).decode()


@pytest.mark.parametrize("size", [0, 1, 1024, 1025, 70_000, 300_000, 1_500_000])
async def test_objects_of_every_class_come_back(s3: S3Server, size: int) -> None:
    data = os.urandom(size)
    put = await s3.put("/bucket/key", data)
    assert put.headers["etag"] == f'"{md5_hex(data)}"'
    got = await s3.get("/bucket/key")
    assert (got.status, got.body) == (200, data)
    assert got.headers["content-length"] == str(size)
    assert got.headers["etag"] == put.headers["etag"]
    assert got.headers["accept-ranges"] == "bytes"
    assert got.headers["content-type"] == "binary/octet-stream"
    head = await s3.request("HEAD", "/bucket/key")
    assert (head.status, head.body) == (200, b"")
    assert head.headers["content-length"] == str(size)
    for first, end in ((0, 1), (size // 3, size // 2), (size - 1, size)):
        if 0 <= first < end <= size:
            part = await s3.get("/bucket/key", range=f"bytes={first}-{end - 1}")
            assert (part.status, part.body) == (206, data[first:end])
            assert part.headers["content-range"] == f"bytes {first}-{end - 1}/{size}"


async def test_headers_and_metadata_come_back_byte_for_byte(s3: S3Server) -> None:
    given_headers = {
        "content-type": "text/html; charset=utf-8",
        "content-encoding": "gzip",
        "content-disposition": 'attachment; filename="ä.txt"',
        "content-language": "de, en",
        "cache-control": "max-age=3, must-revalidate",
        "expires": "not a date",
        "x-amz-website-redirect-location": "/else",
        "x-amz-meta-one": "1",
        "x-amz-meta-two": "zwei \xe4",
        "x-amz-storage-class": "STANDARD_IA",
        "x-amz-tagging": "k=v&l=w",
    }
    assert (await s3.request("PUT", "/bucket/key", headers=given_headers, body=b"x")).status == 200
    for method in ("GET", "HEAD"):
        got = await s3.request(method, "/bucket/key")
        for name, value in given_headers.items():
            if name != "x-amz-tagging":
                assert got.headers[name] == value
        assert got.headers["x-amz-tagging-count"] == "2"


async def test_keys_with_odd_characters_are_themselves(s3: S3Server) -> None:
    keys = [
        "a",
        "a/b",
        "a//b",
        "/lead",
        "trail/",
        ".",
        "..",
        "../x",
        " ",
        "+",
        "%41",
        "ä\u0301",
        "\U0001f600",
        "a?b#c",
        "a&b=c",
        "x" * 1024,
        "\x01\x7f",
        "a\nb",
        "'\"<>",
        "*~!()",
    ]
    for key in keys:
        await s3.put(f"/bucket/{key}", key.encode())
    for key in keys:
        assert (await s3.get(f"/bucket/{key}")).body == key.encode(), key
    listed = await s3.get("/bucket", "list-type=2&encoding-type=url")
    from urllib.parse import unquote

    found = [unquote(key) for key in listed.texts("Contents/Key")]
    assert found == sorted(keys, key=str.encode)


async def test_wrong_keys(s3: S3Server) -> None:
    assert (await s3.request("PUT", "/bucket/" + "k" * 1025)).code == "KeyTooLongError"
    assert (await s3.request("GET", b"/bucket/%ff")).code == "InvalidURI"
    assert (await s3.request("GET", b"/bucket/%4", signed=False)).code == "InvalidURI"


async def test_absent_objects_and_buckets(s3: S3Server) -> None:
    for method, path, code in (
        ("GET", "/bucket/absent", "NoSuchKey"),
        ("GET", "/absent/key", "NoSuchBucket"),
        ("PUT", "/absent/key", "NoSuchBucket"),
        ("DELETE", "/absent/key", "NoSuchBucket"),
    ):
        answer = await s3.request(method, path)
        assert (answer.status, answer.code) == (404, code)
        assert answer.text("RequestId") == answer.headers["x-amz-request-id"]
        assert answer.text("Resource") == path
    assert (await s3.request("DELETE", "/bucket/absent")).status == 204
    head = await s3.request("HEAD", "/bucket/absent")
    assert (head.status, head.body) == (404, b"")


async def test_range_outside_says_the_size(s3: S3Server) -> None:
    await s3.put("/bucket/key", b"0123456789")
    answer = await s3.get("/bucket/key", range="bytes=10-12")
    assert (answer.status, answer.code) == (416, "InvalidRange")
    assert answer.headers["content-range"] == "bytes */10"
    assert answer.text("ActualObjectSize") == "10"
    assert answer.text("RangeRequested") == "bytes=10-12"
    several = await s3.get("/bucket/key", range="bytes=0-1,4-5")
    assert (several.status, several.body) == (200, b"0123456789")


async def test_part_number_of_a_plain_object(s3: S3Server) -> None:
    await s3.put("/bucket/key", b"0123456789")
    first = await s3.get("/bucket/key", "partNumber=1")
    assert (first.status, first.body) == (206, b"0123456789")
    assert "x-amz-mp-parts-count" not in first.headers
    second = await s3.get("/bucket/key", "partNumber=2")
    assert (second.status, second.code) == (416, "InvalidPartNumber")
    for wrong in ("0", "10001", "x", ""):
        assert (await s3.get("/bucket/key", f"partNumber={wrong}")).code == "InvalidArgument"
    both = await s3.get("/bucket/key", "partNumber=1", range="bytes=0-1")
    assert both.code == "InvalidRequest"


async def test_response_overrides(s3: S3Server) -> None:
    await s3.put("/bucket/key", b"x", content_type="text/plain")
    query = (
        "response-cache-control=no-store&response-content-disposition=attachment"
        "&response-content-encoding=br&response-content-language=fr"
        "&response-content-type=image%2Fpng&response-expires=soon"
    )
    for method in ("GET", "HEAD"):
        got = await s3.request(method, "/bucket/key", query)
        assert got.headers["content-type"] == "image/png"
        assert got.headers["cache-control"] == "no-store"
        assert got.headers["content-disposition"] == "attachment"
        assert got.headers["content-encoding"] == "br"
        assert got.headers["content-language"] == "fr"
        assert got.headers["expires"] == "soon"
    split = await s3.get("/bucket/key", "response-content-type=a%0d%0ax-evil:1")
    assert split.code == "InvalidArgument"


async def test_conditional_reads(s3: S3Server) -> None:
    put = await s3.put("/bucket/key", b"x")
    etag = put.headers["etag"]
    past, future = "Sun, 06 Nov 1994 08:49:37 GMT", "Sun, 06 Nov 2094 08:49:37 GMT"
    for headers, status in (
        ({"if-match": etag}, 200),
        ({"if-match": '"other"'}, 412),
        ({"if-none-match": etag}, 304),
        ({"if-none-match": '"other"'}, 200),
        ({"if-modified-since": past}, 200),
        ({"if-modified-since": future}, 304),
        ({"if-unmodified-since": past}, 412),
        ({"if-unmodified-since": future}, 200),
        ({"if-match": etag, "if-unmodified-since": past}, 200),
        ({"if-none-match": '"other"', "if-modified-since": future}, 200),
        ({"if-modified-since": "never"}, 200),
    ):
        for method in ("GET", "HEAD"):
            answer = await s3.request(method, "/bucket/key", headers=headers)
            assert answer.status == status, (method, headers)
            if status == 304:
                assert (answer.body, answer.headers["etag"]) == (b"", etag)


async def test_conditional_puts(s3: S3Server) -> None:
    star = {"if-none-match": "*"}
    assert (await s3.request("PUT", "/bucket/key", headers=star, body=b"1")).status == 200
    refused = await s3.request("PUT", "/bucket/key", headers=star, body=b"2")
    assert (refused.status, refused.code) == (412, "PreconditionFailed")
    assert refused.text("Condition") == "If-None-Match"
    wrong = {"if-match": '"nonsense"'}
    assert (await s3.request("PUT", "/bucket/key", headers=wrong, body=b"3")).status == 412
    assert (await s3.request("PUT", "/bucket/new", headers=wrong, body=b"3")).status == 404
    right = {"if-match": f'"{md5_hex(b"1")}"'}
    assert (await s3.request("PUT", "/bucket/key", headers=right, body=b"4")).status == 200
    assert (await s3.get("/bucket/key")).body == b"4"
    other = {"if-none-match": '"x"'}
    answer = await s3.request("PUT", "/bucket/key", headers=other, body=b"5")
    assert (answer.status, answer.code) == (501, "NotImplemented")


async def test_conditional_deletes(s3: S3Server) -> None:
    put = await s3.put("/bucket/key", b"12345")
    for headers in (
        {"if-match": '"other"'},
        {"x-amz-if-match-size": "4"},
        {"x-amz-if-match-last-modified-time": "Sun, 06 Nov 1994 08:49:37 GMT"},
    ):
        answer = await s3.request("DELETE", "/bucket/key", headers=headers)
        assert (answer.status, answer.code) == (412, "PreconditionFailed")
    modified = (await s3.request("HEAD", "/bucket/key")).headers["last-modified"]
    right = {
        "if-match": put.headers["etag"],
        "x-amz-if-match-size": "5",
        "x-amz-if-match-last-modified-time": modified,
    }
    assert (await s3.request("DELETE", "/bucket/key", headers=right)).status == 204
    assert (await s3.get("/bucket/key")).status == 404


async def test_checksums_are_verified_kept_and_shown(s3: S3Server) -> None:
    data = b"some data"
    put = await s3.request(
        "PUT", "/bucket/key", headers={"x-amz-checksum-crc32": crc32_text(data)}, body=data
    )
    assert put.headers["x-amz-checksum-crc32"] == crc32_text(data)
    assert put.headers["x-amz-checksum-type"] == "FULL_OBJECT"
    shown = await s3.get("/bucket/key", x_amz_checksum_mode="ENABLED")
    assert shown.headers["x-amz-checksum-crc32"] == crc32_text(data)
    hidden = await s3.get("/bucket/key")
    assert "x-amz-checksum-crc32" not in hidden.headers
    ranged = await s3.get("/bucket/key", x_amz_checksum_mode="ENABLED", range="bytes=0-1")
    assert "x-amz-checksum-crc32" not in ranged.headers
    default = await s3.put("/bucket/default", data)
    assert "x-amz-checksum-crc64nvme" in default.headers
    listed = await s3.get("/bucket", "list-type=2")
    assert listed.texts("Contents/ChecksumAlgorithm") == ["CRC64NVME", "CRC32"]


@pytest.mark.parametrize(
    ("headers", "payload", "code"),
    [
        ({"content-md5": base64.b64encode(b"x" * 16).decode()}, None, "BadDigest"),
        ({"content-md5": "short"}, None, "InvalidDigest"),
        ({"x-amz-checksum-crc32": crc32_text(b"other")}, None, "BadDigest"),
        ({"x-amz-checksum-crc32": "!"}, None, "InvalidRequest"),
        ({}, hashlib.sha256(b"other").hexdigest().encode(), "XAmzContentSHA256Mismatch"),
        ({"x-amz-storage-class": "FAST"}, None, "InvalidStorageClass"),
        ({"x-amz-acl": "public-read"}, None, "AccessControlListNotSupported"),
        ({"x-amz-server-side-encryption": "aws:kms"}, None, "NotImplemented"),
        ({"x-amz-object-lock-mode": "GOVERNANCE"}, None, "InvalidRequest"),
        ({"x-amz-meta-a": "x" * 2050}, None, "MetadataTooLarge"),
        ({"x-amz-tagging": "a=1&a=2"}, None, "InvalidArgument"),
        ({"content-length": str((5 << 30) + 1)}, None, "EntityTooLarge"),
    ],
)
async def test_puts_that_are_refused_leave_nothing(
    s3: S3Server, headers: dict[str, str], payload: bytes | None, code: str
) -> None:
    answer = await s3.request("PUT", "/bucket/key", headers=headers, body=b"data", payload=payload)
    assert answer.code == code
    assert (await s3.get("/bucket/key")).status == 404


async def test_a_put_needs_a_length(s3: S3Server) -> None:
    answer = await s3.request("PUT", "/bucket/key", headers={"content-length": ""})
    assert (answer.status, answer.code) == (411, "MissingContentLength")


async def test_a_body_that_is_cut_off_leaves_the_old_object(s3: S3Server) -> None:
    await s3.put("/bucket/key", b"old")
    for size in (100, 100_000, 2_000_000):
        body = os.urandom(size)
        await_answer = await s3.request("PUT", "/bucket/key", body=body, wire_body=body[:-1])
        assert await_answer.status == 400
        assert (await s3.get("/bucket/key")).body == b"old"


async def test_object_tags(s3: S3Server) -> None:
    await s3.put("/bucket/key", b"x")
    assert (await s3.get("/bucket/key", "tagging")).xml.findall("TagSet/Tag") == []
    body = b"<Tagging><TagSet><Tag><Key>a</Key><Value>b</Value></Tag></TagSet></Tagging>"
    assert (await s3.request("PUT", "/bucket/key", "tagging", body=body)).status == 200
    got = await s3.get("/bucket/key", "tagging")
    assert (got.text("TagSet/Tag/Key"), got.text("TagSet/Tag/Value")) == ("a", "b")
    assert (await s3.get("/bucket/key")).headers["x-amz-tagging-count"] == "1"
    assert (await s3.request("DELETE", "/bucket/key", "tagging")).status == 204
    assert "x-amz-tagging-count" not in (await s3.get("/bucket/key")).headers
    many = b"<Tag><Key>%d</Key><Value/></Tag>"
    body = b"<Tagging><TagSet>%b</TagSet></Tagging>" % b"".join(many % n for n in range(11))
    assert (await s3.request("PUT", "/bucket/key", "tagging", body=body)).code == "BadRequest"
    assert (await s3.get("/bucket/absent", "tagging")).code == "NoSuchKey"


async def test_versions_and_delete_markers(s3: S3Server) -> None:
    await enable_versioning(s3)
    one = (await s3.put("/bucket/key", b"one")).headers["x-amz-version-id"]
    two = (await s3.put("/bucket/key", b"two")).headers["x-amz-version-id"]
    assert (await s3.get("/bucket/key")).headers["x-amz-version-id"] == two
    assert (await s3.get("/bucket/key", f"versionId={one}")).body == b"one"
    deleted = await s3.request("DELETE", "/bucket/key")
    marker = deleted.headers["x-amz-version-id"]
    assert deleted.headers["x-amz-delete-marker"] == "true"
    gone = await s3.get("/bucket/key")
    assert (gone.status, gone.code) == (404, "NoSuchKey")
    assert gone.headers["x-amz-delete-marker"] == "true"
    assert gone.headers["x-amz-version-id"] == marker
    named = await s3.get("/bucket/key", f"versionId={marker}")
    assert (named.status, named.code) == (405, "MethodNotAllowed")
    assert named.headers["allow"] == "DELETE"
    assert named.headers["x-amz-delete-marker"] == "true"
    assert (await s3.request("HEAD", "/bucket/key", f"versionId={marker}")).status == 405
    removed = await s3.request("DELETE", "/bucket/key", f"versionId={marker}")
    assert removed.headers["x-amz-delete-marker"] == "true"
    assert (await s3.get("/bucket/key")).body == b"two"
    removed = await s3.request("DELETE", "/bucket/key", f"versionId={two}")
    assert removed.headers["x-amz-version-id"] == two
    assert "x-amz-delete-marker" not in removed.headers
    assert (await s3.get("/bucket/key")).body == b"one"
    absent = await s3.get("/bucket/key", f"versionId={two}")
    assert (absent.status, absent.code) == (404, "NoSuchVersion")
    assert (await s3.get("/bucket/key", "versionId=")).code == "InvalidArgument"


async def test_suspended_versioning_overwrites_null(s3: S3Server) -> None:
    await s3.put("/bucket/key", b"before")
    await enable_versioning(s3)
    kept = (await s3.put("/bucket/key", b"kept")).headers["x-amz-version-id"]
    await enable_versioning(s3, "Suspended")
    assert (await s3.put("/bucket/key", b"null")).headers["x-amz-version-id"] == "null"
    assert (await s3.get("/bucket/key", "versionId=null")).body == b"null"
    assert (await s3.get("/bucket/key", f"versionId={kept}")).body == b"kept"


def delete_document(*items: str, quiet: bool = False) -> bytes:
    objects = "".join(f"<Object>{item}</Object>" for item in items)
    return f"<Delete>{'<Quiet>true</Quiet>' if quiet else ''}{objects}</Delete>".encode()


async def delete_many(s3: S3Server, body: bytes) -> Answer:
    digest = base64.b64encode(hashlib.md5(body, usedforsecurity=False).digest()).decode()
    return await s3.request("POST", "/bucket", "delete", headers={"content-md5": digest}, body=body)


async def test_delete_objects(s3: S3Server) -> None:
    for key in ("a", "b", "c<&>"):
        await s3.put(f"/bucket/{key}", b"x")
    answer = await delete_many(
        s3,
        delete_document(
            "<Key>a</Key>",
            "<Key>c&lt;&amp;&gt;</Key>",
            "<Key>absent</Key>",
            f"<Key>{'x' * 1025}</Key>",
            "<Key>b</Key><ETag>&quot;other&quot;</ETag>",
        ),
    )
    assert answer.status == 200
    assert answer.texts("Deleted/Key") == ["a", "c<&>", "absent"]
    assert answer.texts("Error/Code") == ["KeyTooLongError", "PreconditionFailed"]
    assert (await s3.get("/bucket", "list-type=2")).texts("Contents/Key") == ["b"]
    quiet = await delete_many(s3, delete_document("<Key>b</Key>", quiet=True))
    assert len(quiet.xml) == 0


async def test_delete_objects_with_versions(s3: S3Server) -> None:
    await enable_versioning(s3)
    one = (await s3.put("/bucket/key", b"one")).headers["x-amz-version-id"]
    answer = await delete_many(s3, delete_document("<Key>key</Key>"))
    marker = answer.text("Deleted/DeleteMarkerVersionId")
    assert answer.text("Deleted/DeleteMarker") == "true"
    answer = await delete_many(
        s3,
        delete_document(
            f"<Key>key</Key><VersionId>{marker}</VersionId>",
            f"<Key>key</Key><VersionId>{one}</VersionId>",
        ),
    )
    assert answer.texts("Deleted/VersionId") == [marker, one]
    assert answer.texts("Deleted/DeleteMarkerVersionId") == [marker]
    assert (await s3.get("/bucket", "versions")).xml.findall("Version") == []


async def test_delete_objects_that_are_malformed(s3: S3Server) -> None:
    many = delete_document(*["<Key>k</Key>"] * 1001)
    for body in (b"", b"<Delete/>", b"<x", delete_document("<VersionId>1</VersionId>"), many):
        assert (await delete_many(s3, body)).code == "MalformedXML"
    plain = await s3.request("POST", "/bucket", "delete", body=delete_document("<Key>k</Key>"))
    assert (plain.status, plain.code) == (400, "InvalidRequest")
    doctype = b'<!DOCTYPE a [<!ENTITY x "y">]>' + delete_document("<Key>&x;</Key>")
    assert (await delete_many(s3, doctype)).code == "MalformedXML"


async def copy(s3: S3Server, source: str, target: str, **headers: str) -> Answer:
    given_headers = {name.replace("_", "-"): value for name, value in headers.items()}
    given_headers["x-amz-copy-source"] = source
    return await s3.request("PUT", target, headers=given_headers)


async def test_copies_keep_or_replace_attributes(s3: S3Server) -> None:
    await s3.put("/other")
    await s3.put(
        "/bucket/a b+ü", b"data" * 100, content_type="text/x", x_amz_meta_m="1", x_amz_tagging="t=1"
    )
    copied = await copy(s3, "bucket/a%20b%2B%C3%BC", "/other/copy")
    assert copied.status == 200
    assert copied.text("ETag") == f'"{md5_hex(b"data" * 100)}"'
    assert copied.text("ChecksumType") == "FULL_OBJECT"
    got = await s3.get("/other/copy")
    assert got.body == b"data" * 100
    assert (got.headers["content-type"], got.headers["x-amz-meta-m"]) == ("text/x", "1")
    assert got.headers["x-amz-tagging-count"] == "1"
    replaced = await copy(
        s3,
        "/other/copy",
        "/other/copy",
        x_amz_metadata_directive="REPLACE",
        x_amz_tagging_directive="REPLACE",
        content_type="text/y",
        x_amz_meta_n="2",
    )
    assert replaced.status == 200
    got = await s3.get("/other/copy")
    assert got.headers["content-type"] == "text/y"
    assert "x-amz-meta-m" not in got.headers
    assert (got.headers["x-amz-meta-n"], got.body) == ("2", b"data" * 100)
    assert "x-amz-tagging-count" not in got.headers


async def test_copies_that_are_refused(s3: S3Server) -> None:
    await s3.put("/bucket/key", b"x")
    for source, target, headers, code in (
        ("/bucket/key", "/bucket/key", {}, "InvalidRequest"),
        ("/bucket/absent", "/bucket/t", {}, "NoSuchKey"),
        ("/absent/key", "/bucket/t", {}, "NoSuchBucket"),
        ("/bucket/key", "/absent/t", {}, "NoSuchBucket"),
        ("nonsense", "/bucket/t", {}, "InvalidArgument"),
        ("/bucket/%ff", "/bucket/t", {}, "InvalidArgument"),
        ("/bucket/key?versionId=", "/bucket/t", {}, "InvalidArgument"),
        ("/bucket/key", "/bucket/t", {"x_amz_metadata_directive": "X"}, "InvalidArgument"),
        ("/bucket/key", "/bucket/t", {"x_amz_copy_source_if_match": "x"}, "PreconditionFailed"),
        ("/bucket/key", "/bucket/t", {"x_amz_checksum_algorithm": "X"}, "InvalidRequest"),
        (
            "/bucket/key",
            "/bucket/t",
            {"x_amz_copy_source_if_none_match": md5_hex(b"x")},
            "PreconditionFailed",
        ),
        (
            "/bucket/key",
            "/bucket/t",
            {"x_amz_copy_source_if_modified_since": "Sun, 06 Nov 2094 08:49:37 GMT"},
            "PreconditionFailed",
        ),
        (
            "/bucket/key",
            "/bucket/key",
            {"if_none_match": "*", "x_amz_storage_class": "GLACIER"},
            "PreconditionFailed",
        ),
    ):
        answer = await copy(s3, source, target, **headers)
        assert answer.code == code, (source, target, headers)
    assert (await s3.get("/bucket", "list-type=2")).texts("Contents/Key") == ["key"]


async def test_a_copy_may_name_a_version(s3: S3Server) -> None:
    await enable_versioning(s3)
    one = (await s3.put("/bucket/key", b"one")).headers["x-amz-version-id"]
    two = (await s3.put("/bucket/key", b"two")).headers["x-amz-version-id"]
    restored = await copy(s3, f"/bucket/key?versionId={one}", "/bucket/key")
    assert restored.status == 200
    assert restored.headers["x-amz-copy-source-version-id"] == one
    assert restored.headers["x-amz-version-id"] not in (one, two)
    assert (await s3.get("/bucket/key")).body == b"one"
    latest = await copy(s3, "/bucket/key", "/bucket/other")
    assert latest.headers["x-amz-copy-source-version-id"] == restored.headers["x-amz-version-id"]
    marker = (await s3.request("DELETE", "/bucket/key")).headers["x-amz-version-id"]
    answer = await copy(s3, f"/bucket/key?versionId={marker}", "/bucket/t")
    assert answer.code == "InvalidRequest"


async def test_object_attributes(s3: S3Server) -> None:
    await s3.put("/bucket/key", b"12345")
    names = "ETag,Checksum,ObjectParts,StorageClass,ObjectSize"
    answer = await s3.get("/bucket/key", "attributes", x_amz_object_attributes=names)
    assert answer.status == 200
    assert answer.text("ETag") == md5_hex(b"12345")
    assert answer.text("ObjectSize") == "5"
    assert answer.text("StorageClass") == "STANDARD"
    assert answer.text("Checksum/ChecksumType") == "FULL_OBJECT"
    assert answer.xml.find("ObjectParts") is None
    assert answer.headers["last-modified"]
    some = await s3.get("/bucket/key", "attributes", x_amz_object_attributes="ObjectSize")
    assert [child.tag for child in some.xml] == ["ObjectSize"]
    assert (await s3.get("/bucket/key", "attributes")).code == "InvalidArgument"
    wrong = await s3.get("/bucket/key", "attributes", x_amz_object_attributes="Colour")
    assert wrong.code == "InvalidArgument"
    absent = await s3.get("/bucket/none", "attributes", x_amz_object_attributes="ETag")
    assert absent.code == "NoSuchKey"


async def test_a_reader_keeps_its_version_while_it_is_replaced(s3: S3Server) -> None:
    old = os.urandom(3_000_000)
    await s3.put("/bucket/key", old)
    opened = await s3.engine.open("bucket", "key")
    async with opened:
        await s3.put("/bucket/key", b"new")
        stream = await opened.stream(0, len(old))
        got = b"".join([bytes(piece) async for piece in stream])
        await stream.aclose()
    assert got == old


async def test_virtual_hosts_name_buckets(tmp_path: Path) -> None:
    async with running_s3(tmp_path, domains=("s3.example.org",)) as s3:
        host = "bucket.s3.example.org"
        assert (await s3.request("PUT", "/", host=host)).status == 200
        assert (await s3.request("PUT", "/a/b", host=host, body=b"x")).status == 200
        assert (await s3.get("/bucket/a/b")).body == b"x"
        listed = await s3.request("GET", "/", "list-type=2", host=host)
        assert listed.texts("Contents/Key") == ["a/b"]


def test_random_headers_and_queries_never_fail_inside(tmp_path: Path) -> None:
    names = st.sampled_from(
        [
            "range",
            "if-match",
            "if-none-match",
            "if-modified-since",
            "x-amz-copy-source",
            "x-amz-checksum-crc32",
            "x-amz-tagging",
            "x-amz-meta-x",
            "content-type",
            "content-md5",
            "x-amz-checksum-mode",
            "x-amz-object-attributes",
            "x-amz-copy-source-range",
            "origin",
            "x-amz-trailer",
            "x-amz-storage-class",
            "x-amz-mp-object-size",
            "content-encoding",
        ]
    )
    values = st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E), max_size=30)
    queries = st.sampled_from(
        [
            "",
            "uploads",
            "uploadId=x&partNumber=1",
            "tagging",
            "acl",
            "attributes",
            "partNumber=1",
            "versionId=zzz",
            "versions",
            "delete",
            "cors",
            "list-type=2",
            "max-keys=-1",
            "location",
            "continuation-token=1abc",
            "uploadId=00",
            "response-expires=%ff",
            "versioning",
            "restore",
        ]
    )

    async def main(folder: Path, requests: list[tuple[str, str, str, dict[str, str]]]) -> None:
        async with running_s3(folder) as s3:
            await s3.put("/bucket")
            await s3.put("/bucket/key", b"x" * 100)
            for method, path, query, headers in requests:
                answer = await s3.request(method, path, query, headers=headers, body=b"<x/>")
                assert answer.status < 500 or answer.status == 501

    number = 0

    @settings(max_examples=15, deadline=None)
    @given(
        st.lists(
            st.tuples(
                st.sampled_from(["GET", "PUT", "POST", "DELETE", "HEAD", "OPTIONS"]),
                st.sampled_from(["/", "/bucket", "/bucket/key", "/bucket/other", "/absent/key"]),
                queries,
                st.dictionaries(names, values, max_size=4),
            ),
            min_size=10,
            max_size=20,
        )
    )
    def run(requests: list[tuple[str, str, str, dict[str, str]]]) -> None:
        nonlocal number
        number += 1
        folder = tmp_path / str(number)
        folder.mkdir()
        trio.run(main, folder, requests)

    run()


async def test_a_thousand_long_keys_are_deleted_at_once(s3: S3Server) -> None:
    keys = [f"{number:04}" + "k" * 1020 for number in range(1000)]
    await s3.put(f"/bucket/{keys[-1]}", b"x")
    body = delete_document(*(f"<Key>{key}</Key>" for key in keys))
    answer = await delete_many(s3, body)
    assert answer.texts("Deleted/Key") == keys
    assert (await s3.get(f"/bucket/{keys[-1]}")).status == 404
