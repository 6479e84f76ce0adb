"""The metadata store on one machine: SQLite, used by several processes at once.

Decision record: docs/decisions/0002-embedded-metadata-store.md.

Concurrency. Bodies never suspend, so they run one after another in the trio thread: readers here
on one connection, writers in the committer's batches on another (``sqlite_commit``). While a batch
is committed in a thread reads go on, and see what was committed before.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import TypeVar

import apsw
import trio

from engine.errors import ConfigError, StorageError, Unavailable
from engine.meta.body import BodySuspended, drive
from engine.meta.kv import ReadTransaction, Transaction, check_key
from engine.meta.sqlite_commit import Committer
from engine.meta.sqlite_file import Reserve, open_reader, prepare, translate
from engine.meta.sqlite_lock import WriteLock
from engine.meta.sqlite_options import EmbeddedOptions
from engine.meta.sqlite_transaction import EmbeddedReadTransaction
from engine.meta.sqlite_watch import Watches

__all__ = ["EmbeddedDatabase", "EmbeddedOptions", "open_embedded"]

T = TypeVar("T")


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
        except BaseException as error:  # noqa: BLE001, ASYNC103  raised below, bare
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


class EmbeddedDatabase:
    """``engine.meta.kv.Database``. Made by ``open_embedded``; for one trio thread."""

    def __init__(
        self, path: Path, vfs: str, options: EmbeddedOptions, *, lock: WriteLock, reserve: Reserve
    ) -> None:
        """Take over ``lock`` (not held) and ``reserve``.

        Raises: ConfigError.
        """
        self._options = options
        self._watches = Watches()
        try:
            self._reader = open_reader(path, vfs, cache_size=options.cache_size)
            self._committer = Committer(
                path, vfs, options, lock=lock, reserve=reserve, watches=self._watches
            )
        except apsw.Error as error:
            raise ConfigError(f"{path}: {type(error).__name__}: {error}") from error
        self._read = self._reader.cursor().execute
        self._in_body = False
        self._closing = False
        self._closed = trio.Event()
        self.commit_forever = self._committer.commit_forever
        """The task that commits; ``open_embedded`` runs it."""

    async def read(self, body: Callable[[ReadTransaction], Awaitable[T]]) -> T:
        """Run a body that only reads, on one snapshot. Never yields to the scheduler.

        Raises: LimitExceeded, MetadataFailed, Unavailable; BodySuspended is a bug of the body.
        """
        if self._in_body or self._committer.in_body:
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
        if self._in_body or self._committer.in_body:
            raise BodySuspended
        if self._closing:
            raise Unavailable("the metadata store is closed")
        return await self._committer.submit(body)

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
        self._watches.wake_all()
        with trio.CancelScope(shield=True):
            with suppress(apsw.Error):
                self._reader.close()
            await self._committer.aclose()
        self._closed.set()

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
