"""The past: what was there at a moment, by the versions that are kept.

For each key that is the newest version made at or before the moment, unless it is a delete
marker. A bucket without versioning keeps no past: what was replaced since is not there. A
version that was renamed keeps its time and is found under its new key.
"""

from __future__ import annotations

from engine.ids import BucketId
from engine.listing import VersionPage, first_key
from engine.meta import keyspace
from engine.meta.kv import ReadTransaction
from engine.meta.records import VersionRecord, decode_listed, decode_version
from engine.paths import DELIMITER, Path, PathEntry, PathPage, decode_file
from engine.store import Store, get_bucket

STEP = 100


class PastPaths:
    """``engine.paths.Paths`` of a moment."""

    def __init__(self, store: Store, at_ms: int) -> None:
        self._store = store
        self._at_ms = at_ms

    async def find(self, bucket_name: str, path: str) -> Path:
        raw = path.encode()

        async def body(tr: ReadTransaction) -> Path:
            bucket = await get_bucket(tr, bucket_name)
            record = await self._version(tr, bucket.bucket_id, raw) if raw else None
            folder = raw + DELIMITER
            below = await self._keys(tr, bucket.bucket_id, folder, folder, 1).peek()
            marker = None if below is None or below[0] != folder else decode_version(below[1])
            return Path(bucket, record, marker, below is not None)

        return await self._store.db.read(body)

    async def page(self, bucket_name: str, prefix: str, after: str, limit: int) -> PathPage:
        raw_prefix = prefix.encode()
        first = first_key(raw_prefix, after.encode(), DELIMITER)

        async def body(tr: ReadTransaction) -> PathPage:
            bucket = await get_bucket(tr, bucket_name)
            keys = self._keys(tr, bucket.bucket_id, raw_prefix, first, limit)
            entries: list[PathEntry] = []
            more = False
            while (row := await keys.peek()) is not None:
                if len(entries) >= limit:
                    more = True
                    break
                key, value = row
                slash = key.find(DELIMITER, len(raw_prefix))
                if slash < 0:
                    folder = key + DELIMITER
                    below = await self._keys(tr, bucket.bucket_id, folder, folder, 1).peek()
                    entry = PathEntry(key.decode(), False, decode_file(value), below is not None)
                    keys.advance()
                else:
                    folder = key[: slash + 1]
                    marker = decode_file(value) if key == folder else None
                    entry = PathEntry(folder.decode(), True, marker, False)
                    keys.seek(keyspace.after_prefix(folder))
                entries.append(entry)
            return PathPage(bucket, entries, entries[-1].key if more else None)

        return await self._store.db.read(body)

    def _keys(
        self, tr: ReadTransaction, bucket_id: BucketId, prefix: bytes, first: bytes, limit: int
    ) -> _Keys:
        page = VersionPage(tr, bucket_id, prefix, min(limit, STEP))
        page.seek(first)
        return _Keys(page, self._at_ms)

    async def _version(
        self, tr: ReadTransaction, bucket_id: BucketId, key: bytes
    ) -> VersionRecord | None:
        row = await tr.get(keyspace.object_(bucket_id, key))
        if row is not None and (current := decode_version(row)).modified_ms <= self._at_ms:
            return current
        begin = keyspace.versions(bucket_id, key)
        end = keyspace.after_prefix(begin)
        while rows := await tr.get_range(begin, end, limit=STEP):
            for _, row in rows:
                version = decode_version(row)
                if version.modified_ms <= self._at_ms:
                    return None if version.delete_marker else version
            begin = keyspace.after(rows[-1][0])
        return None


class _Keys:
    """The keys that were there, in order, each with its version's row."""

    def __init__(self, page: VersionPage, at_ms: int) -> None:
        self._page = page
        self._at_ms = at_ms
        self._settled: bytes | None = None
        """The key whose version of the moment was found."""

    async def peek(self) -> tuple[bytes, bytes] | None:
        while (found := await self._page.peek()) is not None:
            key, row, _ = found
            if key != self._settled:
                version = decode_listed(row)
                if version.modified_ms <= self._at_ms:
                    if not version.delete_marker:
                        return key, row
                    self._settled = key
            self._page.advance()
        return None

    def advance(self) -> None:
        """Take the key that ``peek`` returned."""
        assert self._page.key is not None
        self._settled = self._page.key
        self._page.advance()

    def seek(self, key: bytes) -> None:
        self._page.seek(key)
