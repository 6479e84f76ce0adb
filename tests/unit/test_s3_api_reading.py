"""The S3 API over HTTP: reading what may have changed since the client read it before."""

from __future__ import annotations

from collections.abc import AsyncIterator
from email.utils import formatdate, parsedate_to_datetime
from pathlib import Path

import pytest

from tests.support.s3 import S3Server, running_s3


@pytest.fixture
async def s3(tmp_path: Path) -> AsyncIterator[S3Server]:
    async with running_s3(tmp_path) as server:
        await server.put("/bucket")
        yield server


@pytest.mark.parametrize("method", ["GET", "HEAD"])
async def test_a_range_is_of_the_version_that_the_client_has_or_of_none(
    s3: S3Server, method: str
) -> None:
    put = await s3.put("/bucket/key", b"0123456789")
    etag = put.headers["etag"]
    modified = (await s3.request("HEAD", "/bucket/key")).headers["last-modified"]
    earlier = formatdate(parsedate_to_datetime(modified).timestamp() - 1, usegmt=True)
    for validator, partial in (
        (etag, True),
        (modified, True),
        ('"another"', False),
        (f"W/{etag}", False),
        (etag.strip('"'), False),
        (earlier, False),
        ("yesterday", False),
    ):
        headers = {"range": "bytes=4-6", "if-range": validator}
        answer = await s3.request(method, "/bucket/key", headers=headers)
        assert answer.status == (206 if partial else 200), validator
        assert answer.headers.get("content-range") == ("bytes 4-6/10" if partial else None)
        if method == "GET":
            assert answer.body == (b"456" if partial else b"0123456789")


async def test_a_range_outside_of_another_version_is_no_error(s3: S3Server) -> None:
    await s3.put("/bucket/key", b"short")
    answer = await s3.get("/bucket/key", range="bytes=100-", if_range='"the longer one"')
    assert (answer.status, answer.body) == (200, b"short")
    refused = await s3.get("/bucket/key", range="bytes=100-")
    assert (refused.status, refused.code) == (416, "InvalidRange")


@pytest.mark.parametrize("method", ["GET", "HEAD"])
async def test_what_is_unchanged_says_again_how_long_it_may_be_cached(
    s3: S3Server, method: str
) -> None:
    kept = {"cache_control": "max-age=60", "expires": "Thu, 01 Jan 2037 00:00:00 GMT"}
    put = await s3.put("/bucket/key", b"x", content_language="de", **kept)
    headers = {"if-none-match": put.headers["etag"]}
    answer = await s3.request(method, "/bucket/key", headers=headers)
    assert (answer.status, answer.body) == (304, b"")
    assert answer.headers["etag"] == put.headers["etag"]
    assert answer.headers["cache-control"] == kept["cache_control"]
    assert answer.headers["expires"] == kept["expires"]
    assert "content-language" not in answer.headers
