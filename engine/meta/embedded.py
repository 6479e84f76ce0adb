"""The metadata store on one machine: SQLite, used by several processes at once.

Decision record: docs/decisions/0002-embedded-metadata-store.md.

Concurrency. Bodies never suspend, so they run one after another in the trio thread: readers on
one connection, writers on another. ``run`` puts its body in a queue; one task, the committer,
takes the write lock (``sqlite_lock``), runs what is queued inside one SQLite transaction with a
savepoint for each body, and has a thread commit it with one fsync. While that thread works it is
the only user of the writing connection: the committer waits for it, and nobody else touches it.
Reads go on meanwhile and see what was committed before.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import apsw
import outcome
import trio

from engine.errors import ConfigError, NoSpace, SlowDown, StorageError, Unavailable
from engine.meta.body import BodySuspended, drive
from engine.meta.kv import MetadataFailed, ReadTransaction, Transaction, check_key
from engine.meta.sqlite_file import (
    PAGE_SIZE,
    SET,
    Reserve,
    free_space,
    open_reader,
    open_writer,
    prepare,
    translate,
)
from engine.meta.sqlite_lock import WriteLock
from engine.meta.sqlite_thread import Seat
from engine.meta.sqlite_transaction import (
    COUNTER,
    EmbeddedReadTransaction,
    EmbeddedTransaction,
    ReserveTransaction,
)
from engine.meta.sqlite_watch import Watches

T = TypeVar("T")

MIB = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbeddedOptions:
    """Bounds of one opened store. The defaults suit a serving process."""

    queue_max: int = 4096
    """Bodies that wait; more are refused with SlowDown."""
    batch_count_max: int = 256
    batch_size_max: int = 4 * MIB
    """Bytes written in one commit, exceeded by at most one transaction."""
    batch_s_max: float = 0.02
    """How long bodies may hold the trio thread before what they did is committed."""
    lock_s_max: float = 5.0
    """How long other processes may keep the write lock before callers get Unavailable."""
    close_s_max: float = 10.0
    """How long ``aclose`` waits for transactions that are queued."""
    checkpoint_pages: int = 1000
    """The log is copied into the database after so many pages of 8 KiB."""
    log_pages_max: int = 16_000
    """Beyond this the log's file is cut, waiting for readers for a moment."""
    cache_size: int = 24 * MIB
    """Bytes of page cache, for readers and for the writer each."""
    reserve_size: int = 16 * MIB
    """Disk space kept so that deletes work when the disk is full; 0 for none."""
    poll_s: float = 0.05
    """How often watches look for commits of other processes."""
    clock: Callable[[], float] = time.monotonic
    """Seconds; measures transactions and batches."""
    free_space: Callable[[Path], int] = free_space
    """Bytes free on the file system of a path."""


@asynccontextmanager
async def open_embedded(
    path: Path, *, vfs: str = "", options: EmbeddedOptions | None = None
) -> AsyncIterator[EmbeddedDatabase]:
    """Open, or make, the store in the file ``path``; the context owns its tasks and closes it.

    Beside it lie SQLite's ``-wal`` and ``-shm``, and our ``-lock``, ``-turn`` and ``-reserve``.

    Args:
        vfs: name of the SQLite VFS to use; tests put faults in with it.
    Raises:
        ConfigError: the file or folder is foreign, damaged or not writable, or stays locked.
    """
    database = await _open(path, vfs, options or EmbeddedOptions())
    failure: BaseException | None = None
    async with trio.open_nursery() as nursery:
        nursery.start_soon(database.commit_forever)
        nursery.start_soon(database.poll_forever)
        try:
            yield database
        except BaseException as error:  # noqa: BLE001 - raised below, outside of the nursery's group
            failure = error
        finally:
            await database.aclose()
            nursery.cancel_scope.cancel()
    if failure is not None:
        raise failure


async def _open(path: Path, vfs: str, options: EmbeddedOptions) -> EmbeddedDatabase:
    try:
        lock = WriteLock(path)
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from error
    try:
        with trio.move_on_after(options.lock_s_max) as patience:
            while not lock.acquire_nowait():  # noqa: ASYNC110 - no event: other processes have it
                await trio.sleep(0.01)
        if patience.cancelled_caught:
            raise ConfigError(f"{path}: another process keeps it locked")
        reserve = await trio.to_thread.run_sync(_prepare, path, vfs, options)
        lock.release()
        try:
            return EmbeddedDatabase(path, vfs, options, lock=lock, reserve=reserve)
        except BaseException:
            reserve.close()
            raise
    except BaseException:
        lock.close()
        raise


def _prepare(path: Path, vfs: str, options: EmbeddedOptions) -> Reserve:
    prepare(path, vfs)
    try:
        reserve = Reserve(path, options.reserve_size)
    except OSError as error:
        raise ConfigError(f"{path}-reserve: {error.strerror}") from error
    if reserve.released:
        reserve.restore(options.free_space(path))
    return reserve


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


class EmbeddedDatabase:
    """``engine.meta.kv.Database``. Made by ``open_embedded``; for one trio thread."""

    def __init__(
        self, path: Path, vfs: str, options: EmbeddedOptions, *, lock: WriteLock, reserve: Reserve
    ) -> None:
        """Take over ``lock`` (not held) and ``reserve``.

        Raises: ConfigError.
        """
        self._path = path
        self._options = options
        self._lock = lock
        self._reserve = reserve
        try:
            self._reader = open_reader(path, vfs, cache_size=options.cache_size)
            self._writer = open_writer(path, vfs, cache_size=options.cache_size)
        except apsw.Error as error:
            raise ConfigError(f"{path}: {type(error).__name__}: {error}") from error
        self._read = self._reader.cursor().execute
        self._write = self._writer.cursor().execute
        self._writer.set_wal_hook(self._note_log)
        self._log_pages = 0
        self._checkpointed_pages = 0
        self._seat = Seat("metadata commit")
        self._queue: deque[_Pending] = deque()
        self._work = trio.Event()
        self._watches = Watches()
        self._in_body = False
        self._failure = ""
        self._closing = False
        self._committer = trio.CancelScope(shield=True)
        self._committer_done = trio.Event()
        self._closed = trio.Event()

    # What callers see.

    async def read(self, body: Callable[[ReadTransaction], Awaitable[T]]) -> T:
        """Run a body that only reads, on one snapshot. Never yields to the scheduler.

        Raises: LimitExceeded, MetadataFailed, Unavailable; BodySuspended is a bug of the body.
        """
        if self._in_body:
            raise BodySuspended
        if self._closing:
            raise Unavailable("the metadata store is closed")
        read = self._read
        transaction = EmbeddedReadTransaction(read, self._options.clock)
        try:
            read("BEGIN")
            self._in_body = True
            try:
                result = drive(body(transaction))
                transaction.check_time()
                return result
            finally:
                self._in_body = False
                transaction.close()
                # An error may have ended the transaction already.
                if transaction.broken is None or self._reader.in_transaction:
                    read("COMMIT")
        except apsw.Error as error:
            raise translate(error) from error

    async def run(self, body: Callable[[Transaction], Awaitable[T]]) -> T:
        """Run ``body`` in the next batch and return its result once that is on stable storage.

        Cancelled while it waits its body does not run; cancelled during the commit the outcome
        is not known.

        Raises:
            MetadataFailed: the disk failed; the store takes no more writes until opened again.
            NoSpace: the disk is full, and the body does not give space back.
            SlowDown: the queue is full.
            Unavailable: another process kept the write lock, or the store is closed.
            LimitExceeded; BodySuspended is a bug of the body.
        """
        if self._in_body:
            raise BodySuspended
        if self._closing:
            raise Unavailable("the metadata store is closed")
        if self._failure:
            raise MetadataFailed(self._failure)
        if len(self._queue) >= self._options.queue_max:
            raise SlowDown("too many transactions wait")
        pending = _Pending(body, trio.lowlevel.current_task())
        self._queue.append(pending)
        self._work.set()
        result: T = await trio.lowlevel.wait_task_rescheduled(pending.cancel)
        return result

    async def watch(self, key: bytes, value: bytes | None) -> None:
        """Return once the key's value differs, or may have differed, from ``value``.

        Commits of this process wake at once, those of others within ``poll_s``.

        Raises: SlowDown (too many watches), Unavailable (closed meanwhile), as ``read``.
        """
        check_key(key)
        with self._watches.watch(key, value) as changed:
            if await self.read(lambda tr: tr.get(key)) != value:
                await trio.lowlevel.checkpoint()
                return
            await changed.wait()
        if self._closing:
            raise Unavailable("the metadata store is closed")

    async def aclose(self) -> None:
        """Finish what is queued, within ``close_s_max``, and close the file. Idempotent.

        When nobody else writes just then, the log is copied into the database and cut.
        """
        if self._closing:
            await self._closed.wait()
            return
        self._closing = True
        self._work.set()
        self._watches.wake_all()
        with trio.CancelScope(shield=True):
            with trio.move_on_after(self._options.close_s_max):
                await self._committer_done.wait()
            self._committer.cancel()
            await self._committer_done.wait()
            self._fail_queue(partial(Unavailable, "the metadata store is closed"))
            await self._seat.run(self._close_files)
            self._seat.close()
        self._closed.set()

    # The tasks that ``open_embedded`` runs.

    @trio.lowlevel.enable_ki_protection
    async def commit_forever(self) -> None:
        """Commit what is queued, until the store is closed."""
        try:
            with self._committer:
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
            self._committer_done.set()

    async def poll_forever(self) -> None:
        """Wake watches when another process has committed, while there are any."""
        version: object = None
        while True:
            await self._watches.wait_for_any()
            await trio.sleep(self._options.poll_s)
            if self._closing:
                return
            with suppress(apsw.Error, StorageError):
                seen = self._read("PRAGMA data_version").fetchone()
                if seen != version:
                    version = seen
                    await self.read(self._watches.compare)

    # Inside the committer.

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
        self._in_body = True
        try:
            result = drive(body(transaction))
        finally:
            self._in_body = False
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
        with suppress(apsw.Error):
            self._reader.close()
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
