"""The If header (RFC 4918, section 10.4): lists of states, one of which has to hold. Pure.

If = 1*No-tag-list | 1*Tagged-list
No-tag-list = List                    the resource of the request
Tagged-list = "<" Simple-ref ">" 1*List
List = "(" 1*Condition ")"
Condition = ["Not"] ("<" coded-URL ">" | "[" entity-tag "]")
"""

from __future__ import annotations

import re
from typing import NamedTuple

from dav.names import BadTarget, NoName, OtherHost, Target, parse_destination
from engine.types import StateList, StateTest

SCHEME = "opaquelocktoken:"
"""What stands before the engine's tokens where URIs are wanted (RFC 4918, appendix C)."""

_TOKEN = re.compile(
    r"""\s*(?:
    (?P<open>\() | (?P<close>\)) | (?P<not>[Nn][Oo][Tt]\b) |
    <(?P<uri>[^<>\s]+)> | \[\s*(?:W/)?"(?P<etag>[^"]*)"\s*\]
    )""",
    re.VERBOSE,
)

_NOWHERE = Target("", "")


class MalformedIf(ValueError):
    """Not an If header."""


class IfHeader(NamedTuple):
    states: tuple[StateList, ...]
    tokens: tuple[str, ...]
    """All tokens that are in it, wherever: the client knows them."""


def token_of(uri: str) -> str:
    """Return the engine's token of a lock token's URI; what is no token of ours stays as it is,
    and belongs to no lock."""
    return uri[len(SCHEME) :] if uri.startswith(SCHEME) else uri


def token_uri(token: str) -> str:
    return SCHEME + token


def parse_if(header: str, *, target: Target, host: str) -> IfHeader:
    """Read the header of a request for ``target``. Raises: MalformedIf."""
    states: list[StateList] = []
    tokens: list[str] = []
    place: Target = target
    tests: list[StateTest] | None = None
    tagged: bool | None = None
    negated = False
    lists_of_tag = 1
    for match in _tokens(header):
        kind = match.lastgroup
        if tests is None:
            if kind == "uri" and tagged is not False and lists_of_tag:
                place, tagged, lists_of_tag = _place(match["uri"], host), True, 0
            elif kind == "open":
                tests, tagged = [], bool(tagged)
            else:
                raise MalformedIf(f"unexpected {match[0].strip()!r}")
        elif kind == "not" and not negated:
            negated = True
        elif kind == "uri":
            token = token_of(match["uri"])
            tokens.append(token)
            tests.append(StateTest(token=token, negated=negated))
            negated = False
        elif kind == "etag":
            tests.append(StateTest(etag=match["etag"], negated=negated))
            negated = False
        elif kind == "close" and tests and not negated:
            states.append(StateList(bucket=place.bucket, key=place.path, tests=tuple(tests)))
            tests = None
            lists_of_tag += 1
        else:
            raise MalformedIf(f"unexpected {match[0].strip()!r}")
    if tests is not None or not states or not lists_of_tag:
        raise MalformedIf("it ends too early")
    return IfHeader(tuple(states), tuple(dict.fromkeys(tokens)))


def _tokens(header: str) -> list[re.Match[str]]:
    found = []
    position, end = 0, len(header.rstrip())
    while position < end:
        match = _TOKEN.match(header, position)
        if match is None:
            raise MalformedIf(f"unexpected {header[position : position + 20]!r}")
        found.append(match)
        position = match.end()
    return found


def _place(uri: str, host: str) -> Target:
    """Return what a tag names; what cannot be here has no state at all."""
    try:
        place = parse_destination(uri, host=host)
    except (BadTarget, NoName, OtherHost):
        return _NOWHERE
    return _NOWHERE if place.more else place
