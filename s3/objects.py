"""GetObject, HeadObject, PutObject, DeleteObject, and tagging of objects."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping

from engine.errors import InvalidRange
from engine.http.message import Buffer, Response, ResponseStream
from engine.opened import OpenedObject
from engine.types import NO_CONDITIONS, PART_NUMBER_MAX, ObjectInfo
from s3.attributes import parse_attributes
from s3.body import open_upload, read_document
from s3.conditions import delete_conditions, range_counts, read_conditions, write_conditions
from s3.config import Api
from s3.errors import s3_error
from s3.ranges import content_range, parse_range
from s3.request import S3Request
from s3.responses import (
    XML_TYPE,
    Headers,
    checksum_headers,
    no_content,
    object_headers,
    quoted,
    stored_checksums,
    version_headers,
)
from s3.tagging import OBJECT_TAGS_MAX, parse_tagging, tagging_document

_OVERRIDES = {
    "response-content-type": b"Content-Type",
    "response-content-language": b"Content-Language",
    "response-expires": b"Expires",
    "response-cache-control": b"Cache-Control",
    "response-content-disposition": b"Content-Disposition",
    "response-content-encoding": b"Content-Encoding",
}
_SSE_CUSTOMER = b"x-amz-server-side-encryption-customer-algorithm"


class ObjectBody:
    """The bytes of a response; closes the object with the stream."""

    __slots__ = ("_opened", "_stream")

    def __init__(self, opened: OpenedObject, stream: ResponseStream) -> None:
        self._opened = opened
        self._stream = stream

    def __aiter__(self) -> AsyncIterator[Buffer]:
        return self._stream.__aiter__()

    async def aclose(self) -> None:
        try:
            await self._stream.aclose()
        finally:
            await self._opened.aclose()


async def get_object(api: Api, request: S3Request) -> Response:
    headers = request.headers
    if _SSE_CUSTOMER in headers:
        raise s3_error("NotImplemented", Header=_SSE_CUSTOMER.decode())
    opened = await api.engine.open(
        request.bucket,
        request.key,
        version_id=version_param(request) if request.params else None,
        conditions=read_conditions(headers),
    )
    handed_over = False
    try:
        info = opened.info
        status, first, end, answer = await _describe(api, request, info)
        if opened.inline is not None:
            inline = opened.inline
            body: Buffer = inline if end - first == len(inline) else memoryview(inline)[first:end]
            return Response(status, answer, body)
        stream = await opened.stream(first, end)
        handed_over = True
        return Response(status, answer, ObjectBody(opened, stream), length=end - first)
    finally:
        if not handed_over:
            await opened.aclose()


async def head_object(api: Api, request: S3Request) -> Response:
    headers = request.headers
    if _SSE_CUSTOMER in headers:
        raise s3_error("NotImplemented", Header=_SSE_CUSTOMER.decode())
    info = await api.engine.head(
        request.bucket,
        request.key,
        version_id=version_param(request) if request.params else None,
        conditions=read_conditions(headers),
    )
    status, first, end, answer = await _describe(api, request, info)
    return Response(status, answer, length=end - first)


async def _describe(
    api: Api, request: S3Request, info: ObjectInfo
) -> tuple[int, int, int, Headers]:
    """Return status, first byte, end and headers of the answer to GET and HEAD."""
    answer = object_headers(info)
    record = info.record
    size = record.size
    range_header = request.headers.get(b"range")
    params = request.params
    part: int | None = None
    if params:
        part = part_number_param(request)
        answer = _override(answer, params)
    if range_header is None and part is None:
        if b"x-amz-checksum-mode" in request.headers and wants_checksums(request):
            answer += checksum_headers(stored_checksums(info.record))
        return 200, 0, size, answer
    if part is not None:
        if range_header is not None:
            raise s3_error(
                "InvalidRequest",
                "Cannot specify both Range header and partNumber query parameter",
            )
        first, end = await _part_range(api, request, info, part, answer)
    else:
        assert range_header is not None
        wanted = parse_range(range_header, size) if range_counts(request.headers, record) else None
        if wanted is None:
            return 200, 0, size, answer
        first, end = wanted
    if end == first:
        return 200, first, end, answer
    answer.append((b"Content-Range", content_range(first, end, size)))
    return 206, first, end, answer


async def _part_range(
    api: Api, request: S3Request, info: ObjectInfo, number: int, answer: Headers
) -> tuple[int, int]:
    """Return the bytes of the part; say in ``answer`` how many parts there are."""
    count = info.record.parts_count
    if number > max(count, 1):
        raise s3_error(
            "InvalidPartNumber", PartNumberRequested=str(number), ActualPartCount=str(max(count, 1))
        )
    try:
        first, end = await api.engine.part_range(info, number)
    except InvalidRange:
        raise s3_error("InvalidPartNumber", PartNumberRequested=str(number)) from None
    if count:
        answer.append((b"x-amz-mp-parts-count", b"%d" % count))
        if wants_checksums(request):
            parts, _ = await api.engine.object_parts(info, after=number - 1, limit=1)
            if parts and parts[0].number == number:
                answer += checksum_headers(parts[0].checksums)
    elif wants_checksums(request):
        answer += checksum_headers(stored_checksums(info.record))
    return first, end


def wants_checksums(request: S3Request) -> bool:
    return request.headers.get(b"x-amz-checksum-mode", b"").upper() == b"ENABLED"


def _override(headers: Headers, params: Mapping[str, str]) -> Headers:
    """Replace headers as the ``response-*`` parameters say."""
    for param, name in _OVERRIDES.items():
        value = params.get(param)
        if value is not None:
            if "\r" in value or "\n" in value or "\x00" in value:
                raise s3_error("InvalidArgument", ArgumentName=param, ArgumentValue=value)
            headers = [header for header in headers if header[0] != name]
            headers.append((name, value.encode()))
    return headers


def version_param(request: S3Request) -> str | None:
    """Return ``versionId`` of the query. Raises InvalidArgument when it is empty."""
    version_id = request.params.get("versionId")
    if version_id == "":
        raise s3_error(
            "InvalidArgument",
            "Version id cannot be the empty string",
            ArgumentName="versionId",
            ArgumentValue="",
        )
    return version_id


def part_number_param(request: S3Request, *, required: bool = False) -> int | None:
    text = request.params.get("partNumber")
    if text is None and not required:
        return None
    if text and text.isascii() and text.isdigit() and len(text) <= 10:
        number = int(text)
        if 1 <= number <= PART_NUMBER_MAX:
            return number
    raise s3_error(
        "InvalidArgument",
        f"Part number must be an integer between 1 and {PART_NUMBER_MAX}, inclusive",
        ArgumentName="partNumber",
        ArgumentValue=text or "",
    )


async def put_object(api: Api, request: S3Request) -> Response:
    headers = request.headers
    attributes = parse_attributes(headers)
    conditions = write_conditions(headers)
    upload = await open_upload(request)
    info = await api.engine.put(
        request.bucket,
        request.key,
        upload.source,
        size=upload.size,
        algorithms=upload.algorithms,
        attributes=attributes,
        check=upload.check,
        conditions=conditions,
    )
    answer: Headers = [(b"ETag", quoted(info.etag))]
    answer += checksum_headers(stored_checksums(info.record))
    answer += version_headers(info.version_id)
    return Response(200, answer)


async def delete_object(api: Api, request: S3Request) -> Response:
    deleted = await api.engine.delete(
        request.bucket,
        request.key,
        version_id=version_param(request),
        conditions=delete_conditions(request.headers) if request.headers else NO_CONDITIONS,
    )
    answer = version_headers(deleted.version_id)
    if deleted.delete_marker:
        answer.append((b"x-amz-delete-marker", b"true"))
    return no_content(answer)


async def get_object_tagging(api: Api, request: S3Request) -> Response:
    info = await api.engine.head(request.bucket, request.key, version_id=version_param(request))
    return Response(
        200,
        [XML_TYPE, *version_headers(info.version_id)],
        tagging_document(info.record.tags),
    )


async def put_object_tagging(api: Api, request: S3Request) -> Response:
    document = await read_document(request, limit=api.config.document_size_max)
    tags = parse_tagging(document, OBJECT_TAGS_MAX)
    info = await api.engine.set_tags(
        request.bucket, request.key, tags, version_id=version_param(request)
    )
    return Response(200, version_headers(info.version_id))


async def delete_object_tagging(api: Api, request: S3Request) -> Response:
    info = await api.engine.set_tags(
        request.bucket, request.key, [], version_id=version_param(request)
    )
    return no_content(version_headers(info.version_id))
