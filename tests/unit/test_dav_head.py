"""A head read in one go says what it says when it is read line by line, or nothing."""

from __future__ import annotations

import io

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from dav.connection import HeaderReader
from dav.head import NAME_SIZE_MAX, environ_key, parse_head

PLAIN = (
    b"PUT /bucket/a%20file HTTP/1.1\r\nHost: here:9001\r\nUser-Agent: rclone/v1.60.1\r\n"
    b"content-length:  5 \r\nX-OC-Mtime: 1.5\r\nReferer: http://here:9001/"
)


def test_the_usual_head_is_read_at_once() -> None:
    head = parse_head(PLAIN)
    assert head is not None
    assert (head.method, head.target) == (b"PUT", b"/bucket/a%20file")
    assert head.headers == {
        b"Host": b"here:9001",
        b"User-Agent": b"rclone/v1.60.1",
        b"Content-Length": b"5",
        b"X-Oc-Mtime": b"1.5",
        b"Referer": b"http://here:9001/",
    }
    assert parse_head(b"GET / HTTP/1.1") is not None


@pytest.mark.parametrize(
    "block",
    [
        b"GET / HTTP/1.0",
        b"GET / HTTP/1.1 ",
        b"get / HTTP/1.1",
        b"GET  / HTTP/1.1",
        b"GET /?x HTTP/1.1",
        b"GET /#x HTTP/1.1",
        b"GET //host/x HTTP/1.1",
        b"GET http://host/x HTTP/1.1",
        b"OPTIONS * HTTP/1.1",
        b"GET /\xc3\xa4 HTTP/1.1",
        b"GET /\x7f HTTP/1.1",
        b"\r\nGET / HTTP/1.1",
        b"GET /\nA: b HTTP/1.1",
        b"GET / HTTP/1.1\nA: b",
        b"GET / HTTP/1.1\r\nA: b\nC: d",
        b"GET / HTTP/1.1\r\nA: b\0",
        b"GET / HTTP/1.1\r\nA: b\r\n folded",
        b"GET / HTTP/1.1\r\nA : b",
        b"GET / HTTP/1.1\r\n: b",
        b"GET / HTTP/1.1\r\nA",
        b"GET / HTTP/1.1\r\nA_b: c",
        b"GET / HTTP/1.1\r\nA: b\r\na: c",
        b"GET / HTTP/1.1\r\n" + b"A" * (NAME_SIZE_MAX + 1) + b": b",
        b"",
    ],
)
def test_what_needs_a_second_look_gets_it(block: bytes) -> None:
    assert parse_head(block) is None


NAMES = st.sampled_from([b"Host", b"a-b", b"A_b", b"A ", b" A", b"", b"depth", b"x" * 70])
VALUES = st.binary(max_size=8) | st.sampled_from([b" x ", b"\n", b"\r", b"a: b", b"\0"])


@given(st.lists(st.tuples(NAMES, st.sampled_from([b":", b": ", b""]), VALUES), max_size=4))
@example([(b"Host", b": ", b"x\r"), (b"a-b", b":", b"\ry")])
def test_what_it_takes_is_what_a_reader_of_lines_finds(
    fields: list[tuple[bytes, bytes, bytes]],
) -> None:
    lines = b"".join(b"\r\n" + name + colon + value for name, colon, value in fields)
    block, _, _ = (b"GET /x HTTP/1.1" + lines + b"\r\n\r\n").partition(b"\r\n\r\n")
    head = parse_head(block)
    if head is not None:
        by_line = io.BytesIO(block.partition(b"\r\n")[2] + b"\r\n\r\n")
        if not head.headers:
            by_line = io.BytesIO(b"\r\n")
        assert HeaderReader()(by_line) == head.headers


@pytest.mark.parametrize("size", [1, NAME_SIZE_MAX, NAME_SIZE_MAX + 1])
def test_a_header_has_its_name_in_the_environment(size: int) -> None:
    assert environ_key(b"x" * size) == "HTTP_" + "X" * size
    assert environ_key(b"Content-Type") == "CONTENT_TYPE"
    assert environ_key(b"If-None-Match") == "HTTP_IF_NONE_MATCH"
