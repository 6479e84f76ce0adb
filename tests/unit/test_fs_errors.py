"""Every exception becomes an errno, and nothing but FUSEError leaves a handler."""

from __future__ import annotations

import errno
import inspect
import math

import pyfuse3
import pytest
import structlog
import trio
from structlog.testing import capture_logs

from engine import changes, errors
from fs.errors import ERRNO, Refused, errno_of
from fs.operations import HANDLERS
from fs.wrap import Guard


def leaves() -> list[type[Exception]]:
    found = [
        value
        for module in (errors, changes)
        for value in vars(module).values()
        if inspect.isclass(value) and issubclass(value, errors.EngineError)
    ]
    return [kind for kind in found if not any(kind in other.__bases__ for other in found)]


@pytest.mark.parametrize("leaf", leaves(), ids=lambda leaf: leaf.__name__)
def test_every_error_of_the_engine_has_an_errno(leaf: type[Exception]) -> None:
    assert leaf in ERRNO


async def outcome(error: BaseException, guard: Guard | None = None) -> int:
    async def handler() -> None:
        raise error

    guard = guard or Guard(structlog.get_logger(), 1.0)
    with pytest.raises(pyfuse3.FUSEError) as caught:
        await guard.wrapped("read", handler)()
    return caught.value.errno


async def test_errors_keep_their_errno() -> None:
    assert await outcome(Refused(errno.ENOTEMPTY)) == errno.ENOTEMPTY
    assert await outcome(pyfuse3.FUSEError(errno.ENOSYS)) == errno.ENOSYS
    with capture_logs() as entries:
        assert await outcome(errors.NoSpace()) == errno.ENOSPC
    assert [entry["log_level"] for entry in entries] == ["warning"]
    assert await outcome(ExceptionGroup("", [errors.NoSuchKey("b", "k")])) == errno.ENOENT


async def test_a_bug_is_an_io_error_with_a_traceback_in_the_log() -> None:
    with capture_logs() as entries:
        assert await outcome(ZeroDivisionError()) == errno.EIO
        assert await outcome(AssertionError("impossible")) == errno.EIO
    assert [entry["log_level"] for entry in entries] == ["error", "error"]
    assert isinstance(entries[0]["exc_info"], ZeroDivisionError)


async def test_what_is_refused_on_purpose_is_not_logged() -> None:
    with capture_logs() as entries:
        await outcome(Refused(errno.ENOENT))
    assert entries == []


async def test_a_request_that_takes_too_long_times_out(
    autojump_clock: trio.testing.MockClock,
) -> None:
    guard = Guard(structlog.get_logger(), 5.0)
    with capture_logs(), pytest.raises(pyfuse3.FUSEError) as caught:
        await guard.wrapped("read", trio.sleep_forever)()
    assert caught.value.errno == errno.ETIMEDOUT


async def test_only_a_request_that_may_wait_has_a_time_limit() -> None:
    async def limit(number: int) -> float:
        return trio.current_effective_deadline()

    guarded = Guard(structlog.get_logger(), 5.0).wrapped("flush", limit, at_once=lambda n: n == 1)
    assert await guarded(1) == math.inf
    assert await guarded(2) < math.inf


async def test_cancellation_passes() -> None:
    guard = Guard(structlog.get_logger(), 60.0)
    with trio.CancelScope() as scope:
        scope.cancel()
        await guard.wrapped("read", trio.sleep_forever)()
    assert scope.cancelled_caught
    assert guard.errors == {}


async def test_a_request_without_an_answer_raises_nothing() -> None:
    async def handler() -> None:
        raise ZeroDivisionError

    guard = Guard(structlog.get_logger(), 1.0)
    with capture_logs():
        await guard.wrapped_quiet("forget", handler)()
    assert guard.errors == {("forget", errno.EIO): 1}


async def test_idle_waits_for_running_requests() -> None:
    guard = Guard(structlog.get_logger(), 60.0)
    release, idle = trio.Event(), trio.Event()

    async def wait_idle() -> None:
        await guard.idle()
        idle.set()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(guard.wrapped("read", release.wait))
        await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(wait_idle)
        await trio.testing.wait_all_tasks_blocked()
        assert not idle.is_set()
        release.set()
    assert idle.is_set()


def test_every_handler_is_guarded() -> None:
    answered = {
        name
        for name, value in vars(pyfuse3.Operations).items()
        if inspect.iscoroutinefunction(value)
    }
    assert answered - set(HANDLERS) == {"forget", "poll"} & answered | {"stacktrace"} & answered
    assert errno_of(ValueError()) is None
