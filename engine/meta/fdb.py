"""The metadata store on FoundationDB: for any number of gateways, which keep nothing themselves.

Decision record: docs/decisions/0010-foundationdb.md.

Keys. Everything lies under the store's prefix (``FdbLocation.prefix``): ``d`` and a key of the
contract, or ``r``, a client's id (8) and a slot (2): the marker of the last commit of that slot.

Commits whose answer is lost. Every commit writes the marker of its slot, and conflicts with others
that do. When the answer is lost the next attempt reads the marker first: it is ours, and the
commit happened; or it is not, and then it never will, since it would conflict with this attempt.
One transaction at a time uses a slot, so markers are overwritten and need no collector.

Concurrency. One trio thread. Bodies of different calls interleave at their reads; FoundationDB
finds the conflicts, and a body that lost is run again. Time is bounded by the client's own timer,
which also runs when the cluster is gone.
"""

from __future__ import annotations

import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from math import inf
from typing import TypeVar

import msgspec
import trio

from engine.errors import ConfigError, EngineError, SlowDown, Unavailable
from engine.meta.body import BodySuspended
from engine.meta.fdb_configuration import Configuration
from engine.meta.fdb_library import NOT_COMMITTED, OPERATION_CANCELLED, SUCCESS, Library, load
from engine.meta.fdb_location import FdbLocation
from engine.meta.fdb_markers import Markers
from engine.meta.fdb_transaction import FdbError, FdbTransaction
from engine.meta.fdb_wakeups import Wakeups
from engine.meta.kv import LimitExceeded, MetadataFailed, ReadTransaction, Transaction, check_key

__all__ = ["FdbDatabase", "FdbLocation", "FdbOptions", "open_fdb"]

T = TypeVar("T")

_UNAVAILABLE = frozenset({1025, 1031, 1038, 1039, OPERATION_CANCELLED})
"""Cancelled, timed out, the database is locked, another cluster version."""
_LIMIT = frozenset({2101, 2102, 2103})
"""Transaction, key or value too large."""
_TOO_MANY_WATCHES = 1032

_RETRY_MS_MAX = 200
"""FoundationDB's own second is long for writers of one key who lost a few races."""

_CANCEL_AGAIN_S = 0.1
_CLEAR_MS_MAX = 1000

_DEADLINE_PART = 0.9
"""How much of a caller's time is used: it shall hear of the failure, not be cut off."""


class FdbOptions(msgspec.Struct, frozen=True, kw_only=True):
    """Bounds of an opened store."""

    timeout_s: float = 10.0
    """A call gives up after so long, or before its caller's deadline if that is sooner."""
    open_s_max: float = 10.0
    close_s_max: float = 10.0
    """How long closing waits for calls that are under way."""


@asynccontextmanager
async def open_fdb(
    location: FdbLocation, *, options: FdbOptions | None = None
) -> AsyncIterator[FdbDatabase]:
    """Open, or make, the store; the context owns its task and closes it.

    Raises:
        ConfigError: client library, cluster file or what it says is missing or wrong.
        Unavailable: the cluster does not answer.
    """
    options = options or FdbOptions()
    library, pointer = _open(location)
    wakeups = Wakeups(library)
    database = FdbDatabase(library, pointer, location.prefix, wakeups, options)
    # Futures that nobody waits for any more answer to this task, so it ends last.
    answers = trio.CancelScope(shield=True)

    async def wake_forever() -> None:
        with answers:
            await wakeups.run()

    failure: BaseException | None = None
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(wake_forever)
            try:
                await database.connect(location)
                yield database
            except BaseException as error:  # noqa: BLE001, ASYNC103  raised below, bare
                failure = error
            finally:
                await database.aclose()
                answers.cancel()
    finally:
        # Not before that task has ended: where all futures were ready at once it begins only now.
        wakeups.close()
    if failure is not None:
        raise failure


def _open(location: FdbLocation) -> tuple[Library, int]:
    try:
        location.cluster_file.read_bytes()
    except OSError as error:
        raise ConfigError(
            f"{location.cluster_file}: {error.strerror}; copy the cluster file of a machine "
            "that is in the FoundationDB cluster"
        ) from error
    library = load(location.library)
    code, pointer = library.create_database(location.cluster_file)
    if code:
        raise ConfigError(f"{location.cluster_file}: {library.describe(code)}")
    return library, pointer


class _Outdated(Exception):
    """What a body was given from memory is not what its snapshot has."""


class FdbDatabase:
    """``engine.meta.kv.Database``. Made by ``open_fdb``; for one trio thread."""

    def __init__(
        self,
        library: Library,
        pointer: int,
        prefix: bytes,
        wakeups: Wakeups,
        options: FdbOptions,
    ) -> None:
        """Take over ``pointer``, a database of the library, and ``wakeups``."""
        self._library = library
        self._pointer = pointer
        self._wakeups = wakeups
        self._options = options
        self._prefix = prefix + b"d"
        self._markers = Markers(prefix + b"r", os.urandom(8))
        self._configuration = Configuration()
        self._watching: set[int] = set()
        self._running = 0
        self._closing = False
        self._idle = trio.Event()
        self._closed = trio.Event()
        library.set_defaults(
            pointer,
            timeout_ms=max(1, int(options.timeout_s * 1000)),
            retry_ms_max=_RETRY_MS_MAX,
        )

    async def connect(self, location: FdbLocation) -> None:
        """Wait for the cluster's first answer, and clear markers that dead processes left.

        Raises: Unavailable, ConfigError.
        """
        markers = self._markers
        now_ms = time.time_ns() // 1_000_000

        async def sweep(tr: FdbTransaction) -> None:
            for key, value in await tr.get_range(markers.begin, markers.end, limit=1000):
                if markers.is_stale(value, now_ms):
                    tr.clear(key)

        try:
            with trio.fail_after(self._options.open_s_max):
                await self._transact(sweep, b"")
        except (trio.TooSlowError, Unavailable):
            raise Unavailable(
                f"FoundationDB does not answer: cluster file {location.cluster_file}, within "
                f"{self._options.open_s_max:g} s; see `fdbcli -C {location.cluster_file}`"
            ) from None

    async def read(self, body: Callable[[ReadTransaction], Awaitable[T]]) -> T:
        """Run a body that only reads, on one snapshot.

        Raises: LimitExceeded, MetadataFailed, Unavailable, SlowDown; BodySuspended is a bug.
        """
        pointer = self._begin()
        configuration: Configuration | None = self._configuration
        try:
            while True:
                transaction = FdbTransaction(self._library, pointer, self._prefix, configuration)
                try:
                    return await self._attempt(body, transaction)
                except _Outdated:
                    configuration = None
                except FdbError as error:
                    await self._recover(pointer, error.code)
        finally:
            self._end(pointer)

    async def run(self, body: Callable[[Transaction], Awaitable[T]]) -> T:
        """Run ``body`` until it commits and return its result; durable on return.

        Cancelled or timed out during the commit the outcome is not known.

        Raises:
            MetadataFailed: FoundationDB refused, and would refuse again.
            Unavailable: no commit within the time: ``timeout_s``, or what the caller has.
            SlowDown: too many calls wait.
            LimitExceeded; BodySuspended is a bug of the body.
        """
        await trio.lowlevel.checkpoint_if_cancelled()
        return await self._transact(body, self._prefix, self._configuration)

    async def _transact(
        self,
        body: Callable[[FdbTransaction], Awaitable[T]],
        prefix: bytes,
        configuration: Configuration | None = None,
    ) -> T:
        library = self._library
        lost: dict[bytes | None, T] = {}
        """Results of attempts whose commit may have happened, by marker."""
        pointer = self._begin()
        marker = self._markers.take()
        try:
            while True:
                transaction = FdbTransaction(library, pointer, prefix, configuration)
                try:
                    if lost:
                        earlier = FdbTransaction(library, pointer, b"")
                        found = await self._drive(earlier.get(marker), earlier)
                        if found in lost:
                            return lost[found]
                    result = await self._attempt(body, transaction)
                    if not transaction.has_writes:
                        return result
                    transaction.finish()
                    token = self._markers.token()
                    library.add_read_conflict(pointer, marker)
                    library.set(pointer, marker, len(marker), token, len(token))
                    code = await self._answer(library.commit(pointer))
                    if code == SUCCESS:
                        return result
                    if library.may_be_committed(code):
                        lost[token] = result
                except _Outdated:
                    configuration, code = None, NOT_COMMITTED
                except FdbError as error:
                    code = error.code
                await self._recover(pointer, code)
        finally:
            self._markers.give_back(marker)
            self._end(pointer)

    async def _attempt(
        self, body: Callable[[FdbTransaction], Awaitable[T]], transaction: FdbTransaction
    ) -> T:
        """Run a body to its end, and prove what it was given from memory.

        Raises: _Outdated, and what ``_drive`` does.
        """
        try:
            try:
                result = await self._drive(body(transaction), transaction)
            except FdbError:
                raise
            except Exception:
                # What it complains of may be what was in memory.
                await self._verify(transaction)  # noqa: ASYNC120  cancelled, nobody hears of it
                raise
            await self._verify(transaction)
        finally:
            if transaction.version_future:
                self._library.destroy(transaction.version_future)
        return result

    async def _verify(self, transaction: FdbTransaction) -> None:
        future, transaction.version_future = transaction.version_future, 0
        if not future:
            return
        # It came with the read version: it is there already if anything was read.
        await self._wakeups.wait(future)
        code, value = self._library.value(future)
        self._library.destroy(future)
        if code:
            raise FdbError(code)
        version = value or b""
        self._configuration.learn(version, transaction.learned)
        if transaction.taken_under is not None and transaction.taken_under != version:
            raise _Outdated

    async def _drive(self, awaitable: Awaitable[T], transaction: FdbTransaction) -> T:
        """Run a body to its end, and wait for the futures that it waits for.

        Raises: FdbError, BodySuspended, LimitExceeded, and what the body raises.
        """
        steps = awaitable.__await__()
        wait = self._wakeups.wait
        try:
            while True:
                future: object = steps.send(None)
                if type(future) is not int:
                    raise BodySuspended
                await wait(future)
        except StopIteration as stop:
            transaction.check()
            if transaction.error:
                raise FdbError(transaction.error) from None
            result: T = stop.value
            return result
        finally:
            transaction.close()
            # A body that was left on its way ends here; what it cleans up is its own affair.
            with suppress(Exception):
                steps.close()

    async def _answer(self, future: int) -> int:
        """Wait for a future without a value and return its code."""
        await self._wakeups.wait(future)
        code = self._library.error_of(future)
        self._library.destroy(future)
        return code

    async def _recover(self, pointer: int, code: int) -> None:
        """Make the transaction ready for another attempt, after FoundationDB's own delay.

        Raises: what ``code`` means, when another attempt is of no use.
        """
        final = await self._answer(self._library.on_error(pointer, code))
        if final:
            raise self._translate(final)

    def _translate(self, code: int) -> EngineError:
        what = self._library.describe(code)
        if self._closing and code == OPERATION_CANCELLED:
            return Unavailable("the metadata store is closed")
        if code in _UNAVAILABLE or self._library.is_retryable(code):
            return Unavailable(f"FoundationDB: {what}")
        if code in _LIMIT:
            return LimitExceeded(f"FoundationDB: {what}")
        if code == _TOO_MANY_WATCHES:
            return SlowDown(f"FoundationDB: {what}")
        return MetadataFailed(f"FoundationDB: {what}")

    def _begin(self) -> int:
        """Return a new transaction of the library, bounded in time; ``_end`` must follow."""
        if self._closing:
            raise Unavailable("the metadata store is closed")
        pointer = self._library.create_transaction(self._pointer)
        deadline = trio.current_effective_deadline()
        if deadline != inf:
            left_s = deadline - trio.current_time()
            if left_s < self._options.timeout_s:
                self._library.set_timeout(pointer, max(1, int(left_s * _DEADLINE_PART * 1000)))
        self._running += 1
        return pointer

    def _end(self, pointer: int) -> None:
        self._library.destroy_transaction(pointer)
        self._running -= 1
        if not self._running:
            self._idle.set()

    async def watch(self, key: bytes, value: bytes | None) -> None:
        """Return once the key's value differs, or may have differed, from ``value``.

        Commits of any process wake at once.

        Raises: SlowDown (too many watches), Unavailable (closed meanwhile), as ``read``.
        """
        check_key(key)
        while True:
            future = await self._start_watch(key, value)
            if future is None:
                return
            self._watching.add(future)
            code = OPERATION_CANCELLED
            try:
                code = await self._answer(future)
            finally:
                self._watching.discard(future)
            if code == SUCCESS:
                return
            if not self._library.is_retryable(code):
                raise self._translate(code)

    async def _start_watch(self, key: bytes, value: bytes | None) -> int | None:
        """Return a future that is ready when the value changes; None: it differs already."""
        library = self._library
        full_key = self._prefix + key
        pointer = self._begin()
        try:
            while True:
                transaction = FdbTransaction(library, pointer, self._prefix)
                try:
                    if await self._drive(transaction.get(key), transaction) != value:
                        await trio.lowlevel.checkpoint()
                        return None
                except FdbError as error:
                    await self._recover(pointer, error.code)
                    continue
                future = library.watch(pointer, full_key, len(full_key))
                code = OPERATION_CANCELLED
                try:
                    code = await self._answer(library.commit(pointer))
                finally:
                    if code:
                        library.destroy(future)
                if code == SUCCESS:
                    library.set_timeout(pointer, 0)
                    return future
                await self._recover(pointer, code)
        finally:
            self._end(pointer)

    async def aclose(self) -> None:
        """Finish what is under way, within ``close_s_max``, and leave the cluster. Idempotent."""
        if self._closing:
            await self._closed.wait()
            return
        self._closing = True
        with trio.CancelScope(shield=True):
            for future in self._watching:
                self._library.cancel(future)
            with trio.move_on_after(self._options.close_s_max):
                while self._running:
                    self._idle = trio.Event()
                    await self._idle.wait()
                await self._clear_markers()
            while self._running:
                # Again and again: a body may make light of a failure and read on.
                self._idle = trio.Event()
                self._wakeups.cancel_all()
                with trio.move_on_after(_CANCEL_AGAIN_S):
                    await self._idle.wait()
            await self._wakeups.settle()
            self._library.destroy_database(self._pointer)
        self._closed.set()

    async def _clear_markers(self) -> None:
        """Leave nothing of this process behind; what stays is swept by another, later."""
        if not self._markers.used:
            return
        pointer = self._library.create_transaction(self._pointer)
        try:
            begin, end = self._markers.own
            self._library.set_timeout(pointer, _CLEAR_MS_MAX)
            self._library.clear_range(pointer, begin, len(begin), end, len(end))
            await self._answer(self._library.commit(pointer))
        finally:
            self._library.destroy_transaction(pointer)
