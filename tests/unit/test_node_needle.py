"""The needle format: what is written parses, what was changed does not."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from engine.ids import FragmentId
from engine.node.needle import (
    COPY,
    DATA,
    NEEDLE_OVERHEAD,
    Commit,
    Source,
    Tombstone,
    extent_size,
    filler_size,
    pack_commit,
    pack_file_header,
    pack_header,
    pack_tombstones,
    parse_commit,
    parse_file_header,
    parse_header,
    parse_tombstones,
)

UUID = bytes(range(16))
NAME = FragmentId(b"f" * 17)


def test_format_is_as_documented() -> None:
    header = pack_header(DATA, UUID, 1024, NAME, 2048)
    assert len(header) == 64
    assert header[:6] == b"LdNd\x02\x01"
    assert header[8:24] == UUID
    assert header[24:32] == (1024).to_bytes(8, "big")
    assert header[32:49] == NAME
    assert header[52:56] == (2048).to_bytes(4, "big")
    commit = pack_commit(header, Commit(100, 512, 7, Source(UUID, 3), 1024))
    assert len(commit) == 64
    assert commit[:4] == b"LdCt"
    assert commit[4:8] == header[60:]
    assert commit[8:12] == (100).to_bytes(4, "big")
    assert commit[24:40] == UUID
    assert commit[48:56] == (1024).to_bytes(8, "big")


def test_file_header_round_trip() -> None:
    assert parse_file_header(pack_file_header(7, UUID)) == (7, UUID)
    assert parse_file_header(pack_file_header(7, UUID)[:35]) is None


@given(bit=st.integers(0, 64 * 8 - 1))
def test_any_flipped_bit_of_a_header_is_noticed(bit: int) -> None:
    raw = bytearray(pack_header(DATA, UUID, 512, NAME, 1024))
    raw[bit // 8] ^= 1 << bit % 8
    # Bytes 56 to 59 are padding and inside the checksum as well.
    assert parse_header(bytes(raw), 512, UUID) is None


@given(bit=st.integers(0, 64 * 8 - 1))
def test_any_flipped_bit_of_a_commit_record_is_noticed(bit: int) -> None:
    header = pack_header(COPY, UUID, 512, NAME, 1536)
    parsed = parse_header(header, 512, UUID)
    assert parsed is not None
    commit = Commit(300, 1024, 2**64 - 1, Source(UUID, 2**40), 512)
    raw = bytearray(pack_commit(header, commit))
    assert parse_commit(bytes(raw), parsed) == commit
    raw[bit // 8] ^= 1 << bit % 8
    assert parse_commit(bytes(raw), parsed) is None


def test_header_counts_only_in_its_own_place() -> None:
    header = pack_header(DATA, UUID, 512, NAME, 1024)
    assert parse_header(header, 512, UUID) is not None
    assert parse_header(header, 1024, UUID) is None
    assert parse_header(header, 512, bytes(16)) is None


def test_commit_record_of_another_needle_is_refused() -> None:
    mine = pack_header(DATA, UUID, 512, NAME, 1024)
    other = pack_header(DATA, UUID, 512, NAME, 1536)
    parsed = parse_header(mine, 512, UUID)
    assert parsed is not None
    commit = Commit(1, 1024, 0, Source(UUID, 0), 0)
    assert parse_commit(pack_commit(mine, commit), parsed) == commit
    assert parse_commit(pack_commit(other, commit), parsed) is None


@given(st.lists(st.tuples(st.binary(min_size=17, max_size=17), st.integers(0, 2**63))))
def test_tombstones_round_trip(items: list[tuple[bytes, int]]) -> None:
    tombstones = [Tombstone(FragmentId(name), Source(UUID, offset)) for name, offset in items]
    assert parse_tombstones(pack_tombstones(tombstones)) == tombstones


@given(st.integers(0, 2**31))
def test_extent_holds_payload_and_is_aligned(size: int) -> None:
    assert extent_size(size) % 512 == 0
    assert 512 + size <= extent_size(size) < 512 + size + 512


@given(st.integers(0, 2**31).map(lambda n: n * 512))
def test_payload_behind_filler_begins_at_a_page(offset: int) -> None:
    assert filler_size(offset) % 512 == 0
    assert 0 <= filler_size(offset) < 4096
    assert (offset + filler_size(offset) + NEEDLE_OVERHEAD) % 4096 == 0
