"""XML bodies of requests, read safely, and pieces of XML for answers.

No document type, so no entities; a bound on the size comes with the request's limits.
"""

from __future__ import annotations

import re
from html import escape as _escape
from typing import TYPE_CHECKING
from xml.etree.ElementTree import Element, ParseError, tostring

from defusedxml import DefusedXmlException
from defusedxml.ElementTree import fromstring

from dav.errors import DavError
from dav.portal import Crossing
from dav.request import DavRequest

if TYPE_CHECKING:
    from collections.abc import Iterator

HEAD = '<?xml version="1.0" encoding="utf-8"?>\n'
XML_TYPE = "application/xml; charset=utf-8"
DAV = "{DAV:}"
LANGUAGE = "{http://www.w3.org/XML/1998/namespace}lang"

_ILLEGAL = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")

_SPECIAL = re.compile(f"[&<>\"']|{_ILLEGAL.pattern}")


def escape(text: str) -> str:
    """Return text for XML; characters that XML cannot have become U+FFFD."""
    if _SPECIAL.search(text) is None:
        return text
    return _escape(_ILLEGAL.sub("\ufffd", text))


def split_name(name: str) -> tuple[str, str]:
    """Return (namespace, local name) of ``{namespace}name``."""
    if name.startswith("{"):
        namespace, _, local = name[1:].partition("}")
        return namespace, local
    return "", name


def empty_element(name: str) -> str:
    """Return an element of that name, for use where ``D`` is bound to ``DAV:``."""
    namespace, local = split_name(name)
    if namespace == "DAV:":
        return f"<D:{local}/>"
    if not namespace:
        return f"<{local}/>"
    return f'<x:{local} xmlns:x="{escape(namespace)}"/>'


def standalone(element: Element, language: str | None = None) -> str:
    """Return an element as text that stands for itself, with its language if it has one from
    outside (RFC 4918, section 4.3)."""
    if language is not None and LANGUAGE not in element.attrib:
        element.set(LANGUAGE, language)
    element.tail = None
    text: str = tostring(element, encoding="unicode")
    return text


def children(element: Element, name: str) -> Iterator[Element]:
    return (child for child in element if child.tag == DAV + name)


async def read_xml(request: DavRequest, crossing: Crossing) -> Element | None:
    """Return the body's root element, or None when there is no body. Raises: DavError."""
    limit = request.config.limits.xml_size
    if (request.body.length or 0) > limit:
        raise DavError(413, f"XML has at most {limit} bytes")
    data = await request.read(crossing, limit + 1)
    if len(data) > limit:
        raise DavError(413, f"XML has at most {limit} bytes")
    if not data:
        return None
    try:
        root: Element = fromstring(data, forbid_dtd=True)
    except (ParseError, DefusedXmlException, ValueError, LookupError) as error:
        # LookupError: an encoding that nobody knows.
        raise DavError(400, f"malformed XML: {error}") from None
    return root
