"""The format of volumes and needles. Pure: no I/O.

A volume is a file ``volumes/<number, 8 hex>.vol``: a file header of 512 bytes, then *extents*,
each at a multiple of 512. An extent holds one needle. Numbers are big-endian.

File header (512 bytes, the rest zero)

====== ==== =====================================================================
offset size
====== ==== =====================================================================
0      8    ``LODEVOL`` 00
8      2    format, 2
10     2    0
12     4    number of the volume
16     16   uuid of the volume, random
32     4    CRC32 of bytes 0 to 31
====== ==== =====================================================================

Extent

====== ==== =====================================================================
0      4    ``LdNd``
4      1    format, 2
5      1    kind: 1 data, 2 tombstones, 3 copy (made by compaction), 4 filler
6      2    0
8      16   uuid of the volume
24     8    offset of this extent in the volume
32     17   fragment id; zeros for tombstones and filler
49     3    0
52     4    size of the extent as reserved, a multiple of 512
56     4    0
60     4    CRC32 of bytes 0 to 59
64     4    ``LdCt``: the commit record, all zeros until the needle is whole
68     4    CRC32 of the header, repeated: binds the record to it
72     4    payload size
76     4    size of the extent as used: smaller than reserved if it was the last one
80     8    CRC64/NVME of the payload
88     16   copies: uuid of the volume that the needle came from, else zeros
104    8    copies: its offset there
112    8    everything below this offset of the volume was durable when this was written
120    4    0
124    4    CRC32 of bytes 64 to 123
128    384  zeros: the rest of the header's sector
512    n    payload
====== ==== =====================================================================

The uuid and the offset in each header make it impossible that an object which is itself the copy
of a volume is taken for needles. Header and commit record lie in one sector, so a commit is
atomic; a record in front of the payload is found without knowing the payload's size.

Filler is an extent without a payload and without a commit record. It stands before a large needle
whose payload is to begin at a page, so that it can be written past the page cache.

Payload of tombstones: 41 bytes for each removed needle: fragment id (17), uuid of its volume (16),
its offset (8).
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterable
from typing import NamedTuple

from engine.ids import FRAGMENT_ID_SIZE, FragmentId
from engine.node.contract import Buffer

ALIGNMENT = 512
FILE_HEADER_SIZE = 512
HEADER_SIZE = 64
RECORD_SIZE = 128
"""Bytes of header and commit record together."""
NEEDLE_OVERHEAD = 512
"""Bytes of an extent before the payload: header, commit record, and the rest of their sector."""
FORMAT = 2
PAGE = 4096
UUID_SIZE = 16
PAYLOAD_SIZE_MAX = 2**32 - 2 * ALIGNMENT

DATA, TOMBSTONES, COPY, FILLER = 1, 2, 3, 4

NO_FRAGMENT = FragmentId(bytes(FRAGMENT_ID_SIZE))
BLANK = bytes(HEADER_SIZE)
NEEDLE_MAGIC = b"LdNd"

_FILE_MAGIC = b"LODEVOL\0"
_COMMIT_MAGIC = b"LdCt"
_FILE = struct.Struct(">8sHHI16s")
_HEADER = struct.Struct(">4sBBH16sQ17s3xI4x")
_COMMIT = struct.Struct(">4sIIIQ16sQQ4x")
_CRC = struct.Struct(">I")
_TOMBSTONE = struct.Struct(">17s16sQ")
TOMBSTONE_SIZE = _TOMBSTONE.size


class Source(NamedTuple):
    """A place in a volume that is named by its uuid, so that it never comes to mean another."""

    uuid: bytes
    offset: int


NO_SOURCE = Source(bytes(UUID_SIZE), 0)


class Header(NamedTuple):
    kind: int
    uuid: bytes
    offset: int
    fragment: FragmentId
    extent: int
    crc: int


class Commit(NamedTuple):
    size: int
    extent: int
    crc: int
    source: Source
    synced_to: int


class Tombstone(NamedTuple):
    fragment: FragmentId
    place: Source


def extent_size(payload: int) -> int:
    """Return the bytes that a needle with so much payload takes in a volume."""
    return (NEEDLE_OVERHEAD + payload + ALIGNMENT - 1) & -ALIGNMENT


def filler_size(offset: int) -> int:
    """Return the bytes between ``offset`` and the next needle whose payload begins at a page."""
    return -(offset + NEEDLE_OVERHEAD) % PAGE


def align(offset: int) -> int:
    return (offset + ALIGNMENT - 1) & -ALIGNMENT


def pack_file_header(number: int, uuid: bytes) -> bytes:
    raw = _FILE.pack(_FILE_MAGIC, FORMAT, 0, number, uuid)
    return (raw + _CRC.pack(zlib.crc32(raw))).ljust(FILE_HEADER_SIZE, b"\0")


def parse_file_header(raw: Buffer) -> tuple[int, bytes] | None:
    """Return (number, uuid), or None when this is no whole file header of format 2."""
    if len(raw) < _FILE.size + 4:
        return None
    magic, version, _, number, uuid = _FILE.unpack_from(raw)
    (crc,) = _CRC.unpack_from(raw, _FILE.size)
    if magic != _FILE_MAGIC or version != FORMAT or crc != zlib.crc32(raw[: _FILE.size]):
        return None
    return number, uuid


def pack_header(kind: int, uuid: bytes, offset: int, fragment: bytes, extent: int) -> bytes:
    """Return the 64 bytes of a needle's header."""
    raw = _HEADER.pack(NEEDLE_MAGIC, FORMAT, kind, 0, uuid, offset, fragment, extent)
    return raw + _CRC.pack(zlib.crc32(raw))


def parse_header(raw: Buffer, offset: int, uuid: bytes | None) -> Header | None:
    """Return the header that was written for ``offset`` of this volume, else None.

    ``uuid`` None accepts any volume's: only for a volume whose file header is damaged.
    """
    if len(raw) < HEADER_SIZE:
        return None
    magic, version, kind, _, own_uuid, own, fragment, extent = _HEADER.unpack_from(raw)
    if magic != NEEDLE_MAGIC or own != offset or (uuid is not None and own_uuid != uuid):
        return None
    (crc,) = _CRC.unpack_from(raw, _HEADER.size)
    if version != FORMAT or crc != zlib.crc32(raw[: _HEADER.size]):
        return None
    if kind not in (DATA, TOMBSTONES, COPY, FILLER) or extent < ALIGNMENT or extent % ALIGNMENT:
        return None
    return Header(kind, own_uuid, own, FragmentId(fragment), extent, crc)


def header_crc(header: bytes) -> int:
    return int.from_bytes(header[_HEADER.size : HEADER_SIZE], "big")


def pack_commit(header: bytes, commit: Commit) -> bytes:
    """Return the 64 bytes that make the needle of ``header`` whole."""
    size, extent, crc, source, synced_to = commit
    raw = _COMMIT.pack(
        _COMMIT_MAGIC, header_crc(header), size, extent, crc, source[0], source[1], synced_to
    )
    return raw + _CRC.pack(zlib.crc32(raw))


def parse_commit(raw: Buffer, header: Header) -> Commit | None:
    """Return the commit record that belongs to ``header``; None if blank or damaged."""
    if len(raw) < HEADER_SIZE:
        return None
    magic, bound, size, extent, crc, uuid, offset, synced_to = _COMMIT.unpack_from(raw)
    (own_crc,) = _CRC.unpack_from(raw, _COMMIT.size)
    if magic != _COMMIT_MAGIC or bound != header.crc or own_crc != zlib.crc32(raw[: _COMMIT.size]):
        return None
    if extent > header.extent or extent % ALIGNMENT or extent < extent_size(size):
        return None
    return Commit(size, extent, crc, Source(uuid, offset), synced_to)


def pack_tombstones(tombstones: Iterable[Tombstone]) -> bytes:
    return b"".join([_TOMBSTONE.pack(fragment, *place) for fragment, place in tombstones])


def parse_tombstones(payload: Buffer) -> list[Tombstone]:
    usable = memoryview(payload)[: len(payload) // TOMBSTONE_SIZE * TOMBSTONE_SIZE]
    return [
        Tombstone(FragmentId(fragment), Source(uuid, offset))
        for fragment, uuid, offset in _TOMBSTONE.iter_unpack(usable)
    ]
