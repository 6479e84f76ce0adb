"""The door of S3 clients: real requests, signed, over a loopback connection."""

from __future__ import annotations

import base64
import hashlib
import re
import socket
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from urllib.parse import quote, unquote
from xml.etree import ElementTree
from xml.sax.saxutils import escape

import trio

from engine.engine import Engine
from engine.http.limits import Limits
from engine.http.server import open_listeners, serve
from engine.opening import WallClock
from s3.app import S3Config, make_handler
from s3.auth.credentials import RootCredential
from tests.support.doors import (
    Got,
    Page,
    Pairs,
    PartPage,
    Refused,
    Removed,
    Stored,
    UploadPage,
    VersionEntry,
    VersionPage,
)
from tests.support.engine import ManualClock
from tests.support.engine_door import LEASE_MARGIN_S
from tests.support.s3 import ROOT, Answer, Log, S3Server

REGION = "eu-west-1"
"""Any but S3's first one, where making a bucket twice succeeds."""

LEAVES = {
    "BucketAlreadyOwnedByYou": "BucketExists",
    "ConditionalRequestConflict": "ConditionConflict",
    "InvalidPart": "BadPart",
    "MethodNotAllowed": "IsDeleteMarker",
}
"""S3's code → leaf of the engine's tree, where the names differ."""

Headers = dict[str, str | bytes]
_NO_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_NO_REFERENCE = re.compile(rb"&#x([0-8bcef]|1[0-9a-f]|fffe|ffff);", re.IGNORECASE)
"""References that S3 writes although XML does not allow them, in keys that it repeats."""
_ESCAPES = {"\r": "&#13;", "\n": "&#10;", "\t": "&#9;"}


@asynccontextmanager
async def serving_s3(engine: Engine) -> AsyncIterator[S3Server]:
    """Serve the engine's store over HTTP on a port of its own."""
    log = Log()
    listeners: list[socket.socket] = open_listeners("127.0.0.1", 0)
    config = S3Config(
        credentials=RootCredential(ROOT),
        owner_id=ROOT.owner_id,
        owner_name=ROOT.display_name,
        clock=WallClock(),
        region=REGION,
    )
    handler = make_handler(engine, config, log=log.as_logger())
    shutdown = trio.Event()
    async with trio.open_nursery() as nursery:

        async def run(task_status: trio.TaskStatus[None]) -> None:
            await serve(
                handler,
                listeners,
                limits=Limits(),
                tls=None,
                log=log.as_logger(),
                shutdown=shutdown,
                task_status=task_status,
            )

        await nursery.start(run)
        yield S3Server(engine, listeners[0].getsockname()[1], log, REGION)
        shutdown.set()
    assert log.troubles == []


def _leaf(answer: Answer) -> str:
    if answer.status == 304:
        return "NotModified"
    if b"may not specifically refer to a delete marker" in answer.body:
        return "InvalidArgument"  # S3 says InvalidRequest to this one
    return LEAVES.get(answer.code, answer.code)


def _etag(answer: Answer) -> str:
    return answer.headers["etag"].strip('"')


def _metadata(answer: Answer) -> Pairs:
    prefix = "x-amz-meta-"
    return tuple(
        sorted(
            (name.removeprefix(prefix), value)
            for name, value in answer.headers.items()
            if name.startswith(prefix)
        )
    )


def _got(answer: Answer, data: bytes) -> Got:
    size = answer.headers.get("content-range", "").rpartition("/")[2]
    return Got(
        data,
        int(size or answer.headers["content-length"]),
        _etag(answer),
        answer.headers.get("x-amz-version-id"),
        _metadata(answer),
    )


def _with_metadata(metadata: Pairs) -> Headers:
    return {f"x-amz-meta-{name}": value for name, value in metadata}


def _query(**params: str | int | None) -> str:
    """Return the query of the parameters that are not None; ``_`` in names stands for ``-``."""
    return "&".join(
        f"{name.replace('_', '-')}={quote(str(value), safe='')}"
        for name, value in params.items()
        if value is not None
    )


def _version(version_id: str | None) -> str:
    return "" if version_id is None else f"versionId={version_id}"


def _text(element: ElementTree.Element, path: str) -> str:
    """Return the text of the element that must be there; url-decoded, as all of these are."""
    found = element.find(path)
    assert found is not None, (path, ElementTree.tostring(element))
    return unquote(found.text or "")


def _prefixes(answer: Answer) -> tuple[str, ...]:
    return tuple(unquote(text) for text in answer.texts("CommonPrefixes/Prefix"))


class S3Door:
    """``clock`` is the store's."""

    def __init__(self, server: S3Server, clock: ManualClock) -> None:
        self._server = server
        self._clock = clock

    async def _ask(
        self,
        method: str,
        path: str,
        query: str = "",
        headers: Mapping[str, str | bytes] | None = None,
        body: bytes = b"",
    ) -> Answer:
        answer = await self._server.request(method, path, query, headers=headers, body=body)
        if answer.headers.get("content-type") == "application/xml":
            answer.body = _NO_REFERENCE.sub(b"?", answer.body)
        if answer.status >= 300:
            raise Refused(_leaf(answer))
        if answer.body.startswith(b"<?xml") and answer.xml.tag == "Error":
            raise Refused(_leaf(answer))
        return answer

    async def create_bucket(self, bucket: str) -> None:
        await self._ask("PUT", f"/{bucket}")

    async def delete_bucket(self, bucket: str) -> None:
        await self._ask("DELETE", f"/{bucket}")

    async def set_versioning(self, bucket: str, state: str) -> None:
        document = f"<VersioningConfiguration><Status>{state}</Status></VersioningConfiguration>"
        await self._ask("PUT", f"/{bucket}", "versioning=", body=document.encode())

    async def list_buckets(self) -> tuple[str, ...]:
        names: list[str] = []
        token = None
        while True:
            query = _query(max_buckets=1, continuation_token=token)
            answer = await self._ask("GET", "/", query)
            names += answer.texts("Buckets/Bucket/Name")
            token = answer.text("ContinuationToken")
            if token is None:
                return tuple(names)

    # Objects

    async def put(
        self,
        bucket: str,
        key: str,
        data: bytes,
        *,
        metadata: Pairs = (),
        if_match: str | None = None,
        if_none_match: bool = False,
    ) -> Stored:
        headers = _with_metadata(metadata)
        if if_match is not None:
            headers["if-match"] = if_match
        if if_none_match:
            headers["if-none-match"] = "*"
        answer = await self._ask("PUT", f"/{bucket}/{key}", headers=headers, body=data)
        return Stored(answer.headers.get("x-amz-version-id"), _etag(answer))

    async def get(
        self,
        bucket: str,
        key: str,
        *,
        version_id: str | None = None,
        first: int | None = None,
        last: int | None = None,
        if_match: str | None = None,
        if_none_match: str | None = None,
    ) -> Got:
        headers: Headers = {}
        if first is not None:
            headers["range"] = f"bytes={first}-{last}"
        if if_match is not None:
            headers["if-match"] = f'"{if_match}"' if if_match != "*" else "*"
        if if_none_match is not None:
            headers["if-none-match"] = f'"{if_none_match}"' if if_none_match != "*" else "*"
        answer = await self._ask("GET", f"/{bucket}/{key}", _version(version_id), headers)
        assert len(answer.body) == int(answer.headers["content-length"])
        return _got(answer, answer.body)

    async def head(self, bucket: str, key: str, *, version_id: str | None = None) -> Got:
        path, query = f"/{bucket}/{key}", _version(version_id)
        answer = await self._server.request("HEAD", path, query)
        assert answer.body == b""
        if answer.status >= 300:
            # A HEAD has no document that names the error; GET's has, and the same status.
            told = await self._server.request("GET", path, query)
            assert told.status == answer.status
            told.body = _NO_REFERENCE.sub(b"?", told.body)
            raise Refused(_leaf(told))
        return _got(answer, b"")

    async def delete(
        self, bucket: str, key: str, *, version_id: str | None = None, if_match: str | None = None
    ) -> Removed:
        headers: Headers = {} if if_match is None else {"if-match": if_match}
        answer = await self._ask("DELETE", f"/{bucket}/{key}", _version(version_id), headers)
        marker = answer.headers.get("x-amz-delete-marker") == "true"
        return Removed(answer.headers.get("x-amz-version-id"), marker)

    async def delete_many(
        self, bucket: str, items: tuple[tuple[str, str | None], ...]
    ) -> tuple[Removed | str, ...]:
        if any(_NO_XML.search(key) for key, _ in items):
            return await self._delete_each(bucket, items)
        rows = []
        for key, version_id in items:
            version = "" if version_id is None else f"<VersionId>{version_id}</VersionId>"
            rows.append(f"<Object><Key>{escape(key, _ESCAPES)}</Key>{version}</Object>")
        document = f"<Delete>{''.join(rows)}</Delete>".encode()
        md5 = base64.b64encode(hashlib.md5(document, usedforsecurity=False).digest()).decode()
        answer = await self._ask(
            "POST", f"/{bucket}", "delete=", {"content-md5": md5}, body=document
        )
        answers = [self._deleted(element) for element in answer.xml]
        assert [element.findtext("Key") for element in answer.xml] == [key for key, _ in items]
        return tuple(answers)

    def _deleted(self, element: ElementTree.Element) -> Removed | str:
        code = element.findtext("Code")
        if code is not None:
            return LEAVES.get(code, code)
        marker = element.findtext("DeleteMarker") == "true"
        version_id = element.findtext("VersionId")
        if version_id is None:
            version_id = element.findtext("DeleteMarkerVersionId")
        return Removed(version_id, marker)

    async def _delete_each(
        self, bucket: str, items: tuple[tuple[str, str | None], ...]
    ) -> tuple[Removed | str, ...]:
        """XML cannot name some keys: those can be deleted one by one only."""
        answers: list[Removed | str] = []
        for key, version_id in items:
            try:
                answers.append(await self.delete(bucket, key, version_id=version_id))
            except Refused as error:
                if error.name == "NoSuchBucket":
                    raise
                answers.append(error.name)
        return tuple(answers)

    async def copy(
        self,
        source_bucket: str,
        source_key: str,
        bucket: str,
        key: str,
        *,
        version_id: str | None = None,
        metadata: Pairs | None = None,
    ) -> Stored:
        source = quote(f"/{source_bucket}/{source_key}")
        if version_id is not None:
            source += f"?versionId={version_id}"
        headers: Headers = {"x-amz-copy-source": source}
        if metadata is not None:
            headers |= _with_metadata(metadata) | {"x-amz-metadata-directive": "REPLACE"}
        answer = await self._ask("PUT", f"/{bucket}/{key}", headers=headers)
        return Stored(answer.headers.get("x-amz-version-id"), _text(answer.xml, "ETag").strip('"'))

    async def set_tags(
        self, bucket: str, key: str, tags: Pairs, *, version_id: str | None = None
    ) -> None:
        rows = [f"<Tag><Key>{name}</Key><Value>{value}</Value></Tag>" for name, value in tags]
        document = f"<Tagging><TagSet>{''.join(rows)}</TagSet></Tagging>"
        query = _query(tagging="", versionId=version_id)
        await self._ask("PUT", f"/{bucket}/{key}", query, body=document.encode())

    async def get_tags(self, bucket: str, key: str, *, version_id: str | None = None) -> Pairs:
        answer = await self._ask(
            "GET", f"/{bucket}/{key}", _query(tagging="", versionId=version_id)
        )
        return tuple(
            (tag.findtext("Key") or "", tag.findtext("Value") or "")
            for tag in answer.xml.iterfind("TagSet/Tag")
        )

    # Multipart uploads

    async def create_upload(self, bucket: str, key: str, *, metadata: Pairs = ()) -> str:
        answer = await self._ask(
            "POST", f"/{bucket}/{key}", "uploads=", headers=_with_metadata(metadata)
        )
        return _text(answer.xml, "UploadId")

    async def put_part(
        self, bucket: str, key: str, upload_id: str, number: int, data: bytes
    ) -> str:
        query = _query(partNumber=number, uploadId=upload_id)
        return _etag(await self._ask("PUT", f"/{bucket}/{key}", query, body=data))

    async def copy_part(
        self,
        source_bucket: str,
        source_key: str,
        bucket: str,
        key: str,
        upload_id: str,
        number: int,
    ) -> str:
        answer = await self._ask(
            "PUT",
            f"/{bucket}/{key}",
            _query(partNumber=number, uploadId=upload_id),
            {"x-amz-copy-source": quote(f"/{source_bucket}/{source_key}")},
        )
        return _text(answer.xml, "ETag").strip('"')

    async def complete(
        self, bucket: str, key: str, upload_id: str, parts: tuple[tuple[int, str], ...]
    ) -> Stored:
        rows = [
            f"<Part><PartNumber>{number}</PartNumber><ETag>&quot;{etag}&quot;</ETag></Part>"
            for number, etag in parts
        ]
        document = f"<CompleteMultipartUpload>{''.join(rows)}</CompleteMultipartUpload>"
        answer = await self._ask(
            "POST", f"/{bucket}/{key}", _query(uploadId=upload_id), body=document.encode()
        )
        return Stored(answer.headers.get("x-amz-version-id"), _text(answer.xml, "ETag").strip('"'))

    async def abort(self, bucket: str, key: str, upload_id: str) -> None:
        await self._ask("DELETE", f"/{bucket}/{key}", _query(uploadId=upload_id))

    async def list_parts(
        self, bucket: str, key: str, upload_id: str, *, after: int = 0, limit: int = 1000
    ) -> PartPage:
        query = _query(uploadId=upload_id, part_number_marker=after, max_parts=limit)
        answer = await self._ask("GET", f"/{bucket}/{key}", query)
        entries = tuple(
            (int(_text(part, "PartNumber")), int(_text(part, "Size")), _text(part, "ETag")[1:-1])
            for part in answer.xml.iterfind("Part")
        )
        more = answer.text("IsTruncated") == "true"
        return PartPage(entries, int(_text(answer.xml, "NextPartNumberMarker")) if more else None)

    # Listings

    async def list_objects(
        self,
        bucket: str,
        *,
        prefix: str = "",
        delimiter: str = "",
        after: str = "",
        limit: int = 1000,
    ) -> Page:
        """Ask both versions of the operation; they must agree, and so must the next pages."""
        common = _query(
            prefix=prefix, delimiter=delimiter or None, max_keys=limit, encoding_type="url"
        )
        first = await self._ask("GET", f"/{bucket}", f"{common}&{_query(marker=after)}")
        second = await self._ask(
            "GET", f"/{bucket}", f"{common}&list-type=2&{_query(start_after=after)}"
        )
        entries, prefixes = _objects(first), _prefixes(first)
        assert (entries, prefixes) == (_objects(second), _prefixes(second))
        assert int(_text(second.xml, "KeyCount")) == len(entries) + len(prefixes)
        more = first.text("IsTruncated") == "true"
        assert more == (second.text("IsTruncated") == "true")
        if not more:
            return Page(entries, prefixes, None)
        last = max([entry[0] for entry in entries] + list(prefixes))
        if delimiter:
            assert _text(first.xml, "NextMarker") == last
        token = second.text("NextContinuationToken")
        following = await self._ask(
            "GET", f"/{bucket}", f"{common}&list-type=2&{_query(continuation_token=token)}"
        )
        again = await self._ask("GET", f"/{bucket}", f"{common}&{_query(marker=last)}")
        assert _objects(following) == _objects(again)
        assert _prefixes(following) == _prefixes(again)
        return Page(entries, prefixes, last)

    async def list_versions(
        self,
        bucket: str,
        *,
        prefix: str = "",
        delimiter: str = "",
        key_marker: str = "",
        version_id_marker: str = "",
        limit: int = 1000,
    ) -> VersionPage:
        query = _query(
            versions="",
            prefix=prefix,
            delimiter=delimiter or None,
            key_marker=key_marker,
            version_id_marker=version_id_marker or None,
            max_keys=limit,
            encoding_type="url",
        )
        answer = await self._ask("GET", f"/{bucket}", query)
        entries = tuple(
            VersionEntry(
                _text(row, "Key"),
                _text(row, "VersionId"),
                row.tag == "DeleteMarker",
                _text(row, "IsLatest") == "true",
                int(row.findtext("Size") or 0),
                (row.findtext("ETag") or "").strip('"'),
            )
            for row in answer.xml
            if row.tag in ("Version", "DeleteMarker")
        )
        next_key = answer.text("NextKeyMarker")
        assert (next_key is not None) == (answer.text("IsTruncated") == "true")
        return VersionPage(
            entries,
            _prefixes(answer),
            None if next_key is None else unquote(next_key),
            answer.text("NextVersionIdMarker"),
        )

    async def list_uploads(
        self,
        bucket: str,
        *,
        prefix: str = "",
        delimiter: str = "",
        key_marker: str = "",
        upload_id_marker: str = "",
        limit: int = 1000,
    ) -> UploadPage:
        query = _query(
            uploads="",
            prefix=prefix,
            delimiter=delimiter or None,
            key_marker=key_marker,
            upload_id_marker=upload_id_marker or None,
            max_uploads=limit,
            encoding_type="url",
        )
        answer = await self._ask("GET", f"/{bucket}", query)
        entries = tuple(
            (_text(row, "Key"), _text(row, "UploadId")) for row in answer.xml.iterfind("Upload")
        )
        if answer.text("IsTruncated") != "true":
            return UploadPage(entries, _prefixes(answer), None, None)
        next_upload = answer.text("NextUploadIdMarker") or None
        return UploadPage(
            entries, _prefixes(answer), _text(answer.xml, "NextKeyMarker"), next_upload
        )

    async def collect(self) -> None:
        self._clock.advance(LEASE_MARGIN_S)
        await self._server.engine.collect_garbage(grace_s=0)


def _objects(answer: Answer) -> tuple[tuple[str, int, str], ...]:
    return tuple(
        (_text(row, "Key"), int(_text(row, "Size")), _text(row, "ETag").strip('"'))
        for row in answer.xml.iterfind("Contents")
    )
