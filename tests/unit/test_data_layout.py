"""The arithmetic of chunks."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.data.batch import first_block_at, space_for
from engine.data.layout import PAGE, Layout, block_hash, hash_space
from engine.ids import ChunkId

layouts = st.builds(
    Layout,
    st.integers(1, 100_000),
    st.integers(1, 20),
    st.integers(0, 10),
    st.integers(1, 16).map(lambda n: 64 * n) | st.sampled_from([4096, 8192]),
)


@given(layouts)
def test_stripes_hold_all_bytes_and_the_last_is_no_larger_than_needed(layout: Layout) -> None:
    last = layout.stripe_count - 1
    assert layout.stripe_count * layout.stripe_size >= layout.size > last * layout.stripe_size
    rest = layout.size - last * layout.stripe_size
    assert layout.data_blocks * layout.last_block_size >= rest
    assert layout.data_blocks * (layout.last_block_size - 64) < rest
    assert layout.last_block_size % 64 == 0
    assert layout.last_block_size <= layout.block_size


@given(layouts)
def test_blocks_lie_one_behind_the_other_in_a_fragment(layout: Layout) -> None:
    end = 0
    for stripe in range(layout.stripe_count):
        assert layout.offset_of(stripe) == end
        end += layout.block_size_of(stripe) + hash_space(layout.block_size_of(stripe))
        assert layout.end_of(stripe) == end
    assert layout.fragment_size == end


@given(layouts, st.data())
def test_blocks_of_a_range_are_exactly_those_that_hold_its_bytes(
    layout: Layout, data: st.DataObject
) -> None:
    start = data.draw(st.integers(0, layout.size - 1))
    end = data.draw(st.integers(start + 1, layout.size))
    found = set()
    for stripe in layout.stripes(start, end):
        for block in layout.blocks(stripe, start, end):
            first = stripe * layout.stripe_size + block * layout.block_size_of(stripe)
            found.add((first, first + layout.block_size_of(stripe)))
    covered = sorted(found)
    assert covered[0][0] <= start < covered[0][1]
    assert covered[-1][0] < end <= covered[-1][1]
    assert all(before[1] == after[0] for before, after in itertools.pairwise(covered))
    assert first_block_at(layout, start) == covered[0][0]
    assert space_for(layout, start, end) == covered[-1][1] - covered[0][0]


def test_format_stays_what_it_is() -> None:
    """Bytes on disk depend on these; a change needs another format version."""
    layout = Layout(1_000_000, 4, 2, 65_536)
    assert (layout.stripe_count, layout.last_block_size) == (4, 53_440)
    assert layout.fragment_size == 3 * (65_536 + 4096) + 53_440 + 32
    assert Layout(100_000, 4, 2, 6400).fragment_size == 3 * (6400 + 32) + 5824 + 32
    assert Layout(1 << 20, 4, 2, 65_536).fragment_size == 4 * (65_536 + 4096)
    digest = block_hash(b"block", ChunkId(bytes(range(16))), 3, 258)
    assert digest.hex() == "d035c068ce59ad703d86251082e609b6d1dcecd6f23a027a1c1767384292c1d4"


@given(st.integers(1, 100_000), st.integers(1, 20), st.integers(1, 4))
def test_blocks_of_whole_pages_begin_at_pages(size: int, k: int, pages: int) -> None:
    layout = Layout(size, k, 0, pages * PAGE)
    assert all(layout.offset_of(stripe) % PAGE == 0 for stripe in range(layout.stripe_count))
    if layout.last_block_size % PAGE == 0:
        assert layout.fragment_size % PAGE == 0


def test_hash_depends_on_the_place() -> None:
    chunk, other = ChunkId(b"a" * 16), ChunkId(b"b" * 16)
    places = [(chunk, 0, 0), (chunk, 0, 1), (chunk, 1, 0), (other, 0, 0), (chunk, 0, 256)]
    assert len({block_hash(b"x", *place) for place in places}) == len(places)


@pytest.mark.parametrize(
    ("size", "k", "m", "block"), [(0, 1, 0, 64), (1, 0, 1, 64), (1, 1, -1, 64), (1, 1, 1, 100)]
)
def test_impossible_chunks_are_refused(size: int, k: int, m: int, block: int) -> None:
    with pytest.raises(ValueError, match=r"layout|multiple"):
        Layout(size, k, m, block)
