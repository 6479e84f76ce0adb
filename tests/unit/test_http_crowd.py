"""Two servers on one socket share its connections."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import trio

from engine.http.crowd import Crowd, make_board
from engine.http.limits import Limits
from engine.http.message import Request, Response
from engine.http.server import open_listeners, serve
from tests.support.http import RecordingLog


@pytest.fixture
def board() -> Iterator[int]:
    fd = make_board(2)
    yield fd
    os.close(fd)


def test_the_one_with_more_connections_is_ahead(board: int) -> None:
    first, second = Crowd(board, 0, 2), Crowd(board, 1, 2)
    assert not first.is_ahead()
    first.set_count(3)
    second.set_count(2)
    assert first.is_ahead()
    assert not second.is_ahead()
    second.set_count(3)
    assert not first.is_ahead()


def test_a_process_that_takes_over_a_slot_begins_at_nothing(board: int) -> None:
    Crowd(board, 0, 2).set_count(7)
    other = Crowd(board, 1, 2)
    other.set_count(1)
    assert not other.is_ahead()
    Crowd(board, 0, 2)
    assert other.is_ahead()


async def test_a_burst_of_connections_is_shared(board: int) -> None:
    taken = [0, 0]

    def handler_of(index: int):  # type: ignore[no-untyped-def]  # a Handler
        async def handler(request: Request) -> Response:
            taken[index] += 1
            return Response(200)

        return handler

    listeners = open_listeners("127.0.0.1", 0)
    address = listeners[0].getsockname()
    shutdown = trio.Event()
    async with trio.open_nursery() as nursery:
        for index in range(2):
            sockets = [listener.dup() for listener in listeners]
            for copy in sockets:
                copy.setblocking(False)

            async def run(  # type: ignore[no-untyped-def]  # what nursery.start wants
                index: int = index, sockets=sockets, *, task_status=trio.TASK_STATUS_IGNORED
            ) -> None:
                await serve(
                    handler_of(index),
                    sockets,
                    limits=Limits(),
                    tls=None,
                    log=RecordingLog(),
                    shutdown=shutdown,
                    crowd=Crowd(board, index, 2),
                    task_status=task_status,
                )

            await nursery.start(run)
        clients = [await trio.open_tcp_stream(*address) for _ in range(20)]
        for client in clients:
            await client.send_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        for client in clients:
            assert (await client.receive_some(4096)).startswith(b"HTTP/1.1 200")
        for client in clients:
            await client.aclose()
        shutdown.set()
    for listener in listeners:
        listener.close()
    assert sum(taken) == 20
    assert min(taken) >= 8
