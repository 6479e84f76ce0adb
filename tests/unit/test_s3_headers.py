"""Headers: ranges, conditions, dates, attributes, tags, copy sources."""

from __future__ import annotations

from email.utils import formatdate

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.errors import InvalidRange
from engine.types import NO_CONDITIONS
from s3.attributes import parse_attributes, without_aws_chunked
from s3.conditions import (
    delete_conditions,
    parse_etags,
    read_conditions,
    write_conditions,
)
from s3.errors import S3Error
from s3.ranges import content_range, parse_copy_range, parse_range
from s3.tagging import check_tags, parse_tagging, parse_tagging_header, tagging_document
from s3.times import http_date, iso_time, parse_http_date, parse_time


def code_of(error: pytest.ExceptionInfo[S3Error]) -> str:
    return error.value.code


@pytest.mark.parametrize(
    ("header", "size", "expected"),
    [
        (b"bytes=0-0", 10, (0, 1)),
        (b"bytes=0-", 10, (0, 10)),
        (b"bytes=3-5", 10, (3, 6)),
        (b"bytes=3-500", 10, (3, 10)),
        (b"bytes=-3", 10, (7, 10)),
        (b"bytes=-30", 10, (0, 10)),
        (b"Bytes = 1 - 2", 10, (1, 3)),
        (b"bytes=0-1,3-4", 10, None),
        (b"bytes=5-3", 10, None),
        (b"bytes=-", 10, None),
        (b"bytes=a-b", 10, None),
        (b"items=0-1", 10, None),
        (b"0-1", 10, None),
        (b"", 10, None),
    ],
)
def test_ranges(header: bytes, size: int, expected: tuple[int, int] | None) -> None:
    assert parse_range(header, size) == expected


@pytest.mark.parametrize(
    ("header", "size"),
    [
        (b"bytes=10-", 10),
        (b"bytes=10-12", 10),
        (b"bytes=-0", 10),
        (b"bytes=0-", 0),
        (b"bytes=-5", 0),
    ],
)
def test_ranges_outside_are_refused_with_the_size(header: bytes, size: int) -> None:
    with pytest.raises(InvalidRange) as caught:
        parse_range(header, size)
    assert caught.value.size == size


@given(st.integers(1, 1000), st.integers(0, 1100), st.integers(0, 1100))
def test_a_range_is_what_slicing_gives(size: int, first: int, last: int) -> None:
    whole = bytes(index % 251 for index in range(size))
    try:
        found = parse_range(b"bytes=%d-%d" % (first, last), size)
    except InvalidRange:
        assert first >= size
        return
    if found is None:
        assert last < first
    else:
        assert whole[found[0] : found[1]] == whole[first : last + 1]


@given(st.binary(max_size=120), st.integers(0, 10**15))
def test_no_range_header_breaks_anything(header: bytes, size: int) -> None:
    try:
        found = parse_range(header, size)
    except InvalidRange:
        return
    assert found is None or 0 <= found[0] < found[1] <= size


def test_content_range_is_inclusive() -> None:
    assert content_range(3, 6, 10) == b"bytes 3-5/10"


@pytest.mark.parametrize(
    "header", [b"bytes=0-", b"bytes=-5", b"0-5", b"bytes=5-1", b"bytes=1-2,3-4"]
)
def test_copy_ranges_need_both_ends(header: bytes) -> None:
    assert parse_copy_range(b"bytes=0-9") == (0, 9)
    assert parse_copy_range(header) is None


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        (b'"abc"', ("abc",)),
        (b"abc", ("abc",)),
        (b'"a", "b"', ("a", "b")),
        (b'W/"a"', ("a",)),
        (b"*", ("*",)),
        (b"", ()),
    ],
)
def test_etag_lists(header: bytes, expected: tuple[str, ...]) -> None:
    assert parse_etags(header) == expected


@pytest.mark.parametrize(
    "text",
    [
        "Sun, 06 Nov 1994 08:49:37 GMT",
        "Sunday, 06-Nov-94 08:49:37 GMT",
        "Sun Nov  6 08:49:37 1994",
    ],
)
def test_all_three_forms_of_http_dates_are_read(text: str) -> None:
    assert parse_http_date(text) == 784111777000


@pytest.mark.parametrize(
    "text",
    [
        "",
        "yesterday",
        "Sun, 32 Nov 1994 08:49:37 GMT",
        "Sun, 06 Xyz 1994 08:49:37 GMT",
        "Sun, 06 Nov 1994 08:49:37 +0100",
        "1994-11-06",
        "Sun, 06 Nov 1994 25:49:37 GMT",
    ],
)
def test_other_dates_are_none(text: str) -> None:
    assert parse_http_date(text) is None


@given(st.integers(0, 4_000_000_000))
def test_dates_are_written_as_the_standard_library_writes_them(seconds: int) -> None:
    assert http_date(seconds * 1000 + 999).decode() == formatdate(seconds, usegmt=True)
    assert parse_http_date(http_date(seconds * 1000).decode()) == seconds * 1000
    assert parse_time(iso_time(seconds * 1000)) == seconds * 1000


def test_read_conditions_ignore_bad_dates() -> None:
    assert read_conditions({}) is NO_CONDITIONS
    found = read_conditions(
        {
            b"if-match": b'"a"',
            b"if-none-match": b"*",
            b"if-modified-since": b"nonsense",
            b"if-unmodified-since": b"Sun, 06 Nov 1994 08:49:37 GMT",
        }
    )
    assert (found.if_match, found.if_none_match) == (("a",), ("*",))
    assert found.if_modified_since_ms is None
    assert found.if_unmodified_since_ms == 784111777000


def test_conditional_writes_take_none_match_star_only() -> None:
    assert write_conditions({b"if-none-match": b"*"}).if_none_match == ("*",)
    assert write_conditions({b"if-match": b'"x"'}).if_match == ("x",)
    with pytest.raises(S3Error) as caught:
        write_conditions({b"if-none-match": b'"x"'})
    assert code_of(caught) == "NotImplemented"


def test_conditional_deletes_take_size_and_time() -> None:
    found = delete_conditions(
        {
            b"if-match": b'"x"',
            b"x-amz-if-match-size": b"12",
            b"x-amz-if-match-last-modified-time": b"Sun, 06 Nov 1994 08:49:37 GMT",
        }
    )
    assert (found.if_match, found.if_match_size) == (("x",), 12)
    assert found.if_match_modified_ms == 784111777000
    for headers in (
        {b"x-amz-if-match-size": b"-1"},
        {b"x-amz-if-match-last-modified-time": b"soon"},
    ):
        with pytest.raises(S3Error) as caught:
            delete_conditions(headers)
        assert code_of(caught) == "InvalidArgument"


def test_attributes_are_kept_byte_for_byte() -> None:
    found = parse_attributes(
        {
            b"content-type": b"text/plain; charset=UTF-8",
            b"content-encoding": b"aws-chunked, gzip",
            b"cache-control": b"no-cache",
            b"expires": b"whenever \xff",
            b"x-amz-meta-name": "ä ".encode(),
            b"x-amz-storage-class": b"STANDARD_IA",
            b"x-amz-tagging": b"a=1&b=%C3%A4+x",
            b"host": b"x",
        }
    )
    assert dict(found.headers) == {
        "content-type": "text/plain; charset=UTF-8",
        "content-encoding": "gzip",
        "cache-control": "no-cache",
        "expires": "whenever \xff",
    }
    assert found.metadata == [("name", "ä ".encode().decode("latin-1"))]
    assert found.tags == [("a", "1"), ("b", "ä x")]
    assert found.storage_class == "STANDARD_IA"


def test_content_type_has_s3s_default() -> None:
    assert parse_attributes({}).headers == [("content-type", "binary/octet-stream")]


def test_aws_chunked_alone_leaves_no_content_encoding() -> None:
    assert without_aws_chunked(b"aws-chunked") == b""
    assert without_aws_chunked(b"gzip,aws-chunked") == b"gzip"
    assert without_aws_chunked(b"gzip") == b"gzip"


@pytest.mark.parametrize(
    ("name", "value", "code"),
    [
        (b"x-amz-storage-class", b"FAST", "InvalidStorageClass"),
        (b"x-amz-acl", b"public-read", "AccessControlListNotSupported"),
        (b"x-amz-acl", b"nonsense", "InvalidArgument"),
        (b"x-amz-website-redirect-location", b"page", "InvalidRedirectLocation"),
        (
            b"x-amz-copy-source-server-side-encryption-customer-algorithm",
            b"AES256",
            "NotImplemented",
        ),
        (b"x-amz-grant-read", b"id=x", "AccessControlListNotSupported"),
        (b"x-amz-server-side-encryption", b"AES256", "NotImplemented"),
        (b"x-amz-server-side-encryption-customer-algorithm", b"AES256", "NotImplemented"),
        (b"x-amz-object-lock-mode", b"GOVERNANCE", "InvalidRequest"),
        (b"x-amz-write-offset-bytes", b"3", "NotImplemented"),
        (b"x-amz-tagging", b"a=1&a=2", "InvalidArgument"),
        (b"x-amz-tagging", b"a=%ff", "InvalidArgument"),
        (b"x-amz-tagging", b"aws:a=1", "InvalidTag"),
        (b"x-amz-meta-a", b"x" * 2048, "MetadataTooLarge"),
    ],
)
def test_headers_that_are_refused(name: bytes, value: bytes, code: str) -> None:
    with pytest.raises(S3Error) as caught:
        parse_attributes({name: value})
    assert code_of(caught) == code


@pytest.mark.parametrize("location", [b"/page", b"http://a.test/x", b"https://a.test/"])
def test_redirects_are_paths_or_urls(location: bytes) -> None:
    name = "x-amz-website-redirect-location"
    kept = parse_attributes({name.encode(): location}).headers
    assert (name, location.decode()) in kept


def test_metadata_of_2_kib_is_the_most() -> None:
    assert parse_attributes({b"x-amz-meta-a": b"x" * 2047}).metadata


@pytest.mark.parametrize("acl", [b"private", b"bucket-owner-full-control"])
def test_acls_that_change_nothing_pass(acl: bytes) -> None:
    assert parse_attributes({b"x-amz-acl": acl}).metadata == []


def test_tags_survive_their_document() -> None:
    tags = [("a", "1"), ("ключ", ""), ("a b/c:d=e+f@g_h.-", "x" * 256)]
    assert parse_tagging(tagging_document(tags), 10) == tags


@pytest.mark.parametrize(
    ("tags", "code"),
    [
        ([(str(number), "") for number in range(11)], "BadRequest"),
        ([("", "x")], "InvalidTag"),
        ([("x" * 129, "")], "InvalidTag"),
        ([("x", "y" * 257)], "InvalidTag"),
        ([("a", "1"), ("a", "2")], "InvalidTag"),
        ([("a", "<>")], "InvalidTag"),
        ([("aws:x", "")], "InvalidTag"),
    ],
)
def test_tag_sets_that_are_refused(tags: list[tuple[str, str]], code: str) -> None:
    with pytest.raises(S3Error) as caught:
        check_tags(tags, 10)
    assert code_of(caught) == code


@pytest.mark.parametrize(
    "raw",
    [
        b"<Tagging/>",
        b"<Tagging><TagSet><Tag><Key>a</Key></Tag></TagSet></Tagging>",
        b"<Tagging><TagSet><Other/></TagSet></Tagging>",
    ],
)
def test_tagging_documents_that_are_malformed(raw: bytes) -> None:
    with pytest.raises(S3Error) as caught:
        parse_tagging(raw, 10)
    assert code_of(caught) == "MalformedXML"


def test_tagging_header_is_empty_or_pairs() -> None:
    assert parse_tagging_header(b"") == []
    assert parse_tagging_header(b"a&b=") == [("a", ""), ("b", "")]
