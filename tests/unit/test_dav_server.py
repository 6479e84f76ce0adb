"""The server under clients that are slow, silent, many, or wrong."""

from __future__ import annotations

import contextlib
import select
import socket
import ssl
import threading
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import trio
import trustme

from dav.config import DavLimits
from engine.engine import Engine
from engine.errors import NoSuchKey
from tests.support.dav import (
    LIMITS,
    WAIT_S,
    Door,
    basic,
    dav_door,
    in_thread,
    read_answer,
    with_login,
)
from tests.support.engine import engine_in, pattern, read
from tests.support.logs import Logs

MIB = 1 << 20
PUT = b"PUT /bucket/%s HTTP/1.1\r\nContent-Length: %d\r\n\r\n"


async def exists(engine: Engine, key: str) -> bool:
    try:
        await engine.head("bucket", key)
    except NoSuchKey:
        return False
    return True


def begin_put(door: Door, name: str, size: int = 10) -> socket.socket:
    """Send the head and the first half of a body; the server has begun to read it."""
    opened = door.connect()
    head = PUT % (name.encode(), size)
    head = head.replace(b"\r\n\r\n", b"\r\nExpect: 100-continue\r\n\r\n")
    opened.sendall(with_login(head))
    assert opened.recv(1024).startswith(b"HTTP/1.1 100")
    opened.sendall(b"x" * (size // 2))
    return opened


def begin_get(door: Door, name: str) -> socket.socket:
    """Ask for a file and take no more than the head of the answer."""
    opened = door.connect()
    opened.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
    opened.sendall(with_login(b"GET /bucket/%s HTTP/1.1\r\n\r\n" % name.encode()))
    assert opened.recv(1, socket.MSG_PEEK)
    return opened


def read_body(opened: socket.socket, size: int) -> bytearray:
    """Read an answer with so many bytes, without the copies of ``read_answer``."""
    got = bytearray()
    buffer = memoryview(bytearray(1 << 20))
    while (end := got.find(b"\r\n\r\n")) < 0 or len(got) < end + 4 + size:
        count = opened.recv_into(buffer)
        assert count, "closed"
        got += buffer[:count]
    del got[: end + 4]
    return got


def end_put(opened: socket.socket, size: int = 10) -> int:
    opened.sendall(b"x" * (size - size // 2))
    return read_answer(opened).status


def send_until_answered(refused: socket.socket, waiting: socket.socket) -> int:
    """Send more of a body, so that the server looks up; return the status of the other."""
    with contextlib.suppress(ConnectionError):  # it ends before the other is answered
        while not select.select([waiting], [], [], 0.01)[0]:
            refused.sendall(bytes(64 * 1024))
    return read_answer(waiting).status


def is_closed(opened: socket.socket) -> bool:
    """Wait for the end of the connection."""
    try:
        while opened.recv(65536):
            pass
    except ConnectionResetError:
        pass
    return True


async def test_64_slow_uploads_leave_room_for_small_requests(tmp_path: Path) -> None:
    async with engine_in(tmp_path) as engine, dav_door(engine) as door:
        await door.made("/bucket/", "/bucket/small")
        slow = [await in_thread(begin_put, door, f"slow-{n}") for n in range(64)]
        for _ in range(5):
            assert (await door.get("/bucket/small")).status == 200
        assert [await in_thread(end_put, opened) for opened in slow] == [201] * 64


async def test_64_stalled_transfers_each_way_leave_room_for_others(tmp_path: Path) -> None:
    """They hold buffers of the engine, each in the middle of a stripe or of what is read ahead."""
    size = 1 << 20
    data = pattern(5 << 20)
    limits = replace(LIMITS, idle_s=120.0)
    async with engine_in(tmp_path) as engine, dav_door(engine, limits=limits) as door:
        await door.made("/bucket/")
        assert (await door.put("/bucket/large", data)).status == 201
        up = [await in_thread(begin_put, door, f"slow-{n}", size) for n in range(64)]
        down = [await in_thread(begin_get, door, "large") for _ in range(64)]
        for small in (0, 100, 4096, 300_000, 3 << 20):
            body = pattern(small, seed=small)
            assert (await door.put(f"/bucket/{small}", body)).status == 201
            assert (await door.get(f"/bucket/{small}")).body == body
        assert (await door.call("PROPFIND", "/bucket/", Depth="1")).status == 207
        for opened in down:
            assert await in_thread(read_body, opened, len(data)) == data
        statuses: list[int] = []

        async def finish(opened: socket.socket) -> None:
            statuses.append(await in_thread(end_put, opened, size))

        async with trio.open_nursery() as nursery:
            for opened in up:
                nursery.start_soon(finish, opened)
        assert statuses == [201] * 64


async def test_a_small_request_does_not_wait_for_64_downloads_to_end(tmp_path: Path) -> None:
    """64 clients take one large file after the other, as fast as they can."""
    size = 4 << 20
    ended: list[int] = []
    enough = threading.Event()

    def download(door: Door) -> None:
        with door.connect() as opened:
            while not enough.is_set():
                opened.sendall(with_login(b"GET /bucket/large HTTP/1.1\r\n\r\n"))
                ended.append(len(read_body(opened, size)))

    async with engine_in(tmp_path) as engine, dav_door(engine) as door:
        await door.made("/bucket/", "/bucket/small")
        assert (await door.put("/bucket/large", pattern(size))).status == 201
        async with trio.open_nursery() as nursery:
            limiter = trio.CapacityLimiter(64)
            for _ in range(64):
                nursery.start_soon(
                    partial(trio.to_thread.run_sync, limiter=limiter), download, door
                )
            try:
                passed = []
                for _ in range(5):
                    before = len(ended)
                    assert (await door.get("/bucket/small")).body == b"/bucket/small"
                    passed.append(len(ended) - before)
            finally:
                enough.set()
        assert set(ended) == {size}
        # In line behind them it would wait for all 64, or more if they came first each time.
        assert sorted(passed)[2] < 64, passed


async def test_silent_clients_cost_no_threads(tmp_path: Path) -> None:
    limits = replace(LIMITS, threads_min=1, threads_max=2)
    async with engine_in(tmp_path) as engine, dav_door(engine, limits=limits) as door:
        silent = [await in_thread(door.connect) for _ in range(20)]
        await door.made("/bucket/", "/bucket/x")
        assert (await door.get("/bucket/x")).status == 200
        assert len(silent) == 20


async def test_requests_wait_for_a_thread_when_all_are_busy(tmp_path: Path) -> None:
    limits = replace(LIMITS, threads_min=1, threads_max=2)
    async with engine_in(tmp_path) as engine, dav_door(engine, limits=limits) as door:
        await door.made("/bucket/")
        busy = [await in_thread(begin_put, door, f"busy-{n}") for n in range(2)]
        async with trio.open_nursery() as nursery:
            answered = trio.Event()

            async def ask() -> None:
                assert (await door.call("OPTIONS", "/")).status == 200
                answered.set()

            nursery.start_soon(ask)
            assert await in_thread(end_put, busy[0]) == 201
            await answered.wait()
        assert await in_thread(end_put, busy[1]) == 201


async def test_an_upload_that_stands_still_ends_and_leaves_nothing(tmp_path: Path) -> None:
    limits = replace(LIMITS, idle_s=0.2)
    async with engine_in(tmp_path) as engine, dav_door(engine, limits=limits) as door:
        await door.made("/bucket/")
        opened = await in_thread(begin_put, door, "x")
        assert (await in_thread(read_answer, opened)).status == 408
        assert not await exists(engine, "x")


@pytest.mark.parametrize("chunked", [False, True])
async def test_who_looks_at_the_answer_only_behind_the_body_finds_the_refusal(
    tmp_path: Path, *, chunked: bool
) -> None:
    part, parts = bytes(MIB), 64
    if chunked:
        head, end = b"Transfer-Encoding: chunked\r\n\r\n", b"0\r\n\r\n"
        part = b"%x\r\n%b\r\n" % (len(part), part)
    else:
        head, end = b"Content-Length: %d\r\n\r\n" % (parts * MIB), b""

    def send_all_first(opened: socket.socket) -> int:
        opened.sendall(b"PUT /bucket/x HTTP/1.1\r\n" + head)
        for _ in range(parts):
            opened.sendall(part)
        opened.sendall(end)
        return read_answer(opened).status

    async with engine_in(tmp_path) as engine, dav_door(engine) as door:
        await door.made("/bucket/")
        opened = door.connect()
        assert await in_thread(send_all_first, opened) == 401
        assert await in_thread(is_closed, opened)


async def test_a_refused_body_that_stands_still_ends(tmp_path: Path) -> None:
    limits = replace(LIMITS, refused_s=0.2)
    async with engine_in(tmp_path) as engine, dav_door(engine, limits=limits) as door:
        opened = door.connect()
        await in_thread(opened.sendall, PUT % (b"x", 64 * MIB) + bytes(1000))
        assert (await in_thread(read_answer, opened)).status == 401
        assert await in_thread(is_closed, opened)


async def test_refused_bodies_leave_their_threads_to_others(tmp_path: Path) -> None:
    limits = replace(LIMITS, threads_min=1, threads_max=2, refused_s=10 * WAIT_S)
    async with engine_in(tmp_path) as engine, dav_door(engine, limits=limits) as door:
        refused = [await in_thread(door.connect) for _ in range(2)]
        for opened in refused:
            await in_thread(opened.sendall, PUT % (b"x", 10**12))
            assert (await in_thread(read_answer, opened)).status == 401
        waiting = await in_thread(door.connect)
        await in_thread(waiting.sendall, with_login(b"OPTIONS / HTTP/1.1\r\n\r\n"))
        assert await in_thread(send_until_answered, refused[0], waiting) == 200


async def test_a_head_that_trickles_has_an_end(tmp_path: Path) -> None:
    limits = replace(LIMITS, head_s=0.2)
    async with engine_in(tmp_path) as engine, dav_door(engine, limits=limits) as door:
        opened = door.connect()
        await in_thread(opened.sendall, b"GET / HTTP/1.1\r\nHost: ")
        assert await in_thread(is_closed, opened)


async def test_an_idle_connection_is_closed(tmp_path: Path) -> None:
    limits = replace(LIMITS, idle_s=0.2)
    async with engine_in(tmp_path) as engine, dav_door(engine, limits=limits) as door:
        opened = door.connect()
        assert await in_thread(is_closed, opened)


@pytest.mark.parametrize(
    ("head", "status"),
    [
        (b"GET / HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nContent-Length: +1\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nContent-Length: 1, 1\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nTransfer-Encoding: gzip, chunked\r\n\r\n", 400),
        (b"GET / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nContent-Length : 1\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nX: 1\r\n folded: 2\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nno colon\r\n\r\n", 400),
        (b"GET / HTTP/1.1\nX: 1\n\n", 400),
        (b"GET /\r\n\r\n", 400),
        (b"GET / HTTP/9.1\r\n\r\n", 505),
        (b"GET / HTTP/1.1\r\nX: " + b"x" * 70_000 + b"\r\n\r\n", 413),
        (b"GET /" + b"x" * 70_000 + b" HTTP/1.1\r\n\r\n", 414),
    ],
)
async def test_requests_that_can_be_read_in_two_ways_are_refused(
    tmp_path: Path, head: bytes, status: int
) -> None:
    async with engine_in(tmp_path) as engine, dav_door(engine) as door:
        answer = await door.raw(head, login=False)
        assert answer.status == status


async def test_a_header_with_an_underscore_is_no_header_with_a_dash(tmp_path: Path) -> None:
    async with engine_in(tmp_path) as engine, dav_door(engine) as door:
        await door.made("/bucket/", "/bucket/x")
        request = b"DELETE /bucket/x HTTP/1.1\r\nIf_Match: nonsense\r\n\r\n"
        assert (await door.raw(request)).status == 204


async def test_requests_follow_each_other_on_one_connection(tmp_path: Path) -> None:
    async with engine_in(tmp_path) as engine, dav_door(engine) as door:
        await door.made("/bucket/", "/bucket/x")

        def talk() -> list[tuple[int, bytes]]:
            opened = door.connect()
            answers = []
            for request in (
                with_login(PUT % (b"y", 3)) + b"abc",
                with_login(b"GET /bucket/y HTTP/1.1\r\n\r\n"),
                with_login(b"GET /bucket/absent HTTP/1.1\r\n\r\n"),
                with_login(b"GET /bucket/x HTTP/1.1\r\nConnection: close\r\n\r\n"),
            ):
                opened.sendall(request)
                answer = read_answer(opened)
                answers.append((answer.status, answer.body))
            assert opened.recv(1) == b""
            return answers

        answers = await in_thread(talk)
        assert [status for status, _ in answers] == [201, 200, 404, 200]
        assert answers[1][1] == b"abc"


async def test_requests_that_were_sent_ahead_are_answered_in_order(tmp_path: Path) -> None:
    async with engine_in(tmp_path) as engine, dav_door(engine) as door:
        await door.made("/bucket/", "/bucket/x", "/bucket/y")

        def talk() -> bytes:
            opened = door.connect()
            requests = [
                with_login(b"GET /bucket/%s HTTP/1.1\r\n\r\n" % name) for name in (b"x", b"y")
            ]
            last = with_login(b"GET /bucket/x HTTP/1.1\r\nConnection: close\r\n\r\n")
            opened.sendall(b"".join(requests) + last)
            got = b""
            while part := opened.recv(65536):
                got += part
            return got

        got = await in_thread(talk)
        bodies = [part.partition(b"\r\n\r\n")[2] for part in got.split(b"HTTP/1.1 200")[1:]]
        assert bodies == [b"/bucket/x", b"/bucket/y", b"/bucket/x"]


async def test_a_stop_lets_a_transfer_end_and_accepts_no_more(tmp_path: Path) -> None:
    async with engine_in(tmp_path) as engine:
        async with dav_door(engine, limits=replace(LIMITS, stop_s=20.0)) as door:
            await door.made("/bucket/")
            opened = await in_thread(begin_put, door, "x")
            async with trio.open_nursery() as nursery:
                nursery.start_soon(trio.to_thread.run_sync, door.server.stop)
                while door.server.ready:  # noqa: ASYNC110  no event: a thread stops it
                    await trio.lowlevel.checkpoint()
                assert await in_thread(end_put, opened) == 201
        assert await read(engine, "bucket", "x") == b"x" * 10


async def test_a_stop_cuts_off_what_does_not_end(tmp_path: Path, logs: Logs) -> None:
    async with engine_in(tmp_path) as engine:
        async with dav_door(engine, limits=replace(LIMITS, stop_s=0.1)) as door:
            await door.made("/bucket/")
            opened = await in_thread(begin_put, door, "x")
            logs.expect("dav.cut_off")
            await in_thread(door.server.stop)
            assert await in_thread(is_closed, opened)
        assert not await exists(engine, "x")


class Certificate:
    def __init__(self) -> None:
        authority = trustme.CA()
        self.server = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        authority.issue_cert("localhost").configure_cert(self.server)
        self.client = ssl.create_default_context()
        authority.configure_trust(self.client)


async def test_silent_and_slow_tls_clients_stop_nobody(tmp_path: Path) -> None:
    """cheroot 11 shakes hands in its accept thread: three such clients stopped everyone."""
    keys = Certificate()
    data = pattern(300_000)
    async with (
        engine_in(tmp_path) as engine,
        dav_door(engine, tls=keys.server, client_tls=keys.client) as door,
    ):
        for _ in range(20):
            door.connect()
            slow = door.connect()
            # The first bytes of a handshake that never goes on.
            await in_thread(slow.sendall, b"\x16\x03\x01\x02\x00\x01\x00")
            shaken = partial(keys.client.wrap_socket, server_hostname="localhost")
            talking = await in_thread(shaken, door.connect())
            door.open_sockets.append(talking)
            # A request that never goes on.
            await in_thread(talking.sendall, b"GET / HTTP/1.1\r\nHost: ")
        await door.made("/bucket/")
        assert (await door.put("/bucket/x", data)).status == 201
        assert (await door.get("/bucket/x")).body == data
        pieces = [data[at : at + 999] for at in range(0, len(data), 999)]
        assert (await door.call("PUT", "/bucket/y", pieces)).status == 201
        assert await read(engine, "bucket", "y") == data


async def test_a_handshake_has_an_end(tmp_path: Path) -> None:
    keys = Certificate()
    limits = replace(LIMITS, handshake_s=0.2)
    async with (
        engine_in(tmp_path) as engine,
        dav_door(engine, tls=keys.server, limits=limits) as door,
    ):
        slow = door.connect()
        await in_thread(slow.sendall, b"\x16\x03\x01")
        plain = door.connect()
        await in_thread(plain.sendall, b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        assert await in_thread(is_closed, slow)
        assert await in_thread(is_closed, plain)


async def test_requests_follow_each_other_over_tls(tmp_path: Path) -> None:
    keys = Certificate()
    async with (
        engine_in(tmp_path) as engine,
        dav_door(engine, tls=keys.server, client_tls=keys.client) as door,
    ):
        await door.made("/bucket/", "/bucket/x")

        def talk() -> list[int]:
            with keys.client.wrap_socket(door.connect(), server_hostname="localhost") as opened:
                request = with_login(b"GET /bucket/x HTTP/1.1\r\n\r\n")
                statuses = []
                for _ in range(3):
                    opened.sendall(request)
                    statuses.append(read_answer(opened).status)
                # Two in one record: the second waits inside the TLS library.
                opened.sendall(request + with_login(b"OPTIONS / HTTP/1.1\r\n\r\n"))
                got = b""
                while got.count(b"HTTP/1.1 200") < 2:
                    part = opened.recv(65536)
                    assert part
                    got += part
                return statuses

        assert await in_thread(talk) == [200] * 3


async def test_over_tls_basic_is_good_from_anywhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dav.auth.is_loopback", lambda address: False)
    keys = Certificate()
    async with (
        engine_in(tmp_path) as engine,
        dav_door(engine, tls=keys.server, client_tls=keys.client) as door,
    ):
        assert (await door.call("GET", "/", login=basic())).status == 200


def test_limits_are_sane() -> None:
    limits = DavLimits()
    assert limits.threads_max > 64 + limits.threads_min
