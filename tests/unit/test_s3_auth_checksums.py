"""Checksums in headers and trailers: what is asked for, what is refused, what is verified."""

from __future__ import annotations

import base64

import pytest

from s3.checksums import (
    SIZES,
    ChecksumRequest,
    decode,
    digests_of,
    encode,
    find_value,
    parse_multipart,
    parse_upload,
    require_digest,
    verify,
)
from s3.errors import S3Error

ALL = [*SIZES, "MD5"]
# The check values of the algorithms' catalogues, for the nine bytes "123456789".
KNOWN = {
    "CRC32": "cbf43926",
    "CRC32C": "e3069283",
    "CRC64NVME": "ae8b14860a799888",
    "SHA1": "f7c3bc1d808e04732adf679965ccc34ca7ae3441",
    "SHA256": "15e2b0d3c33891ebb0f1ef609ec419420c20e320ce94c65fbc8c3312448eb225",
    "MD5": "25f9e794323b453885f5181f1b624d0b",
}
DATA = b"123456789"
DIGESTS = digests_of(DATA, ALL)


def b64(algorithm: str) -> bytes:
    return base64.b64encode(bytes.fromhex(KNOWN[algorithm]))


def refused(call: object, *arguments: object, **options: object) -> S3Error:
    assert callable(call)
    with pytest.raises(S3Error) as caught:
        call(*arguments, **options)
    return caught.value


def test_digests_have_their_catalogues_check_values() -> None:
    assert {name: digest.hex() for name, digest in DIGESTS.items()} == KNOWN


def test_crc64nvme_is_computed_when_nothing_is_sent() -> None:
    request = parse_upload({b"content-type": b"x", b"x-amz-checksum-mode": b"ENABLED"})
    assert request == ChecksumRequest(algorithm="CRC64NVME")
    assert request.algorithms() == {"CRC64NVME"}
    assert verify(request, DIGESTS, {}) == DIGESTS["CRC64NVME"]


@pytest.mark.parametrize("algorithm", SIZES)
def test_a_checksum_header_is_verified(algorithm: str) -> None:
    name = f"x-amz-checksum-{algorithm.lower()}".encode()
    request = parse_upload(
        {name: b64(algorithm), b"x-amz-sdk-checksum-algorithm": algorithm.encode()}
    )
    assert request.asked
    assert verify(request, DIGESTS, {}) == DIGESTS[algorithm]
    wrong = parse_upload({name: encode(bytes(SIZES[algorithm])).encode()})
    error = refused(verify, wrong, DIGESTS, {})
    assert error.code == "BadDigest"
    assert error.message == f"The {algorithm} you specified did not match the calculated checksum."


@pytest.mark.parametrize("algorithm", SIZES)
def test_a_checksum_trailer_is_verified(algorithm: str) -> None:
    name = f"x-amz-checksum-{algorithm.lower()}"
    request = parse_upload({b"x-amz-trailer": name.encode()}, trailers=True)
    assert request.algorithms() == {algorithm}
    assert verify(request, DIGESTS, {name: b64(algorithm).decode()}) == DIGESTS[algorithm]
    wrong = encode(bytes(SIZES[algorithm]))
    assert refused(verify, request, DIGESTS, {name: wrong}).code == "BadDigest"
    assert refused(verify, request, DIGESTS, {}).code == "MalformedTrailerError"
    error = refused(verify, request, DIGESTS, {name: "no base64"})
    assert error.message == f"Value for {name} header is invalid."


def test_content_md5_is_verified() -> None:
    request = parse_upload({b"content-md5": b64("MD5")})
    assert request.algorithms() == {"MD5", "CRC64NVME"}
    verify(request, DIGESTS, {})
    wrong = parse_upload({b"content-md5": base64.b64encode(bytes(16))})
    error = refused(verify, wrong, DIGESTS, {})
    assert (error.code, error.extra["CalculatedDigest"]) == ("BadDigest", b64("MD5").decode())


@pytest.mark.parametrize("value", [b"", b"x", b"AAAA", b"A" * 24, b64("MD5") + b"\n!", b64("SHA1")])
def test_a_content_md5_that_is_none_is_refused(value: bytes) -> None:
    assert refused(parse_upload, {b"content-md5": value}).code == "InvalidDigest"


def test_the_signed_sha256_is_verified() -> None:
    good = parse_upload({}, sha256=DIGESTS["SHA256"])
    assert good.algorithms() == {"SHA256", "CRC64NVME"}
    verify(good, DIGESTS, {})
    error = refused(verify, parse_upload({}, sha256=bytes(32)), DIGESTS, {})
    assert error.code == "XAmzContentSHA256Mismatch"
    assert error.extra["ClientComputedContentSHA256"] == "00" * 32
    assert error.extra["S3ComputedContentSHA256"] == KNOWN["SHA256"]


CRC = (b"x-amz-checksum-crc32", b"y/Q5Jg==")


@pytest.mark.parametrize(
    ("headers", "message"),
    [
        ({CRC[0]: CRC[1], b"x-amz-checksum-sha1": b64("SHA1")}, "Multiple checksum Types"),
        ({CRC[0]: CRC[1], b"x-amz-trailer": b"x-amz-checksum-crc32"}, "Multiple checksum Types"),
        ({CRC[0]: b"y/Q5Jg"}, "Value for x-amz-checksum-crc32 header is invalid."),
        ({CRC[0]: b"y/Q5"}, "Value for x-amz-checksum-crc32 header is invalid."),
        ({CRC[0]: b""}, "Value for x-amz-checksum-crc32 header is invalid."),
        ({CRC[0]: b"y/Q5Jg==,y/Q5Jg=="}, "Value for x-amz-checksum-crc32 header is invalid."),
        ({b"x-amz-checksum-crc31": b"AAAA"}, "The algorithm type you specified"),
        ({b"x-amz-trailer": b"x-amz-checksum-sha10"}, "x-amz-trailer header is not supported"),
        ({b"x-amz-trailer": b"x-amz-meta-a"}, "x-amz-trailer header is not supported"),
        ({b"x-amz-sdk-checksum-algorithm": b"CRC32"}, "no corresponding x-amz-checksum-*"),
        (
            {CRC[0]: CRC[1], b"x-amz-sdk-checksum-algorithm": b"SHA1"},
            "Value for x-amz-sdk-checksum-algorithm header is invalid.",
        ),
        (
            {CRC[0]: CRC[1], b"x-amz-sdk-checksum-algorithm": b"CRC31"},
            "Value for x-amz-sdk-checksum-algorithm header is invalid.",
        ),
    ],
)
def test_contradictory_or_invalid_headers_are_refused(
    headers: dict[bytes, bytes], message: str
) -> None:
    error = refused(parse_upload, headers, trailers=True)
    assert error.code == "InvalidRequest"
    assert message in error.message


def test_algorithms_that_are_not_there_yet_say_so() -> None:
    assert refused(find_value, {b"x-amz-checksum-xxhash64": b"AAAA"}).code == "NotImplemented"
    assert refused(parse_multipart, {b"x-amz-checksum-algorithm": b"MD5"}).code == "NotImplemented"


def test_a_trailer_counts_only_in_a_body_that_has_trailers() -> None:
    request = parse_upload({b"x-amz-trailer": b"x-amz-checksum-crc32"}, trailers=False)
    assert request.algorithm == "CRC64NVME"
    assert not request.in_trailer


@pytest.mark.parametrize(
    ("algorithm", "kind", "expected"),
    [
        (None, None, ("", "")),
        (b"CRC32", None, ("CRC32", "COMPOSITE")),
        (b"crc32c", b"full_object", ("CRC32C", "FULL_OBJECT")),
        (b"CRC64NVME", None, ("CRC64NVME", "FULL_OBJECT")),
        (b"SHA256", None, ("SHA256", "COMPOSITE")),
    ],
)
def test_an_uploads_checksum_has_its_algorithms_type(
    algorithm: bytes | None, kind: bytes | None, expected: tuple[str, str]
) -> None:
    assert parse_multipart(multipart(algorithm, kind)) == expected


@pytest.mark.parametrize(
    ("algorithm", "kind"),
    [
        (None, b"COMPOSITE"),
        (b"CRC31", None),
        (b"CRC32", b"HALF"),
        (b"SHA1", b"FULL_OBJECT"),
        (b"CRC64NVME", b"COMPOSITE"),
    ],
)
def test_impossible_algorithms_and_types_are_refused(
    algorithm: bytes | None, kind: bytes | None
) -> None:
    assert refused(parse_multipart, multipart(algorithm, kind)).code == "InvalidRequest"


def multipart(algorithm: bytes | None, kind: bytes | None) -> dict[bytes, bytes]:
    headers = {b"x-amz-checksum-algorithm": algorithm, b"x-amz-checksum-type": kind}
    return {name: value for name, value in headers.items() if value is not None}


def test_documents_that_need_a_digest_are_refused_without_one() -> None:
    assert refused(require_digest, parse_upload({})).code == "InvalidRequest"
    require_digest(parse_upload({b"content-md5": b64("MD5")}))
    require_digest(parse_upload(dict([CRC])))


def test_base64_is_read_strictly() -> None:
    assert decode(b"y/Q5Jg==", 4) == bytes.fromhex("cbf43926")
    for text in (b"y/Q5Jg==\n", b" y/Q5Jg==", b"y_Q5Jg==", b"y/Q5Jg==AAAA", b"\xff"):
        assert decode(text, 4) is None
