"""Where a store's metadata lies on FoundationDB, and which folder remembers what."""

from __future__ import annotations

from pathlib import Path

import pytest

from engine.config import StoreConfig
from engine.errors import ConfigError
from engine.identity import read_identity, read_or_make_identity
from engine.meta.fdb_location import FdbLocation
from engine.meta.fdb_markers import STALE_MS, Markers


def test_place_is_a_cluster_file_with_a_store_and_a_library():
    assert FdbLocation.parse("fdb:/etc/fdb.cluster") == FdbLocation(Path("/etc/fdb.cluster"))
    assert FdbLocation.parse("fdb:/a%20b?store=two&library=/opt/libfdb_c.so") == FdbLocation(
        Path("/a b"), "two", Path("/opt/libfdb_c.so")
    )


def test_relative_paths_begin_at_the_folder_that_is_given(tmp_path):
    location = FdbLocation.parse("fdb:fdb.cluster?library=lib/libfdb_c.so", tmp_path)
    assert location.cluster_file == tmp_path / "fdb.cluster"
    assert location.library == tmp_path / "lib/libfdb_c.so"


@pytest.mark.parametrize(
    "text", ["fdb:/etc/fdb.cluster", "fdb:/a%20b%3F?store=two", "fdb:/c?store=x&library=/l%26/m.so"]
)
def test_place_is_written_as_it_is_read(text):
    location = FdbLocation.parse(text)
    assert FdbLocation.parse(str(location)) == location
    assert str(location) == text


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("fdb:", "write the place as fdb:/etc/"),
        ("/etc/fdb.cluster", "write the place as fdb:/etc/"),
        ("fdb:/c?tenant=x", "tenant is no store"),
        ("fdb:/c?store=", "the store's name"),
        ("fdb:/c?store=A", "the store's name"),
        ("fdb:/c?store=" + "x" * 33, "the store's name"),
    ],
)
def test_wrong_places_are_refused_with_a_reason(text, reason):
    with pytest.raises(ConfigError, match=reason):
        FdbLocation.parse(text)


def test_no_prefix_of_a_store_begins_another():
    prefixes = [FdbLocation(Path("/c"), name).prefix for name in ("a", "ab", "lode", "x" * 32)]
    for one in prefixes:
        assert [other for other in prefixes if other.startswith(one)] == [one]
    # Room for the longest key of the contract in FoundationDB's 10,000 bytes.
    assert max(len(prefix) for prefix in prefixes) < 99


def test_data_folder_remembers_where_its_metadata_is(tmp_path):
    config = StoreConfig(data=tmp_path / "data", meta="fdb:/etc/fdb.cluster")
    made = read_or_make_identity(config, 1, "shared")
    assert read_identity(config.data) == made
    assert (made.store_id, made.meta) == ("shared", "fdb:/etc/fdb.cluster")
    assert read_or_make_identity(StoreConfig(data=config.data), 2, "shared") == made


def test_data_folder_refuses_metadata_that_is_not_its_own(tmp_path):
    config = StoreConfig(data=tmp_path / "data", meta="fdb:/etc/fdb.cluster")
    read_or_make_identity(config, 1, "shared")
    with pytest.raises(ConfigError, match="belongs to the store shared"):
        read_or_make_identity(config, 1, "another")
    elsewhere = StoreConfig(data=config.data, meta="fdb:/etc/other.cluster")
    with pytest.raises(ConfigError, match=r"not in fdb:/etc/other\.cluster"):
        read_or_make_identity(elsewhere, 1, "shared")


def test_two_transactions_never_share_a_slot_at_a_time():
    markers = Markers(b"r", b"process.")
    one, two = markers.take(), markers.take()
    assert one != two
    assert markers.token() != markers.token()
    markers.give_back(one)
    assert markers.take() == one
    begin, end = markers.own
    assert begin <= one < end
    assert begin <= two < end


def test_marker_of_an_hour_ago_is_stale_and_a_new_one_is_not(monkeypatch):
    monkeypatch.setattr("time.time_ns", lambda: 5_000_000_000 * 1_000_000)
    token = Markers(b"r", b"process.").token()
    assert not Markers.is_stale(token, 5_000_000_000 + STALE_MS)
    assert Markers.is_stale(token, 5_000_000_001 + STALE_MS)
