"""Renaming an object: its current version moves to another key of the bucket, bytes and all.

One transaction; no bytes are copied. The target's current version is replaced as by a PUT. With
versioning the source's older versions stay where they are, behind a delete marker, and the
target's history is kept.
"""

from __future__ import annotations

import msgspec

from engine.conditions import check_write
from engine.errors import Corrupt, NoSuchKey
from engine.locks import check_locks
from engine.meta import keyspace
from engine.meta.kv import Transaction
from engine.meta.records import ChunkData, VersionRecord, decode_chunk, encode
from engine.store import Store, get_bucket, key_bytes
from engine.types import NO_CONDITIONS, BucketInfo, Conditions, ObjectInfo
from engine.versions import (
    current_version,
    new_version_id,
    next_sequence,
    put_properties,
    put_version,
    take_current,
)


class Renames:
    def __init__(self, store: Store) -> None:
        self._store = store

    async def rename(
        self,
        bucket_name: str,
        key: str,
        new_key: str,
        *,
        conditions: Conditions = NO_CONDITIONS,
        new_conditions: Conditions = NO_CONDITIONS,
    ) -> ObjectInfo:
        raw_key, raw_new = key_bytes(key), key_bytes(new_key)

        async def body(tr: Transaction) -> ObjectInfo:
            bucket = await get_bucket(tr, bucket_name)
            record = await current_version(tr, bucket, raw_key)
            if record is None:
                raise NoSuchKey(bucket_name, key)
            check_write(conditions, bucket_name, key, record)
            if raw_new == raw_key:
                check_write(new_conditions, bucket_name, key, record)
                return ObjectInfo(bucket, key, record)
            replaced = await current_version(tr, bucket, raw_new)
            check_write(new_conditions, bucket_name, new_key, replaced)
            store = self._store
            await check_locks(store, tr, bucket, raw_key, conditions, membership=True, removes=True)
            await check_locks(
                store, tr, bucket, raw_new, new_conditions, membership=replaced is None
            )
            moved = await move(store, tr, bucket, (raw_key, record), (raw_new, replaced))
            return ObjectInfo(bucket, new_key, moved)

        return await self._store.db.run(body)


async def move(
    store: Store,
    tr: Transaction,
    bucket: BucketInfo,
    source: tuple[bytes, VersionRecord],
    target: tuple[bytes, VersionRecord | None],
) -> VersionRecord:
    """Make the current version of the source's key that of the target's, in the caller's
    transaction; return it as it is now. Both are given with their current version."""
    raw_key, record = source
    raw_new, replaced = target
    sequence = await next_sequence(tr, bucket, raw_new, replaced)
    moved = msgspec.structs.replace(
        record, sequence=sequence, version_id=new_version_id(store, bucket, sequence)
    )
    if isinstance(record.data, ChunkData):
        for chunk_id, _ in record.data.chunks:
            row = await tr.get(keyspace.chunk(chunk_id))
            if row is None:
                raise Corrupt(f"chunk {chunk_id.hex()} has no record")
            chunk = decode_chunk(row)
            owner = msgspec.structs.replace(chunk.owner, key=raw_new, sequence=sequence)
            chunk = msgspec.structs.replace(chunk, owner=owner)
            tr.set(keyspace.chunk(chunk_id), encode(chunk))
    properties = await tr.get(keyspace.properties(bucket.bucket_id, raw_key))
    await take_current(store, tr, bucket, raw_key, record)
    # It only moves, so a bucket above its quota can be tidied up.
    await put_version(store, tr, bucket, raw_new, replaced, moved, limited=False)
    put_properties(tr, bucket, raw_new, properties)
    return moved
