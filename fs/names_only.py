"""Directory entries that the kernel shows and does not remember.

In an answer to READDIRPLUS an entry whose node id is 0 has a name, a type and a number, and
nothing to remember (Linux, ``fs/fuse/readdir.c``, ``fuse_direntplus_link``). pyfuse3 writes
``st_ino`` to both the node id and the number, so the node id has to be cleared behind its back.
"""

from __future__ import annotations

import ctypes

import pyfuse3

_PROBE = 0x5A3C_0F69_1E2D_4B78
_HEAD_SIZE = 2 * ctypes.sizeof(ctypes.c_void_p)
"""Of a Python object without a table of methods: reference count and type. Then comes pyfuse3's
``fuse_entry_param``, which begins with the node id."""


def can_clear() -> bool:
    """Say whether the node id is where this module believes it to be."""
    entry = pyfuse3.EntryAttributes()
    entry.st_ino = _PROBE
    entry.generation = 1
    first, second = _words(entry)
    return first.value == _PROBE and second.value == 1


def _words(entry: pyfuse3.EntryAttributes) -> tuple[ctypes.c_uint64, ctypes.c_uint64]:
    begin = id(entry) + _HEAD_SIZE
    return ctypes.c_uint64.from_address(begin), ctypes.c_uint64.from_address(begin + 8)


def clear(entry: pyfuse3.EntryAttributes) -> None:
    """Make ``entry`` one that the kernel does not remember; only where ``can_clear``."""
    ctypes.c_uint64.from_address(id(entry) + _HEAD_SIZE).value = 0
