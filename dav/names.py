"""Names: between the target of a request and a bucket with a path in it. Pure.

``/bucket/folder/file`` is the key ``folder/file`` of the bucket. What cannot be a path component
has the same escape as in the mount (``engine.names``), percent-encoded as everything in a URL.
A path cannot leave the buckets by any trick of dots or encoding: components are taken apart
before they are decoded, decoded once, and then looked at as names, never as directions.
"""

from __future__ import annotations

import re
from typing import NamedTuple
from urllib.parse import quote, unquote_to_bytes, urlsplit

from engine.names import Mark, NotUtf8, ReservedName, decode, encode

SAFE = "-._~!$'()*,"
"""Beside letters and digits. What stands here is compared byte for byte by clients that do not
decode: davfs2 and old versions of Nautilus. Everything else is safest encoded."""

_BAD_PERCENT = re.compile(r"%(?![0-9A-Fa-f]{2})")


class BadTarget(ValueError):
    """No URL of ours: broken encoding, a fragment, no UTF-8, another scheme."""


class NoName(ValueError):
    """No key can have the name: what has it does not exist and cannot be made."""


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

    @property
    def is_root(self) -> bool:
        return not self.bucket

    @property
    def is_bucket(self) -> bool:
        return bool(self.bucket) and not self.path

    @property
    def folder_key(self) -> str:
        """Prefix of all that is in the folder; ``""`` for a bucket."""
        return self.path + "/" if self.path else ""

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


def _target(names: list[bytes], *, slash: bool) -> Target:
    beside_folder = False
    components = []
    try:
        bucket = names[0].decode()
        for position, name in enumerate(names[1:], 2):
            decoded = decode(name)
            if decoded.mark is Mark.FILE and position == len(names) and not slash:
                beside_folder = True
            elif decoded.mark is not Mark.NONE:
                raise NoName
            components.append(decoded.text)
    except (NotUtf8, UnicodeDecodeError):
        raise BadTarget("no UTF-8") from None
    except ReservedName:
        raise NoName from None
    if bucket in (".", ".."):
        raise NoName
    return Target(bucket, "/".join(components), beside_folder, slash)


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
            parts.append(quote(encode(component), safe=SAFE))
        mark = Mark.FILE if beside_folder else Mark.NONE
        parts.append(quote(encode(components[-1], mark), safe=SAFE))
    return "/" + "/".join(parts) + ("/" if folder else "")


def shown_name(path: str, *, beside_folder: bool = False) -> str:
    """Return the last component as a file name to show."""
    mark = Mark.FILE if beside_folder else Mark.NONE
    return encode(path.rpartition("/")[2], mark).decode()
