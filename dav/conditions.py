"""Precondition headers to ``Conditions``; the engine decides them in its transactions."""

from __future__ import annotations

import re

import msgspec

from dav.errors import DavError
from dav.ifheader import IfHeader, MalformedIf, parse_if, token_of
from dav.request import DavRequest
from dav.times import parse_http_date
from engine.types import NO_CONDITIONS, Conditions, StateList

_ETAG = re.compile(r'\s*(W/)?(?:"([^"]*)"|([^\s,"]+))\s*(?:,|$)')

_CODED_URL = re.compile(r"<([^<>\s]+)>")


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
    return _with(conditions, if_modified_since_ms=parse_http_date(since), shown_times=True)


def write_conditions(request: DavRequest) -> Conditions:
    """Return what a request that changes its target asks for, and the locks that it holds."""
    conditions = _with_locks(_headers(request), request)
    states = state_lists(request)
    return conditions if not states else _with(conditions, states=states)


def state_lists(request: DavRequest) -> tuple[StateList, ...]:
    """Return what If asks for; each list names its resource, so any transaction can decide."""
    parsed = _if_header(request)
    return () if parsed is None else parsed.states


def _if_header(request: DavRequest) -> IfHeader | None:
    header = request.header("If")
    if header is None:
        return None
    try:
        return parse_if(header, target=request.target, host=request.header("Host") or "")
    except MalformedIf as error:
        raise DavError(400, f"malformed If header: {error}") from None


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
        shown_times=True,
    )


def _with(conditions: Conditions, **changes: object) -> Conditions:
    return msgspec.structs.replace(conditions, **changes)


def _with_locks(conditions: Conditions, request: DavRequest) -> Conditions:
    """Add the locks that the client says it holds: in If, or as Office does it in Lock-Token."""
    parsed = _if_header(request)
    tokens = list(parsed.tokens) if parsed is not None else []
    tokens += [token_of(uri) for uri in _CODED_URL.findall(request.header("Lock-Token") or "")]
    if not tokens:
        return conditions
    return _with(conditions, lock_tokens=tuple(tokens), principal=request.user)
