"""The keys of the metadata store. docs/format.md shows an example of each.

====== ==================================================== =====================================
prefix rest of the key                                      value
====== ==================================================== =====================================
``B``  bucket name (UTF-8)                                  BucketRecord
``C``  bucket id (8), kind                                  configuration document, as sent
``O``  bucket id (8), key                                   VersionRecord of the current version
``V``  bucket id (8), key escaped, 00 00, ~sequence (8)     VersionRecord, noncurrent or a marker
``N``  bucket id (8), key                                   sequence (8) of the ``null`` version
``I``  data id (16)                                         bytes of a small object or part
``U``  bucket id (8), key escaped, 00 00, upload id (16)    UploadRecord
``P``  upload id (16), part number (2)                      PartRecord
``G``  upload id (16)                                       counter: bumped by every UploadPart
``M``  upload id (16)                                       ManifestRecord
``K``  chunk id (16)                                        ChunkRecord
``X``  deleted at, ms (6), data id (16)                     GarbageRecord
``Z``  bucket id (8), shard (1), ``b`` or ``n``             counters: bytes, objects
``S``  session id (10)                                      SessionRecord
``D``  node id (8)                                          NodeRecord
``H``  member id (8)                                        MemberRecord
``E``  node id (8), counter name                            counters: damage found, repaired ...
``R``  chunk id (16)                                        RepairRecord
``Y``  node id (8), fragment id (17)                         empty: to be deleted from that node
``L``  lease name                                           LeaseRecord
``F``  versionstamp (10), key                               FeedRecord
``T``  bucket id (8), prefix                                TreeRename, while it is under way
``Q``  bucket id (8), key                                   PropertiesRecord
``W``  bucket id (8), root: a key, a folder or nothing      LocksRecord
``J``  access key                                           AccessKeyRecord
``A``  setting name                                         store id, format version, profile
====== ==================================================== =====================================

Each version of a key is in exactly one row: the current one under ``O`` unless it is a delete
marker, everything else under ``V``, newest first (docs/decisions/0003). Numbers are big-endian.
"Escaped" is the tuple layer's rule: 00 becomes 00 FF, so that order is kept and 00 00 ends it.
"""

from __future__ import annotations

import base64
import binascii

from engine.ids import (
    NODE_ID_SIZE,
    BucketId,
    ChunkId,
    DataId,
    FragmentId,
    MemberId,
    NodeId,
    SessionId,
    UploadId,
)

BUCKET, CONFIG, OBJECT, VERSION, NULL = b"B", b"C", b"O", b"V", b"N"
INLINE, UPLOAD, PART, PART_COUNT, MANIFEST = b"I", b"U", b"P", b"G", b"M"
CHUNK, GARBAGE, USAGE, SESSION, NODE = b"K", b"X", b"Z", b"S", b"D"
NODE_COUNTER, REPAIR, STRAY, LEASE, FEED, SETTING = b"E", b"R", b"Y", b"L", b"F", b"A"

TREE_RENAME = b"T"
PROPERTIES, LOCK = b"Q", b"W"
MEMBER = b"H"
ACCESS_KEY = b"J"

CLUSTER = SETTING + b"cluster"
"""Counter that every change of members or nodes bumps; all processes watch it."""

FEED_HEAD = SETTING + b"feed"
"""Counter that every change of a key bumps; followers of the feed watch it."""

ACCESS_KEYS = SETTING + b"access keys"
"""Counter that every change of access keys bumps; all who check signatures watch it."""

KEY_SECRET = SETTING + b"key secret"
"""What the secrets of access keys are sealed under (``engine.sealing``): 32 random bytes."""

ROOT_KEY = SETTING + b"root key"
"""AccessKeyRecord of the root credentials, where gateways share their metadata; its name is the
access key itself."""

READ_ONLY = SETTING + b"read only"
"""Why nobody may change the store, as text; absent: all may (``engine.meta.read_only``)."""

_END = b"\x00\x00"
_SEQUENCE_TOP = 2**64 - 1


def after(key: bytes) -> bytes:
    """Return the first key that sorts after ``key``."""
    return key + b"\x00"


def after_prefix(prefix: bytes) -> bytes:
    """Return the first key that sorts after every key that begins with ``prefix``."""
    stripped = prefix.rstrip(b"\xff")
    if not stripped:
        raise ValueError("nothing sorts after a prefix of FF bytes")
    return stripped[:-1] + bytes([stripped[-1] + 1])


def escape(key: bytes) -> bytes:
    return key.replace(b"\x00", b"\x00\xff")


def unescape(escaped: bytes) -> bytes:
    return escaped.replace(b"\x00\xff", b"\x00")


def bucket(name: str) -> bytes:
    return BUCKET + name.encode()


def config(bucket_id: BucketId, kind: str) -> bytes:
    return CONFIG + bucket_id + kind.encode()


def object_(bucket_id: BucketId, key: bytes) -> bytes:
    return OBJECT + bucket_id + key


def versions(bucket_id: BucketId, key: bytes) -> bytes:
    """Return the prefix of all version rows of the key."""
    return VERSION + bucket_id + escape(key) + _END


def version(bucket_id: BucketId, key: bytes, sequence: int) -> bytes:
    return versions(bucket_id, key) + (_SEQUENCE_TOP - sequence).to_bytes(8, "big")


def split_version(row_key: bytes) -> tuple[bytes, int]:
    """Return (key, sequence) of a row under ``VERSION``."""
    return unescape(row_key[9:-10]), _SEQUENCE_TOP - int.from_bytes(row_key[-8:], "big")


def null(bucket_id: BucketId, key: bytes) -> bytes:
    return NULL + bucket_id + key


def inline(data_id: DataId) -> bytes:
    return INLINE + data_id


def uploads(bucket_id: BucketId, key: bytes) -> bytes:
    """Return the prefix of all upload rows of the key."""
    return UPLOAD + bucket_id + escape(key) + _END


def upload(bucket_id: BucketId, key: bytes, upload_id: UploadId) -> bytes:
    return uploads(bucket_id, key) + upload_id


def split_upload(row_key: bytes) -> tuple[bytes, UploadId]:
    """Return (key, upload id) of a row under ``UPLOAD``."""
    return unescape(row_key[9:-18]), UploadId(row_key[-16:])


def part(upload_id: UploadId, number: int) -> bytes:
    return PART + upload_id + number.to_bytes(2, "big")


def part_count(upload_id: UploadId) -> bytes:
    return PART_COUNT + upload_id


def manifest(upload_id: UploadId) -> bytes:
    return MANIFEST + upload_id


def chunk(chunk_id: ChunkId) -> bytes:
    return CHUNK + chunk_id


def garbage(deleted_ms: int, data_id: DataId) -> bytes:
    return GARBAGE + deleted_ms.to_bytes(6, "big") + data_id


def usage(bucket_id: BucketId, shard: int, counter: bytes) -> bytes:
    return USAGE + bucket_id + bytes([shard]) + counter


def session(session_id: SessionId) -> bytes:
    return SESSION + session_id


def node(node_id: NodeId) -> bytes:
    return NODE + node_id


def member(member_id: MemberId) -> bytes:
    return MEMBER + member_id


def node_counter(node_id: NodeId, name: str) -> bytes:
    return NODE_COUNTER + node_id + name.encode()


def repair(chunk_id: ChunkId) -> bytes:
    return REPAIR + chunk_id


def stray(node_id: NodeId, fragment: FragmentId) -> bytes:
    return STRAY + node_id + fragment


def split_stray(row_key: bytes) -> tuple[NodeId, FragmentId]:
    """Return (node id, fragment id) of a row under ``STRAY``."""
    return NodeId(row_key[1 : 1 + NODE_ID_SIZE]), FragmentId(row_key[1 + NODE_ID_SIZE :])


def lease(name: str) -> bytes:
    return LEASE + name.encode()


def access_key(name: str) -> bytes:
    return ACCESS_KEY + name.encode()


def tree_rename(bucket_id: BucketId, prefix: bytes) -> bytes:
    return TREE_RENAME + bucket_id + prefix


def properties(bucket_id: BucketId, key: bytes) -> bytes:
    return PROPERTIES + bucket_id + key


def lock(bucket_id: BucketId, root: bytes) -> bytes:
    return LOCK + bucket_id + root


def setting(name: str) -> bytes:
    return SETTING + name.encode()


def work(name: str) -> bytes:
    """Return the key of a service's progress (``engine.services.progress``)."""
    return SETTING + b"work " + name.encode()


def version_id(sequence: int, random: bytes) -> str:
    """Return the id of a version: its sequence and 12 random bytes, 32 characters.

    Its sequence is in it so that a version is found with one read; the random part keeps ids
    unique when a key is removed and made again.
    """
    return base64.b32encode(sequence.to_bytes(8, "big") + random[:12]).decode()


def sequence_of(version_id: str) -> int | None:
    """Return the sequence inside a version id, or None when it is no version id."""
    try:
        raw = base64.b32decode(version_id)
    except (binascii.Error, ValueError):
        return None
    return int.from_bytes(raw[:8], "big") if len(raw) == 20 else None
