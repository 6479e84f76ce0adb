"""PUT: bytes go from the socket into the engine's buffers, and are committed when all came.

The engine pulls: it hands a buffer to the thread of the request, which fills it from the socket.
What breaks off, or has fewer bytes than were announced, leaves nothing behind.
"""

from __future__ import annotations

import base64
import binascii
import re
import stat

from dav.clients import is_mac_file
from dav.conditions import write_conditions
from dav.config import MacFiles
from dav.errors import DavError
from dav.portal import Crossing
from dav.request import DavRequest, Reply
from dav.tree import find, has_parent
from engine.errors import BadDigest, IncompleteBody, NoSuchKey
from engine.meta.records import Checksum, VersionRecord
from engine.times import MTIME
from engine.types import OBJECT_SIZE_MAX, Attributes, Digests, Pairs

CHECKSUM = "CRC64NVME"
_GIVEN = ("Content-Type", "Content-Encoding", "Content-Language")
_OF_THE_BYTES = frozenset({"mtime", "md5chksum", "s3cmd-attrs"})
"""User metadata that goes with the bytes: their time, and digests that other programs keep."""
_SECONDS = re.compile(r"\d{1,11}(\.\d{1,9})?", re.ASCII)


class _BodySource:
    """The body as the engine's ``Source``."""

    def __init__(self, request: DavRequest, crossing: Crossing, expected: int | None) -> None:
        self._request = request
        self._crossing = crossing
        self._expected = expected

    async def readinto(self, buffer: memoryview) -> int:
        filled = await self._request.readinto(self._crossing, buffer)
        received = self._request.body.received
        if not filled and self._expected is not None and received != self._expected:
            raise IncompleteBody(self._expected, received)
        return filled


async def put(request: DavRequest, crossing: Crossing) -> Reply | None:
    """Store the body as the target's new version: 201 for a new one, 204 for a replaced."""
    target = request.target
    if request.header("Content-Range") is not None:
        # RFC 9110, section 14.5: a server that ignored it would store a part as the whole.
        raise DavError(400, "parts of a file cannot be written")
    if target.is_root or target.is_bucket:
        raise DavError(405, "a folder has no content", headers=[("Allow", FOLDER_ALLOW)])
    if is_mac_file(target.name) and request.config.mac_files is not MacFiles.KEEP:
        return await _mac_file(request, crossing)
    found = await find(request.engine, target)
    if found is not None and found.is_folder:
        raise DavError(405, "a folder has no content", headers=[("Allow", FOLDER_ALLOW)])
    if found is None and (target.slash or target.beside_folder):
        raise DavError(409, "a file's name has no slash or mark at its end")
    if found is None and not await has_parent(request.engine, target):
        raise DavError(409, "the folder does not exist")
    expected = expected_length(request)
    md5 = _content_md5(request)

    def check(digests: Digests) -> list[Checksum]:
        if md5 is not None and digests["MD5"] != md5:
            raise BadDigest("Content-MD5")
        return [Checksum(algorithm=CHECKSUM, value=digests[CHECKSUM])]

    modified = modification_time(request)
    attributes = _attributes(request, None if found is None else found.record, modified)
    try:
        info = await request.engine.put(
            target.bucket,
            target.path,
            _BodySource(request, crossing, expected),
            size=request.body.length,
            algorithms=frozenset({CHECKSUM}),
            attributes=attributes,
            check=check,
            conditions=write_conditions(request),
        )
    except NoSuchKey:
        # If-Match on what is not there (RFC 9110, section 13.1.1).
        raise DavError(412, "If-Match does not hold") from None
    headers = [("ETag", f'"{info.etag}"')]
    if modified:
        headers.append(("X-OC-MTime", "accepted"))
    return Reply(201 if found is None else 204, headers)


FOLDER_ALLOW = "OPTIONS, GET, HEAD, DELETE, PROPFIND, PROPPATCH, COPY, MOVE, LOCK, UNLOCK"


def expected_length(request: DavRequest) -> int | None:
    """Return how many bytes the body must have; None when only its last chunk says.

    Finder sends chunks, and the length as X-Expected-Entity-Length.
    """
    if request.body.length is not None:
        expected: int | None = request.body.length
    else:
        text = request.header("X-Expected-Entity-Length")
        if text is not None and not (text.isascii() and text.isdigit() and len(text) < 19):
            raise DavError(400, "malformed X-Expected-Entity-Length")
        expected = None if text is None else int(text)
    if expected is not None and expected > OBJECT_SIZE_MAX:
        raise DavError(413, f"at most {OBJECT_SIZE_MAX} bytes")
    return expected


def modification_time(request: DavRequest) -> Pairs:
    """Return the metadata that keeps X-OC-Mtime (seconds), as rclone and the mount do."""
    text = request.header("X-OC-Mtime")
    if text is None or not _SECONDS.fullmatch(text):
        return []
    return [(MTIME, text)]


def _attributes(request: DavRequest, replaced: VersionRecord | None, modified: Pairs) -> Attributes:
    """Return what is said about the new version, by the client or by the one it replaces.

    A desktop client says nothing about what others keep with a file, as its mode, tags and type;
    so saving it there leaves that alone, as saving it through the mount does.
    """
    given = [(name.lower(), request.header(name)) for name in _GIVEN]
    headers = {name: value for name, value in given if value}
    if replaced is None:
        return Attributes(headers=list(headers.items()), metadata=modified)
    old = [(name, value) for name, value in replaced.headers if name != "content-encoding"]
    metadata = [
        (name, value)
        for name, value in replaced.metadata
        if name not in _OF_THE_BYTES and not (name == "mode" and _is_link(value))
    ]
    return Attributes(
        headers=list({**dict(old), **headers}.items()),
        metadata=[*metadata, *modified],
        tags=replaced.tags,
    )


def _is_link(mode: str) -> bool:
    try:
        return stat.S_ISLNK(int(mode, 8))
    except ValueError:
        return False


def _content_md5(request: DavRequest) -> bytes | None:
    text = request.header("Content-MD5")
    if text is None:
        return None
    try:
        digest = base64.b64decode(text, validate=True)
    except binascii.Error:
        digest = b""
    if len(digest) != 16:
        raise DavError(400, "malformed Content-MD5")
    return digest


async def _mac_file(request: DavRequest, crossing: Crossing) -> Reply:
    """Refuse what macOS puts beside a file, or take it and keep nothing."""
    if request.config.mac_files is MacFiles.REFUSE:
        raise DavError(403, "files of macOS are refused here")
    buffer = memoryview(bytearray(64 * 1024))
    while await request.readinto(crossing, buffer):
        pass
    return Reply(201)
