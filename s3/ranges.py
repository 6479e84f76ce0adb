"""The Range header (RFC 9110, section 14.2), read as S3 reads it."""

from __future__ import annotations

import re

from engine.errors import InvalidRange

_SPEC = re.compile(rb"\s*bytes\s*=\s*(\d*)\s*-\s*(\d*)\s*", re.ASCII | re.IGNORECASE)
_COPY = re.compile(rb"bytes=(\d{1,19})-(\d{1,19})", re.ASCII)


def parse_range(value: bytes, size: int) -> tuple[int, int] | None:
    """Return (first, end) with ``end`` exclusive, or None when the whole object is meant.

    What is malformed, or asks for several ranges, is ignored as S3 does.

    Raises:
        InvalidRange: no byte of the object lies in it.
    """
    match = _SPEC.fullmatch(value)
    if match is None or len(value) > 100:
        return None
    first_text, last_text = match.groups()
    if not first_text:
        if not last_text:
            return None
        length = min(int(last_text), size)
        if length == 0:
            raise InvalidRange(size)
        return size - length, size
    first = int(first_text)
    if last_text and int(last_text) < first:
        return None
    if first >= size:
        raise InvalidRange(size)
    return first, min(int(last_text) + 1, size) if last_text else size


def content_range(first: int, end: int, size: int) -> bytes:
    return b"bytes %d-%d/%d" % (first, end - 1, size)


def parse_copy_range(value: bytes) -> tuple[int, int] | None:
    """Return (first, last), both inclusive, of ``x-amz-copy-source-range``; None if malformed."""
    match = _COPY.fullmatch(value.strip())
    if match is None or int(match[1]) > int(match[2]):
        return None
    return int(match[1]), int(match[2])
