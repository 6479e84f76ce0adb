"""File names of keys: every key has one path, and no two keys share one."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from engine.names import (
    NAME_BYTES_MAX,
    Mark,
    Name,
    NotUtf8,
    ReservedName,
    decode,
    encode,
    goes_on,
    split,
)

COMPONENTS = st.one_of(
    st.text(st.characters(exclude_characters="/", exclude_categories=("Cs",)), max_size=400),
    st.lists(
        st.sampled_from(["%", "name", "%name", "%file", "%more", "25", "00", "\0", ".", "é", "x"]),
        max_size=120,
    ).map("".join),
    st.sampled_from(["", ".", "..", ".versions", "%name", "%file", "%more"]),
)


@given(COMPONENTS, st.sampled_from(Mark))
@example("%00", Mark.FILE)
@example("a%name%file", Mark.NONE)
def test_a_name_leads_back_to_its_component(component: str, mark: Mark) -> None:
    for piece in split(component):
        assert decode(encode(piece, mark)) == Name(piece, mark)


@given(COMPONENTS)
def test_every_component_has_file_names_that_linux_takes(component: str) -> None:
    pieces = split(component)
    assert "".join(pieces) == component
    names = [encode(piece, Mark.MORE) for piece in pieces[:-1]] + [encode(pieces[-1])]
    for name in names:
        assert 0 < len(name) <= NAME_BYTES_MAX
        assert name not in (b".", b"..", b".versions")
        assert b"/" not in name
        assert b"\0" not in name


@given(COMPONENTS, COMPONENTS)
def test_two_components_never_share_a_path(one: str, other: str) -> None:
    def path(component: str) -> list[bytes]:
        *more, last = split(component)
        return [*(encode(piece, Mark.MORE) for piece in more), encode(last)]

    assert (path(one) == path(other)) == (one == other)


@given(st.binary(max_size=300))
@example(b"a%name")
@example(b"x%file%file")
@example(b"%25%name")
def test_what_decodes_encodes_to_itself(name: bytes) -> None:
    try:
        text, mark = decode(name)
    except (NotUtf8, ReservedName):
        return
    assert encode(text, mark) == name


@pytest.mark.parametrize(
    ("component", "name"),
    [
        ("plain.txt", b"plain.txt"),
        ("100%", b"100%"),
        ("a%20b", b"a%20b"),
        ("", b"%name"),
        (".", b".%name"),
        ("..", b"..%name"),
        (".versions", b".versions%name"),
        ("x%file", b"x%25file%name"),
        ("x\0y", b"x%00y%name"),
        ("..a", b"..a"),
    ],
)
def test_the_documented_names(component: str, name: bytes) -> None:
    assert encode(component) == name


@pytest.mark.parametrize("name", [b".", b"..", b"", b"a%name", b"%2%name", b"a%file%file", b"\xff"])
def test_names_that_no_key_has_are_refused(name: bytes) -> None:
    with pytest.raises((ReservedName, NotUtf8)):
        decode(name)


@given(COMPONENTS)
@example("\U0001f600" * 70)
@example("x" * 50 + "\0" + "\U0001f600" * 60)
def test_each_folder_of_a_long_name_is_known_as_one(component: str) -> None:
    begun = 0
    for piece in split(component)[:-1]:
        assert goes_on(component[: begun + len(piece)], begun)
        begun += len(piece)


@pytest.mark.parametrize("text", ["", "x", "x" * 60, "x" * 199, "x" * 201, "\U0001f600" * 51])
def test_what_no_name_is_cut_into_is_no_folder(text: str) -> None:
    assert not goes_on(text)
