"""One transaction on FoundationDB, as its body sees it.

A body awaits nothing but its transaction: what reaches its driver is the address of a future, and
anything else is refused (``engine.meta.body.BodySuspended``).
"""

from __future__ import annotations

import types
from collections.abc import Generator, Sequence

from engine.meta.fdb_configuration import METADATA_VERSION, Configuration
from engine.meta.fdb_library import Library
from engine.meta.keyspace import after_prefix
from engine.meta.kv import (
    CONFIGURATION,
    TRANSACTION_SIZE_MAX,
    VERSIONSTAMP_SIZE,
    LimitExceeded,
    check_key,
    check_range,
    check_value,
)

_STAMP_PLACE = bytes(VERSIONSTAMP_SIZE)
_CONFIGURATION_RANGES = [(prefix, after_prefix(prefix)) for prefix in CONFIGURATION]


class FdbError(Exception):
    """A future failed with FoundationDB's error ``code``."""

    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code


@types.coroutine
def _ready(future: int) -> Generator[int, None, None]:
    """Suspend the body until the future is ready; its driver then owns the future no more."""
    yield future


class FdbTransaction:
    """``engine.meta.kv.Transaction``: one attempt of a body. Keys of the library begin with
    ``prefix``, keys of the contract don't."""

    def __init__(
        self,
        library: Library,
        pointer: int,
        prefix: bytes,
        configuration: Configuration | None = None,
    ) -> None:
        self._library = library
        self._pointer = pointer
        self._prefix = prefix
        self._stamped: list[tuple[bytes, bytes, bytes]] = []
        self._size = 0
        self._over = False
        self._configuration = configuration
        if configuration is not None:
            self._values, self._version = configuration.values, configuration.version
        self._bumps = False
        """It writes a configuration key: whoever has that in memory must be told."""
        self.version_future = 0
        """For the value of ``METADATA_VERSION``, once something was asked of the cache."""
        self.taken_under: bytes | None = None
        """The version of what was taken from memory; None: nothing was."""
        self.learned: dict[bytes, bytes | None] = {}
        self.error = 0
        """The error that a read met; the attempt has failed whatever its body makes of it."""

    @property
    def has_writes(self) -> bool:
        return self._size > 0

    def close(self) -> None:
        """Let every later call be refused."""
        self._over = True

    def _check(self) -> None:
        if self._over:
            raise RuntimeError("the transaction is over")

    def _fail(self, code: int) -> None:
        self.error = code
        raise FdbError(code)

    async def get(self, key: bytes, *, snapshot: bool = False) -> bytes | None:
        check_key(key)
        self._check()
        library = self._library
        key = self._prefix + key
        future = library.get(self._pointer, key, len(key), snapshot)
        await _ready(future)
        code, value = library.value(future)
        library.destroy(future)
        if code:
            self._fail(code)
        return value

    async def get_cached(self, key: bytes) -> bytes | None:
        configuration = self._configuration
        if configuration is None or self._bumps:
            return await self.get(key)
        self._check()
        if not self.version_future:
            self.version_future = self._library.get(
                self._pointer, METADATA_VERSION, len(METADATA_VERSION), False
            )
        if key in self._values:
            self.taken_under = self._version
            return self._values[key]
        value = await self.get(key)
        self.learned[key] = value
        return value

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
        self._check()
        found: list[tuple[bytes, bytes]] = []
        iteration = 0
        while begin < end:
            iteration += 1
            left = limit - len(found) if limit else 0
            future = self._library.get_range(
                self._pointer,
                self._prefix + begin,
                self._prefix + end,
                limit=left,
                reverse=reverse,
                snapshot=snapshot,
                iteration=iteration,
            )
            await _ready(future)
            pairs, more = self._pairs(future)
            if not found:
                found = list(pairs)
            else:
                found.extend(pairs)
            if not more or len(found) == limit > 0:
                break
            if reverse:
                end = found[-1][0]
            else:
                begin = found[-1][0] + b"\0"
        return found

    def _pairs(self, future: int) -> tuple[Sequence[tuple[bytes, bytes]], bool]:
        code, pairs, more = self._library.pairs(future, len(self._prefix))
        self._library.destroy(future)
        if code:
            self._fail(code)
        return pairs, more

    def _grow(self, size: int) -> None:
        self._size += size
        self.check()

    def check(self) -> None:
        """Raise LimitExceeded if it writes too much, RuntimeError if it is over."""
        self._check()
        if self._size > TRANSACTION_SIZE_MAX:
            raise LimitExceeded(f"transaction of more than {TRANSACTION_SIZE_MAX} bytes")

    def set(self, key: bytes, value: bytes) -> None:
        check_key(key)
        check_value(value)
        self._grow(len(key) + len(value))
        if key.startswith(CONFIGURATION):
            self._bumps = True
        key, value = self._prefix + key, bytes(value)
        self._library.set(self._pointer, key, len(key), value, len(value))

    def clear(self, key: bytes) -> None:
        check_key(key)
        self._grow(2 * len(key) + 1)
        if key.startswith(CONFIGURATION):
            self._bumps = True
        key = self._prefix + key
        self._library.clear(self._pointer, key, len(key))

    def clear_range(self, begin: bytes, end: bytes) -> None:
        check_range(begin, end)
        self._grow(len(begin) + len(end))
        if begin < end:
            if any(begin < after and first < end for first, after in _CONFIGURATION_RANGES):
                self._bumps = True
            begin, end = self._prefix + begin, self._prefix + end
            self._library.clear_range(self._pointer, begin, len(begin), end, len(end))

    def add(self, key: bytes, delta: int) -> None:
        check_key(key)
        self._grow(len(key) + 8)
        operand = (delta & 0xFFFF_FFFF_FFFF_FFFF).to_bytes(8, "little")
        self._library.add(self._pointer, self._prefix + key, operand)

    def set_versionstamped_key(self, prefix: bytes, suffix: bytes, value: bytes) -> None:
        key = prefix + _STAMP_PLACE + suffix
        check_key(key)
        check_value(value)
        self._grow(len(key) + len(value))
        self._stamped.append((prefix, suffix, bytes(value)))

    def finish(self) -> None:
        """Do what waited for the end: the library refuses to read where a stamp may stand."""
        if self._bumps:
            self._library.set_versionstamp(self._pointer, METADATA_VERSION)
        for prefix, suffix, value in self._stamped:
            place = len(self._prefix) + len(prefix)
            key = b"".join(
                (self._prefix, prefix, _STAMP_PLACE, suffix, place.to_bytes(4, "little"))
            )
            self._library.set_versionstamped_key(self._pointer, key, value)
