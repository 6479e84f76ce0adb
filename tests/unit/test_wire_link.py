"""One connection to a member: how much a call is woken for, on real sockets."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio
import trio.testing

from engine.node.wire.link import Link, LinkLost, Stopwatch, connect
from tests.support.drives import content

SIZE = 1 << 20


class Watched(Stopwatch):
    """Tells when something moved."""

    __slots__ = ("moved",)

    def __init__(self, scope: trio.CancelScope) -> None:
        super().__init__(scope, stall_s=60.0, whole_s=60.0)
        self.moved = trio.Event()

    def progress(self) -> None:
        super().progress()
        self.moved.set()


@asynccontextmanager
async def link_and_peer() -> AsyncIterator[tuple[Link, trio.SocketStream]]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        link = await connect("127.0.0.1", listener.getsockname()[1], None)
        accepted, _ = listener.accept()
    peer = trio.SocketStream(trio.socket.from_stdlib_socket(accepted))
    try:
        yield link, peer
    finally:
        link.close()
        await peer.aclose()


async def exchange(link: Link, peer: trio.SocketStream, payload: bytes) -> bytes:
    received = bytearray(len(payload))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(peer.send_all, payload)
        await link.receive_into([memoryview(received)])
    return bytes(received)


async def test_a_few_bytes_arrive_at_once_behind_a_large_body() -> None:
    with trio.fail_after(60):
        async with link_and_peer() as (link, peer):
            for number in range(3):
                assert await exchange(link, peer, content(number, SIZE)) == content(number, SIZE)
                await peer.send_all(b"HTTP/1.1 204 No Content\r\n\r\n")
                assert (await link.receive_head()).status == 204
                assert await exchange(link, peer, b"!") == b"!"


async def test_a_body_that_turns_slow_counts_as_moving_with_every_byte() -> None:
    payload = content(1, SIZE)
    received = bytearray(SIZE)
    with trio.fail_after(60):
        async with link_and_peer() as (link, peer):
            await exchange(link, peer, payload)
            await exchange(link, peer, payload)

            async with trio.open_nursery() as nursery:
                link.watch = watch = Watched(nursery.cancel_scope)
                nursery.start_soon(link.receive_into, [memoryview(received)])
                for begin, end in ((0, 1), (1, 3), (3, SIZE)):
                    await trio.testing.wait_all_tasks_blocked()
                    watch.moved = trio.Event()
                    await peer.send_all(payload[begin:end])
                    await watch.moved.wait()
    assert received == payload


async def test_the_end_wakes_who_waits_for_a_large_body() -> None:
    with trio.fail_after(60):
        async with link_and_peer() as (link, peer):
            await exchange(link, peer, content(1, SIZE))
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_is_cut_off, link)
                await peer.send_all(b"a few bytes")
                await peer.send_eof()


async def _is_cut_off(link: Link) -> None:
    with pytest.raises(LinkLost):
        await link.receive_into([memoryview(bytearray(SIZE))])
