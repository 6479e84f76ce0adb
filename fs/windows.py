"""Pieces of files that random reads touched lately.

A read of 4 KiB has to read and verify a whole block of the store, so the block is kept: the next
random read is likely to fall into one that is there. Windows are as long as blocks and begin where
blocks begin, so nothing is read that would not be read anyway.
"""

from __future__ import annotations

from collections import OrderedDict

WINDOW_SIZE = 256 * 1024


class Windows:
    """The windows used last, by the version's data id and the window's number; bounded."""

    def __init__(self, size_max: int) -> None:
        self._kept: OrderedDict[tuple[bytes, int], bytes | bytearray] = OrderedDict()
        self._size = 0
        self._size_max = size_max
        self.hits = 0
        self.misses = 0
        """Windows that had to be fetched."""

    @property
    def size(self) -> int:
        """Bytes that are kept."""
        return self._size

    def get(self, data_id: bytes, number: int) -> bytes | bytearray | None:
        key = (data_id, number)
        window = self._kept.get(key)
        if window is not None:
            self.hits += 1
            self._kept.move_to_end(key)
        return window

    def put(self, data_id: bytes, number: int, window: bytes | bytearray) -> None:
        """Keep a window, in place of those not used for longest."""
        self.misses += 1
        key = (data_id, number)
        if key in self._kept or len(window) > self._size_max:
            return
        self._kept[key] = window
        self._size += len(window)
        while self._size > self._size_max:
            self._size -= len(self._kept.popitem(last=False)[1])
