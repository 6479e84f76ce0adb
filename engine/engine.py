"""``Engine``: every operation that a frontend can ask for. One line each; the work is next door.

``buckets``, ``objects``, ``multipart`` and ``listing`` hold the operations, each a class over the
same ``Store`` (the parts of an opened store). Operations are transactions: what one call changes,
it changes at once, durably, and for every process.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from engine.access_keys import AccessKeys
from engine.buckets import Buckets
from engine.changes import Changes
from engine.completion import Completion
from engine.errors import EngineError
from engine.ids import UploadId
from engine.listing import Listings
from engine.locking import Locking
from engine.meta.records import Checksum
from engine.multipart import Uploads
from engine.objects import Objects
from engine.opened import OpenedObject
from engine.past import PastPaths
from engine.paths import Paths
from engine.properties import Properties
from engine.quota import Quotas
from engine.rename import Renames
from engine.rename_tree import TreeRenames
from engine.services.collector import collect
from engine.services.fsck import check_store
from engine.services.status import store_status
from engine.staging import StagedObject, stage
from engine.store import Store
from engine.types import (
    NO_CONDITIONS,
    Attributes,
    BucketInfo,
    BucketUsage,
    Check,
    CompletePart,
    Conditions,
    CopySource,
    Deleted,
    DeleteItem,
    FsckReport,
    GcReport,
    ObjectInfo,
    ObjectListing,
    Pairs,
    PartInfo,
    PartListing,
    Quota,
    Source,
    StoreStatus,
    UploadInfo,
    UploadListing,
    VersionListing,
)


class Engine:
    """Made by ``open_engine``; usable by any number of tasks of one trio run."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self._buckets = Buckets(store)
        self._quotas = Quotas(store)
        self._objects = Objects(store)
        self._uploads = Uploads(store, self._objects)
        self._completion = Completion(store)
        self._renames = Renames(store)
        self._tree_renames = TreeRenames(store)
        self.changes = Changes(store)
        self.paths = Paths(store)
        self._listings = Listings(store)
        self.properties = Properties(store)
        self.locking = Locking(store)
        self.access_keys = AccessKeys(store)

    # Buckets

    async def create_bucket(self, name: str, *, owner: str, region: str = "") -> BucketInfo:
        """Raises BucketExists (with its owner), InvalidName."""
        return await self._buckets.create(name, owner, region)

    async def bucket(self, name: str) -> BucketInfo:
        """Raises NoSuchBucket."""
        return await self._buckets.get(name)

    async def delete_bucket(self, name: str) -> None:
        """Abort the uploads under way. Raises NoSuchBucket, BucketNotEmpty (versions, markers)."""
        await self._buckets.delete(name)

    async def list_buckets(
        self,
        *,
        prefix: str = "",
        after: str = "",
        limit: int = 1000,
        only: frozenset[str] | None = None,
    ) -> tuple[list[BucketInfo], bool]:
        """Return buckets by name, all with names above ``after``, and whether there are more.

        ``only``: names beside which no others are there (``Access.buckets``).
        """
        return await self._buckets.list(prefix, after, limit, only)

    async def set_versioning(self, name: str, state: str) -> None:
        """``state``: ``Enabled`` or ``Suspended``."""
        await self._buckets.set_versioning(name, state)

    async def bucket_config(self, name: str, kind: str) -> bytes:
        """Return a configuration document as it was put. Raises NoSuchConfiguration."""
        return await self._buckets.config(name, kind)

    async def put_bucket_config(self, name: str, kind: str, document: bytes) -> None:
        await self._buckets.put_config(name, kind, document)

    async def delete_bucket_config(self, name: str, kind: str) -> None:
        """No error when there is none."""
        await self._buckets.delete_config(name, kind)

    async def set_quota(self, name: str, quota: Quota) -> None:
        """Limit what the bucket's versions take together; ``Quota()`` takes the limits away.

        Raises: NoSuchBucket, InvalidArgument.
        """
        await self._quotas.set_quota(name, quota)

    async def bucket_usage(self, name: str) -> BucketUsage:
        """Return what the bucket's versions take, and its quota. Raises: NoSuchBucket."""
        return await self._quotas.usage(name)

    # Objects

    async def put(
        self,
        bucket: str,
        key: str,
        source: Source,
        *,
        size: int | None,
        algorithms: frozenset[str],
        attributes: Attributes,
        check: Check,
        conditions: Conditions = NO_CONDITIONS,
    ) -> ObjectInfo:
        """Store all bytes of ``source`` as the key's new current version.

        ``algorithms`` are the digests that ``check`` needs; ``MD5`` is always there.
        Durable on return; on any error nothing is visible and nothing is left behind.

        Raises: NoSuchBucket, InvalidName, PreconditionFailed, ConditionConflict, IncompleteBody,
        EntityTooLarge, QuotaExceeded, NoSpace, Unavailable, SlowDown, and what ``source`` and
        ``check`` raise.
        """
        return await self._objects.put(
            bucket,
            key,
            source,
            size=size,
            algorithms=algorithms,
            attributes=attributes,
            check=check,
            conditions=conditions,
        )

    async def stage(self, source: Source, *, size: int | None) -> StagedObject:
        """Store all bytes of ``source`` without making them an object: ``put`` in two steps.

        Raises: IncompleteBody, NoSpace, Unavailable, SlowDown, and what ``source`` raises.
        """
        return await stage(self.store, self._objects, source, size)

    async def head(
        self,
        bucket: str,
        key: str,
        *,
        version_id: str | None = None,
        conditions: Conditions = NO_CONDITIONS,
    ) -> ObjectInfo:
        """Raises NoSuchBucket, NoSuchKey, NoSuchVersion, IsDeleteMarker, PreconditionFailed,
        NotModified."""
        return await self._objects.head(bucket, key, version_id, conditions)

    async def open(
        self,
        bucket: str,
        key: str,
        *,
        version_id: str | None = None,
        conditions: Conditions = NO_CONDITIONS,
    ) -> OpenedObject:
        """Pin one version for reading: it stays readable until ``aclose``, also when it is
        replaced or deleted meanwhile. Raises what ``head`` raises.
        """
        return await self._objects.open(bucket, key, version_id, conditions)

    async def delete(
        self,
        bucket: str,
        key: str,
        *,
        version_id: str | None = None,
        conditions: Conditions = NO_CONDITIONS,
    ) -> Deleted:
        """Remove a version for good, or without ``version_id`` the current one (with versioning:
        by a delete marker). What is absent already is no error, unless a condition names it.

        Raises: NoSuchBucket, NoSuchVersion (id is malformed), PreconditionFailed, NoSuchKey.
        """
        return await self._objects.delete(bucket, key, version_id, conditions)

    async def delete_many(
        self, bucket: str, items: Sequence[DeleteItem]
    ) -> list[Deleted | EngineError]:
        """Delete each item as ``delete`` does; the answers are in the order of the items."""
        return await self._objects.delete_many(bucket, items)

    async def copy(
        self,
        source: CopySource,
        bucket: str,
        key: str,
        *,
        attributes: Attributes | None,
        tags: Pairs | None,
        storage_class: str = "STANDARD",
        checksum_algorithm: str = "",
        conditions: Conditions = NO_CONDITIONS,
    ) -> ObjectInfo:
        """Store the source version's bytes under another key.

        ``attributes`` and ``tags``: None copies the source's. ``checksum_algorithm``: ``""``
        keeps the source's checksum. A copy onto itself in place moves no bytes.

        Raises what ``open`` raises for the source (``NotModified`` as PreconditionFailed) and
        ``put`` for the target.
        """
        return await self._objects.copy(
            source,
            bucket,
            key,
            attributes=attributes,
            tags=tags,
            storage_class=storage_class,
            checksum_algorithm=checksum_algorithm,
            conditions=conditions,
        )

    async def rename(
        self,
        bucket: str,
        key: str,
        new_key: str,
        *,
        conditions: Conditions = NO_CONDITIONS,
        new_conditions: Conditions = NO_CONDITIONS,
    ) -> ObjectInfo:
        """Move the current version to another key of the bucket; one transaction, no copying.

        ``conditions`` are about the source, ``new_conditions`` about the target.
        Raises: NoSuchBucket, NoSuchKey, InvalidName, PreconditionFailed.
        """
        return await self._renames.rename(
            bucket, key, new_key, conditions=conditions, new_conditions=new_conditions
        )

    async def rename_tree(
        self, bucket: str, prefix: str, new_prefix: str, *, conditions: Conditions = NO_CONDITIONS
    ) -> int:
        """Move every current version below ``prefix`` to the same place below ``new_prefix``;
        return how many. No bytes are copied.

        Up to ``rename_tree.ATOMIC_MAX`` keys in one transaction. More move step by step, each
        step a transaction, during which both places show a part; when this process ends on the
        way, another one finishes (or the next rename that meets it). The target has to be empty
        but for a key that is ``new_prefix`` itself.

        Raises: NoSuchBucket; NoSuchKey: nothing is below ``prefix``; PreconditionFailed (``empty
        target``); InvalidName: a new key would be too long; InvalidArgument: into itself;
        ConditionConflict: done, but for keys that somebody wrote at the target meanwhile; Locked
        (only ``states`` and locks count of the conditions).
        """
        return await self._tree_renames.rename_tree(
            bucket, prefix, new_prefix, conditions=conditions
        )

    async def set_metadata(
        self,
        bucket: str,
        key: str,
        change: Callable[[Pairs], Pairs],
        *,
        conditions: Conditions = NO_CONDITIONS,
    ) -> ObjectInfo:
        """Replace the current version's user metadata by what ``change`` makes of them; bytes,
        version, ETag and time of modification stay, with versioning as well.

        ``change`` is pure: it may be called more than once.
        Raises: NoSuchBucket, NoSuchKey, PreconditionFailed.
        """
        return await self._objects.set_metadata(bucket, key, change, conditions)

    async def set_tags(
        self, bucket: str, key: str, tags: Pairs, *, version_id: str | None = None
    ) -> ObjectInfo:
        """Replace the tags of a version (``[]`` removes them); its other attributes stay."""
        return await self._objects.set_tags(bucket, key, tags, version_id)

    # Multipart uploads

    async def create_upload(
        self,
        bucket: str,
        key: str,
        *,
        attributes: Attributes,
        checksum_algorithm: str = "",
        checksum_type: str = "",
    ) -> UploadInfo:
        return await self._uploads.create(
            bucket, key, attributes, checksum_algorithm, checksum_type
        )

    async def upload(self, bucket: str, key: str, upload_id: UploadId) -> UploadInfo:
        """Raises NoSuchUpload."""
        return await self._uploads.get(bucket, key, upload_id)

    async def put_part(
        self,
        bucket: str,
        key: str,
        upload_id: UploadId,
        number: int,
        source: Source,
        *,
        size: int | None,
        algorithms: frozenset[str],
        check: Check,
    ) -> PartInfo:
        """Store a part; one uploaded before under the number is replaced."""
        return await self._uploads.put_part(
            bucket,
            key,
            upload_id,
            number,
            source,
            size=size,
            algorithms=algorithms,
            check=check,
        )

    async def copy_part(
        self,
        source: CopySource,
        bucket: str,
        key: str,
        upload_id: UploadId,
        number: int,
    ) -> tuple[PartInfo, ObjectInfo]:
        """Store bytes of an object as a part; return it and the source version."""
        return await self._uploads.copy_part(source, bucket, key, upload_id, number)

    async def list_parts(
        self, bucket: str, key: str, upload_id: UploadId, *, after: int = 0, limit: int = 1000
    ) -> PartListing:
        return await self._uploads.list_parts(bucket, key, upload_id, after, limit)

    async def complete_upload(
        self,
        bucket: str,
        key: str,
        upload_id: UploadId,
        parts: Sequence[CompletePart],
        *,
        checksum: Checksum | None = None,
        size: int | None = None,
        conditions: Conditions = NO_CONDITIONS,
    ) -> ObjectInfo:
        """Make the parts one object. Repeating a Complete that succeeded answers the same again.

        ``checksum`` and ``size`` are what the client says the object has, if it does.

        Raises: NoSuchUpload, BadPart, InvalidPartOrder, EntityTooSmall, BadDigest,
        InvalidArgument (size), PreconditionFailed, ConditionConflict.
        """
        return await self._completion.complete(
            bucket,
            key,
            upload_id,
            parts,
            checksum=checksum,
            size=size,
            conditions=conditions,
        )

    async def abort_upload(self, bucket: str, key: str, upload_id: UploadId) -> None:
        """Raises NoSuchUpload."""
        await self._uploads.abort(bucket, key, upload_id)

    async def object_parts(
        self, info: ObjectInfo, *, after: int = 0, limit: int = 1000
    ) -> tuple[list[PartInfo], bool]:
        """Return the parts of a multipart object above number ``after``, and whether more follow.

        Empty for an object that was put whole.
        """
        return await self._uploads.object_parts(info, after, limit)

    async def part_range(self, info: ObjectInfo, number: int) -> tuple[int, int]:
        """Return (first, end) of a part's bytes in the object; end is exclusive.

        An object that was put whole is its part 1. Raises InvalidRange.
        """
        return await self._uploads.part_range(info, number)

    # Listings

    async def list_objects(
        self,
        bucket: str,
        *,
        prefix: str = "",
        delimiter: str = "",
        after: str = "",
        limit: int = 1000,
    ) -> ObjectListing:
        """List current versions with keys above ``after``; costs O(results), not O(keys below).

        ``limit`` 0 gives an empty page that is not truncated, as S3 does.
        """
        return await self._listings.objects(bucket, prefix, delimiter, after, limit)

    async def list_versions(
        self,
        bucket: str,
        *,
        prefix: str = "",
        delimiter: str = "",
        key_marker: str = "",
        version_id_marker: str = "",
        limit: int = 1000,
    ) -> VersionListing:
        """List all versions and delete markers behind the markers.

        Raises: InvalidArgument for a malformed ``version_id_marker``.
        """
        return await self._listings.versions(
            bucket, prefix, delimiter, key_marker, version_id_marker, limit
        )

    async def list_uploads(
        self,
        bucket: str,
        *,
        prefix: str = "",
        delimiter: str = "",
        key_marker: str = "",
        upload_id_marker: UploadId | None = None,
        limit: int = 1000,
    ) -> UploadListing:
        return await self._listings.uploads(
            bucket, prefix, delimiter, key_marker, upload_id_marker, limit
        )

    def paths_at(self, at_ms: int) -> PastPaths:
        """Return ``paths`` as they were at a moment, as far as versions are kept."""
        return PastPaths(self.store, at_ms)

    # The store itself

    async def status(self) -> StoreStatus:
        return await store_status(self.store)

    async def fsck(
        self,
        *,
        deep: bool = False,
        repair_counters: bool = False,
        progress: Callable[[str, int, int], None] | None = None,
    ) -> FsckReport:
        """Prove that metadata and fragments agree; ``deep`` verifies every block.

        ``progress(phase, done, total)`` is called now and then. Changes nothing, but for usage
        counters that are proved wrong, with ``repair_counters``.
        """
        return await check_store(
            self.store, deep=deep, repair_counters=repair_counters, progress=progress
        )

    async def collect_garbage(self, *, grace_s: float | None = None) -> GcReport:
        """Run garbage collection now; ``grace_s`` overrides the store's grace time.

        What a live process still reads is kept whatever the grace time.
        """
        return await collect(self.store, grace_s=grace_s)
