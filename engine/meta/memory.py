"""The metadata store in memory, for tests: real optimistic concurrency, and unkind on purpose.

Transactions keep what they read and check it at commit, as FoundationDB does. Given a random
source the store also runs bodies twice and invents conflicts, so that a body which does more than
touch its transaction is found out.

Concurrency. A transaction reads the snapshot that was current when it began: the store keeps the
old values for as long as a transaction may need them. Bodies don't suspend; other transactions
get in between a body and its commit, nowhere else.
"""

from __future__ import annotations

import random
import time
from bisect import bisect_left
from collections.abc import Awaitable, Callable
from typing import TypeAlias, TypeVar

import trio

from engine.errors import Unavailable
from engine.meta.body import added, drive
from engine.meta.kv import (
    TRANSACTION_S_MAX,
    TRANSACTION_SIZE_MAX,
    VERSIONSTAMP_SIZE,
    LimitExceeded,
    ReadTransaction,
    Transaction,
    check_key,
    check_range,
    check_value,
)

T = TypeVar("T")

_TURNS = (1, 1, 1, 2, 4)
"""How often others may run between the reads of a transaction and its commit, given chaos."""
_Operation: TypeAlias = Callable[["MemoryDatabase"], None]
_History = list[tuple[int, bytes | None]]
"""(commit version, value from then on), ascending."""


class _Conflict(Exception):
    """Something that the transaction read has changed since it began."""


class MemoryDatabase:
    """``engine.meta.kv.Database`` without a disk; for one trio thread.

    A transaction that never stops losing gives up with Unavailable after 5 s.
    """

    def __init__(
        self,
        chaos: random.Random | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Make an empty store.

        Args:
            chaos: when given, bodies run more often than needed and at times lose invented
                conflicts.
            clock: seconds; measures transactions.
        """
        self._chaos = chaos
        self._clock = clock
        self._keys: list[bytes] = []
        """Every key that has a history, sorted."""
        self._histories: dict[bytes, _History] = {}
        self._lengthened: set[bytes] = set()
        """Keys whose history has more than the newest value."""
        self._version = 0
        self._commits: list[tuple[int, list[tuple[bytes, bytes]]]] = []
        """(version, ranges written) of the commits that running transactions must check."""
        self._snapshots: list[int] = []
        """Versions at which running transactions read."""
        self._watched: dict[bytes, trio.Event] = {}
        """Set, and taken out, when a commit writes the key."""
        self._closed = False

    async def read(self, body: Callable[[ReadTransaction], Awaitable[T]]) -> T:
        self._check_open()
        # Nobody commits before the body has ended: no snapshot needs to be kept.
        transaction = MemoryTransaction(self, self._version, self._clock)
        result = drive(body(transaction))
        transaction.close()
        return result

    async def run(self, body: Callable[[Transaction], Awaitable[T]]) -> T:
        self._check_open()
        deadline = self._clock() + TRANSACTION_S_MAX
        if self._chaos is not None and self._chaos.random() < 0.5:
            with self._snapshot() as version:
                drive(body(MemoryTransaction(self, version, self._clock)))
        while True:
            with self._snapshot() as version:
                transaction = MemoryTransaction(self, version, self._clock)
                result = drive(body(transaction))
                # Others get in between the body's reads and its commit.
                for _ in range(1 if self._chaos is None else self._chaos.choice(_TURNS)):
                    await trio.lowlevel.checkpoint()
                try:
                    if self._chaos is not None and self._chaos.random() < 0.1:
                        raise _Conflict
                    self._commit(transaction)
                except _Conflict:
                    if self._clock() > deadline:
                        raise Unavailable("a transaction lost every race") from None
                    continue
                return result

    async def watch(self, key: bytes, value: bytes | None) -> None:
        check_key(key)
        while True:
            self._check_open()
            if self.value_at(key, self._version) != value:
                await trio.lowlevel.checkpoint()
                return
            await self._watched.setdefault(key, trio.Event()).wait()

    async def aclose(self) -> None:
        self._closed = True
        for key in list(self._watched):
            self._wake(key)

    def _check_open(self) -> None:
        if self._closed:
            raise Unavailable("the metadata store is closed")

    def _wake(self, key: bytes) -> None:
        self._watched.pop(key).set()

    def _snapshot(self) -> _Snapshot:
        return _Snapshot(self, self._version)

    def begin(self, version: int) -> None:
        """Keep what was current at ``version`` until ``end``."""
        self._snapshots.append(version)

    def end(self, version: int) -> None:
        self._snapshots.remove(version)
        if self._lengthened or self._commits:
            self._forget()

    def value_at(self, key: bytes, version: int) -> bytes | None:
        """Return the value that ``key`` had after the commit ``version``."""
        for since, value in reversed(self._histories.get(key, ())):
            if since <= version:
                return value
        return None

    def keys_between(self, begin: bytes, end: bytes) -> list[bytes]:
        """Return the keys in order that have, or lately had, a value."""
        return self._keys[bisect_left(self._keys, begin) : bisect_left(self._keys, end)]

    def _commit(self, transaction: MemoryTransaction) -> None:
        transaction.check()
        transaction.close()
        if not transaction.operations and not transaction.stamped:
            return
        for version, ranges in self._commits:
            if version > transaction.version and _overlap(ranges, transaction.read_ranges):
                raise _Conflict
        self._version += 1
        stamp = self._version.to_bytes(8, "big") + b"\0\0"
        ranges = list(transaction.write_ranges)
        for operation in transaction.operations:
            operation(self)
        for prefix, suffix, value in transaction.stamped:
            key = prefix + stamp + suffix
            ranges.append((key, key + b"\0"))
            self.put(key, value)
        self._commits.append((self._version, ranges))

    def put(self, key: bytes, value: bytes | None) -> None:
        """Give the key a value as part of the commit that is under way."""
        history = self._histories.get(key)
        if history is None:
            history = self._histories[key] = [(0, None)]
            self._keys.insert(bisect_left(self._keys, key), key)
        history.append((self._version, value))
        self._lengthened.add(key)
        if key in self._watched:
            self._wake(key)

    def add(self, key: bytes, delta: int) -> None:
        self.put(key, added(self.value_at(key, self._version), delta))

    def clear_range(self, begin: bytes, end: bytes) -> None:
        for key in self.keys_between(begin, end):
            self.put(key, None)

    def _forget(self) -> None:
        """Drop what no running transaction needs any more."""
        oldest = min(self._snapshots, default=self._version)
        while self._commits and self._commits[0][0] <= oldest:
            del self._commits[0]
        if self._snapshots:
            return
        for key in self._lengthened:
            value = self._histories[key][-1][1]
            if value is None:
                del self._histories[key]
                del self._keys[bisect_left(self._keys, key)]
            else:
                self._histories[key] = [(0, value)]
        self._lengthened.clear()


def _overlap(written: list[tuple[bytes, bytes]], read: list[tuple[bytes, bytes]]) -> bool:
    return any(
        begin < read_end and read_begin < end
        for begin, end in written
        for read_begin, read_end in read
    )


class _Snapshot:
    """Entered, the version that was current; kept until it is left."""

    __slots__ = ("_database", "_version")

    def __init__(self, database: MemoryDatabase, version: int) -> None:
        self._database = database
        self._version = version

    def __enter__(self) -> int:
        self._database.begin(self._version)
        return self._version

    def __exit__(self, *_: object) -> None:
        self._database.end(self._version)


class MemoryTransaction:
    """``engine.meta.kv.Transaction`` over one snapshot, its own writes kept apart."""

    def __init__(self, database: MemoryDatabase, version: int, clock: Callable[[], float]) -> None:
        self._database = database
        self.version = version
        self._clock = clock
        self._deadline = clock() + TRANSACTION_S_MAX
        self._size = 0
        self._over = False
        self._own: dict[bytes, bytes | None] = {}
        """What its own reads see of its writes."""
        self.operations: list[_Operation] = []
        """Its writes in order: blind ones act on whatever is there at commit."""
        self.stamped: list[tuple[bytes, bytes, bytes]] = []
        self.read_ranges: list[tuple[bytes, bytes]] = []
        self.write_ranges: list[tuple[bytes, bytes]] = []

    def check(self) -> None:
        """Raise LimitExceeded if it took too long or writes too much."""
        if self._over:
            raise RuntimeError("the transaction is over")
        if self._clock() > self._deadline:
            raise LimitExceeded(f"transaction of more than {TRANSACTION_S_MAX} s")
        if self._size > TRANSACTION_SIZE_MAX:
            raise LimitExceeded(f"transaction of more than {TRANSACTION_SIZE_MAX} bytes")

    def close(self) -> None:
        self._over = True

    def _value(self, key: bytes) -> bytes | None:
        if key in self._own:
            return self._own[key]
        return self._database.value_at(key, self.version)

    async def get(self, key: bytes, *, snapshot: bool = False) -> bytes | None:
        check_key(key)
        self.check()
        if not snapshot:
            self.read_ranges.append((key, key + b"\0"))
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
        self.check()
        keys = self._database.keys_between(begin, end)
        if self._own:
            keys = sorted({*keys, *(key for key in self._own if begin <= key < end)})
        pairs: list[tuple[bytes, bytes]] = []
        for key in reversed(keys) if reverse else keys:
            value = self._value(key)
            if value is not None:
                pairs.append((key, value))
                if len(pairs) == limit:
                    break
        if not snapshot and begin < end:
            # Only the part of the range that was looked at can conflict.
            full = limit and len(pairs) == limit
            last = pairs[-1][0] if full else b""
            if full and reverse:
                begin = last
            elif full:
                end = last + b"\0"
            self.read_ranges.append((begin, end))
        return pairs

    def _write(self, size: int, begin: bytes, end: bytes) -> None:
        self._size += size
        self.check()
        self.write_ranges.append((begin, end))

    def set(self, key: bytes, value: bytes) -> None:
        check_key(key)
        check_value(value)
        value = bytes(value)
        self._write(len(key) + len(value), key, key + b"\0")
        self._own[key] = value
        self.operations.append(lambda database: database.put(key, value))

    def clear(self, key: bytes) -> None:
        check_key(key)
        self._write(2 * len(key), key, key + b"\0")
        self._own[key] = None
        self.operations.append(lambda database: database.put(key, None))

    def clear_range(self, begin: bytes, end: bytes) -> None:
        check_range(begin, end)
        self._write(len(begin) + len(end), begin, end)
        self._own.update(dict.fromkeys(self._database.keys_between(begin, end)))
        for key in self._own:
            if begin <= key < end:
                self._own[key] = None
        self.operations.append(lambda database: database.clear_range(begin, end))

    def add(self, key: bytes, delta: int) -> None:
        check_key(key)
        self._write(len(key) + 8, key, key + b"\0")
        self._own[key] = added(self._value(key), delta)
        self.operations.append(lambda database: database.add(key, delta))

    def set_versionstamped_key(self, prefix: bytes, suffix: bytes, value: bytes) -> None:
        key = prefix + bytes(VERSIONSTAMP_SIZE) + suffix
        check_key(key)
        check_value(value)
        self._size += len(key) + len(value)
        self.check()
        self.stamped.append((prefix, suffix, bytes(value)))
