"""Names: between the target of a request and a bucket with a path in it. Pure.

``/bucket/folder/file`` is the key ``folder/file`` of the bucket. What cannot be a path component
has the same escape as in the mount (``engine.names``), percent-encoded as everything in a URL.
A path cannot leave the buckets by any trick of dots or encoding: components are taken apart
before they are decoded, decoded once, and then looked at as names, never as directions.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import NamedTuple
from urllib.parse import quote, unquote_to_bytes, urlsplit

from engine.names import (
    NAME_BYTES_MAX,
    Mark,
    NotUtf8,
    ReservedName,
    cut,
    decode,
    encode,
    goes_on,
    join,
    piece_behind,
)

SAFE = "-._~!$'()*,"
"""Beside letters and digits. What stands here is compared byte for byte by clients that do not
decode: davfs2 and old versions of Nautilus. Everything else is safest encoded."""

REMEMBERED_MAX = 512
"""Clients ask for the same several times running; longer targets are read each time."""

NEVER_LONG = 48
"""A name of so many characters has one piece, whatever they are and whatever mark it has."""

_BAD_PERCENT = re.compile(r"%(?![0-9A-Fa-f]{2})")


class BadTarget(ValueError):
    """No URL of ours: broken encoding, a fragment, no UTF-8, another scheme."""


class NoName(ValueError):
    """No key can have the name: what has it does not exist and cannot be made."""


class NameTooLong(NoName):
    """A name has more bytes than file systems take; its key has another (``%more``)."""


class OtherHost(ValueError):
    """A destination on another server."""


class Target(NamedTuple):
    """What a request is about. The root has no bucket; a bucket has no path."""

    bucket: str
    path: str
    """The key without the slash at its end."""
    beside_folder: bool = False
    """The file, not the folder, of that path (``%file``)."""
    slash: bool = False
    """The target ended with a slash."""
    pieces: tuple[str, ...] = ()
    """Of the last component, where this is a ``%more`` folder: it holds all keys whose component
    at this place begins so and is too long for one name."""

    @property
    def more(self) -> bool:
        """Whether it is a folder that no key has, but a piece of over-long names."""
        return bool(self.pieces)

    @property
    def is_root(self) -> bool:
        return not self.bucket

    @property
    def is_bucket(self) -> bool:
        return bool(self.bucket) and not self.path

    @property
    def folder_key(self) -> str:
        """Prefix of all that is in the folder; ``""`` for a bucket."""
        return self.path + "/" if self.path and not self.more else self.path

    @property
    def parent(self) -> Target:
        if not self.path:
            return Target("", "")
        return Target(self.bucket, self.path.rpartition("/")[0])

    @property
    def name(self) -> str:
        return self.path.rpartition("/")[2] if self.path else self.bucket


def parse_target(uri: str) -> Target:
    """Read the target of a request line: an absolute path, or an absolute URL.

    Slashes that follow each other count as one.
    Raises: BadTarget, NoName.
    """
    return _parse_known(uri) if len(uri) <= REMEMBERED_MAX else _parse(uri)


def _parse(uri: str) -> Target:
    if "#" in uri:
        raise BadTarget("a fragment is no part of a request's target")
    if not uri.startswith("/"):
        if "://" not in uri:
            raise BadTarget("a target is an absolute path")
        uri = uri.partition("://")[2]
        slash = uri.find("/")
        uri = uri[slash:] if slash >= 0 else "/"
    path = uri.partition("?")[0]
    if _BAD_PERCENT.search(path):
        raise BadTarget("broken percent-encoding")
    parts = [part for part in path.split("/") if part]
    if not parts:
        return Target("", "", slash=True)
    names = [unquote_to_bytes(part.encode("latin-1", "replace")) for part in parts]
    if any(b"/" in name or b"\0" in name for name in names):
        raise NoName
    return _target(names, slash=path.endswith("/"))


_parse_known = lru_cache(maxsize=512)(_parse)


def _target(names: list[bytes], *, slash: bool) -> Target:
    beside_folder = False
    components = []
    pieces: list[str] = []
    try:
        bucket = names[0].decode()
        for position, name in enumerate(names[1:], 2):
            if len(name) > NAME_BYTES_MAX:
                raise NameTooLong(f"a name has at most {NAME_BYTES_MAX} bytes")
            text, mark = decode(name)
            if mark is Mark.MORE:
                pieces.append(text)
                continue
            if mark is Mark.FILE or pieces or len(text) > NEVER_LONG:
                text, beside_folder = join([*pieces, text], mark)
                pieces = []
                if beside_folder and (position < len(names) or slash):
                    raise NoName
            components.append(text)
    except (NotUtf8, UnicodeDecodeError):
        raise BadTarget("no UTF-8") from None
    except ReservedName:
        raise NoName from None
    if bucket in (".", ".."):
        raise NoName
    if pieces:
        text = "".join(pieces)
        begun = 0
        for piece in pieces:
            if not goes_on(text[: begun + len(piece)], begun):
                raise NoName
            begun += len(piece)
        components.append(text)
    return Target(bucket, "/".join(components), beside_folder, slash, tuple(pieces))


def parse_destination(header: str, *, host: str) -> Target:
    """Read a Destination header (RFC 4918, section 10.3): an absolute URL, or an absolute path.

    ``host``: the Host header of the request. The scheme is not compared: a proxy in front may
    speak TLS where we do not.
    Raises: BadTarget, NoName, OtherHost.
    """
    header = header.strip()
    if not header.startswith("/"):
        try:
            parts = urlsplit(header)
            if parts.scheme.lower() not in ("http", "https") or not parts.netloc:
                raise BadTarget("a destination is an absolute URL")
            here = urlsplit("//" + host)
            same = parts.hostname == here.hostname and (
                parts.port == here.port or None in (parts.port, here.port)
            )
        except ValueError:
            raise BadTarget("a destination is an absolute URL") from None
        if not same:
            raise OtherHost
    # Finder sends names as UTF-8 or percent-encoded; a header is latin-1 in WSGI.
    return parse_target(header)


def href(bucket: str, path: str, *, folder: bool, beside_folder: bool = False) -> str:
    """Return the absolute path of a URL; a folder's ends with a slash."""
    if not bucket:
        return "/"
    parts = [quote(bucket, safe=SAFE)]
    if path:
        components = path.split("/")
        for component in components[:-1]:
            parts += _names(component)
        parts += _names(components[-1], beside_folder=beside_folder)
    return "/" + "/".join(parts) + ("/" if folder else "")


def _names(component: str, *, beside_folder: bool = False) -> list[str]:
    """Return what stands between slashes for a component; several, if it is too long for one."""
    if len(component) <= NEVER_LONG:
        mark = Mark.FILE if beside_folder else Mark.NONE
        return [quote(encode(component, mark), safe=SAFE)]
    pieces, mark = cut(component, beside_folder=beside_folder)
    names = [encode(piece, Mark.MORE) for piece in pieces[:-1]]
    return [quote(name, safe=SAFE) for name in (*names, encode(pieces[-1], mark))]


def href_of(folder: Target) -> str:
    """Return the absolute path of a folder's URL."""
    if not folder.more:
        return href(folder.bucket, folder.path, folder=True)
    above = href(folder.bucket, folder.parent.path, folder=True)
    names = [quote(encode(piece, Mark.MORE), safe=SAFE) for piece in folder.pieces]
    return above + "".join(name + "/" for name in names)


def shown_name(path: str, *, beside_folder: bool = False) -> str:
    """Return the last component as a file name to show; of an over-long one its last piece."""
    pieces, mark = cut(path.rpartition("/")[2], beside_folder=beside_folder)
    return encode(pieces[-1], mark).decode()


def more_name(folder: Target) -> str:
    """Return the file name of a ``%more`` folder."""
    return encode(folder.pieces[-1], Mark.MORE).decode()


class Shown(NamedTuple):
    """How a folder shows what is in it."""

    name: str
    href: str
    more: Target | None = None
    """Not the entry itself, but a folder of all that begins like it."""


def shown(folder: Target, key: str, *, is_folder: bool, beside_folder: bool) -> Shown | None:
    """Return how an entry is shown; None: it does not belong into this ``%more`` folder.

    ``key``: of an object, or of a folder, with its slash.
    """
    path = key[:-1] if is_folder else key
    begin = len(folder.folder_key)
    base = folder.path.rfind("/") + 1 if folder.more else begin
    if not folder.more and len(path) - base <= NEVER_LONG:
        mark = Mark.FILE if beside_folder else Mark.NONE
        where = href(folder.bucket, path, folder=is_folder, beside_folder=beside_folder)
        return Shown(encode(path[base:], mark).decode(), where)
    found = piece_behind(path[base:], begin - base, beside_folder=beside_folder)
    if found is None:
        return None
    piece, mark = found
    name = encode(piece, mark).decode()
    if mark is Mark.MORE:
        pieces = (*folder.pieces, piece)
        more = Target(folder.bucket, path[:begin] + piece, slash=True, pieces=pieces)
        return Shown(name, href_of(more), more)
    return Shown(name, href(folder.bucket, path, folder=is_folder, beside_folder=beside_folder))
