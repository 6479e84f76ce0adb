"""The Range header."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dav.ranges import RANGES_MAX, Span, content_range, parse_ranges
from engine.errors import InvalidRange


@pytest.mark.parametrize(
    ("value", "spans"),
    [
        ("bytes=0-0", [(0, 1)]),
        ("bytes=5-", [(5, 10)]),
        ("bytes=-3", [(7, 10)]),
        ("bytes=-30", [(0, 10)]),
        ("bytes=8-100", [(8, 10)]),
        ("Bytes = 1-2", [(1, 3)]),
        ("bytes=7-8, 0-1", [(7, 9), (0, 2)]),
        ("bytes=0-3,2-5", [(0, 6)]),
        ("bytes=0-1,2-3,8-9", [(0, 4), (8, 10)]),
        ("bytes=1-2,50-60", [(1, 3)]),
    ],
)
def test_ranges_inside(value: str, spans: list[tuple[int, int]]) -> None:
    assert parse_ranges(value, 10) == [Span(*span) for span in spans]


@pytest.mark.parametrize(
    "value",
    [
        "bytes",
        "bytes=",
        "bytes=-",
        "bytes=3-2",
        "bytes=a-b",
        "lines=0-1",
        "bytes=1-2,x",
        "bytes=+1-2",
    ],
)
def test_what_is_malformed_is_ignored(value: str) -> None:
    assert parse_ranges(value, 10) is None


def test_too_many_ranges_are_the_whole() -> None:
    specs = ",".join(f"{2 * n}-{2 * n}" for n in range(RANGES_MAX + 1))
    assert parse_ranges(f"bytes={specs}", 1000) is None


@pytest.mark.parametrize(("value", "size"), [("bytes=10-", 10), ("bytes=-0", 10), ("bytes=0-", 0)])
def test_nothing_inside_is_an_error(value: str, size: int) -> None:
    with pytest.raises(InvalidRange):
        parse_ranges(value, size)


@given(
    specs=st.lists(st.tuples(st.integers(0, 60), st.integers(0, 60)), min_size=1, max_size=8),
    size=st.integers(1, 50),
)
def test_ranges_cover_what_was_asked_for_and_no_byte_twice(
    specs: list[tuple[int, int]], size: int
) -> None:
    specs = [(min(pair), max(pair)) for pair in specs]
    wanted = {n for first, last in specs for n in range(first, last + 1) if n < size}
    text = "bytes=" + ",".join(f"{first}-{last}" for first, last in specs)
    if not wanted:
        with pytest.raises(InvalidRange):
            parse_ranges(text, size)
        return
    spans = parse_ranges(text, size)
    assert spans is not None
    covered = [n for span in spans for n in range(span.first, span.end)]
    assert sorted(covered) == sorted(wanted)


def test_content_range() -> None:
    assert content_range(Span(0, 5), 10) == "bytes 0-4/10"
