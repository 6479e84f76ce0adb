"""The committer: many transactions, one SQLite transaction, one fsync.

Concurrency. ``submit`` queues a body; one task (``commit_forever``) takes the write lock, runs
what is queued, with a savepoint for each body, and has the thread of its ``Seat`` commit and
unlock. While that thread works it is the only user of the writing connection: the task waits for
it, and nobody else touches it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import apsw
import outcome
import trio

from engine.errors import NoSpace, SlowDown, StorageError, Unavailable
from engine.meta.body import drive
from engine.meta.kv import MetadataFailed, Transaction
from engine.meta.sqlite_file import PAGE_SIZE, SET, Reserve, open_writer, translate
from engine.meta.sqlite_lock import WriteLock
from engine.meta.sqlite_options import MIB, EmbeddedOptions
from engine.meta.sqlite_thread import Seat
from engine.meta.sqlite_transaction import COUNTER, EmbeddedTransaction, ReserveTransaction
from engine.meta.sqlite_watch import Watches

T = TypeVar("T")


class _Pending:
    """One call of ``run``. ``task`` is None when it was cancelled or has its answer."""

    __slots__ = ("body", "result", "task", "touched")

    def __init__(
        self, body: Callable[[Transaction], Awaitable[Any]], task: trio.lowlevel.Task
    ) -> None:
        self.body = body
        self.task: trio.lowlevel.Task | None = task
        self.result: outcome.Outcome[Any] = outcome.Value(None)
        self.touched: list[tuple[bytes, bytes | None]] = []

    def cancel(self, _: object) -> trio.lowlevel.Abort:
        self.task = None
        return trio.lowlevel.Abort.SUCCEEDED

    def answer(self) -> None:
        if self.task is not None:
            trio.lowlevel.reschedule(self.task, self.result)
            self.task = None

    def fail(self, error: StorageError) -> None:
        self.result = outcome.Error(error)
        self.answer()


@dataclass(slots=True)
class _Batch:
    members: list[_Pending] = field(default_factory=list)
    size: int = 0
    writes: bool = False
    version: bytes = b""
    """The commit version of its versionstamps, once one is needed."""
    stamps: int = 0
    error: apsw.Error | None = None
    """What ended SQLite's transaction."""


class Committer:
    """The writing half of the store. ``commit_forever`` must run in a nursery of the owner."""

    def __init__(
        self,
        path: Path,
        vfs: str,
        options: EmbeddedOptions,
        *,
        lock: WriteLock,
        reserve: Reserve,
        watches: Watches,
    ) -> None:
        """Take over ``lock`` (not held) and ``reserve``; ``watches`` are told of commits.

        Raises: apsw.Error.
        """
        self._path = path
        self._options = options
        self._lock = lock
        self._reserve = reserve
        self._watches = watches
        self._writer = open_writer(path, vfs, cache_size=options.cache_size)
        self._write = self._writer.cursor().execute
        self._writer.set_wal_hook(self._note_log)
        self._log_pages = 0
        self._checkpointed_pages = 0
        self._seat = Seat("metadata commit")
        self._queue: deque[_Pending] = deque()
        self._work = trio.Event()
        self._failure = ""
        self._closing = False
        self._scope = trio.CancelScope(shield=True)
        self._done = trio.Event()
        self.in_body = False
        """A body runs just now."""

    async def submit(self, body: Callable[[Transaction], Awaitable[T]]) -> T:
        """Run ``body`` in the next batch and return its result once that is on stable storage.

        Raises: MetadataFailed, NoSpace, SlowDown, Unavailable, LimitExceeded, BodySuspended.
        """
        if self._failure:
            raise MetadataFailed(self._failure)
        if len(self._queue) >= self._options.queue_max:
            raise SlowDown("too many transactions wait")
        pending = _Pending(body, trio.lowlevel.current_task())
        self._queue.append(pending)
        self._work.set()
        result: T = await trio.lowlevel.wait_task_rescheduled(pending.cancel)
        return result

    @trio.lowlevel.enable_ki_protection
    async def commit_forever(self) -> None:
        """Commit what is queued, until the store is closed."""
        try:
            with self._scope:
                while self._queue or not self._closing:
                    if not self._queue:
                        self._work = trio.Event()
                        await self._work.wait()
                    # Those whom the last batch woke get to queue up for this one.
                    await trio.lowlevel.checkpoint()
                    if self._failure:
                        self._fail_queue(partial(MetadataFailed, self._failure))
                    elif await self._acquire():
                        await self._commit_queue()
        finally:
            self._done.set()

    async def aclose(self) -> None:
        """Finish what is queued, within ``close_s_max``, and close the files.

        Call it once, shielded, when nobody submits any more.
        """
        self._closing = True
        self._work.set()
        with trio.move_on_after(self._options.close_s_max):
            await self._done.wait()
        self._scope.cancel()
        await self._done.wait()
        self._fail_queue(partial(Unavailable, "the metadata store is closed"))
        await self._seat.run(self._close_files)
        self._seat.close()

    async def _acquire(self) -> bool:
        """Take the write lock; when that takes too long, fail all that wait and return False."""
        if self._lock.acquire_nowait():
            return True
        with trio.move_on_after(self._options.lock_s_max):
            try:
                return await self._seat.run_abandonable(self._lock.acquire)
            except OSError:
                pass
            except trio.Cancelled:
                # The thread may be stuck for good: leave it and its lock to themselves.
                self._lock.abandon()
                self._seat.close()
                self._lock = WriteLock(self._path)
                self._seat = Seat("metadata commit")
                raise
        self._fail_queue(partial(Unavailable, "another process keeps the metadata store locked"))
        return False

    async def _commit_queue(self) -> None:
        """Commit one batch from the queue. Takes over the held write lock, and releases it."""
        scarce = self._reserve.released and not self._reserve.restore(
            self._options.free_space(self._path)
        )
        batch = await self._attempt(self._queue, scarce=scarce)
        if isinstance(batch.error, apsw.FullError) and not scarce:
            # Nothing of the batch is stored. With the reserve's space, let through what deletes.
            self._reserve.release()
            again = deque(batch.members)
            batch = await self._attempt(again, scarce=True)
            self._queue.extendleft(reversed(again))
        if batch.error is None:
            return
        self._lock.release()
        if not isinstance(batch.error, apsw.FullError | apsw.BusyError):
            # What a failed write or sync left on disk is unknown, and asking the kernel again
            # would only bring a false yes (docs/decisions/0002).
            self._failure = f"{type(batch.error).__name__}: {batch.error}"
        for pending in batch.members:
            pending.fail(translate(batch.error))

    async def _attempt(self, queue: deque[_Pending], *, scarce: bool) -> _Batch:
        """Run bodies from the queue's head and commit them.

        Without ``error`` the members have their answers and the lock is released. With it nothing
        is stored, the lock is still held, and the members wait.
        """
        batch = _Batch()
        batch.error = await self._begin()
        if batch.error is None:
            self._run_bodies(batch, queue, ReserveTransaction if scarce else EmbeddedTransaction)
        elif queue:
            batch.members = list(queue)
            queue.clear()
        if batch.error is None:
            batch.error = await self._seat_or_here(batch)
        if batch.error is None:
            self._answer(batch)
        elif self._writer.in_transaction:
            with suppress(apsw.Error):
                self._write("ROLLBACK")
        return batch

    async def _begin(self) -> apsw.Error | None:
        """Begin SQLite's transaction. Its own lock is free unless a foreign program has it."""
        try:
            self._write("BEGIN IMMEDIATE")
        except apsw.BusyError:
            return await self._seat.run(self._begin_patiently)
        except apsw.Error as error:
            return error
        return None

    def _begin_patiently(self) -> apsw.Error | None:
        self._writer.set_busy_timeout(int(self._options.lock_s_max * 1000))
        try:
            self._write("BEGIN IMMEDIATE")
        except apsw.Error as error:
            return error
        finally:
            self._writer.set_busy_timeout(0)
        return None

    def _run_bodies(
        self, batch: _Batch, queue: deque[_Pending], kind: type[EmbeddedTransaction]
    ) -> None:
        options = self._options
        watched = self._watches.watched if self._watches else None
        end = options.clock() + options.batch_s_max
        while queue and batch.error is None:
            pending = queue.popleft()
            if pending.task is None:
                continue
            transaction = kind(self._write, options.clock, watched)
            batch.members.append(pending)
            pending.result = outcome.capture(self._run_body, pending.body, transaction, batch)
            if isinstance(pending.result, outcome.Error):
                transaction.undo()
            else:
                pending.touched = transaction.touched
                batch.writes = batch.writes or transaction.writes
            batch.error = transaction.broken
            batch.size += transaction.size
            transaction.close()
            if (
                len(batch.members) >= options.batch_count_max
                or batch.size >= options.batch_size_max
                or options.clock() >= end
            ):
                break
        if batch.version and batch.error is None:
            try:
                self._write(SET, (COUNTER, batch.version))
            except apsw.Error as error:
                batch.error = error

    def _run_body(
        self,
        body: Callable[[Transaction], Awaitable[Any]],
        transaction: EmbeddedTransaction,
        batch: _Batch,
    ) -> object:
        self.in_body = True
        try:
            result = drive(body(transaction))
        finally:
            self.in_body = False
        if isinstance(transaction, ReserveTransaction) and not transaction.fits:
            raise NoSpace("the metadata store's disk is full")
        stamp = b""
        if transaction.stamped:
            if not batch.version:
                last = transaction.system_value(COUNTER) or b""
                batch.version = (int.from_bytes(last, "big") + 1).to_bytes(8, "big")
            stamp = batch.version + batch.stamps.to_bytes(2, "big")
            batch.stamps += 1
        transaction.finish(stamp)
        return result

    async def _seat_or_here(self, batch: _Batch) -> apsw.Error | None:
        """Commit: in the thread, or here when nothing was written and so nothing is synced."""
        if batch.writes:
            return await self._seat.run(partial(self._commit, batch))
        try:
            self._write("COMMIT")
        except apsw.Error as error:
            return error
        self._lock.release()
        return None

    def _answer(self, batch: _Batch) -> None:
        for pending in batch.members:
            for begin, end in pending.touched:
                self._watches.changed(begin, end)
            pending.touched = []
            pending.answer()

    def _fail_queue(self, error: Callable[[], StorageError]) -> None:
        while self._queue:
            self._queue.popleft().fail(error())

    # In the seat's thread.

    def _commit(self, batch: _Batch) -> apsw.Error | None:
        """Commit durably, unlock, and now and then copy the log into the database."""
        try:
            self._write("COMMIT")
        except apsw.Error as error:
            return error
        if self._log_pages < self._checkpointed_pages:
            self._checkpointed_pages = 0  # The log was begun anew.
        if self._log_pages - self._checkpointed_pages >= self._checkpoint_pages():
            # The batch is durable: its callers need not wait for this.
            self._seat.call_soon(partial(self._answer, batch))
            self._checkpoint()
        self._lock.release()
        return None

    def _checkpoint_pages(self) -> int:
        # A log that begins anew soon needs no more space from a disk that is full.
        return MIB // PAGE_SIZE if self._reserve.released else self._options.checkpoint_pages

    def _checkpoint(self) -> None:
        """Copy the log into the database; with the write lock, so that nobody writes meanwhile."""
        self._checkpointed_pages = self._log_pages
        mode = apsw.SQLITE_CHECKPOINT_PASSIVE
        if self._log_pages >= self._options.log_pages_max:
            mode = apsw.SQLITE_CHECKPOINT_TRUNCATE
        self._writer.set_busy_timeout(20)
        try:
            self._writer.wal_checkpoint(mode=mode)
        except (apsw.BusyError, apsw.FullError):
            return  # Nothing is lost: the log still has it all. The next one may do better.
        except apsw.Error as error:
            self._failure = f"{type(error).__name__}: {error}"
        finally:
            self._writer.set_busy_timeout(0)

    def _note_log(self, _connection: apsw.Connection, _name: str, pages: int) -> int:
        self._log_pages = pages
        return apsw.SQLITE_OK

    def _close_files(self) -> None:
        if not self._lock.acquire_nowait() or self._failure:
            # SQLite itself copies the log when the last connection goes; not after a failure,
            # and not while somebody else writes.
            self._writer.config(apsw.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 1)
        else:
            with suppress(apsw.Error):
                self._writer.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_TRUNCATE)
        with suppress(apsw.Error):
            self._writer.close()
        self._lock.close()
        self._reserve.close()
