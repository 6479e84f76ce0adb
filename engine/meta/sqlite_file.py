"""The SQLite file of the embedded store: how it is opened, and what its errors mean here."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import TypeAlias

import apsw

from engine.errors import ConfigError, NoSpace, StorageError, Unavailable
from engine.meta.kv import MetadataFailed

APPLICATION_ID = 0x4C4F4445  # "LODE", so that file(1) and we know our own files.
FORMAT = 1
PAGE_SIZE = 8192

GET = "SELECT v FROM kv WHERE k = ?"
SET = "INSERT INTO kv VALUES (?, ?) ON CONFLICT (k) DO UPDATE SET v = excluded.v"
CLEAR = "DELETE FROM kv WHERE k = ?"
CLEAR_RANGE = "DELETE FROM kv WHERE k >= ? AND k < ?"
RANGE = "SELECT k, v FROM kv WHERE k >= ? AND k < ? ORDER BY k LIMIT ?"
RANGE_REVERSE = "SELECT k, v FROM kv WHERE k >= ? AND k < ? ORDER BY k DESC LIMIT ?"
RANGE_BYTES = "SELECT total(length(k) + length(v)) FROM kv WHERE k >= ? AND k < ?"
SAVEPOINT = "SAVEPOINT body"
RELEASE = "RELEASE body"
ROLLBACK_TO = "ROLLBACK TO body"

_SCHEMA = f"""
CREATE TABLE kv (k BLOB PRIMARY KEY, v BLOB NOT NULL) WITHOUT ROWID, STRICT;
PRAGMA application_id = {APPLICATION_ID};
PRAGMA user_version = {FORMAT};
"""

Connection: TypeAlias = apsw.Connection


def translate(error: apsw.Error) -> StorageError:
    """Return our error for one of SQLite's."""
    match error:
        case apsw.FullError():
            return NoSpace("the metadata store's disk is full")
        case apsw.BusyError():
            return Unavailable("the metadata store is locked by another program")
    return MetadataFailed(f"{type(error).__name__}: {error}")


def prepare(path: Path, vfs: str) -> None:
    """Make the database at ``path``, or check that it is one of ours; the caller has the lock.

    Durable on return.

    Raises: ConfigError, which names the file.
    """
    try:
        connection = _connect(path, vfs, apsw.SQLITE_OPEN_READWRITE | apsw.SQLITE_OPEN_CREATE)
        with contextlib.closing(connection):
            connection.set_busy_timeout(5000)
            identity = _pragma(connection, "application_id")
            if identity == 0 and connection.execute("SELECT 1 FROM sqlite_schema").get is None:
                _create(connection)
                identity = APPLICATION_ID
            if identity != APPLICATION_ID:
                raise ConfigError(f"{path}: not a metadata store")
            if _pragma(connection, "user_version") != FORMAT:
                raise ConfigError(f"{path}: made by another version")
            if connection.pragma("journal_mode") != "wal":
                raise ConfigError(f"{path}: SQLite cannot use WAL in this folder")
            # Looks at the table's first page, so that gross damage is told now.
            connection.execute("SELECT 1 FROM kv LIMIT 1").fetchall()
    except apsw.Error as error:
        raise ConfigError(f"{path}: {type(error).__name__}: {error}") from error
    _sync_folder(path.parent)


def _create(connection: Connection) -> None:
    # The page size is settled with the first page, so it comes before WAL.
    connection.pragma("page_size", PAGE_SIZE)
    connection.pragma("journal_mode", "wal")
    connection.pragma("synchronous", "full")
    connection.execute("BEGIN IMMEDIATE")
    connection.execute(_SCHEMA)
    connection.execute("COMMIT")


def _pragma(connection: Connection, name: str) -> int:
    value = connection.pragma(name)
    assert isinstance(value, int)
    return value


def _sync_folder(folder: Path) -> None:
    """Make new names in the folder durable."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    except OSError as error:
        raise ConfigError(f"{folder}: {error.strerror}") from error
    finally:
        os.close(descriptor)


def _connect(path: Path, vfs: str, flags: int) -> Connection:
    # NOMUTEX: a connection is in one thread at a time, and SQLite's own mutexes cost.
    return Connection(str(path), flags=flags | apsw.SQLITE_OPEN_NOMUTEX, vfs=vfs or None)


def open_reader(path: Path, vfs: str, *, cache_size: int) -> Connection:
    """Return a connection for reads that run in the trio thread.

    Raises: apsw.Error.
    """
    connection = _connect(path, vfs, apsw.SQLITE_OPEN_READWRITE)
    # A reader waits for nobody in WAL mode but for the recovery after a crash.
    connection.set_busy_timeout(1000)
    connection.pragma("cache_size", -(cache_size >> 10))
    connection.pragma("query_only", 1)
    return connection


def open_writer(path: Path, vfs: str, *, cache_size: int) -> Connection:
    """Return the connection for transactions, with automatic checkpoints off.

    Raises: apsw.Error.
    """
    connection = _connect(path, vfs, apsw.SQLITE_OPEN_READWRITE)
    connection.set_busy_timeout(0)
    connection.wal_autocheckpoint(0)
    connection.pragma("synchronous", "full")
    connection.pragma("cache_size", -(cache_size >> 10))
    # Savepoints copy pages aside; that belongs in memory, not in a temporary file.
    connection.pragma("temp_store", "memory")
    return connection


class Reserve:
    """Disk space beside the database, given up when the disk is full so that deletes go on.

    The file's size is the state, so all processes agree. Call with the write lock held.
    """

    __slots__ = ("_descriptor", "_size")

    def __init__(self, path: Path, size: int) -> None:
        """Open (make) ``<path>-reserve`` of ``size`` bytes, 0 for none.

        Raises: OSError, but not when the disk is full: the reserve is then released.
        """
        self._size = size
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC
        self._descriptor = os.open(f"{path}-reserve", flags, 0o600)

    @property
    def released(self) -> bool:
        return self._size > 0 and os.fstat(self._descriptor).st_size < self._size

    def release(self) -> None:
        os.ftruncate(self._descriptor, 0)

    def restore(self, free: int) -> bool:
        """Take the space again if ``free`` bytes are plenty; return whether the reserve is full."""
        if free < 2 * self._size:
            return False
        try:
            os.posix_fallocate(self._descriptor, 0, self._size)
        except OSError:
            self.release()
            return False
        return True

    def close(self) -> None:
        os.close(self._descriptor)


def free_space(path: Path) -> int:
    """Return the bytes that we may still write to the file system of ``path``."""
    status = os.statvfs(path.parent)
    return status.f_bavail * status.f_frsize
