"""CopyObject, and what it shares with UploadPartCopy: the ``x-amz-copy-source`` header."""

from __future__ import annotations

from engine.errors import IsDeleteMarker, NotModified, PreconditionFailed
from engine.http.message import Response
from engine.types import PUT_SIZE_MAX, Attributes, CopySource, ObjectInfo, Pairs
from s3.access import check_bucket
from s3.attributes import parse_attributes
from s3.checksums import SIZES
from s3.conditions import copy_source_conditions, write_conditions
from s3.config import Api
from s3.errors import S3Error, s3_error
from s3.expected_owner import check_source_owner
from s3.request import S3Request, check_key, decode_path
from s3.responses import (
    Headers,
    checksum_elements,
    stored_checksums,
    version_headers,
    xml_response,
)
from s3.times import iso_time
from s3.xml import element

_VERSION = b"?versionId="


def parse_copy_source(request: S3Request) -> CopySource:
    """Return the source that the headers name: ``[/]bucket/key[?versionId=...]``, URL-encoded.

    Raises:
        S3Error: InvalidArgument.
    """
    raw = request.headers[b"x-amz-copy-source"]
    path, mark, version = raw.rpartition(_VERSION)
    if not mark:
        path, version = raw, b""
    try:
        # The whole may be encoded too, slashes included, so that decoding comes first.
        bucket, slash, key = decode_path(path).removeprefix("/").partition("/")
        version_id = decode_path(version)
    except S3Error:
        raise _bad_source(raw) from None
    if not (bucket and slash and key) or (mark and not version_id):
        raise _bad_source(raw)
    if bucket.startswith("arn:"):
        raise s3_error("NotImplemented", Header="x-amz-copy-source")
    check_key(key)
    return CopySource(bucket, key, version_id or None, copy_source_conditions(request.headers))


def _bad_source(raw: bytes) -> S3Error:
    return s3_error(
        "InvalidArgument",
        "Copy Source must mention the source bucket and key: sourcebucket/sourcekey",
        ArgumentName="x-amz-copy-source",
        ArgumentValue=raw.decode("latin-1"),
    )


async def find_source(api: Api, request: S3Request) -> tuple[CopySource, ObjectInfo]:
    """Return the source pinned to the version that is there now, and what is known of it.

    Raises what the engine's ``head`` does, a failed condition always as PreconditionFailed; and
    AccessDenied.
    """
    source = parse_copy_source(request)
    check_bucket(request.identity.access, source.bucket, write=False)
    await check_source_owner(api, request, source.bucket)
    try:
        info = await api.engine.head(
            source.bucket,
            source.key,
            version_id=source.version_id,
            conditions=source.conditions,
        )
    except NotModified:
        raise PreconditionFailed("x-amz-copy-source-if-none-match") from None
    except IsDeleteMarker:
        raise s3_error(
            "InvalidRequest",
            "The source of a copy request may not specifically refer to a delete marker by "
            "version id.",
        ) from None
    if source.version_id is None and info.bucket.versioning:
        source = source._replace(version_id=info.record.version_id)
    return source, info


def source_version_headers(info: ObjectInfo) -> Headers:
    if info.version_id is None:
        return []
    return [(b"x-amz-copy-source-version-id", info.version_id.encode())]


def _directive(request: S3Request, name: bytes) -> bool:
    """Return whether a directive says REPLACE. Raises InvalidArgument."""
    value = request.header(name)
    if value is None or value == "COPY":
        return False
    if value != "REPLACE":
        raise s3_error(
            "InvalidArgument",
            f"Unknown {name.decode().removeprefix('x-amz-').replace('-', ' ')}.",
            ArgumentName=name.decode(),
            ArgumentValue=value,
        )
    return True


def checksum_algorithm_header(request: S3Request, name: bytes) -> str:
    """Return the algorithm that a header asks for, or an empty string. Raises InvalidRequest."""
    value = (request.header(name) or "").upper()
    if value and value not in SIZES:
        raise s3_error(
            "InvalidRequest",
            "Checksum algorithm provided is unsupported. Please try again with any of the valid "
            f"types: [{', '.join(SIZES)}]",
        )
    return value


async def copy_object(api: Api, request: S3Request) -> Response:
    headers = request.headers
    replace_metadata = _directive(request, b"x-amz-metadata-directive")
    replace_tags = _directive(request, b"x-amz-tagging-directive")
    given = parse_attributes(headers)
    algorithm = checksum_algorithm_header(request, b"x-amz-checksum-algorithm")
    conditions = write_conditions(headers)
    named_version = _VERSION in headers[b"x-amz-copy-source"]
    changes = (
        replace_metadata
        or replace_tags
        or named_version
        or bool(algorithm)
        or b"x-amz-storage-class" in headers
        or b"x-amz-website-redirect-location" in headers
    )
    source, found = await find_source(api, request)
    if not changes and (source.bucket, source.key) == (request.bucket, request.key):
        raise s3_error(
            "InvalidRequest",
            "This copy request is illegal because it is trying to copy an object to itself "
            "without changing the object's metadata, storage class, website redirect location or "
            "encryption attributes.",
        )
    if found.size > PUT_SIZE_MAX:
        raise s3_error(
            "InvalidRequest",
            "The specified copy source is larger than the maximum allowable size for a copy "
            f"source: {PUT_SIZE_MAX}",
        )
    info = await api.engine.copy(
        source,
        request.bucket,
        request.key,
        attributes=given if replace_metadata else _copied(found, given),
        tags=given.tags if replace_tags else None,
        storage_class=given.storage_class,
        checksum_algorithm=algorithm,
        conditions=conditions,
    )
    rows = [
        element("LastModified", iso_time(info.modified_ms)),
        element("ETag", f'"{info.etag}"'),
        *checksum_elements(stored_checksums(info.record)),
    ]
    answer = source_version_headers(found) + version_headers(info.version_id)
    return xml_response("CopyObjectResult", rows, headers=answer)


def _copied(found: ObjectInfo, given: Attributes) -> Attributes | None:
    """Return the source's attributes with a redirect of the request; None: the source's alone.

    A redirect is not copied: it belongs to a place, not to the bytes.
    """
    name = "x-amz-website-redirect-location"
    redirect: Pairs = [pair for pair in given.headers if pair[0] == name]
    kept: Pairs = [pair for pair in found.record.headers if pair[0] != name]
    if not redirect and len(kept) == len(found.record.headers):
        return None
    return Attributes(headers=kept + redirect, metadata=found.record.metadata)
