"""Who waits for which key to change."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import trio

from engine.errors import SlowDown
from engine.meta.kv import ReadTransaction

WATCHES_MAX = 10_000
"""FoundationDB's default."""


class _Watch:
    __slots__ = ("event", "value")

    def __init__(self, value: bytes | None) -> None:
        self.event = trio.Event()
        self.value = value


class Watches:
    """The watches of one process. Truthy while there are any."""

    def __init__(self) -> None:
        self._by_key: dict[bytes, set[_Watch]] = {}
        self._count = 0
        self._any = trio.Event()

    def __bool__(self) -> bool:
        return self._count > 0

    @contextmanager
    def watch(self, key: bytes, value: bytes | None) -> Iterator[trio.Event]:
        """Give an event that is set when the key may differ from ``value``.

        Raises: SlowDown: there are too many already.
        """
        if self._count >= WATCHES_MAX:
            raise SlowDown("too many watches")
        watch = _Watch(value)
        self._by_key.setdefault(key, set()).add(watch)
        self._count += 1
        self._any.set()
        try:
            yield watch.event
        finally:
            self._count -= 1
            watches = self._by_key[key]
            watches.discard(watch)
            if not watches:
                del self._by_key[key]

    def watched(self, key: bytes) -> bool:
        return key in self._by_key

    def changed(self, begin: bytes, end: bytes | None) -> None:
        """Wake the watches of the key ``begin``, or of the keys from it up to ``end``."""
        keys = [begin] if end is None else [k for k in self._by_key if begin <= k < end]
        for key in keys:
            for watch in self._by_key.get(key, ()):
                watch.event.set()

    def wake_all(self) -> None:
        for watches in self._by_key.values():
            for watch in watches:
                watch.event.set()

    async def compare(self, transaction: ReadTransaction) -> None:
        """Wake the watches whose key has another value in ``transaction``: the body of a read."""
        for key, watches in self._by_key.items():
            value = await transaction.get(key)
            for watch in watches:
                if watch.value != value:
                    watch.event.set()

    async def wait_for_any(self) -> None:
        """Return while there is a watch."""
        if not self._count:
            self._any = trio.Event()
        await self._any.wait()
