"""``.versions``: the older versions of the files in a directory, as read-only files.

    dir/.versions/NAME/2026-11-21T134500.123Z_VERSIONID

``.versions`` is in no listing, so that programs that walk a tree do not find everything many
times over; whoever names it finds it, in buckets that have versioning. In it is a directory for
each file that has versions, files that were deleted since among them.
"""

from __future__ import annotations

import errno
from datetime import UTC, datetime

from engine.engine import Engine
from engine.errors import InvalidArgument, IsDeleteMarker, NoSuchVersion
from engine.types import BucketInfo
from fs.attributes import AttributeReader, Stat
from fs.directory import PAGE, Entry, Page
from fs.errors import Refused
from fs.inodes import InodeTable, Kind, Node
from fs.names import NAME_BYTES_MAX, VERSIONS, Mark, decode, encode
from fs.view import Found

NAME = VERSIONS.encode()
_WRITE = 0o222


def is_versions(parent: Node, name: bytes) -> bool:
    """Say whether a name is looked up that this module knows about."""
    if parent.kind in (Kind.VERSIONS, Kind.VERSIONS_OF):
        return True
    return name == NAME and parent.kind is Kind.DIRECTORY and parent.base == len(parent.key)


def version_name(modified_ms: int, version_id: str) -> bytes:
    """Return the file name of a version; names sort by time."""
    moment = datetime.fromtimestamp(modified_ms // 1000, tz=UTC)
    return f"{moment:%Y-%m-%dT%H%M%S}.{modified_ms % 1000:03d}Z_{version_id}".encode()


class Versions:
    def __init__(self, engine: Engine, attributes: AttributeReader, table: InodeTable) -> None:
        self._engine = engine
        self._attributes = attributes
        self._table = table

    async def look_up(self, parent: Node, name: bytes) -> Found | None:
        """Return what is under a name in or beside ``.versions``, or None."""
        bucket = await self._engine.bucket(parent.bucket)
        match parent.kind:
            case Kind.VERSIONS:
                return await self._look_up_file(bucket, parent, name)
            case Kind.VERSIONS_OF:
                return await self._look_up_version(bucket, parent, name)
            case _:
                if not bucket.versioning:
                    return None
                return self._directory(bucket, Kind.VERSIONS, parent.key)

    def _directory(self, bucket: BucketInfo, kind: Kind, key: str) -> Found:
        node = self._table.find(kind, bucket.name, bucket.bucket_id, key)
        return Found(node, self.directory_stat(bucket), None)

    def directory_stat(self, bucket: BucketInfo) -> Stat:
        stat = self._attributes.of_directory(None, bucket.created_ms)
        return stat._replace(mode=stat.mode & ~_WRITE)

    async def _look_up_file(self, bucket: BucketInfo, parent: Node, name: bytes) -> Found | None:
        decoded = decode(name)
        if decoded.mark is not Mark.NONE:
            return None
        key = parent.key + decoded.text
        listing = await self._engine.list_versions(bucket.name, prefix=key, limit=1)
        if not listing.versions or listing.versions[0].key != key:
            return None
        return self._directory(bucket, Kind.VERSIONS_OF, key)

    async def _look_up_version(self, bucket: BucketInfo, parent: Node, name: bytes) -> Found | None:
        version_id = name.rpartition(b"_")[2].decode(errors="replace")
        node = Node(
            Kind.VERSION, bucket.name, bucket.bucket_id, parent.key, base=0, version_id=version_id
        )
        try:
            stat, data_id = await self._version(node)
        except Refused:
            return None
        if version_name(stat.mtime_ns // 1_000_000, version_id) != name:
            return None
        node = self._table.find(
            Kind.VERSION, bucket.name, bucket.bucket_id, parent.key, version_id=version_id
        )
        node.data_id = data_id
        return Found(node, stat, None)

    async def _version(self, node: Node) -> tuple[Stat, bytes]:
        try:
            info = await self._engine.head(node.bucket, node.key, version_id=node.version_id)
        except (NoSuchVersion, IsDeleteMarker, InvalidArgument):
            raise Refused(errno.ENOENT) from None
        return self.version_stat(info.size, info.modified_ms), info.record.data_id

    def version_stat(self, size: int, modified_ms: int) -> Stat:
        """Return what ``stat`` shows of a version: its time is when it was made."""
        stat = self._attributes.plain(size, modified_ms)
        return stat._replace(mode=stat.mode & ~_WRITE)

    async def describe(self, node: Node) -> Found:
        """Return the attributes of a node of this module. Raises Refused (ENOENT)."""
        if node.kind is Kind.VERSION:
            return Found(node, (await self._version(node))[0], None)
        return Found(node, self.directory_stat(await self._engine.bucket(node.bucket)), None)


class VersionedFiles:
    """The files of a directory that have versions: a source of ``.versions``'s entries."""

    def __init__(self, engine: Engine, versions: Versions, node: Node) -> None:
        self._engine = engine
        self._versions = versions
        self._node = node

    async def page(self, after: str, last_more: bytes) -> Page:
        prefix = self._node.key
        listing = await self._engine.list_versions(
            self._node.bucket, prefix=prefix, delimiter="/", key_marker=after, limit=PAGE
        )
        bucket = listing.bucket
        stat = self._versions.directory_stat(bucket)
        entries = []
        for key in dict.fromkeys(found.key for found in listing.versions):
            name = encode(key[len(prefix) :])
            if len(key) > len(prefix) and len(name) <= NAME_BYTES_MAX:
                entries.append(Entry(name, Kind.VERSIONS_OF, bucket, key, len(key), stat, b""))
        return Page(entries, listing.next_key, b"")


class VersionsOfFile:
    """The versions of one file, newest first: a source of its directory's entries."""

    def __init__(self, engine: Engine, versions: Versions, node: Node) -> None:
        self._engine = engine
        self._versions = versions
        self._node = node

    async def page(self, after: str, last_more: bytes) -> Page:
        node = self._node
        key_marker = node.key if after else ""
        listing = await self._engine.list_versions(
            node.bucket,
            prefix=node.key,
            key_marker=key_marker,
            version_id_marker=after,
            limit=PAGE,
        )
        entries: list[Entry] = []
        for found in listing.versions:
            version = found.version
            if found.key != node.key:
                return Page(entries, None, b"")
            if version.delete_marker:
                continue
            entries.append(
                Entry(
                    version_name(version.modified_ms, version.version_id),
                    Kind.VERSION,
                    listing.bucket,
                    node.key,
                    0,
                    self._versions.version_stat(version.size, version.modified_ms),
                    b"",
                    version.version_id,
                )
            )
        more = listing.next_key == node.key
        return Page(entries, listing.next_version_id if more else None, b"")
