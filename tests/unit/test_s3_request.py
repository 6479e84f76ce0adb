"""Targets, hosts and queries: which bucket, key and operation a request means."""

from __future__ import annotations

from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.http.message import HeaderList, Request
from s3.errors import S3Error
from s3.request import S3Request, bucket_name_problem, int_param, parse_request
from s3.routing import MethodNotAllowed, find_route


class NoBody:
    length: int | None = 0

    async def readinto(self, buffer: memoryview) -> int:
        return 0


def request(
    method: str,
    path: bytes,
    query: bytes = b"",
    headers: HeaderList | None = None,
    domains: tuple[bytes, ...] = (),
) -> S3Request:
    http = Request(method, path, query, headers or [], NoBody(), "peer", False)
    return parse_request(http, "ID", domains)


def code_of(method: str, path: bytes, query: bytes = b"") -> str:
    with pytest.raises(S3Error) as caught:
        find_route(request(method, path, query))
    return caught.value.code


@given(st.text(st.characters(codec="utf-8"), min_size=1, max_size=255))
def test_any_key_survives_percent_encoding(key: str) -> None:
    parsed = request("GET", b"/bucket/" + quote(key, safe="/").encode())
    assert (parsed.bucket, parsed.key) == ("bucket", key)


@pytest.mark.parametrize(
    ("path", "bucket", "key"),
    [
        (b"/", "", ""),
        (b"/b", "b", ""),
        (b"/b/", "b", ""),
        (b"/b/k", "b", "k"),
        (b"/b//k", "b", "/k"),
        (b"/b/a//b/", "b", "a//b/"),
        (b"/b/../x", "b", "../x"),
        (b"/b/a+b", "b", "a+b"),
        (b"/b/%2F", "b", "/"),
        (b"/b/a%00b", "b", "a\x00b"),
        ("/b/ä".encode(), "b", "ä"),
    ],
)
def test_path_style(path: bytes, bucket: str, key: str) -> None:
    parsed = request("GET", path)
    assert (parsed.bucket, parsed.key) == (bucket, key)


@pytest.mark.parametrize(
    "path", [b"/b/%zz", b"/b/%2", b"/b/%ff", b"/b/\xff", b"/b/%ed%a0%80", b"*", b"//key", b""]
)
def test_what_is_no_target_is_an_invalid_uri(path: bytes) -> None:
    with pytest.raises(S3Error) as caught:
        request("GET", path)
    assert caught.value.code == "InvalidURI"


@pytest.mark.parametrize(
    ("host", "path", "bucket", "key"),
    [
        (b"bkt.s3.example.org", b"/k", "bkt", "k"),
        (b"BKT.S3.example.org:9000", b"/", "bkt", ""),
        (b"a.b.s3.example.org", b"/a/b", "a.b", "a/b"),
        (b"s3.example.org", b"/b/k", "b", "k"),
        (b"other.org", b"/b/k", "b", "k"),
        (b"xs3.example.org", b"/b/k", "b", "k"),
        (b"bkt.local", b"//", "bkt", "/"),
        (b"[::1]:9000", b"/b/k", "b", "k"),
    ],
)
def test_virtual_host_style(host: bytes, path: bytes, bucket: str, key: str) -> None:
    parsed = request("GET", path, headers=[(b"host", host)], domains=(b"s3.example.org", b"local"))
    assert (parsed.bucket, parsed.key) == (bucket, key)


def test_a_key_of_1024_bytes_is_the_longest() -> None:
    assert len(request("GET", b"/b/" + b"k" * 1024).key) == 1024
    assert len(request("GET", b"/b/" + quote("ä" * 512).encode()).key) == 512
    for path in (b"/b/" + b"k" * 1025, b"/b/" + quote("ä" * 512 + "x").encode()):
        with pytest.raises(S3Error) as caught:
            request("GET", path)
        assert caught.value.code == "KeyTooLongError"


def test_query_is_decoded_and_the_first_of_repeated_names_counts() -> None:
    parsed = request("GET", b"/b", b"prefix=a%2Fb+c&delimiter=&prefix=z&versions")
    assert parsed.params == {"prefix": "a/b c", "delimiter": "", "versions": ""}


def test_repeated_headers_are_joined() -> None:
    parsed = request("GET", b"/b", headers=[(b"x-amz-meta-a", b"1"), (b"x-amz-meta-a", b"2")])
    assert parsed.headers == {b"x-amz-meta-a": b"1,2"}


@pytest.mark.parametrize(
    ("method", "path", "query", "name"),
    [
        ("GET", b"/", b"", "ListBuckets"),
        ("GET", b"/b", b"", "ListObjects"),
        ("GET", b"/b", b"list-type=2&prefix=x", "ListObjects"),
        ("GET", b"/b", b"versions", "ListObjectVersions"),
        ("GET", b"/b", b"uploads&prefix=a", "ListMultipartUploads"),
        ("PUT", b"/b", b"", "CreateBucket"),
        ("POST", b"/b", b"delete", "DeleteObjects"),
        ("POST", b"/b", b"", "PostObject"),
        ("OPTIONS", b"/b/k", b"", "PreflightRequest"),
        ("GET", b"/b/k", b"versionId=1", "GetObject"),
        ("GET", b"/b/k", b"X-Amz-Signature=1&x-id=GetObject", "GetObject"),
        ("GET", b"/b/k", b"policy", "GetObject"),
        ("PUT", b"/b/k", b"partNumber=1&uploadId=x", "UploadPart"),
        ("POST", b"/b/k", b"uploads", "CreateMultipartUpload"),
        ("POST", b"/b/k", b"uploadId=x", "CompleteMultipartUpload"),
        ("DELETE", b"/b/k", b"uploadId=x", "AbortMultipartUpload"),
        ("DELETE", b"/b/k", b"versionId=x", "DeleteObject"),
    ],
)
def test_routes(method: str, path: bytes, query: bytes, name: str) -> None:
    assert find_route(request(method, path, query)).name == name


def test_a_copy_source_turns_puts_into_copies() -> None:
    headers = [(b"x-amz-copy-source", b"/a/b")]
    assert find_route(request("PUT", b"/b/k", b"", headers)).name == "CopyObject"
    part = request("PUT", b"/b/k", b"partNumber=1&uploadId=x", headers)
    assert find_route(part).name == "UploadPartCopy"


@pytest.mark.parametrize(
    ("method", "path", "query", "code"),
    [
        ("PUT", b"/b", b"policy", "NotImplemented"),
        ("PUT", b"/b", b"lifecycle", "NotImplemented"),
        ("DELETE", b"/b", b"encryption", "NotImplemented"),
        ("POST", b"/b/k", b"restore", "NotImplemented"),
        ("POST", b"/b/k", b"select&select-type=2", "NotImplemented"),
        ("GET", b"/b/k", b"retention", "NotImplemented"),
        ("GET", b"/b", b"acl&policy", "InvalidArgument"),
        ("DELETE", b"/b/k", b"policy", "InvalidRequest"),
        ("PUT", b"/b/k", b"cors", "InvalidRequest"),
    ],
)
def test_what_is_not_there_says_so(method: str, path: bytes, query: bytes, code: str) -> None:
    assert code_of(method, path, query) == code


@pytest.mark.parametrize(
    ("method", "path", "query", "allow"),
    [
        ("POST", b"/b/k", b"", "DELETE, GET, HEAD, PUT"),
        ("PATCH", b"/b/k", b"", "DELETE, GET, HEAD, PUT"),
        ("DELETE", b"/", b"", "GET"),
        ("POST", b"/b", b"versions", "GET"),
        ("HEAD", b"/b", b"cors", "DELETE, GET, PUT"),
    ],
)
def test_other_methods_are_not_allowed(method: str, path: bytes, query: bytes, allow: str) -> None:
    with pytest.raises(MethodNotAllowed) as caught:
        find_route(request(method, path, query))
    assert (caught.value.error.code, caught.value.allow) == ("MethodNotAllowed", allow)


@pytest.mark.parametrize(
    "name", ["abc", "a.b", "0-9", "a" * 63, "my-bucket.example.org", "a-.-b", "1.2.3", "1.2.3.4.5"]
)
def test_bucket_names_that_s3_allows(name: str) -> None:
    assert bucket_name_problem(name) is None


@pytest.mark.parametrize(
    "name",
    [
        "ab",
        "a" * 64,
        "Abc",
        "a_b",
        "-ab",
        "ab-",
        ".ab",
        "ab.",
        "a..b",
        "192.168.5.4",
        "xn--abc",
        "sthree-abc",
        "abc-s3alias",
        "abc--ol-s3",
        "abc.mrap",
        "abc--x-s3",
        "abc\n",
        "äbc",
    ],
)
def test_bucket_names_that_s3_refuses(name: str) -> None:
    assert bucket_name_problem(name) is not None


@pytest.mark.parametrize("text", ["x", "1.5", "-1", "2147483648", "99999999999999", "१"])
def test_numbers_out_of_range_are_invalid_arguments(text: str) -> None:
    with pytest.raises(S3Error) as caught:
        int_param(request("GET", b"/b", b"max-keys=" + quote(text).encode()), "max-keys", 7)
    assert caught.value.code == "InvalidArgument"
    assert caught.value.extra == {"ArgumentName": "max-keys", "ArgumentValue": text}
