"""Bodies of requests: bytes for the engine, with their checks, or a document."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeVar

import msgspec
import trio

from engine.meta.records import Checksum
from engine.types import PUT_SIZE_MAX, Check, Digests, Source, UploadInfo
from s3.aws_chunked import has_trailers, open_chunked
from s3.checksums import (
    DEFAULT,
    ChecksumRequest,
    digests_of,
    parse_upload,
    require_digest,
    verify,
)
from s3.errors import S3Error, s3_error
from s3.request import S3Request

T = TypeVar("T")

_PIECE = 64 * 1024
_INLINE_MAX = 64 * 1024
"""Bytes of a document that are parsed without a thread."""
_NO_TRAILERS: Mapping[str, str] = {}


@dataclass(frozen=True, slots=True)
class Upload:
    """What ``Engine.put`` and ``put_part`` are called with."""

    source: Source
    size: int | None
    """Bytes of the object; None for plain chunked transfer."""
    algorithms: frozenset[str]
    check: Check


@dataclass(frozen=True, slots=True)
class _Opened:
    source: Source
    size: int | None
    trailers: Mapping[str, str]
    """Filled when all bytes have been read."""


async def _open(request: S3Request, size_max: int) -> _Opened:
    chunked = open_chunked(request.http, request.identity)
    if chunked is None:
        body = request.http.body
        if body.length is not None and body.length > size_max:
            raise _too_large(body.length, size_max)
        return _Opened(body, body.length, _NO_TRAILERS)
    length = chunked.length
    if length is not None and length > size_max:
        raise _too_large(length, size_max)
    if length == 0:
        # Nobody reads from an empty body, so its trailers are fetched here.
        await chunked.finish()
    return _Opened(chunked, length, chunked.trailers)


def _too_large(size: int, size_max: int) -> S3Error:
    return s3_error("EntityTooLarge", ProposedSize=str(size), MaxSizeAllowed=str(size_max))


def _upload(opened: _Opened, wanted: ChecksumRequest, also: str = "") -> Upload:
    def check(digests: Digests) -> list[Checksum]:
        value = verify(wanted, digests, opened.trailers)
        kept = [Checksum(algorithm=wanted.algorithm, value=value)]
        if also:
            kept.append(Checksum(algorithm=also, value=digests[also]))
        return kept

    algorithms = wanted.algorithms()
    if also:
        algorithms |= {also}
    return Upload(opened.source, opened.size, algorithms, check)


async def open_upload(request: S3Request) -> Upload:
    """Return the body of PutObject.

    Raises:
        S3Error: MissingContentLength, EntityTooLarge, and what is wrong with checksum headers.
    """
    _require_length(request)
    identity = request.identity
    wanted = parse_upload(request.headers, sha256=identity.sha256, trailers=has_trailers(identity))
    return _upload(await _open(request, PUT_SIZE_MAX), wanted)


async def open_part(request: S3Request, upload: UploadInfo) -> Upload:
    """Return the body of UploadPart, to be stored with the checksum that the upload asks for.

    Raises what ``open_upload`` does, and InvalidRequest for another checksum than the upload's.
    """
    _require_length(request)
    identity = request.identity
    wanted = parse_upload(request.headers, sha256=identity.sha256, trailers=has_trailers(identity))
    needed = upload.checksum_algorithm
    if needed and wanted.asked and wanted.algorithm != needed:
        raise _type_mismatch(needed, wanted.algorithm.lower())
    if needed and not wanted.asked:
        if upload.checksum_type == "COMPOSITE":
            raise _type_mismatch(needed, "null")
        wanted = msgspec.structs.replace(wanted, algorithm=needed)
    # An upload that names no algorithm gets the default one, whatever its parts came with.
    also = DEFAULT if not needed and wanted.algorithm != DEFAULT else ""
    return _upload(await _open(request, PUT_SIZE_MAX), wanted, also)


def _type_mismatch(expected: str, actual: str) -> S3Error:
    return s3_error(
        "InvalidRequest",
        f"Checksum Type mismatch occurred, expected checksum Type: {expected.lower()}, actual "
        f"checksum Type: {actual}",
    )


def _require_length(request: S3Request) -> None:
    if b"content-length" not in request.headers and request.http.body.length is not None:
        raise s3_error("MissingContentLength")


async def read_document(
    request: S3Request,
    *,
    limit: int,
    digest_required: bool = False,
    describes_object: bool = False,
) -> bytes:
    """Return the whole body, checked against the digests that came with it.

    Args:
        limit: bytes; more are refused.
        digest_required: S3 takes this request with a digest of its body only.
        describes_object: ``x-amz-checksum-*`` headers are of an object, not of the body.
    Raises:
        S3Error: MaxMessageLengthExceeded, IncompleteBody, and what is wrong with digests.
    """
    identity = request.identity
    headers: Mapping[bytes, bytes] = request.headers
    if describes_object:
        headers = {
            name: value
            for name, value in headers.items()
            if not name.startswith((b"x-amz-checksum-", b"x-amz-sdk-checksum-"))
        }
    wanted = parse_upload(headers, sha256=identity.sha256, trailers=has_trailers(identity))
    if digest_required:
        require_digest(wanted)
    opened = await _open(request, PUT_SIZE_MAX)
    document = await read_all(opened.source, opened.size, limit)
    verify(wanted, digests_of(document, wanted.algorithms()), opened.trailers)
    return document


async def understand(document: bytes, read: Callable[[bytes], T]) -> T:
    """Return ``read(document)``; of a large document in a worker thread, so that others go on.

    10,000 parts of a Complete take a tenth of a second to parse.
    """
    if len(document) <= _INLINE_MAX:
        return read(document)
    return await trio.to_thread.run_sync(read, document)


async def read_all(source: Source, size: int | None, limit: int) -> bytes:
    """Raises MaxMessageLengthExceeded, IncompleteBody."""
    if size == 0:
        return b""
    if size is not None and size > limit:
        raise s3_error("MaxMessageLengthExceeded")
    collected = bytearray()
    with memoryview(bytearray(min(_PIECE, limit + 1))) as piece:
        while count := await source.readinto(piece):
            collected += piece[:count]
            if len(collected) > limit:
                raise s3_error("MaxMessageLengthExceeded")
    if size is not None and len(collected) != size:
        raise s3_error("IncompleteBody")
    return bytes(collected)
