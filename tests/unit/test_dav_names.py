"""Targets to buckets and keys and back; no trick leaves them."""

from __future__ import annotations

from urllib.parse import unquote_to_bytes

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dav.names import (
    BadTarget,
    NameTooLong,
    NoName,
    OtherHost,
    Target,
    href,
    href_of,
    more_name,
    parse_destination,
    parse_target,
    shown,
    shown_name,
)
from engine.names import Mark, encode, split

LONG = st.builds(
    lambda piece, count, end: piece * count + end,
    st.sampled_from(["x", "é", "\U0001f600", "%", "\0", "x\U0001f600", "%more", "x" * 9 + "\0"]),
    st.integers(20, 300),
    st.sampled_from(["", "end", "%name", "%file", "%more", "\0"]),
)
"""Components that are too long for one name, or nearly so."""
KEYS = st.one_of(
    st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=40),
    LONG,
    st.builds("/".join, st.lists(st.one_of(LONG, st.sampled_from(["a", ""])), min_size=2)),
).filter(lambda key: key and not key.endswith("/") and len(key.encode()) <= 1024)


@given(key=KEYS, beside=st.booleans())
def test_every_key_has_a_url_that_leads_back_to_it(key: str, beside: bool) -> None:
    where = href("bucket", key, folder=False, beside_folder=beside)
    assert where.isascii()
    assert max(len(unquote_to_bytes(part)) for part in where.split("/")) <= 255
    found = parse_target(where)
    assert (found.bucket, found.path, found.beside_folder) == ("bucket", key, beside)


@given(key=KEYS, beside=st.booleans(), is_folder=st.booleans())
def test_who_follows_what_is_shown_comes_to_the_key(
    key: str, beside: bool, is_folder: bool
) -> None:
    beside = beside and not is_folder
    above, slash, _ = key.rpartition("/")
    folder: Target | None = Target("bucket", above) if slash else Target("bucket", "")
    if above:
        assert folder == parse_target(href_of(folder))._replace(slash=False)
    elif slash:
        return  # a folder without a name, at the top: its path looks like the bucket's
    entry = key + "/" if is_folder else key
    while folder is not None:
        found = shown(folder, entry, is_folder=is_folder, beside_folder=beside)
        assert found is not None
        folder = found.more
        if folder is not None:
            assert found.name == more_name(folder)
            assert found.href == href_of(folder)
            assert parse_target(found.href) == folder
    assert found.href == href("bucket", key, folder=is_folder, beside_folder=beside)
    assert found.name == shown_name(key, beside_folder=beside)


@given(component=LONG)
def test_names_are_those_of_the_mount(component: str) -> None:
    *more, last = split(component)
    names = [encode(piece, Mark.MORE) for piece in more] + [encode(last)]
    url = href("bucket", component, folder=False)
    assert [unquote_to_bytes(part) for part in url.split("/")[2:]] == names


@pytest.mark.parametrize(
    "path",
    [
        "x" * 199 + "%25more/y",  # cut elsewhere
        "x" * 200 + "%25more/y",  # not too long for one name
        "x" * 201 + "%25more/",
        "x%25more/",
        "x" * 60 + "%25more/",
        "x" * 200 + "%25more/" + "y" * 60 + "%25file/",
    ],
)
def test_a_name_that_is_cut_elsewhere_is_none(path: str) -> None:
    with pytest.raises(NoName):
        parse_target("/bucket/" + path)


def test_a_name_that_was_not_cut_is_too_long() -> None:
    assert parse_target("/bucket/" + "x" * 255).path == "x" * 255
    for name in ("x" * 256, "%C3%A9" * 128):
        with pytest.raises(NameTooLong):
            parse_target("/bucket/" + name)


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
