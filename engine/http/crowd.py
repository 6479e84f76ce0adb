"""How many connections each of several serving processes has, so that all get their share.

Processes that accept from one socket do not share evenly by themselves: whoever wakes first takes
a whole burst, and 64 connections that come at once end in one of two processes. So each keeps its
count on a board that all can see, and one that has more than another lets the others go first.

One file of four bytes per process, mapped by all. Each writes its own slot only, and reads of a
slot that is being written see the old or the new count; both will do.
"""

from __future__ import annotations

import mmap
import os


class Crowd:
    """The counts, as the process of slot ``index`` sees and keeps them."""

    __slots__ = ("_counts", "_index")

    def __init__(self, fd: int, index: int, size: int) -> None:
        """Map the board of ``size`` slots; the slot of a process that died begins anew."""
        self._counts = memoryview(mmap.mmap(fd, size * 4)).cast("i")
        self._index = index
        self._counts[index] = 0

    def set_count(self, count: int) -> None:
        self._counts[self._index] = count

    def is_ahead(self) -> bool:
        """Return whether another process has fewer connections than this one."""
        return min(self._counts) < self._counts[self._index]


def make_board(size: int) -> int:
    """Return a descriptor of a board for ``size`` processes; the caller closes it."""
    fd = os.memfd_create("lode crowd")
    os.ftruncate(fd, size * 4)
    return fd
