"""Keys as paths: what a file system asks that S3 does not.

S3 asks for a key, or for a page of keys. A file system asks what a path is now, a file or a
directory or both, and wants a directory's entries in one order with all that ``stat`` shows.
"""

from __future__ import annotations

from typing import NamedTuple

import msgspec

from engine.listing import ID_SIZE, Cursor, first_key
from engine.meta import keyspace
from engine.meta.kv import ReadTransaction
from engine.meta.records import VersionRecord, decode_version
from engine.store import Store, get_bucket
from engine.types import BucketInfo

DELIMITER = b"/"


class ListedFile(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """The fields of ``VersionRecord`` up to the user metadata; not its bytes."""

    format: int
    sequence: int
    size: int
    modified_ms: int
    etag: str
    version_id: str
    delete_marker: bool
    storage_class: str
    checksum_shown: str
    data_id: bytes
    data: msgspec.Raw
    headers: msgspec.Raw
    metadata: list[tuple[str, str]] = []


class PathEntry(NamedTuple):
    key: str
    """Of the object; or the common prefix, with its slash."""
    is_directory: bool
    version: ListedFile | None
    """Of a directory: of the object that has the prefix as its key, if there is one."""
    shadowed: bool
    """A file beside a directory of its name."""


class PathPage(NamedTuple):
    bucket: BucketInfo
    entries: list[PathEntry]
    next_after: str | None
    """Where the next page starts (``after``); None at the end."""


class Path(NamedTuple):
    """What is at a path, in one snapshot."""

    bucket: BucketInfo
    record: VersionRecord | None
    """Of the object whose key is the path."""
    marker: VersionRecord | None
    """Of the object whose key is the path and a slash: the directory as an object."""
    is_directory: bool
    """There are keys that begin with the path and a slash."""


decode_file = msgspec.msgpack.Decoder(ListedFile).decode


class Paths:
    def __init__(self, store: Store) -> None:
        self._store = store

    async def find(self, bucket_name: str, path: str) -> Path:
        raw = path.encode()

        async def body(tr: ReadTransaction) -> Path:
            bucket = await get_bucket(tr, bucket_name)
            row = await tr.get(keyspace.object_(bucket.bucket_id, raw)) if raw else None
            folder = keyspace.OBJECT + bucket.bucket_id + raw + DELIMITER
            below = await tr.get_range(folder, keyspace.after_prefix(folder), limit=1)
            marker = decode_version(below[0][1]) if below and below[0][0] == folder else None
            record = None if row is None else decode_version(row)
            return Path(bucket, record, marker, bool(below))

        return await self._store.db.read(body)

    async def page(self, bucket_name: str, prefix: str, after: str, limit: int) -> PathPage:
        raw_prefix = prefix.encode()
        first = first_key(raw_prefix, after.encode(), DELIMITER)

        async def body(tr: ReadTransaction) -> PathPage:
            bucket = await get_bucket(tr, bucket_name)
            base = keyspace.OBJECT + bucket.bucket_id
            end = keyspace.after_prefix(base + raw_prefix)
            start = len(base) + len(raw_prefix)
            cursor = Cursor(tr, base + first, end, step=limit + 1)
            found: list[tuple[bytes, bytes | None, bool]] = []
            folders: set[bytes] = set()
            more = False
            while (row := await cursor.peek()) is not None:
                if len(found) >= limit:
                    more = True
                    break
                key = row[0]
                slash = key.find(DELIMITER, start)
                if slash < 0:
                    found.append((key, row[1], False))
                    cursor.advance()
                else:
                    folder = key[: slash + 1]
                    found.append((folder, row[1] if key == folder else None, True))
                    folders.add(folder)
                    cursor.seek(keyspace.after_prefix(folder))
            if more:
                await _probe(tr, found, folders)
            entries = [
                PathEntry(
                    key[ID_SIZE:].decode(),
                    is_directory,
                    None if value is None else decode_file(value),
                    key + DELIMITER in folders,
                )
                for key, value, is_directory in found
            ]
            return PathPage(bucket, entries, entries[-1].key if more else None)

        return await self._store.db.read(body)


async def _probe(
    tr: ReadTransaction, found: list[tuple[bytes, bytes | None, bool]], folders: set[bytes]
) -> None:
    """Add to ``folders`` those behind the page whose name a file on it has.

    Only a file that the last key begins with can be such: all other folders sort before it.
    """
    last = found[-1][0]
    for key, _, is_directory in found:
        if not is_directory and last.startswith(key):
            folder = key + DELIMITER
            if folder > last and await tr.get_range(folder, keyspace.after_prefix(folder), limit=1):
                folders.add(folder)
