"""Limits of a bucket: how many bytes, and how many objects, its versions may have together.

The limits are in the bucket's row and the usage in sharded counters, so a bucket without limits
pays nothing, and one with limits a range read of few rows in the commit. The counters are read
without a conflict: on FoundationDB, writers that commit in the same instant do not see one another
and may together go over by what they write; the embedded store runs bodies one after another, so
there the limit is exact.

Every version counts, older ones too; delete markers and the parts of uploads under way do not.
What makes the usage no larger (a delete, a smaller replacement, a rename) is always possible,
also above a limit that was lowered.
"""

from __future__ import annotations

import msgspec

from engine.errors import InvalidArgument, NoSuchBucket, QuotaExceeded
from engine.ids import BucketId
from engine.meta import keyspace
from engine.meta.kv import ReadTransaction, Transaction
from engine.meta.records import VersionRecord, decode_bucket, encode
from engine.store import Store, get_bucket
from engine.types import BucketInfo, BucketUsage, Quota

NULL = "null"


async def read_usage(tr: ReadTransaction, bucket_id: BucketId) -> tuple[int, int]:
    """Return (bytes, versions) as counted; takes no part in conflict detection."""
    prefix = keyspace.USAGE + bucket_id
    size = count = 0
    for key, row in await tr.get_range(prefix, keyspace.after_prefix(prefix), snapshot=True):
        value = int.from_bytes(row, "little", signed=True)
        if key.endswith(b"b"):
            size += value
        else:
            count += value
    return size, count


async def check_quota(tr: ReadTransaction, bucket: BucketInfo, size: int, count: int) -> None:
    """Refuse what would add ``size`` bytes and ``count`` versions to a bucket without room.

    Raises: QuotaExceeded.
    """
    quota = bucket.quota
    if quota is None or (size <= 0 and count <= 0):
        return
    used_size, used_count = await read_usage(tr, bucket.bucket_id)
    if quota.bytes is not None and size > 0 and used_size + size > quota.bytes:
        raise QuotaExceeded(bucket.name, "bytes", used_size, quota.bytes)
    if quota.objects is not None and count > 0 and used_count + count > quota.objects:
        raise QuotaExceeded(bucket.name, "objects", used_count, quota.objects)


def growth(bucket: BucketInfo, current: VersionRecord | None, size: int) -> tuple[int, int]:
    """Return (bytes, versions) by which a new version of ``size`` bytes lets the bucket grow, at
    most: an older ``null`` version, which goes too, is not looked for."""
    if current is None or bucket.versioning == "Enabled" or current.version_id != NULL:
        return size, 1
    return size - current.size, 0


class Quotas:
    def __init__(self, store: Store) -> None:
        self._store = store

    async def usage(self, name: str) -> BucketUsage:
        async def body(tr: ReadTransaction) -> BucketUsage:
            bucket = await get_bucket(tr, name)
            size, count = await read_usage(tr, bucket.bucket_id)
            quota = bucket.quota or Quota()
            return BucketUsage(name, size, count, quota.bytes, quota.objects)

        return await self._store.db.read(body)

    async def set_quota(self, name: str, quota: Quota) -> None:
        for limit, value in (("bytes", quota.bytes), ("objects", quota.objects)):
            if value is not None and not 0 <= value < 1 << 63:
                raise InvalidArgument(limit, "a quota is a number from 0 to 2^63 - 1")

        async def body(tr: Transaction) -> None:
            row = await tr.get(keyspace.bucket(name))
            if row is None:
                raise NoSuchBucket(name)
            record = msgspec.structs.replace(
                decode_bucket(row), quota_bytes=quota.bytes, quota_objects=quota.objects
            )
            tr.set(keyspace.bucket(name), encode(record))

        await self._store.db.run(body)
