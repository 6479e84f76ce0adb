"""What is stored under the keys of ``keyspace.py``: MessagePack arrays with a format version.

Every struct is array-like, its first field is the format version, and fields are only ever
appended with a default, so that an older record still decodes.
"""

from __future__ import annotations

from typing import TypeAlias, TypeVar

import msgspec

from engine.ids import BucketId, ChunkId, DataId, MemberId, NodeId, UploadId

T = TypeVar("T")


class _Record(msgspec.Struct, array_like=True, frozen=True, gc=False):
    pass


class BucketRecord(_Record, frozen=True):
    format: int
    bucket_id: BucketId
    owner: str
    created_ms: int
    versioning: str = ""
    """``""`` (never enabled), ``"Enabled"`` or ``"Suspended"``, as S3 spells them."""
    region: str = ""
    object_ownership: str = ""
    quota_bytes: int | None = None
    """Of all versions together; None: no limit."""
    quota_objects: int | None = None


class Checksum(_Record, frozen=True):
    algorithm: str
    """``CRC32``, ``CRC32C``, ``CRC64NVME``, ``SHA1`` or ``SHA256``."""
    value: bytes
    type: str = "FULL_OBJECT"
    """``FULL_OBJECT``, or ``COMPOSITE``: of the parts' checksums; shown with ``-parts``."""
    parts: int = 0


class InlineData(_Record, tag="i", frozen=True):
    """The bytes themselves."""

    data: bytes


class InlineRow(_Record, tag="r", frozen=True):
    """The bytes are under the data id in the ``inline`` subspace."""


class ChunkData(_Record, tag="c", frozen=True):
    """(chunk id, size in bytes) of each chunk, in the order of the object's bytes."""

    chunks: list[tuple[ChunkId, int]]


class PartData(_Record, tag="p", frozen=True):
    """The object is made of parts: a manifest and part rows under the upload's id."""

    upload_id: UploadId


Data: TypeAlias = InlineData | InlineRow | ChunkData | PartData


class VersionRecord(_Record, frozen=True):
    """One version of one key, or a delete marker. Listing decodes ``ListedVersion`` only."""

    format: int
    sequence: int
    """Counts up by one with every version of the key."""
    size: int
    modified_ms: int
    etag: str
    """Without quotes."""
    version_id: str
    """``null`` or a version id (``keyspace.version_id``)."""
    delete_marker: bool
    storage_class: str
    checksum_shown: str
    """What listings show: ``""`` or e.g. ``CRC64NVME FULL_OBJECT``."""
    # The above is ListedVersion.
    data_id: DataId
    data: Data
    headers: list[tuple[str, str]] = []
    """Standard headers, byte for byte as latin-1, names in lower case."""
    metadata: list[tuple[str, str]] = []
    """User metadata without ``x-amz-meta-``, names in lower case."""
    tags: list[tuple[str, str]] = []
    checksums: list[Checksum] = []
    parts_count: int = 0


class ListedVersion(_Record, frozen=True):
    """The first fields of ``VersionRecord``: what a listing shows of a version."""

    format: int
    sequence: int
    size: int
    modified_ms: int
    etag: str
    version_id: str
    delete_marker: bool
    storage_class: str
    checksum_shown: str


class ChunkOwner(_Record, frozen=True):
    """Who owns a chunk: a part (``upload_id`` set), or a version of an object."""

    bucket_id: BucketId
    key: bytes
    sequence: int
    data_id: DataId
    upload_id: UploadId | None = None
    part_number: int = 0


class ChunkRecord(_Record, frozen=True):
    """Where a chunk's fragments are and how they are coded."""

    format: int
    size: int
    """Bytes of user data."""
    data_blocks: int
    """k; 1 for replicated chunks, whose parity blocks are copies."""
    parity_blocks: int
    """m"""
    block_size: int
    """Bytes of a block in every stripe but the last, without its hash."""
    nodes: list[NodeId]
    """Of fragment 0, 1, ...: ``data_blocks + parity_blocks`` of them."""
    owner: ChunkOwner


class UploadRecord(_Record, frozen=True):
    """A multipart upload under way."""

    format: int
    started_ms: int
    storage_class: str
    headers: list[tuple[str, str]]
    metadata: list[tuple[str, str]]
    tags: list[tuple[str, str]]
    checksum_algorithm: str = ""
    checksum_type: str = ""


class PartRecord(_Record, frozen=True):
    format: int
    size: int
    modified_ms: int
    etag: str
    data_id: DataId
    data: Data
    checksums: list[Checksum] = []


class ManifestRecord(_Record, frozen=True):
    """The parts of a completed upload, and what Complete answered, so it can answer again."""

    format: int
    bucket_id: BucketId
    key: bytes
    etag: str
    version_id: str
    completed_ms: int
    parts: list[tuple[int, int]]
    """(part number, size in bytes), ascending."""
    checksums: list[Checksum] = []


class GarbageRecord(_Record, frozen=True):
    """Bytes that no version owns any more."""

    format: int
    data: Data


class SessionRecord(_Record, frozen=True):
    """A process that writes chunks and reads versions; it renews this while it lives."""

    format: int
    host: str
    pid: int
    started_ms: int
    expires_ms: int
    read_horizon_ms: int
    """What was deleted at or after this moment may still be read by this process."""
    dead: bool = False
    """Set by the collector once expired: commits under this session fail from then on."""


class NodeRecord(_Record, frozen=True):
    format: int
    drive_id: str
    """Identity of the drive that is in this slot now (``drive.json``)."""
    location: str
    """Folder of the drive: of the store itself, or on its member."""
    added_ms: int
    state: str = "up"
    """``up``; ``rebuilding`` while a replaced drive gets its fragments back; ``draining`` while
    its fragments move elsewhere; ``removed`` once none is left on it."""
    member: MemberId | None = None
    """The member that has the drive; None: it is in the serving processes themselves."""
    weight: float = 1.0
    """Share of the fragments relative to other nodes."""
    health: str = "up"
    """What was last seen of the drive: ``up``, ``suspect``, ``down`` or ``lost``."""
    health_ms: int = 0
    """Since when, ms since 1970."""
    changed_ms: int = 0
    """When its administrator changed ``state`` last."""


class MemberRecord(_Record, frozen=True):
    """A ``lode node`` daemon (docs/decisions/0009)."""

    format: int
    name: str
    """What people call it; unique; also its innermost failure domain unless ``host`` says so."""
    address: str
    """``host:port`` of its wire protocol."""
    added_ms: int
    zone: str = ""
    rack: str = ""
    host: str = ""
    """Failure domains, outermost first; empty: all members without one share it."""
    state: str = "up"
    """What its administrator wants: ``up``, ``draining`` or ``removed``."""
    health: str = "up"
    """What was last seen of it: ``up``, ``suspect``, ``down`` or ``lost``."""
    health_ms: int = 0
    """Since when, ms since 1970."""
    version: str = ""
    """Of its program."""


class RepairRecord(_Record, frozen=True):
    format: int
    since_ms: int
    reason: str
    """``missing``, ``damaged`` or ``rebuild``."""


class LeaseRecord(_Record, frozen=True):
    format: int
    holder: bytes
    expires_ms: int


class FeedRecord(_Record, frozen=True):
    """One change of one key. ``kind``: ``put``, ``delete``, ``marker``, ``tags``,
    ``properties``."""

    format: int
    at_ms: int
    bucket_id: BucketId
    key: bytes
    kind: str
    version_id: str


class TreeRename(_Record, frozen=True):
    """A rename of all keys below a prefix, too many for one transaction, that is under way."""

    format: int
    bucket: str
    new_prefix: bytes
    started_ms: int
    after: bytes = b""
    """The last key that was dealt with; the next step begins behind it."""
    moved: int = 0
    left: int = 0
    """Keys that stay where they were, since somebody wrote the new key meanwhile."""


class PropertiesRecord(_Record, frozen=True):
    """What WebDAV calls dead properties: kept beside the object, whatever its version."""

    format: int
    properties: list[tuple[str, str]]
    """(``{namespace}name``, the whole element as XML), sorted by name."""


class LockEntry(_Record, frozen=True):
    token: str
    exclusive: bool
    deep: bool
    """The lock of a folder covers all that is below it."""
    principal: str
    owner: str
    """What the client says about its owner: XML, given back as it came."""
    timeout_s: int
    expires_ms: int


class LocksRecord(_Record, frozen=True):
    """All locks with one root: one exclusive lock, or shared ones."""

    format: int
    locks: list[LockEntry]


class AccessKeyRecord(_Record, frozen=True):
    """An access key: what it may do, and its secret."""

    format: int
    name: str
    """What people call it; need not be unique."""
    created_ms: int
    sealed: bytes
    """The secret key, as ``engine.sealing`` keeps it."""
    read_only: bool = False
    buckets: list[str] | None = None
    """Names, sorted, also of buckets that are not there; None: all."""
    disabled: bool = False


FORMAT = 1

_encoder = msgspec.msgpack.Encoder()
encode = _encoder.encode
"""``encode(record) -> bytes``"""

decode_bucket = msgspec.msgpack.Decoder(BucketRecord).decode
decode_version = msgspec.msgpack.Decoder(VersionRecord).decode
decode_listed = msgspec.msgpack.Decoder(ListedVersion).decode
decode_chunk = msgspec.msgpack.Decoder(ChunkRecord).decode
decode_upload = msgspec.msgpack.Decoder(UploadRecord).decode
decode_part = msgspec.msgpack.Decoder(PartRecord).decode
decode_manifest = msgspec.msgpack.Decoder(ManifestRecord).decode
decode_garbage = msgspec.msgpack.Decoder(GarbageRecord).decode
decode_session = msgspec.msgpack.Decoder(SessionRecord).decode
decode_node = msgspec.msgpack.Decoder(NodeRecord).decode
decode_member = msgspec.msgpack.Decoder(MemberRecord).decode
decode_repair = msgspec.msgpack.Decoder(RepairRecord).decode
decode_lease = msgspec.msgpack.Decoder(LeaseRecord).decode
decode_tree_rename = msgspec.msgpack.Decoder(TreeRename).decode
decode_properties = msgspec.msgpack.Decoder(PropertiesRecord).decode
decode_locks = msgspec.msgpack.Decoder(LocksRecord).decode
decode_access_key = msgspec.msgpack.Decoder(AccessKeyRecord).decode
decode_feed = msgspec.msgpack.Decoder(FeedRecord).decode
