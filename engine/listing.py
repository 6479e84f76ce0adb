"""Listings: of current versions, of all versions, and of uploads.

One transaction gives one page from one snapshot. A common prefix costs one seek, however many
keys are below it, so a page costs O(results).
"""

from __future__ import annotations

from bisect import bisect_left

from engine.errors import InvalidArgument
from engine.ids import BucketId, UploadId
from engine.meta import keyspace
from engine.meta.kv import ReadTransaction
from engine.meta.records import decode_listed, decode_upload
from engine.multipart import upload_info
from engine.store import Store, get_bucket
from engine.types import (
    BucketInfo,
    ListedKeyVersion,
    ListedObject,
    ObjectListing,
    UploadInfo,
    UploadListing,
    VersionListing,
)

ID_SIZE = 9
"""Bytes of a row key before the object's key: subspace and bucket id."""

SEQUENCE_MAX = 2**64 - 1
READ_AHEAD_MAX = 1001
SEEK_STEP = 2
"""Rows to read first behind a common prefix: what follows is likely to be another one."""


class Cursor:
    """Rows of a range, in order, read ahead by ever larger steps while nobody seeks."""

    __slots__ = ("_begin", "_end", "_index", "_rows", "_step", "_tr")

    def __init__(self, tr: ReadTransaction, begin: bytes, end: bytes, *, step: int) -> None:
        self._tr = tr
        self._begin = begin
        self._end = end
        self._step = max(1, min(step, READ_AHEAD_MAX))
        self._rows: list[tuple[bytes, bytes]] = []
        self._index = 0

    async def peek(self) -> tuple[bytes, bytes] | None:
        """Return the row that is next, or None at the end."""
        if self._index == len(self._rows):
            if self._begin >= self._end:
                return None
            self._rows = await self._tr.get_range(self._begin, self._end, limit=self._step)
            self._index = 0
            if len(self._rows) < self._step:
                self._begin = self._end
            else:
                self._begin = keyspace.after(self._rows[-1][0])
                self._step = min(self._step * 4, READ_AHEAD_MAX)
            if not self._rows:
                return None
        return self._rows[self._index]

    def advance(self) -> None:
        self._index += 1

    def seek(self, key: bytes) -> None:
        """Go on at ``key``, which is not below the next row; rows read ahead serve if it is
        among them."""
        if self._index < len(self._rows) and key <= self._rows[-1][0]:
            self._index = bisect_left(self._rows, (key, b""), self._index)
            return
        self._begin = max(self._begin, key)
        self._rows = []
        self._index = 0
        self._step = SEEK_STEP


def _common_prefix(key: bytes, prefix_size: int, delimiter: bytes) -> bytes | None:
    if not delimiter:
        return None
    found = key.find(delimiter, prefix_size)
    return None if found < 0 else key[: found + len(delimiter)]


def first_key(prefix: bytes, after: bytes, delimiter: bytes) -> bytes:
    """Return the least key that a listing behind ``after`` may show.

    When ``after`` is itself a common prefix, everything below it was shown with it.
    """
    if not after or after < prefix:
        return prefix
    if after.startswith(prefix) and _common_prefix(after, len(prefix), delimiter) == after:
        return keyspace.after_prefix(after)
    return keyspace.after(after)


async def _plain(
    tr: ReadTransaction, bucket: BucketInfo, begin: bytes, end: bytes, limit: int
) -> ObjectListing:
    """List without a delimiter: one range read."""
    rows = await tr.get_range(begin, end, limit=limit + 1)
    objects = [
        ListedObject(key[ID_SIZE:].decode(), decode_listed(row)) for key, row in rows[:limit]
    ]
    more = len(rows) > limit > 0
    return ObjectListing(bucket, objects, [], objects[-1].key if more else None)


class Listings:
    def __init__(self, store: Store) -> None:
        self._store = store

    async def objects(
        self, bucket_name: str, prefix: str, delimiter: str, after: str, limit: int
    ) -> ObjectListing:
        raw_prefix, raw_delimiter = prefix.encode(), delimiter.encode()
        first = first_key(raw_prefix, after.encode(), raw_delimiter)

        async def body(tr: ReadTransaction) -> ObjectListing:
            bucket = await get_bucket(tr, bucket_name)
            base = keyspace.OBJECT + bucket.bucket_id
            end = keyspace.after_prefix(base + raw_prefix)
            if not raw_delimiter:
                return await _plain(tr, bucket, base + first, end, limit)
            objects: list[ListedObject] = []
            prefixes: list[str] = []
            cursor = Cursor(tr, base + first, end, step=limit + 1)
            last = b""
            while (row := await cursor.peek()) is not None:
                if len(objects) + len(prefixes) >= limit:
                    next_after = last.decode() if limit else None
                    return ObjectListing(bucket, objects, prefixes, next_after)
                key = row[0][ID_SIZE:]
                common = _common_prefix(key, len(raw_prefix), raw_delimiter)
                if common is None:
                    objects.append(ListedObject(key.decode(), decode_listed(row[1])))
                    cursor.advance()
                    last = key
                else:
                    prefixes.append(common.decode())
                    cursor.seek(base + keyspace.after_prefix(common))
                    last = common
            return ObjectListing(bucket, objects, prefixes, None)

        return await self._store.db.read(body)

    async def versions(
        self,
        bucket_name: str,
        prefix: str,
        delimiter: str,
        key_marker: str,
        version_id_marker: str,
        limit: int,
    ) -> VersionListing:
        raw_prefix, raw_delimiter = prefix.encode(), delimiter.encode()
        raw_marker = key_marker.encode()
        if version_id_marker and not key_marker:
            raise InvalidArgument(
                "version-id-marker", "A version-id marker cannot be specified without a key marker."
            )

        async def body(tr: ReadTransaction) -> VersionListing:
            bucket = await get_bucket(tr, bucket_name)
            page = VersionPage(tr, bucket.bucket_id, raw_prefix, limit)
            if version_id_marker and raw_marker.startswith(raw_prefix):
                await page.seek_behind(raw_marker, version_id_marker)
            else:
                page.seek(first_key(raw_prefix, raw_marker, raw_delimiter))
            prefixes: list[str] = []
            versions: list[ListedKeyVersion] = []
            last_key, last_version = b"", ""
            while (found := await page.peek()) is not None:
                if len(versions) + len(prefixes) >= limit:
                    if not limit:
                        break
                    return VersionListing(
                        bucket, versions, prefixes, last_key.decode(), last_version or None
                    )
                key, row, is_latest = found
                common = _common_prefix(key, len(raw_prefix), raw_delimiter)
                if common is None:
                    listed = decode_listed(row)
                    versions.append(ListedKeyVersion(key.decode(), listed, is_latest))
                    page.advance()
                    last_key, last_version = key, listed.version_id
                else:
                    prefixes.append(common.decode())
                    page.seek(keyspace.after_prefix(common))
                    last_key, last_version = common, ""
            return VersionListing(bucket, versions, prefixes, None, None)

        return await self._store.db.read(body)

    async def uploads(
        self,
        bucket_name: str,
        prefix: str,
        delimiter: str,
        key_marker: str,
        upload_id_marker: UploadId | None,
        limit: int,
    ) -> UploadListing:
        raw_prefix, raw_delimiter = prefix.encode(), delimiter.encode()
        raw_marker = key_marker.encode()

        async def body(tr: ReadTransaction) -> UploadListing:
            bucket = await get_bucket(tr, bucket_name)
            base = keyspace.UPLOAD + bucket.bucket_id
            end = keyspace.after_prefix(base + keyspace.escape(raw_prefix))
            if upload_id_marker is not None and raw_marker >= raw_prefix:
                begin = keyspace.after(
                    keyspace.upload(bucket.bucket_id, raw_marker, upload_id_marker)
                )
            elif raw_marker and raw_marker >= raw_prefix:
                if _common_prefix(raw_marker, len(raw_prefix), raw_delimiter) == raw_marker:
                    begin = base + keyspace.escape(keyspace.after_prefix(raw_marker))
                else:
                    begin = keyspace.after_prefix(keyspace.uploads(bucket.bucket_id, raw_marker))
            else:
                begin = base + keyspace.escape(raw_prefix)
            cursor = Cursor(tr, begin, end, step=limit + 1)
            uploads: list[UploadInfo] = []
            prefixes: list[str] = []
            last_key, last_id = "", None
            while (row := await cursor.peek()) is not None:
                if len(uploads) + len(prefixes) >= limit:
                    if not limit:
                        break
                    return UploadListing(bucket, uploads, prefixes, last_key, last_id)
                key, upload_id = keyspace.split_upload(row[0])
                common = _common_prefix(key, len(raw_prefix), raw_delimiter)
                if common is None:
                    record = decode_upload(row[1])
                    uploads.append(upload_info(bucket, key.decode(), upload_id, record))
                    cursor.advance()
                    last_key, last_id = key.decode(), upload_id
                else:
                    prefixes.append(common.decode())
                    cursor.seek(base + keyspace.escape(keyspace.after_prefix(common)))
                    last_key, last_id = common.decode(), None
            return UploadListing(bucket, uploads, prefixes, None, None)

        return await self._store.db.read(body)


class VersionPage:
    """The rows under ``O`` and ``V`` of a bucket, merged: keys ascending, newest version first."""

    def __init__(self, tr: ReadTransaction, bucket_id: BucketId, prefix: bytes, limit: int) -> None:
        self._current_base = keyspace.OBJECT + bucket_id
        self._behind_base = keyspace.VERSION + bucket_id
        current_end = keyspace.after_prefix(self._current_base + prefix)
        behind_end = keyspace.after_prefix(self._behind_base + keyspace.escape(prefix))
        self._current = Cursor(tr, self._current_base, current_end, step=limit + 1)
        self._behind = Cursor(tr, self._behind_base, behind_end, step=limit + 1)
        self._tr = tr
        self._bucket_id = bucket_id
        self._next: tuple[Cursor, bytes] | None = None
        self._newest_seen = b""
        """The key of which the newest version was returned or skipped."""

    def seek(self, key: bytes) -> None:
        """Go on with the newest version of the first key that is not below ``key``."""
        self._current.seek(self._current_base + key)
        self._behind.seek(self._behind_base + keyspace.escape(key))

    async def seek_behind(self, key: bytes, version_id: str) -> None:
        """Go on behind one version of ``key``.

        Raises: InvalidArgument: no version has such an id.
        """
        self._newest_seen = key
        self._current.seek(self._current_base + keyspace.after(key))
        sequence = keyspace.sequence_of(version_id)
        if version_id == "null":
            raw = await self._tr.get(keyspace.null(self._bucket_id, key))
            # Without such a row the null version is the current one: all others are behind it.
            sequence = int.from_bytes(raw, "big") if raw else SEQUENCE_MAX
        if sequence is None:
            raise InvalidArgument("version-id-marker", "Invalid version id specified")
        row_key = keyspace.version(self._bucket_id, key, sequence)
        self._behind.seek(keyspace.after(row_key))

    async def peek(self) -> tuple[bytes, bytes, bool] | None:
        """Return (key, row, is it the latest version), or None at the end."""
        current = await self._current.peek()
        behind = await self._behind.peek()
        behind_key = b"" if behind is None else keyspace.split_version(behind[0])[0]
        if current is not None and (behind is None or current[0][ID_SIZE:] <= behind_key):
            key = current[0][ID_SIZE:]
            self._next = (self._current, key)
            return key, current[1], True
        if behind is None:
            return None
        self._next = (self._behind, behind_key)
        return behind_key, behind[1], behind_key != self._newest_seen

    @property
    def key(self) -> bytes | None:
        """The key of the version that ``peek`` returned."""
        return None if self._next is None else self._next[1]

    def advance(self) -> None:
        """Take the version that ``peek`` returned."""
        assert self._next is not None
        cursor, self._newest_seen = self._next
        cursor.advance()
