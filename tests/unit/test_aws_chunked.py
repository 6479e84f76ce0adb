"""Decoding aws-chunked bodies: AWS's published examples, and everything that must be refused."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from engine.http.message import BodyBroken, HeaderList
from s3.auth.presign import encode_chunks, sign_request
from s3.auth.sigv4 import SigningContext
from s3.aws_chunked import ChunkedBody, has_trailers, open_chunked
from s3.errors import S3Error
from tests.support.s3_signing import (
    EXAMPLE,
    EXAMPLE_MS,
    PiecewiseBody,
    authenticator,
    cut,
    read_all,
    request_of,
)

CRC32C = frozenset([b"x-amz-checksum-crc32c"])
CHUNKS = (b"a" * 65536, b"a" * 1024)


def published(payload: bytes, signed_headers: bytes, signature: bytes) -> HeaderList:
    return [
        (b"host", b"s3.amazonaws.com"),
        (b"x-amz-date", b"20130524T000000Z"),
        (b"x-amz-storage-class", b"REDUCED_REDUNDANCY"),
        (
            b"authorization",
            b"AWS4-HMAC-SHA256 Credential=AKIAIOSFODNN7EXAMPLE/20130524/us-east-1/s3/aws4_request,"
            b"SignedHeaders=" + signed_headers + b",Signature=" + signature,
        ),
        (b"x-amz-content-sha256", payload),
        (b"content-encoding", b"aws-chunked"),
        (b"x-amz-decoded-content-length", b"66560"),
        (b"content-length", b"66824"),
    ]


def framed(signatures: Sequence[bytes], end: bytes) -> bytes:
    chunks = (*CHUNKS, b"")
    lines = [
        b"%x;chunk-signature=%b\r\n" % (len(chunk), signature) + chunk + (b"\r\n" if chunk else b"")
        for chunk, signature in zip(chunks, signatures, strict=True)
    ]
    return b"".join(lines) + end


SIGNED_BODY = framed(
    [
        b"ad80c730a21e5b8d04586a2213dd63b9a0e99e0e2307b0ade35a65485a288648",
        b"0055627c9e194cb4542bae2aa5492e3c1575bbb81b612b7d234b86a503ef5497",
        b"b6c6ea8a5354eaf15b3cb7646744f4275b71ea724fed81ceb9323e279d449df9",
    ],
    b"\r\n",
)
SIGNED_HEADERS = published(
    b"STREAMING-AWS4-HMAC-SHA256-PAYLOAD",
    b"content-encoding;content-length;host;x-amz-content-sha256;x-amz-date;"
    b"x-amz-decoded-content-length;x-amz-storage-class",
    b"4f232c4386841ef735655705268965c44a0e4690baa4adea153f7db9fa80a0a9",
)
TRAILER_BODY = framed(
    [
        b"b474d8862b1487a5145d686f57f013e54db672cee1c953b3010fb58501ef5aa2",
        b"1c1344b170168f8e65b41376b44b20fe354e373826ccbbe2c1d40a8cae51e5c7",
        b"2ca2aba2005185cf7159c6277faf83795951dd77a3a99e6e65d5c9f85863f992",
    ],
    b"x-amz-checksum-crc32c:sOO8/Q==\r\nx-amz-trailer-signature:"
    b"d81f82fc3505edab99d459891051a732e8730629a2e4a59689829ca17fe2e435\r\n\r\n",
)
TRAILER_HEADERS = [
    *published(
        b"STREAMING-AWS4-HMAC-SHA256-PAYLOAD-TRAILER",
        b"content-encoding;host;x-amz-content-sha256;x-amz-date;x-amz-decoded-content-length;"
        b"x-amz-storage-class;x-amz-trailer",
        b"106e2a8a18243abcf37539882f36619c00e2dfc72633413f02d3b74544bfeb8e",
    ),
    (b"x-amz-trailer", b"x-amz-checksum-crc32c"),
]


async def test_the_published_signed_upload_is_decoded() -> None:
    assert len(SIGNED_BODY) == 66824
    request = request_of("PUT", b"/examplebucket/chunkObject.txt", b"", SIGNED_HEADERS, SIGNED_BODY)
    identity = authenticator().authenticate(request)
    body = open_chunked(request, identity)
    assert body is not None
    assert body.length == 66560
    assert not has_trailers(identity)
    assert await read_all(body) == b"a" * 66560
    assert body.trailers == {}


async def test_the_published_upload_with_trailer_is_decoded() -> None:
    request = request_of(
        "PUT", b"/examplebucket/chunkObject.txt", b"", TRAILER_HEADERS, TRAILER_BODY
    )
    identity = authenticator().authenticate(request)
    body = open_chunked(request, identity)
    assert body is not None
    assert has_trailers(identity)
    assert await read_all(body) == b"a" * 66560
    assert body.trailers == {"x-amz-checksum-crc32c": "sOO8/Q=="}


def context() -> SigningContext:
    return sign_request(
        "PUT",
        b"/b/k",
        b"",
        [(b"host", b"h")],
        credential=EXAMPLE,
        region="us-east-1",
        at_ms=EXAMPLE_MS,
    )[1]


def decoder(
    pieces: Iterable[bytes],
    length: int,
    *,
    signing: SigningContext | None = None,
    trailers: frozenset[bytes] | None = None,
    broken: str = "",
) -> ChunkedBody:
    return ChunkedBody(
        PiecewiseBody(pieces, broken=broken), length=length, signing=signing, trailers=trailers
    )


async def refusal(body: ChunkedBody, size: int = 100_000) -> str:
    with pytest.raises(S3Error) as caught:
        await read_all(body, size)
    return caught.value.code


@given(
    data=st.data(),
    sizes=st.lists(st.sampled_from([8192, 8193, 20_000]), max_size=3),
    last=st.integers(0, 9000),
    signed=st.booleans(),
    trailer=st.booleans(),
)
def test_any_cut_of_the_body_decodes_to_the_same_bytes(
    data: st.DataObject, sizes: list[int], last: int, signed: bool, trailer: bool
) -> None:
    chunks = [bytes([65 + n]) * size for n, size in enumerate(sizes)] + ([b"z" * last] * bool(last))
    signing = context() if signed else None
    trailers: HeaderList | None = [(b"x-amz-checksum-crc32c", b"sOO8/Q==")] if trailer else None
    encoded = b"".join(encode_chunks(chunks, signing, trailers))
    pieces = cut(encoded, data.draw(st.lists(st.integers(0, len(encoded)), max_size=12)))
    size = data.draw(st.sampled_from([1000, 8192, 100_000]))
    whole = b"".join(chunks)

    async def main() -> None:
        body = decoder(pieces, len(whole), signing=signing, trailers=CRC32C if trailer else None)
        assert await read_all(body, size) == whole
        assert bool(body.trailers) == trailer

    trio.run(main)


@pytest.mark.parametrize("position", [0, 3, 30, 60, 100, 9000, 9200, 9290, 9330, 9400])
@pytest.mark.parametrize("trailer", [False, True])
async def test_a_changed_byte_of_a_signed_body_is_refused(position: int, trailer: bool) -> None:
    trailers: HeaderList | None = [(b"x-amz-checksum-crc32c", b"sOO8/Q==")] if trailer else None
    encoded = bytearray(b"".join(encode_chunks([b"x" * 9000], context(), trailers)))
    position = min(position, len(encoded) - 3)
    encoded[position] ^= 1
    body = decoder([bytes(encoded)], 9000, signing=context(), trailers=CRC32C if trailer else None)
    assert await refusal(body) in (
        "SignatureDoesNotMatch",
        "IncompleteBody",
        "MalformedTrailerError",
    )


async def test_the_last_bytes_are_not_handed_on_before_the_signature_is_verified() -> None:
    encoded = b"".join(encode_chunks([b"x" * 20_000], context()))
    forged = encoded.replace(b"x\r\n0;", b"y\r\n0;")
    body = decoder([forged], 20_000, signing=context())
    buffer = memoryview(bytearray(20_000))
    got = 0

    async def read_just_the_announced_bytes() -> None:
        nonlocal got
        while got < 20_000:
            got += await body.readinto(buffer[got:])

    with pytest.raises(S3Error) as caught:
        await read_just_the_announced_bytes()
    assert caught.value.code == "SignatureDoesNotMatch"
    assert got < 20_000


async def test_an_empty_body_is_verified_by_finish() -> None:
    good = b"".join(encode_chunks([], context()))
    await decoder([good], 0, signing=context()).finish()
    forged = good.replace(b"chunk-signature=", b"chunk-signature=0", 1)
    with pytest.raises(S3Error) as caught:
        await decoder([forged], 0, signing=context()).finish()
    assert caught.value.code == "SignatureDoesNotMatch"


async def test_chunks_cannot_change_places() -> None:
    pieces = list(encode_chunks([b"x" * 8192, b"y" * 8192], context()))
    swapped = pieces[2:4] + pieces[:2] + pieces[4:]
    body = decoder(swapped, 16384, signing=context())
    assert await refusal(body) == "SignatureDoesNotMatch"


@pytest.mark.parametrize(
    "encoded",
    [
        b"",
        b"5",
        b"5\r\n",
        b"5\r\nhel",
        b"5\r\nhello",
        b"5\r\nhello\r\n",
        b"5\r\nhello\r\n0\r\n",
        b"5\nhello\n0\n\n",
        b"5\r\nhelloXX0\r\n\r\n",
        b"5\r\nhello\r\n0\r\n\r\nmore",
        b"4\r\nhell\r\n0\r\n\r\n",
        b"6\r\nhello!\r\n0\r\n\r\n",
        b"-5\r\nhello\r\n0\r\n\r\n",
        b"0x5\r\nhello\r\n0\r\n\r\n",
        b"+5\r\nhello\r\n0\r\n\r\n",
        b" 5\r\nhello\r\n0\r\n\r\n",
        b"\r\nhello\r\n0\r\n\r\n",
        b"5" + b"0" * 5000 + b"\r\n",
        b"5;" + b"x" * 5000 + b"\r\nhello\r\n0\r\n\r\n",
        b"00000000000000005\r\nhello\r\n0\r\n\r\n",
    ],
)
async def test_broken_framing_or_a_wrong_length_is_an_incomplete_body(encoded: bytes) -> None:
    assert await refusal(decoder([encoded], 5)) == "IncompleteBody"


async def test_a_lost_connection_is_an_incomplete_body_and_a_stall_is_not() -> None:
    assert await refusal(decoder([b"5\r\nhe"], 5, broken="disconnected")) == "IncompleteBody"
    with pytest.raises(BodyBroken):
        await read_all(decoder([b"5\r\nhe"], 5, broken="timeout"))


async def test_only_the_last_chunk_may_be_small() -> None:
    encoded = b"".join(encode_chunks([b"x" * 8191, b"y"], None))
    with pytest.raises(S3Error) as caught:
        await read_all(decoder([encoded], 8192))
    assert caught.value.code == "InvalidChunkSizeError"
    assert caught.value.extra == {"Chunk": "2", "BadChunkSize": "8191"}


@pytest.mark.parametrize(
    "end",
    [
        b"x-amz-checksum-crc32c:sOO8/Q==\r\n\r\n",
        b"x-amz-checksum-crc32c: sOO8/Q== \r\n\r\n",
        b"X-Amz-Checksum-Crc32c:sOO8/Q==\r\n\r\n",
        b"x-amz-checksum-crc32c:sOO8/Q==\n\r\n\r\n",
    ],
)
async def test_trailers_are_found_as_clients_write_them(end: bytes) -> None:
    body = decoder([b"5\r\nhello\r\n0\r\n" + end], 5, trailers=CRC32C)
    assert await read_all(body) == b"hello"
    assert body.trailers == {"x-amz-checksum-crc32c": "sOO8/Q=="}


@pytest.mark.parametrize(
    ("end", "code"),
    [
        (b"\r\n", "MalformedTrailerError"),
        (b"x-amz-checksum-crc32:sOO8/Q==\r\n\r\n", "MalformedTrailerError"),
        (b"x-amz-checksum-crc32c\r\n\r\n", "MalformedTrailerError"),
        (b":sOO8/Q==\r\n\r\n", "MalformedTrailerError"),
        (b"x-amz-checksum-crc32c:sOO8/Q==\r\n" * 2 + b"\r\n", "MalformedTrailerError"),
        (
            b"x-amz-checksum-crc32c:sOO8/Q==\r\nx-amz-trailer-signature:00\r\n\r\n",
            "MalformedTrailerError",
        ),
        (b"\r\n" * 40, "MalformedTrailerError"),
        (b"x-amz-checksum-crc32c:sOO8/Q==\r\n", "IncompleteBody"),
        (b"x-amz-checksum-crc32c:sOO8/Q==", "IncompleteBody"),
        (b"", "IncompleteBody"),
    ],
)
async def test_trailers_that_were_not_announced_or_are_broken_are_refused(
    end: bytes, code: str
) -> None:
    body = decoder([b"5\r\nhello\r\n0\r\n" + end], 5, trailers=CRC32C)
    assert await refusal(body) == code


async def test_trailers_taken_before_reading_are_filled_by_it() -> None:
    body = decoder(
        [b"5\r\nhello\r\n0\r\nx-amz-checksum-crc32c:sOO8/Q==\r\n\r\n"], 5, trailers=CRC32C
    )
    trailers = body.trailers
    assert await read_all(body) == b"hello"
    assert trailers == {"x-amz-checksum-crc32c": "sOO8/Q=="}


async def test_a_body_without_announced_trailers_may_have_none() -> None:
    body = decoder([b"5\r\nhello\r\n0\r\n\r\n"], 5, trailers=frozenset())
    assert await read_all(body) == b"hello"


async def test_a_signed_trailer_needs_its_signature() -> None:
    pieces = list(encode_chunks([b"hello"], context(), [(b"x-amz-checksum-crc32c", b"sOO8/Q==")]))
    without = [piece for piece in pieces if not piece.startswith(b"x-amz-trailer-signature")]
    assert len(without) == len(pieces) - 1
    body = decoder(without, 5, signing=context(), trailers=CRC32C)
    assert await refusal(body) == "MalformedTrailerError"


async def test_large_chunks_are_read_into_the_callers_buffer_without_small_steps() -> None:
    data = b"x" * (3 << 20)
    source = PiecewiseBody([b"".join(encode_chunks([data], context()))])
    body = ChunkedBody(source, length=len(data), signing=context(), trailers=None)
    assert await read_all(body, 4 << 20) == data
    assert source.reads <= 6


@pytest.mark.parametrize(
    ("length", "code"),
    [(None, "MissingContentLength"), (b"-1", "InvalidArgument"), (b"1e3", "InvalidArgument")],
)
def test_the_decoded_length_must_be_announced(length: bytes | None, code: str) -> None:
    headers: HeaderList = [(b"host", b"h")]
    if length is not None:
        headers.append((b"x-amz-decoded-content-length", length))
    headers, _ = sign_request(
        "PUT",
        b"/b/k",
        b"",
        headers,
        credential=EXAMPLE,
        region="us-east-1",
        at_ms=EXAMPLE_MS,
        payload=b"STREAMING-UNSIGNED-PAYLOAD-TRAILER",
    )
    request = request_of("PUT", b"/b/k", b"", headers)
    with pytest.raises(S3Error) as caught:
        open_chunked(request, authenticator().authenticate(request))
    assert caught.value.code == code
