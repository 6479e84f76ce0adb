"""Every request is told of once: by method, status, bytes, and whether it was cut off."""

from __future__ import annotations

import queue
import socket
from functools import partial
from pathlib import Path

from dav.app import HANDLERS
from dav.connection import METHODS, NO_ANSWER
from tests.support.dav import WAIT_S, Door, dav_door, in_thread, with_login
from tests.support.engine import engine_in


class Told:
    """An observer; appending is atomic."""

    def __init__(self) -> None:
        self.answers: list[tuple[str, int, str]] = []
        self.bytes: list[tuple[int, int]] = []
        self._news: queue.SimpleQueue[None] = queue.SimpleQueue()

    def answered(self, operation: str, status: int, code: str, seconds: float) -> None:
        assert seconds > 0
        self.answers.append((operation, status, code))

    def moved(self, received: int, sent: int) -> None:
        self.bytes.append((received, sent))
        self._news.put(None)

    async def has(self, count: int) -> None:
        """Wait until so many requests have ended: their answers may be there before."""
        while len(self.bytes) < count:
            await in_thread(partial(self._news.get, timeout=WAIT_S))


async def test_each_request_is_told_of_once(tmp_path: Path) -> None:
    told = Told()
    async with engine_in(tmp_path) as engine, dav_door(engine, observer=told) as door:
        await door.made("/bucket/")
        await door.put("/bucket/file", b"12345")
        await door.put("/bucket/file", b"1234567")
        answer = await door.get("/bucket/file", Range="bytes=0-2")
        assert answer.body == b"123"
        await door.call("HEAD", "/bucket/file")
        refused = await door.call("GET", "/bucket/", login="")
        missing = await door.get("/bucket/absent")
        other = await door.call("BREW", "/bucket/")
        await told.has(8)
    assert told.answers == [
        ("MKCOL", 201, ""),
        ("PUT", 201, ""),
        ("PUT", 204, ""),
        ("GET", 206, ""),
        ("HEAD", 200, ""),
        ("GET", 401, ""),
        ("GET", 404, ""),
        ("OTHER", 501, ""),
    ]
    bodies = [len(answer.body) for answer in (refused, missing, other)]
    assert told.bytes == [
        (0, 0),
        (5, 0),
        (7, 0),
        (0, 3),
        (0, 0),
        *((0, size) for size in bodies),
    ]


async def test_what_was_cut_off_is_told_so(tmp_path: Path) -> None:
    told = Told()
    async with engine_in(tmp_path) as engine, dav_door(engine, observer=told) as door:
        await door.made("/bucket/")
        size = 8 << 20
        await door.put("/bucket/large", bytes(size))
        await in_thread(_leave_upload, door)
        await told.has(3)
        await in_thread(_leave_download, door)
        await told.has(4)
    # The answer may still find its way into the socket of a client that left.
    assert told.answers[2][:2] in {("PUT", NO_ANSWER), ("PUT", 400)}
    assert told.answers[3] == ("GET", 200, "cut_off")
    assert told.bytes[2][0] == 100_000
    assert told.bytes[3][1] <= size


def _leave_upload(door: Door) -> None:
    with door.connect() as opened:
        head = b"PUT /bucket/new HTTP/1.1\r\nContent-Length: 200000\r\nExpect: 100-continue\r\n\r\n"
        opened.sendall(with_login(head))
        assert opened.recv(1024).startswith(b"HTTP/1.1 100")
        opened.sendall(bytes(100_000))


def _leave_download(door: Door) -> None:
    with door.connect() as opened:
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        opened.sendall(with_login(b"GET /bucket/large HTTP/1.1\r\n\r\n"))
        assert opened.recv(1024).startswith(b"HTTP/1.1 200")


def test_all_methods_that_are_handled_have_a_name_of_their_own() -> None:
    assert set(HANDLERS) == METHODS
