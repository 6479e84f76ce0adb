"""Multipart uploads: parts are staged and owned by the upload, until ``completion`` makes them
one object."""

from __future__ import annotations

from engine.commit import checked, claim, commit
from engine.errors import (
    InvalidRange,
    NoSuchUpload,
)
from engine.ids import UploadId, timed_id
from engine.meta import keyspace
from engine.meta.kv import ReadTransaction, Transaction
from engine.meta.read_only import refuse_if_read_only
from engine.meta.records import (
    FORMAT,
    Checksum,
    ChunkOwner,
    PartData,
    PartRecord,
    UploadRecord,
    decode_part,
    decode_upload,
    encode,
)
from engine.objects import DEFAULT_CHECKSUM, MD5, Objects
from engine.opened import StreamSource, read_manifest
from engine.quota import check_quota, growth
from engine.store import Store, get_bucket, key_bytes
from engine.types import (
    Attributes,
    BucketInfo,
    Check,
    CopySource,
    Digests,
    ObjectInfo,
    PartInfo,
    PartListing,
    Source,
    UploadInfo,
)
from engine.versions import current_version


def part_info(number: int, record: PartRecord) -> PartInfo:
    return PartInfo(number, record.size, record.modified_ms, record.etag, record.checksums)


def upload_info(
    bucket: BucketInfo, key: str, upload_id: UploadId, record: UploadRecord
) -> UploadInfo:
    return UploadInfo(
        bucket,
        key,
        upload_id,
        record.started_ms,
        record.storage_class,
        record.checksum_algorithm,
        record.checksum_type,
    )


async def find_upload(
    tr: ReadTransaction, bucket_name: str, raw_key: bytes, upload_id: UploadId
) -> tuple[BucketInfo, UploadRecord]:
    """Return an upload under way. Raises: NoSuchBucket, NoSuchUpload."""
    bucket = await get_bucket(tr, bucket_name)
    row = await tr.get(keyspace.upload(bucket.bucket_id, raw_key, upload_id))
    if row is None:
        raise NoSuchUpload(upload_id.hex())
    return bucket, decode_upload(row)


def drop_upload(store: Store, tr: Transaction, row_key: bytes, upload_id: UploadId) -> None:
    """Abort the upload under ``row_key``; its parts become garbage."""
    tr.clear(row_key)
    tr.clear(keyspace.part_count(upload_id))
    store.discard_upload(tr, upload_id)


async def part_page(
    tr: ReadTransaction, upload_id: UploadId, after: int, limit: int
) -> tuple[list[PartInfo], bool]:
    """Return up to ``limit`` parts above number ``after``, and whether more follow."""
    rows = await tr.get_range(
        keyspace.part(upload_id, after + 1),
        keyspace.after_prefix(keyspace.PART + upload_id),
        limit=limit + 1,
    )
    parts = [
        part_info(int.from_bytes(row_key[-2:], "big"), decode_part(row))
        for row_key, row in rows[:limit]
    ]
    return parts, len(rows) > limit


class Uploads:
    def __init__(self, store: Store, objects: Objects) -> None:
        self._store = store
        self._objects = objects

    async def create(
        self,
        bucket_name: str,
        key: str,
        attributes: Attributes,
        checksum_algorithm: str,
        checksum_type: str,
    ) -> UploadInfo:
        store = self._store
        raw_key = key_bytes(key)
        upload_id = UploadId(timed_id(store.clock, store.random))
        record = UploadRecord(
            format=FORMAT,
            started_ms=store.clock(),
            storage_class=attributes.storage_class,
            headers=attributes.headers,
            metadata=attributes.metadata,
            tags=attributes.tags,
            checksum_algorithm=checksum_algorithm,
            checksum_type=checksum_type,
        )

        async def body(tr: Transaction) -> UploadInfo:
            bucket = await get_bucket(tr, bucket_name)
            tr.set(keyspace.upload(bucket.bucket_id, raw_key, upload_id), encode(record))
            return upload_info(bucket, key, upload_id, record)

        return await store.db.run(body)

    async def get(self, bucket_name: str, key: str, upload_id: UploadId) -> UploadInfo:
        raw_key = key_bytes(key)

        async def body(tr: ReadTransaction) -> UploadInfo:
            bucket, record = await find_upload(tr, bucket_name, raw_key, upload_id)
            return upload_info(bucket, key, upload_id, record)

        return await self._store.db.read(body)

    async def put_part(
        self,
        bucket_name: str,
        key: str,
        upload_id: UploadId,
        number: int,
        source: Source,
        *,
        size: int | None,
        algorithms: frozenset[str],
        check: Check,
    ) -> PartInfo:
        store = self._store
        raw_key = key_bytes(key)
        await self._check_part(bucket_name, raw_key, upload_id, size or 0)
        staged = await store.data.stage(source, size=size, algorithms=algorithms | MD5)
        checksums = await checked(staged, check)
        data_id = store.new_data_id()
        record = PartRecord(
            format=FORMAT,
            size=staged.size,
            modified_ms=store.clock(),
            etag=staged.digests["MD5"].hex(),
            data_id=data_id,
            data=staged.data,
            checksums=checksums,
        )
        part_key = keyspace.part(upload_id, number)

        async def body(tr: Transaction) -> None:
            bucket, _ = await find_upload(tr, bucket_name, raw_key, upload_id)
            replaced = await tr.get(part_key)
            if replaced is not None:
                store.discard(tr, decode_part(replaced))
            owner = ChunkOwner(bucket.bucket_id, raw_key, 0, data_id, upload_id, number)
            await claim(store, tr, staged, owner, data_id)
            tr.set(part_key, encode(record))
            tr.add(keyspace.part_count(upload_id), 1)

        await commit(store, staged, body)
        return part_info(number, record)

    async def _check_part(
        self, bucket_name: str, raw_key: bytes, upload_id: UploadId, size: int
    ) -> None:
        """Spare the client sending a part that could never be completed into an object.

        Raises: NoSuchUpload, QuotaExceeded, StoreReadOnly.
        """

        async def body(tr: ReadTransaction) -> None:
            await refuse_if_read_only(tr)
            bucket, _ = await find_upload(tr, bucket_name, raw_key, upload_id)
            if bucket.quota is not None:
                current = await current_version(tr, bucket, raw_key)
                await check_quota(tr, bucket, *growth(bucket, current, size))

        await self._store.db.read(body)

    async def copy_part(
        self,
        source: CopySource,
        bucket_name: str,
        key: str,
        upload_id: UploadId,
        number: int,
    ) -> tuple[PartInfo, ObjectInfo]:
        upload = await self.get(bucket_name, key, upload_id)
        algorithm = upload.checksum_algorithm or DEFAULT_CHECKSUM

        def check(digests: Digests) -> list[Checksum]:
            return [Checksum(algorithm=algorithm, value=digests[algorithm])]

        async with await self._objects.open_source(source) as opened:
            size = opened.info.size
            first = 0 if source.first is None else source.first
            end = size if source.last is None else source.last + 1
            if not 0 <= first < end <= size and not (size == 0 and source.first is None):
                raise InvalidRange(size)
            stream = await opened.stream(first, end)
            try:
                part = await self.put_part(
                    bucket_name,
                    key,
                    upload_id,
                    number,
                    StreamSource(stream),
                    size=end - first,
                    algorithms=frozenset((algorithm,)),
                    check=check,
                )
            finally:
                await stream.aclose()
            return part, opened.info

    async def list_parts(
        self, bucket_name: str, key: str, upload_id: UploadId, after: int, limit: int
    ) -> PartListing:
        raw_key = key_bytes(key)

        async def body(tr: ReadTransaction) -> PartListing:
            bucket, record = await find_upload(tr, bucket_name, raw_key, upload_id)
            parts, more = await part_page(tr, upload_id, after, limit)
            upload = upload_info(bucket, key, upload_id, record)
            return PartListing(upload, parts, parts[-1].number if more else None)

        return await self._store.db.read(body)

    async def abort(self, bucket_name: str, key: str, upload_id: UploadId) -> None:
        store = self._store
        raw_key = key_bytes(key)

        async def body(tr: Transaction) -> None:
            bucket, _ = await find_upload(tr, bucket_name, raw_key, upload_id)
            row_key = keyspace.upload(bucket.bucket_id, raw_key, upload_id)
            drop_upload(store, tr, row_key, upload_id)

        await store.db.run(body)

    # Parts of a completed object

    async def object_parts(
        self, info: ObjectInfo, after: int, limit: int
    ) -> tuple[list[PartInfo], bool]:
        data = info.record.data
        if not isinstance(data, PartData):
            return [], False

        async def body(tr: ReadTransaction) -> tuple[list[PartInfo], bool]:
            return await part_page(tr, data.upload_id, after, limit)

        return await self._store.db.read(body)

    async def part_range(self, info: ObjectInfo, number: int) -> tuple[int, int]:
        if not isinstance(info.record.data, PartData):
            if number != 1:
                raise InvalidRange(info.size)
            return 0, info.size
        offset = 0
        for index, (_, size) in enumerate(await read_manifest(self._store, info.record), 1):
            if index == number:
                return offset, offset + size
            offset += size
        raise InvalidRange(info.size)
