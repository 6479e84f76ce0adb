"""The head of a request: what is understood, and what is refused with which status."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.http.head import BadHead, locate_head, parse_head
from engine.http.limits import Limits
from engine.http.message import Response
from engine.http.response import DateHeader, encode_head

LIMITS = Limits()
HOST = b"GET /x HTTP/1.1\r\nHost: a\r\n"


def status_of(data: bytes, limits: Limits = LIMITS) -> int:
    with pytest.raises(BadHead) as caught:
        parse_head(data, limits)
    return caught.value.status


def test_head_is_taken_apart() -> None:
    head = parse_head(
        b"PUT /b/k%20x?a=1&b HTTP/1.1\r\nHost: h:1\r\nX-Amz-Meta-A:  v w \t\r\nEmpty:\r\n"
        b"Content-Length: 12\r\nExpect: 100-Continue\r\n\r\n",
        LIMITS,
    )
    assert (head.method, head.path, head.query) == ("PUT", b"/b/k%20x", b"a=1&b")
    assert head.headers[:3] == [(b"host", b"h:1"), (b"x-amz-meta-a", b"v w"), (b"empty", b"")]
    assert (head.length, head.expect, head.keep_alive) == (12, b"100-continue", True)


def test_any_token_is_a_method() -> None:
    assert parse_head(b"BREW /x HTTP/1.1\r\nHost: a\r\n\r\n", LIMITS).method == "BREW"
    assert parse_head(b"get /x HTTP/1.1\r\nHost: a\r\n\r\n", LIMITS).method == "get"
    assert status_of(b"G(T /x HTTP/1.1\r\nHost: a\r\n\r\n") == 400


def test_absolute_target_overrides_host() -> None:
    head = parse_head(b"GET http://b.example:9/k?q HTTP/1.1\r\nHost: other\r\n\r\n", LIMITS)
    assert (head.path, head.query) == (b"/k", b"q")
    assert head.headers == [(b"host", b"b.example:9")]
    assert parse_head(b"GET http://b HTTP/1.1\r\nHost: b\r\n\r\n", LIMITS).path == b"/"


def test_upgrade_is_ignored() -> None:
    extra = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nContent-Length: 4\r\n\r\n"
    head = parse_head(b"PUT /x HTTP/1.1\r\nHost: a\r\n" + extra, LIMITS)
    assert (head.length, head.keep_alive) == (4, True)


def test_connection_close_and_http10_end_the_connection() -> None:
    assert not parse_head(HOST + b"Connection: foo, Close\r\n\r\n", LIMITS).keep_alive
    head = parse_head(b"GET /x HTTP/1.0\r\nConnection: keep-alive\r\n\r\n", LIMITS)
    assert (head.http11, head.keep_alive) == (False, False)


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"GET /x\r\n\r\n", 400),
        (b"GET /x\nX: HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        (b"GET  /x HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        (b"GET /x HTTP/2.0\r\nHost: a\r\n\r\n", 505),
        (b"PRI * HTTP/2.0\r\n\r\n", 505),
        (b"GET /x#y HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        (b"GET * HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        (b"GET /\x00 HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        (b"CONNECT a:1 HTTP/1.1\r\nHost: a\r\n\r\n", 501),
        (b"GET /x HTTP/1.1\r\n\r\n", 400),
        (HOST + b"Host: b\r\n\r\n", 400),
        (HOST + b"A : b\r\n\r\n", 400),
        (HOST + b"A: b\r\n folded\r\n\r\n", 400),
        (HOST + b"A: b\nC: d\r\n\r\n", 400),
        (HOST + b"A: b\rC: d\r\n\r\n", 400),
        (HOST + b"A: b\n\nGET /evil HTTP/1.1\r\n\r\n", 400),
        (HOST + b"A: \x01\r\n\r\n", 400),
        (HOST + b"nocolon\r\n\r\n", 400),
        (HOST + b"Content-Length: 5\r\nContent-Length: 5\r\n\r\n", 400),
        (HOST + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n", 400),
        (HOST + b"Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n", 400),
        (HOST + b"Content-Length: +5\r\n\r\n", 400),
        (HOST + b"Content-Length: 5,5\r\n\r\n", 400),
        (HOST + b"Content-Length: 0x5\r\n\r\n", 400),
        (HOST + b"Content-Length: \r\n\r\n", 400),
        (HOST + b"Content-Length: 18446744073709551616\r\n\r\n", 400),
        (HOST + b"Transfer-Encoding: gzip\r\n\r\n", 400),
        (HOST + b"Transfer-Encoding: gzip, chunked\r\n\r\n", 501),
        (HOST + b"Transfer-Encoding: xchunked\r\n\r\n", 400),
        (HOST + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n", 400),
        (HOST + b"Transfer-Encoding:\x0bchunked\r\n\r\n", 400),
        (b"POST /x HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n", 400),
        (HOST + b"Expect: magic\r\n\r\n", 417),
        (b"BREW /x HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n", 400),
    ],
)
def test_ambiguous_or_malformed_head_is_refused(data: bytes, status: int) -> None:
    assert status_of(data) == status


def test_header_count_and_bytes_are_limited() -> None:
    limits = Limits(header_count=3, header_bytes=100)
    assert parse_head(HOST + b"A: 1\r\nB: 2\r\n\r\n", limits).headers
    assert status_of(HOST + b"A: 1\r\nB: 2\r\nC: 3\r\n\r\n", limits) == 431
    assert status_of(HOST + b"A: " + b"x" * 100 + b"\r\n\r\n", limits) == 431


def test_place_of_head_skips_empty_lines() -> None:
    data = b"\r\n\r\n" + HOST + b"\r\nrest"
    place = locate_head(data, LIMITS)
    assert place is not None
    assert data[slice(*place)] == HOST + b"\r\n"


def test_long_line_is_414_and_long_headers_431_before_they_end() -> None:
    limits = Limits(request_line=50, header_bytes=50)
    for data, status in [
        (b"GET /" + b"x" * 50, 414),
        (b"GET /" + b"x" * 50 + b" HTTP/1.1\r\n\r\n", 414),
        (b"GET / HTTP/1.1\r\nA: " + b"x" * 90, 431),
        (b"GET / HTTP/1.1\r\nA: b\n\n", 400),
        (b"\x16\x03\x01", 400),
        (b"\r\n" * 40, 400),
    ]:
        with pytest.raises(BadHead) as caught:
            locate_head(data, limits)
        assert caught.value.status == status, data


@given(
    pieces=st.lists(
        st.sampled_from(
            [b"\r\n", b"\n", b"\r", b"GET / HTTP/1.1", b"A: b", b"x" * 30, b"\0", b" ", b"\r\n\r\n"]
        ),
        max_size=12,
    )
)
def test_refusal_of_a_prefix_is_the_refusal_of_the_whole(pieces: list[bytes]) -> None:
    limits = Limits(request_line=60, header_bytes=60)
    data = b"".join(pieces)

    def outcome(part: bytes) -> object:
        try:
            place = locate_head(part, limits)
            if place is None:
                return None
            parse_head(part[slice(*place)], limits)
        except BadHead as bad:
            return bad.status
        return place

    outcomes = [outcome(data[:end]) for end in range(len(data) + 1)]
    decided = [found for found in outcomes if found is not None]
    assert len(set(decided)) <= 1
    assert outcomes == [None] * (len(outcomes) - len(decided)) + decided


@pytest.mark.parametrize("value", [b"a\r\nSet-Cookie: x", b"a\nb", b"a\rb", b"a\0b"])
def test_response_header_cannot_smuggle_a_line(value: bytes) -> None:
    with pytest.raises(ValueError, match="line break"):
        encode_head(
            Response(200, [(b"X", value)]),
            0,
            chunked=False,
            close=False,
            common=DateHeader(lambda: 0.0).lines(),
        )


def test_date_changes_with_the_second() -> None:
    now = [0.0]
    date = DateHeader(lambda: now[0])
    assert b"Thu, 01 Jan 1970 00:00:00 GMT" in date.lines()
    now[0] = 1.5
    assert b"Thu, 01 Jan 1970 00:00:01 GMT" in date.lines()
