"""Checksums that clients send: what they ask for in headers, and whether the bytes have them.

Source: https://docs.aws.amazon.com/AmazonS3/latest/userguide/checking-object-integrity.html
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import zlib
from collections.abc import Iterable, Mapping

import msgspec
from awscrt import checksums as crt

from s3.errors import S3Error, s3_error

SIZES = {"CRC32": 4, "CRC32C": 4, "CRC64NVME": 8, "SHA1": 20, "SHA256": 32}
"""Bytes of each checksum by its name."""

DEFAULT = "CRC64NVME"
"""Computed when the client sends none."""

_HEADERS = {f"x-amz-checksum-{name.lower()}".encode(): name for name in SIZES}
_PREFIX = b"x-amz-checksum-"
_NO_VALUES = (b"x-amz-checksum-algorithm", b"x-amz-checksum-type", b"x-amz-checksum-mode")
_NOT_THERE = ("SHA512", "MD5", "XXHASH64", "XXHASH3", "XXHASH128")
TYPES = ("FULL_OBJECT", "COMPOSITE")
_ONE_TYPE = {"CRC64NVME": "FULL_OBJECT", "SHA1": "COMPOSITE", "SHA256": "COMPOSITE"}


class ChecksumRequest(msgspec.Struct, frozen=True, kw_only=True):
    """What a PUT of bytes is to be checked against, and which checksum is kept with them."""

    algorithm: str
    """Key of ``SIZES``: the checksum that is stored and answered."""
    expected: bytes | None = None
    """Its value, when the request's headers had it."""
    in_trailer: bool = False
    """Its value comes behind the body."""
    asked: bool = False
    """The client named the algorithm; False: it is ``DEFAULT``."""
    md5: bytes | None = None
    """Of Content-MD5."""
    sha256: bytes | None = None
    """Of the signed ``x-amz-content-sha256``."""

    def algorithms(self) -> frozenset[str]:
        """Return all that ``verify`` needs digests of (``MD5`` besides the keys of ``SIZES``)."""
        names = {self.algorithm}
        if self.md5 is not None:
            names.add("MD5")
        if self.sha256 is not None:
            names.add("SHA256")
        return frozenset(names)


def header_name(algorithm: str) -> str:
    """Return the header, and trailer, that carries values of the algorithm."""
    return f"x-amz-checksum-{algorithm.lower()}"


def encode(value: bytes) -> str:
    return base64.b64encode(value).decode()


def decode(text: bytes, size: int) -> bytes | None:
    """Return the bytes of strict base64, or None unless there are exactly ``size`` of them."""
    try:
        value = binascii.a2b_base64(text, strict_mode=True)
    except (binascii.Error, ValueError):
        return None
    return value if len(value) == size else None


def parse_upload(
    headers: Mapping[bytes, bytes], *, sha256: bytes | None = None, trailers: bool = False
) -> ChecksumRequest:
    """Return what PutObject, UploadPart, or a request with a document, announce of their body.

    Args:
        headers: value by lower-case name.
        sha256: the signed digest of the body.
        trailers: the body is aws-chunked with trailers, so ``x-amz-trailer`` counts.
    Raises:
        S3Error: InvalidRequest, InvalidDigest, or NotImplemented.
    """
    md5 = _content_md5(headers)
    found = find_value(headers)
    trailer = _trailer(headers) if trailers else None
    if found is not None and trailer is not None:
        raise _several()
    sdk_algorithm = headers.get(b"x-amz-sdk-checksum-algorithm")
    algorithm = found[0] if found is not None else trailer
    if sdk_algorithm is not None:
        _check_sdk_algorithm(sdk_algorithm, algorithm)
    return ChecksumRequest(
        algorithm=algorithm or DEFAULT,
        expected=found[1] if found is not None else None,
        in_trailer=trailer is not None,
        asked=algorithm is not None,
        md5=md5,
        sha256=sha256,
    )


def find_value(headers: Mapping[bytes, bytes]) -> tuple[str, bytes] | None:
    """Return (algorithm, value) of the one ``x-amz-checksum-*`` header, or None.

    Raises:
        S3Error: InvalidRequest for several of them, for an algorithm or value that is none.
    """
    names = [name for name in headers if name[:15] == _PREFIX and name not in _NO_VALUES]
    if not names:
        return None
    if len(names) > 1:
        raise _several()
    name = names[0]
    algorithm = _HEADERS.get(name)
    if algorithm is None:
        if name[15:].decode("latin-1").upper() in _NOT_THERE:
            raise s3_error("NotImplemented")
        raise s3_error(
            "InvalidRequest",
            "The algorithm type you specified in x-amz-checksum- header is invalid.",
        )
    value = decode(headers[name].strip(), SIZES[algorithm])
    if value is None:
        raise _invalid_value(algorithm)
    return algorithm, value


def parse_multipart(headers: Mapping[bytes, bytes]) -> tuple[str, str]:
    """Return (algorithm, type) that CreateMultipartUpload asks for; both empty when it does not.

    Raises:
        S3Error: InvalidRequest, or NotImplemented.
    """
    raw_algorithm = headers.get(b"x-amz-checksum-algorithm")
    raw_type = headers.get(b"x-amz-checksum-type")
    if raw_algorithm is None:
        if raw_type is not None:
            raise s3_error(
                "InvalidRequest",
                "The x-amz-checksum-type header can only be used with the x-amz-checksum-algorithm "
                "header.",
            )
        return "", ""
    algorithm = raw_algorithm.decode("latin-1").upper()
    if algorithm not in SIZES:
        if algorithm in _NOT_THERE:
            raise s3_error("NotImplemented")
        raise s3_error(
            "InvalidRequest",
            "Checksum algorithm provided is unsupported. Please try again with any of the valid "
            f"types: [{', '.join(SIZES)}]",
        )
    return algorithm, checksum_type(algorithm, raw_type)


def checksum_type(algorithm: str, raw: bytes | None) -> str:
    """Return ``FULL_OBJECT`` or ``COMPOSITE``: what the header says, or the algorithm's default.

    Raises: S3Error InvalidRequest for a type that is none or that the algorithm has not.
    """
    only = _ONE_TYPE.get(algorithm)
    if raw is None:
        return only or "COMPOSITE"
    kind = raw.decode("latin-1").upper()
    if kind not in TYPES:
        raise s3_error("InvalidRequest", "Value for x-amz-checksum-type header is invalid.")
    if only is not None and kind != only:
        raise s3_error(
            "InvalidRequest",
            f"The {kind} checksum type cannot be used with the {algorithm.lower()} checksum "
            "algorithm.",
        )
    return kind


def verify(
    request: ChecksumRequest, digests: Mapping[str, bytes], trailers: Mapping[str, str]
) -> bytes:
    """Return the checksum to keep, once everything that was announced has been found true.

    Args:
        digests: of the body, raw, for ``request.algorithms()`` at least.
        trailers: value by lower-case name.
    Raises:
        S3Error: XAmzContentSHA256Mismatch, BadDigest, InvalidRequest or MalformedTrailerError.
    """
    if request.sha256 is not None and not _same(request.sha256, digests["SHA256"]):
        raise s3_error(
            "XAmzContentSHA256Mismatch",
            ClientComputedContentSHA256=request.sha256.hex(),
            S3ComputedContentSHA256=digests["SHA256"].hex(),
        )
    if request.md5 is not None and not _same(request.md5, digests["MD5"]):
        raise s3_error(
            "BadDigest", ExpectedDigest=request.md5.hex(), CalculatedDigest=encode(digests["MD5"])
        )
    expected = request.expected
    if request.in_trailer:
        text = trailers.get(header_name(request.algorithm))
        if text is None:
            raise s3_error("MalformedTrailerError")
        expected = decode(text.encode("latin-1", "replace"), SIZES[request.algorithm])
        if expected is None:
            raise _invalid_value(request.algorithm)
    computed = digests[request.algorithm]
    if expected is not None and not _same(expected, computed):
        raise mismatch(request.algorithm)
    return computed


def mismatch(algorithm: str) -> S3Error:
    """Return the error for bytes that do not have the checksum that was sent with them."""
    return s3_error(
        "BadDigest", f"The {algorithm} you specified did not match the calculated checksum."
    )


def require_digest(request: ChecksumRequest) -> None:
    """Refuse a request that S3 takes only with a digest of its body (DeleteObjects, PutBucketCors).

    Raises: S3Error InvalidRequest.
    """
    if not request.asked and request.md5 is None:
        raise s3_error(
            "InvalidRequest",
            "Missing required header for this request: Content-MD5 OR x-amz-checksum-*",
        )


def digests_of(data: bytes, algorithms: Iterable[str]) -> dict[str, bytes]:
    """Return the digests of a document that is in memory as a whole.

    Cost: CPU-bound, never yields; for documents of up to a few MiB.
    """
    return {name: _digest(name, data) for name in algorithms}


def _digest(name: str, data: bytes) -> bytes:
    match name:
        case "MD5":
            return hashlib.md5(data, usedforsecurity=False).digest()
        case "SHA1":
            return hashlib.sha1(data, usedforsecurity=False).digest()
        case "SHA256":
            return hashlib.sha256(data).digest()
        case "CRC32":
            return zlib.crc32(data).to_bytes(4, "big")
        case "CRC32C":
            return int(crt.crc32c(data)).to_bytes(4, "big")
        case "CRC64NVME":
            return int(crt.crc64nvme(data)).to_bytes(8, "big")
        case _:
            raise ValueError(name)


def _content_md5(headers: Mapping[bytes, bytes]) -> bytes | None:
    raw = headers.get(b"content-md5")
    if raw is None:
        return None
    value = decode(raw.strip(), 16)
    if value is None:
        raise s3_error("InvalidDigest", **{"Content-MD5": raw[:256].decode("latin-1")})
    return value


def _trailer(headers: Mapping[bytes, bytes]) -> str | None:
    raw = headers.get(b"x-amz-trailer")
    if raw is None:
        return None
    algorithm = _HEADERS.get(raw.strip().lower())
    if algorithm is None:
        if raw[15:].decode("latin-1").strip().upper() in _NOT_THERE:
            raise s3_error("NotImplemented")
        raise s3_error(
            "InvalidRequest", "The value specified in the x-amz-trailer header is not supported"
        )
    return algorithm


def _check_sdk_algorithm(raw: bytes, algorithm: str | None) -> None:
    wanted = raw.decode("latin-1").upper()
    if wanted in _NOT_THERE:
        raise s3_error("NotImplemented")
    if wanted not in SIZES or (algorithm is not None and algorithm != wanted):
        raise s3_error(
            "InvalidRequest", "Value for x-amz-sdk-checksum-algorithm header is invalid."
        )
    if algorithm is None:
        raise s3_error(
            "InvalidRequest",
            "x-amz-sdk-checksum-algorithm specified, but no corresponding x-amz-checksum-* or "
            "x-amz-trailer headers were found.",
        )


def _same(expected: bytes, computed: bytes) -> bool:
    return hmac.compare_digest(expected, computed)


def _several() -> S3Error:
    return s3_error(
        "InvalidRequest",
        "Expecting a single x-amz-checksum- header. Multiple checksum Types are not allowed.",
    )


def _invalid_value(algorithm: str) -> S3Error:
    return s3_error("InvalidRequest", f"Value for {header_name(algorithm)} header is invalid.")
