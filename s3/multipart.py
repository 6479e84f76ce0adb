"""Multipart uploads: create, parts, listings, complete, abort."""

from __future__ import annotations

from engine.errors import InvalidArgument, InvalidRange, NoSuchUpload, PreconditionFailed
from engine.http.message import Response
from engine.ids import UploadId
from engine.meta.records import Checksum
from engine.types import PART_NUMBER_MAX, CompletePart, UploadInfo
from s3.acl import owner_element
from s3.attributes import parse_attributes, refuse_headers
from s3.body import open_part, read_document, understand
from s3.checksums import SIZES, TYPES, checksum_type, decode, header_name, parse_multipart
from s3.conditions import write_conditions
from s3.config import Api
from s3.copy import find_source, source_version_headers
from s3.errors import S3Error, s3_error
from s3.listing import common_prefixes, encoding_of, shown_as
from s3.objects import part_number_param
from s3.ranges import parse_copy_range
from s3.request import S3Request, int_param
from s3.responses import (
    Headers,
    checksum_elements,
    checksum_headers,
    no_content,
    quoted,
    stored_checksums,
    version_headers,
    xml_response,
)
from s3.times import iso_time, parse_time
from s3.upload_ids import parse_upload_id, show_upload_id
from s3.xml import Element, boolean, element, malformed, parse

PAGE_MAX = 1000
_ALGORITHM = b"x-amz-checksum-algorithm"
_TYPE = b"x-amz-checksum-type"
_SIZE = "x-amz-mp-object-size"
_INITIATED = "x-amz-if-match-initiated-time"


def upload_param(request: S3Request) -> str:
    return request.params["uploadId"]


async def create_upload(api: Api, request: S3Request) -> Response:
    attributes = parse_attributes(request.headers)
    algorithm, kind = parse_multipart(request.headers)
    upload = await api.engine.create_upload(
        request.bucket,
        request.key,
        attributes=attributes,
        checksum_algorithm=algorithm,
        checksum_type=kind,
    )
    headers: Headers = []
    if algorithm:
        headers += [(_ALGORITHM, algorithm.encode()), (_TYPE, kind.encode())]
    rows = [
        element("Bucket", request.bucket),
        element("Key", request.key),
        element("UploadId", show_upload_id(upload.upload_id)),
    ]
    return xml_response("InitiateMultipartUploadResult", rows, headers=headers)


async def upload_part(api: Api, request: S3Request) -> Response:
    number = part_number_param(request, required=True)
    assert number is not None
    refuse_headers(request.headers)
    upload_id = parse_upload_id(upload_param(request))
    upload = await api.engine.upload(request.bucket, request.key, upload_id)
    incoming = await open_part(request, upload)
    part = await api.engine.put_part(
        request.bucket,
        request.key,
        upload_id,
        number,
        incoming.source,
        size=incoming.size,
        algorithms=incoming.algorithms,
        check=incoming.check,
    )
    headers: Headers = [(b"ETag", quoted(part.etag))]
    headers += checksum_headers(part.checksums, with_type=False)
    return Response(200, headers)


async def copy_part(api: Api, request: S3Request) -> Response:
    number = part_number_param(request, required=True)
    assert number is not None
    upload_id = parse_upload_id(upload_param(request))
    refuse_headers(request.headers)
    await api.engine.upload(request.bucket, request.key, upload_id)
    source, _ = await find_source(api, request)
    wanted = request.headers.get(b"x-amz-copy-source-range")
    if wanted is not None:
        bounds = parse_copy_range(wanted)
        if bounds is None:
            raise s3_error(
                "InvalidArgument",
                "The x-amz-copy-source-range value must be of the form bytes=first-last where "
                "first and last are the zero-based offsets of the first and last bytes to copy",
                ArgumentName="x-amz-copy-source-range",
                ArgumentValue=wanted.decode("latin-1"),
            )
        source = source._replace(first=bounds[0], last=bounds[1])
    try:
        part, origin = await api.engine.copy_part(
            source, request.bucket, request.key, upload_id, number
        )
    except InvalidRange as error:
        raise s3_error(
            "InvalidArgument",
            f"Range specified is not valid for source object of size: {error.size}",
            ArgumentName="x-amz-copy-source-range",
            ArgumentValue="" if wanted is None else wanted.decode("latin-1"),
        ) from None
    rows = [
        element("LastModified", iso_time(part.modified_ms)),
        element("ETag", f'"{part.etag}"'),
        *checksum_elements(part.checksums, with_type=False),
    ]
    return xml_response("CopyPartResult", rows, headers=source_version_headers(origin))


def _checksum_rows(upload: UploadInfo) -> list[str]:
    if not upload.checksum_algorithm:
        return []
    return [
        element("ChecksumAlgorithm", upload.checksum_algorithm),
        element("ChecksumType", upload.checksum_type),
    ]


async def list_parts(api: Api, request: S3Request) -> Response:
    upload_id = parse_upload_id(upload_param(request))
    after = int_param(request, "part-number-marker", 0)
    limit = min(int_param(request, "max-parts", PAGE_MAX), PAGE_MAX)
    encoding = encoding_of(request)
    page = await api.engine.list_parts(
        request.bucket,
        request.key,
        upload_id,
        after=min(after, PART_NUMBER_MAX),
        limit=limit,
    )
    last = page.parts[-1].number if page.parts else 0
    rows = [
        element("Bucket", request.bucket),
        f"<Key>{shown_as(encoding)(request.key)}</Key>",
        element("UploadId", show_upload_id(upload_id)),
        owner_element(api, "Initiator"),
        owner_element(api),
        element("StorageClass", page.upload.storage_class),
        element("PartNumberMarker", after),
        element("NextPartNumberMarker", last),
        element("MaxParts", limit),
        element("IsTruncated", boolean(page.next_after is not None)),
        *_checksum_rows(page.upload),
    ]
    if encoding:
        rows.append(element("EncodingType", encoding))
    for part in page.parts:
        checksums = "".join(checksum_elements(part.checksums, with_type=False))
        rows.append(
            f"<Part><PartNumber>{part.number}</PartNumber>"
            f"<LastModified>{iso_time(part.modified_ms)}</LastModified>"
            f"<ETag>&quot;{part.etag}&quot;</ETag><Size>{part.size}</Size>{checksums}</Part>"
        )
    return xml_response("ListPartsResult", rows)


async def list_uploads(api: Api, request: S3Request) -> Response:
    params = request.params
    limit = min(int_param(request, "max-uploads", PAGE_MAX), PAGE_MAX)
    encoding = encoding_of(request)
    prefix, delimiter = params.get("prefix", ""), params.get("delimiter", "")
    key_marker = params.get("key-marker", "")
    # Without a key marker S3 ignores the upload id marker.
    id_marker = params.get("upload-id-marker", "") if key_marker else ""
    page = await api.engine.list_uploads(
        request.bucket,
        prefix=prefix,
        delimiter=delimiter,
        key_marker=key_marker,
        upload_id_marker=parse_upload_id(id_marker) if id_marker else None,
        limit=limit,
    )
    show = shown_as(encoding)
    rows = [
        element("Bucket", request.bucket),
        f"<KeyMarker>{show(key_marker)}</KeyMarker>",
        element("UploadIdMarker", id_marker),
    ]
    if page.next_key is not None:
        rows.append(f"<NextKeyMarker>{show(page.next_key)}</NextKeyMarker>")
        if page.next_upload_id is not None:
            rows.append(element("NextUploadIdMarker", show_upload_id(page.next_upload_id)))
    rows.append(f"<Prefix>{show(prefix)}</Prefix>")
    if delimiter:
        rows.append(f"<Delimiter>{show(delimiter)}</Delimiter>")
    if encoding:
        rows.append(element("EncodingType", encoding))
    rows.append(element("MaxUploads", limit))
    rows.append(element("IsTruncated", boolean(page.next_key is not None)))
    for upload in page.uploads:
        rows += [
            f"<Upload><Key>{show(upload.key)}</Key>",
            element("UploadId", show_upload_id(upload.upload_id)),
            owner_element(api, "Initiator"),
            owner_element(api),
            element("StorageClass", upload.storage_class),
            element("Initiated", iso_time(upload.started_ms)),
            *_checksum_rows(upload),
            "</Upload>",
        ]
    rows += common_prefixes(page.prefixes, encoding)
    return xml_response("ListMultipartUploadsResult", rows)


async def complete_upload(api: Api, request: S3Request) -> Response:
    upload_id = parse_upload_id(upload_param(request))
    conditions = write_conditions(request.headers)
    raw = await read_document(
        request, limit=api.config.large_document_size_max, describes_object=True
    )
    parts = await understand(raw, parse_complete)
    checksum = _announced(request)
    kind = request.headers.get(_TYPE)
    if kind is not None:
        await _check_type(api, request, upload_id, kind)
    try:
        info = await api.engine.complete_upload(
            request.bucket,
            request.key,
            upload_id,
            parts,
            checksum=checksum,
            size=_announced_size(request),
            conditions=conditions,
        )
    except InvalidArgument as error:
        if error.argument == _SIZE:
            raise s3_error("InvalidRequest", f"{_SIZE} is wrong: {error.reason}") from None
        raise
    scheme = "https" if request.http.secure else "http"
    host = request.header(b"host") or ""
    location = f"{scheme}://{host}{request.http.path.decode('latin-1')}"
    rows = [
        element("Location", location),
        element("Bucket", request.bucket),
        element("Key", request.key),
        element("ETag", f'"{info.etag}"'),
        *checksum_elements(stored_checksums(info.record)),
    ]
    return xml_response(
        "CompleteMultipartUploadResult", rows, headers=version_headers(info.version_id)
    )


async def _check_type(api: Api, request: S3Request, upload_id: UploadId, kind: bytes) -> None:
    """Refuse another checksum type than the upload's.

    Raises: BadDigest, InvalidRequest. An upload that is not there is for Complete to judge, which
    may be repeated.
    """
    try:
        upload = await api.engine.upload(request.bucket, request.key, upload_id)
    except NoSuchUpload:
        return
    named = kind.decode("latin-1").upper()
    if named not in TYPES:
        raise s3_error("InvalidRequest", "Value for x-amz-checksum-type header is invalid.")
    if named != (upload.checksum_type or "FULL_OBJECT"):
        raise s3_error("BadDigest", "The checksum type you specified is not that of the upload.")


def parse_complete(raw: bytes) -> list[CompletePart]:
    """Return the part list. Raises MalformedXML, InvalidRequest; order is the engine's to check."""
    found = parse(raw, "CompleteMultipartUpload").find_all("Part")
    if not 0 < len(found) <= PART_NUMBER_MAX:
        raise malformed()
    return [_complete_part(part) for part in found]


def _complete_part(part: Element) -> CompletePart:
    number, etag = (part.get("PartNumber") or "").strip(), part.get("ETag")
    if etag is None or not (number.isascii() and number.isdigit() and len(number) < 10):
        raise malformed()
    if not 1 <= int(number) <= PART_NUMBER_MAX:
        raise s3_error(
            "InvalidArgument",
            f"Part number must be an integer between 1 and {PART_NUMBER_MAX}, inclusive",
            ArgumentName="partNumber",
            ArgumentValue=number,
        )
    checksums = []
    if len(part.children) > 2:
        for child in part.children:
            algorithm = child.name.removeprefix("Checksum")
            if algorithm in SIZES and algorithm != child.name:
                value = decode(child.text.strip().encode(), SIZES[algorithm])
                if value is None:
                    raise _invalid_checksum(algorithm)
                checksums.append(Checksum(algorithm=algorithm, value=value))
    return CompletePart(int(number), etag.strip().strip('"'), checksums)


def _announced(request: S3Request) -> Checksum | None:
    """Return the object's checksum that the client says it has, if it does.

    Raises: InvalidRequest for several, or a malformed one.
    """
    found = [
        (algorithm, value)
        for algorithm in SIZES
        if (value := request.headers.get(header_name(algorithm).encode())) is not None
    ]
    if len(found) > 1:
        raise s3_error(
            "InvalidRequest", "Expecting a single x-amz-checksum- header. Multiple found"
        )
    if not found:
        return None
    algorithm, text = found[0]
    digest, dash, count = text.strip().partition(b"-")
    value = decode(digest, SIZES[algorithm])
    if value is None or (dash and not (count.isdigit() and len(count) < 6)):
        raise _invalid_checksum(algorithm)
    kind = checksum_type(algorithm, request.headers.get(_TYPE))
    if _TYPE not in request.headers and not dash and algorithm in ("CRC32", "CRC32C"):
        # A composite checksum shows the number of its parts; one without is of the whole.
        kind = "FULL_OBJECT"
    return Checksum(algorithm=algorithm, value=value, type=kind, parts=int(count) if dash else 0)


def _invalid_checksum(algorithm: str) -> S3Error:
    return s3_error("InvalidRequest", f"Value for {header_name(algorithm)} header is invalid.")


def _announced_size(request: S3Request) -> int | None:
    text = request.header(_SIZE.encode())
    if text is None:
        return None
    if not (text.isascii() and text.isdigit() and len(text) < 16):
        raise s3_error("InvalidRequest", f"Value for {_SIZE} header is invalid.")
    return int(text)


async def abort_upload(api: Api, request: S3Request) -> Response:
    upload_id = parse_upload_id(upload_param(request))
    initiated = request.header(_INITIATED.encode())
    if initiated is not None:
        wanted_ms = parse_time(initiated.strip())
        if wanted_ms is None:
            raise s3_error("InvalidArgument", ArgumentName=_INITIATED, ArgumentValue=initiated)
        upload = await api.engine.upload(request.bucket, request.key, upload_id)
        # An upload's time never changes, so nothing can come between this and the abort.
        if upload.started_ms // 1000 != wanted_ms // 1000:
            raise PreconditionFailed(_INITIATED)
    await api.engine.abort_upload(request.bucket, request.key, upload_id)
    return no_content()
