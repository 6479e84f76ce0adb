"""PROPFIND: properties of a file, of a folder, and of its members, sent as they are read.

Members come page by page, each from one range read; what PROPPATCH and LOCK left with them from
one more each, which mostly finds nothing.
Source: RFC 4918, section 9.1.
"""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import msgspec

from dav.errors import DavError
from dav.names import Shown, Target, href, href_of, more_name, shown, shown_name
from dav.portal import Crossing
from dav.properties import (
    ALLPROP,
    QUOTA,
    Member,
    Surroundings,
    all_names,
    found_xml,
)
from dav.request import DavRequest, Reply
from dav.tree import Resource, find
from dav.xml import DAV, HEAD, XML_TYPE, children, empty_element, escape, read_xml
from engine.errors import NoSuchBucket
from engine.paths import PathEntry
from engine.times import shown_ms
from engine.types import BucketInfo, LockInfo, Pairs

PAGE = 500
FEW = 16
"""So many members take less time than crossing into the thread and back."""
NAMES_MAX = 200
"""Properties that one request may ask for by name."""

_OPEN = f'{HEAD}<D:multistatus xmlns:D="DAV:">'
_CLOSE = "</D:multistatus>"
_OK = "<D:status>HTTP/1.1 200 OK</D:status></D:propstat>"
_NOT_FOUND = "<D:status>HTTP/1.1 404 Not Found</D:status></D:propstat>"
_ALLPROP = frozenset(ALLPROP)
_LOCKS = DAV + "lockdiscovery"

_headers = msgspec.msgpack.Decoder(list[tuple[str, str]]).decode


class Depth(NamedTuple):
    itself: bool
    members: bool
    infinite: bool = False


_DEPTHS = {
    "0": Depth(True, False),
    "1": Depth(True, True),
    "1,noroot": Depth(False, True),
    "infinity": Depth(True, True, True),
    "infinity,noroot": Depth(False, True, True),
}
"""``noroot`` is Microsoft's (MS-WDV, section 2.2.2)."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a request asks for."""

    names: tuple[str, ...]
    """Named properties, or those beside all (``include``)."""
    all: bool = False
    names_only: bool = False

    @property
    def quota(self) -> bool:
        return any(name in QUOTA for name in self.names)

    @property
    def locks(self) -> bool:
        return self.all or _LOCKS in self.names


async def propfind(request: DavRequest, crossing: Crossing) -> Reply | None:
    depth = _DEPTHS.get((request.header("Depth") or "infinity").replace(" ", "").lower())
    if depth is None:
        raise DavError(400, "Depth: 0, 1 or infinity")
    wanted = await _read_wanted(request, crossing)
    if depth.infinite and not request.config.infinite_depth:
        raise DavError(403, condition="propfind-finite-depth")
    found = await find(request.engine, request.target)
    if found is None:
        raise DavError(404)
    room = await request.room.figures(found.bucket) if wanted.quota else None
    around = Surroundings(now_ms=time.time_ns() // 1_000_000, room=room)
    if not found.is_folder or not depth.members:
        member = await _resource(request, found, wanted)
        parts = [_OPEN, _response(member, wanted, around), _CLOSE]
        return Reply(207, [("Content-Type", XML_TYPE)], "".join(parts).encode())
    return await _stream(request, crossing, found, (depth, wanted, around))


async def _stream(
    request: DavRequest,
    crossing: Crossing,
    found: Resource,
    asked: tuple[Depth, Wanted, Surroundings],
) -> Reply | None:
    """Send page after page; an answer of one page goes out whole, with its length."""
    depth, wanted, around = asked
    body = _OPEN.encode()
    if depth.itself:
        itself = await _resource(request, found, wanted)
        body += _responses([itself], wanted, around)
    headers = [("Content-Type", XML_TYPE)]
    begun = False
    async with aclosing(_pages(request, found, wanted, infinite=depth.infinite)) as pages:
        async for members, more in pages:
            if len(members) <= FEW:
                body += _responses(members, wanted, around)
            else:
                # Thousands of lines are written by the thread of the request, not by all's loop.
                body += await crossing.in_thread(partial(_responses, members, wanted, around))
            if more:
                if not begun:
                    await request.begin(crossing, 207, headers)
                    begun = True
                await request.send(crossing, body)
                body = b""
    body += _CLOSE.encode()
    if not begun:
        return Reply(207, headers, body)
    await request.send(crossing, body)
    return None


def _responses(members: Sequence[Member], wanted: Wanted, around: Surroundings) -> bytes:
    return "".join([_response(member, wanted, around) for member in members]).encode()


def _response(member: Member, wanted: Wanted, around: Surroundings) -> str:
    names: Sequence[str] = wanted.names
    if wanted.all:
        # All that there are: what it does not have is not missing.
        others = (*member.dead, *wanted.names)
        names = (*ALLPROP, *dict.fromkeys(name for name in others if name not in _ALLPROP))
    if wanted.names_only:
        found = "".join(empty_element(name) for name in all_names(member, around))
        missing = ""
    else:
        found, missing = found_xml(member, names, around)
    text = f"<D:response><D:href>{escape(member.href)}</D:href>"
    if found or not missing:
        text += f"<D:propstat><D:prop>{found}</D:prop>{_OK}"
    if missing and not wanted.all:
        text += f"<D:propstat><D:prop>{missing}</D:prop>{_NOT_FOUND}"
    return text + "</D:response>"


async def _read_wanted(request: DavRequest, crossing: Crossing) -> Wanted:
    body = await read_xml(request, crossing)
    if body is None:
        return Wanted((), all=True)
    if body.tag != DAV + "propfind":
        raise DavError(400, "the body of PROPFIND is a propfind")
    kinds = [child.tag for child in body if child.tag in _KINDS]
    if len(kinds) != 1:
        raise DavError(400, "one of prop, propname and allprop")
    if kinds[0] == DAV + "propname":
        return Wanted((), names_only=True)
    parent = "prop" if kinds[0] == DAV + "prop" else "include"
    names = [name.tag for element in children(body, parent) for name in element]
    names = list(dict.fromkeys(names))
    if len(names) > NAMES_MAX:
        raise DavError(400, f"at most {NAMES_MAX} properties at once")
    return Wanted(tuple(names), all=kinds[0] == DAV + "allprop")


_KINDS = frozenset({DAV + "prop", DAV + "propname", DAV + "allprop"})


async def _resource(request: DavRequest, found: Resource, wanted: Wanted) -> Member:
    """Return the resource that was found itself."""
    target, record = found.target, found.record
    if found.bucket is None:
        return Member("/", request.config.realm, True, 0, 0)
    if target.more:
        return _more(Shown(more_name(target), href_of(target)), found.bucket)
    where = href(
        target.bucket, target.path, folder=found.is_folder, beside_folder=target.beside_folder
    )
    dead = dict(await request.engine.properties.get(target.bucket, found.key))
    locks: list[LockInfo] = []
    if wanted.locks:
        locks = await request.engine.locking.around(target.bucket, found.key)
    name = (
        shown_name(target.path, beside_folder=target.beside_folder)
        if target.path
        else target.bucket
    )
    modified_ms = found.bucket.created_ms
    if record is None:
        return Member(where, name, True, modified_ms, modified_ms, dead=dead, locks=locks)
    return Member(
        href=where,
        name=name,
        is_folder=found.is_folder,
        created_ms=record.modified_ms,
        modified_ms=shown_ms(record.modified_ms, record.metadata),
        size=record.size,
        etag=record.etag,
        headers=record.headers,
        dead=dead,
        locks=locks,
    )


async def _pages(
    request: DavRequest, found: Resource, wanted: Wanted, *, infinite: bool
) -> AsyncGenerator[tuple[list[Member], bool], None]:
    """Yield members, page by page, and whether more will follow."""
    folders = [found.target]
    while folders:
        folder = folders.pop()
        after = ""
        more: list[str] = []
        while True:
            members, inner, next_after = await _page(request, folder, after, wanted, more)
            if infinite:
                folders += reversed(inner)
            yield members, next_after is not None or bool(folders)
            if next_after is None:
                break
            after = next_after


async def _page(
    request: DavRequest, folder: Target, after: str, wanted: Wanted, more_before: list[str]
) -> tuple[list[Member], list[Target], str | None]:
    """Return members behind ``after``, those of them that are folders, and where to go on.

    ``more_before``: the last ``%more`` folder that an earlier page has shown; kept here.
    """
    engine = request.engine
    if folder.is_root:
        buckets, more = await engine.list_buckets(
            after=after, limit=PAGE, only=request.access.buckets
        )
        members = [
            Member(
                href(bucket.name, "", folder=True),
                bucket.name,
                True,
                bucket.created_ms,
                bucket.created_ms,
                dead=dict(await engine.properties.get(bucket.name, "")),
            )
            for bucket in buckets
        ]
        inner = [Target(bucket.name, "") for bucket in buckets]
        return members, inner, buckets[-1].name if more else None
    try:
        page = await engine.paths.page(folder.bucket, folder.folder_key, after, PAGE)
    except NoSuchBucket:
        # Deleted while it was listed.
        return [], [], None
    entries = [entry for entry in page.entries if entry.key != folder.folder_key]
    if not entries:
        return [], [], page.next_after
    # Of a %more folder the members are those of the folder that it is in.
    above = folder.parent.folder_key if folder.more else folder.folder_key
    span = (folder.bucket, above, entries[0].key, entries[-1].key)
    dead = await engine.properties.of_members(*span)
    around: list[LockInfo] = []
    locks: dict[str, list[LockInfo]] = {}
    if wanted.locks:
        around = [lock for lock in await engine.locking.around(folder.bucket, above) if lock.deep]
        locks = await engine.locking.of_members(*span)
    members = []
    inner = []
    for entry in entries:
        key = entry.key
        found = shown(folder, key, is_folder=entry.is_directory, beside_folder=entry.shadowed)
        if found is None:
            continue
        if found.more is not None:
            if more_before != [found.href]:
                more_before[:] = [found.href]
                members.append(_more(found, page.bucket))
                inner.append(found.more)
            continue
        locked = [*around, *locks.get(key, [])]
        members.append(_member(page.bucket, entry, found, dead.get(key, []), locked))
        if entry.is_directory:
            inner.append(Target(folder.bucket, key.removesuffix("/")))
    return members, inner, page.next_after


def _more(found: Shown, bucket: BucketInfo) -> Member:
    """Return a folder that holds what goes on behind a piece of over-long names."""
    return Member(found.href, found.name, True, bucket.created_ms, bucket.created_ms)


def _member(
    bucket: BucketInfo, entry: PathEntry, found: Shown, dead: Pairs, locks: Sequence[LockInfo]
) -> Member:
    version = entry.version
    if version is None:
        created_ms = bucket.created_ms
        return Member(
            found.href, found.name, True, created_ms, created_ms, dead=dict(dead), locks=locks
        )
    return Member(
        href=found.href,
        name=found.name,
        is_folder=entry.is_directory,
        created_ms=version.modified_ms,
        modified_ms=shown_ms(version.modified_ms, version.metadata),
        size=version.size,
        etag=version.etag,
        headers=_headers(version.headers),
        dead=dict(dead),
        locks=locks,
    )
