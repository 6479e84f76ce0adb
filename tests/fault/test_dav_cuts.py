"""Connections that are cut anywhere: what was announced and did not come is not there."""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

from engine.engine import Engine
from engine.errors import NoSuchKey
from tests.support.dav import WAIT_S, Door, dav_door, in_thread, with_login
from tests.support.engine import (
    KIB,
    count_fragments,
    data_rows,
    engine_in,
    pattern,
    put,
    read,
)

OLD = b"the old bytes"
RESET = struct.pack("ii", 1, 0)
"""SO_LINGER that makes a close a reset."""


def requests(size: int) -> Iterator[bytes]:
    """Yield a PUT by length, one by chunks, and one as Finder sends it."""
    data = pattern(size)
    yield with_login(b"PUT /bucket/x HTTP/1.1\r\nContent-Length: %d\r\n\r\n" % size) + data
    half = size // 2
    chunks = b"".join(
        b"%x\r\n%s\r\n" % (len(piece), piece) for piece in (data[:half], data[half:]) if piece
    )
    chunked = b"PUT /bucket/x HTTP/1.1\r\nTransfer-Encoding: chunked\r\n"
    yield with_login(chunked + b"\r\n") + chunks + b"0\r\n\r\n"
    expected = b"X-Expected-Entity-Length: %d\r\n\r\n" % size
    yield with_login(chunked + expected) + chunks + b"0\r\n\r\n"


def cuts(request: bytes) -> list[int]:
    """Return where to cut: at and around every border of the head and of the framing."""
    body = request.index(b"\r\n\r\n") + 4
    borders = {1, body // 2, body - 2, body, body + 1, (body + len(request)) // 2}
    borders |= {len(request) - step for step in (1, 2, 3, 4, 5, 6, 7)}
    return sorted(cut for cut in borders if 0 < cut < len(request))


def send_part(door: Door, part: bytes, *, reset: bool) -> None:
    with socket.create_connection(("127.0.0.1", door.port), timeout=WAIT_S) as opened:
        opened.sendall(part)
        if reset:
            opened.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
            return
        opened.shutdown(socket.SHUT_WR)
        # The server has decided once it closes.
        while opened.recv(65536):
            pass


async def current(engine: Engine) -> bytes | None:
    try:
        return await read(engine, "bucket", "x")
    except NoSuchKey:
        return None


@pytest.mark.parametrize("replacing", [False, True])
@pytest.mark.parametrize("size", [200, 2 * KIB, 200 * KIB])
async def test_a_cut_upload_leaves_the_old_or_nothing(
    tmp_path: Path, size: int, replacing: bool
) -> None:
    async with engine_in(tmp_path) as engine:
        await engine.create_bucket("bucket", owner="x")
        if replacing:
            await put(engine, "bucket", "x", OLD)
        expected = OLD if replacing else None
        fragments = await count_fragments(engine)
        async with dav_door(engine) as door:
            for request in requests(size):
                for cut in cuts(request):
                    await in_thread(lambda part=request[:cut]: send_part(door, part, reset=False))
                    assert await current(engine) == expected, cut
                for cut in cuts(request)[::3]:
                    await in_thread(lambda part=request[:cut]: send_part(door, part, reset=True))
        # The server has stopped: nothing of a request that was reset is still under way.
        assert await current(engine) == expected
        assert await count_fragments(engine) == fragments
        await engine.delete("bucket", "x")
        await engine.delete_bucket("bucket")
        await engine.collect_garbage(grace_s=0)
        assert await data_rows(engine) == {}


async def test_a_cut_download_frees_what_it_holds(tmp_path: Path) -> None:
    data = pattern(4 << 20)
    async with engine_in(tmp_path) as engine:
        await engine.create_bucket("bucket", owner="x")
        await put(engine, "bucket", "x", data)

        def take(door: Door, size: int) -> None:
            with socket.create_connection(("127.0.0.1", door.port), timeout=WAIT_S) as opened:
                opened.sendall(with_login(b"GET /bucket/x HTTP/1.1\r\n\r\n"))
                left = size
                while left > 0:
                    left -= len(opened.recv(min(left, 65536)))
                opened.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)

        async with dav_door(engine) as door:
            for size in (1, 200, 5000, 1 << 20, 3 << 20):
                await in_thread(take, door, size)
            assert (await door.get("/bucket/x")).body == data
        await engine.delete("bucket", "x")
        with trio.fail_after(WAIT_S):
            await engine.collect_garbage(grace_s=0)
        assert await count_fragments(engine) == 0
