"""GetObjectAttributes: what is known of an object, without its bytes."""

from __future__ import annotations

from engine.http.message import Response
from engine.types import ObjectInfo
from s3.conditions import read_conditions
from s3.config import Api
from s3.errors import S3Error, s3_error
from s3.objects import version_param
from s3.request import S3Request
from s3.responses import (
    Headers,
    checksum_elements,
    stored_checksums,
    version_headers,
    xml_response,
)
from s3.times import http_date
from s3.xml import boolean, element

_NAMES = frozenset({"ETag", "Checksum", "ObjectParts", "StorageClass", "ObjectSize"})
_PARTS_MAX = 1000


async def get_object_attributes(api: Api, request: S3Request) -> Response:
    wanted = _wanted(request)
    info = await api.engine.head(
        request.bucket,
        request.key,
        version_id=version_param(request),
        conditions=read_conditions(request.headers),
    )
    record = info.record
    rows = []
    if "ETag" in wanted:
        rows.append(element("ETag", record.etag))
    checksums = stored_checksums(record)
    if "Checksum" in wanted and checksums:
        rows += ["<Checksum>", *checksum_elements(checksums), "</Checksum>"]
    if "ObjectParts" in wanted and record.parts_count:
        rows += await _parts(api, request, info)
    if "StorageClass" in wanted:
        rows.append(element("StorageClass", record.storage_class))
    if "ObjectSize" in wanted:
        rows.append(element("ObjectSize", record.size))
    headers: Headers = [(b"Last-Modified", http_date(record.modified_ms))]
    headers += version_headers(info.version_id)
    return xml_response("GetObjectAttributesResponse", rows, headers=headers)


def _wanted(request: S3Request) -> set[str]:
    header = request.header(b"x-amz-object-attributes")
    if header is None:
        raise s3_error(
            "InvalidArgument",
            "The x-amz-object-attributes header specifying the attributes to be retrieved is "
            "either missing or empty",
            ArgumentName="x-amz-object-attributes",
        )
    names = {name.strip() for name in header.split(",") if name.strip()}
    if not names or not names <= _NAMES:
        raise s3_error(
            "InvalidArgument",
            "Invalid attribute name specified.",
            ArgumentName="x-amz-object-attributes",
            ArgumentValue=header,
        )
    return names


def _number(request: S3Request, name: bytes, default: int) -> int:
    text = request.header(name)
    if text is None:
        return default
    if not (text.isascii() and text.isdigit() and len(text) < 10):
        raise _bad_number(name, text)
    return int(text)


def _bad_number(name: bytes, text: str) -> S3Error:
    return s3_error(
        "InvalidArgument",
        f"Provided {name.decode()} not an integer or within integer range",
        ArgumentName=name.decode(),
        ArgumentValue=text,
    )


async def _parts(api: Api, request: S3Request, info: ObjectInfo) -> list[str]:
    limit = min(_number(request, b"x-amz-max-parts", _PARTS_MAX), _PARTS_MAX)
    after = _number(request, b"x-amz-part-number-marker", 0)
    parts, truncated = await api.engine.object_parts(info, after=after, limit=limit)
    last = parts[-1].number if parts else after
    rows = [
        "<ObjectParts>",
        element("PartsCount", info.record.parts_count),
        element("PartNumberMarker", after),
        element("NextPartNumberMarker", last),
        element("MaxParts", limit),
        element("IsTruncated", boolean(truncated)),
    ]
    for part in parts:
        checksums = checksum_elements(part.checksums, with_type=False)
        rows += [
            "<Part>",
            element("PartNumber", part.number),
            element("Size", part.size),
            *checksums,
            "</Part>",
        ]
    rows.append("</ObjectParts>")
    return rows
