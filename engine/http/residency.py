"""Whether bytes of a file are in the page cache, so that sending them waits for no disk.

Source: cachestat(2), Linux 6.5. Where the kernel lacks or refuses it, the answer is always no.
"""

from __future__ import annotations

import ctypes
import mmap
import os
from collections.abc import Callable
from typing import Final

_CACHESTAT: Final = 451
"""The same number on every architecture."""


class _Range(ctypes.Structure):
    _fields_ = (("offset", ctypes.c_uint64), ("size", ctypes.c_uint64))


class _Counts(ctypes.Structure):
    """In pages."""

    _fields_ = (
        ("cached", ctypes.c_uint64),
        ("dirty", ctypes.c_uint64),
        ("in_writeback", ctypes.c_uint64),
        ("evicted", ctypes.c_uint64),
        ("recently_evicted", ctypes.c_uint64),
    )


def residency_check() -> Callable[[int, int, int], bool]:
    """Return a function of descriptor, offset and size (not 0) that says whether all of these
    bytes are in the page cache now. They may leave it at any time. It costs some microseconds and
    never waits."""
    # Without giving the interpreter's lock up: that would cost more than the call.
    system_call = ctypes.PyDLL(None).syscall
    system_call.restype = ctypes.c_long
    page = mmap.PAGESIZE
    number, flags = ctypes.c_long(_CACHESTAT), ctypes.c_uint(0)

    def is_cached(fd: int, offset: int, size: int) -> bool:
        last = offset + size - 1
        first_page = offset // page
        pages = last // page - first_page + 1
        part, counts = _Range(first_page * page, pages * page), _Counts()
        if system_call(number, fd, ctypes.byref(part), ctypes.byref(counts), flags):
            return False
        if counts.cached < pages:
            return False
        # A page that is still being read counts too; reading ahead fills the last one last.
        try:
            return os.preadv(fd, [bytearray(1)], last, os.RWF_NOWAIT) == 1
        except OSError:
            return False

    return is_cached
