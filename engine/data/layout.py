"""Where each byte of a chunk lies: pure arithmetic, no I/O.

A chunk of ``size`` bytes is cut into stripes of ``k * block_size`` bytes, a stripe into k data
blocks, to which m parity blocks are added. Only the last stripe may be shorter: its blocks have
``ceil(rest / k)`` bytes rounded up to 64, filled up with zeros.

A fragment is all blocks of one index, each followed by its hash. The hash of a block that is a
whole number of pages has a page of its own, so that all blocks of a fragment begin at pages and
can be written past the page cache (``h`` is 4096 then, else 32):

=========================================== ================ ==================================
offset in the fragment                      bytes            content
=========================================== ================ ==================================
``s * (block_size + h)``                    ``block_size``   block of stripe s
``s * (block_size + h) + block_size``       ``h``            its keyed BLAKE3, then zeros
...
``(n - 1) * (block_size + h)``              ``last``         block of the last stripe (n - 1)
``(n - 1) * (block_size + h) + last``       32 or 4096       its keyed BLAKE3, by ``last``'s size
=========================================== ================ ==================================

The key of a block's hash is its place, so that a block in a wrong place never verifies:

====== ===== ====================
offset bytes content
====== ===== ====================
0      16    chunk id
16     1     fragment index
17     4     stripe, big-endian
21     11    zeros
====== ===== ====================

Source: docs/decisions/0005-stripes-and-blocks.md, 0008-writing-past-the-page-cache.md.
"""

from __future__ import annotations

import struct

from blake3 import blake3

from engine.ids import ChunkId
from engine.meta.records import ChunkRecord
from engine.node.contract import Buffer

HASH_SIZE = 32
ALIGNMENT = 64
"""Block sizes are multiples of it: what SIMD coders like, and a cache line."""

PAGE = 4096

_pack_key = struct.Struct(">16sBI11x").pack


def block_hash(block: Buffer, chunk_id: ChunkId, index: int, stripe: int) -> bytes:
    """Return the 32 bytes that follow the block in its fragment."""
    return blake3(block, key=_pack_key(chunk_id, index, stripe)).digest()


def hash_space(block_size: int) -> int:
    """Return the bytes that the hash of a block of this size takes in the fragment."""
    return HASH_SIZE if block_size % PAGE else PAGE


def round_up(size: int) -> int:
    """Return the least multiple of ``ALIGNMENT`` that is not below ``size``."""
    return -(-size // ALIGNMENT) * ALIGNMENT


class Layout:
    """The arithmetic of one chunk."""

    __slots__ = (
        "block_size",
        "data_blocks",
        "fragment_size",
        "last_block_size",
        "parity_blocks",
        "size",
        "stride",
        "stripe_count",
        "stripe_size",
        "width",
    )

    def __init__(self, size: int, data_blocks: int, parity_blocks: int, block_size: int) -> None:
        """
        Raises:
            ValueError: no such chunk can be; on a decoded record that means damaged metadata.
        """
        if size < 1 or data_blocks < 1 or parity_blocks < 0 or block_size < ALIGNMENT:
            raise ValueError(f"no layout for {size} bytes in blocks of {block_size}")
        if block_size % ALIGNMENT:
            raise ValueError(f"block size {block_size} is no multiple of {ALIGNMENT}")
        self.size = size
        self.data_blocks = data_blocks
        self.parity_blocks = parity_blocks
        self.width = data_blocks + parity_blocks
        self.block_size = block_size
        self.stripe_size = stripe_size = data_blocks * block_size
        """Bytes of user data in every stripe but the last."""
        self.stripe_count = count = -(-size // stripe_size)
        rest = size - (count - 1) * stripe_size
        self.last_block_size = last = round_up(-(-rest // data_blocks))
        self.stride = stride = block_size + hash_space(block_size)
        """Bytes from one block to the next in a fragment."""
        self.fragment_size = (count - 1) * stride + last + hash_space(last)

    @classmethod
    def of(cls, record: ChunkRecord) -> Layout:
        return cls(record.size, record.data_blocks, record.parity_blocks, record.block_size)

    def block_size_of(self, stripe: int) -> int:
        """Return the bytes of each block of the stripe, without the hash."""
        return self.block_size if stripe < self.stripe_count - 1 else self.last_block_size

    def offset_of(self, stripe: int) -> int:
        """Return where the stripe's block begins in each fragment."""
        return stripe * self.stride

    def end_of(self, stripe: int) -> int:
        """Return where the space of the hash of the stripe's block ends in each fragment."""
        size = self.block_size_of(stripe)
        return stripe * self.stride + size + hash_space(size)

    def stripes(self, start: int, end: int) -> range:
        """Return the stripes that hold bytes ``start`` to ``end`` (exclusive) of the chunk."""
        return range(start // self.stripe_size, -(-end // self.stripe_size))

    def blocks(self, stripe: int, start: int, end: int) -> range:
        """Return the data blocks of the stripe that hold bytes of ``start``..``end`` (exclusive).

        Positions are those of the chunk; at least one of the bytes lies in the stripe.
        """
        base = stripe * self.stripe_size
        size = self.block_size_of(stripe)
        first = max(start - base, 0) // size
        last = -(-(min(end, self.size) - base) // size)
        return range(first, min(last, self.data_blocks))
