"""What S3 does, as plain dictionaries and lists: obvious rather than fast.

Written from AWS's documentation (S3 User Guide, "Using versioning", "Conditional requests",
"Multipart upload", "Listing object keys"; the API reference of each operation), not from ours.
The calls are those of ``doors.Door``, synchronous. Ids that a store would make up are ``Id``
here: whoever compares binds each to the store's own.

Where this store decides for itself, because AWS leaves it open or differs on purpose:

* a marker that lies within a common prefix does not hide that prefix, one that *is* it does;
* a copy of the current ``null`` version onto itself keeps the ETag of a multipart object.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import TypeVar

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

E = TypeVar("E")
NULL = "null"


class Id(str):
    """A version or upload id that the model made up; ids made later are greater."""


@dataclass
class Version:
    version_id: str
    data: bytes = b""
    etag: str = ""
    metadata: Pairs = ()
    tags: Pairs = ()
    delete_marker: bool = False


@dataclass
class Upload:
    key: str
    metadata: Pairs
    parts: dict[int, tuple[bytes, str]] = field(default_factory=dict)


@dataclass
class Completed:
    """What Complete made, so that it can be repeated."""

    key: str
    version_id: str
    etag: str
    version: Version


@dataclass
class Bucket:
    versioning: str = ""
    keys: dict[str, list[Version]] = field(default_factory=dict)
    """Newest version first; no key has an empty list."""
    uploads: dict[str, Upload] = field(default_factory=dict)
    completed: dict[str, Completed] = field(default_factory=dict)


def md5(data: bytes) -> str:
    return hashlib.md5(data, usedforsecurity=False).hexdigest()


class Model:
    def __init__(self, *, part_size_min: int = 5 << 20) -> None:
        self.buckets: dict[str, Bucket] = {}
        self._part_size_min = part_size_min
        self._ids = 0

    def _new_id(self, kind: str) -> Id:
        self._ids += 1
        return Id(f"{kind}{self._ids:06}")

    def _bucket(self, name: str) -> Bucket:
        if name not in self.buckets:
            raise Refused("NoSuchBucket")
        return self.buckets[name]

    # Buckets

    def create_bucket(self, bucket: str) -> None:
        if bucket in self.buckets:
            raise Refused("BucketExists")
        self.buckets[bucket] = Bucket()

    def delete_bucket(self, bucket: str) -> None:
        found = self._bucket(bucket)
        if found.keys:
            raise Refused("BucketNotEmpty")
        del self.buckets[bucket]

    def set_versioning(self, bucket: str, state: str) -> None:
        self._bucket(bucket).versioning = state

    def list_buckets(self) -> tuple[str, ...]:
        return tuple(sorted(self.buckets))

    # Versions

    def _current(self, bucket: Bucket, key: str) -> Version | None:
        versions = bucket.keys.get(key)
        return versions[0] if versions and not versions[0].delete_marker else None

    def _find(self, name: str, key: str, version_id: str | None) -> Version:
        bucket = self._bucket(name)
        if version_id is None:
            current = self._current(bucket, key)
            if current is None:
                raise Refused("NoSuchKey")
            return current
        for version in bucket.keys.get(key, []):
            if version.version_id == version_id:
                if version.delete_marker:
                    raise Refused("IsDeleteMarker")
                return version
        raise Refused("NoSuchVersion")

    def _add(self, bucket: Bucket, key: str, version: Version) -> Version:
        """Make it the newest version, with an id; ``null`` takes the place of another ``null``."""
        version.version_id = self._new_id("v") if bucket.versioning == "Enabled" else NULL
        versions = [
            other
            for other in bucket.keys.get(key, [])
            if version.version_id != NULL or other.version_id != NULL
        ]
        bucket.keys[key] = [version, *versions]
        return version

    def _shown_id(self, bucket: Bucket, version: Version) -> str | None:
        return version.version_id if bucket.versioning else None

    def _check_write(
        self, bucket: Bucket, key: str, if_match: str | None, if_none_match: bool
    ) -> None:
        current = self._current(bucket, key)
        if if_match is not None:
            if current is None:
                raise Refused("NoSuchKey")
            if if_match not in ("*", current.etag):
                raise Refused("PreconditionFailed")
        if if_none_match and current is not None:
            raise Refused("PreconditionFailed")

    # Objects

    def put(
        self,
        bucket: str,
        key: str,
        data: bytes,
        *,
        metadata: Pairs = (),
        if_match: str | None = None,
        if_none_match: bool = False,
    ) -> Stored:
        found = self._bucket(bucket)
        self._check_write(found, key, if_match, if_none_match)
        version = Version("", data, md5(data), metadata)
        self._add(found, key, version)
        return Stored(self._shown_id(found, version), version.etag)

    def get(
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
        version = self._find(bucket, key, version_id)
        if if_match is not None and if_match not in ("*", version.etag):
            raise Refused("PreconditionFailed")
        if if_none_match is not None and if_none_match in ("*", version.etag):
            raise Refused("NotModified")
        data = version.data
        if first is not None and last is not None:
            if first >= len(data):
                raise Refused("InvalidRange")
            data = data[first : last + 1]
        return replace(self.head(bucket, key, version_id=version_id), data=data)

    def head(self, bucket: str, key: str, *, version_id: str | None = None) -> Got:
        version = self._find(bucket, key, version_id)
        shown = self._shown_id(self._bucket(bucket), version)
        return Got(b"", len(version.data), version.etag, shown, tuple(sorted(version.metadata)))

    def delete(
        self,
        bucket: str,
        key: str,
        *,
        version_id: str | None = None,
        if_match: str | None = None,
    ) -> Removed:
        found = self._bucket(bucket)
        self._check_write(found, key, if_match, False)
        if version_id is not None:
            return self._delete_version(found, key, version_id)
        if found.versioning:
            marker = self._add(found, key, Version("", delete_marker=True))
            return Removed(marker.version_id, True)
        found.keys.pop(key, None)
        return Removed(None, False)

    def _delete_version(self, bucket: Bucket, key: str, version_id: str) -> Removed:
        versions = bucket.keys.get(key, [])
        gone = [version for version in versions if version.version_id == version_id]
        left = [version for version in versions if version.version_id != version_id]
        if left:
            bucket.keys[key] = left
        else:
            bucket.keys.pop(key, None)
        return Removed(version_id, bool(gone) and gone[0].delete_marker)

    def delete_many(
        self, bucket: str, items: tuple[tuple[str, str | None], ...]
    ) -> tuple[Removed | str, ...]:
        self._bucket(bucket)
        answers: list[Removed | str] = []
        for key, version_id in items:
            try:
                answers.append(self.delete(bucket, key, version_id=version_id))
            except Refused as error:
                answers.append(error.name)
        return tuple(answers)

    def copy(
        self,
        source_bucket: str,
        source_key: str,
        bucket: str,
        key: str,
        *,
        version_id: str | None = None,
        metadata: Pairs | None = None,
    ) -> Stored:
        try:
            source = self._find(source_bucket, source_key, version_id)
        except Refused as error:
            raise Refused(
                "InvalidArgument" if error.name == "IsDeleteMarker" else error.name
            ) from None
        found = self._bucket(bucket)
        in_place = (
            found.versioning != "Enabled"
            and source.version_id == NULL
            and (source_bucket, source_key) == (bucket, key)
            and self._current(found, key) is source
        )
        version = Version(
            "",
            source.data,
            source.etag if in_place else md5(source.data),
            source.metadata if metadata is None else metadata,
            source.tags,
        )
        self._add(found, key, version)
        if in_place:
            for completed in found.completed.values():
                if completed.version is source:
                    completed.version = version
        return Stored(self._shown_id(found, version), version.etag)

    def set_tags(
        self, bucket: str, key: str, tags: Pairs, *, version_id: str | None = None
    ) -> None:
        self._find(bucket, key, version_id).tags = tags

    def get_tags(self, bucket: str, key: str, *, version_id: str | None = None) -> Pairs:
        return self._find(bucket, key, version_id).tags

    # Multipart uploads

    def _upload(self, bucket: str, key: str, upload_id: str) -> Upload:
        upload = self._bucket(bucket).uploads.get(upload_id)
        if upload is None or upload.key != key:
            raise Refused("NoSuchUpload")
        return upload

    def create_upload(self, bucket: str, key: str, *, metadata: Pairs = ()) -> str:
        upload_id = self._new_id("u")
        self._bucket(bucket).uploads[upload_id] = Upload(key, metadata)
        return upload_id

    def put_part(self, bucket: str, key: str, upload_id: str, number: int, data: bytes) -> str:
        etag = md5(data)
        self._upload(bucket, key, upload_id).parts[number] = (data, etag)
        return etag

    def copy_part(
        self,
        source_bucket: str,
        source_key: str,
        bucket: str,
        key: str,
        upload_id: str,
        number: int,
    ) -> str:
        self._upload(bucket, key, upload_id)
        source = self._find(source_bucket, source_key, None)
        return self.put_part(bucket, key, upload_id, number, source.data)

    def complete(
        self, bucket: str, key: str, upload_id: str, parts: tuple[tuple[int, str], ...]
    ) -> Stored:
        numbers = [number for number, _ in parts]
        if numbers != sorted(set(numbers)):
            raise Refused("InvalidPartOrder")
        found = self._bucket(bucket)
        before = found.completed.get(upload_id)
        if before is not None and before.key == key:
            return Stored(before.version_id if found.versioning else None, before.etag)
        upload = self._upload(bucket, key, upload_id)
        chosen: list[bytes] = []
        for number, etag in parts:
            if number not in upload.parts or upload.parts[number][1] != etag:
                raise Refused("BadPart")
            chosen.append(upload.parts[number][0])
        if any(len(data) < self._part_size_min for data in chosen[:-1]):
            raise Refused("EntityTooSmall")
        etag = md5(b"".join(bytes.fromhex(md5(data)) for data in chosen)) + f"-{len(chosen)}"
        version = Version("", b"".join(chosen), etag, upload.metadata)
        del found.uploads[upload_id]
        self._add(found, key, version)
        found.completed[upload_id] = Completed(key, version.version_id, etag, version)
        return Stored(self._shown_id(found, version), etag)

    def abort(self, bucket: str, key: str, upload_id: str) -> None:
        self._upload(bucket, key, upload_id)
        del self._bucket(bucket).uploads[upload_id]

    def list_parts(
        self, bucket: str, key: str, upload_id: str, *, after: int = 0, limit: int = 1000
    ) -> PartPage:
        parts = self._upload(bucket, key, upload_id).parts
        behind = [(n, len(parts[n][0]), parts[n][1]) for n in sorted(parts) if n > after]
        page = behind[:limit]
        return PartPage(tuple(page), page[-1][0] if page and len(behind) > limit else None)

    # Listings

    def list_objects(
        self,
        bucket: str,
        *,
        prefix: str = "",
        delimiter: str = "",
        after: str = "",
        limit: int = 1000,
    ) -> Page:
        found = self._bucket(bucket)
        entries = []
        for key in sorted(found.keys):
            current = self._current(found, key)
            if current is not None and key > after:
                entries.append((key, (key, len(current.data), current.etag)))
        rows = _roll_up(_behind(entries, prefix, delimiter, after), prefix, delimiter)
        page, more = rows[:limit], 0 < limit < len(rows)
        return Page(*_split(page), page[-1][0] if more else None)

    def list_versions(
        self,
        bucket: str,
        *,
        prefix: str = "",
        delimiter: str = "",
        key_marker: str = "",
        version_id_marker: str = "",
        limit: int = 1000,
    ) -> VersionPage:
        if version_id_marker and not key_marker:
            raise Refused("InvalidArgument")
        found = self._bucket(bucket)
        entries: list[tuple[str, VersionEntry]] = []
        for key in sorted(found.keys):
            versions = found.keys[key]
            seen = key > key_marker
            for version in versions:
                if seen:
                    entry = VersionEntry(
                        key,
                        version.version_id,
                        version.delete_marker,
                        version is versions[0],
                        len(version.data),
                        version.etag,
                    )
                    entries.append((key, entry))
                if key == key_marker and version.version_id == version_id_marker:
                    seen = True
        if not version_id_marker:
            entries = _behind(entries, prefix, delimiter, key_marker)
        rows = _roll_up(entries, prefix, delimiter)
        page, more = rows[:limit], 0 < limit < len(rows)
        if not more:
            return VersionPage(*_split(page), None, None)
        last_key, last = page[-1]
        return VersionPage(*_split(page), last_key, last.version_id if last else None)

    def list_uploads(
        self,
        bucket: str,
        *,
        prefix: str = "",
        delimiter: str = "",
        key_marker: str = "",
        upload_id_marker: str = "",
        limit: int = 1000,
    ) -> UploadPage:
        uploads = self._bucket(bucket).uploads
        pairs = sorted((upload.key, upload_id) for upload_id, upload in uploads.items())
        entries = [
            (key, (key, upload_id))
            for key, upload_id in pairs
            if key > key_marker
            or (upload_id_marker and key == key_marker and upload_id > upload_id_marker)
        ]
        if not upload_id_marker:
            entries = _behind(entries, prefix, delimiter, key_marker)
        rows = _roll_up(entries, prefix, delimiter)
        page, more = rows[:limit], 0 < limit < len(rows)
        if not more:
            return UploadPage(*_split(page), None, None)
        last_key, last = page[-1]
        return UploadPage(*_split(page), last_key, last[1] if last else None)

    def collect(self) -> None:
        """Once the bytes of a completed upload are gone, Complete cannot be repeated."""
        for bucket in self.buckets.values():
            kept = [version for versions in bucket.keys.values() for version in versions]
            bucket.completed = {
                upload_id: completed
                for upload_id, completed in bucket.completed.items()
                if any(completed.version is version for version in kept)
            }


def _common_prefix(key: str, prefix: str, delimiter: str) -> str | None:
    rest = key[len(prefix) :]
    if not delimiter or delimiter not in rest:
        return None
    return prefix + rest[: rest.index(delimiter) + len(delimiter)]


def _behind(
    entries: list[tuple[str, E]], prefix: str, delimiter: str, marker: str
) -> list[tuple[str, E]]:
    """Leave out what a marker that is a common prefix stands for."""
    if not marker.startswith(prefix) or _common_prefix(marker, prefix, delimiter) != marker:
        return entries
    return [(key, entry) for key, entry in entries if not key.startswith(marker)]


def _roll_up(
    entries: Iterable[tuple[str, E]], prefix: str, delimiter: str
) -> list[tuple[str, E | None]]:
    """Return (key, entry) or (common prefix, None), in order."""
    rows: list[tuple[str, E | None]] = []
    for key, entry in entries:
        if not key.startswith(prefix):
            continue
        common = _common_prefix(key, prefix, delimiter)
        if common is None:
            rows.append((key, entry))
        elif not rows or rows[-1] != (common, None):
            rows.append((common, None))
    return rows


def _split(rows: list[tuple[str, E | None]]) -> tuple[tuple[E, ...], tuple[str, ...]]:
    return (
        tuple(entry for _, entry in rows if entry is not None),
        tuple(key for key, entry in rows if entry is None),
    )
