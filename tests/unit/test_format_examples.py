"""docs/format.md has an example of every key and value, and each is what the code writes."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec

from engine.ids import BucketId, ChunkId, DataId, FragmentId, MemberId, NodeId, SessionId, UploadId
from engine.meta import keyspace, records
from engine.meta.records import FORMAT, encode

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "format.md"

BUCKET = BucketId(bytes.fromhex("7f3a09c2d1e45b60"))
KEY = b"2026/a.jpg"
DATA = DataId(bytes.fromhex("0199a1b2c3d4e5f60718293a4b5c6d7e"))
UPLOAD = UploadId(bytes.fromhex("0199a1c0000000000123456789abcdef"))
CHUNK = ChunkId(bytes.fromhex("53c0ffee0123456789ab000000000001"))
SESSION = SessionId(bytes.fromhex("53c0ffee0123456789ab"))
NODES = [NodeId(bytes.fromhex(f"d{n}00000000000000")) for n in range(1, 7)]
MEMBER = MemberId(bytes.fromhex("a100000000000000"))
FRAGMENT = FragmentId(CHUNK + b"\x02")
NOW = 1_795_262_400_000
SEALED = bytes(range(12)) + bytes.fromhex("c0ffee00" * 10) + bytes(range(16))
ETAG = "5d41402abc4b2a76b9719d911017c592"
VERSION_ID = keyspace.version_id(7, bytes(range(12)))


def version(sequence: int, data: records.Data, *, marker: bool = False) -> records.VersionRecord:
    return records.VersionRecord(
        format=FORMAT,
        sequence=sequence,
        size=0 if marker else 5,
        modified_ms=NOW,
        etag="" if marker else ETAG,
        version_id=VERSION_ID,
        delete_marker=marker,
        storage_class="STANDARD",
        checksum_shown="",
        data_id=DATA,
        data=data,
        headers=[] if marker else [("content-type", "image/jpeg")],
    )


def examples() -> list[tuple[bytes, bytes]]:
    """Return one row of each subspace, as the code makes it."""
    owner = records.ChunkOwner(BUCKET, KEY, 7, DATA)
    chunks = records.ChunkData([(CHUNK, 67_108_864)])
    counter = (5).to_bytes(8, "little")
    return [
        (keyspace.bucket("photos"), encode(records.BucketRecord(FORMAT, BUCKET, "root", NOW))),
        (keyspace.config(BUCKET, "cors"), b"<CORSConfiguration>...</CORSConfiguration>"),
        (keyspace.object_(BUCKET, KEY), encode(version(7, records.InlineData(b"hello")))),
        (
            keyspace.version(BUCKET, KEY, 6),
            encode(version(6, records.InlineData(b""), marker=True)),
        ),
        (keyspace.null(BUCKET, KEY), (5).to_bytes(8, "big")),
        (keyspace.inline(DATA), b"the bytes themselves"),
        (
            keyspace.upload(BUCKET, KEY, UPLOAD),
            encode(records.UploadRecord(FORMAT, NOW, "STANDARD", [], [], [])),
        ),
        (
            keyspace.part(UPLOAD, 1),
            encode(records.PartRecord(FORMAT, 67_108_864, NOW, ETAG, DATA, chunks)),
        ),
        (keyspace.part_count(UPLOAD), counter),
        (
            keyspace.manifest(UPLOAD),
            encode(
                records.ManifestRecord(
                    FORMAT, BUCKET, KEY, ETAG + "-1", VERSION_ID, NOW, [(1, 67_108_864)]
                )
            ),
        ),
        (
            keyspace.chunk(CHUNK),
            encode(records.ChunkRecord(FORMAT, 67_108_864, 4, 2, 262_144, NODES, owner)),
        ),
        (keyspace.garbage(NOW, DATA), encode(records.GarbageRecord(FORMAT, chunks))),
        (keyspace.usage(BUCKET, 3, b"b"), counter),
        (
            keyspace.session(SESSION),
            encode(records.SessionRecord(FORMAT, "gate1", 4711, NOW, NOW + 60_000, NOW)),
        ),
        (
            keyspace.node(NODES[0]),
            encode(records.NodeRecord(FORMAT, "f00d", "drive1", NOW, member=MEMBER)),
        ),
        (
            keyspace.member(MEMBER),
            encode(records.MemberRecord(FORMAT, "store1", "10.0.0.11:9100", NOW, rack="r1")),
        ),
        (keyspace.node_counter(NODES[0], "damaged"), counter),
        (keyspace.repair(CHUNK), encode(records.RepairRecord(FORMAT, NOW, "missing"))),
        (keyspace.stray(NODES[0], FRAGMENT), b""),
        (
            keyspace.lease("collector"),
            encode(records.LeaseRecord(FORMAT, SESSION, NOW + 30_000)),
        ),
        (
            keyspace.FEED + bytes.fromhex("00000f3a9b2c1d000001") + KEY,
            encode(records.FeedRecord(FORMAT, NOW, BUCKET, KEY, "put", VERSION_ID)),
        ),
        (
            keyspace.tree_rename(BUCKET, b"old/"),
            encode(records.TreeRename(FORMAT, "photos", b"new/", NOW, b"old/k", 1000)),
        ),
        (
            keyspace.properties(BUCKET, KEY),
            encode(records.PropertiesRecord(FORMAT, [("{DAV:}author", "<author>me</author>")])),
        ),
        (
            keyspace.lock(BUCKET, b"2026/"),
            encode(
                records.LocksRecord(
                    FORMAT,
                    [
                        records.LockEntry(
                            *("opaquelocktoken:1", True, True, "root", "", 600, NOW + 600_000)
                        )
                    ],
                )
            ),
        ),
        (
            keyspace.access_key("LODE2QK7V4XW9B3TH5ZN"),
            encode(
                records.AccessKeyRecord(FORMAT, "website", NOW, SEALED, True, ["films", "photos"])
            ),
        ),
        (keyspace.ACCESS_KEYS, counter),
        (keyspace.KEY_SECRET, bytes(range(32))),
        (
            keyspace.ROOT_KEY,
            encode(records.AccessKeyRecord(FORMAT, "8FZK1M6Q0C3S7YRPD2VA", NOW, SEALED)),
        ),
        (keyspace.setting("profile"), b"4+2"),
    ]


def shown_bytes(raw: bytes) -> str:
    """Return bytes as a person reads them: ASCII as it is, the rest as ``\\x..``."""
    return "".join(chr(b) if 33 <= b < 127 and b != 92 else f"\\x{b:02x}" for b in raw)


def shown_value(raw: bytes) -> str:
    """Return a record as JSON, its bytes as ``x'hex'``; anything else as bytes."""
    if (raw[:1] and 0x90 <= raw[0] <= 0x9F) or raw[:1] == b"\xdc":
        return json.dumps(_jsonable(msgspec.msgpack.decode(raw)), separators=(", ", ": "))
    return shown_bytes(raw) or "(empty)"


def _jsonable(value: object) -> object:
    if isinstance(value, bytes):
        return f"x'{value.hex()}'"
    if isinstance(value, list):
        return [_jsonable(item) for item in value]
    return value


def test_every_subspace_has_an_example():
    letters = {
        value[:1]
        for name, value in vars(keyspace).items()
        if name.isupper() and isinstance(value, bytes) and len(value) == 1
    }
    assert {key[:1] for key, _ in examples()} == letters


def test_the_document_shows_what_the_code_writes():
    text = DOCUMENT.read_text()
    lines = [f"{shown_bytes(key)}\n    {shown_value(value)}" for key, value in examples()]
    assert [line for line in lines if line not in text] == []
