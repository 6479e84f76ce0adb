"""Precondition headers to ``Conditions``; the engine decides them in its transactions."""

from __future__ import annotations

import re

import msgspec

from dav.request import DavRequest
from dav.times import parse_http_date
from engine.types import NO_CONDITIONS, Conditions

_ETAG = re.compile(r'\s*(W/)?(?:"([^"]*)"|([^\s,"]+))\s*(?:,|$)')


def parse_etags(value: str, *, weak: bool) -> tuple[str, ...]:
    """Return the ETags of a list, without quotes; ``("*",)`` for any.

    ``weak``: keep those with ``W/``, which a strong comparison never matches (RFC 9110, section
    8.8.3.2). Bare ETags without quotes are taken, as some clients send them.
    """
    if value.strip() == "*":
        return ("*",)
    tags = []
    for mark, quoted, bare in _ETAG.findall(value):
        if not mark or weak:
            # A quoted star is an ETag, not any.
            tags.append("" if quoted == "*" else quoted or bare)
    return tuple(tags)


def read_conditions(request: DavRequest) -> Conditions:
    """Return what a GET or HEAD asks for; dates that are none are ignored."""
    conditions = _headers(request)
    since = request.header("If-Modified-Since")
    if since is None or conditions.if_none_match is not None:
        return conditions
    return _with(conditions, if_modified_since_ms=parse_http_date(since))


def write_conditions(request: DavRequest) -> Conditions:
    """Return what a request that changes its target asks for, and the locks that it holds."""
    return _with_locks(_headers(request), request)


def member_conditions(request: DavRequest) -> Conditions:
    """Return the conditions for anything but the target itself: only the locks held."""
    return _with_locks(NO_CONDITIONS, request)


def _headers(request: DavRequest) -> Conditions:
    match = request.header("If-Match")
    none_match = request.header("If-None-Match")
    unmodified = request.header("If-Unmodified-Since")
    if match is None and none_match is None and unmodified is None:
        return NO_CONDITIONS
    return Conditions(
        if_match=None if match is None else parse_etags(match, weak=False),
        if_none_match=None if none_match is None else parse_etags(none_match, weak=True),
        if_unmodified_since_ms=None
        if unmodified is None or match is not None
        else parse_http_date(unmodified),
    )


def _with(conditions: Conditions, **changes: object) -> Conditions:
    return msgspec.structs.replace(conditions, **changes)


def _with_locks(conditions: Conditions, request: DavRequest) -> Conditions:
    return conditions
