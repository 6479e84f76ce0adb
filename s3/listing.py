"""ListObjects, ListObjectsV2 and ListObjectVersions.

The loops over keys are hot: one f-string per key, everything else is decided once per page.
"""

from __future__ import annotations

import re
from base64 import b64decode, urlsafe_b64encode
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from urllib.parse import quote

from engine.http.message import Response
from engine.types import ListedObject
from s3.acl import owner_element
from s3.config import Api
from s3.errors import s3_error
from s3.request import S3Request, int_param
from s3.responses import XML_TYPE
from s3.times import iso_time
from s3.xml import boolean, document, element, escape, needs_escape

PAGE_MAX = 1000
_TOKEN = "1"
"""First character of a continuation token: its format."""

_URL_PLAIN = re.compile(r"[A-Za-z0-9_.~/\n-]*")

Show = Callable[[str], str]
"""How a key is written: url-encoded or escaped."""


def _identity(text: str) -> str:
    return text


def url_encode(text: str) -> str:
    """Return what ``encoding-type=url`` means: percent-encoded UTF-8, slashes kept.

    A space is ``%20``: every client decodes that, while ``+`` needs one that knows forms.
    """
    return quote(text, safe="/~*")


def encoding_of(request: S3Request) -> str:
    """Return ``url`` or an empty string. Raises InvalidArgument."""
    encoding = request.params.get("encoding-type", "")
    if encoding and encoding != "url":
        raise s3_error(
            "InvalidArgument",
            "Invalid Encoding Method specified in Request",
            ArgumentName="encoding-type",
            ArgumentValue=encoding,
        )
    return encoding


def shown_as(encoding: str) -> Show:
    return url_encode if encoding else escape


def shown_for(encoding: str, texts: Iterable[str]) -> Show:
    """Return the cheapest way to write all of ``texts`` right.

    They are looked at in one go, because one search over them all costs a fraction of a call
    for each.
    """
    joined = "\n".join(texts)
    if encoding:
        return _identity if _URL_PLAIN.fullmatch(joined) else url_encode
    return escape if needs_escape(joined) else _identity


def encode_token(after: str) -> str:
    return _TOKEN + urlsafe_b64encode(after.encode()).decode().rstrip("=")


def decode_token(token: str) -> str:
    """Raises InvalidArgument for what is no continuation token of ours."""
    try:
        if token[:1] != _TOKEN:
            raise ValueError
        raw = token[1:].encode("ascii")
        padded = raw + b"=" * (-len(raw) % 4)
        return b64decode(padded, altchars=b"-_", validate=True).decode()
    except ValueError:
        raise s3_error(
            "InvalidArgument",
            "The continuation token provided is incorrect",
            ArgumentName="continuation-token",
            ArgumentValue=token,
        ) from None


@lru_cache(maxsize=64)
def _checksum_elements(shown: str) -> str:
    """Return the elements for ``ListedVersion.checksum_shown``."""
    algorithm, _, kind = shown.partition(" ")
    if not algorithm:
        return ""
    return element("ChecksumAlgorithm", algorithm) + element("ChecksumType", kind)


def _contents(objects: Sequence[ListedObject], encoding: str, owner: str) -> list[str]:
    """Return one ``<Contents>`` for each object; ``owner`` is an element or empty."""
    show = shown_for(encoding, [item.key for item in objects])
    keys = [item.key for item in objects] if show is _identity else [show(o.key) for o in objects]
    return [
        f"<Contents><Key>{key}</Key><LastModified>{iso_time(v.modified_ms)}</LastModified>"
        f"<ETag>&quot;{v.etag}&quot;</ETag>{_checksum_elements(v.checksum_shown)}"
        f"<Size>{v.size}</Size>{owner}<StorageClass>{v.storage_class}</StorageClass></Contents>"
        for key, (_, v) in zip(keys, objects, strict=True)
    ]


def common_prefixes(prefixes: Sequence[str], encoding: str) -> list[str]:
    show = shown_for(encoding, prefixes)
    return [
        f"<CommonPrefixes><Prefix>{show(prefix)}</Prefix></CommonPrefixes>" for prefix in prefixes
    ]


async def list_objects_v1(api: Api, request: S3Request) -> Response:
    params = request.params
    if params.get("list-type", "") not in ("", "1"):
        raise s3_error(
            "InvalidArgument",
            "Invalid List Type specified in Request",
            ArgumentName="list-type",
            ArgumentValue=params["list-type"],
        )
    encoding = encoding_of(request)
    limit = min(int_param(request, "max-keys", PAGE_MAX), PAGE_MAX)
    prefix, delimiter = params.get("prefix", ""), params.get("delimiter", "")
    marker = params.get("marker", "")
    page = await api.engine.list_objects(
        request.bucket, prefix=prefix, delimiter=delimiter, after=marker, limit=limit
    )
    show = shown_as(encoding)
    head = [
        element("Name", request.bucket),
        f"<Prefix>{show(prefix)}</Prefix>",
        f"<Marker>{show(marker)}</Marker>",
    ]
    if page.next_after is not None and delimiter:
        head.append(f"<NextMarker>{show(page.next_after)}</NextMarker>")
    head.append(f"<MaxKeys>{limit}</MaxKeys>")
    if delimiter:
        head.append(f"<Delimiter>{show(delimiter)}</Delimiter>")
    if encoding:
        head.append(element("EncodingType", encoding))
    head.append(f"<IsTruncated>{boolean(page.next_after is not None)}</IsTruncated>")
    head += _contents(page.objects, encoding, owner_element(api))
    head += common_prefixes(page.prefixes, encoding)
    return Response(200, [XML_TYPE], document("ListBucketResult", head))


async def list_objects_v2(api: Api, request: S3Request) -> Response:
    params = request.params
    encoding = encoding_of(request)
    limit = min(int_param(request, "max-keys", PAGE_MAX), PAGE_MAX)
    prefix, delimiter = params.get("prefix", ""), params.get("delimiter", "")
    start_after = params.get("start-after", "")
    token = params.get("continuation-token")
    page = await api.engine.list_objects(
        request.bucket,
        prefix=prefix,
        delimiter=delimiter,
        after=start_after if token is None else decode_token(token),
        limit=limit,
    )
    show = shown_as(encoding)
    head = [element("Name", request.bucket), f"<Prefix>{show(prefix)}</Prefix>"]
    if token is not None:
        head.append(element("ContinuationToken", token))
    if page.next_after is not None:
        head.append(element("NextContinuationToken", encode_token(page.next_after)))
    if start_after:
        head.append(f"<StartAfter>{show(start_after)}</StartAfter>")
    head.append(f"<KeyCount>{len(page.objects) + len(page.prefixes)}</KeyCount>")
    head.append(f"<MaxKeys>{limit}</MaxKeys>")
    if delimiter:
        head.append(f"<Delimiter>{show(delimiter)}</Delimiter>")
    if encoding:
        head.append(element("EncodingType", encoding))
    head.append(f"<IsTruncated>{boolean(page.next_after is not None)}</IsTruncated>")
    owner = owner_element(api) if params.get("fetch-owner", "").lower() == "true" else ""
    head += _contents(page.objects, encoding, owner)
    head += common_prefixes(page.prefixes, encoding)
    return Response(200, [XML_TYPE], document("ListBucketResult", head))


async def list_objects(api: Api, request: S3Request) -> Response:
    """GET of a bucket: version 1 or 2 by ``list-type``."""
    if request.params.get("list-type") == "2":
        return await list_objects_v2(api, request)
    return await list_objects_v1(api, request)


async def list_versions(api: Api, request: S3Request) -> Response:
    params = request.params
    encoding = encoding_of(request)
    limit = min(int_param(request, "max-keys", PAGE_MAX), PAGE_MAX)
    prefix, delimiter = params.get("prefix", ""), params.get("delimiter", "")
    key_marker, version_marker = params.get("key-marker", ""), params.get("version-id-marker", "")
    if version_marker and not key_marker:
        raise s3_error(
            "InvalidArgument",
            "A version-id marker cannot be specified without a key marker.",
            ArgumentName="version-id-marker",
            ArgumentValue=version_marker,
        )
    page = await api.engine.list_versions(
        request.bucket,
        prefix=prefix,
        delimiter=delimiter,
        key_marker=key_marker,
        version_id_marker=version_marker,
        limit=limit,
    )
    show = shown_as(encoding)
    rows = [
        element("Name", request.bucket),
        f"<Prefix>{show(prefix)}</Prefix>",
        f"<KeyMarker>{show(key_marker)}</KeyMarker>",
        element("VersionIdMarker", version_marker),
    ]
    if page.next_key is not None:
        rows.append(f"<NextKeyMarker>{show(page.next_key)}</NextKeyMarker>")
        if page.next_version_id is not None:
            rows.append(element("NextVersionIdMarker", page.next_version_id))
    rows.append(f"<MaxKeys>{limit}</MaxKeys>")
    if delimiter:
        rows.append(f"<Delimiter>{show(delimiter)}</Delimiter>")
    if encoding:
        rows.append(element("EncodingType", encoding))
    rows.append(f"<IsTruncated>{boolean(page.next_key is not None)}</IsTruncated>")
    owner = owner_element(api)
    show = shown_for(encoding, [item.key for item in page.versions])
    for key, v, is_latest in page.versions:
        common = (
            f"<Key>{show(key)}</Key><VersionId>{v.version_id}</VersionId>"
            f"<IsLatest>{boolean(is_latest)}</IsLatest>"
            f"<LastModified>{iso_time(v.modified_ms)}</LastModified>"
        )
        if v.delete_marker:
            rows.append(f"<DeleteMarker>{common}{owner}</DeleteMarker>")
        else:
            rows.append(
                f"<Version>{common}<ETag>&quot;{v.etag}&quot;</ETag>"
                f"{_checksum_elements(v.checksum_shown)}<Size>{v.size}</Size>{owner}"
                f"<StorageClass>{v.storage_class}</StorageClass></Version>"
            )
    rows += common_prefixes(page.prefixes, encoding)
    return Response(200, [XML_TYPE], document("ListVersionsResult", rows))
