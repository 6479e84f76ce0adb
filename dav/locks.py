"""LOCK and UNLOCK. Locks are the engine's; here is how they are asked for and shown.

Source: RFC 4918, sections 6, 7, 9.10, 9.11, 10.5, 10.7 and 14.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from xml.etree.ElementTree import Element

from dav.conditions import write_conditions
from dav.errors import DavError
from dav.ifheader import token_of, token_uri
from dav.names import href
from dav.portal import Crossing
from dav.request import DavRequest, Reply
from dav.tree import find, has_parent
from dav.xml import DAV, HEAD, XML_TYPE, children, escape, read_xml, standalone
from engine.errors import Locked, NoSuchKey, NoSuchLock
from engine.types import Conditions, LockInfo, LockRequest

DEFAULT_S = 3600
TIMEOUT_S_MAX = 24 * 3600
"""Of a client that died nobody else can give the locks back; so a lock that lives lives by
being refreshed."""

SUPPORTED = "".join(
    f"<D:lockentry><D:lockscope><D:{scope}/></D:lockscope>"
    "<D:locktype><D:write/></D:locktype></D:lockentry>"
    for scope in ("exclusive", "shared")
)

_CODED_URL = re.compile(r"<([^<>\s]+)>")


async def lock(request: DavRequest, crossing: Crossing) -> Reply:
    """Take a lock, or without a body refresh one."""
    target = request.target
    if target.is_root:
        raise DavError(403, "the root cannot be locked")
    body = await read_xml(request, crossing)
    conditions = write_conditions(request)
    timeout_s = parse_timeout(request.header("Timeout"))
    found = await find(request.engine, target)
    folder = found is not None and found.is_folder
    key = target.folder_key if folder else target.path
    if body is None:
        return await _refresh(request, key, timeout_s, conditions)
    depth = (request.header("Depth") or "infinity").strip().lower()
    if depth not in ("0", "infinity"):
        raise DavError(400, "Depth: 0 or infinity")
    if found is None:
        if target.slash or target.beside_folder:
            raise DavError(409, "a file's name has no slash or mark at its end")
        if not await has_parent(request.engine, target):
            raise DavError(409, "the folder does not exist")
    wanted = _read_lockinfo(body, request.user, deep=depth == "infinity", timeout_s=timeout_s)
    try:
        info, created = await request.engine.locking.lock(
            target.bucket, key, wanted, conditions=conditions
        )
    except Locked as error:
        raise _conflict(error, key) from None
    except NoSuchKey:
        raise DavError(412, "If-Match does not hold") from None
    headers = [("Lock-Token", f"<{token_uri(info.token)}>")]
    return _shown(201 if created else 200, headers, info)


async def _refresh(request: DavRequest, key: str, timeout_s: int, conditions: Conditions) -> Reply:
    tokens = conditions.lock_tokens
    if not tokens:
        raise DavError(400, "a LOCK without a body refreshes the lock that If names")
    for token in tokens:
        try:
            info = await request.engine.locking.refresh(
                request.target.bucket, key, token, timeout_s, conditions=conditions
            )
        except NoSuchLock:
            continue
        return _shown(200, [], info)
    raise DavError(412, condition="lock-token-matches-request-uri")


async def unlock(request: DavRequest, crossing: Crossing) -> Reply:
    target = request.target
    match = _CODED_URL.fullmatch((request.header("Lock-Token") or "").strip())
    if match is None:
        raise DavError(400, "no Lock-Token")
    found = await find(request.engine, target)
    if found is None or target.is_root:
        raise DavError(409, condition="lock-token-matches-request-uri")
    await request.engine.locking.check(write_conditions(request).states)
    await request.engine.locking.unlock(
        target.bucket, found.key, token_of(match[1]), principal=request.user
    )
    return Reply(204)


def parse_timeout(header: str | None) -> int:
    """Return seconds: the first of the wishes that we understand, within our bound."""
    for wish in (header or "").split(","):
        name, dash, seconds = wish.strip().partition("-")
        if name.lower() == "infinite":
            return TIMEOUT_S_MAX
        if name.lower() == "second" and dash and seconds.isascii() and seconds.isdigit():
            return max(1, min(int(seconds[:12]), TIMEOUT_S_MAX))
    return DEFAULT_S


def _read_lockinfo(body: Element, user: str, *, deep: bool, timeout_s: int) -> LockRequest:
    if body.tag != DAV + "lockinfo":
        raise DavError(400, "the body of LOCK is a lockinfo")
    scopes = [child.tag for scope in children(body, "lockscope") for child in scope]
    types = [child.tag for kind in children(body, "locktype") for child in kind]
    if types != [DAV + "write"] or scopes not in ([DAV + "exclusive"], [DAV + "shared"]):
        raise DavError(400, "a lock is a write lock, exclusive or shared")
    owner = next(children(body, "owner"), None)
    return LockRequest(
        principal=user,
        owner="" if owner is None else standalone(owner),
        exclusive=scopes == [DAV + "exclusive"],
        deep=deep,
        timeout_s=timeout_s,
    )


def _conflict(error: Locked, key: str) -> DavError:
    where = lock_href(error.bucket, error.root)
    below = error.root != key and (not key or (key.endswith("/") and error.root.startswith(key)))
    if not below:
        return DavError(423, condition="no-conflicting-lock", hrefs=[where])
    # RFC 4918, section 9.10.9: what stands in the way is a member of the folder.
    document = (
        f'{HEAD}<D:multistatus xmlns:D="DAV:">'
        f"<D:response><D:href>{escape(where)}</D:href>"
        "<D:status>HTTP/1.1 423 Locked</D:status></D:response>"
        f"<D:response><D:href>{escape(lock_href(error.bucket, key))}</D:href>"
        "<D:status>HTTP/1.1 424 Failed Dependency</D:status></D:response></D:multistatus>"
    )
    return DavError(207, document=document)


def lock_href(bucket: str, root: str) -> str:
    return href(bucket, root.removesuffix("/"), folder=not root or root.endswith("/"))


def active_locks(locks: Sequence[LockInfo], now_ms: int) -> str:
    """Return what is inside of ``lockdiscovery``."""
    return "".join(_active_lock(info, now_ms) for info in locks)


def _active_lock(info: LockInfo, now_ms: int) -> str:
    scope = "exclusive" if info.exclusive else "shared"
    left_s = max(1, (info.expires_ms - now_ms + 999) // 1000)
    return (
        f"<D:activelock><D:locktype><D:write/></D:locktype>"
        f"<D:lockscope><D:{scope}/></D:lockscope>"
        f"<D:depth>{'infinity' if info.deep else '0'}</D:depth>{info.owner}"
        f"<D:timeout>Second-{left_s}</D:timeout>"
        f"<D:locktoken><D:href>{escape(token_uri(info.token))}</D:href></D:locktoken>"
        f"<D:lockroot><D:href>{escape(lock_href(info.bucket, info.root))}</D:href></D:lockroot>"
        "</D:activelock>"
    )


def _shown(status: int, headers: list[tuple[str, str]], info: LockInfo) -> Reply:
    granted = info.expires_ms - info.timeout_s * 1000
    document = (
        f'{HEAD}<D:prop xmlns:D="DAV:"><D:lockdiscovery>{active_locks([info], granted)}'
        "</D:lockdiscovery></D:prop>"
    )
    return Reply(status, [*headers, ("Content-Type", XML_TYPE)], document.encode())
