"""Operations on objects: put, open, head, delete, copy, tags."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import msgspec

from engine.commit import checked, claim, commit
from engine.conditions import check_read, check_write
from engine.data.writer import StagedData
from engine.errors import (
    Corrupt,
    EngineError,
    EntityTooLarge,
    InvalidArgument,
    IsDeleteMarker,
    Locked,
    NoSuchKey,
    NoSuchVersion,
    NotModified,
    PreconditionFailed,
    RequestError,
)
from engine.locks import check_locks, refuse_if_locked
from engine.meta import keyspace
from engine.meta.kv import VALUE_SIZE_MAX, ReadTransaction, Transaction
from engine.meta.read_only import refuse_if_read_only
from engine.meta.records import (
    FORMAT,
    Checksum,
    ChunkData,
    ChunkOwner,
    InlineData,
    InlineRow,
    VersionRecord,
    encode,
)
from engine.opened import OpenedObject, StreamSource
from engine.quota import check_quota, growth
from engine.store import Store, get_bucket, key_bytes
from engine.types import (
    NO_CONDITIONS,
    Attributes,
    BucketInfo,
    Check,
    Conditions,
    CopySource,
    Deleted,
    DeleteItem,
    Digests,
    ObjectInfo,
    Pairs,
    Source,
)
from engine.versions import (
    NULL,
    current_version,
    delete_current,
    delete_version,
    find_version,
    new_version_id,
    newest_behind,
    next_sequence,
    put_properties,
    put_version,
    replace_attributes,
)

DEFAULT_CHECKSUM = "CRC64NVME"
MD5 = frozenset({"MD5"})
"""Always computed: it is the ETag."""

DELETE_BATCH = 64
"""Deletes of one request that share a transaction."""


def checksum_shown(checksums: Sequence[Checksum]) -> str:
    return " ".join(f"{c.algorithm} {c.type}" for c in checksums)


class CopiedProperties(NamedTuple):
    """The properties of a copy's source (``engine.properties``); the target gets the same."""

    row: bytes | None


class Objects:
    def __init__(self, store: Store) -> None:
        self._store = store

    # Reading

    async def _find(
        self,
        tr: ReadTransaction,
        bucket_name: str,
        key: str,
        version_id: str | None,
    ) -> tuple[BucketInfo, VersionRecord]:
        bucket = await get_bucket(tr, bucket_name)
        raw_key = key_bytes(key)
        if version_id is None:
            record = await current_version(tr, bucket, raw_key)
            if record is None:
                newest = await newest_behind(tr, bucket, raw_key)
                raise NoSuchKey(bucket_name, key, newest.version_id if newest else None)
            return bucket, record
        found = await find_version(tr, bucket, raw_key, version_id)
        if found is None:
            raise NoSuchVersion(bucket_name, key, version_id)
        if found[0].delete_marker:
            raise IsDeleteMarker(bucket_name, key, version_id, found[0].modified_ms)
        return bucket, found[0]

    async def head(
        self, bucket_name: str, key: str, version_id: str | None, conditions: Conditions
    ) -> ObjectInfo:
        async def body(tr: ReadTransaction) -> ObjectInfo:
            bucket, record = await self._find(tr, bucket_name, key, version_id)
            return ObjectInfo(bucket, key, record)

        info = await self._store.db.read(body)
        check_read(conditions, info.record)
        return info

    async def open(
        self, bucket_name: str, key: str, version_id: str | None, conditions: Conditions
    ) -> OpenedObject:
        async def body(tr: ReadTransaction) -> tuple[ObjectInfo, bytes | None]:
            bucket, record = await self._find(tr, bucket_name, key, version_id)
            check_read(conditions, record)
            inline: bytes | None = None
            match record.data:
                case InlineData(data=data):
                    inline = data
                case InlineRow():
                    inline = await tr.get(keyspace.inline(record.data_id))
                    if inline is None:
                        raise Corrupt(f"the bytes of {key!r} are missing in the metadata store")
                case _:
                    pass
            return ObjectInfo(bucket, key, record), inline

        # The pin is older than the snapshot, so nothing that it shows is collected meanwhile.
        sessions = self._store.sessions
        pin = sessions.read_started()
        try:
            info, inline = await self._store.db.read(body)
        except BaseException:
            sessions.read_ended(pin)
            raise
        return OpenedObject(self._store, info, inline, pin)

    # Writing

    async def put(
        self,
        bucket_name: str,
        key: str,
        source: Source,
        *,
        size: int | None,
        algorithms: frozenset[str],
        attributes: Attributes,
        check: Check,
        conditions: Conditions,
        copied: CopiedProperties | None = None,
    ) -> ObjectInfo:
        raw_key = key_bytes(key)
        if conditions is not NO_CONDITIONS or size is None or size > self._store.config.inline_max:
            await self._refuse_early(bucket_name, key, raw_key, conditions, size or 0)
        staged = await self._store.data.stage(source, size=size, algorithms=algorithms | MD5)
        checksums = await checked(staged, check)
        return await self.commit_put(
            bucket_name, key, raw_key, staged, attributes, checksums, conditions, copied
        )

    async def _refuse_early(
        self, bucket_name: str, key: str, raw_key: bytes, conditions: Conditions, size: int
    ) -> None:
        """Spare the client sending a body that the commit would refuse as things stand now."""

        async def body(tr: ReadTransaction) -> None:
            await refuse_if_read_only(tr)
            bucket = await get_bucket(tr, bucket_name)
            current = await current_version(tr, bucket, raw_key)
            check_write(conditions, bucket_name, key, current)
            if bucket.quota is not None:
                await check_quota(tr, bucket, *growth(bucket, current, size))
            await refuse_if_locked(
                self._store, tr, bucket, raw_key, conditions, membership=current is None
            )

        await self._store.db.read(body)

    async def commit_put(
        self,
        bucket_name: str,
        key: str,
        raw_key: bytes,
        staged: StagedData,
        attributes: Attributes,
        checksums: list[Checksum],
        conditions: Conditions,
        copied: CopiedProperties | None = None,
    ) -> ObjectInfo:
        """Make staged bytes the key's new current version, with what ``put`` was told."""
        store = self._store
        data_id = store.new_data_id()

        async def body(tr: Transaction) -> ObjectInfo:
            bucket = await get_bucket(tr, bucket_name)
            current = await current_version(tr, bucket, raw_key)
            check_write(conditions, bucket_name, key, current)
            await check_locks(store, tr, bucket, raw_key, conditions, membership=current is None)
            sequence = await next_sequence(tr, bucket, raw_key, current)
            record = VersionRecord(
                format=FORMAT,
                sequence=sequence,
                size=staged.size,
                modified_ms=store.clock(),
                etag=staged.digests["MD5"].hex(),
                version_id=new_version_id(store, bucket, sequence),
                delete_marker=False,
                storage_class=attributes.storage_class,
                checksum_shown=checksum_shown(checksums),
                data_id=data_id,
                data=staged.data,
                headers=attributes.headers,
                metadata=attributes.metadata,
                tags=attributes.tags,
                checksums=checksums,
            )
            if isinstance(staged.data, ChunkData) and len(encode(record)) > VALUE_SIZE_MAX:
                raise EntityTooLarge(staged.size, store.config.chunk_size * 3500)
            if not isinstance(staged.data, InlineData):
                owner = ChunkOwner(bucket.bucket_id, raw_key, sequence, data_id)
                await claim(store, tr, staged, owner, data_id)
            await put_version(store, tr, bucket, raw_key, current, record)
            if copied is not None:
                put_properties(tr, bucket, raw_key, copied.row)
            return ObjectInfo(bucket, key, record)

        return await commit(store, staged, body)

    # Deleting

    async def _delete_in(self, tr: Transaction, bucket: BucketInfo, item: DeleteItem) -> Deleted:
        store = self._store
        raw_key = key_bytes(item.key)
        if item.version_id is None:
            if item.conditions is not NO_CONDITIONS:
                current = await current_version(tr, bucket, raw_key)
                check_write(item.conditions, bucket.name, item.key, current)
            await check_locks(
                store, tr, bucket, raw_key, item.conditions, membership=True, removes=True
            )
            return await delete_current(store, tr, bucket, item.key, raw_key)
        found = await find_version(tr, bucket, raw_key, item.version_id)
        if item.conditions is not NO_CONDITIONS:
            check_write(item.conditions, bucket.name, item.key, None if found is None else found[0])
        if found is None:
            return Deleted(item.key, item.version_id, False)
        if found[1] or found[0].delete_marker:
            # It is, or hides, what the key's locks protect; older versions are not.
            await check_locks(store, tr, bucket, raw_key, item.conditions, membership=True)
        await delete_version(store, tr, bucket, raw_key, *found)
        return Deleted(item.key, item.version_id, found[0].delete_marker)

    async def delete(
        self, bucket_name: str, key: str, version_id: str | None, conditions: Conditions
    ) -> Deleted:
        item = DeleteItem(key, version_id, conditions)

        async def body(tr: Transaction) -> Deleted:
            return await self._delete_in(tr, await get_bucket(tr, bucket_name), item)

        return await self._store.db.run(body)

    async def delete_many(
        self, bucket_name: str, items: Sequence[DeleteItem]
    ) -> list[Deleted | EngineError]:
        answers: list[Deleted | EngineError] = []
        for first in range(0, len(items), DELETE_BATCH):
            batch = items[first : first + DELETE_BATCH]

            async def body(
                tr: Transaction, batch: Sequence[DeleteItem] = batch
            ) -> list[Deleted | EngineError]:
                bucket = await get_bucket(tr, bucket_name)
                results: list[Deleted | EngineError] = []
                for item in batch:
                    # A refused item has written nothing: checks come before the first write.
                    try:
                        results.append(await self._delete_in(tr, bucket, item))
                    except (RequestError, Locked) as error:
                        results.append(error)
                return results

            answers += await self._store.db.run(body)
        return answers

    # Copying and tagging

    async def copy(
        self,
        source: CopySource,
        bucket_name: str,
        key: str,
        *,
        attributes: Attributes | None,
        tags: Pairs | None,
        storage_class: str,
        checksum_algorithm: str,
        conditions: Conditions,
    ) -> ObjectInfo:
        opened = await self.open_source(source)
        async with opened:
            record = opened.info.record
            if attributes is None:
                attributes = Attributes(headers=record.headers, metadata=record.metadata)
            attributes = msgspec.structs.replace(
                attributes,
                tags=record.tags if tags is None else tags,
                storage_class=storage_class,
            )
            kept = record.checksums[0].algorithm if record.checksums else DEFAULT_CHECKSUM
            algorithm = checksum_algorithm or kept
            if (source.bucket, source.key) == (bucket_name, key) and algorithm == kept:
                info = await self._copy_in_place(opened.info, attributes, conditions)
                if info is not None:
                    return info

            def check(digests: Digests) -> list[Checksum]:
                return [Checksum(algorithm=algorithm, value=digests[algorithm])]

            copied = await self._properties_of(opened.info)
            stream = await opened.stream(0, opened.info.size)
            try:
                return await self.put(
                    bucket_name,
                    key,
                    StreamSource(stream),
                    size=opened.info.size,
                    algorithms=frozenset((algorithm,)),
                    attributes=attributes,
                    check=check,
                    conditions=conditions,
                    copied=copied,
                )
            finally:
                await stream.aclose()

    async def _properties_of(self, info: ObjectInfo) -> CopiedProperties:
        key = keyspace.properties(info.bucket.bucket_id, info.key.encode())

        async def body(tr: ReadTransaction) -> bytes | None:
            return await tr.get(key)

        return CopiedProperties(await self._store.db.read(body))

    async def open_source(self, source: CopySource) -> OpenedObject:
        """Open what is to be copied. Raises what ``open`` raises; 304 becomes 412."""
        try:
            return await self.open(source.bucket, source.key, source.version_id, source.conditions)
        except NotModified:
            raise PreconditionFailed("x-amz-copy-source-if-none-match") from None
        except IsDeleteMarker:
            raise InvalidArgument(
                "x-amz-copy-source",
                "The source of a copy request may not specifically refer to a delete marker "
                "by version id.",
            ) from None

    async def _copy_in_place(
        self, info: ObjectInfo, attributes: Attributes, conditions: Conditions
    ) -> ObjectInfo | None:
        """Give the current version new attributes without moving bytes.

        Only where no version is kept for it: the ``null`` version of a bucket whose versioning
        is not enabled. None when that is not so, or the object changed since it was opened.
        """
        store = self._store
        raw_key = key_bytes(info.key)

        async def body(tr: Transaction) -> ObjectInfo | None:
            bucket = await get_bucket(tr, info.bucket.name)
            current = await current_version(tr, bucket, raw_key)
            if (
                current is None
                or bucket.versioning == "Enabled"
                or current.version_id != NULL
                or current.data_id != info.record.data_id
            ):
                return None
            check_write(conditions, bucket.name, info.key, current)
            await check_locks(store, tr, bucket, raw_key, conditions, membership=False)
            record = msgspec.structs.replace(
                current,
                modified_ms=store.clock(),
                storage_class=attributes.storage_class,
                headers=attributes.headers,
                metadata=attributes.metadata,
                tags=attributes.tags,
            )
            replace_attributes(store, tr, bucket, raw_key, record, is_current=True)
            return ObjectInfo(bucket, info.key, record)

        return await store.db.run(body)

    async def set_tags(
        self, bucket_name: str, key: str, tags: Pairs, version_id: str | None
    ) -> ObjectInfo:
        store = self._store

        async def body(tr: Transaction) -> ObjectInfo:
            bucket, record = await self._find(tr, bucket_name, key, version_id)
            raw_key = key_bytes(key)
            current = await current_version(tr, bucket, raw_key)
            is_current = current is not None and current.version_id == record.version_id
            if is_current:
                await check_locks(store, tr, bucket, raw_key, NO_CONDITIONS, membership=False)
            record = msgspec.structs.replace(record, tags=tags)
            replace_attributes(store, tr, bucket, raw_key, record, is_current)
            return ObjectInfo(bucket, key, record)

        return await store.db.run(body)

    async def set_metadata(
        self,
        bucket_name: str,
        key: str,
        change: Callable[[Pairs], Pairs],
        conditions: Conditions,
    ) -> ObjectInfo:
        store = self._store

        async def body(tr: Transaction) -> ObjectInfo:
            bucket, record = await self._find(tr, bucket_name, key, None)
            check_write(conditions, bucket_name, key, record)
            raw_key = key_bytes(key)
            await check_locks(store, tr, bucket, raw_key, conditions, membership=False)
            record = msgspec.structs.replace(record, metadata=change(record.metadata))
            replace_attributes(store, tr, bucket, raw_key, record, is_current=True)
            return ObjectInfo(bucket, key, record)

        return await store.db.run(body)
