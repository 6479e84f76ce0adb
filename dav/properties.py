"""Live properties: what the store itself knows of a file or folder, as XML. Pure.

Source: RFC 4918, section 15; RFC 4331 for the quota.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

from dav.files import FOLDER_TYPE, type_of
from dav.locks import SUPPORTED, active_locks
from dav.times import http_date, iso_date
from dav.xml import DAV, empty_element, escape
from engine.types import LockInfo, Pairs


class Member(NamedTuple):
    """A file or folder as PROPFIND shows it."""

    href: str
    name: str
    is_folder: bool
    created_ms: int
    modified_ms: int
    """To be shown; see ``shown_ms``."""
    size: int = 0
    etag: str = ""
    headers: Pairs = []  # noqa: RUF012  nobody changes it
    dead: Mapping[str, str] = {}
    locks: Sequence[LockInfo] = ()


class Surroundings(NamedTuple):
    """What is the same for all members of one answer."""

    now_ms: int
    room: tuple[int, int] | None
    """(available, used) bytes, if they are known and asked for."""


def _creationdate(member: Member, _: Surroundings) -> str | None:
    return iso_date(member.created_ms)


def _displayname(member: Member, _: Surroundings) -> str | None:
    return escape(member.name)


def _getcontentlanguage(member: Member, _: Surroundings) -> str | None:
    for name, value in member.headers:
        if name == "content-language":
            return escape(value)
    return None


def _getcontentlength(member: Member, _: Surroundings) -> str | None:
    return None if member.is_folder else str(member.size)


def _getcontenttype(member: Member, _: Surroundings) -> str | None:
    return FOLDER_TYPE if member.is_folder else escape(type_of(member.headers, member.name))


def _getetag(member: Member, _: Surroundings) -> str | None:
    return None if member.is_folder else f'"{escape(member.etag)}"'


def _getlastmodified(member: Member, _: Surroundings) -> str | None:
    return http_date(member.modified_ms)


def _lockdiscovery(member: Member, around: Surroundings) -> str | None:
    return active_locks(member.locks, around.now_ms)


def _resourcetype(member: Member, _: Surroundings) -> str | None:
    return "<D:collection/>" if member.is_folder else ""


def _supportedlock(member: Member, _: Surroundings) -> str | None:
    return SUPPORTED


def _available(member: Member, around: Surroundings) -> str | None:
    return None if around.room is None or not member.is_folder else str(around.room[0])


def _used(member: Member, around: Surroundings) -> str | None:
    return None if around.room is None or not member.is_folder else str(around.room[1])


Live = Callable[[Member, Surroundings], str | None]

LIVE: Mapping[str, Live] = {
    DAV + "creationdate": _creationdate,
    DAV + "displayname": _displayname,
    DAV + "getcontentlanguage": _getcontentlanguage,
    DAV + "getcontentlength": _getcontentlength,
    DAV + "getcontenttype": _getcontenttype,
    DAV + "getetag": _getetag,
    DAV + "getlastmodified": _getlastmodified,
    DAV + "lockdiscovery": _lockdiscovery,
    DAV + "resourcetype": _resourcetype,
    DAV + "supportedlock": _supportedlock,
    DAV + "quota-available-bytes": _available,
    DAV + "quota-used-bytes": _used,
}
"""Property → what is inside of its element; None: this resource does not have it."""

QUOTA = frozenset({DAV + "quota-available-bytes", DAV + "quota-used-bytes"})
"""Only for those who ask for them by name (RFC 4331, section 3 and 4)."""

ALLPROP = tuple(name for name in LIVE if name not in QUOTA)

WRITABLE = frozenset({DAV + "displayname", DAV + "getcontentlanguage"})
"""Kept as dead properties once somebody sets them, and shown in place of the live ones."""


def _element(name: str, inside: str) -> str:
    local = name[len(DAV) :]
    return f"<D:{local}>{inside}</D:{local}>" if inside else f"<D:{local}/>"


def found_xml(member: Member, names: Iterable[str], around: Surroundings) -> tuple[str, str]:
    """Return the elements of the properties that the member has, and empty ones of the others."""
    found: list[str] = []
    missing: list[str] = []
    dead = member.dead
    for name in names:
        if name in dead:
            found.append(dead[name])
            continue
        live = LIVE.get(name)
        inside = None if live is None else live(member, around)
        if inside is None:
            missing.append(empty_element(name))
        else:
            found.append(_element(name, inside))
    return "".join(found), "".join(missing)


def all_names(member: Member, around: Surroundings) -> list[str]:
    """Return the names of what ``allprop`` shows: all that the member has but the quota."""
    live = [
        name for name in ALLPROP if name in member.dead or LIVE[name](member, around) is not None
    ]
    return [*live, *(name for name in member.dead if name not in LIVE)]
