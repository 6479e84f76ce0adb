"""The S3 API over HTTP: listing objects and versions."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from urllib.parse import quote, unquote

import pytest

from s3.errors import S3Error
from s3.listing import decode_token, encode_token
from tests.support.s3 import Answer, S3Server, running_s3

KEYS = ["a", "b/1", "b/2", "b/c/3", "d", "e f", "ü/x"]


@pytest.fixture
async def s3(tmp_path: Path) -> AsyncIterator[S3Server]:
    async with running_s3(tmp_path) as server:
        await server.put("/bucket")
        for key in KEYS:
            await server.put(f"/bucket/{key}", key.encode())
        yield server


def names(answer: Answer) -> list[str]:
    assert answer.status == 200, answer
    return answer.texts("Contents/Key")


async def test_v2_shows_keys_in_order_with_their_attributes(s3: S3Server) -> None:
    page = await s3.get("/bucket", "list-type=2")
    assert names(page) == KEYS
    assert page.text("KeyCount") == "7"
    assert page.text("IsTruncated") == "false"
    assert page.text("Contents/Size") == "1"
    assert page.text("Contents/StorageClass") == "STANDARD"
    assert (page.text("Contents/ETag") or "").startswith('"')
    assert page.text("Contents/Owner/ID") is None
    assert (page.text("Contents/LastModified") or "").endswith(".000Z")
    owners = await s3.get("/bucket", "list-type=2&fetch-owner=true")
    assert owners.text("Contents/Owner/ID") == "root-owner-id"


async def test_v1_shows_owners(s3: S3Server) -> None:
    page = await s3.get("/bucket")
    assert names(page) == KEYS
    assert page.text("Contents/Owner/ID") == "root-owner-id"
    assert page.text("Marker") == ""
    assert page.text("KeyCount") is None


async def test_prefix_and_delimiter(s3: S3Server) -> None:
    for version in ("", "list-type=2&"):
        page = await s3.get("/bucket", f"{version}delimiter=/")
        assert names(page) == ["a", "d", "e f"]
        assert page.texts("CommonPrefixes/Prefix") == ["b/", "ü/"]
        page = await s3.get("/bucket", f"{version}delimiter=/&prefix=b/")
        assert names(page) == ["b/1", "b/2"]
        assert page.texts("CommonPrefixes/Prefix") == ["b/c/"]
        assert (page.text("Prefix"), page.text("Delimiter")) == ("b/", "/")
    assert names(await s3.get("/bucket", "list-type=2&prefix=zz")) == []


async def test_v2_pages_follow_tokens(s3: S3Server) -> None:
    for delimiter, size in (("", 1), ("", 3), ("/", 1), ("/", 2)):
        seen: list[str] = []
        query = f"list-type=2&max-keys={size}&delimiter={delimiter}"
        page = await s3.get("/bucket", query)
        while True:
            found = names(page) + page.texts("CommonPrefixes/Prefix")
            assert len(found) <= size
            assert page.text("KeyCount") == str(len(found))
            seen += found
            token = page.text("NextContinuationToken")
            assert page.text("IsTruncated") == ("false" if token is None else "true")
            if token is None:
                break
            page = await s3.get("/bucket", f"{query}&continuation-token={quote(token)}")
            assert page.text("ContinuationToken") == token
        whole = await s3.get("/bucket", f"list-type=2&delimiter={delimiter}")
        expected = names(whole) + whole.texts("CommonPrefixes/Prefix")
        assert sorted(seen) == sorted(expected)


async def test_v1_pages_follow_markers(s3: S3Server) -> None:
    seen: list[str] = []
    marker = ""
    while True:
        page = await s3.get("/bucket", f"max-keys=2&delimiter=/&marker={quote(marker)}")
        seen += names(page) + page.texts("CommonPrefixes/Prefix")
        if page.text("IsTruncated") == "false":
            break
        marker = page.text("NextMarker") or ""
        assert marker
    assert sorted(seen) == sorted(["a", "d", "e f", "b/", "ü/"])
    plain = await s3.get("/bucket", "max-keys=2")
    assert plain.text("NextMarker") is None
    assert names(await s3.get("/bucket", "marker=b/2")) == KEYS[3:]


async def test_start_after_need_not_exist(s3: S3Server) -> None:
    page = await s3.get("/bucket", "list-type=2&start-after=c")
    assert (names(page), page.text("StartAfter")) == (KEYS[4:], "c")


async def test_url_encoding(s3: S3Server) -> None:
    page = await s3.get(
        "/bucket", "list-type=2&encoding-type=url&delimiter=%20&prefix=e&start-after=%C3%A0"
    )
    assert page.text("EncodingType") == "url"
    assert (page.text("Delimiter"), page.text("StartAfter")) == ("%20", "%C3%A0")
    page = await s3.get("/bucket", "list-type=2&encoding-type=url")
    assert names(page) == ["a", "b/1", "b/2", "b/c/3", "d", "e%20f", "%C3%BC/x"]
    page = await s3.get("/bucket", "encoding-type=url&delimiter=/")
    assert [unquote(p) for p in page.texts("CommonPrefixes/Prefix")] == ["b/", "ü/"]


async def test_keys_that_xml_cannot_carry_are_listed(s3: S3Server) -> None:
    await s3.put("/bucket/x\x01<&>\r", b"")
    plain = await s3.get("/bucket", "list-type=2&prefix=x")
    assert b"<Key>x&#x1;&lt;&amp;&gt;&#xd;</Key>" in plain.body
    encoded = await s3.get("/bucket", "list-type=2&prefix=x&encoding-type=url")
    assert names(encoded) == ["x%01%3C%26%3E%0D"]


@pytest.mark.parametrize(
    "query",
    [
        "max-keys=x",
        "max-keys=-1",
        "max-keys=2147483648",
        "list-type=2&continuation-token=nonsense",
        "list-type=2&continuation-token=1%ff",
        "list-type=3",
        "encoding-type=gzip",
        "versions&version-id-marker=x",
        "versions&key-marker=a&version-id-marker=nonsense",
    ],
)
async def test_wrong_parameters(s3: S3Server, query: str) -> None:
    answer = await s3.get("/bucket", query)
    assert (answer.status, answer.code) in ((400, "InvalidArgument"), (400, "InvalidURI"))


async def test_max_keys_is_clamped_and_may_be_0(s3: S3Server) -> None:
    assert (await s3.get("/bucket", "max-keys=5000")).text("MaxKeys") == "1000"
    none = await s3.get("/bucket", "list-type=2&max-keys=0")
    assert (names(none), none.text("IsTruncated")) == ([], "false")


async def test_versions_are_listed_newest_first_with_markers(s3: S3Server) -> None:
    body = b"<VersioningConfiguration><Status>Enabled</Status></VersioningConfiguration>"
    await s3.request("PUT", "/bucket", "versioning", body=body)
    new = (await s3.put("/bucket/a", b"new")).headers["x-amz-version-id"]
    marker = (await s3.request("DELETE", "/bucket/d")).headers["x-amz-version-id"]
    page = await s3.get("/bucket", "versions")
    rows = [
        (row.tag, row.findtext("Key"), row.findtext("VersionId"), row.findtext("IsLatest"))
        for row in page.xml
        if row.tag in ("Version", "DeleteMarker")
    ]
    assert rows[:2] == [("Version", "a", new, "true"), ("Version", "a", "null", "false")]
    assert ("DeleteMarker", "d", marker, "true") in rows
    assert ("Version", "d", "null", "false") in rows
    assert page.text("Version/Size") == "3"
    assert "d" not in names(await s3.get("/bucket", "list-type=2"))


async def test_versions_pages_follow_markers(s3: S3Server) -> None:
    body = b"<VersioningConfiguration><Status>Enabled</Status></VersioningConfiguration>"
    await s3.request("PUT", "/bucket", "versioning", body=body)
    for _ in range(3):
        await s3.put("/bucket/a", b"x")
    whole = (await s3.get("/bucket", "versions")).texts("Version/VersionId")
    seen: list[str] = []
    query = "versions&max-keys=2"
    while True:
        page = await s3.get("/bucket", query)
        seen += page.texts("Version/VersionId")
        if page.text("IsTruncated") == "false":
            break
        query = f"versions&max-keys=2&key-marker={quote(page.text('NextKeyMarker') or '')}"
        if (version := page.text("NextVersionIdMarker")) is not None:
            query += f"&version-id-marker={version}"
    assert seen == whole
    grouped = await s3.get("/bucket", "versions&delimiter=/&prefix=b/")
    assert grouped.texts("CommonPrefixes/Prefix") == ["b/c/"]


async def test_listing_an_absent_bucket(s3: S3Server) -> None:
    for query in ("", "list-type=2", "versions", "uploads"):
        assert (await s3.get("/absent", query)).code == "NoSuchBucket"


def test_tokens_are_opaque_and_checked() -> None:
    for key in ("", "a", "ü\x00", "x" * 1024):
        assert decode_token(encode_token(key)) == key
    for token in ("", "2abc", "1*", "1_w", "ä"):
        with pytest.raises(S3Error) as caught:
            decode_token(token)
        assert caught.value.code == "InvalidArgument"
