"""Answers to commits that get lost, once in every transaction of a run, and what the run leaves.

* ``Loss.APPLIED``: the commit happened, and nobody says so.
* ``Loss.DROPPED``: it did not happen, and nobody says so.

A body that runs again sees the same dice and the same clock as the first time, so that runs with
and without losses end with the very same rows: ``rows_of`` gives them, with what really differs
from run to run (versionstamps, measured times) taken out.
"""

from __future__ import annotations

import enum
import hashlib
import sys
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, TypeVar

import msgspec
import pytest

from engine.meta import keyspace
from engine.meta.fdb import FdbDatabase, FdbLocation, FdbOptions, open_fdb
from engine.meta.fdb_library import COMMIT_UNKNOWN_RESULT, Library, load
from engine.meta.kv import Transaction
from tests.support.engine import START_MS
from tests.support.transactions import kind_of_caller

T = TypeVar("T")
Body = Callable[[Transaction], Awaitable[T]]


class Loss(enum.Enum):
    NONE = "no answer is lost"
    APPLIED = "committed, and the answer is lost"
    DROPPED = "not committed, and the answer is lost"


class Fate:
    """Clock (itself) and dice that can be set back. Each caller has dice of its own, so that
    threads which throw at the same time don't take each other's."""

    def __init__(self) -> None:
        self.now_ms = START_MS
        self._throws: Counter[str] = Counter()

    def __call__(self) -> int:
        """Return the time in ms; it moves by 1 with each look."""
        self.now_ms += 1
        return self.now_ms

    def advance(self, seconds: float) -> None:
        self.now_ms += int(seconds * 1000)

    def random(self, size: int, /) -> bytes:
        code = sys._getframe(1).f_code
        where = f"{code.co_filename} {code.co_qualname}"
        self._throws[where] += 1
        seed = f"{where} {self._throws[where]}".encode()
        return hashlib.shake_128(seed).digest(size)

    def save(self) -> tuple[int, Counter[str]]:
        return self.now_ms, self._throws.copy()

    def restore(self, saved: tuple[int, Counter[str]]) -> None:
        self.now_ms, self._throws = saved[0], saved[1].copy()


class _Doomed:
    """A transaction whose first commit is lost."""

    def __init__(self, kind: str | None) -> None:
        self.kind = kind
        self.done = False


class LostCommits:
    """Stands between all stores of this process and the client library."""

    def __init__(self, loss: Loss, library: Library, fate: Fate) -> None:
        self.lost: Counter[str] = Counter()
        """Commits whose answer was lost, by kind of transaction."""
        self._loss = loss
        self._fate = fate
        self._library = library
        self._doomed: dict[int, _Doomed] = {}
        """By the library's transaction: bodies that came to their end, and commit next."""
        self._commit, self._error_of = library.commit, library.error_of
        self._run = FdbDatabase.run
        self._futures: set[int] = set()

    def install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def run(db: FdbDatabase, body: Body[T]) -> Awaitable[T]:
            return self._run_once_more(db, body, kind_of_caller(sys._getframe(1)))

        monkeypatch.setattr(FdbDatabase, "run", run)
        monkeypatch.setattr(self._library, "commit", self.commit)
        monkeypatch.setattr(self._library, "error_of", self.error_of)

    async def _run_once_more(self, db: FdbDatabase, body: Body[T], kind: str | None) -> T:
        before = self._fate.save()
        doomed = _Doomed(kind)
        pointers: set[int] = set()

        async def attempt(tr: Transaction) -> T:
            self._fate.restore(before)
            result = await body(tr)
            pointer: int = tr._pointer  # type: ignore[attr-defined]
            self._doomed[pointer] = doomed
            pointers.add(pointer)
            return result

        try:
            return await self._run(db, attempt)
        finally:
            # What wrote nothing had no commit.
            for pointer in pointers:
                self._doomed.pop(pointer, None)

    def commit(self, pointer: int) -> int:
        doomed = self._doomed.pop(pointer, None)
        if doomed is None or doomed.kind is None or doomed.done or self._loss is Loss.NONE:
            return self._commit(pointer)
        doomed.done = True
        self.lost[doomed.kind] += 1
        if self._loss is Loss.DROPPED:
            future = self._library.get(pointer, b"x", 1, False)
        else:
            future = self._commit(pointer)
        self._futures.add(future)
        return future

    def error_of(self, future: int) -> int:
        code = self._error_of(future)
        if future not in self._futures:
            return code
        self._futures.remove(future)
        return code or COMMIT_UNKNOWN_RESULT


@contextmanager
def losing(loss: Loss, location: FdbLocation, fate: Fate) -> Iterator[LostCommits]:
    """Lose the answer to the first commit of every transaction while the context lasts."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        lost = LostCommits(loss, load(location.library), fate)
        lost.install(monkeypatch)
        # On a machine that does a dozen other things.
        patient = partial(FdbOptions, timeout_s=120.0, open_s_max=120.0)
        monkeypatch.setattr("engine.meta.fdb.FdbOptions", patient)
        monkeypatch.setattr("engine.meta.fdb._DEADLINE_PART", 100.0)
        # What happens by itself after a while, on a slow machine perhaps in the middle of a run.
        monkeypatch.setattr("engine.sessions.RENEW_S_MAX", 1e6)
        monkeypatch.setattr("engine.services.progress.SAVE_EVERY_S", 1e6)
        monkeypatch.setattr("engine.services.upkeep.SLICE_S", 1e6)
        # One after another, so that they take their times in one order.
        for module in ("repair", "rebalance"):
            monkeypatch.setattr(f"engine.services.{module}.AT_ONCE", 1)
        # Ids of nodes, members, drives and stores.
        monkeypatch.setattr("os.urandom", fate.random)
        monkeypatch.setattr("tests.support.machines.SeededRandom", lambda: fate.random)
        yield lost


async def rows_of(location: FdbLocation) -> dict[bytes, Any]:
    """Return all rows of a store, comparable with another run's."""
    rows: dict[bytes, Any] = {}
    changes = 0
    async with open_fdb(location) as db:
        for key, value in await db.read(lambda tr: tr.get_range(b"", b"\xff")):
            if key[:1] == keyspace.FEED:
                # Stamps say in which order, and no more than that.
                changes += 1
                key = keyspace.FEED + changes.to_bytes(10, "big") + key[11:]
            elif key.startswith(keyspace.work("")):
                record = msgspec.msgpack.decode(value)
                record[4] = 0  # active_ms: measured
                rows[key] = record
                continue
            rows[key] = value
    return rows
