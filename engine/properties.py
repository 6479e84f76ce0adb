"""Dead properties: what WebDAV clients keep beside an object, whatever it means to them.

One row under ``Q`` holds all properties of one key. It is there only as long as the key has a
current version: PUT leaves it alone, a rename moves it, a copy copies it, a delete drops it, each
in the transaction that does so (``versions``, ``rename``, ``objects``). A folder that only its
members make gets a marker (``folder/``, an empty object) with its first property; a bucket's own
are under the empty key.

Source: RFC 4918, sections 4, 9.2, 9.8.2 and 9.9.1.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import msgspec

from engine.conditions import check_write
from engine.empty import put_empty
from engine.errors import EntityTooLarge, NoSuchKey
from engine.ids import BucketId
from engine.locks import check_locks
from engine.members import member_rows
from engine.meta import keyspace
from engine.meta.kv import ReadTransaction, Transaction
from engine.meta.records import FORMAT, PropertiesRecord, VersionRecord, decode_properties, encode
from engine.store import Store, get_bucket, key_bytes
from engine.times import MTIME
from engine.types import NO_CONDITIONS, BucketInfo, Conditions, Pairs, PropertyChange
from engine.versions import current_version, put_properties, replace_attributes

PROPERTIES_SIZE_MAX: Final = 64 * 1024
"""Bytes of all properties of one key, names included."""


async def properties_row(tr: ReadTransaction, bucket_id: BucketId, key: bytes) -> bytes | None:
    return await tr.get(keyspace.properties(bucket_id, key))


def decode_row(row: bytes | None) -> Pairs:
    return [] if row is None else decode_properties(row).properties


class Properties:
    """Keys may be folders (``a/``), or empty for the bucket itself."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def get(self, bucket_name: str, key: str) -> Pairs:
        """Return (``{namespace}name``, XML) of each property; none also when nothing is there.

        Raises: NoSuchBucket.
        """

        async def body(tr: ReadTransaction) -> bytes | None:
            bucket = await get_bucket(tr, bucket_name)
            return await properties_row(tr, bucket.bucket_id, key.encode())

        return decode_row(await self._store.db.read(body))

    async def of_members(
        self, bucket_name: str, folder: str, first: str, last: str
    ) -> dict[str, Pairs]:
        """Return the properties of a folder's members that have any, by their keys, from
        ``first`` to ``last``; a member that is a folder ends with a slash.

        Raises: NoSuchBucket.
        """

        async def body(tr: ReadTransaction) -> list[tuple[bytes, bytes]]:
            bucket = await get_bucket(tr, bucket_name)
            base = keyspace.PROPERTIES + bucket.bucket_id
            return await member_rows(tr, base, folder.encode(), first.encode(), last.encode())

        rows = await self._store.db.read(body)
        return {key.decode(): decode_row(row) for key, row in rows}

    async def change(
        self,
        bucket_name: str,
        key: str,
        changes: Sequence[PropertyChange],
        *,
        modified: str | None = None,
        conditions: Conditions = NO_CONDITIONS,
    ) -> None:
        """Set and remove properties, all of them or none; bytes and version stay.

        ``modified``: the time of modification to show, in seconds, kept in the metadata as
        ``mtime`` with the rest.

        Raises: NoSuchBucket, NoSuchKey, PreconditionFailed, Locked, EntityTooLarge.
        """
        raw_key = key_bytes(key) if key else b""

        async def body(tr: Transaction) -> None:
            bucket = await get_bucket(tr, bucket_name)
            record = await self._owner(tr, bucket, key, raw_key, conditions)
            if record is not None and modified is not None:
                others = [pair for pair in record.metadata if pair[0] != MTIME]
                changed = msgspec.structs.replace(record, metadata=[*others, (MTIME, modified)])
                replace_attributes(self._store, tr, bucket, raw_key, changed, is_current=True)
            row = await properties_row(tr, bucket.bucket_id, raw_key)
            properties = dict(decode_row(row))
            for name, xml in changes:
                properties.pop(name, None)
                if xml is not None:
                    properties[name] = xml
            put_properties(tr, bucket, raw_key, _encoded(properties))
            version_id = "" if record is None else record.version_id
            # One change of a key per transaction is in the feed: the last one.
            if modified is None:
                self._store.feed(tr, bucket.bucket_id, raw_key, "properties", version_id)

        await self._store.db.run(body)

    async def _owner(
        self,
        tr: Transaction,
        bucket: BucketInfo,
        key: str,
        raw_key: bytes,
        conditions: Conditions,
    ) -> VersionRecord | None:
        """Let the change by and return the version whose properties change; None: a bucket's.

        Raises: NoSuchKey, PreconditionFailed, Locked.
        """
        store = self._store
        if not raw_key:
            await check_locks(store, tr, bucket, raw_key, conditions, membership=False)
            return None
        current = await current_version(tr, bucket, raw_key)
        check_write(conditions, bucket.name, key, current)
        if current is not None:
            await check_locks(store, tr, bucket, raw_key, conditions, membership=False)
            return current
        base = keyspace.object_(bucket.bucket_id, raw_key)
        is_folder = raw_key.endswith(b"/")
        if not is_folder or not await tr.get_range(base, keyspace.after_prefix(base), limit=1):
            raise NoSuchKey(bucket.name, key)
        await check_locks(store, tr, bucket, raw_key, conditions, membership=False)
        return await put_empty(store, tr, bucket, raw_key)


def _encoded(properties: dict[str, str]) -> bytes | None:
    """Raises: EntityTooLarge."""
    if not properties:
        return None
    record = PropertiesRecord(format=FORMAT, properties=sorted(properties.items()))
    row = encode(record)
    if len(row) > PROPERTIES_SIZE_MAX:
        raise EntityTooLarge(len(row), PROPERTIES_SIZE_MAX)
    return row
