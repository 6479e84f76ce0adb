"""Intel's ISA-L, called directly: blocks computed from where others lie to where they are wanted.

pyeclib does the same arithmetic behind copies of the stripe, which cost more than the coding
itself: two to encode, 10 ms per 64 MiB; more to decode, which also makes blocks that nobody wants.
Its wheel brings the library along; Debian has it as ``libisal2``.

The matrix is the one of liberasurecode's ``isa_l_rs_cauchy``: the parity is the same, byte by byte
(tests/unit/test_data_coding.py). Source: isa-l, include/erasure_code.h.

Thread-safe: nothing changes after construction, and calls release the GIL.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypeAlias

import pyeclib

_TABLE_SIZE = 32
"""Bytes that ISA-L expands one coefficient to."""
_RECOVERIES_MAX = 256
"""Tables that are kept; a chunk that is read with losses needs the same ones for each stripe."""

_Bytes: TypeAlias = "ctypes.Array[ctypes.c_char]"


def _load() -> ctypes.CDLL | None:
    bundled = Path(pyeclib.__file__).resolve().parent.with_name("pyeclib.libs")
    for name in [*map(str, sorted(bundled.glob("libisal*.so*"))), "libisal.so.2"]:
        try:
            library = ctypes.CDLL(name)
            library.gf_gen_cauchy1_matrix.restype = None
            library.ec_init_tables.restype = None
            library.ec_encode_data.restype = None
            library.gf_invert_matrix.restype = ctypes.c_int
            library.gf_mul.argtypes = (ctypes.c_ubyte, ctypes.c_ubyte)
            library.gf_mul.restype = ctypes.c_ubyte
        except (OSError, AttributeError):
            continue
        return library
    return None


def address_of(view: memoryview) -> int:
    """Return where a writable, contiguous view begins in memory; valid as long as the view is."""
    return ctypes.addressof(ctypes.c_char.from_buffer(view))


class Encoder:
    """One geometry. Made by ``encoder_for``."""

    __slots__ = ("_k", "_library", "_pointers_in", "_recovery", "_rows", "_tables")

    def __init__(self, library: ctypes.CDLL, data_blocks: int, parity_blocks: int) -> None:
        width = data_blocks + parity_blocks
        matrix = ctypes.create_string_buffer(width * data_blocks)
        library.gf_gen_cauchy1_matrix(matrix, width, data_blocks)
        self._library = library
        self._k = data_blocks
        self._rows = [
            matrix.raw[at : at + data_blocks] for at in range(0, len(matrix), data_blocks)
        ]
        """What each block is of the data blocks; the upper part is the identity."""
        self._tables = self._expand(self._rows[data_blocks:])
        self._pointers_in = ctypes.c_void_p * data_blocks
        self._recovery = functools.lru_cache(maxsize=_RECOVERIES_MAX)(self._prepare)

    def encode(self, data: Sequence[int], parity: Sequence[int], block_size: int) -> None:
        """Compute parity blocks.

        Args:
            data, parity: addresses of blocks of ``block_size`` bytes, which the caller keeps.
        """
        self._compute(self._tables, data, parity, block_size)

    def recover(
        self, present: Mapping[int, int], wanted: Mapping[int, int], block_size: int
    ) -> None:
        """Compute blocks, data or parity, from others.

        Args:
            present, wanted: addresses of blocks by index, as for ``encode``; as many are present
                as there are data blocks.
        """
        tables = self._recovery(tuple(present), tuple(wanted))
        self._compute(tables, list(present.values()), list(wanted.values()), block_size)

    def _compute(
        self, tables: _Bytes, blocks: Sequence[int], made: Sequence[int], block_size: int
    ) -> None:
        pointers_out = ctypes.c_void_p * len(made)
        self._library.ec_encode_data(
            block_size,
            self._k,
            len(made),
            tables,
            self._pointers_in(*blocks),
            pointers_out(*made),
        )

    def _prepare(self, present: tuple[int, ...], wanted: tuple[int, ...]) -> _Bytes:
        """Return the tables that make the wanted blocks from those that are present."""
        k, multiply = self._k, self._library.gf_mul
        inverse = ctypes.create_string_buffer(k * k)
        chosen = ctypes.create_string_buffer(b"".join(self._rows[index] for index in present))
        if self._library.gf_invert_matrix(chosen, inverse, k):
            raise AssertionError("any k rows of a Cauchy matrix can be inverted")
        rows = []
        for index in wanted:
            row = bytearray(k)
            for position, factor in enumerate(self._rows[index]):
                for column in range(k):
                    row[column] ^= multiply(factor, inverse.raw[position * k + column])
            rows.append(bytes(row))
        return self._expand(rows)

    def _expand(self, rows: Sequence[bytes]) -> _Bytes:
        tables = ctypes.create_string_buffer(_TABLE_SIZE * self._k * len(rows))
        matrix = ctypes.create_string_buffer(b"".join(rows))
        self._library.ec_init_tables(self._k, len(rows), matrix, tables)
        return tables


def encoder_for(data_blocks: int, parity_blocks: int) -> Encoder | None:
    """Return an encoder; None: there is no library on this machine, use pyeclib."""
    library = _load()
    return None if library is None else Encoder(library, data_blocks, parity_blocks)
