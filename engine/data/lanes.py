"""``Lanes``: where the MD5s of all objects that stream through one process are computed.

One MD5 cannot be split, but many can be computed side by side for the price of one (``md5.py``). So
streams do not hash their own bytes: they leave them here, and a thread takes from all of them at
once. It pays to let some gather first: hashing begins when every open stream has left bytes, or
when one of them has been held up by it for a while. What waits is bounded, as a stream holds no
more than its few batches.

Concurrency: everything but ``_hash`` is used on the trio thread only; the lock guards what both
sides touch.
"""

from __future__ import annotations

import math
import threading
from collections import deque
from collections.abc import Callable, Sequence
from typing import Final, TypeAlias

import trio

from engine.data.md5 import BEST, Kind

PIECE_SIZE_MAX: Final = 1 << 20
"""Bytes of each stream that are hashed in one go: 3 ms, for which newcomers wait."""
PIECES_MAX: Final = 4
"""Pieces of a stream that is hashed alone: it waits for the GIL after each call."""
CROWD: Final = 3
"""From so many streams on one thread for all of them is quicker than one for each."""
THREADS_MAX: Final = 2
PATIENCE_S_MAX: Final = 0.04
PATIENCE_S_MIN: Final = 0.001
"""How long one that is held up waits for others to come along; shorter after that was in vain, as
it is when the others' clients are slow. With 64 clients of one kind, 10 ms fill 7 lanes, 40 ms 14
(measured)."""

_Piece: TypeAlias = tuple[memoryview, Callable[[], None] | None]
"""Bytes to hash; to be called afterwards on the trio thread."""


class LaneStream:
    """The MD5 of one object. From ``Lanes.open``; to be closed in any case."""

    __slots__ = ("_lanes", "deadline", "hashed", "md5", "overdue", "pieces", "unsettled")

    def __init__(self, lanes: Lanes, kind: Kind) -> None:
        self._lanes = lanes
        self.md5 = kind.new()
        self.pieces: deque[_Piece] = deque()
        """Not begun. Guarded by the lock."""
        self.deadline = math.inf
        """When to wait no more for others; not before ``urge``."""
        self.overdue = False
        """That time has come: hash what is there. Guarded by the lock."""
        self.unsettled = 0
        """Pieces of which the trio thread does not know yet that they were hashed."""
        self.hashed = trio.lowlevel.ParkingLot()
        """Where to wait until ``unsettled`` falls."""

    def add(self, views: Sequence[memoryview], size: int, done: Callable[[], None]) -> None:
        """Hash the first ``size`` bytes of the views, one after another.

        Args:
            views: not to be changed until ``done`` is called or ``aclose`` returns.
            size: at least 1.
            done: called once, on the trio thread; never after ``aclose``.
        """
        pieces: list[_Piece] = []
        for view in views:
            view = view[:size]
            size -= len(view)
            for begin in range(0, len(view), PIECE_SIZE_MAX):
                pieces.append((view[begin : begin + PIECE_SIZE_MAX], None))
        pieces[-1] = (pieces[-1][0], done)
        self.unsettled += len(pieces)
        self._lanes.take_in(self, pieces)

    def urge(self) -> None:
        """Say that nothing more comes before some was hashed."""
        if self.deadline == math.inf and self.unsettled:
            self.deadline = trio.current_time() + self._lanes.patience_s
            self._lanes.begin()

    async def digest(self) -> bytes:
        """Return the MD5 of all that was added. Nothing is added afterwards."""
        self.urge()
        await self._settled()
        self._lanes.drop(self)  # others need not wait for it any more
        return self.md5.digest()

    async def aclose(self) -> None:
        """Hash no more. Shielded: memory that is just being hashed stays in use for some ms."""
        self.unsettled -= self._lanes.drop(self)
        with trio.CancelScope(shield=True):
            await self._settled()

    async def _settled(self) -> None:
        while self.unsettled:
            await self.hashed.park()


class Lanes:
    def __init__(self, kind: Kind = BEST) -> None:
        self._kind = kind
        self._limiter = trio.CapacityLimiter(THREADS_MAX)
        self.patience_s = PATIENCE_S_MAX
        self._runners = 0
        self._change = trio.lowlevel.ParkingLot()
        self._open: set[LaneStream] = set()
        """Streams of which something came, and more may come."""
        self._lock = threading.Lock()
        self._ready: deque[LaneStream] = deque()
        """Streams with pieces, none of which is in a thread's hands. Guarded by the lock."""
        self._taken: set[LaneStream] = set()
        """Streams one piece of which is in a thread's hands. Guarded by the lock."""

    def open(self) -> LaneStream:
        return LaneStream(self, self._kind)

    def take_in(self, stream: LaneStream, pieces: Sequence[_Piece]) -> None:
        self._open.add(stream)
        with self._lock:
            if not stream.pieces and stream not in self._taken:
                self._ready.append(stream)
            behind = bool(stream.pieces)
            stream.pieces.extend(pieces)
        if behind:
            stream.urge()  # soon it will be held up
        self.begin()

    def drop(self, stream: LaneStream) -> int:
        """Close the stream; return how many pieces are left out."""
        self._open.discard(stream)
        with self._lock:
            if stream.pieces and stream not in self._taken:
                self._ready.remove(stream)
            left_out = len(stream.pieces)
            stream.pieces.clear()
        return left_out

    def begin(self) -> None:
        """Let a thread hash if it is time to."""
        self._change.unpark_all()
        if self._ready and self._runners < (1 if self._crowded else THREADS_MAX):
            self._runners += 1
            # No task of a stream's own: one that is cancelled would go on hashing for the others.
            trio.lowlevel.spawn_system_task(self._run)

    async def _run(self) -> None:
        token = trio.lowlevel.current_trio_token()
        try:
            while self._ready:
                deadline = self._next_deadline()
                if self._due():
                    await trio.to_thread.run_sync(self._hash, token, limiter=self._limiter)
                else:
                    with trio.move_on_at(deadline):
                        await self._change.park()
        finally:
            self._runners -= 1

    def _next_deadline(self) -> float:
        """Mark those whose time has come, and return when that of the next comes."""
        now, first = trio.current_time(), math.inf
        with self._lock:
            for stream in self._ready:
                if stream.deadline <= now:
                    stream.overdue = True
                else:
                    first = min(first, stream.deadline)
        return first

    @property
    def _crowded(self) -> bool:
        return self._kind.width > 1 and len(self._open) >= CROWD

    def _due(self) -> bool:
        """Return whether it is time to hash. In either thread."""
        with self._lock:
            if not self._ready or not self._crowded:
                return bool(self._ready)
            if len(self._ready) >= min(self._kind.width, len(self._open)):
                return True
            return any(stream.overdue for stream in self._ready)

    def _hash(self, token: trio.lowlevel.TrioToken) -> None:
        """In a worker thread, while there is reason to."""
        while self._due():
            with self._lock:
                crowded = self._crowded
                count = min(self._kind.width if crowded else 1, len(self._ready))
                taken = [self._ready.popleft() for _ in range(count)]
                self._taken.update(taken)
                streams, pieces = _next_pieces(taken, 1 if crowded else PIECES_MAX)
            if count >= CROWD:
                self.patience_s = min(self.patience_s * 2, PATIENCE_S_MAX)
            elif crowded:
                self.patience_s = max(self.patience_s / 2, PATIENCE_S_MIN)
            self._kind.update_each([stream.md5 for stream in streams], [view for view, _ in pieces])
            # Before another thread can take the next pieces: each stream's are settled in order.
            token.run_sync_soon(_settle, streams, pieces)
            with self._lock:
                self._taken.difference_update(taken)
                for stream in taken:
                    if stream.pieces:
                        self._ready.append(stream)
                    else:
                        stream.overdue = False


def _next_pieces(
    taken: Sequence[LaneStream], pieces_max: int
) -> tuple[list[LaneStream], list[_Piece]]:
    """Take up to so many pieces from each stream; return pairs of a stream and a piece."""
    streams: list[LaneStream] = []
    pieces: list[_Piece] = []
    for stream in taken:
        for _ in range(min(pieces_max, len(stream.pieces))):
            streams.append(stream)
            pieces.append(stream.pieces.popleft())
    return streams, pieces


def _settle(streams: Sequence[LaneStream], pieces: Sequence[_Piece]) -> None:
    for stream, (_, done) in zip(streams, pieces, strict=True):
        stream.unsettled -= 1
        if stream.unsettled == 0:
            stream.deadline = math.inf
        if done is not None:
            done()
        stream.hashed.unpark_all()
