"""Buffers between socket and disk: page-aligned, reused, and bounded together.

Fresh memory costs about 1 ms per MiB in page faults on a virtual machine, several times what
copying costs, so buffers are kept. Not thread-safe: taken and released on the trio thread.
"""

from __future__ import annotations

import mmap
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Final

from engine.http.message import FileSpan
from engine.http.transport import FileBroken
from engine.node.contract import NodeBusy, NodeError
from engine.node.files import OpenFile

PIECE_SIZE: Final = (2 << 20) + (64 << 10)
"""Bytes that one thread hop writes: two batches' share of a fragment, with block hashes. Whole
pages, so that each piece can be written past the page cache."""
SMALL_SIZE: Final = 128 << 10


class Piece:
    """``view`` is valid until ``release``, which may be called more than once."""

    __slots__ = ("_pieces", "view")

    def __init__(self, pieces: Pieces, view: memoryview) -> None:
        self._pieces: Pieces | None = pieces
        self.view = view

    def release(self) -> None:
        pieces, self._pieces = self._pieces, None
        if pieces is not None:
            pieces._take_back(self.view)


class Pieces:
    """Hands pieces out, while no more than ``size_max`` bytes of whole ones are out."""

    __slots__ = ("_idle", "_out", "_out_max", "_small")

    def __init__(self, size_max: int) -> None:
        self._idle: list[memoryview] = []
        self._small: list[memoryview] = []
        self._out = 0
        self._out_max = max(1, size_max // PIECE_SIZE)

    def take(self, size: int) -> Piece:
        """Return a piece of at least ``size`` bytes, which may not be more than ``PIECE_SIZE``.

        Raises: NodeBusy: all are out.
        """
        if size <= SMALL_SIZE:
            return self._take_small()
        if self._out >= self._out_max:
            raise NodeBusy("all buffers are in use")
        return self._take_whole()

    def take_or_small(self) -> Piece:
        """Return a whole piece, or a small one when all are out."""
        return self._take_small() if self._out >= self._out_max else self._take_whole()

    def _take_whole(self) -> Piece:
        self._out += 1
        view = self._idle.pop() if self._idle else memoryview(mmap.mmap(-1, PIECE_SIZE))
        return Piece(self, view)

    def _take_small(self) -> Piece:
        view = self._small.pop() if self._small else memoryview(bytearray(SMALL_SIZE))
        return Piece(self, view)

    def _take_back(self, view: memoryview) -> None:
        if len(view) == PIECE_SIZE:
            self._out -= 1
            self._idle.append(view)
        elif len(self._small) < self._out_max:
            self._small.append(view)


class SpanStream:
    """A response's body that goes from the page cache to the socket without being copied here."""

    __slots__ = ("_ended", "_file", "_given", "_span", "whole")

    def __init__(self, file: OpenFile, span: FileSpan, ended: Callable[[bool], None]) -> None:
        """``ended``: called once; told whether everything was sent."""
        self._file = file  # the descriptor lives as long as this does
        self._span = span
        self._ended = ended
        self._given = False
        self.whole = False

    def __aiter__(self) -> AsyncIterator[FileSpan]:
        return self

    async def __anext__(self) -> FileSpan:
        if self._given:
            self.whole = True
            raise StopAsyncIteration
        self._given = True
        return self._span

    async def aclose(self) -> None:
        self._ended(self.whole)


class PieceStream:
    """A response's body in pieces, the first of which is there already.

    A read that fails ends the connection in the middle of the answer; the client then asks again
    from there on, and is told why.
    """

    __slots__ = ("_done", "_ended", "_piece", "_read", "_size")

    def __init__(
        self,
        piece: Piece,
        size: int,
        read: Callable[[int, memoryview], Awaitable[None]],
        ended: Callable[[], None],
    ) -> None:
        """
        Args:
            size: of the whole body.
            read: fills a view with the body's bytes from an offset on.
            ended: called once, when nothing is read any more.
        """
        self._piece = piece
        self._size = size
        self._read = read
        self._ended = ended
        self._done = 0

    def __aiter__(self) -> AsyncIterator[memoryview]:
        return self

    async def __anext__(self) -> memoryview:
        done = self._done
        view = self._piece.view[: min(len(self._piece.view), self._size - done)]
        if not len(view):
            raise StopAsyncIteration
        if done:
            try:
                await self._read(done, view)
            except NodeError as error:
                raise FileBroken(str(error)) from error
        self._done = done + len(view)
        return view

    async def aclose(self) -> None:
        self._piece.release()
        self._ended()
