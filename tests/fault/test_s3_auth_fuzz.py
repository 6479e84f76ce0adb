"""Whatever bytes come, authentication and framing answer with an S3 error or a broken body."""

from __future__ import annotations

import base64
import contextlib
from collections.abc import Iterator

import trio
from hypothesis import given
from hypothesis import strategies as st

from engine.http.message import BodyBroken, HeaderList, Request
from s3.auth.form import read_form
from s3.auth.post_policy import authenticate_form, check_policy, parse_policy
from s3.auth.presign import encode_chunks, presign_url, sign_request
from s3.aws_chunked import ChunkedBody, open_chunked
from s3.checksums import digests_of, parse_multipart, parse_upload, verify
from s3.errors import CODES, S3Error
from tests.support.s3_signing import (
    EXAMPLE,
    EXAMPLE_MS,
    PiecewiseBody,
    authenticator,
    cut,
    read_all,
    request_of,
)

HEADERS, CONTEXT = sign_request(
    "PUT",
    b"/b/k",
    b"a=1",
    [
        (b"host", b"h"),
        (b"x-amz-decoded-content-length", b"9000"),
        (b"x-amz-trailer", b"x-amz-checksum-crc32c"),
    ],
    credential=EXAMPLE,
    region="us-east-1",
    at_ms=EXAMPLE_MS,
    payload=b"STREAMING-AWS4-HMAC-SHA256-PAYLOAD-TRAILER",
)
BODY = b"".join(
    encode_chunks([b"x" * 8192, b"y" * 808], CONTEXT, [(b"x-amz-checksum-crc32c", b"sOO8/Q==")])
)
PRESIGNED = presign_url(
    "GET",
    b"/b/k",
    host=b"h",
    credential=EXAMPLE,
    region="us-east-1",
    at_ms=EXAMPLE_MS,
    expires_s=60,
)
FORM = (
    b'--XX\r\nContent-Disposition: form-data; name="key"\r\n\r\na\r\n'
    b'--XX\r\nContent-Disposition: form-data; name="file"; filename="f"\r\n\r\ncontent\r\n'
    b"--XX--\r\n"
)
POLICY = (
    b'{"expiration":"2030-01-01T00:00:00Z","conditions":[{"bucket":"b"},'
    b'["starts-with","$key",""],["content-length-range",0,10]]}'
)
INTERESTING = [b"\r\n", b"\r", b"\n", b"%", b"/", b";", b",", b"=", b":", b"\x00", b"\xff", b"--"]


@st.composite
def damaged(draw: st.DrawFn, original: bytes) -> bytes:
    """Some bytes of ``original`` cut out, put in or replaced; seldom none."""
    data = original
    for _ in range(draw(st.integers(1, 3))):
        start = draw(st.integers(0, len(data)))
        end = min(len(data), start + draw(st.sampled_from([0, 1, 2, 10, 1000])))
        new = draw(st.binary(max_size=6) | st.sampled_from(INTERESTING))
        data = data[:start] + new + data[end:]
    return data


@contextlib.contextmanager
def only_s3_errors() -> Iterator[None]:
    try:
        yield
    except S3Error as error:
        check_answerable(error)
    except BodyBroken:
        pass


def check_answerable(error: S3Error) -> None:
    """Fail unless the error is in the table and its texts can be written as UTF-8."""
    assert error.status == CODES[error.code][0]
    "".join([error.message, *error.extra.values()]).encode()


@given(data=st.data())
def test_damaged_headers(data: st.DataObject) -> None:
    headers: HeaderList = list(HEADERS)
    for _ in range(data.draw(st.integers(1, 3))):
        index = data.draw(st.integers(0, len(headers) - 1))
        name, value = headers[index]
        headers[index] = (name, data.draw(damaged(value)))
    request = request_of("PUT", b"/b/k", b"a=1", headers, BODY)
    with only_s3_errors():
        identity = authenticator().authenticate(request)
        open_chunked(request, identity)
    with only_s3_errors():
        parse_upload(dict(headers), trailers=True)


@given(authorization=st.binary(max_size=200), prefix=st.sampled_from([b"", b"AWS4-HMAC-SHA256 "]))
def test_random_authorization(authorization: bytes, prefix: bytes) -> None:
    headers = [(b"host", b"h"), (b"authorization", prefix + authorization)]
    with only_s3_errors():
        authenticator().authenticate(request_of("GET", b"/", b"", headers))
        raise AssertionError("accepted")


@given(target=damaged(PRESIGNED), host=st.sampled_from([b"h", b"H", b""]))
def test_damaged_presigned_urls(target: bytes, host: bytes) -> None:
    path, _, query = target.partition(b"?")
    with only_s3_errors():
        authenticator().authenticate(request_of("GET", path, query, [(b"host", host)]))


@given(data=st.data())
def test_damaged_signed_chunks_never_give_other_bytes(data: st.DataObject) -> None:
    body = data.draw(damaged(BODY))
    pieces = cut(body, data.draw(st.lists(st.integers(0, len(body)), max_size=4)))
    broken = data.draw(st.sampled_from(["", "disconnected", "timeout", "framing"]))

    async def main() -> None:
        source = PiecewiseBody(pieces, broken=broken)
        trailers = frozenset([b"x-amz-checksum-crc32c"])
        decoder = ChunkedBody(source, length=9000, signing=CONTEXT, trailers=trailers)
        with only_s3_errors():
            assert await read_all(decoder, 4096) == b"x" * 8192 + b"y" * 808

    trio.run(main)


@given(data=st.data(), length=st.integers(0, 50))
def test_random_chunks_never_give_more_than_was_announced(data: st.DataObject, length: int) -> None:
    body = b"".join(
        data.draw(st.lists(st.binary(max_size=5) | st.sampled_from([b"5\r\n", b"0\r\n", b"\r\n"])))
    )

    async def main() -> None:
        decoder = ChunkedBody(
            PiecewiseBody([body]), length=length, signing=None, trailers=frozenset()
        )
        with only_s3_errors():
            assert len(await read_all(decoder, 16)) == length

    trio.run(main)


def form_request(body: bytes) -> Request:
    headers = [(b"content-type", b"multipart/form-data; boundary=XX")]
    return request_of("POST", b"/b", b"", headers, body)


@given(body=damaged(FORM) | st.binary(max_size=200), size=st.sampled_from([10, 2000]))
def test_damaged_forms(body: bytes, size: int) -> None:
    async def main() -> None:
        with only_s3_errors():
            form = await read_form(form_request(body))
            form.file.limit(0, 100)
            await read_all(form.file, size)

    trio.run(main)


@given(
    document=damaged(POLICY) | st.binary(max_size=50),
    fields=st.dictionaries(
        st.sampled_from(
            [
                "key",
                "policy",
                "x-amz-algorithm",
                "x-amz-credential",
                "x-amz-date",
                "x-amz-signature",
            ]
        ),
        st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
        | st.sampled_from(
            [
                "AWS4-HMAC-SHA256",
                "20130524T000000Z",
                "AKIAIOSFODNN7EXAMPLE/20130524/us-east-1/s3/aws4_request",
            ]
        ),
    ),
)
def test_damaged_policies(document: bytes, fields: dict[str, str]) -> None:
    with only_s3_errors():
        policy = parse_policy(base64.b64encode(document).decode())
        check_policy(policy, {"bucket": "b", "key": "a"}, EXAMPLE_MS)
    with only_s3_errors():
        parse_policy(document.decode("utf-8", "replace"))
    with only_s3_errors():
        authenticate_form(authenticator(), fields, bucket="b")
        raise AssertionError("accepted")


@given(
    headers=st.dictionaries(
        st.sampled_from(
            [
                b"content-md5",
                b"x-amz-trailer",
                b"x-amz-sdk-checksum-algorithm",
                b"x-amz-checksum-algorithm",
                b"x-amz-checksum-type",
                b"x-amz-checksum-crc32",
                b"x-amz-checksum-\xff",
            ]
        ),
        st.binary(max_size=30)
        | st.sampled_from([b"CRC32", b"COMPOSITE", b"x-amz-checksum-crc32", b"AAAAAA=="]),
    ),
    trailer=st.text(max_size=12),
)
def test_random_checksum_headers(headers: dict[bytes, bytes], trailer: str) -> None:
    with only_s3_errors():
        parse_multipart(headers)
    with only_s3_errors():
        request = parse_upload(headers, trailers=True)
        digests = digests_of(b"data", request.algorithms())
        verify(request, digests, {"x-amz-checksum-crc32": trailer})
