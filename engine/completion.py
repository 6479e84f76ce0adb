"""Completing a multipart upload: its parts become one object.

Complete reads its parts page by page and commits only if no part was put meanwhile: every
UploadPart bumps a counter (without a conflict among themselves) that Complete reads, so the
transaction stays small however many parts there are.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from itertools import pairwise

import trio

from engine.conditions import check_write
from engine.data.digests import combine, digests_of
from engine.errors import (
    BadDigest,
    BadPart,
    ConditionConflict,
    EntityTooLarge,
    EntityTooSmall,
    InvalidArgument,
    InvalidPartOrder,
)
from engine.ids import DataId, UploadId
from engine.locks import check_locks
from engine.meta import keyspace
from engine.meta.kv import ReadTransaction, Transaction
from engine.meta.records import (
    FORMAT,
    Checksum,
    ManifestRecord,
    PartData,
    UploadRecord,
    VersionRecord,
    decode_manifest,
    decode_part,
    decode_upload,
    encode,
)
from engine.multipart import find_upload, part_page
from engine.objects import DEFAULT_CHECKSUM, checksum_shown
from engine.store import Store, get_bucket, key_bytes
from engine.types import (
    OBJECT_SIZE_MAX,
    PART_SIZE_MIN,
    CompletePart,
    Conditions,
    ObjectInfo,
    PartInfo,
)
from engine.versions import current_version, new_version_id, next_sequence, put_version

PAGE = 1000
COMPLETE_TRIES = 5


def object_etag(parts: Sequence[PartInfo]) -> str:
    """Return S3's ETag of a multipart object: the MD5 of its parts' MD5s, and their number."""
    joined = b"".join(bytes.fromhex(part.etag) for part in parts)
    return f"{hashlib.md5(joined, usedforsecurity=False).hexdigest()}-{len(parts)}"


def object_checksum(
    algorithm: str, checksum_type: str, parts: Sequence[PartInfo]
) -> Checksum | None:
    """Return the object's checksum from its parts' checksums; None when a part lacks one.

    Source: S3 User Guide, "Checking object integrity", full object and composite checksums.
    """
    values: list[tuple[bytes, int]] = []
    for part in parts:
        found = [c.value for c in part.checksums if c.algorithm == algorithm]
        if not found:
            return None
        values.append((found[0], part.size))
    if checksum_type == "COMPOSITE":
        value = digests_of(b"".join(value for value, _ in values), (algorithm,))[algorithm]
        return Checksum(algorithm=algorithm, value=value, type="COMPOSITE", parts=len(values))
    joined, _ = values[0]
    for following, size in values[1:]:
        joined = combine(algorithm, joined, following, size)
    return Checksum(algorithm=algorithm, value=joined)


class Completion:
    def __init__(self, store: Store) -> None:
        self._store = store

    async def complete(
        self,
        bucket_name: str,
        key: str,
        upload_id: UploadId,
        parts: Sequence[CompletePart],
        *,
        checksum: Checksum | None,
        size: int | None,
        conditions: Conditions,
    ) -> ObjectInfo:
        raw_key = key_bytes(key)
        if not parts:
            raise InvalidArgument("Part", "an upload is completed with at least one part")
        for before, part in pairwise(parts):
            if part.number <= before.number:
                raise InvalidPartOrder
        for _ in range(COMPLETE_TRIES):
            answered = await self._answered_before(bucket_name, key, raw_key, upload_id)
            if answered is not None:
                return answered
            count, stored = await self._read_parts(bucket_name, raw_key, upload_id)
            chosen = _choose(parts, stored)
            info = await self._commit_complete(
                bucket_name,
                key,
                upload_id,
                count=count,
                chosen=chosen,
                unused=sorted(stored.keys() - {part.number for part in chosen}),
                checksum=checksum,
                size=size,
                conditions=conditions,
            )
            if info is not None:
                return info
        raise ConditionConflict(key)

    async def _answered_before(
        self, bucket_name: str, key: str, raw_key: bytes, upload_id: UploadId
    ) -> ObjectInfo | None:
        """Return what an earlier Complete of this upload answered, if there was one."""

        async def body(tr: ReadTransaction) -> ObjectInfo | None:
            bucket = await get_bucket(tr, bucket_name)
            row = await tr.get(keyspace.manifest(upload_id))
            if row is None:
                return None
            manifest = decode_manifest(row)
            if (manifest.bucket_id, manifest.key) != (bucket.bucket_id, raw_key):
                return None
            record = VersionRecord(
                format=FORMAT,
                sequence=0,
                size=sum(size for _, size in manifest.parts),
                modified_ms=manifest.completed_ms,
                etag=manifest.etag,
                version_id=manifest.version_id,
                delete_marker=False,
                storage_class="",
                checksum_shown=checksum_shown(manifest.checksums),
                data_id=DataId(upload_id),
                data=PartData(upload_id=upload_id),
                checksums=manifest.checksums,
                parts_count=len(manifest.parts),
            )
            return ObjectInfo(bucket, key, record)

        return await self._store.db.read(body)

    async def _read_parts(
        self, bucket_name: str, raw_key: bytes, upload_id: UploadId
    ) -> tuple[bytes | None, dict[int, PartInfo]]:
        """Return the upload's part counter and its parts; the counter is from before the parts."""

        async def first(tr: ReadTransaction) -> bytes | None:
            await find_upload(tr, bucket_name, raw_key, upload_id)
            return await tr.get(keyspace.part_count(upload_id))

        count = await self._store.db.read(first)
        stored: dict[int, PartInfo] = {}
        after, more = 0, True
        while more:

            async def page(tr: ReadTransaction, after: int = after) -> tuple[list[PartInfo], bool]:
                return await part_page(tr, upload_id, after, PAGE)

            parts, more = await self._store.db.read(page)
            stored.update((part.number, part) for part in parts)
            after = parts[-1].number if parts else after
            await trio.lowlevel.checkpoint()
        return count, stored

    async def _commit_complete(
        self,
        bucket_name: str,
        key: str,
        upload_id: UploadId,
        *,
        count: bytes | None,
        chosen: list[PartInfo],
        unused: list[int],
        checksum: Checksum | None,
        size: int | None,
        conditions: Conditions,
    ) -> ObjectInfo | None:
        """Commit; None when a part was put since ``count`` was read, or the upload ended."""
        store = self._store
        raw_key = key_bytes(key)
        total = sum(part.size for part in chosen)
        if total > OBJECT_SIZE_MAX:
            raise EntityTooLarge(total, OBJECT_SIZE_MAX)
        if size is not None and size != total:
            raise InvalidArgument("x-amz-mp-object-size", f"the parts have {total} bytes")
        etag = object_etag(chosen)
        data_id = DataId(upload_id)

        async def body(tr: Transaction) -> ObjectInfo | None:
            bucket = await get_bucket(tr, bucket_name)
            row = await tr.get(keyspace.upload(bucket.bucket_id, raw_key, upload_id))
            if row is None or await tr.get(keyspace.part_count(upload_id)) != count:
                return None
            upload = decode_upload(row)
            checksums = _object_checksums(upload, chosen, checksum)
            current = await current_version(tr, bucket, raw_key)
            check_write(conditions, bucket_name, key, current)
            await check_locks(store, tr, bucket, raw_key, conditions, membership=current is None)
            sequence = await next_sequence(tr, bucket, raw_key, current)
            record = VersionRecord(
                format=FORMAT,
                sequence=sequence,
                size=total,
                modified_ms=store.clock(),
                etag=etag,
                version_id=new_version_id(store, bucket, sequence),
                delete_marker=False,
                storage_class=upload.storage_class,
                checksum_shown=checksum_shown(checksums),
                data_id=data_id,
                data=PartData(upload_id=upload_id),
                headers=upload.headers,
                metadata=upload.metadata,
                tags=upload.tags,
                checksums=checksums,
                parts_count=len(chosen),
            )
            manifest = ManifestRecord(
                format=FORMAT,
                bucket_id=bucket.bucket_id,
                key=raw_key,
                etag=etag,
                version_id=record.version_id,
                completed_ms=record.modified_ms,
                parts=[(part.number, part.size) for part in chosen],
                checksums=checksums,
            )
            for number in unused:
                part_row = await tr.get(keyspace.part(upload_id, number))
                if part_row is not None:
                    store.discard(tr, decode_part(part_row))
                    tr.clear(keyspace.part(upload_id, number))
            tr.set(keyspace.manifest(upload_id), encode(manifest))
            tr.clear(keyspace.upload(bucket.bucket_id, raw_key, upload_id))
            tr.clear(keyspace.part_count(upload_id))
            await put_version(store, tr, bucket, raw_key, current, record)
            return ObjectInfo(bucket, key, record)

        return await store.db.run(body)


def _choose(parts: Sequence[CompletePart], stored: dict[int, PartInfo]) -> list[PartInfo]:
    """Return the parts that Complete names. Raises: BadPart, EntityTooSmall, BadDigest."""
    chosen: list[PartInfo] = []
    for part in parts:
        found = stored.get(part.number)
        if found is None or found.etag != part.etag:
            raise BadPart(part.number, part.etag)
        for claimed in part.checksums:
            if any(
                c.algorithm == claimed.algorithm and c.value != claimed.value
                for c in found.checksums
            ):
                raise BadPart(part.number, part.etag)
        chosen.append(found)
    for small in chosen[:-1]:
        if small.size < PART_SIZE_MIN:
            raise EntityTooSmall(small.number, small.size, PART_SIZE_MIN, small.etag)
    return chosen


def _object_checksums(
    upload: UploadRecord, parts: Sequence[PartInfo], claimed: Checksum | None
) -> list[Checksum]:
    """Return the checksums of the object. Raises: BadDigest when the client's differs."""
    algorithm = upload.checksum_algorithm or DEFAULT_CHECKSUM
    computed = object_checksum(algorithm, upload.checksum_type or "FULL_OBJECT", parts)
    if (
        claimed is not None
        and computed is not None
        and (claimed.algorithm != computed.algorithm or claimed.value != computed.value)
    ):
        raise BadDigest(claimed.algorithm)
    return [] if computed is None else [computed]
