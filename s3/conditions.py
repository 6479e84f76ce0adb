"""Precondition headers (RFC 9110, section 13) to ``Conditions``; the engine decides them."""

from __future__ import annotations

from collections.abc import Mapping

from engine.meta.records import VersionRecord
from engine.types import NO_CONDITIONS, Conditions
from s3.errors import s3_error
from s3.times import parse_http_date, parse_time

Headers = Mapping[bytes, bytes]


def parse_etags(value: bytes) -> tuple[str, ...]:
    """Return the ETags of a list without quotes and ``W/``; ``("*",)`` for any.

    Clients send ETags without quotes too; S3 takes them.
    """
    tags = []
    for part in value.decode("latin-1").split(","):
        tag = part.strip().removeprefix("W/")
        if len(tag) >= 2 and tag[0] == '"' == tag[-1]:
            tag = tag[1:-1]
        if tag:
            tags.append(tag)
    return tuple(tags)


def _etags(headers: Headers, name: bytes) -> tuple[str, ...] | None:
    value = headers.get(name)
    return None if value is None else parse_etags(value)


def _date(headers: Headers, name: bytes) -> int | None:
    value = headers.get(name)
    return None if value is None else parse_http_date(value.decode("latin-1").strip())


def read_conditions(headers: Headers) -> Conditions:
    """Return what a GET or HEAD asks for. Dates that cannot be parsed are ignored."""
    if not (
        b"if-none-match" in headers
        or b"if-match" in headers
        or b"if-modified-since" in headers
        or b"if-unmodified-since" in headers
    ):
        return NO_CONDITIONS
    return Conditions(
        if_match=_etags(headers, b"if-match"),
        if_none_match=_etags(headers, b"if-none-match"),
        if_modified_since_ms=_date(headers, b"if-modified-since"),
        if_unmodified_since_ms=_date(headers, b"if-unmodified-since"),
    )


def range_counts(headers: Headers, record: VersionRecord) -> bool:
    """Return whether Range is to be followed, as ``If-Range`` may say of another version.

    A client that resumes a download would else join the bytes of two versions. RFC 9110,
    section 13.1.5: ETags are compared strongly, and a date that is none matches nothing.
    """
    value = headers.get(b"if-range")
    if value is None:
        return True
    text = value.decode("latin-1").strip()
    if text.startswith('"'):
        return text == f'"{record.etag}"'
    at_ms = parse_http_date(text)
    return at_ms is not None and at_ms // 1000 == record.modified_ms // 1000


def copy_source_conditions(headers: Headers) -> Conditions:
    prefix = b"x-amz-copy-source-"
    return Conditions(
        if_match=_etags(headers, prefix + b"if-match"),
        if_none_match=_etags(headers, prefix + b"if-none-match"),
        if_modified_since_ms=_date(headers, prefix + b"if-modified-since"),
        if_unmodified_since_ms=_date(headers, prefix + b"if-unmodified-since"),
    )


def write_conditions(headers: Headers) -> Conditions:
    """Return what a conditional Put, Copy or Complete asks for.

    Raises:
        S3Error: NotImplemented for ``If-None-Match`` with anything but ``*``, as S3 does.
    """
    if b"if-match" not in headers and b"if-none-match" not in headers:
        return NO_CONDITIONS
    if_none_match = _etags(headers, b"if-none-match")
    if if_none_match is not None and if_none_match != ("*",):
        raise s3_error("NotImplemented", Header="If-None-Match")
    return Conditions(if_match=_etags(headers, b"if-match"), if_none_match=if_none_match)


def delete_conditions(headers: Headers) -> Conditions:
    """Raises InvalidArgument for a size or time that is none."""
    return _delete_conditions(
        etag=_text(headers, b"if-match"),
        size=_text(headers, b"x-amz-if-match-size"),
        modified=_text(headers, b"x-amz-if-match-last-modified-time"),
    )


def delete_item_conditions(
    *, etag: str | None, size: str | None, modified: str | None
) -> Conditions:
    """Return the conditions of one entry of DeleteObjects. Raises MalformedXML."""
    return _delete_conditions(etag=etag, size=size, modified=modified, code="MalformedXML")


def _text(headers: Headers, name: bytes) -> str | None:
    value = headers.get(name)
    return None if value is None else value.decode("latin-1")


def _delete_conditions(
    *, etag: str | None, size: str | None, modified: str | None, code: str = "InvalidArgument"
) -> Conditions:
    if etag is None and size is None and modified is None:
        return NO_CONDITIONS
    modified_ms = None
    if modified is not None:
        modified_ms = parse_time(modified.strip())
        if modified_ms is None:
            raise s3_error(code)
    if size is not None and not (size.isascii() and size.isdigit() and len(size) < 20):
        raise s3_error(code)
    return Conditions(
        if_match=None if etag is None else parse_etags(etag.encode("latin-1", "replace")),
        if_match_size=None if size is None else int(size),
        if_match_modified_ms=modified_ms,
    )
