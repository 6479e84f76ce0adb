"""GET and HEAD of a file: one version, pinned, whole or in ranges."""

from __future__ import annotations

import secrets
from functools import partial

from dav.conditions import read_conditions
from dav.errors import DavError
from dav.files import file_headers
from dav.portal import Crossing
from dav.ranges import Span, content_range, parse_ranges
from dav.request import DavRequest, Reply
from dav.times import parse_http_date
from dav.tree import Resource
from engine.errors import InvalidRange
from engine.meta.records import VersionRecord
from engine.opened import OpenedObject
from engine.times import shown_ms


async def download(request: DavRequest, crossing: Crossing, found: Resource) -> Reply | None:
    """Answer with the current version's bytes. Conditions are decided on what is sent."""
    target = found.target
    conditions = read_conditions(request)
    if request.method == "HEAD":
        info = await request.engine.head(target.bucket, found.key, conditions=conditions)
        headers = file_headers(info.record, target.name)
        return Reply(200, [*headers, ("Content-Length", str(info.size))])
    opened = await request.engine.open(target.bucket, found.key, conditions=conditions)
    async with opened:
        record = opened.info.record
        headers = file_headers(record, target.name)
        spans = _spans(request, record, headers)
        if spans is None:
            headers.append(("Content-Length", str(record.size)))
            return await _send(request, crossing, opened, (200, headers), Span(0, record.size))
        if len(spans) == 1:
            span = spans[0]
            headers.append(("Content-Range", content_range(span, record.size)))
            headers.append(("Content-Length", str(span.end - span.first)))
            return await _send(request, crossing, opened, (206, headers), span)
        await _send_parts(request, crossing, opened, headers, spans)
        return None


def _spans(
    request: DavRequest, record: VersionRecord, headers: list[tuple[str, str]]
) -> list[Span] | None:
    value = request.header("Range")
    if value is None or not _same(request.header("If-Range"), record):
        return None
    try:
        return parse_ranges(value, record.size)
    except InvalidRange:
        kept = [pair for pair in headers if pair[0] in ("ETag", "Last-Modified")]
        outside = ("Content-Range", f"bytes */{record.size}")
        raise DavError(416, headers=[*kept, outside]) from None


def _same(if_range: str | None, record: VersionRecord) -> bool:
    """Decide If-Range: only the very same representation may be continued (RFC 9110, 13.1.5)."""
    if if_range is None:
        return True
    if_range = if_range.strip()
    if if_range.startswith("W/"):
        return False
    if if_range.startswith('"'):
        return if_range == f'"{record.etag}"'
    date = parse_http_date(if_range)
    if date is None:
        return if_range == record.etag
    return date // 1000 == shown_ms(record.modified_ms, record.metadata) // 1000


async def _send(
    request: DavRequest,
    crossing: Crossing,
    opened: OpenedObject,
    head: tuple[int, list[tuple[str, str]]],
    span: Span,
) -> Reply | None:
    status, headers = head
    if opened.inline is not None:
        return Reply(status, headers, memoryview(opened.inline)[span.first : span.end])
    stream = await opened.stream(span.first, span.end)
    try:
        await request.begin(crossing, status, headers)
        async for buffer in stream:
            await request.send(crossing, buffer)
    finally:
        await stream.aclose()
    return None


async def _send_parts(
    request: DavRequest,
    crossing: Crossing,
    opened: OpenedObject,
    headers: list[tuple[str, str]],
    spans: list[Span],
) -> None:
    """Send several ranges as multipart/byteranges (RFC 9110, section 14.6)."""
    size = opened.info.size
    boundary = secrets.token_hex(16)
    kind = next(value for name, value in headers if name == "Content-Type")
    heads = [
        (
            f"\r\n--{boundary}\r\nContent-Type: {kind}\r\n"
            f"Content-Range: {content_range(span, size)}\r\n\r\n"
        ).encode("latin-1", "replace")
        for span in spans
    ]
    end = f"\r\n--{boundary}--\r\n".encode()
    length = len(end) + sum(map(len, heads)) + sum(span.end - span.first for span in spans)
    others = [pair for pair in headers if pair[0] != "Content-Type"]
    multipart = ("Content-Type", f"multipart/byteranges; boundary={boundary}")
    start = partial(request.begin, crossing, 206)
    await start([*others, multipart, ("Content-Length", str(length))])
    for head, span in zip(heads, spans, strict=True):
        await request.send(crossing, head)
        stream = await opened.stream(span.first, span.end)
        try:
            async for buffer in stream:
                await request.send(crossing, buffer)
        finally:
            await stream.aclose()
    await request.send(crossing, end)
