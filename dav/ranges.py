"""The Range header (RFC 9110, section 14): one range, or several as multipart/byteranges. Pure."""

from __future__ import annotations

import re
from typing import NamedTuple

from engine.errors import InvalidRange

_SPEC = re.compile(r"\s*(\d{0,19})\s*-\s*(\d{0,19})\s*", re.ASCII)

RANGES_MAX = 64
"""A client that asks for more gets the whole (RFC 9110, section 14.2, allows that)."""


class Span(NamedTuple):
    first: int
    end: int
    """Exclusive."""


def parse_ranges(value: str, size: int) -> list[Span] | None:
    """Return the spans asked for, those that overlap joined; None when the whole is meant.

    What is malformed is ignored, and so are spans that lie outside.
    Raises: InvalidRange: none lies inside.
    """
    unit, equals, text = value.partition("=")
    if not equals or unit.strip().lower() != "bytes":
        return None
    specs = text.split(",")
    if len(specs) > RANGES_MAX:
        return None
    spans = []
    for spec in specs:
        match = _SPEC.fullmatch(spec)
        if match is None or match[0].strip() == "-":
            return None
        span = _span(match[1], match[2], size)
        if span is None:
            return None
        if span.first < span.end:
            spans.append(span)
    if not spans:
        raise InvalidRange(size)
    return _join(spans)


def _span(first_text: str, last_text: str, size: int) -> Span | None:
    """Return the span, empty when it lies outside; None when it is malformed."""
    if not first_text:
        return Span(max(size - int(last_text), 0), size)
    first = int(first_text)
    if not last_text:
        return Span(first, max(size, first))
    last = int(last_text)
    if last < first:
        return None
    return Span(first, max(min(last + 1, size), first))


def _join(spans: list[Span]) -> list[Span]:
    """Join spans that overlap or touch, and keep the order otherwise.

    Many overlapping ranges of one big object cost a server much and a client nothing
    (CVE-2011-3192).
    """
    ordered = sorted(spans)
    joined = [ordered[0]]
    for span in ordered[1:]:
        last = joined[-1]
        if span.first <= last.end:
            joined[-1] = Span(last.first, max(last.end, span.end))
        else:
            joined.append(span)
    return joined if len(joined) < len(spans) else spans


def content_range(span: Span, size: int) -> str:
    return f"bytes {span.first}-{span.end - 1}/{size}"
