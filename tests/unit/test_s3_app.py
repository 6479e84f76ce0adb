"""The handler's one place for errors: what is answered, what is logged, what is observed."""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable, Callable
from typing import Any, cast
from xml.etree import ElementTree

import pytest
import trio
import trio.testing

from engine import errors
from engine.engine import Engine
from engine.http.message import BodyBroken, Request, Response
from engine.meta.kv import MetadataFailed
from engine.opening import WallClock
from s3.app import S3Config, make_handler
from s3.auth.credentials import RootCredential
from s3.auth.presign import sign_request
from tests.support.s3 import ROOT, Log

CLOCK = WallClock()


class BrokenBody:
    length: int | None = 10

    def __init__(self, reason: str) -> None:
        self._reason = reason

    async def readinto(self, buffer: memoryview) -> int:
        raise BodyBroken(self._reason)


class FailingEngine:
    """An engine every one of whose operations does the same."""

    def __init__(self, act: Callable[[], Awaitable[Any]]) -> None:
        self._act = act

    async def head(self, *_: object, **__: object) -> Any:
        return await self._act()

    async def put(self, _bucket: str, _key: str, source: Any, **__: object) -> Any:
        await source.readinto(memoryview(bytearray(10)))


class Recorder:
    def __init__(self) -> None:
        self.told: list[tuple[str, int, str]] = []

    def answered(self, operation: str, status: int, code: str, seconds: float) -> None:
        assert seconds >= 0
        self.told.append((operation, status, code))

    def moved(self, received: int, sent: int) -> None:
        assert received >= 0
        assert sent >= 0


def request(method: str, broken: str = "disconnected") -> Request:
    headers, _ = sign_request(
        method,
        b"/bucket/key",
        b"",
        [(b"host", b"h"), (b"content-length", b"10")],
        credential=ROOT,
        region="us-east-1",
        at_ms=CLOCK(),
        payload=hashlib.sha256(b"").hexdigest().encode(),
    )
    return Request(method, b"/bucket/key", b"", headers, BrokenBody(broken), "peer", False)


def handler_over(
    act: Callable[[], Awaitable[Any]], log: Log, recorder: Recorder | None = None
) -> Callable[[Request], Awaitable[Response]]:
    config = S3Config(credentials=RootCredential(ROOT), owner_id="o", owner_name="n", clock=CLOCK)
    engine = cast(Engine, FailingEngine(act))
    return make_handler(engine, config, log=log.as_logger(), observer=recorder)


def raising(error: BaseException) -> Callable[[], Awaitable[Any]]:
    async def act() -> Any:
        raise error

    return act


async def test_an_unknown_exception_is_logged_once_and_becomes_500() -> None:
    log, recorder = Log(), Recorder()
    error = ZeroDivisionError("secret detail")
    answer = await handler_over(raising(error), log, recorder)(request("HEAD"))
    headers = dict(answer.headers)
    assert (answer.status, answer.body) == (500, b"")
    ((event, fields),) = log.troubles
    assert event == "s3.request_failed"
    assert fields["exc_info"] is error
    assert fields["request_id"].encode() == headers[b"x-amz-request-id"]
    assert recorder.told == [("HeadObject", 500, "InternalError")]


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (errors.Corrupt("chunk"), 500),
        (MetadataFailed("disk"), 500),
        (errors.Unavailable("nodes"), 503),
        (errors.SlowDown(), 503),
        (errors.NoSpace(), 507),
    ],
)
async def test_faults_of_the_store_are_logged(error: errors.StorageError, status: int) -> None:
    log = Log()
    answer = await handler_over(raising(error), log)(request("HEAD"))
    assert answer.status == status
    ((event, fields),) = log.troubles
    assert (event, fields["kind"]) == ("s3.storage_failed", type(error).__name__)
    assert (fields["exc_info"] is not None) == (status == 500)


async def test_faults_of_the_client_are_not_logged() -> None:
    log = Log()
    answer = await handler_over(raising(errors.NoSuchKey("b", "k")), log)(request("HEAD"))
    assert (answer.status, log.troubles) == (404, [])


@pytest.mark.parametrize(
    ("reason", "code"),
    [
        ("disconnected", "IncompleteBody"),
        ("timeout", "RequestTimeout"),
        ("framing", "InvalidRequest"),
    ],
)
async def test_a_broken_body_ends_the_connection(reason: str, code: str) -> None:
    log = Log()
    answer = await handler_over(raising(AssertionError()), log)(request("PUT", reason))
    assert answer.close
    assert ElementTree.fromstring(bytes(cast(bytes, answer.body))).findtext("Code") == code
    assert log.troubles == []


async def test_cancellation_passes() -> None:
    handler = handler_over(trio.sleep_forever, Log())
    with trio.CancelScope() as scope:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(handler, request("HEAD"))
            await trio.testing.wait_all_tasks_blocked()
            scope.cancel()
    assert scope.cancelled_caught


async def test_request_ids_differ() -> None:
    handler = handler_over(raising(errors.NoSuchKey("b", "k")), Log())
    answers = [await handler(request("HEAD")) for _ in range(3)]
    assert len({dict(answer.headers)[b"x-amz-request-id"] for answer in answers}) == 3
