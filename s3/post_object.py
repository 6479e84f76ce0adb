"""POST Object: an upload by an HTML form, allowed by a signed policy.

Source: https://docs.aws.amazon.com/AmazonS3/latest/API/RESTObjectPOST.html
"""

from __future__ import annotations

from collections.abc import Mapping
from urllib.parse import quote, urlsplit

import msgspec

from engine.http.message import Response
from engine.meta.records import Checksum
from engine.types import PUT_SIZE_MAX, Attributes, Digests, ObjectInfo
from s3.access import check_bucket
from s3.attributes import parse_attributes
from s3.auth.form import read_form
from s3.auth.post_policy import authenticate_form
from s3.checksums import parse_upload, verify
from s3.config import Api
from s3.errors import s3_error
from s3.expected_owner import HEADER, check_owner
from s3.request import S3Request, check_key
from s3.responses import (
    Headers,
    checksum_headers,
    quoted,
    stored_checksums,
    version_headers,
    xml_response,
)
from s3.tagging import OBJECT_TAGS_MAX, parse_tagging
from s3.xml import element

_HEADER_FIELDS = frozenset(
    {
        "cache-control",
        "content-type",
        "content-disposition",
        "content-encoding",
        "content-language",
        "content-md5",
        "expires",
    }
)


def form_headers(fields: Mapping[str, str]) -> dict[bytes, bytes]:
    """Return the fields that mean what headers of that name mean in PutObject."""
    headers = {
        name.encode(): value.encode()
        for name, value in fields.items()
        if name in _HEADER_FIELDS or name.startswith("x-amz-")
    }
    if "acl" in fields:
        headers[b"x-amz-acl"] = fields["acl"].encode()
    return headers


def _attributes(fields: Mapping[str, str], headers: Mapping[bytes, bytes]) -> Attributes:
    attributes = parse_attributes(headers)
    if "tagging" in fields:
        tags = parse_tagging(fields["tagging"].encode(), OBJECT_TAGS_MAX)
        attributes = msgspec.structs.replace(attributes, tags=tags)
    return attributes


async def post_object(api: Api, request: S3Request) -> Response:
    """Store the form's file. Who may is decided by the policy in the form, not by headers."""
    form = await read_form(request.http)
    fields = form.fields
    credential, policy = authenticate_form(api.authenticator, fields, bucket=request.bucket)
    check_bucket(credential.access, request.bucket, write=True)
    key = fields["key"]
    if not key:
        raise s3_error("InvalidArgument", "User key must have a length greater than 0.")
    check_key(key)
    headers = form_headers(fields)
    attributes = _attributes(fields, headers)
    wanted = parse_upload(headers)
    if HEADER in headers:
        await check_owner(api, headers[HEADER], request.bucket)
    size_max = PUT_SIZE_MAX if policy.size_max is None else min(policy.size_max, PUT_SIZE_MAX)
    form.file.limit(policy.size_min, size_max)

    def check(digests: Digests) -> list[Checksum]:
        return [Checksum(algorithm=wanted.algorithm, value=verify(wanted, digests, {}))]

    info = await api.engine.put(
        request.bucket,
        key,
        form.file,
        size=None,
        algorithms=wanted.algorithms(),
        attributes=attributes,
        check=check,
    )
    return _answer(request, fields, info)


def _answer(request: S3Request, fields: Mapping[str, str], info: ObjectInfo) -> Response:
    scheme = "https" if request.http.secure else "http"
    base = request.http.path.decode("latin-1").rstrip("/")
    location = f"{scheme}://{request.header(b'host') or ''}{base}/{quote(info.key, safe='/~')}"
    headers: Headers = [(b"ETag", quoted(info.etag)), (b"Location", location.encode("latin-1"))]
    headers += checksum_headers(stored_checksums(info.record))
    headers += version_headers(info.version_id)
    redirect = fields.get("success_action_redirect") or fields.get("redirect")
    if redirect and (target := _redirect(redirect, info)) is not None:
        headers[1] = (b"Location", target)
        return Response(303, headers)
    match fields.get("success_action_status"):
        case "200":
            return Response(200, headers)
        case "201":
            rows = [
                element("Location", location),
                element("Bucket", request.bucket),
                element("Key", info.key),
                element("ETag", f'"{info.etag}"'),
            ]
            answer = xml_response("PostResponse", rows, headers=headers, namespace=False)
            answer.status = 201
            return answer
        case _:
            return Response(204, headers)


def _redirect(url: str, info: ObjectInfo) -> bytes | None:
    """Return where to send the browser; None when the field is no such URL, as S3 ignores it."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return None
    if parts.scheme not in ("http", "https") or not parts.netloc or not url.isprintable():
        return None
    tag = f'"{info.etag}"'
    query = "&".join(
        f"{name}={quote(value, safe='')}"
        for name, value in (("bucket", info.bucket.name), ("key", info.key), ("etag", tag))
    )
    joined = f"{url}{'&' if parts.query else '?'}{query}"
    return quote(joined, safe="%/:=&?~#+!$,;'@()*[]").encode()
