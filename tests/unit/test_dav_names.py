"""Targets to buckets and keys and back; no trick leaves them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dav.names import (
    BadTarget,
    NoName,
    OtherHost,
    Target,
    href,
    parse_destination,
    parse_target,
    shown_name,
)

KEYS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=40).filter(
    lambda key: not key.endswith("/")
)


@given(key=KEYS, beside=st.booleans())
def test_every_key_has_a_url_that_leads_back_to_it(key: str, beside: bool) -> None:
    where = href("bucket", key, folder=False, beside_folder=beside)
    assert where.isascii()
    found = parse_target(where)
    assert (found.bucket, found.path, found.beside_folder) == ("bucket", key, beside)


@given(key=KEYS)
def test_every_folder_has_a_url_that_leads_back_to_it(key: str) -> None:
    found = parse_target(href("bucket", key, folder=True))
    assert found.folder_key == key + "/"
    assert found.slash


@given(first=KEYS, second=KEYS)
def test_two_keys_never_share_a_url(first: str, second: str) -> None:
    urls = {
        href("bucket", key, folder=False, beside_folder=beside)
        for key in {first, second}
        for beside in (False, True)
    }
    assert len(urls) == 2 * len({first, second})


@pytest.mark.parametrize(
    ("uri", "bucket", "path"),
    [
        ("/", "", ""),
        ("//", "", ""),
        ("/b", "b", ""),
        ("/b/", "b", ""),
        ("//b//x///y", "b", "x/y"),
        ("http://host:80/b/x", "b", "x"),
        ("http://host", "", ""),
        ("/b/a%20b", "b", "a b"),
        ("/b/a%2520b", "b", "a%20b"),
        ("/b/%C3%A4", "b", "ä"),
        ("/b/\xc3\xa4", "b", "ä"),
        ("/b/x?after=1", "b", "x"),
    ],
)
def test_targets(uri: str, bucket: str, path: str) -> None:
    found = parse_target(uri)
    assert (found.bucket, found.path) == (bucket, path)


@pytest.mark.parametrize(
    "uri",
    [
        "/b/..",
        "/b/../c",
        "/b/./c",
        "/b/%2e%2e/c",
        "/b/%2E%2e",
        "/../etc/passwd",
        "/%2e%2e/etc",
        "/b/x%2Fy",
        "/b/x%00",
        "/b/..%2f..%2fetc",
        "/b/.versions",
        "/b/x%25file/y",
        "/b/a%25name",
    ],
)
def test_no_dot_or_encoding_is_a_direction(uri: str) -> None:
    with pytest.raises(NoName):
        parse_target(uri)


@pytest.mark.parametrize("uri", ["b", "*", "", "/b/%", "/b/%zz", "/b/x#y", "/b/%ff", "/%ff"])
def test_what_is_no_url_of_ours_is_refused(uri: str) -> None:
    with pytest.raises(BadTarget):
        parse_target(uri)


def test_dots_in_keys_have_names_of_their_own() -> None:
    assert href("b", "../x", folder=False) == "/b/..%25name/x"
    assert parse_target("/b/..%25name/x").path == "../x"
    assert href("b", "a//b", folder=False) == "/b/a/%25name/b"


def test_a_destination_may_be_a_path_or_a_url_of_the_same_host() -> None:
    for header in ("/b/x", "http://Host:9001/b/x", "https://host:9001/b/x", " http://host/b/x "):
        assert parse_destination(header, host="host:9001") == Target("b", "x")


def test_a_destination_elsewhere_is_told_apart() -> None:
    for header in ("http://other/b/x", "http://host:1/b/x", "http://host.evil/b"):
        with pytest.raises(OtherHost):
            parse_destination(header, host="host:9001")
    for header in ("ftp://host/x", "x", "http://[::1/x", "http:///b"):
        with pytest.raises(BadTarget):
            parse_destination(header, host="host")


def test_a_file_beside_a_folder_is_shown_with_its_mark() -> None:
    assert shown_name("x/a", beside_folder=True) == "a%file"
    assert shown_name("x/a") == "a"


def test_parents() -> None:
    assert Target("b", "x/y").parent == Target("b", "x")
    assert Target("b", "x").parent == Target("b", "")
    assert Target("b", "").parent.is_root
    assert Target("b", "x/y").name == "y"
    assert Target("b", "").name == "b"
