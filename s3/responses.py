"""Building responses: documents, object headers, errors."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Iterable

from engine.http.message import Response
from engine.meta.records import Checksum, VersionRecord
from engine.types import ObjectInfo
from s3.errors import S3Error
from s3.times import http_date
from s3.xml import document, element, printable

Headers = list[tuple[bytes, bytes]]

XML_TYPE = (b"Content-Type", b"application/xml")

STANDARD_HEADERS = {
    "content-type": b"Content-Type",
    "content-encoding": b"Content-Encoding",
    "content-disposition": b"Content-Disposition",
    "content-language": b"Content-Language",
    "cache-control": b"Cache-Control",
    "expires": b"Expires",
    "x-amz-website-redirect-location": b"x-amz-website-redirect-location",
}
"""Headers that are kept with an object and given back, by the name they are stored under."""

_CHECKSUM_HEADERS = {
    "CRC32": b"x-amz-checksum-crc32",
    "CRC32C": b"x-amz-checksum-crc32c",
    "CRC64NVME": b"x-amz-checksum-crc64nvme",
    "SHA1": b"x-amz-checksum-sha1",
    "SHA256": b"x-amz-checksum-sha256",
}
_ACCEPT_RANGES = (b"Accept-Ranges", b"bytes")


def xml_response(
    name: str, children: Iterable[str], *, headers: Headers | None = None, namespace: bool = True
) -> Response:
    """Return 200 with a document; ``children`` are already escaped."""
    return Response(
        200, [XML_TYPE, *(headers or ())], document(name, children, namespace=namespace)
    )


def no_content(headers: Headers | None = None) -> Response:
    return Response(204, headers or [])


def quoted(etag: str) -> bytes:
    return b'"%b"' % etag.encode()


def object_headers(info: ObjectInfo) -> Headers:
    """Return what GET and HEAD say of a version, without what depends on the request."""
    record = info.record
    headers: Headers = [
        (b"Last-Modified", http_date(record.modified_ms)),
        (b"ETag", b'"%b"' % record.etag.encode()),
        _ACCEPT_RANGES,
    ]
    for name, value in record.headers:
        headers.append((STANDARD_HEADERS.get(name) or name.encode(), value.encode("latin-1")))
    for name, value in record.metadata:
        headers.append((b"x-amz-meta-" + name.encode("latin-1"), value.encode("latin-1")))
    if info.bucket.versioning:
        headers.append((b"x-amz-version-id", record.version_id.encode()))
    if record.storage_class != "STANDARD":
        headers.append((b"x-amz-storage-class", record.storage_class.encode()))
    if record.tags:
        headers.append((b"x-amz-tagging-count", b"%d" % len(record.tags)))
    return headers


def version_headers(version_id: str | None) -> Headers:
    return [] if version_id is None else [(b"x-amz-version-id", version_id.encode())]


def shown_checksum(checksum: Checksum) -> str:
    """Return the value as S3 shows it: base64, with ``-parts`` when composite."""
    text = b64encode(checksum.value).decode()
    return f"{text}-{checksum.parts}" if checksum.type == "COMPOSITE" else text


def checksum_headers(checksums: Iterable[Checksum], *, with_type: bool = True) -> Headers:
    headers: Headers = []
    kind = ""
    for checksum in checksums:
        name = _CHECKSUM_HEADERS.get(checksum.algorithm)
        if name is not None:
            headers.append((name, shown_checksum(checksum).encode()))
            kind = checksum.type
    if kind and with_type:
        headers.append((b"x-amz-checksum-type", kind.encode()))
    return headers


def checksum_elements(checksums: Iterable[Checksum], *, with_type: bool = True) -> list[str]:
    """Return ``<ChecksumCRC32>…`` and so on, then ``<ChecksumType>``."""
    elements = []
    kind = ""
    for checksum in checksums:
        elements.append(element(f"Checksum{checksum.algorithm}", shown_checksum(checksum)))
        kind = checksum.type
    if kind and with_type:
        elements.append(element("ChecksumType", kind))
    return elements


def stored_checksums(record: VersionRecord) -> list[Checksum]:
    return [checksum for checksum in record.checksums if checksum.algorithm in _CHECKSUM_HEADERS]


def error_response(
    error: S3Error,
    *,
    resource: str,
    request_id: str,
    host_id: str,
    headers: Headers,
    head: bool,
) -> Response:
    """Return the error as S3 answers it; HEAD and 304 get no document.

    Source: https://docs.aws.amazon.com/AmazonS3/latest/API/ErrorResponses.html
    """
    if error.status == 304:
        return Response(304, headers)
    if head:
        return Response(error.status, [XML_TYPE, *headers])
    children = [element("Code", error.code), element("Message", printable(error.message))]
    children += [element(name, printable(value)) for name, value in error.extra.items()]
    if "Resource" not in error.extra:
        children.append(element("Resource", printable(resource)))
    children += [element("RequestId", request_id), element("HostId", host_id)]
    body = document("Error", children, namespace=False)
    return Response(error.status, [XML_TYPE, *headers], body)
