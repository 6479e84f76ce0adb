"""What stat shows, read from what rclone and s3fs write."""

from __future__ import annotations

import stat
from pathlib import Path
from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fs.attributes import (
    AttributeReader,
    format_mode,
    format_time,
    kept_time,
    parse_mode,
    parse_time,
)
from fs.options import MountOptions

FILE_TYPES = (stat.S_IFREG, stat.S_IFLNK)
DEFAULT = stat.S_IFREG | 0o644


class Version(NamedTuple):
    size: int = 5
    modified_ms: int = 1_700_000_000_123
    metadata: list[tuple[str, str]] = []  # noqa: RUF012  never changed


@given(st.integers())
def test_times_are_kept_to_the_nanosecond(nanoseconds: int) -> None:
    kept = kept_time(nanoseconds)
    assert kept == nanoseconds or abs(nanoseconds) >= 2**40 * 10**9
    assert parse_time(format_time(kept), 0) == kept


@pytest.mark.parametrize(
    ("text", "nanoseconds"),
    [
        ("1600000000.123456789", 1_600_000_000_123_456_789),
        ("1600000000", 1_600_000_000_000_000_000),
        ("1600000000.5", 1_600_000_000_500_000_000),
        ("1.6e9", 1_600_000_000_000_000_000),
        ("-0.5", -500_000_000),
        ("yesterday", 7),
        ("nan", 7),
        ("1e300", 7),
        ("", 7),
    ],
)
def test_times_as_they_are_written(text: str, nanoseconds: int) -> None:
    assert parse_time(text, 7) == nanoseconds


@given(st.sampled_from(FILE_TYPES), st.integers(0, 0o7777))
def test_modes_are_kept(kind: int, bits: int) -> None:
    assert parse_mode(format_mode(kind | bits), DEFAULT, FILE_TYPES) == kind | bits


@pytest.mark.parametrize(
    ("text", "types", "mode"),
    [
        ("100600", FILE_TYPES, 0o100600),
        ("600", FILE_TYPES, 0o100600),
        ("33188", FILE_TYPES, 0o100644),
        ("33261", FILE_TYPES, 0o100755),
        ("41471", FILE_TYPES, 0o120777),
        ("120777", FILE_TYPES, 0o120777),
        ("16877", (stat.S_IFDIR,), 0o40755),
        ("060600", FILE_TYPES, DEFAULT),
        ("junk", FILE_TYPES, DEFAULT),
        ("-1", FILE_TYPES, DEFAULT),
    ],
)
def test_modes_as_rclone_and_s3fs_write_them(text: str, types: tuple[int, ...], mode: int) -> None:
    assert parse_mode(text, DEFAULT, types) == mode


def test_defaults_come_from_the_options() -> None:
    options = MountOptions(target=Path("/x"), uid=7, gid=8, file_mode=0o640, dir_mode=0o750)
    reader = AttributeReader(options)
    shown = reader.of_file(Version())
    assert (shown.mode, shown.uid, shown.gid, shown.size) == (0o100640, 7, 8, 5)
    assert shown.mtime_ns == 1_700_000_000_123_000_000
    assert reader.of_directory(None, 1000).mode == 0o40750


def test_metadata_wins_over_defaults() -> None:
    reader = AttributeReader(MountOptions(target=Path("/x")))
    metadata = [("mtime", "1.5"), ("mode", "100600"), ("uid", "12"), ("gid", "x"), ("other", "y")]
    shown = reader.of_file(Version(metadata=metadata))
    assert (shown.mode, shown.mtime_ns, shown.uid, shown.gid) == (0o100600, 1_500_000_000, 12, 0)
