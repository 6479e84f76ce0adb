"""Framing of bodies: what came is what was announced, or it is no body."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dav.body import RequestBody
from dav.wire import SocketReader
from engine.http.message import BodyBroken


@contextmanager
def body_of(sent: bytes, length: int | None, *, ends: bool = True) -> Iterator[RequestBody]:
    """A body from a connection on which ``sent`` came, and then its end, or nothing."""
    here, there = socket.socketpair()
    with here, there:
        there.sendall(sent)
        if ends:
            there.shutdown(socket.SHUT_WR)
        yield RequestBody(SocketReader(here, idle_s=0.01), length, None)


def chunked(pieces: list[bytes]) -> bytes:
    return b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n\r\n"


@given(pieces=st.lists(st.binary(min_size=1, max_size=300), max_size=6), step=st.integers(1, 500))
def test_chunks_are_joined_whatever_the_buffers(pieces: list[bytes], step: int) -> None:
    with body_of(chunked(pieces) + b"GET", None, ends=False) as body:
        got = b""
        while part := body.read(step):
            got += part
        assert got == b"".join(pieces)
        assert body.finished
        assert body.received == len(got)


@given(data=st.binary(max_size=300), cut=st.integers(0, 400))
def test_a_body_that_breaks_off_is_none(data: bytes, cut: int) -> None:
    whole = chunked([data[:100], data[100:]] if len(data) > 100 else [data] if data else [])
    for sent, length in ((data, len(data)), (whole, None)):
        part = sent[:cut]
        with body_of(part, length) as body:
            if len(part) == len(sent):
                assert body.read() == data
            else:
                with pytest.raises(BodyBroken, match=r"disconnected|framing"):
                    body.read()


def test_a_silent_client_is_a_timeout() -> None:
    for length in (5, None):
        with (
            body_of(b"1", length, ends=False) as body,
            pytest.raises(BodyBroken, match="timeout"),
        ):
            body.read()


@pytest.mark.parametrize(
    "sent",
    [
        b"x\r\n",
        b"-1\r\n",
        b"+1\r\nx\r\n",
        b"0x1\r\nx\r\n",
        b"1\nx\r\n",
        b"1\r\nxy\r\n",
        b"\r\n",
        b"fffffffffffffffff\r\n",
        b"1\r\nx\r\n0\r\n" + b"a: b\r\n" * 4000,
    ],
)
def test_broken_chunks(sent: bytes) -> None:
    with body_of(sent, None) as body, pytest.raises(BodyBroken, match="framing"):
        body.read()


def test_extensions_and_trailers_are_skipped() -> None:
    with body_of(b"1;x=y\r\na\r\n0\r\nTrailer: x\r\n\r\nGET", None) as body:
        assert body.read() == b"a"


def test_nothing_is_asked_for_before_the_first_pull() -> None:
    told: list[str] = []
    here, there = socket.socketpair()
    with here, there:
        there.sendall(b"xyz")
        body = RequestBody(SocketReader(here, idle_s=1), 3, lambda: told.append("continue"))
        assert body.waiting
        assert told == []
        assert body.read(1) == b"x"
        assert body.read() == b"yz"
        assert told == ["continue"]


def test_no_byte_behind_the_body_is_taken() -> None:
    here, there = socket.socketpair()
    with here, there:
        there.sendall(b"abcGET / HTTP/1.1\r\n")
        reader = SocketReader(here, idle_s=1)
        assert RequestBody(reader, 3, None).read() == b"abc"
        assert reader.readline() == b"GET / HTTP/1.1\r\n"
