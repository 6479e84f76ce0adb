"""The head of a request, read in one go where it is as clients send it.

``parse_head`` takes what can be read in only one way, which is nearly everything; of all else it
says nothing, and cheroot's reading by lines, with our ``HeaderReader``, decides. It never takes
what that would refuse, and reads what it takes as that would. Pure.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import NamedTuple

_REQUEST_LINE = re.compile(rb"([A-Z]{1,32}) (/(?!/)[-!$%&'()*+,./0-9:;=@A-Z_a-z~]*) HTTP/1\.1")
NAME_SIZE_MAX = 64
"""Longer names are not remembered."""


class Head(NamedTuple):
    method: bytes
    target: bytes
    """An absolute path, without query."""
    headers: dict[bytes, bytes]
    """By name in title case, each once."""


def parse_head(block: bytes) -> Head | None:
    """Return the head that ``block`` is, without its empty line; None where one has to look twice.

    Source: RFC 9112, sections 3 and 5.
    """
    first, *lines = block.split(b"\r\n")
    match = _REQUEST_LINE.fullmatch(first)
    if match is None or b"\0" in block or block.count(b"\n") != len(lines):
        return None
    headers: dict[bytes, bytes] = {}
    for line in lines:
        name, colon, value = line.partition(b":")
        if not colon or len(name) > NAME_SIZE_MAX or not (title := title_of(name)):
            return None
        if title in headers:
            return None
        headers[title] = value.strip()
    return Head(match[1], match[2], headers)


@lru_cache(maxsize=512)
def title_of(name: bytes) -> bytes:
    """Return the name in title case; empty for one that is none, or that needs a second look."""
    return name.title() if name and name.strip() == name and b"_" not in name else b""


def environ_key(name: bytes) -> str:
    """Return what a header is called in a WSGI environment."""
    return _environ_key(name) if len(name) <= NAME_SIZE_MAX else _environ_key.__wrapped__(name)


@lru_cache(maxsize=512)
def _environ_key(name: bytes) -> str:
    key = name.decode("latin-1").upper().replace("-", "_")
    return key if key in ("CONTENT_TYPE", "CONTENT_LENGTH") else f"HTTP_{key}"
