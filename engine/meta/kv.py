"""The contract of the metadata store: an ordered, transactional key-value store.

It is FoundationDB's contract, so that code which is right here is right there:

* keys and values are bytes, keys are ordered bytewise;
* a transaction is serializable: it reads one snapshot plus its own writes, and commits only if
  what it read has not changed since (an implementation may as well run writers one by one);
* a body may run more than once, so it changes nothing but ``tr`` and awaits nothing but ``tr``;
* when ``run`` returns, the commit is on stable storage and every later ``read`` or ``run``, in
  any process, sees it.

The limits are FoundationDB's and every implementation enforces them
(https://apple.github.io/foundationdb/known-limitations.html).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Final, Protocol, TypeVar

from engine.errors import EngineError, StorageError

KEY_SIZE_MAX = 9_900
"""FoundationDB's 10,000 less the prefix under which it keeps a store."""

VALUE_SIZE_MAX = 100_000
TRANSACTION_SIZE_MAX = 10_000_000
TRANSACTION_S_MAX = 5.0

VERSIONSTAMP_SIZE = 10
"""Bytes of a versionstamp: 8 of commit version and 2 of order within it, both big-endian."""

SYSTEM_PREFIX = b"\xff"
"""Keys that begin so belong to the store itself; a range may end here, not beyond."""

CONFIGURATION: Final = (b"B", b"Aread only")
"""What keys begin with that nearly every transaction reads and hardly any writes: see
``ReadTransaction.get_cached``."""

T = TypeVar("T")


class LimitExceeded(EngineError):
    """A key, a value or a transaction is larger or longer than the contract allows: our bug."""


class MetadataFailed(StorageError):
    """The store's own disk or server failed; nothing is known to be committed since."""


class ReadTransaction(Protocol):
    """One consistent snapshot. Valid only inside the body that it was given to."""

    async def get(self, key: bytes, *, snapshot: bool = False) -> bytes | None:
        """Return the value, or None.

        ``snapshot=True``: the read takes no part in conflict detection.
        """

    async def get_cached(self, key: bytes) -> bytes | None:
        """Return what ``get`` does, of a key that begins as one of ``CONFIGURATION``.

        Perhaps from memory; then it is proved to be the snapshot's value before the body's result,
        or its exception, counts, and otherwise the body runs again.
        """

    async def get_range(
        self,
        begin: bytes,
        end: bytes,
        *,
        limit: int = 0,
        reverse: bool = False,
        snapshot: bool = False,
    ) -> list[tuple[bytes, bytes]]:
        """Return the pairs with ``begin <= key < end`` in key order, reversed if ``reverse``.

        ``limit`` 0 means all of them; the caller knows that they are few.
        """


class Transaction(ReadTransaction, Protocol):
    """A read-write transaction. Writes are seen by its own later reads at once."""

    def set(self, key: bytes, value: bytes) -> None: ...

    def clear(self, key: bytes) -> None:
        """Remove the key; no error when it is absent."""

    def clear_range(self, begin: bytes, end: bytes) -> None:
        """Remove every key with ``begin <= key < end``."""

    def add(self, key: bytes, delta: int) -> None:
        """Add to a signed 64-bit little-endian counter, without a read conflict.

        An absent key counts as 0; the sum wraps modulo 2**64 as FoundationDB's ADD does.
        """

    def set_versionstamped_key(self, prefix: bytes, suffix: bytes, value: bytes) -> None:
        """Set ``prefix + versionstamp + suffix``; the stamp is known at commit only.

        Stamps ascend in commit order over all processes. Not visible to this transaction's reads.
        """


class Database(Protocol):
    async def run(self, body: Callable[[Transaction], Awaitable[T]]) -> T:
        """Run ``body`` until it commits and return its result; durable on return.

        An exception from the body aborts the transaction and is raised here.

        Raises:
            LimitExceeded, MetadataFailed; Unavailable when it cannot commit in time.
        """

    async def read(self, body: Callable[[ReadTransaction], Awaitable[T]]) -> T:
        """Run a body that only reads, on one snapshot."""

    async def watch(self, key: bytes, value: bytes | None) -> None:
        """Return once the key's value differs (or may have differed) from ``value``.

        Returns at once if it differs now. Wake-ups may be spurious; the caller reads again.
        """

    async def aclose(self) -> None: ...


def check_key(key: bytes) -> None:
    if len(key) > KEY_SIZE_MAX:
        raise LimitExceeded(f"key of {len(key)} bytes, at most {KEY_SIZE_MAX}")
    if key[:1] == SYSTEM_PREFIX:
        raise LimitExceeded("key begins with FF")


def check_range(begin: bytes, end: bytes) -> None:
    if len(begin) > KEY_SIZE_MAX or len(end) > KEY_SIZE_MAX:
        raise LimitExceeded(f"key of a range has more than {KEY_SIZE_MAX} bytes")
    if end > SYSTEM_PREFIX:
        raise LimitExceeded("range ends after FF")


def check_value(value: bytes) -> None:
    if len(value) > VALUE_SIZE_MAX:
        raise LimitExceeded(f"value of {len(value)} bytes, at most {VALUE_SIZE_MAX}")
