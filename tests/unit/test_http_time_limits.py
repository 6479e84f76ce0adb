"""Slow and stalled clients, under a virtual clock."""

from __future__ import annotations

import pytest
import trio
from trio.testing import MockClock

from engine.http.limits import Limits
from engine.http.message import BodyBroken, Request, Response
from tests.support.http import Stream, echo, memory_server, read_all

GET = b"GET /x HTTP/1.1\r\nHost: a\r\n\r\n"
LIMITS = Limits(body_rate_min=100.0)


def assert_elapsed(start: float, expected_s: float) -> None:
    """The virtual clock moved by what was expected, to within two ticks."""
    assert expected_s <= trio.current_time() - start <= expected_s + 2 * LIMITS.tick_s


async def test_idle_connection_is_closed(autojump_clock: MockClock) -> None:
    async with memory_server(echo) as server:
        start = trio.current_time()
        await server.client.send(GET)
        assert (await server.client.answer()).status == 200
        assert await server.client.rest() == b""
        assert_elapsed(start, Limits().idle_s)


async def test_dribbled_head_gets_408(autojump_clock: MockClock) -> None:
    async with memory_server(echo) as server:
        start = trio.current_time()

        async def dribble() -> None:
            for number in range(1000):
                await server.client.send(GET[number : number + 1] or b"x")
                await trio.sleep(1.4)

        server.nursery.start_soon(dribble)
        answer = await server.client.answer()
        assert answer.status == 408
        assert_elapsed(start, Limits().head_s)
        server.nursery.cancel_scope.cancel()


async def test_stalled_body_times_out(autojump_clock: MockClock) -> None:
    reasons: list[str] = []

    async def handler(request: Request) -> Response:
        try:
            await read_all(request)
        except BodyBroken as broken:
            reasons.append(broken.reason)
            raise
        return Response(200)

    async with memory_server(handler) as server:
        start = trio.current_time()
        await server.client.send(b"PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\nabc")
        answer = await server.client.answer()
        assert (answer.status, answer.headers[b"connection"]) == (408, b"close")
        assert reasons == ["timeout"]
        assert_elapsed(start, Limits().body_stall_s)
        assert server.log.troubles == []


@pytest.mark.parametrize(("per_second", "status"), [(50, 408), (200, 200)])
async def test_body_must_keep_a_least_rate(
    per_second: int, status: int, autojump_clock: MockClock
) -> None:
    async with memory_server(echo, limits=LIMITS) as server:
        size = per_second * 200
        await server.client.send(b"PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % size)

        async def trickle() -> None:
            for _ in range(200):
                await server.client.send(b"x" * per_second)
                await trio.sleep(1)

        server.nursery.start_soon(trickle)
        assert (await server.client.answer()).status == status
        server.nursery.cancel_scope.cancel()


async def test_slow_handler_is_not_the_clients_fault(autojump_clock: MockClock) -> None:
    async def handler(request: Request) -> Response:
        await trio.sleep(1000)
        body = await read_all(request, 1)
        await trio.sleep(1000)
        return Response(200, body=body)

    async with memory_server(handler) as server:
        await server.client.send(b"PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc")
        assert (await server.client.answer()).body == b"abc"


async def test_client_that_takes_nothing_is_cut(autojump_clock: MockClock) -> None:
    stream = Stream([b"x" * 1000] * 10)

    async def handler(request: Request) -> Response:
        return Response(200, body=stream, length=10_000)

    async with memory_server(handler, lockstep=True) as server:
        await server.client.send(GET)
        start = trio.current_time()
        await stream.closed.wait()
        assert_elapsed(start, Limits().send_stall_s)
        assert server.transport.aborted


async def test_unread_body_is_waited_for_only_briefly(autojump_clock: MockClock) -> None:
    async def handler(request: Request) -> Response:
        return Response(403)

    async with memory_server(handler) as server:
        start = trio.current_time()
        await server.client.send(b"PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\nabc")
        assert (await server.client.answer()).status == 403
        assert await server.client.rest() == b""
        assert_elapsed(start, Limits().drain_s)


async def test_stream_that_does_not_close_is_given_up(autojump_clock: MockClock) -> None:
    class Stubborn(Stream):
        async def aclose(self) -> None:
            await trio.sleep_forever()

    async def handler(request: Request) -> Response:
        return Response(200, body=Stubborn([b"abc"]), length=3)

    async with memory_server(handler) as server:
        for _ in range(2):
            await server.client.send(GET)
            assert (await server.client.answer()).body == b"abc"
    assert server.log.troubles[0] == "http_stream_close_timeout"


async def test_cancelled_request_closes_its_stream(autojump_clock: MockClock) -> None:
    stream = Stream([b"x"] * 5)

    async def handler(request: Request) -> Response:
        return Response(200, body=stream, length=5)

    async with memory_server(handler, lockstep=True) as server:
        await server.client.send(GET)
        await trio.testing.wait_all_tasks_blocked()
        server.nursery.cancel_scope.cancel()
    assert stream.close_count == 1
    assert server.transport.aborted
