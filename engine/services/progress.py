"""How far a long piece of work is: written down so that it resumes there, and for people to see.

A row is written at most every ``SAVE_EVERY_S`` and at the end of a run, so what is done twice
after a crash is little, and whatever walks with a cursor may repeat.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from typing import TypeAlias, TypeVar

import msgspec
import structlog
import trio

from engine.data.context import first_error
from engine.errors import EngineError
from engine.ids import ChunkId
from engine.meta import keyspace
from engine.meta.kv import Database, ReadTransaction, Transaction
from engine.meta.records import FORMAT, ChunkRecord, decode_chunk, encode
from engine.node.contract import NodeError
from engine.services.scan import scan_prefix
from engine.store import Store
from engine.types import WorkStatus

SAVE_EVERY_S = 1.0
STALLED_MS = 90_000
"""Work that nobody wrote about for so long does not run now."""
PAGE = 128
"""Chunks of a walk between two looks at the clock and the cursor."""

T = TypeVar("T")
Visit: TypeAlias = Callable[[ChunkId, ChunkRecord], Awaitable[None]]


class ProgressRecord(msgspec.Struct, array_like=True):
    format: int
    title: str
    """What people read: ``rebalance``, ``rebuild /srv/d1 of m3``."""
    started_ms: int
    updated_ms: int = 0
    active_ms: int = 0
    """Time spent on it; pauses and crashes do not count."""
    done: int = 0
    """Chunks looked at."""
    total: int = 0
    left: int = 0
    """Things that could not be done; they are tried again later."""
    cursor: bytes = b""
    """Key at which to go on."""
    ended: bool = False
    counts: dict[str, int] = {}
    settled: int = 0
    """As ``done``, at the cursor: where it goes on after a crash."""
    size: int = 0
    """Written (by repair and moves) or read (by scrub)."""


_decode = msgspec.msgpack.Decoder(ProgressRecord).decode


class Progress:
    """The progress of one piece of work in this process; who has the lease has it alone."""

    def __init__(self, store: Store, name: str, record: ProgressRecord) -> None:
        self.record = record
        self._store = store
        self._key = keyspace.work(name)
        self._active_since = trio.current_time()
        self._saved = trio.current_time()

    @classmethod
    async def load(cls, store: Store, name: str) -> Progress | None:
        """Return what was written down last, ended or not."""

        async def body(tr: ReadTransaction) -> bytes | None:
            return await tr.get(keyspace.work(name))

        row = await store.db.read(body)
        if row is None:
            return None
        record = _decode(row)
        if not record.ended:
            record.done = record.settled
        return cls(store, name, record)

    @classmethod
    def begin(cls, store: Store, name: str, title: str, *, total: int) -> Progress:
        """Return new progress; it is written down with the first ``save``."""
        record = ProgressRecord(FORMAT, title, store.clock(), total=total)
        record.cursor = keyspace.CHUNK
        return cls(store, name, record)

    async def save(self, *, now: bool = False) -> None:
        """Write it down, if that is due (``now``: in any case)."""
        time = trio.current_time()
        if not now and time - self._saved < SAVE_EVERY_S:
            return
        record = self.record
        record.active_ms += int((time - self._active_since) * 1000)
        record.updated_ms = self._store.clock()
        self._active_since = self._saved = time
        row = encode(record)

        async def body(tr: Transaction) -> None:
            tr.set(self._key, row)

        await self._store.db.run(body)

    async def end(self) -> None:
        self.record.ended = True
        await self.save(now=True)


async def count_chunks(store: Store) -> int:
    count = 0
    async for _ in scan_prefix(store.db, keyspace.CHUNK, page=2000):
        count += 1
    return count


async def next_page(
    db: Database, begin: bytes, limit: int = PAGE
) -> list[tuple[ChunkId, ChunkRecord]]:
    """Return the chunks from the key ``begin`` on, in order; fewer than ``limit`` at the end."""

    async def body(tr: ReadTransaction) -> list[tuple[bytes, bytes]]:
        return await tr.get_range(begin, keyspace.after_prefix(keyspace.CHUNK), limit=limit)

    return [(ChunkId(key[1:]), decode_chunk(row)) for key, row in await db.read(body)]


async def walk_page(
    store: Store,
    progress: Progress,
    visit: Visit,
    *,
    at_once: int,
    event: str,
    stop: Callable[[], bool] = lambda: False,
) -> bool:
    """Visit one page of chunks, or less when ``stop`` says so; return whether there may be more.

    A visit that fails is logged as ``event`` and counted as left.
    """
    record = progress.record

    async def one(item: tuple[ChunkId, ChunkRecord]) -> None:
        try:
            await visit(*item)
        except (EngineError, NodeError) as error:
            record.left += 1
            structlog.get_logger().warning(
                event, chunk=item[0].hex(), error=str(error) or type(error).__name__
            )
        record.done += 1
        await progress.save()

    page = await next_page(store.db, record.cursor)
    taken = await each(page, one, at_once=at_once, stop=stop)
    if taken:
        record.cursor = keyspace.after(keyspace.chunk(page[taken - 1][0]))
        record.settled = record.done
    return taken < len(page) or len(page) == PAGE


async def each(
    items: Iterable[T],
    work: Callable[[T], Awaitable[None]],
    *,
    at_once: int,
    stop: Callable[[], bool] = lambda: False,
) -> int:
    """Do ``work`` for the items in their order, for up to ``at_once`` of them at the same time.

    Returns: how many of the first items are done: all, unless ``stop`` said to begin no more.
    Raises: what ``work`` raises, bare, after the others were cancelled.
    """
    left = iter(items)
    taken = 0

    async def take() -> None:
        nonlocal taken
        while not (taken and stop()):
            try:
                item = next(left)
            except StopIteration:
                return
            taken += 1
            await work(item)

    try:
        async with trio.open_nursery() as nursery:
            for _ in range(at_once):
                nursery.start_soon(take)
    except BaseExceptionGroup as errors:
        raise first_error(errors) from None
    return taken


class Rate:
    """Bytes per second that everything which shares this object uses at most; 0: no limit."""

    def __init__(self, per_s: int) -> None:
        self._per_s = per_s
        self._free_at = 0.0

    async def take(self, size: int) -> None:
        """Wait until ``size`` bytes more are allowed."""
        if self._per_s <= 0:
            return
        now = trio.current_time()
        self._free_at = max(self._free_at, now) + size / self._per_s
        await trio.sleep(self._free_at - now)


async def running_work(store: Store) -> list[WorkStatus]:
    """Return all work that is under way or waits to go on."""
    found = []
    prefix = keyspace.work("")
    async for key, row in scan_prefix(store.db, prefix):
        record = _decode(row)
        if not record.ended:
            found.append(_status(key[len(prefix) :].decode(), record, store.clock()))
    return found


def _status(name: str, record: ProgressRecord, now_ms: int) -> WorkStatus:
    active_s = record.active_ms / 1000
    per_s = record.done / active_s if active_s > 0 else 0.0
    left = max(record.total - record.done, 0)
    return WorkStatus(
        name=name,
        title=record.title,
        running=now_ms - record.updated_ms < STALLED_MS,
        done=record.done,
        total=record.total,
        bytes=record.size,
        bytes_per_s=record.size / active_s if active_s > 0 else 0.0,
        seconds_left=left / per_s if per_s > 0 and record.total else None,
        left=record.left,
        started_ms=record.started_ms,
    )
