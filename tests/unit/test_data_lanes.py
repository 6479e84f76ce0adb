"""Where streams leave their bytes to be hashed together."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Sequence

import pytest
import trio
import trio.testing
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.data import md5
from engine.data.lanes import (
    CROWD,
    PATIENCE_S_MAX,
    PATIENCE_S_MIN,
    PIECE_SIZE_MAX,
    PIECES_MAX,
    Lanes,
    LaneStream,
)
from engine.data.md5 import BEST, PLAIN, Kind, Md5
from engine.node.contract import Buffer

pytestmark = pytest.mark.skipif(not md5.METHODS, reason="there is no C compiler")


def content(size: int, seed: int = 0) -> bytes:
    return hashlib.shake_128(seed.to_bytes(4, "big")).digest(size)


def expected(whole: bytes) -> bytes:
    return hashlib.md5(whole, usedforsecurity=False).digest()


def ignore() -> None:
    pass


class Watched:
    """The best kind, which notes how many streams each call hashes, and can be held up."""

    def __init__(self) -> None:
        self.widths: list[int] = []
        self.entered = threading.Event()
        self.go_on = threading.Event()
        self.go_on.set()
        self.kind = Kind(BEST.new, self._update_each, BEST.width)

    def _update_each(self, running: Sequence[Md5], data: Sequence[Buffer]) -> None:
        self.widths.append(len(running))
        self.entered.set()
        assert self.go_on.wait(30)
        BEST.update_each(running, data)


async def until(condition: Callable[[], bool]) -> None:
    with trio.fail_after(30):
        while not condition():  # noqa: ASYNC110  threads change it
            await trio.lowlevel.checkpoint()


@settings(deadline=None, max_examples=40)
@given(
    st.lists(st.lists(st.integers(1, 3 * 4096), max_size=5), min_size=1, max_size=20),
    st.sampled_from([BEST, PLAIN]),
)
def test_digests_are_those_of_the_bytes(sizes: list[list[int]], kind: Kind) -> None:
    async def feed(stream: LaneStream, pieces: list[bytes], results: dict[int, bytes]) -> None:
        called = []
        for number, piece in enumerate(pieces):
            half = len(piece) // 2
            views = [memoryview(piece)[:half], memoryview(piece + b"not to be hashed")[half:]]
            stream.add(views, len(piece), lambda number=number: called.append(number))
            await trio.lowlevel.checkpoint()
        results[id(pieces)] = await stream.digest()
        assert called == list(range(len(pieces)))
        await stream.aclose()

    async def main() -> None:
        lanes = Lanes(kind)
        contents = [[content(size, size) for size in stream] for stream in sizes]
        results: dict[int, bytes] = {}
        with trio.fail_after(60):
            async with trio.open_nursery() as nursery:
                for pieces in contents:
                    nursery.start_soon(feed, lanes.open(), pieces, results)
        for pieces in contents:
            assert results[id(pieces)] == expected(b"".join(pieces))

    trio.run(main)


async def test_a_large_view_is_hashed_in_pieces() -> None:
    watched = Watched()
    stream = Lanes(watched.kind).open()
    whole = content(PIECE_SIZE_MAX * 2 + 100)
    stream.add([memoryview(whole)], len(whole), ignore)
    assert await stream.digest() == expected(whole)
    assert watched.widths == [3]


async def test_hashing_begins_when_every_stream_has_left_some() -> None:
    watched = Watched()
    lanes = Lanes(watched.kind)
    streams = [lanes.open() for _ in range(6)]
    piece = content(4096)
    # None of them is lonely any more: from now on they wait for one another.
    watched.go_on.clear()
    for stream in streams:
        stream.add([memoryview(piece)], len(piece), ignore)
    await until(watched.entered.is_set)
    watched.go_on.set()
    await until(lambda: not any(stream.unsettled for stream in streams))
    watched.widths.clear()

    for stream in streams[:-1]:
        stream.add([memoryview(piece)], len(piece), ignore)
    await trio.testing.wait_all_tasks_blocked()
    assert watched.widths == []
    streams[-1].add([memoryview(piece)], len(piece), ignore)
    digests = [await stream.digest() for stream in streams]
    assert watched.widths == [6]
    assert set(digests) == {expected(2 * piece)}


async def begun(lanes: Lanes, count: int) -> list[LaneStream]:
    """Return streams of which something was hashed, and of which more may come."""
    streams = [lanes.open() for _ in range(count)]
    for stream in streams:
        stream.add([memoryview(b"begun")], 5, ignore)
        stream.urge()
    await until(lambda: not any(stream.unsettled for stream in streams))
    return streams


async def test_who_is_held_up_does_not_wait_for_all_and_takes_along_who_is_there() -> None:
    watched = Watched()
    streams = await begun(Lanes(watched.kind), CROWD + 1)
    watched.widths.clear()

    done = []
    for number, stream in enumerate(streams[:-1]):
        stream.add([memoryview(b"more")], 4, lambda number=number: done.append(number))
    streams[1].urge()
    await until(lambda: len(done) == CROWD)
    assert watched.widths == [CROWD]


async def test_what_piles_up_is_hashed_although_others_leave_nothing() -> None:
    streams = await begun(Lanes(), CROWD + 1)
    done = []
    for _ in range(2):
        streams[0].add([memoryview(b"more")], 4, lambda: done.append(True))
    await until(lambda: len(done) == 2)


async def test_waiting_in_vain_is_waiting_less() -> None:
    lanes = Lanes()
    quick, *slow = await begun(lanes, CROWD)
    lanes.patience_s = PATIENCE_S_MAX
    for _ in range(10):
        done = trio.Event()
        quick.add([memoryview(b"more")], 4, done.set)
        quick.urge()
        await done.wait()
    assert lanes.patience_s == PATIENCE_S_MIN
    for _ in range(10):
        for stream in slow:
            stream.add([memoryview(b"more")], 4, ignore)
        done = trio.Event()
        quick.add([memoryview(b"more")], 4, done.set)
        await done.wait()
    assert lanes.patience_s == PATIENCE_S_MAX


async def test_who_has_its_digest_is_not_waited_for() -> None:
    watched = Watched()
    lanes = Lanes(watched.kind)
    streams = [lanes.open() for _ in range(CROWD + 1)]
    piece = content(4096)
    for stream in streams:
        stream.add([memoryview(piece)], len(piece), ignore)
    for stream in streams[CROWD - 1 :]:
        await stream.digest()
    done = []
    for stream in streams[: CROWD - 1]:
        stream.add([memoryview(piece)], len(piece), lambda: done.append(True))
    await until(lambda: len(done) == CROWD - 1)


async def test_closing_waits_for_what_is_being_hashed_and_drops_the_rest() -> None:
    watched = Watched()
    watched.go_on.clear()
    stream = Lanes(watched.kind).open()
    memory = bytearray((PIECES_MAX + 1) * PIECE_SIZE_MAX)
    done = []
    stream.add([memoryview(memory)], len(memory), lambda: done.append("first"))
    stream.add([memoryview(memory)], len(memory), lambda: done.append("second"))
    await until(watched.entered.is_set)
    closed = trio.Event()

    async def close() -> None:
        with trio.CancelScope() as scope:
            scope.cancel()  # as when the request is given up
            await stream.aclose()
        closed.set()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(close)
        await trio.testing.wait_all_tasks_blocked()
        assert not closed.is_set()
        watched.go_on.set()
    assert closed.is_set()
    assert watched.widths == [PIECES_MAX]
    assert done == []


async def test_one_that_is_closed_holds_up_nobody() -> None:
    lanes = Lanes()
    streams = [lanes.open() for _ in range(20)]
    piece = content(4096)
    for stream in streams:
        stream.add([memoryview(piece)], len(piece), ignore)
    for stream in streams[::2]:
        await stream.aclose()
    with trio.fail_after(30):
        for stream in streams[1::2]:
            assert await stream.digest() == expected(piece)


async def test_two_lonely_streams_have_a_thread_each() -> None:
    watched = Watched()
    lanes = Lanes(watched.kind)
    watched.go_on.clear()
    streams = [lanes.open() for _ in range(2)]
    piece = content(4096)
    for stream in streams:
        stream.add([memoryview(piece)], len(piece), ignore)
    await until(lambda: watched.widths == [1, 1])
    watched.go_on.set()
    for stream in streams:
        assert await stream.digest() == expected(piece)
