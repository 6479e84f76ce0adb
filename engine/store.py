"""``Store``: the parts of an opened store, as the operations see them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache

from engine.config import Profile, StoreConfig
from engine.data.nodes import NodePool
from engine.data.store import DataStore
from engine.errors import InvalidName, NoSuchBucket
from engine.ids import BucketId, Clock, DataId, Random, UploadId, timed_id
from engine.meta import keyspace
from engine.meta.kv import Database, ReadTransaction, Transaction
from engine.meta.records import (
    FORMAT,
    ChunkData,
    FeedRecord,
    GarbageRecord,
    InlineRow,
    PartData,
    PartRecord,
    VersionRecord,
    decode_bucket,
    encode,
)
from engine.sessions import Sessions
from engine.types import KEY_BYTES_MAX, BucketInfo, Quota

USAGE_SHARDS = 8


@dataclass(slots=True)
class Store:
    config: StoreConfig
    store_id: str
    profile: Profile
    db: Database
    pool: NodePool
    data: DataStore
    sessions: Sessions
    clock: Clock
    random: Random
    wake_repair: Callable[[], None] = field(default=lambda: None)
    """Tells the repair service of this process that its queue grew."""

    def new_data_id(self) -> DataId:
        return DataId(timed_id(self.clock, self.random))

    # What several operations do inside their transactions.

    def add_usage(self, tr: Transaction, bucket_id: BucketId, size: int, count: int) -> None:
        """Count versions and their bytes; sharded so that one bucket has no single hot key."""
        shard = self.random(1)[0] % USAGE_SHARDS
        if size:
            tr.add(keyspace.usage(bucket_id, shard, b"b"), size)
        if count:
            tr.add(keyspace.usage(bucket_id, shard, b"n"), count)

    def discard(self, tr: Transaction, record: VersionRecord | PartRecord) -> None:
        """Let go of the bytes of a version or part whose row the caller removes."""
        match record.data:
            case ChunkData() | PartData():
                tr.set(
                    keyspace.garbage(self.clock(), record.data_id),
                    encode(GarbageRecord(format=FORMAT, data=record.data)),
                )
            case InlineRow():
                # Readers took the bytes when they opened the version: no grace is needed.
                tr.clear(keyspace.inline(record.data_id))
            case _:
                pass

    def discard_upload(self, tr: Transaction, upload_id: UploadId) -> None:
        """Let go of all parts of an upload whose row the caller removes."""
        record = GarbageRecord(format=FORMAT, data=PartData(upload_id=upload_id))
        tr.set(keyspace.garbage(self.clock(), DataId(upload_id)), encode(record))

    def feed(
        self, tr: Transaction, bucket_id: BucketId, key: bytes, kind: str, version_id: str
    ) -> None:
        record = FeedRecord(
            format=FORMAT,
            at_ms=self.clock(),
            bucket_id=bucket_id,
            key=key,
            kind=kind,
            version_id=version_id,
        )
        # The key is part of the row's: all changes of one transaction share its stamp.
        tr.set_versionstamped_key(keyspace.FEED, key, encode(record))
        tr.add(keyspace.FEED_HEAD, 1)


@lru_cache(maxsize=1024)
def bucket_info(name: str, row: bytes) -> BucketInfo:
    """Decode a bucket row; cached by its bytes, so that what is cached is never stale."""
    record = decode_bucket(row)
    limited = record.quota_bytes is not None or record.quota_objects is not None
    return BucketInfo(
        name=name,
        bucket_id=record.bucket_id,
        owner=record.owner,
        created_ms=record.created_ms,
        versioning=record.versioning,
        region=record.region,
        quota=Quota(record.quota_bytes, record.quota_objects) if limited else None,
    )


async def get_bucket(tr: ReadTransaction, name: str) -> BucketInfo:
    """Raises: NoSuchBucket."""
    row = await tr.get_cached(keyspace.bucket(name))
    if row is None:
        raise NoSuchBucket(name)
    return bucket_info(name, row)


def key_bytes(key: str) -> bytes:
    """Return the key as it is stored. Raises: InvalidName."""
    try:
        raw = key.encode()
    except UnicodeEncodeError:
        raise InvalidName(key, "a key is UTF-8") from None
    if not raw:
        raise InvalidName(key, "a key has at least one byte")
    if len(raw) > KEY_BYTES_MAX:
        raise InvalidName(key, f"a key has at most {KEY_BYTES_MAX} bytes")
    return raw
