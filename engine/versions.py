"""How versions of a key follow one another: the transitions, inside a caller's transaction.

The current version is the row under ``O`` unless it is a delete marker; every other version and
every marker is a row under ``V``. ``N`` says where the ``null`` version is while it is under
``V``. These functions are the only ones that write these three subspaces. A key that has no
current version any more loses its properties (``engine.properties``).

Source: S3 User Guide, "Adding objects to versioning-enabled/-suspended buckets" and "Deleting
object versions".
"""

from __future__ import annotations

from typing import NamedTuple

from engine.errors import InvalidArgument
from engine.ids import DataId
from engine.meta import keyspace
from engine.meta.kv import ReadTransaction, Transaction
from engine.meta.records import FORMAT, InlineData, VersionRecord, decode_version, encode
from engine.quota import check_quota
from engine.store import Store
from engine.types import BucketInfo, Deleted

NULL = "null"


async def current_version(
    tr: ReadTransaction, bucket: BucketInfo, key: bytes
) -> VersionRecord | None:
    row = await tr.get(keyspace.object_(bucket.bucket_id, key))
    return None if row is None else decode_version(row)


async def newest_behind(
    tr: ReadTransaction, bucket: BucketInfo, key: bytes
) -> VersionRecord | None:
    """Return the newest version or marker under ``V``."""
    if not bucket.versioning:
        return None
    prefix = keyspace.versions(bucket.bucket_id, key)
    rows = await tr.get_range(prefix, keyspace.after_prefix(prefix), limit=1)
    return decode_version(rows[0][1]) if rows else None


async def find_version(
    tr: ReadTransaction, bucket: BucketInfo, key: bytes, version_id: str
) -> tuple[VersionRecord, bool] | None:
    """Return the version of that id and whether it is the row under ``O``; None when absent.

    Raises: InvalidArgument when the id could not be one of ours.
    """
    current = await current_version(tr, bucket, key)
    if current is not None and current.version_id == version_id:
        return current, True
    if version_id == NULL:
        raw = await tr.get(keyspace.null(bucket.bucket_id, key))
        if raw is None:
            return None
        sequence = int.from_bytes(raw, "big")
    else:
        found = keyspace.sequence_of(version_id)
        if found is None:
            raise InvalidArgument("versionId", "Invalid version id specified")
        sequence = found
    row = await tr.get(keyspace.version(bucket.bucket_id, key, sequence))
    if row is None:
        return None
    record = decode_version(row)
    return (record, False) if record.version_id == version_id else None


async def next_sequence(
    tr: ReadTransaction, bucket: BucketInfo, key: bytes, current: VersionRecord | None
) -> int:
    if current is not None:
        return current.sequence + 1
    behind = await newest_behind(tr, bucket, key)
    return 1 if behind is None else behind.sequence + 1


def new_version_id(store: Store, bucket: BucketInfo, sequence: int) -> str:
    if bucket.versioning != "Enabled":
        return NULL
    return keyspace.version_id(sequence, store.random(12))


def _put_behind(tr: Transaction, bucket: BucketInfo, key: bytes, record: VersionRecord) -> None:
    tr.set(keyspace.version(bucket.bucket_id, key, record.sequence), encode(record))
    if record.version_id == NULL:
        tr.set(keyspace.null(bucket.bucket_id, key), record.sequence.to_bytes(8, "big"))


class _Freed(NamedTuple):
    """What the usage counters have to give back."""

    size: int
    versions: int


_NOTHING = _Freed(0, 0)


def _let_go(store: Store, tr: Transaction, record: VersionRecord) -> _Freed:
    """The version is removed for good: its bytes become garbage."""
    if record.delete_marker:
        return _NOTHING
    store.discard(tr, record)
    return _Freed(record.size, 1)


async def _remove_null_behind(
    store: Store, tr: Transaction, bucket: BucketInfo, key: bytes
) -> _Freed:
    """Remove the ``null`` version under ``V``, if there is one, for a new one takes its place."""
    null_key = keyspace.null(bucket.bucket_id, key)
    raw = await tr.get(null_key)
    if raw is None:
        return _NOTHING
    freed = _NOTHING
    row_key = keyspace.version(bucket.bucket_id, key, int.from_bytes(raw, "big"))
    row = await tr.get(row_key)
    if row is not None:
        freed = _let_go(store, tr, decode_version(row))
        tr.clear(row_key)
    tr.clear(null_key)
    return freed


async def _step_back(
    store: Store,
    tr: Transaction,
    bucket: BucketInfo,
    key: bytes,
    current: VersionRecord | None,
) -> _Freed:
    """Make room for a new newest version: the current one becomes noncurrent, or, when it is
    ``null`` and the new one is ``null`` as well, goes for good."""
    if bucket.versioning == "Enabled":
        if current is not None:
            _put_behind(tr, bucket, key, current)
        return _NOTHING
    if current is not None:
        if current.version_id == NULL:
            return _let_go(store, tr, current)
        _put_behind(tr, bucket, key, current)
    if bucket.versioning:
        return await _remove_null_behind(store, tr, bucket, key)
    return _NOTHING


async def put_version(
    store: Store,
    tr: Transaction,
    bucket: BucketInfo,
    key: bytes,
    current: VersionRecord | None,
    record: VersionRecord,
    *,
    limited: bool = True,
) -> None:
    """Make ``record`` (with its sequence and id set) the current version.

    ``limited`` False: whatever the bucket's quota. Raises: QuotaExceeded.
    """
    freed = await _step_back(store, tr, bucket, key, current)
    if bucket.quota is not None and limited:
        await check_quota(tr, bucket, record.size - freed.size, 1 - freed.versions)
    tr.set(keyspace.object_(bucket.bucket_id, key), encode(record))
    store.add_usage(tr, bucket.bucket_id, record.size - freed.size, 1 - freed.versions)
    store.feed(tr, bucket.bucket_id, key, "put", record.version_id)


def replace_attributes(
    store: Store,
    tr: Transaction,
    bucket: BucketInfo,
    key: bytes,
    record: VersionRecord,
    is_current: bool,
) -> None:
    """Write a version anew whose bytes, sequence and id stay."""
    if is_current:
        tr.set(keyspace.object_(bucket.bucket_id, key), encode(record))
    else:
        tr.set(keyspace.version(bucket.bucket_id, key, record.sequence), encode(record))
    store.feed(tr, bucket.bucket_id, key, "tags", record.version_id)


def _clear_current(tr: Transaction, bucket: BucketInfo, key: bytes) -> None:
    """The key has no current version from now on, and no properties."""
    tr.clear(keyspace.object_(bucket.bucket_id, key))
    tr.clear(keyspace.properties(bucket.bucket_id, key))


def put_properties(tr: Transaction, bucket: BucketInfo, key: bytes, row: bytes | None) -> None:
    """Give a key the properties of another one: its row, or none."""
    row_key = keyspace.properties(bucket.bucket_id, key)
    if row is None:
        tr.clear(row_key)
    else:
        tr.set(row_key, row)


async def delete_current(
    store: Store, tr: Transaction, bucket: BucketInfo, key: str, raw_key: bytes
) -> Deleted:
    """Delete without naming a version: by a marker once the bucket has had versioning."""
    current = await current_version(tr, bucket, raw_key)
    if not bucket.versioning:
        if current is not None:
            freed = _let_go(store, tr, current)
            store.add_usage(tr, bucket.bucket_id, -freed.size, -freed.versions)
            _clear_current(tr, bucket, raw_key)
            store.feed(tr, bucket.bucket_id, raw_key, "delete", current.version_id)
        return Deleted(key, None, False)
    sequence = await next_sequence(tr, bucket, raw_key, current)
    marker = _new_marker(store, bucket, sequence)
    freed = await _step_back(store, tr, bucket, raw_key, current)
    store.add_usage(tr, bucket.bucket_id, -freed.size, -freed.versions)
    _clear_current(tr, bucket, raw_key)
    _put_behind(tr, bucket, raw_key, marker)
    store.feed(tr, bucket.bucket_id, raw_key, "marker", marker.version_id)
    return Deleted(key, marker.version_id, True)


def _new_marker(store: Store, bucket: BucketInfo, sequence: int) -> VersionRecord:
    return VersionRecord(
        format=FORMAT,
        sequence=sequence,
        size=0,
        modified_ms=store.clock(),
        etag="",
        version_id=new_version_id(store, bucket, sequence),
        delete_marker=True,
        storage_class="",
        checksum_shown="",
        data_id=DataId(b""),
        data=InlineData(data=b""),
    )


async def take_current(
    store: Store, tr: Transaction, bucket: BucketInfo, raw_key: bytes, record: VersionRecord
) -> None:
    """Take the current version away, for another key to have its bytes; a marker hides what is
    behind it."""
    store.add_usage(tr, bucket.bucket_id, -record.size, -1)
    _clear_current(tr, bucket, raw_key)
    kind, version_id = "delete", record.version_id
    behind = await newest_behind(tr, bucket, raw_key)
    if behind is not None and not behind.delete_marker:
        marker = _new_marker(store, bucket, record.sequence)
        if marker.version_id == NULL:
            freed = await _remove_null_behind(store, tr, bucket, raw_key)
            store.add_usage(tr, bucket.bucket_id, -freed.size, -freed.versions)
        _put_behind(tr, bucket, raw_key, marker)
        kind, version_id = "marker", marker.version_id
    store.feed(tr, bucket.bucket_id, raw_key, kind, version_id)


async def delete_version(
    store: Store,
    tr: Transaction,
    bucket: BucketInfo,
    raw_key: bytes,
    record: VersionRecord,
    is_current: bool,
) -> None:
    """Remove one version for good; the newest one that is left becomes current unless it is a
    marker."""
    freed = _let_go(store, tr, record)
    store.add_usage(tr, bucket.bucket_id, -freed.size, -freed.versions)
    object_key = keyspace.object_(bucket.bucket_id, raw_key)
    if is_current:
        tr.clear(object_key)
    else:
        tr.clear(keyspace.version(bucket.bucket_id, raw_key, record.sequence))
        if record.version_id == NULL:
            tr.clear(keyspace.null(bucket.bucket_id, raw_key))
    store.feed(tr, bucket.bucket_id, raw_key, "delete", record.version_id)
    if not is_current and await tr.get(object_key) is not None:
        return
    newest = await newest_behind(tr, bucket, raw_key)
    if newest is None or newest.delete_marker:
        tr.clear(keyspace.properties(bucket.bucket_id, raw_key))
        return
    tr.clear(keyspace.version(bucket.bucket_id, raw_key, newest.sequence))
    if newest.version_id == NULL:
        tr.clear(keyspace.null(bucket.bucket_id, raw_key))
    tr.set(object_key, encode(newest))
