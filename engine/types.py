"""What frontends hand to the engine and get back. Names are S3's where S3 has one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple, Protocol, TypeAlias

import msgspec

from engine.ids import BucketId, UploadId
from engine.meta.records import Checksum, ListedVersion, VersionRecord

Pairs: TypeAlias = list[tuple[str, str]]
Digests: TypeAlias = Mapping[str, bytes]
"""Raw digests by algorithm: ``MD5``, ``CRC32``, ``CRC32C``, ``CRC64NVME``, ``SHA1``, ``SHA256``."""

KEY_BYTES_MAX = 1024
PART_NUMBER_MAX = 10_000
PART_SIZE_MIN = 5 << 20
OBJECT_SIZE_MAX = 5 << 40
PUT_SIZE_MAX = 5 << 30


class Source(Protocol):
    """Where the bytes of a new object or part come from; the engine pulls them."""

    async def readinto(self, buffer: memoryview) -> int:
        """Fill at least one byte of ``buffer`` and return how many; 0 only at the end.

        May raise an EngineError (or its frontend's own error): nothing is stored then.
        """


Check: TypeAlias = Callable[[Digests], list[Checksum]]
"""Called once all bytes came, before anything is committed: raises when a digest is not what was
announced, and returns the checksums to keep with the object."""


class Quota(msgspec.Struct, frozen=True):
    """Limits of a bucket; None: there is none. What counts: ``engine.quota``."""

    bytes: int | None = None
    objects: int | None = None


class BucketUsage(msgspec.Struct, frozen=True):
    """What a bucket's versions take, and what they may take at most."""

    bucket: str
    bytes: int
    objects: int
    """Versions, older ones among them; delete markers are not."""
    quota_bytes: int | None
    quota_objects: int | None


class BucketInfo(msgspec.Struct, frozen=True):
    name: str
    bucket_id: BucketId
    owner: str
    created_ms: int
    versioning: str
    """``""``, ``"Enabled"`` or ``"Suspended"``."""
    region: str
    quota: Quota | None = None


class Attributes(msgspec.Struct, frozen=True):
    """What the writer says about an object beside its bytes."""

    headers: Pairs = []
    """Standard headers to give back byte for byte: content-type, cache-control, expires, ..."""
    metadata: Pairs = []
    """User metadata without ``x-amz-meta-``, names in lower case."""
    tags: Pairs = []
    storage_class: str = "STANDARD"


class StateTest(msgspec.Struct, frozen=True):
    """One thing that has to be so, or with ``negated`` not to be so, of a resource."""

    token: str = ""
    """A lock with this token covers it; looked at when there is no ``etag``."""
    etag: str | None = None
    """Its current version has this ETag."""
    negated: bool = False


class StateList(msgspec.Struct, frozen=True):
    """All ``tests`` hold for one resource: a key, a folder or a bucket (``""``). A folder may be
    named without its slash."""

    bucket: str
    key: str
    tests: tuple[StateTest, ...]


class Conditions(msgspec.Struct, frozen=True):
    """Preconditions (RFC 9110, section 13), decided in the transaction that commits.

    ETags are without quotes, ``"*"`` stands for any; times are in ms.
    """

    if_match: tuple[str, ...] | None = None
    if_none_match: tuple[str, ...] | None = None
    if_modified_since_ms: int | None = None
    if_unmodified_since_ms: int | None = None
    shown_times: bool = False
    """Compare with the time of modification that is shown (``engine.times``), not with S3's."""
    if_match_size: int | None = None
    """Conditional delete only."""
    if_match_modified_ms: int | None = None
    """Conditional delete only: equal to the second."""
    if_match_data_id: bytes | None = None
    """The current version has these very bytes (``record.data_id`` of what was opened), however
    alike another's ETag is; ``b""``: there is no current version. Writes, deletes, renames."""
    states: tuple[StateList, ...] = ()
    """When there are any, one of them has to hold (RFC 4918, section 10.4). Writes only."""
    lock_tokens: tuple[str, ...] = ()
    """Tokens of the locks that the writer holds; see ``engine.locks``."""
    principal: str = ""
    """Who writes: a lock's token is good only in the hands of who took the lock."""


NO_CONDITIONS = Conditions()


class ObjectInfo(NamedTuple):
    """One version of an object, without its bytes."""

    bucket: BucketInfo
    key: str
    record: VersionRecord

    @property
    def size(self) -> int:
        return self.record.size

    @property
    def etag(self) -> str:
        return self.record.etag

    @property
    def modified_ms(self) -> int:
        return self.record.modified_ms

    @property
    def version_id(self) -> str | None:
        """The id to show: None in a bucket that never had versioning."""
        return self.record.version_id if self.bucket.versioning else None


@dataclass(frozen=True, slots=True)
class Deleted:
    """What a delete did. ``version_id`` is of the version removed, or of the marker made."""

    key: str
    version_id: str | None
    delete_marker: bool
    """A delete marker was made (no version was named) or removed (it was named)."""


class LockRequest(msgspec.Struct, frozen=True):
    principal: str
    owner: str
    """XML, kept and given back."""
    exclusive: bool
    deep: bool
    timeout_s: int


class LockInfo(NamedTuple):
    """One lock that has not timed out."""

    bucket: str
    root: str
    """The key that was locked; a folder ends with ``/``, ``""`` is the bucket."""
    token: str
    exclusive: bool
    deep: bool
    principal: str
    owner: str
    timeout_s: int
    """As granted."""
    expires_ms: int


class PropertyChange(NamedTuple):
    name: str
    """``{namespace}name``"""
    xml: str | None
    """The whole element; None removes the property."""


class DeleteItem(NamedTuple):
    key: str
    version_id: str | None = None
    conditions: Conditions = NO_CONDITIONS


class CopySource(NamedTuple):
    bucket: str
    key: str
    version_id: str | None = None
    conditions: Conditions = NO_CONDITIONS
    first: int | None = None
    """First byte to copy, with ``last``; None: all of it."""
    last: int | None = None
    """Last byte to copy, inclusive."""


class ListedObject(NamedTuple):
    key: str
    version: ListedVersion


class ListedKeyVersion(NamedTuple):
    key: str
    version: ListedVersion
    is_latest: bool


@dataclass(frozen=True, slots=True)
class ObjectListing:
    bucket: BucketInfo
    objects: list[ListedObject]
    prefixes: list[str]
    """Common prefixes, in order; they count against the limit as objects do."""
    next_after: str | None
    """Where the next page starts (``after``); None at the end."""


@dataclass(frozen=True, slots=True)
class VersionListing:
    bucket: BucketInfo
    versions: list[ListedKeyVersion]
    """Keys ascending, versions of a key newest first; delete markers among them."""
    prefixes: list[str]
    next_key: str | None
    next_version_id: str | None
    """With ``next_key``; None when the next page starts behind all versions of the key."""


class UploadInfo(NamedTuple):
    bucket: BucketInfo
    key: str
    upload_id: UploadId
    started_ms: int
    storage_class: str
    checksum_algorithm: str
    """``""`` when Create named none."""
    checksum_type: str


class PartInfo(NamedTuple):
    number: int
    size: int
    modified_ms: int
    etag: str
    checksums: list[Checksum]


class CompletePart(NamedTuple):
    """One line of Complete's part list."""

    number: int
    etag: str
    checksums: list[Checksum]
    """Those that the client repeated; compared with the part's."""


@dataclass(frozen=True, slots=True)
class PartListing:
    upload: UploadInfo
    parts: list[PartInfo]
    next_after: int | None
    """Part number after which the next page starts; None at the end."""


@dataclass(frozen=True, slots=True)
class UploadListing:
    bucket: BucketInfo
    uploads: list[UploadInfo]
    prefixes: list[str]
    next_key: str | None
    next_upload_id: UploadId | None


class DriveStatus(msgspec.Struct, frozen=True):
    node_id: str
    location: str
    state: str
    """``up``, ``missing``, ``failed``, ``suspect``, ``down``, ``lost``, ``rebuilding``,
    ``draining``, ``removed`` or ``full``."""
    total: int
    free: int
    live: int
    dead: int
    fragments: int
    damaged: int
    """Damaged or missing fragments found since the store was made."""
    repaired: int
    member: str = ""
    """Name of the member that has the drive; empty: it is in the serving processes."""
    weight: float = 1.0


class MemberStatus(msgspec.Struct, frozen=True):
    member_id: str
    name: str
    address: str
    zone: str
    rack: str
    host: str
    state: str
    """``up``, ``draining``, ``drained`` or ``removed``: what its administrator wants."""
    health: str
    """``up``, ``suspect``, ``down`` or ``lost``: how it was seen last."""
    since_ms: int
    """Since when; 0: since it was added."""
    version: str
    drives: int


class CensusStatus(msgspec.Struct, frozen=True):
    """What the last census proved."""

    as_of_ms: int
    """When it ended."""
    chunks: int
    fragments: int
    """That chunks should have."""
    whole: int
    missing: int
    """Not on their node, too short, or on a node that is lost or was given up."""
    unasked: int
    """On nodes that did not answer: they may be there."""
    chunks_at_risk: int
    """One more lost fragment, and bytes are lost; counted from the whole ones."""
    chunks_unreadable: int
    """Fewer whole fragments than it takes to read."""
    chunks_sharing: int
    """Two fragments share a failure domain though there are enough of them."""
    orphans: int
    """Fragments found without an owner; they wait for deletion."""


class WorkStatus(msgspec.Struct, frozen=True):
    """One piece of long work: repair, rebuild, rebalance, census or scrub."""

    name: str
    title: str
    running: bool
    """False: it was interrupted and waits to go on."""
    done: int
    """Chunks."""
    total: int
    bytes: int
    """Written or, by a scrub, read."""
    bytes_per_s: float
    seconds_left: float | None
    """At the rate so far; None: nobody knows."""
    left: int
    """Things that could not be done this time."""
    started_ms: int


class StoreStatus(msgspec.Struct, frozen=True):
    store_id: str
    profile: str
    drives: list[DriveStatus]
    buckets: int
    objects: int
    bytes: int
    repair_queue: int
    """Chunks that wait for repair."""
    garbage_queue: int
    """Versions and parts whose bytes wait for garbage collection."""
    members: list[MemberStatus] = []
    domains: int = 0
    """Failure domains that new fragments are spread over."""
    census: CensusStatus | None = None
    """None: none was taken yet."""
    work: list[WorkStatus] = []
    warnings: list[str] = []
    """What an administrator should know, as sentences."""


class FsckReport(msgspec.Struct, frozen=True):
    """Counts of what was proved, and of what was found wrong; ``problems`` names the first 100."""

    objects: int
    versions: int
    uploads: int
    chunks: int
    fragments: int
    missing_fragments: int
    damaged_fragments: int
    orphan_fragments: int
    """On drives without an owner, and no live session could still own them."""
    orphan_chunks: int
    unreadable_chunks: int
    """Fewer than k whole fragments."""
    wrong_counters: int
    problems: list[str]
    repaired_counters: int = 0
    unchecked_fragments: int = 0
    """On nodes that could not be asked: they may be whole."""
    unchecked_nodes: int = 0
    """Nodes that could not be asked."""

    @property
    def clean(self) -> bool:
        """Everything was looked at, and nothing is wrong."""
        return not (
            self.unchecked_fragments
            or self.unchecked_nodes
            or self.missing_fragments
            or self.damaged_fragments
            or self.orphan_fragments
            or self.orphan_chunks
            or self.unreadable_chunks
            or self.wrong_counters
        )


class GcReport(msgspec.Struct, frozen=True):
    garbage: int
    """Garbage entries taken."""
    fragments: int
    bytes: int
    orphans: int
    uploads_aborted: int = 0
