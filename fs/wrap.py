"""The one place that every request of the kernel passes: time limit, errno, log, counters.

pyfuse3 ends the mount on any exception but ``FUSEError``. So nothing else leaves here, except
cancellation, which is the mount's own end.
"""

from __future__ import annotations

import errno
from collections.abc import Awaitable, Callable, Coroutine, Generator
from functools import wraps
from time import perf_counter
from types import coroutine
from typing import Any, ParamSpec, Protocol, TypeVar

import pyfuse3
import structlog
import trio

from fs.errors import Refused, errno_of

P = ParamSpec("P")
T = TypeVar("T")


class Meter(Protocol):
    def answered(self, request: str, number: int, seconds: float) -> None:
        """Take note of an answer; ``number``: its errno, 0 for success."""


class Readers(Protocol):
    """Those who read the kernel's requests; see ``fs.incoming``."""

    def suspended(self) -> None:
        """A request waits for something."""

    def resumed(self) -> None:
        """It is answered."""


class Guard:
    """Wraps handlers; ``counts`` are requests by handler, ``errors`` those by handler and errno."""

    def __init__(
        self,
        log: structlog.typing.FilteringBoundLogger,
        limit_s: float,
        meter: Meter | None = None,
        readers: Readers | None = None,
    ) -> None:
        self._log = log
        self._meter = meter
        self._readers = readers
        self._limit_s = limit_s
        self.counts: dict[str, int] = {}
        self.errors: dict[tuple[str, int], int] = {}
        self._running = 0
        self._running_by_name: dict[str, int] = {}
        self._idle = trio.Event()

    @property
    def running(self) -> dict[str, int]:
        """Requests that are being worked on, by handler."""
        return {name: count for name, count in self._running_by_name.items() if count}

    async def idle(self) -> None:
        """Return when no request is being worked on."""
        while self._running:
            self._idle = trio.Event()
            await self._idle.wait()

    def wrapped(
        self,
        name: str,
        handler: Callable[P, Awaitable[T]],
        *,
        limit_s: float | None = None,
        at_once: Callable[P, bool] | None = None,
    ) -> Callable[P, Awaitable[T]]:
        """Return ``handler`` with everything around it.

        ``limit_s``: of this one, not the usual. ``at_once``: says of a request that it waits for
        nothing, so that it needs no time limit, which costs more than such an answer.
        """
        limit = self._limit_s if limit_s is None else limit_s
        counts, running = self.counts, self._running_by_name
        counts[name] = running[name] = 0
        meter = self._meter

        @wraps(handler)
        async def guarded(*args: P.args, **kwargs: P.kwargs) -> T:
            began = 0.0 if meter is None else perf_counter()
            counts[name] += 1
            self._running += 1
            running[name] += 1
            try:
                if at_once is not None and at_once(*args, **kwargs):
                    answer = await handler(*args, **kwargs)
                else:
                    # What trio.fail_after does, at half its cost.
                    with trio.CancelScope(deadline=trio.current_time() + limit) as scope:
                        answer = await handler(*args, **kwargs)
                    if scope.cancelled_caught:
                        raise trio.TooSlowError
                if meter is not None:
                    meter.answered(name, 0, perf_counter() - began)
                return answer
            except pyfuse3.FUSEError as error:
                number = error.errno
            except Exception as error:  # noqa: BLE001  the mount lives on
                number = self._errno(name, error)
            finally:
                self._running -= 1
                running[name] -= 1
                if not self._running:
                    self._idle.set()
            key = (name, number)
            self.errors[key] = self.errors.get(key, 0) + 1
            if meter is not None:
                meter.answered(name, number, perf_counter() - began)
            raise pyfuse3.FUSEError(number)

        return (
            guarded if self._readers is None else wraps(handler)(_telling(guarded, self._readers))
        )

    def wrapped_quick(
        self, name: str, quick: Callable[P, T | None], guarded: Callable[P, Awaitable[T]]
    ) -> Callable[P, Awaitable[T]]:
        """Return ``guarded``, asked only when ``quick`` has no answer. ``quick`` does not wait, so
        it needs no time limit either."""
        counts = self.counts
        meter = self._meter

        @wraps(guarded)
        async def quick_first(*args: P.args, **kwargs: P.kwargs) -> T:
            began = 0.0 if meter is None else perf_counter()
            try:
                answer = quick(*args, **kwargs)
            except Exception:  # noqa: BLE001  it comes again, and is told then
                answer = None
            if answer is None:
                return await guarded(*args, **kwargs)
            counts[name] += 1
            if meter is not None:
                meter.answered(name, 0, perf_counter() - began)
            return answer

        return quick_first

    def wrapped_quiet(
        self, name: str, handler: Callable[P, Awaitable[None]]
    ) -> Callable[P, Awaitable[None]]:
        """Return ``handler`` for a request that has no answer, so that it raises nothing."""
        guarded = self.wrapped(name, handler)

        @wraps(handler)
        async def silent(*args: P.args, **kwargs: P.kwargs) -> None:
            try:
                await guarded(*args, **kwargs)
            except pyfuse3.FUSEError:
                return

        return silent

    def _errno(self, name: str, error: Exception) -> int:
        number = _errno_of_first(error)
        if isinstance(error, Refused):
            assert number is not None
            return number
        if number is None:
            self._log.error("file system request failed", request=name, exc_info=error)
            return errno.EIO
        if number in (errno.EIO, errno.ETIMEDOUT, errno.ENOSPC):
            self._log.warning(
                "file system request failed",
                request=name,
                errno=errno.errorcode.get(number, number),
                error=str(error) or type(error).__name__,
            )
        return number


def _telling(
    handler: Callable[P, Coroutine[Any, Any, T]], readers: Readers
) -> Callable[P, Awaitable[T]]:
    """Return ``handler`` so that ``readers`` are told when a request begins to wait, and when such
    a request ends. Of one that never waits, as most, they hear nothing."""

    @coroutine
    def told(*args: P.args, **kwargs: P.kwargs) -> Generator[Any, Any, T]:
        running = handler(*args, **kwargs)
        try:
            wish = running.send(None)
        except StopIteration as stop:
            answer: T = stop.value
            return answer
        readers.suspended()
        failure: BaseException | None = None
        try:
            # What ``yield from`` does, which cannot begin in the middle.
            while True:
                try:
                    got = yield wish
                except BaseException as error:  # noqa: BLE001, ASYNC103  handed on
                    failure = error
                if failure is None:
                    wish = running.send(got)
                else:
                    thrown, failure = failure, None
                    wish = running.throw(thrown)
        except StopIteration as stop:
            answer = stop.value
            return answer
        finally:
            readers.resumed()

    return told


def _errno_of_first(error: BaseException) -> int | None:
    """Of a group, the first that is known: the others follow from it."""
    if isinstance(error, BaseExceptionGroup):
        for inner in error.exceptions:
            number = _errno_of_first(inner)
            if number is not None:
                return number
        return None
    return errno_of(error)
