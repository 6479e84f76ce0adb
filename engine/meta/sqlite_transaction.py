"""What bodies are given: reads and writes straight on an SQLite connection.

Nothing here suspends. A body runs to its end in one go (``body.drive``), so that any number of
bodies can share one connection, one after another.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any, TypeAlias

import apsw

from engine.errors import StorageError
from engine.meta.body import added
from engine.meta.kv import (
    KEY_SIZE_MAX,
    SYSTEM_PREFIX,
    TRANSACTION_S_MAX,
    TRANSACTION_SIZE_MAX,
    VALUE_SIZE_MAX,
    VERSIONSTAMP_SIZE,
    LimitExceeded,
    check_key,
    check_range,
    check_value,
)
from engine.meta.sqlite_file import (
    CLEAR,
    CLEAR_RANGE,
    GET,
    RANGE,
    RANGE_BYTES,
    RANGE_REVERSE,
    RELEASE,
    ROLLBACK_TO,
    SAVEPOINT,
    SET,
    translate,
)

Execute: TypeAlias = Callable[..., apsw.Cursor]
"""``Cursor.execute`` of a cursor that is used again and again: twice as fast as the
connection's, which makes a cursor for every call."""

COUNTER = SYSTEM_PREFIX + b"/commit-version"
"""Holds the 8 byte commit version of the last versionstamp, big-endian."""

RESERVE_GROWTH_MAX = 128
RESERVE_GROWTH_OF_CLEAR_MAX = 1024


class EmbeddedReadTransaction:
    """``engine.meta.kv.ReadTransaction`` on a connection that is inside BEGIN."""

    __slots__ = ("_clock", "_deadline", "_execute", "broken")

    def __init__(self, execute: Execute, clock: Callable[[], float]) -> None:
        self._execute = execute
        self._clock = clock
        self._deadline = clock() + TRANSACTION_S_MAX
        self.broken: apsw.Error | None = None
        """The SQLite error that ended it, even if the body swallowed what it was told."""

    def check_time(self) -> None:
        if self._clock() > self._deadline:
            raise LimitExceeded(f"transaction of more than {TRANSACTION_S_MAX} s")

    def close(self) -> None:
        """Make later use an error: the body is over."""
        self._execute = _refuse

    def _sql(self, statement: str, bindings: tuple[bytes | int, ...]) -> apsw.Cursor:
        try:
            return self._execute(statement, bindings)
        except apsw.ConstraintError as error:
            # The table is STRICT. Nothing is wrong with the store, only with the body.
            raise TypeError("keys and values are bytes") from error
        except apsw.Error as error:
            self.broken = self.broken or error
            raise translate(error) from error

    def _value(self, key: bytes) -> bytes | None:
        try:
            row: Any = self._execute(GET, (key,)).fetchone()
        except apsw.Error as error:
            self.broken = self.broken or error
            raise translate(error) from error
        return None if row is None else row[0]

    async def get(self, key: bytes, *, snapshot: bool = False) -> bytes | None:
        if len(key) > KEY_SIZE_MAX or key[:1] == SYSTEM_PREFIX:
            check_key(key)
        if self._clock() > self._deadline:
            self.check_time()
        return self._value(key)

    get_cached = get

    async def get_range(
        self,
        begin: bytes,
        end: bytes,
        *,
        limit: int = 0,
        reverse: bool = False,
        snapshot: bool = False,
    ) -> list[tuple[bytes, bytes]]:
        check_range(begin, end)
        self.check_time()
        statement = RANGE_REVERSE if reverse else RANGE
        try:
            rows: Any = self._execute(statement, (begin, end, limit or -1)).fetchall()
        except apsw.Error as error:
            self.broken = self.broken or error
            raise translate(error) from error
        return rows  # type: ignore[no-any-return]  # two BLOB NOT NULL columns


def _refuse(*_: object) -> apsw.Cursor:
    raise RuntimeError("the transaction is over")


class EmbeddedTransaction(EmbeddedReadTransaction):
    """``engine.meta.kv.Transaction`` inside a batch; a savepoint of its own from its first write.

    ``finish`` or ``undo`` must follow the body.
    """

    __slots__ = ("_stamped", "size", "touched", "watched", "writes")

    def __init__(
        self, execute: Execute, clock: Callable[[], float], watched: Callable[[bytes], bool] | None
    ) -> None:
        super().__init__(execute, clock)
        self.size = 0
        """Bytes of keys and values written and of ranges cleared."""
        self.writes = False
        self.watched = watched
        self.touched: list[tuple[bytes, bytes | None]] = []
        """Keys, and ranges (begin, end), that were written: only while somebody watches."""
        self._stamped: list[tuple[bytes, bytes, bytes]] = []

    def _write(self, size: int) -> None:
        """Account for a write of ``size`` bytes that is about to happen."""
        self.size += size
        if self.size > TRANSACTION_SIZE_MAX:
            raise LimitExceeded(f"transaction of more than {TRANSACTION_SIZE_MAX} bytes")
        if not self.writes:
            self._sql(SAVEPOINT, ())
            self.writes = True

    def _touch(self, key: bytes, end: bytes | None = None) -> None:
        if self.watched is not None and (end is not None or self.watched(key)):
            self.touched.append((key, end))

    def set(self, key: bytes, value: bytes) -> None:
        check_key(key)
        if len(value) > VALUE_SIZE_MAX:
            check_value(value)
        self._write(len(key) + len(value))
        if self.watched is not None:
            self._touch(key)
        self._sql(SET, (key, value))

    def clear(self, key: bytes) -> None:
        check_key(key)
        self._write(2 * len(key))
        if self.watched is not None:
            self._touch(key)
        self._sql(CLEAR, (key,))

    def clear_range(self, begin: bytes, end: bytes) -> None:
        check_range(begin, end)
        self._write(len(begin) + len(end))
        self._touch(begin, end)
        self._sql(CLEAR_RANGE, (begin, end))

    def add(self, key: bytes, delta: int) -> None:
        check_key(key)
        self._write(len(key) + 8)
        self._touch(key)
        self._sql(SET, (key, added(self._value(key), delta)))

    def set_versionstamped_key(self, prefix: bytes, suffix: bytes, value: bytes) -> None:
        check_key(prefix + bytes(VERSIONSTAMP_SIZE) + suffix)
        check_value(value)
        self._write(len(prefix) + VERSIONSTAMP_SIZE + len(suffix) + len(value))
        self._stamped.append((prefix, suffix, value))

    def system_value(self, key: bytes) -> bytes | None:
        """Return the value of one of the store's own keys."""
        return self._value(key)

    @property
    def stamped(self) -> bool:
        """Whether ``finish`` needs a versionstamp."""
        return bool(self._stamped)

    def finish(self, stamp: bytes) -> None:
        """Make the body's writes part of the batch.

        Raises: LimitExceeded, also when the body swallowed it.
        """
        self.check_time()
        if self.size > TRANSACTION_SIZE_MAX:
            raise LimitExceeded(f"transaction of more than {TRANSACTION_SIZE_MAX} bytes")
        for prefix, suffix, value in self._stamped:
            key = prefix + stamp + suffix
            self._touch(key)
            self._sql(SET, (key, value))
        if self.writes:
            self._sql(RELEASE, ())

    def undo(self) -> None:
        """Take the body's writes back; when that fails ``broken`` says so."""
        if self.writes and self.broken is None:
            with contextlib.suppress(StorageError):
                self._sql(ROLLBACK_TO, ())
                self._sql(RELEASE, ())


class ReserveTransaction(EmbeddedTransaction):
    """A transaction while the disk is full: it measures by how much it makes the store grow."""

    __slots__ = ("_clears", "_growth")

    def __init__(
        self, execute: Execute, clock: Callable[[], float], watched: Callable[[bytes], bool] | None
    ) -> None:
        super().__init__(execute, clock, watched)
        self._growth = 0
        self._clears = False

    @property
    def fits(self) -> bool:
        """Whether it may use the reserve: it gives space back, or nearly does.

        A delete also leaves a few small rows (garbage, feed, a marker), and a lease or a counter
        must be renewed for garbage collection to run, so a little growth is allowed.
        """
        allowed = RESERVE_GROWTH_OF_CLEAR_MAX if self._clears else RESERVE_GROWTH_MAX
        return self._growth <= allowed

    def _stored(self, key: bytes) -> int:
        value = self._value(key)
        return 0 if value is None else len(key) + len(value)

    def set(self, key: bytes, value: bytes) -> None:
        self._growth += len(key) + len(value) - self._stored(key)
        super().set(key, value)

    def clear(self, key: bytes) -> None:
        self._growth -= self._stored(key)
        self._clears = True
        super().clear(key)

    def clear_range(self, begin: bytes, end: bytes) -> None:
        row: Any = self._sql(RANGE_BYTES, (begin, end)).fetchone()
        self._growth -= int(row[0])
        self._clears = True
        super().clear_range(begin, end)

    def add(self, key: bytes, delta: int) -> None:
        self._growth += len(key) + 8 - self._stored(key)
        super().add(key, delta)

    def set_versionstamped_key(self, prefix: bytes, suffix: bytes, value: bytes) -> None:
        self._growth += len(prefix) + VERSIONSTAMP_SIZE + len(suffix) + len(value)
        super().set_versionstamped_key(prefix, suffix, value)
