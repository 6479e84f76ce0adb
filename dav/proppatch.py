"""PROPPATCH: properties that clients set; all of a request's changes are made, or none.

Explorer's times are kept as they came and, like those of Nextcloud's clients, become the time of
modification that S3, the mount and other clients see (``mtime`` in the metadata).
Source: RFC 4918, section 9.2; MS-WDV, section 2.2.3 and following for Win32LastModifiedTime.
"""

from __future__ import annotations

import re
from typing import NamedTuple
from xml.etree.ElementTree import Element

from dav.conditions import write_conditions
from dav.errors import DavError, status_line
from dav.names import href
from dav.portal import Crossing
from dav.properties import LIVE, WRITABLE
from dav.request import DavRequest, Reply
from dav.times import parse_http_date
from dav.tree import find
from dav.xml import DAV, HEAD, LANGUAGE, XML_TYPE, children, empty_element, escape, read_xml
from dav.xml import standalone as as_text
from engine.errors import EntityTooLarge, NoSuchKey
from engine.types import PropertyChange

WIN32_MODIFIED = "{urn:schemas-microsoft-com:}Win32LastModifiedTime"
_OWNCLOUD_MODIFIED = DAV + "lastmodified"
"""Seconds since 1970: how rclone sets times at Nextcloud and ownCloud."""
_DAV_MODIFIED = DAV + "getlastmodified"

_SECONDS = re.compile(r"\d{1,11}(\.\d{1,9})?", re.ASCII)


class _Patch(NamedTuple):
    names: list[str]
    """All properties that are in the request, in order."""
    refused: frozenset[str]
    """Those that only the server sets."""
    changes: list[PropertyChange]
    modified: str | None
    """Time of modification, in seconds."""


async def proppatch(request: DavRequest, crossing: Crossing) -> Reply:
    body = await read_xml(request, crossing)
    if body is None or body.tag != DAV + "propertyupdate":
        raise DavError(400, "the body of PROPPATCH is a propertyupdate")
    patch = _read(body)
    found = await find(request.engine, request.target)
    if found is None:
        raise DavError(404)
    target = found.target
    if target.is_root:
        raise DavError(403, "the root has no properties of its own")
    where = href(
        target.bucket, target.path, folder=found.is_folder, beside_folder=target.beside_folder
    )
    if patch.refused:
        return _answer(where, patch, 403)
    try:
        await request.engine.properties.change(
            target.bucket,
            found.key,
            patch.changes,
            modified=patch.modified,
            conditions=write_conditions(request),
        )
    except EntityTooLarge:
        return _answer(where, patch, 507)
    except NoSuchKey:
        raise DavError(404) from None
    return _answer(where, patch, 200)


def _read(body: Element) -> _Patch:
    names: dict[str, None] = {}
    refused = set()
    changes = []
    modified = None
    for action in body:
        if action.tag not in (DAV + "set", DAV + "remove"):
            continue
        for prop in children(action, "prop"):
            for element in prop:
                name = element.tag
                names[name] = None
                sets = action.tag == DAV + "set"
                time = _seconds(element) if sets else None
                if time is not None:
                    modified = time
                    if name != WIN32_MODIFIED:
                        continue
                if name in LIVE and name not in WRITABLE:
                    refused.add(name)
                    continue
                language = prop.get(LANGUAGE) or action.get(LANGUAGE) or body.get(LANGUAGE)
                xml = as_text(element, language) if sets else None
                changes.append(PropertyChange(name, xml))
    if not names:
        raise DavError(400, "no properties")
    return _Patch(list(names), frozenset(refused), changes, modified)


def _seconds(element: Element) -> str | None:
    """Return the time of modification that the property says, or None when it says none."""
    text = (element.text or "").strip()
    if element.tag == _OWNCLOUD_MODIFIED and _SECONDS.fullmatch(text):
        return text
    if element.tag in (WIN32_MODIFIED, _DAV_MODIFIED):
        ms = parse_http_date(text)
        return None if ms is None or ms < 0 else str(ms // 1000)
    return None


def _answer(where: str, patch: _Patch, status: int) -> Reply:
    """Say how it went: when one property fails, the others fail for that (424)."""
    groups: dict[int, list[str]] = {}
    for name in patch.names:
        group = status if name in patch.refused or not patch.refused else 424
        groups.setdefault(group, []).append(name)
    parts = [f'{HEAD}<D:multistatus xmlns:D="DAV:"><D:response><D:href>{escape(where)}</D:href>']
    for group, names in groups.items():
        elements = "".join(empty_element(name) for name in names)
        condition = (
            "<D:error><D:cannot-modify-protected-property/></D:error>" if group == 403 else ""
        )
        parts.append(
            f"<D:propstat><D:prop>{elements}</D:prop>"
            f"<D:status>HTTP/1.1 {status_line(group)}</D:status>{condition}</D:propstat>"
        )
    parts.append("</D:response></D:multistatus>")
    return Reply(207, [("Content-Type", XML_TYPE)], "".join(parts).encode())
