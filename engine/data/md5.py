"""MD5 of one stream, and of many side by side.

``LaneMd5`` has hashlib's shape, and a state that can be moved on together with those of others: our
own C code does that (``md5lanes.c``, docs/decisions/0013). Where it was not built, hashlib hashes
one stream after another.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable, Sequence
from typing import Final, NamedTuple, Protocol, cast

from engine.node.contract import Buffer

try:
    from engine.data import _md5lanes

    METHODS: dict[str, int] = _md5lanes.METHODS
except ImportError:  # installed without a C compiler
    METHODS = {}

_BLOCK = 64
_INITIAL: Final = struct.pack("<4I", 0x67452301, 0xEFCDAB89, 0x98BADCFE, 0x10325476)


class Md5(Protocol):
    def update(self, data: Buffer, /) -> None: ...
    def digest(self) -> bytes: ...


class LaneMd5:
    """MD5 by our own C code."""

    __slots__ = ("_rest", "_size", "_state")

    def __init__(self) -> None:
        self._state = bytearray(_INITIAL)
        self._size = 0
        self._rest = b""
        """Less than a block, at the end of what came."""

    def update(self, data: Buffer, /) -> None:
        self.update_each([self], [data])

    @staticmethod
    def update_each(
        running: Sequence[LaneMd5], data: Sequence[Buffer], method: str | None = None
    ) -> None:
        """Update each with the data at the same place, all at once.

        Args:
            running: up to 32; one that is there more than once gets its data in their order.
            method: one of ``METHODS``; None: the quickest.
        """
        states: list[bytearray] = []
        blocks: list[Buffer] = []
        for md5, piece in zip(running, data, strict=True):
            for whole in md5._take(memoryview(piece)):
                states.append(md5._state)
                blocks.append(whole)
        _md5lanes.update(states, blocks, method)

    def _take(self, data: memoryview) -> list[Buffer]:
        """Return the blocks that are complete with ``data``, in one or two pieces."""
        self._size += len(data)
        complete: list[Buffer] = []
        if self._rest:
            lacking = _BLOCK - len(self._rest)
            self._rest += data[:lacking]
            data = data[lacking:]
            if len(self._rest) < _BLOCK:
                return complete
            complete.append(self._rest)
        whole = len(data) // _BLOCK * _BLOCK
        complete.append(data[:whole])
        self._rest = bytes(data[whole:])
        return complete

    def digest(self) -> bytes:
        state = bytearray(self._state)
        zeros = bytes((55 - self._size) % _BLOCK)
        bits = struct.pack("<Q", self._size * 8 % 2**64)
        _md5lanes.update([state], [self._rest + b"\x80" + zeros + bits])
        return bytes(state)


class Kind(NamedTuple):
    """One way to hash many streams."""

    new: Callable[[], Md5]
    update_each: Callable[[Sequence[Md5], Sequence[Buffer]], None]
    """Update each with the data at the same place; all are of this kind."""
    width: int
    """How many are hashed at once."""


def _plain() -> Md5:
    return hashlib.md5(usedforsecurity=False)


def _one_after_another(running: Sequence[Md5], data: Sequence[Buffer]) -> None:
    for md5, piece in zip(running, data, strict=True):
        md5.update(piece)


def _side_by_side(running: Sequence[Md5], data: Sequence[Buffer]) -> None:
    LaneMd5.update_each(cast("Sequence[LaneMd5]", running), data)


PLAIN: Final = Kind(_plain, _one_after_another, 1)
BEST: Final = Kind(LaneMd5, _side_by_side, next(iter(METHODS.values()))) if METHODS else PLAIN
"""What this installation and this processor have."""
