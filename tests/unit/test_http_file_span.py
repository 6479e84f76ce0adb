"""Files that a response sends without reading them first, plain and over TLS."""

from __future__ import annotations

import os
import ssl
from collections.abc import AsyncIterator, Iterator
from functools import partial
from pathlib import Path

import pytest
import trio
import trustme

from engine.http.limits import Limits
from engine.http.message import FileSpan, Request, Response
from engine.http.residency import residency_check
from engine.http.server import open_listeners, serve
from tests.support.drives import content
from tests.support.http import RecordingLog

SIZE = 5 << 20


class Spans:
    """Gives spans of one file; closed exactly once."""

    def __init__(self, *spans: FileSpan) -> None:
        self._spans = iter(spans)
        self.closed = 0

    def __aiter__(self) -> AsyncIterator[FileSpan]:
        return self

    async def __anext__(self) -> FileSpan:
        for span in self._spans:
            return span
        raise StopAsyncIteration

    async def aclose(self) -> None:
        self.closed += 1


@pytest.fixture
def file(tmp_path: Path) -> Iterator[int]:
    path = tmp_path / "file"
    path.write_bytes(content(1, SIZE))
    fd = os.open(path, os.O_RDONLY)
    yield fd
    os.close(fd)


async def ask(
    response: Response, log: RecordingLog, *, secure: bool = False, times: int = 1
) -> list[tuple[bytes, bytes]]:
    """Return (head, body) of each answer on one connection; a body may be cut off."""

    async def handler(request: Request) -> Response:
        return response

    server_tls, client_tls = _contexts() if secure else (None, None)
    shutdown = trio.Event()
    [listener] = open_listeners("127.0.0.1", 0)
    port = listener.getsockname()[1]
    answers = []
    async with trio.open_nursery() as nursery:
        await nursery.start(
            partial(
                serve,
                handler,
                [listener],
                limits=Limits(),
                tls=server_tls,
                log=log.as_logger(),
                shutdown=shutdown,
            )
        )
        stream: trio.abc.Stream = await trio.open_tcp_stream("127.0.0.1", port)
        if client_tls is not None:
            stream = trio.SSLStream(stream, client_tls, server_hostname="localhost")
        async with stream:
            for _ in range(times):
                await stream.send_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
                answers.append(await _answer(stream))
        shutdown.set()
    return answers


async def _answer(stream: trio.abc.Stream) -> tuple[bytes, bytes]:
    data = b""
    try:
        while b"\r\n\r\n" not in data:
            data += await _some(stream)
        head, _, body = data.partition(b"\r\n\r\n")
        length = int(head.partition(b"Content-Length: ")[2].partition(b"\r\n")[0])
        parts = [body]
        while sum(map(len, parts)) < length:
            parts.append(await _some(stream))
    except (EOFError, trio.BrokenResourceError):
        return data.partition(b"\r\n\r\n")[0], b""
    return head, b"".join(parts)


async def _some(stream: trio.abc.Stream) -> bytes:
    data = bytes(await stream.receive_some(1 << 20))
    if not data:
        raise EOFError
    return data


def _contexts() -> tuple[ssl.SSLContext, ssl.SSLContext]:
    ca = trustme.CA()
    server = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    ca.issue_cert("localhost").configure_cert(server)
    client = ssl.create_default_context()
    ca.configure_trust(client)
    return server, client


@pytest.mark.parametrize("secure", [False, True])
async def test_spans_arrive_one_after_another_behind_the_head(file: int, secure: bool) -> None:
    limiter = trio.CapacityLimiter(1)
    spans = Spans(FileSpan(file, 10, SIZE - 10, limiter), FileSpan(file, 0, 10, limiter))
    log = RecordingLog()
    [(head, body)] = await ask(Response(200, body=spans, length=SIZE), log, secure=secure)
    assert head.startswith(b"HTTP/1.1 200")
    assert body == content(1, SIZE)[10:] + content(1, SIZE)[:10]
    assert spans.closed == 1
    assert log.troubles == []


@pytest.mark.parametrize("secure", [False, True])
async def test_a_file_that_ends_too_early_cuts_the_answer_off(file: int, secure: bool) -> None:
    span = FileSpan(file, SIZE - 1000, 2000, trio.CapacityLimiter(1))
    spans = Spans(span)
    log = RecordingLog()
    [(_, body)] = await ask(Response(200, body=spans, length=2000), log, secure=secure)
    assert body == b""
    assert spans.closed == 1
    assert log.troubles == ["http_file_broken"]


async def test_spans_that_do_not_make_up_the_length_cut_the_answer_off(file: int) -> None:
    limiter = trio.CapacityLimiter(1)
    for size in (999, 1001):
        log = RecordingLog()
        spans = Spans(FileSpan(file, 0, size, limiter))
        [(_, body)] = await ask(Response(200, body=spans, length=1000), log)
        assert body == b""
        assert log.troubles == ["http_response_failed"]


async def test_the_connection_serves_on_after_a_file(file: int) -> None:
    class Again(Spans):
        def __aiter__(self) -> AsyncIterator[FileSpan]:
            self._spans = iter([FileSpan(file, 0, SIZE, limiter)])
            return self

    limiter = trio.CapacityLimiter(1)
    answers = await ask(Response(200, body=Again(), length=SIZE), RecordingLog(), times=3)
    assert [body for _, body in answers] == [content(1, SIZE)] * 3


async def test_what_the_page_cache_has_is_sent_while_no_thread_is_free(file: int) -> None:
    if not residency_check()(file, 0, SIZE):
        pytest.skip("this kernel does not say what is cached")
    limiter = trio.CapacityLimiter(1)
    limiter.acquire_on_behalf_of_nowait(object())
    spans = Spans(FileSpan(file, 0, SIZE, limiter))
    with trio.fail_after(60):
        [(_, body)] = await ask(Response(200, body=spans, length=SIZE), RecordingLog())
    assert body == content(1, SIZE)


async def test_what_the_page_cache_lost_arrives_too(file: int) -> None:
    middle = SIZE // 2
    os.fdatasync(file)
    os.posix_fadvise(file, middle, middle, os.POSIX_FADV_DONTNEED)
    spans = Spans(FileSpan(file, 0, SIZE, trio.CapacityLimiter(1)))
    [(_, body)] = await ask(Response(200, body=spans, length=SIZE), RecordingLog())
    assert body == content(1, SIZE)


def test_bytes_behind_the_end_or_never_read_are_not_cached(tmp_path: Path) -> None:
    is_cached = residency_check()
    path = tmp_path / "sparse"
    with path.open("wb") as sparse:
        sparse.truncate(1 << 20)
    fd = os.open(path, os.O_RDONLY)
    try:
        assert not is_cached(fd, 0, 1 << 20)
        assert not is_cached(fd, (1 << 20) - 1, 2)
        assert not is_cached(fd, 2 << 20, 1)
    finally:
        os.close(fd)
    assert not is_cached(fd, 0, 1)
