"""Markers by which a commit on FoundationDB is known although its answer was lost."""

from __future__ import annotations

import time

STALE_MS = 3_600_000
"""A marker of this age belongs to nobody who still waits; far beyond any clock's error."""

_NUMBER_SIZE = 8


class Markers:
    """The slots of one process, each used by one transaction at a time.

    A marker's value: number of the attempt within this process (8), time in ms (6).
    """

    def __init__(self, prefix: bytes, process: bytes) -> None:
        """``process``: 8 random bytes. It is also where a sweep of all markers begins."""
        self._prefix = prefix + process
        self.begin = self._prefix
        self.end = prefix + b"\xff" * len(process) + b"\xff"
        """With ``begin``: the markers of all processes behind this one."""
        self.own = (self._prefix, self._prefix + b"\xff\xff\xff")
        self._free: list[bytes] = []
        self._slots = 0
        self._attempts = 0

    def take(self) -> bytes:
        """Return the key of a marker that nobody else uses until it is given back."""
        if self._free:
            return self._free.pop()
        self._slots += 1
        return self._prefix + self._slots.to_bytes(2, "big")

    def give_back(self, key: bytes) -> None:
        self._free.append(key)

    @property
    def used(self) -> bool:
        """Return whether any marker may have been written."""
        return self._attempts > 0

    def token(self) -> bytes:
        """Return the value for another attempt."""
        self._attempts += 1
        now_ms = time.time_ns() // 1_000_000
        return self._attempts.to_bytes(_NUMBER_SIZE, "big") + now_ms.to_bytes(6, "big")

    @staticmethod
    def is_stale(value: bytes, now_ms: int) -> bool:
        return int.from_bytes(value[_NUMBER_SIZE:], "big") < now_ms - STALE_MS
