"""Operations on buckets and their configuration documents."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable

import msgspec

from engine.errors import (
    BucketExists,
    BucketNotEmpty,
    InvalidName,
    NoSuchBucket,
    NoSuchConfiguration,
)
from engine.ids import BucketId
from engine.meta import keyspace
from engine.meta.kv import ReadTransaction, Transaction
from engine.meta.records import FORMAT, BucketRecord, decode_bucket, encode
from engine.multipart import drop_upload
from engine.store import Store, bucket_info, get_bucket
from engine.types import BucketInfo

_NAME = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")

_OF_BUCKET = (
    keyspace.CONFIG,
    keyspace.NULL,
    keyspace.USAGE,
    keyspace.PROPERTIES,
    keyspace.LOCK,
)
"""Subspaces of what goes with its bucket."""

_UPLOADS_AT_ONCE = 1000
"""Uploads that one transaction aborts: three small rows each."""


def check_bucket_name(name: str) -> None:
    """Raises InvalidName unless the name follows S3's rules for new buckets.

    Source: S3 User Guide, "General purpose bucket naming rules".
    """
    if not _NAME.fullmatch(name):
        raise InvalidName(
            name, "3 to 63 characters a-z, 0-9, '-' and '.', a letter or digit at both ends"
        )
    if ".." in name:
        raise InvalidName(name, "no two '.' stand beside each other")
    if name.startswith(("xn--", "sthree-")) or name.endswith(("-s3alias", "--ol-s3")):
        raise InvalidName(name, "this prefix or suffix is reserved")
    try:
        ipaddress.IPv4Address(name)
    except ValueError:
        return
    raise InvalidName(name, "a bucket name does not look like an IP address")


class Buckets:
    def __init__(self, store: Store) -> None:
        self._store = store

    async def create(self, name: str, owner: str, region: str) -> BucketInfo:
        check_bucket_name(name)
        row_key = keyspace.bucket(name)
        record = BucketRecord(
            format=FORMAT,
            bucket_id=BucketId(self._store.random(8)),
            owner=owner,
            created_ms=self._store.clock(),
            region=region,
        )
        row = encode(record)

        async def body(tr: Transaction) -> None:
            existing = await tr.get(row_key)
            if existing is not None:
                raise BucketExists(name, decode_bucket(existing).owner)
            tr.set(row_key, row)

        await self._store.db.run(body)
        return bucket_info(name, row)

    async def get(self, name: str) -> BucketInfo:
        async def body(tr: ReadTransaction) -> BucketInfo:
            return await get_bucket(tr, name)

        return await self._store.db.read(body)

    async def delete(self, name: str) -> None:
        store = self._store

        async def body(tr: Transaction) -> bool:
            """Return whether the bucket is gone; else more uploads are to be aborted first."""
            bucket = await get_bucket(tr, name)
            for subspace in (keyspace.OBJECT, keyspace.VERSION):
                prefix = subspace + bucket.bucket_id
                if await tr.get_range(prefix, keyspace.after_prefix(prefix), limit=1):
                    raise BucketNotEmpty(name)
            prefix = keyspace.UPLOAD + bucket.bucket_id
            uploads = await tr.get_range(
                prefix, keyspace.after_prefix(prefix), limit=_UPLOADS_AT_ONCE
            )
            for row_key, _ in uploads:
                _, upload_id = keyspace.split_upload(row_key)
                drop_upload(store, tr, row_key, upload_id)
            if len(uploads) == _UPLOADS_AT_ONCE:
                return False
            tr.clear(keyspace.bucket(name))
            for subspace in _OF_BUCKET:
                prefix = subspace + bucket.bucket_id
                tr.clear_range(prefix, keyspace.after_prefix(prefix))
            return True

        while not await store.db.run(body):
            pass

    async def _list_of(
        self, names: Iterable[str], prefix: str, after: str, limit: int
    ) -> tuple[list[BucketInfo], bool]:
        """Return what ``list`` would if there were no buckets but these."""
        wanted = sorted(name for name in names if name > after and name.startswith(prefix))

        async def body(tr: ReadTransaction) -> list[BucketInfo]:
            found: list[BucketInfo] = []
            for name in wanted:
                row = await tr.get(keyspace.bucket(name))
                if row is not None:
                    found.append(bucket_info(name, row))
                if len(found) > limit:
                    break
            return found

        found = await self._store.db.read(body)
        return found[:limit], len(found) > limit

    async def list(
        self, prefix: str, after: str, limit: int, only: frozenset[str] | None
    ) -> tuple[list[BucketInfo], bool]:
        if only is not None:
            return await self._list_of(only, prefix, after, limit)
        begin = max(keyspace.bucket(prefix), keyspace.after(keyspace.bucket(after)))
        end = keyspace.after_prefix(keyspace.bucket(prefix))

        async def body(tr: ReadTransaction) -> list[tuple[bytes, bytes]]:
            return await tr.get_range(begin, end, limit=limit + 1)

        rows = await self._store.db.read(body)
        return [bucket_info(key[1:].decode(), row) for key, row in rows[:limit]], len(rows) > limit

    async def set_versioning(self, name: str, state: str) -> None:
        async def body(tr: Transaction) -> None:
            row = await tr.get(keyspace.bucket(name))
            if row is None:
                raise NoSuchBucket(name)
            record = msgspec.structs.replace(decode_bucket(row), versioning=state)
            tr.set(keyspace.bucket(name), encode(record))

        await self._store.db.run(body)

    async def config(self, name: str, kind: str) -> bytes:
        async def body(tr: ReadTransaction) -> bytes:
            bucket = await get_bucket(tr, name)
            document = await tr.get(keyspace.config(bucket.bucket_id, kind))
            if document is None:
                raise NoSuchConfiguration(name, kind)
            return document

        return await self._store.db.read(body)

    async def put_config(self, name: str, kind: str, document: bytes) -> None:
        async def body(tr: Transaction) -> None:
            bucket = await get_bucket(tr, name)
            tr.set(keyspace.config(bucket.bucket_id, kind), document)

        await self._store.db.run(body)

    async def delete_config(self, name: str, kind: str) -> None:
        async def body(tr: Transaction) -> None:
            bucket = await get_bucket(tr, name)
            tr.clear(keyspace.config(bucket.bucket_id, kind))

        await self._store.db.run(body)
