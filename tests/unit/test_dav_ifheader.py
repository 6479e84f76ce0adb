"""The If header, as RFC 4918 has it and as clients send it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dav.ifheader import MalformedIf, parse_if, token_of, token_uri
from dav.names import Target
from engine.types import StateList, StateTest

HERE = Target("bucket", "folder/file")
T1, T2 = "11111111-aaaa", "22222222-bbbb"
U1, U2 = f"<opaquelocktoken:{T1}>", f"<opaquelocktoken:{T2}>"


def states(header: str) -> list[tuple[str, str, list[StateTest]]]:
    parsed = parse_if(header, target=HERE, host="host:80")
    return [(state.bucket, state.key, list(state.tests)) for state in parsed.states]


def here(*tests: StateTest) -> tuple[str, str, list[StateTest]]:
    return "bucket", "folder/file", list(tests)


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        (f"({U1})", [here(StateTest(token=T1))]),
        (f" ( {U1} ) ", [here(StateTest(token=T1))]),
        # RFC 4918, section 10.4.6
        (
            f'({U1} ["I am an ETag"]) (["I am another ETag"])',
            [
                here(StateTest(token=T1), StateTest(etag="I am an ETag")),
                here(StateTest(etag="I am another ETag")),
            ],
        ),
        # section 10.4.7
        (
            f"(Not {U1} {U2})",
            [here(StateTest(token=T1, negated=True), StateTest(token=T2))],
        ),
        # section 10.4.8: always true, and submits the token
        (
            f"({U1}) (Not <DAV:no-lock>)",
            [here(StateTest(token=T1)), here(StateTest(token="DAV:no-lock", negated=True))],
        ),
        # section 10.4.9
        (
            f'</bucket/a> ({U1} [W/"A weak ETag"]) (["strong"])',
            [
                ("bucket", "a", [StateTest(token=T1), StateTest(etag="A weak ETag")]),
                ("bucket", "a", [StateTest(etag="strong")]),
            ],
        ),
        # section 10.4.10 and .11
        (f"<http://host:80/bucket/b%20c/> ({U1})", [("bucket", "b c", [StateTest(token=T1)])]),
        (
            f"</bucket/a> ({U1}) <https://host/x/y> (not {U2})",
            [
                ("bucket", "a", [StateTest(token=T1)]),
                ("x", "y", [StateTest(token=T2, negated=True)]),
            ],
        ),
        (f"<http://elsewhere/bucket/a> ({U1})", [("", "", [StateTest(token=T1)])]),
        (f"</bucket/%zz> ({U1})", [("", "", [StateTest(token=T1)])]),
        ('([""])', [here(StateTest(etag=""))]),
        # Office and gvfs leave no spaces.
        (
            f'</bucket/a>({U1}["e"])',
            [("bucket", "a", [StateTest(token=T1), StateTest(etag="e")])],
        ),
    ],
)
def test_headers_are_read(header: str, expected: list[tuple[str, str, list[StateTest]]]) -> None:
    assert states(header) == expected


@pytest.mark.parametrize(
    "header",
    [
        "",
        "()",
        "(",
        f"({U1}",
        f"{U1}",
        f"{U1} {U2} ({U1})",
        f"({U1}) </bucket/a>",
        f"({U1}) </bucket/a> ({U2})",
        "(Not)",
        f"(Not Not {U1})",
        f"(({U1}))",
        f"({U1}))",
        '(["open)',
        "(<>)",
        "(token)",
        f"(Nothing {U1})",
        f"({U1}), ({U2})",
    ],
)
def test_what_is_no_if_header_is_refused(header: str) -> None:
    with pytest.raises(MalformedIf):
        parse_if(header, target=HERE, host="host")


def test_all_tokens_count_as_known_once_each() -> None:
    header = f"</bucket/a> ({U1}) (Not {U2}) </bucket/b> ({U1} <urn:other>)"
    assert parse_if(header, target=HERE, host="host").tokens == (T1, T2, "urn:other")


def test_tokens_have_a_uri_and_come_back_from_it() -> None:
    assert token_of(token_uri(T1)) == T1
    assert token_of("urn:uuid:" + T1) == "urn:uuid:" + T1


_pieces = st.sampled_from(
    ["(", ")", "Not", "not ", U1, "<", ">", "[", "]", '"', '["e"]', " ", "</bucket/a>", "x", "\x00"]
)


@given(st.lists(_pieces, max_size=12))
def test_anything_is_read_or_refused(pieces: list[str]) -> None:
    try:
        parsed = parse_if("".join(pieces), target=HERE, host="host")
    except MalformedIf:
        return
    assert all(isinstance(state, StateList) and state.tests for state in parsed.states)
