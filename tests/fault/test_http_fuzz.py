"""Whatever bytes come, however they are cut: no bug shows, the answer is the same, and it ends."""

from __future__ import annotations

from itertools import pairwise

import trio
import trio.testing
from hypothesis import example, given, settings
from hypothesis import strategies as st
from trio.testing import MockClock

from engine.http.body import CONTINUE
from engine.http.limits import Limits
from tests.support.http import echo, memory_server

LIMITS = Limits(request_line=300, header_bytes=500, header_count=10, drain=500)

SEEDS = [
    b"GET /a?b=c HTTP/1.1\r\nHost: h\r\nX: y\r\n\r\n",
    b"PUT /k HTTP/1.1\r\nHost: h\r\nContent-Length: 10\r\n\r\n0123456789",
    b"PUT /k HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n"
    b"3\r\nabc\r\n1f;x=y\r\n0123456789012345678901234567890\r\n0\r\nT: v\r\n\r\n",
    b"PUT /k HTTP/1.1\r\nHost: h\r\nExpect: 100-continue\r\nContent-Length: 3\r\n\r\nabc",
    b"HEAD / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n",
    b"POST http://x/y HTTP/1.1\r\nHost: h\r\nConnection: close\r\nContent-Length: 0\r\n\r\n",
]
SCRAPS = [
    b"\r\n", b"\n", b"\r", b"\0", b" ", b":", b"\r\n\r\n", b"Content-Length: 1\r\n", b"chunked",
    b"Transfer-Encoding: chunked\r\n", b"HTTP/2.0", b"-", b"0", b"f" * 20, b"\xff", b"x" * 400,
]  # fmt: skip


@st.composite
def mutated(draw: st.DrawFn) -> bytes:
    data = b"".join(draw(st.lists(st.sampled_from(SEEDS), min_size=1, max_size=3)))
    for _ in range(draw(st.integers(0, 3))):
        at = draw(st.integers(0, len(data)))
        cut = draw(st.sampled_from([0, 0, 1, 2, 10]))
        scrap = draw(st.sampled_from(SCRAPS) | st.binary(max_size=4) | st.just(b""))
        data = data[:at] + scrap + data[at + cut :]
    return data


def outcome(pieces: list[bytes]) -> bytes:
    """Return all that the server sent on a connection that brought these pieces, then the end."""

    async def main() -> bytes:
        with trio.fail_after(10_000):
            async with memory_server(echo, limits=LIMITS) as server:
                try:
                    for piece in pieces:
                        await server.client.send(piece)
                        await trio.testing.wait_all_tasks_blocked()
                    await server.client.end()
                except (trio.BrokenResourceError, trio.ClosedResourceError):
                    pass  # the server has had enough; what it said still counts
                said = await server.client.rest()
                await trio.testing.wait_all_tasks_blocked()
                assert server.transport.closed
            assert server.log.troubles == []
            return said

    return trio.run(main, clock=MockClock(autojump_threshold=0))


@settings(max_examples=400, deadline=None)
@given(
    data=mutated() | st.binary(max_size=200),
    cuts=st.lists(st.integers(0, 2000), max_size=6),
)
@example(data=b"GET /x\nX: HTTP/1.1\r\nHost: h\r\n\r\n", cuts=[10])
@example(data=b"POST http://x/y:\nHost: h\r\n\r\n", cuts=[20])
def test_answers_do_not_depend_on_how_the_bytes_are_cut(data: bytes, cuts: list[int]) -> None:
    edges = sorted({0, len(data), *(cut % (len(data) + 1) for cut in cuts)})
    pieces = [data[start:end] for start, end in pairwise(edges)]
    # Whether 100 Continue is sent depends, rightly, on whether the body was there already.
    assert outcome(pieces).replace(CONTINUE, b"") == outcome([data]).replace(CONTINUE, b"")


def test_byte_by_byte_is_understood() -> None:
    data = b"".join(SEEDS[:4])
    said = outcome([data[at : at + 1] for at in range(len(data))])
    assert said.replace(CONTINUE, b"") == outcome([data])
    assert said.count(b"HTTP/1.1 200 OK") == 4
