"""The door of those who call the engine itself."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from engine.engine import Engine
from engine.errors import EngineError
from engine.ids import UploadId
from engine.types import (
    NO_CONDITIONS,
    Attributes,
    CompletePart,
    Conditions,
    CopySource,
    Deleted,
    DeleteItem,
    ObjectInfo,
)
from tests.support.doors import (
    Got,
    Page,
    Pairs,
    PartPage,
    Refused,
    Removed,
    Stored,
    UploadPage,
    VersionEntry,
    VersionPage,
)
from tests.support.engine import ManualClock, put, put_part

LEASE_MARGIN_S = 60.0


@contextmanager
def _refusals() -> Iterator[None]:
    try:
        yield
    except EngineError as error:
        raise Refused(type(error).__name__) from error


def _etags(etag: str | None) -> tuple[str, ...] | None:
    return None if etag is None else (etag,)


def _conditions(if_match: str | None, if_none_match: str | None) -> Conditions:
    if if_match is None and if_none_match is None:
        return NO_CONDITIONS
    return Conditions(if_match=_etags(if_match), if_none_match=_etags(if_none_match))


def _got(info: ObjectInfo, data: bytes = b"") -> Got:
    metadata = tuple(sorted((name, value) for name, value in info.record.metadata))
    return Got(data, info.size, info.etag, info.version_id, metadata)


def _stored(info: ObjectInfo) -> Stored:
    return Stored(info.version_id, info.etag)


def _upload_id(text: str) -> UploadId:
    return UploadId(bytes.fromhex(text))


class EngineDoor:
    """``clock`` is the store's: collecting lets time pass, so that what was deleted is due."""

    def __init__(self, opened: Engine, clock: ManualClock) -> None:
        self._engine = opened
        self._clock = clock

    async def create_bucket(self, bucket: str) -> None:
        with _refusals():
            await self._engine.create_bucket(bucket, owner="owner")

    async def delete_bucket(self, bucket: str) -> None:
        with _refusals():
            await self._engine.delete_bucket(bucket)

    async def set_versioning(self, bucket: str, state: str) -> None:
        with _refusals():
            await self._engine.set_versioning(bucket, state)

    async def list_buckets(self) -> tuple[str, ...]:
        names: list[str] = []
        more = True
        while more:
            after = names[-1] if names else ""
            page, more = await self._engine.list_buckets(after=after, limit=2)
            names += [bucket.name for bucket in page]
        return tuple(names)

    async def put(
        self,
        bucket: str,
        key: str,
        data: bytes,
        *,
        metadata: Pairs = (),
        if_match: str | None = None,
        if_none_match: bool = False,
    ) -> Stored:
        with _refusals():
            return _stored(
                await put(
                    self._engine,
                    bucket,
                    key,
                    data,
                    attributes=Attributes(metadata=list(metadata)),
                    conditions=_conditions(if_match, "*" if if_none_match else None),
                )
            )

    async def get(
        self,
        bucket: str,
        key: str,
        *,
        version_id: str | None = None,
        first: int | None = None,
        last: int | None = None,
        if_match: str | None = None,
        if_none_match: str | None = None,
    ) -> Got:
        conditions = _conditions(if_match, if_none_match)
        with _refusals():
            opened = await self._engine.open(
                bucket, key, version_id=version_id, conditions=conditions
            )
            async with opened:
                size = opened.info.size
                start, end = 0, size
                if first is not None and last is not None:
                    if first >= size:
                        raise Refused("InvalidRange")
                    start, end = first, min(last + 1, size)
                stream = await opened.stream(start, end)
                try:
                    data = b"".join([bytes(buffer) async for buffer in stream])
                finally:
                    await stream.aclose()
                return _got(opened.info, data)

    async def head(self, bucket: str, key: str, *, version_id: str | None = None) -> Got:
        with _refusals():
            return _got(await self._engine.head(bucket, key, version_id=version_id))

    async def delete(
        self, bucket: str, key: str, *, version_id: str | None = None, if_match: str | None = None
    ) -> Removed:
        conditions = _conditions(if_match, None)
        with _refusals():
            gone = await self._engine.delete(
                bucket, key, version_id=version_id, conditions=conditions
            )
        return Removed(gone.version_id, gone.delete_marker)

    async def delete_many(
        self, bucket: str, items: tuple[tuple[str, str | None], ...]
    ) -> tuple[Removed | str, ...]:
        with _refusals():
            answers = await self._engine.delete_many(
                bucket, [DeleteItem(key, version_id) for key, version_id in items]
            )
        return tuple(
            Removed(answer.version_id, answer.delete_marker)
            if isinstance(answer, Deleted)
            else type(answer).__name__
            for answer in answers
        )

    async def copy(
        self,
        source_bucket: str,
        source_key: str,
        bucket: str,
        key: str,
        *,
        version_id: str | None = None,
        metadata: Pairs | None = None,
    ) -> Stored:
        attributes = None if metadata is None else Attributes(metadata=list(metadata))
        with _refusals():
            info = await self._engine.copy(
                CopySource(source_bucket, source_key, version_id),
                bucket,
                key,
                attributes=attributes,
                tags=None,
            )
        return _stored(info)

    async def set_tags(
        self, bucket: str, key: str, tags: Pairs, *, version_id: str | None = None
    ) -> None:
        with _refusals():
            await self._engine.set_tags(bucket, key, list(tags), version_id=version_id)

    async def get_tags(self, bucket: str, key: str, *, version_id: str | None = None) -> Pairs:
        with _refusals():
            info = await self._engine.head(bucket, key, version_id=version_id)
        return tuple((name, value) for name, value in info.record.tags)

    # Multipart uploads

    async def create_upload(self, bucket: str, key: str, *, metadata: Pairs = ()) -> str:
        with _refusals():
            info = await self._engine.create_upload(
                bucket, key, attributes=Attributes(metadata=list(metadata))
            )
        return info.upload_id.hex()

    async def put_part(
        self, bucket: str, key: str, upload_id: str, number: int, data: bytes
    ) -> str:
        with _refusals():
            part = await put_part(self._engine, bucket, key, _upload_id(upload_id), number, data)
        return part.etag

    async def copy_part(
        self,
        source_bucket: str,
        source_key: str,
        bucket: str,
        key: str,
        upload_id: str,
        number: int,
    ) -> str:
        with _refusals():
            part, _ = await self._engine.copy_part(
                CopySource(source_bucket, source_key), bucket, key, _upload_id(upload_id), number
            )
        return part.etag

    async def complete(
        self, bucket: str, key: str, upload_id: str, parts: tuple[tuple[int, str], ...]
    ) -> Stored:
        chosen = [CompletePart(number, etag, []) for number, etag in parts]
        with _refusals():
            info = await self._engine.complete_upload(bucket, key, _upload_id(upload_id), chosen)
        return _stored(info)

    async def abort(self, bucket: str, key: str, upload_id: str) -> None:
        with _refusals():
            await self._engine.abort_upload(bucket, key, _upload_id(upload_id))

    async def list_parts(
        self, bucket: str, key: str, upload_id: str, *, after: int = 0, limit: int = 1000
    ) -> PartPage:
        with _refusals():
            page = await self._engine.list_parts(
                bucket, key, _upload_id(upload_id), after=after, limit=limit
            )
        entries = tuple((part.number, part.size, part.etag) for part in page.parts)
        return PartPage(entries, page.next_after)

    # Listings

    async def list_objects(
        self,
        bucket: str,
        *,
        prefix: str = "",
        delimiter: str = "",
        after: str = "",
        limit: int = 1000,
    ) -> Page:
        with _refusals():
            page = await self._engine.list_objects(
                bucket, prefix=prefix, delimiter=delimiter, after=after, limit=limit
            )
        entries = tuple((key, version.size, version.etag) for key, version in page.objects)
        return Page(entries, tuple(page.prefixes), page.next_after)

    async def list_versions(
        self,
        bucket: str,
        *,
        prefix: str = "",
        delimiter: str = "",
        key_marker: str = "",
        version_id_marker: str = "",
        limit: int = 1000,
    ) -> VersionPage:
        with _refusals():
            page = await self._engine.list_versions(
                bucket,
                prefix=prefix,
                delimiter=delimiter,
                key_marker=key_marker,
                version_id_marker=version_id_marker,
                limit=limit,
            )
        entries = tuple(
            VersionEntry(key, v.version_id, v.delete_marker, is_latest, v.size, v.etag)
            for key, v, is_latest in page.versions
        )
        return VersionPage(entries, tuple(page.prefixes), page.next_key, page.next_version_id)

    async def list_uploads(
        self,
        bucket: str,
        *,
        prefix: str = "",
        delimiter: str = "",
        key_marker: str = "",
        upload_id_marker: str = "",
        limit: int = 1000,
    ) -> UploadPage:
        with _refusals():
            page = await self._engine.list_uploads(
                bucket,
                prefix=prefix,
                delimiter=delimiter,
                key_marker=key_marker,
                upload_id_marker=_upload_id(upload_id_marker) if upload_id_marker else None,
                limit=limit,
            )
        entries = tuple((info.key, info.upload_id.hex()) for info in page.uploads)
        last = page.next_upload_id
        return UploadPage(
            entries, tuple(page.prefixes), page.next_key, None if last is None else last.hex()
        )

    async def collect(self) -> None:
        self._clock.advance(LEASE_MARGIN_S)
        await self._engine.collect_garbage(grace_s=0)
