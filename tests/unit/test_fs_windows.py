"""What random reads touched is kept, up to a bound."""

from __future__ import annotations

from fs.windows import Windows


def test_what_was_not_used_for_longest_goes_first() -> None:
    windows = Windows(20)
    windows.put(b"v", 0, b"0123456789")
    windows.put(b"v", 1, b"abcdefghij")
    assert windows.get(b"v", 0) == b"0123456789"
    windows.put(b"v", 2, b"ABCDE")
    assert windows.get(b"v", 1) is None
    assert windows.get(b"v", 0) == b"0123456789"
    assert windows.size == 15


def test_versions_are_kept_apart() -> None:
    windows = Windows(20)
    windows.put(b"old", 0, b"old")
    assert windows.get(b"new", 0) is None


def test_keeping_twice_counts_once() -> None:
    windows = Windows(20)
    windows.put(b"v", 0, b"0123456789")
    windows.put(b"v", 0, b"0123456789")
    assert windows.size == 10


def test_what_exceeds_the_bound_is_not_kept() -> None:
    windows = Windows(5)
    windows.put(b"v", 0, b"0123456789")
    assert windows.get(b"v", 0) is None
    assert windows.size == 0
