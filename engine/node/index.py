"""Where each needle of a drive is: an SQLite database that every process of the drive shares.

It can be lost: the volumes hold everything that it says, and recovery builds it again. So its
commits are not synced (WAL, ``synchronous=NORMAL``: after a power failure the index is as it was
at some earlier moment). A needle and the volume's ``indexed_to`` move in one transaction, hence
recovery replays exactly what such an index has forgotten. A slow writer may hold ``indexed_to``
back while later needles come and are removed again; table ``gone`` remembers these, for their
tombstones may lie in volumes that are not replayed. The one commit that is synced is the
one after which compaction unlinks a volume.

Concurrency: one connection writes, under ``_lock``; each reading thread borrows a connection from
a stack (list.pop and append are atomic), so a lookup never waits for a writer of this process.
"""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import apsw

from engine.ids import FragmentId
from engine.node.contract import FragmentInfo, NodeDown, NodeError, NodeFull
from engine.node.needle import extent_size

OPEN, READ_ONLY, RETIRED = 0, 1, 2
"""States of a volume. Read-only: damaged or its sync failed. Retired: about to be unlinked."""

_VERSION = 2
_BUSY_MS = 10_000
_SCHEMA = """
CREATE TABLE needle (
    fragment BLOB PRIMARY KEY, volume INTEGER NOT NULL, offset INTEGER NOT NULL,
    size INTEGER NOT NULL
) WITHOUT ROWID;
CREATE TABLE volume (
    number INTEGER PRIMARY KEY, uuid BLOB NOT NULL, indexed_to INTEGER NOT NULL,
    needles INTEGER NOT NULL DEFAULT 0, live INTEGER NOT NULL DEFAULT 0,
    dead INTEGER NOT NULL DEFAULT 0, tombstones INTEGER NOT NULL DEFAULT 0,
    state INTEGER NOT NULL DEFAULT 0
);
CREATE TABLE gone (
    volume INTEGER NOT NULL, offset INTEGER NOT NULL, PRIMARY KEY (volume, offset)
) WITHOUT ROWID;
CREATE TABLE setting (name TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID;
"""
_FIND = "SELECT volume, offset, size FROM needle WHERE fragment = ?"
_INSERT = "INSERT INTO needle VALUES (?, ?, ?, ?) ON CONFLICT DO NOTHING"
_REPLACE = "UPDATE needle SET volume = ?2, offset = ?3, size = ?4 WHERE fragment = ?1"
_REMOVE = "DELETE FROM needle WHERE fragment = ? AND volume = ? AND offset = ? RETURNING size"
_MOVE = (
    "UPDATE needle SET volume = ?4, offset = ?5"
    " WHERE fragment = ?1 AND volume = ?2 AND offset = ?3 RETURNING size"
)
_GONE = (
    "INSERT OR IGNORE INTO gone SELECT ?1, ?2 FROM volume WHERE number = ?1 AND indexed_to <= ?2"
)
_PASSED = "DELETE FROM gone WHERE volume = ? AND offset < ?"
_NUMBER = (
    "INSERT INTO setting VALUES ('number', ?)"
    " ON CONFLICT DO UPDATE SET value = max(value, excluded.value)"
)
"""Numbers of volumes are given out once: one that came back would be taken for the older one."""
_SYNCS = "INSERT INTO setting VALUES ('syncs', 1) ON CONFLICT DO UPDATE SET value = value + 1"
_COUNT = (
    "UPDATE volume SET needles = needles + ?2, live = live + ?3, dead = dead + ?4,"
    " tombstones = tombstones + ?5 WHERE number = ?1"
)


class Place(NamedTuple):
    volume: int
    offset: int
    """Of the needle, not of its payload."""
    size: int
    """Payload bytes."""


class VolumeRow(NamedTuple):
    number: int
    uuid: bytes
    indexed_to: int
    """Everything below is in the index, or given up."""
    needles: int
    live: int
    """Bytes of extents that the index points to."""
    dead: int
    tombstones: int
    """Bytes of extents with tombstones."""
    state: int


@dataclass(slots=True)
class Update:
    """What one commit changes. The last three fields are filled in by ``Index.apply``."""

    inserts: Sequence[tuple[FragmentId, int, int]] = ()
    """(fragment, offset, payload size) of new needles in the volume that is applied."""
    removals: Sequence[tuple[FragmentId, int, int]] = ()
    """(fragment, volume, offset): removed if the fragment is still there."""
    moves: Sequence[tuple[FragmentId, int, int, int]] = ()
    """(fragment, volume, offset, new offset): copied from there into the volume that is applied."""
    tombstones: int = 0
    """Bytes of new extents with tombstones."""
    replaced: list[tuple[FragmentId, int, int]] = field(default_factory=list)
    missed: list[tuple[FragmentId, int, int]] = field(default_factory=list)
    """Removals that found the fragment elsewhere or gone."""
    unmoved: list[tuple[FragmentId, int, int, int]] = field(default_factory=list)


class IndexDamaged(NodeDown):
    """The index cannot be used; the next open of the drive builds it again."""


class _Counts:
    """Changes to the volumes' sums within one transaction."""

    __slots__ = ("rows",)

    def __init__(self) -> None:
        self.rows: dict[int, list[int]] = {}

    def add(self, volume: int, needles: int, live: int, dead: int, tombstones: int = 0) -> None:
        row = self.rows.setdefault(volume, [0, 0, 0, 0])
        row[0] += needles
        row[1] += live
        row[2] += dead
        row[3] += tombstones


class Index:
    def __init__(self, path: str, *, vfs: str = "", create: bool = False) -> None:
        """Open the index at ``path``.

        Raises:
            IndexDamaged: it is absent (and ``create`` is false), no database, of another version,
                or its making was cut short.
            NodeDown, NodeFull.
        """
        self._path = path
        self._vfs = vfs
        self._lock = threading.Lock()
        self._readers: list[apsw.Connection] = []
        self._closed = False
        try:
            self._writer = self._connect(create=create)
            try:
                self._check(create)
            except BaseException:
                self._writer.close()
                raise
        except apsw.Error as error:
            raise _translated(error) from error

    def _connect(self, *, create: bool = False) -> apsw.Connection:
        flags = apsw.SQLITE_OPEN_READWRITE | (apsw.SQLITE_OPEN_CREATE if create else 0)
        connection = apsw.Connection(self._path, flags=flags, vfs=self._vfs or None)
        connection.set_busy_timeout(_BUSY_MS)
        connection.execute("PRAGMA synchronous = NORMAL")
        return connection

    def _check(self, create: bool) -> None:
        self._writer.execute("PRAGMA journal_mode = WAL")
        version = _one(self._writer, "PRAGMA user_version")[0]
        if version == 0 and create:
            with self._transaction() as connection:
                connection.execute(_SCHEMA)
                connection.execute("INSERT INTO setting VALUES ('building', 1)")
                connection.execute(f"PRAGMA user_version = {_VERSION}")
        elif version != _VERSION:
            raise IndexDamaged(f"{self._path}: version {version}")
        elif self._writer.execute("SELECT 1 FROM setting WHERE name = 'building'").fetchone():
            raise IndexDamaged(f"{self._path}: was not built to the end")

    def close(self) -> None:
        """Close every connection. No call may be running or follow. Never raises."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            for connection in [*self._readers, self._writer]:
                # The last one copies the log into the database; should that fail, the log stays.
                with suppress(apsw.Error):
                    connection.close()
            self._readers.clear()

    # Reading

    @contextmanager
    def _reader(self) -> Iterator[apsw.Connection]:
        connection = None
        try:
            try:
                connection = self._readers.pop()
            except IndexError:
                connection = self._connect()
            yield connection
        except apsw.Error as error:
            raise _translated(error) from error
        finally:
            if connection is not None:
                self._readers.append(connection)

    def find(self, fragment: bytes) -> tuple[int, int, int] | None:
        """Return (volume, offset, payload size), or None. The hot path: about 5 µs."""
        # Written out, not ``with self._reader()``: that would cost a microsecond more.
        try:
            try:
                connection = self._readers.pop()
            except IndexError:
                connection = self._connect()
            row: tuple[int, int, int] | None = connection.execute(_FIND, (fragment,)).fetchone()
        except apsw.Error as error:
            raise _translated(error) from error
        self._readers.append(connection)
        return row

    def scan(self, after: bytes, limit: int) -> list[FragmentInfo]:
        """Return up to ``limit`` fragments with an id above ``after``, in order."""
        query = "SELECT fragment, size FROM needle WHERE fragment > ? ORDER BY fragment LIMIT ?"
        with self._reader() as connection:
            rows = _all(connection, query, (after, limit))
        return [FragmentInfo(FragmentId(fragment), size) for fragment, size in rows]

    def volumes(self) -> dict[int, VolumeRow]:
        with self._reader() as connection:
            rows = _all(connection, "SELECT * FROM volume ORDER BY number")
        return {row[0]: VolumeRow(*row) for row in rows}

    def needles_in(self, volume: int) -> list[tuple[FragmentId, int, int]]:
        """Return (fragment, offset, payload size) of a volume's needles; reads the whole index."""
        query = "SELECT fragment, offset, size FROM needle WHERE volume = ? ORDER BY offset"
        with self._reader() as connection:
            return _all(connection, query, (volume,))

    def gone_from(self, volume: int) -> set[int]:
        """Return the offsets, not below ``indexed_to``, of needles that were removed again."""
        with self._reader() as connection:
            rows = _all(connection, "SELECT offset FROM gone WHERE volume = ?", (volume,))
        return {offset for (offset,) in rows}

    # Writing

    @contextmanager
    def _transaction(self, *, synced: bool = False) -> Iterator[apsw.Connection]:
        """Commit what the body does. ``synced``: on stable storage when this is left."""
        connection = self._writer
        try:
            if synced:
                connection.execute("PRAGMA synchronous = FULL")
            connection.execute("BEGIN IMMEDIATE")
            try:
                yield connection
                connection.execute("COMMIT")
            except BaseException:
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
                raise
        except apsw.Error as error:
            raise _translated(error) from error
        finally:
            if synced:
                connection.execute("PRAGMA synchronous = NORMAL")

    def apply(self, volume: int, indexed_to: Callable[[], int], updates: Sequence[Update]) -> None:
        """Apply the updates and move the volume's ``indexed_to``, in one transaction.

        ``indexed_to`` is called while this index's writers wait.

        Raises:
            NodeFull: nothing was changed.
            NodeDown: it is not known what was changed.
        """
        counts = _Counts()
        with self._lock, self._transaction() as connection:
            for update in updates:
                if update.inserts:
                    _insert(connection, counts, volume, update)
                for removal in update.removals:
                    if not _remove(connection, counts, removal):
                        update.missed.append(removal)
                for move in update.moves:
                    _move(connection, counts, volume, update, move)
                if update.tombstones:
                    counts.add(volume, 0, 0, 0, update.tombstones)
            for number, row in counts.rows.items():
                connection.execute(_COUNT, (number, *row))
            reached = indexed_to()
            connection.execute(
                "UPDATE volume SET indexed_to = ? WHERE number = ?", (reached, volume)
            )
            connection.execute(_PASSED, (volume, reached))

    def add_volume(self, number: int, uuid: bytes, indexed_to: int) -> None:
        query = "INSERT INTO volume (number, uuid, indexed_to) VALUES (?, ?, ?)"
        with self._lock, self._transaction() as connection:
            connection.execute(query, (number, uuid, indexed_to))

    def next_number(self, above: int) -> int:
        """Return a number for a new volume: above ``above``, and never given out before, since
        other processes may still have an older volume open under its number.
        """
        with self._lock, self._transaction() as connection:
            row = connection.execute("SELECT value FROM setting WHERE name = 'number'").fetchone()
            number: int = max(above, row[0] if row else 0) + 1
            connection.execute(_NUMBER, (number,))
        return number

    def finish(self, ends: Sequence[tuple[int, int, int]]) -> None:
        """Set (indexed_to, tombstone bytes to add) of (volume, ...); the index is whole then."""
        query = "UPDATE volume SET indexed_to = ?2, tombstones = tombstones + ?3 WHERE number = ?1"
        with self._lock, self._transaction() as connection:
            connection.executemany(query, ends)
            connection.executemany(_PASSED, [(number, end) for number, end, _ in ends])
            connection.execute("DELETE FROM setting WHERE name = 'building'")

    def load(
        self, volume: int, needles: Sequence[tuple[FragmentId, int, int]]
    ) -> list[tuple[FragmentId, int, int]]:
        """Insert what recovery found, (fragment, offset, payload size); return those for which
        the index knows another place. What is there already stays and is not counted twice.
        """
        counts = _Counts()
        conflicts = []
        with self._lock, self._transaction() as connection:
            for fragment, offset, size in needles:
                connection.execute(_INSERT, (fragment, volume, offset, size))
                if connection.changes():
                    counts.add(volume, 1, extent_size(size), 0)
                    continue
                found = _one(connection, _FIND, (fragment,))
                if found[:2] != (volume, offset):
                    conflicts.append((fragment, offset, size))
            for number, row in counts.rows.items():
                connection.execute(_COUNT, (number, *row))
        return conflicts

    def remove(self, needles: Sequence[tuple[FragmentId, int, int]]) -> None:
        """Remove (fragment, volume, offset) where the fragment is still there."""
        counts = _Counts()
        with self._lock, self._transaction() as connection:
            for needle in needles:
                _remove(connection, counts, needle)
            for number, row in counts.rows.items():
                connection.execute(_COUNT, (number, *row))

    def set_state(self, volume: int, state: int) -> None:
        with self._lock, self._transaction() as connection:
            connection.execute("UPDATE volume SET state = ? WHERE number = ?", (state, volume))

    def retire(self, volume: int) -> None:
        """Mark a volume for unlinking; durable on return, as is all that was applied before."""
        with self._lock, self._transaction(synced=True) as connection:
            connection.execute("UPDATE volume SET state = ? WHERE number = ?", (RETIRED, volume))

    def sync(self) -> None:
        """Make durable what was applied before."""
        with self._lock, self._transaction(synced=True) as connection:
            connection.execute(_SYNCS)

    def drop_volume(self, volume: int, *, with_needles: bool = False) -> None:
        """Forget the volume, but not its number; ``with_needles`` reads the whole index."""
        with self._lock, self._transaction() as connection:
            connection.execute(_NUMBER, (volume,))
            connection.execute("DELETE FROM volume WHERE number = ?", (volume,))
            connection.execute("DELETE FROM gone WHERE volume = ?", (volume,))
            if with_needles:
                connection.execute("DELETE FROM needle WHERE volume = ?", (volume,))


def _insert(connection: apsw.Connection, counts: _Counts, volume: int, update: Update) -> None:
    for fragment, offset, size in update.inserts:
        row = (fragment, volume, offset, size)
        connection.execute(_INSERT, row)
        if not connection.changes():
            number, old_offset, old_size = _one(connection, _FIND, (fragment,))
            update.replaced.append((fragment, number, old_offset))
            counts.add(number, -1, -extent_size(old_size), extent_size(old_size))
            connection.execute(_GONE, (number, old_offset))
            connection.execute(_REPLACE, row)
        counts.add(volume, 1, extent_size(size), 0)


def _remove(
    connection: apsw.Connection, counts: _Counts, removal: tuple[FragmentId, int, int]
) -> bool:
    row = connection.execute(_REMOVE, removal).fetchone()
    if row is None:
        return False
    _, volume, offset = removal
    size = extent_size(row[0])
    counts.add(volume, -1, -size, size)
    connection.execute(_GONE, (volume, offset))
    return True


def _move(
    connection: apsw.Connection,
    counts: _Counts,
    volume: int,
    update: Update,
    move: tuple[FragmentId, int, int, int],
) -> None:
    fragment, number, offset, new_offset = move
    row = connection.execute(_MOVE, (fragment, number, offset, volume, new_offset)).fetchone()
    if row is None:
        update.unmoved.append(move)
        return
    size = extent_size(row[0])
    counts.add(number, -1, -size, size)
    counts.add(volume, 1, size, 0)


def _all(
    connection: apsw.Connection, query: str, values: tuple[bytes | int, ...] = ()
) -> list[tuple[Any, ...]]:
    return connection.execute(query, values).fetchall()


def _one(
    connection: apsw.Connection, query: str, values: tuple[bytes | int, ...] = ()
) -> tuple[Any, ...]:
    """Return the row that must be there."""
    row: tuple[Any, ...] | None = connection.execute(query, values).fetchone()
    assert row is not None
    return row


def _translated(error: apsw.Error) -> NodeError:
    if isinstance(error, apsw.FullError):
        return NodeFull("index: the drive is full")
    if isinstance(error, (apsw.CorruptError, apsw.NotADBError)):
        return IndexDamaged(f"index: {error}")
    return NodeDown(f"index: {error}")


def remove_files(path: str) -> None:
    """Unlink an index and what SQLite keeps beside it. Nobody may have it open."""
    for suffix in ("", "-wal", "-shm", "-journal"):
        try:
            os.unlink(path + suffix)
        except OSError as error:
            if error.errno != errno.ENOENT:
                raise NodeDown(f"{path}: {error.strerror}") from error
