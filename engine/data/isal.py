"""Intel's ISA-L, called directly: parity computed from where the data lies to where it is wanted.

pyeclib does the same arithmetic behind two copies of the stripe, which cost more than the coding
itself (10 ms per 64 MiB). Its wheel brings the library along; Debian has it as ``libisal2``.

The matrix is the one of liberasurecode's ``isa_l_rs_cauchy``: the parity is the same, byte by byte
(tests/unit/test_data_coding.py). Source: isa-l, include/erasure_code.h.

Thread-safe: nothing changes after construction, and calls release the GIL.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from pathlib import Path

import pyeclib

_TABLE_SIZE = 32
"""Bytes that ISA-L expands one coefficient to."""


def _load() -> ctypes.CDLL | None:
    bundled = Path(pyeclib.__file__).resolve().parent.with_name("pyeclib.libs")
    for name in [*map(str, sorted(bundled.glob("libisal*.so*"))), "libisal.so.2"]:
        try:
            library = ctypes.CDLL(name)
            library.gf_gen_cauchy1_matrix.restype = None
            library.ec_init_tables.restype = None
            library.ec_encode_data.restype = None
        except (OSError, AttributeError):
            continue
        return library
    return None


def address_of(view: memoryview) -> int:
    """Return where a writable, contiguous view begins in memory; valid as long as the view is."""
    return ctypes.addressof(ctypes.c_char.from_buffer(view))


class Encoder:
    """One geometry. Made by ``encoder_for``."""

    __slots__ = ("_encode", "_k", "_m", "_pointers_in", "_pointers_out", "_tables")

    def __init__(self, library: ctypes.CDLL, data_blocks: int, parity_blocks: int) -> None:
        width = data_blocks + parity_blocks
        matrix = ctypes.create_string_buffer(width * data_blocks)
        library.gf_gen_cauchy1_matrix(matrix, width, data_blocks)
        # The upper part is the identity: data blocks are what they are.
        parity = ctypes.create_string_buffer(matrix.raw[data_blocks * data_blocks :])
        self._tables = ctypes.create_string_buffer(_TABLE_SIZE * data_blocks * parity_blocks)
        library.ec_init_tables(data_blocks, parity_blocks, parity, self._tables)
        self._encode = library.ec_encode_data
        self._k = data_blocks
        self._m = parity_blocks
        self._pointers_in = ctypes.c_void_p * data_blocks
        self._pointers_out = ctypes.c_void_p * parity_blocks

    def encode(self, data: Sequence[int], parity: Sequence[int], block_size: int) -> None:
        """Compute parity blocks.

        Args:
            data, parity: addresses of blocks of ``block_size`` bytes, which the caller keeps.
        """
        self._encode(
            block_size,
            self._k,
            self._m,
            self._tables,
            self._pointers_in(*data),
            self._pointers_out(*parity),
        )


def encoder_for(data_blocks: int, parity_blocks: int) -> Encoder | None:
    """Return an encoder; None: there is no library on this machine, use pyeclib."""
    library = _load()
    return None if library is None else Encoder(library, data_blocks, parity_blocks)
