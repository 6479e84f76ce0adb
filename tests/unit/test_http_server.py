"""The server on loopback sockets."""

from __future__ import annotations

import errno
import hashlib
import socket
import ssl
from typing import Any

import pytest
import trio
import trustme

from engine.http.limits import Limits
from engine.http.message import BodyBroken, Buffer, Request, Response
from engine.http.server import open_listeners, serve
from tests.support.http import Client, RecordingLog, Stream, echo, read_all, running_server

GET = b"GET /x HTTP/1.1\r\nHost: a\r\n\r\n"


def put(body: bytes, *extra: bytes) -> bytes:
    lines = [b"PUT /x HTTP/1.1", b"Host: a", b"Content-Length: %d" % len(body), *extra]
    return b"\r\n".join(lines) + b"\r\n\r\n" + body


async def ended(client: Client) -> bool:
    return await client.rest() == b""


async def test_connection_is_kept_for_many_requests() -> None:
    async with running_server(echo) as server:
        client = await server.connect()
        for number in range(5):
            await client.send(put(b"%d" % number))
            answer = await client.answer()
            assert answer.status == 200
            assert answer.body.split(b"\n")[4] == b"%d" % number
            assert b"connection" not in answer.headers
            assert b"date" in answer.headers


async def test_pipelined_requests_are_answered_in_order() -> None:
    async def handler(request: Request) -> Response:
        body = await read_all(request)
        for _ in range(10 - len(body)):  # the first takes the longest
            await trio.lowlevel.checkpoint()
        return Response(200, body=body)

    async with running_server(handler) as server:
        client = await server.connect()
        await client.send(b"".join(put(b"x" * number) for number in range(10)))
        for number in range(10):
            assert (await client.answer()).body == b"x" * number


@pytest.mark.parametrize("extra", [b"Connection: close\r\n", b""])
async def test_close_and_http10_end_the_connection(extra: bytes) -> None:
    version = b"1.1" if extra else b"1.0"
    async with running_server(echo) as server:
        client = await server.connect()
        await client.send(b"GET / HTTP/" + version + b"\r\nHost: a\r\n" + extra + b"\r\n" + GET)
        answer = await client.answer()
        assert answer.headers[b"connection"] == b"close"
        assert await ended(client)


async def test_head_has_the_length_and_no_body() -> None:
    streams: list[Stream] = []

    async def handler(request: Request) -> Response:
        match request.path:
            case b"/bytes":
                return Response(200, body=b"12345")
            case b"/length":
                return Response(200, length=1 << 40)
            case b"/stream":
                streams.append(Stream([b"abc"]))
                return Response(200, body=streams[-1], length=3)
            case b"/304":
                return Response(304, [(b"ETag", b'"e"')])
            case _:
                return Response(204, body=b"not to be sent")

    async with running_server(handler) as server:
        client = await server.connect()
        for path, status, length in [
            (b"bytes", 200, b"5"),
            (b"length", 200, b"%d" % (1 << 40)),
            (b"stream", 200, b"3"),
            (b"304", 304, None),
            (b"204", 204, None),
        ]:
            await client.send(b"HEAD /%b HTTP/1.1\r\nHost: a\r\n\r\n" % path)
            answer = await client.answer(head_only=True)
            assert (answer.status, answer.headers.get(b"content-length")) == (status, length)
        assert [stream.close_count for stream in streams] == [1]


async def test_streams_are_sent_whole_with_length_and_chunked() -> None:
    buffers: list[Buffer] = [b"a" * 10, b"", b"b" * 3_000_000, memoryview(b"c" * 70_000)]
    whole = b"".join(bytes(buffer) for buffer in buffers)
    streams: list[Stream] = []

    async def handler(request: Request) -> Response:
        streams.append(Stream(buffers))
        length = len(whole) if request.path == b"/length" else None
        return Response(200, body=streams[-1], length=length)

    async with running_server(handler) as server:
        client = await server.connect()
        for path, header in [(b"/length", b"content-length"), (b"/chunked", b"transfer-encoding")]:
            await client.send(b"GET %b HTTP/1.1\r\nHost: a\r\n\r\n" % path)
            answer = await client.answer()
            assert header in answer.headers
            assert (answer.whole, answer.body == whole) == (True, True)
        await client.send(b"GET /chunked HTTP/1.0\r\n\r\n")
        answer = await client.answer()
        assert b"transfer-encoding" not in answer.headers
        assert answer.body == whole
        assert [stream.close_count for stream in streams] == [1, 1, 1]


async def test_large_body_is_received_byte_for_byte() -> None:
    async def handler(request: Request) -> Response:
        digest = hashlib.sha256()
        buffer = memoryview(bytearray(300_000))
        while count := await request.body.readinto(buffer):
            digest.update(buffer[:count])
        return Response(200, body=digest.hexdigest().encode())

    body = bytes(range(256)) * 20_000
    async with running_server(handler) as server:
        client = await server.connect()
        await client.send(put(body) + GET)
        assert (await client.answer()).body == hashlib.sha256(body).hexdigest().encode()
        assert (await client.answer()).body == hashlib.sha256().hexdigest().encode()


async def test_chunked_body_is_decoded_and_the_next_request_untouched() -> None:
    chunks = [b"x" * size for size in (1, 15, 16, 70_000, 3)]
    coded = b"".join(b"%X;ext=1\r\n%b\r\n" % (len(chunk), chunk) for chunk in chunks)
    request = b"PUT /x HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
    async with running_server(echo) as server:
        client = await server.connect()
        await client.send(request + coded + b"0\r\nX-Sum: abc \r\n\r\n" + GET)
        body = (await client.answer()).body.split(b"\n")
        assert body[4] == b"".join(chunks)
        assert body[5] == repr([(b"x-sum", b"abc")]).encode()
        assert (await client.answer()).body.startswith(b"GET\n/x")


@pytest.mark.parametrize(
    "coded",
    [b"5\nhello\n0\n\n", b"0x5\r\nhello\r\n0\r\n\r\n", b" 5\r\nhello\r\n0\r\n\r\n", b"\r\n",
     b"5\r\nhelloworld\r\n", b"-1\r\n", b"5 \r\nhello\r\n0\r\n\r\n", b"ffffffffffffffffff\r\n",
     b"5;" + b"e" * 2000 + b"\r\nhello\r\n", b"0\r\nbad trailer\r\n\r\n",
     b"0\r\nA: b\nC: d\r\n\r\n"],
)  # fmt: skip
async def test_broken_chunks_are_refused_and_close(coded: bytes) -> None:
    async with running_server(echo) as server:
        client = await server.connect()
        await client.send(
            b"PUT /x HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n" + coded
        )
        assert (await client.answer()).status == 400
        assert await ended(client)


async def test_truncated_body_breaks_the_handlers_read() -> None:
    reasons: list[str] = []

    async def handler(request: Request) -> Response:
        try:
            await read_all(request)
        except BodyBroken as broken:
            reasons.append(broken.reason)
            with pytest.raises(BodyBroken):
                await read_all(request)
            return Response(400)
        return Response(200)

    async with running_server(handler) as server:
        for request in (
            put(b"12345")[:-1],
            b"PUT /x HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nabc",
        ):
            client = await server.connect()
            await client.send(request)
            await client.end()
            answer = await client.answer()
            assert (answer.status, answer.headers[b"connection"]) == (400, b"close")
            assert await ended(client)
    assert reasons == ["disconnected", "disconnected"]


async def test_100_continue_is_sent_on_the_first_read_only() -> None:
    order: list[str] = []

    async def handler(request: Request) -> Response:
        order.append("checked")
        buffer = memoryview(bytearray(10))
        while await request.body.readinto(buffer):
            order.append("read")
        return Response(200)

    async with running_server(handler) as server:
        client = await server.connect()
        head = put(b"", b"Expect: 100-continue").replace(b"Length: 0", b"Length: 2")
        await client.send(head)
        assert await client._until(b"\r\n\r\n") == b"HTTP/1.1 100 Continue"
        assert order == ["checked"]
        await client.send(b"ab")
        answer = await client.answer()
        assert (answer.status, answer.interim) == (200, [])
        await client.send(head + b"ab")
        assert (await client.answer()).interim == []  # it did not wait


async def test_refusal_without_reading_sends_no_100_and_closes() -> None:
    async def handler(request: Request) -> Response:
        return Response(403)

    async with running_server(handler) as server:
        client = await server.connect()
        await client.send(
            b"PUT /x HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\nExpect: 100-continue\r\n\r\n"
        )
        answer = await client.answer()
        assert (answer.status, answer.interim) == (403, [])
        assert answer.headers[b"connection"] == b"close"
        assert await ended(client)


async def test_expecting_100_without_a_body_still_gets_it() -> None:
    async def handler(request: Request) -> Response:
        return Response(403 if request.path == b"/no" else 200)

    async with running_server(handler) as server:
        client = await server.connect()
        head = put(b"", b"Expect: 100-continue")
        for _ in range(2):
            await client.send(head)
            answer = await client.answer()
            assert (answer.status, answer.interim) == (200, [100])
        await client.send(head.replace(b"/x ", b"/no "))
        answer = await client.answer()
        assert (answer.status, answer.interim) == (403, [])
        assert answer.headers[b"connection"] == b"close"
        assert await ended(client)


async def test_204_has_neither_body_nor_length() -> None:
    async def handler(request: Request) -> Response:
        return Response(204, body=b"not to be sent")

    async with running_server(handler) as server:
        client = await server.connect()
        await client.send(GET + GET)
        for _ in range(2):
            answer = await client.answer()
            assert answer.status == 204
            assert b"content-length" not in answer.headers


async def test_small_unread_body_is_dropped_and_large_one_closes() -> None:
    async def handler(request: Request) -> Response:
        return Response(403)

    async with running_server(handler, limits=Limits(drain=1000)) as server:
        client = await server.connect()
        await client.send(put(b"x" * 1000) + GET)
        assert b"connection" not in (await client.answer()).headers
        assert (await client.answer()).status == 403
        client = await server.connect()
        await client.send(put(b"x" * 1001) + GET)
        assert (await client.answer()).headers[b"connection"] == b"close"
        assert await ended(client)


async def test_a_client_that_sends_megabytes_unread_still_sees_the_answer() -> None:
    async def handler(request: Request) -> Response:
        return Response(403)

    async with running_server(handler) as server:
        client = await server.connect()
        await client.send(put(b"x" * (4 << 20)))  # a reset would end this, or the next line
        answer = await client.answer()
        assert (answer.status, answer.headers[b"connection"]) == (403, b"close")


async def test_oversized_request_line_is_answered() -> None:
    async with running_server(echo) as server:
        client = await server.connect()
        await client.send(b"GET /" + b"x" * 17_000)
        answer = await client.answer()
        assert (answer.status, answer.headers[b"connection"]) == (414, b"close")
        assert await ended(client)


async def test_smuggled_second_request_is_never_served() -> None:
    seen: list[bytes] = []

    async def handler(request: Request) -> Response:
        seen.append(request.path)
        await read_all(request)
        return Response(200)

    evil = b"GET /evil HTTP/1.1\r\nHost: a\r\n\r\n"
    async with running_server(handler) as server:
        for attack in (
            b"Content-Length: 0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            b"Content-Length: 0\r\nContent-Length: %d\r\n\r\n" % len(evil),
            b"Transfer-Encoding: chunked\r\n\r\n0\r\n\n",
            b"Transfer-Encoding: identity, chunked\r\n\r\n0\r\n\r\n",
            b"A: b\n\n",
        ):
            client = await server.connect()
            await client.send(b"POST /first HTTP/1.1\r\nHost: a\r\n" + attack + evil)
            assert (await client.answer()).status in (400, 501)
            assert await ended(client)
    assert b"/evil" not in seen


async def test_handler_bug_is_logged_and_answered_500() -> None:
    async def handler(request: Request) -> Response:
        raise ZeroDivisionError

    async with running_server(handler, troubles=["http_handler_failed"] * 2) as server:
        client = await server.connect()
        for _ in range(2):
            await client.send(GET)
            assert (await client.answer()).status == 500


@pytest.mark.parametrize(
    "response",
    [
        Response(200, [(b"X", b"a\r\nb: c")]),
        Response(200, body=b"abc", length=4),
        Response(200, body=Stream([], ValueError("at once")), length=3),
        Response(200, body=Stream([]), length=3),
    ],
)
async def test_impossible_response_becomes_500(response: Response) -> None:
    async def handler(request: Request) -> Response:
        return response

    async with running_server(handler, troubles=["http_response_failed"]) as server:
        client = await server.connect()
        await client.send(GET)
        assert (await client.answer()).status == 500


@pytest.mark.parametrize("length", [10, None])
async def test_failing_stream_aborts_the_connection(length: int | None) -> None:
    stream = Stream([b"abc"], RuntimeError("midway"))

    async def handler(request: Request) -> Response:
        return Response(200, body=stream, length=length)

    async with running_server(handler, troubles=["http_response_failed"]) as server:
        client = await server.connect()
        await client.send(GET)
        assert not (await client.answer()).whole
        await stream.closed.wait()
    assert stream.close_count == 1


@pytest.mark.parametrize("buffers", [[b"abcde"], [b"abcde", b"f", b"gggggg"]])
async def test_stream_of_wrong_length_never_looks_whole(buffers: list[bytes]) -> None:
    stream = Stream(buffers)

    async def handler(request: Request) -> Response:
        return Response(200, body=stream, length=8)

    async with running_server(handler, troubles=["http_response_failed"]) as server:
        client = await server.connect()
        await client.send(GET)
        assert not (await client.answer()).whole
        await stream.closed.wait()


async def test_disconnecting_client_closes_the_stream() -> None:
    stream = Stream([b"x" * 100_000] * 1000)

    async def handler(request: Request) -> Response:
        return Response(200, body=stream, length=100_000_000)

    async with running_server(handler) as server:
        client = await server.connect()
        await client.send(GET)
        await client._until(b"\r\n\r\n")
        await client.stream.aclose()
        await stream.closed.wait()
    assert stream.close_count == 1


async def test_shutdown_finishes_running_requests_and_closes_idle_connections() -> None:
    running, release = trio.Event(), trio.Event()

    async def handler(request: Request) -> Response:
        if request.path == b"/slow":
            running.set()
            await release.wait()
        return Response(200, body=b"done")

    async with running_server(handler) as server:
        idle, busy = await server.connect(), await server.connect()
        await idle.send(GET)
        assert (await idle.answer()).status == 200
        await busy.send(b"GET /slow HTTP/1.1\r\nHost: a\r\n\r\n")
        await running.wait()
        server.shutdown.set()
        assert await ended(idle)
        with pytest.raises(OSError, match="connect"):
            await trio.open_tcp_stream("127.0.0.1", server.port)
        assert not server.finished.is_set()
        release.set()
        answer = await busy.answer()
        assert (answer.body, answer.headers[b"connection"]) == (b"done", b"close")
        await server.finished.wait()


async def test_shutdown_cancels_what_takes_too_long() -> None:
    running = trio.Event()

    async def handler(request: Request) -> Response:
        running.set()
        await trio.sleep_forever()
        raise AssertionError

    async with running_server(
        handler, limits=Limits(shutdown_s=0.01), troubles=["http_requests_cancelled"]
    ) as server:
        client = await server.connect()
        await client.send(GET)
        await running.wait()
        server.shutdown.set()
        await server.finished.wait()
        with pytest.raises(EOFError):
            await client.answer()


async def test_idle_connections_make_room_for_new_ones() -> None:
    async with running_server(echo, limits=Limits(connections=2)) as server:
        clients = [await server.connect() for _ in range(2)]
        for client in clients:
            await client.send(GET)
            assert (await client.answer()).status == 200
        newcomer = await server.connect()
        await newcomer.send(GET)
        assert (await newcomer.answer()).status == 200
        assert await ended(clients[0])


async def test_newcomers_wait_while_all_connections_are_busy() -> None:
    release = trio.Event()
    running = trio.Event()

    async def handler(request: Request) -> Response:
        if request.path == b"/slow":
            running.set()
            await release.wait()
        return Response(200)

    async with running_server(handler, limits=Limits(connections=1)) as server:
        busy = await server.connect()
        await busy.send(b"GET /slow HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
        await running.wait()
        newcomer = await server.connect()
        await newcomer.send(GET)
        release.set()
        assert (await busy.answer()).status == 200
        assert (await newcomer.answer()).status == 200


async def test_one_busy_connection_does_not_starve_another() -> None:
    served = 0

    async def handler(request: Request) -> Response:
        nonlocal served
        served += 1
        return Response(200, body=b"%d" % served)

    count = 300
    async with running_server(handler) as server:
        greedy, modest = await server.connect(), await server.connect()
        await greedy.send(GET * count)
        await modest.send(GET)
        assert int((await modest.answer()).body) < count


@pytest.fixture(scope="module")
def certificates() -> tuple[ssl.SSLContext, ssl.SSLContext]:
    authority = trustme.CA()
    server = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("localhost").configure_cert(server)
    client = ssl.create_default_context()
    authority.configure_trust(client)
    return server, client


async def test_tls_carries_large_bodies_both_ways(
    certificates: tuple[ssl.SSLContext, ssl.SSLContext],
) -> None:
    seen: list[bool] = []

    async def handler(request: Request) -> Response:
        seen.append(request.secure)
        body = await read_all(request, 100_000)
        return Response(200, body=Stream([body, body]), length=2 * len(body))

    body = bytes(range(256)) * 8000
    tls, client_tls = certificates
    async with running_server(handler, tls=tls, client_tls=client_tls) as server:
        client = await server.connect()
        for size in (len(body), 0, 1):
            await client.send(put(body[:size]))
            assert (await client.answer()).body == body[:size] * 2
        await client.send(put(b"1") + put(b"2", b"Connection: close"))
        assert (await client.answer()).body == b"11"
        assert (await client.answer()).body == b"22"
        assert await ended(client)
    assert all(seen)


async def test_failed_handshake_harms_nobody(
    certificates: tuple[ssl.SSLContext, ssl.SSLContext],
) -> None:
    tls, client_tls = certificates
    async with running_server(echo, tls=tls, client_tls=client_tls) as server:
        async with await trio.open_tcp_stream("127.0.0.1", server.port) as plain:
            await plain.send_all(GET)
            await Client(plain).rest()
        client = await server.connect()
        await client.send(GET)
        assert (await client.answer()).status == 200


FAST = Limits(idle_s=0.02, head_s=0.02, body_stall_s=0.02, send_stall_s=0.02, tick_s=0.01)
"""The limits themselves are tested under a virtual clock; here, that real waits are ended."""


async def test_limits_end_waits_on_real_sockets() -> None:
    stream = Stream([b"x" * 1_000_000] * 100)

    async def handler(request: Request) -> Response:
        await read_all(request)
        return Response(200, body=stream, length=100_000_000)

    async with running_server(handler, limits=FAST) as server:
        silent = await server.connect()
        assert await ended(silent)
        slow_head = await server.connect()
        await slow_head.send(b"GET /")
        assert (await slow_head.answer()).status == 408
        slow_body = await server.connect()
        await slow_body.send(put(b"12345")[:-1])
        assert (await slow_body.answer()).status == 408
        taking_nothing = await server.connect()
        await taking_nothing.send(GET)
        await stream.closed.wait()
        assert not (await taking_nothing.answer()).whole


async def test_silent_tls_client_is_closed(
    certificates: tuple[ssl.SSLContext, ssl.SSLContext],
) -> None:
    async with running_server(echo, tls=certificates[0], limits=FAST) as server:
        assert await ended(await server.connect())


async def test_response_cut_off_under_tls_does_not_end_cleanly(
    certificates: tuple[ssl.SSLContext, ssl.SSLContext],
) -> None:
    stream = Stream([b"abc"], RuntimeError("midway"))

    async def handler(request: Request) -> Response:
        return Response(200, body=stream, length=None)

    tls, client_tls = certificates
    async with running_server(
        handler, tls=tls, client_tls=client_tls, troubles=["http_response_failed"]
    ) as server:
        client = await server.connect()
        await client.send(GET)
        assert not (await client.answer()).whole


def test_listeners_of_one_name_share_a_port_and_a_taken_one_fails() -> None:
    listeners = open_listeners("127.0.0.1", 0)
    try:
        port = listeners[0].getsockname()[1]
        assert port
        with pytest.raises(OSError, match="in use"):
            open_listeners("127.0.0.1", port)
    finally:
        for listener in listeners:
            listener.close()


class ShortOfDescriptors(socket.socket):
    """A listener that is out of descriptors, as the process would be, for its first accepts."""

    failures = 2

    def accept(self) -> tuple[socket.socket, Any]:
        if self.failures:
            self.failures -= 1
            raise OSError(errno.EMFILE, "Too many open files")
        return super().accept()


async def test_accepting_goes_on_after_descriptors_ran_out() -> None:
    listener = ShortOfDescriptors(fileno=open_listeners("127.0.0.1", 0)[0].detach())
    listener.setblocking(False)
    async with running_server(
        echo, listeners=[listener], troubles=["http_accept_failed"]
    ) as server:
        client = await server.connect()
        await client.send(GET)
        assert (await client.answer()).status == 200


async def test_broken_listener_is_reported() -> None:
    listener = open_listeners("127.0.0.1", 0)[0]
    listener.shutdown(socket.SHUT_RDWR)  # accepting from it now fails
    with trio.fail_after(5), pytest.RaisesGroup(pytest.RaisesGroup(OSError)):
        await serve(
            echo,
            [listener],
            limits=Limits(),
            tls=None,
            log=RecordingLog().as_logger(),
            shutdown=trio.Event(),
        )
