"""Renaming everything below a prefix: at once up to a bound, beyond it in steps that can be
resumed.

A rename of more than ``ATOMIC_MAX`` keys writes a row under ``T`` that says what is to be done
and how far it is. Each step is one transaction that reads the row, moves the next keys and
writes the row anew, so any process may take any step, at any time: the one that was asked, the
service that looks for those left behind (``finish_all``), or another rename that meets the row
and finishes it before it begins. Steps go upwards through the keys and never back; so they come
to an end whatever is written below the source meanwhile, and what is written behind them stays.

Concurrency: nothing is kept in this process between two transactions.
"""

from __future__ import annotations

import msgspec
import structlog

from engine.errors import (
    ConditionConflict,
    InvalidArgument,
    InvalidName,
    NoSuchKey,
    PreconditionFailed,
)
from engine.ids import BucketId
from engine.locks import check_tree_locks
from engine.meta import keyspace
from engine.meta.kv import ReadTransaction, Transaction
from engine.meta.records import (
    FORMAT,
    ChunkData,
    TreeRename,
    VersionRecord,
    decode_tree_rename,
    decode_version,
    encode,
)
from engine.rename import move
from engine.store import Store, get_bucket, key_bytes
from engine.types import KEY_BYTES_MAX, NO_CONDITIONS, BucketInfo, Conditions
from engine.versions import current_version

ATOMIC_MAX = 1000
"""Keys that one transaction moves."""

STEP_WEIGHT_MAX = 2_000_000
"""Bytes of rows that one transaction rewrites, roughly; its limit is five times that."""

CHUNK_ROW_SIZE = 1024
"""More than a chunk's record and its key have."""

SCAN_PAGE = 2000

Rows = list[tuple[bytes, bytes]]


class _UnderWay(msgspec.Struct, frozen=True):
    """A step has to be taken for the row of this key."""

    key: bytes
    ours: bool


class TreeRenames:
    def __init__(self, store: Store) -> None:
        self._store = store

    async def rename_tree(
        self,
        bucket_name: str,
        prefix: str,
        new_prefix: str,
        *,
        conditions: Conditions = NO_CONDITIONS,
    ) -> int:
        source, target = key_bytes(prefix), key_bytes(new_prefix)
        if target != source and target.startswith(source):
            raise InvalidArgument("new prefix", "a tree cannot be moved into itself")
        if len(target) > len(source):
            await self._check_sizes(bucket_name, source, target)
        while True:
            begun = await self._begin(bucket_name, source, target, conditions)
            if isinstance(begun, int):
                return begun
            last = await finish(self._store, begun.key)
            if begun.ours and last is not None:
                if last.left:
                    raise ConditionConflict(new_prefix)
                return last.moved
            if begun.ours:
                # Somebody else took the last step; how many they were in all is theirs to know.
                return 0

    async def _begin(
        self,
        bucket_name: str,
        source: bytes,
        target: bytes,
        conditions: Conditions = NO_CONDITIONS,
    ) -> int | _UnderWay:
        """Move all there is, or leave the row by which it is done step by step."""
        store = self._store

        async def body(tr: Transaction) -> int | _UnderWay:
            bucket = await get_bucket(tr, bucket_name)
            met = await _meets(tr, bucket, source, target)
            if met is not None:
                return met
            rows = await _rows_below(tr, bucket, source, source, ATOMIC_MAX + 1)
            if not rows:
                raise NoSuchKey(bucket_name, source.decode())
            if target == source:
                return 0
            for key, row in await _rows_below(tr, bucket, target, target, 2):
                if key != target or decode_version(row).size:
                    raise PreconditionFailed("empty target")
            for key, _ in rows:
                _new_key(key, source, target)
            # Steps ask no more: no lock is given while the rename is under way (locking.py).
            await check_tree_locks(store, tr, bucket, source, conditions, removes=True)
            held = msgspec.structs.replace(conditions, states=())
            await check_tree_locks(store, tr, bucket, target, held, removes=False)
            if len(rows) <= ATOMIC_MAX and _count_within(rows) == len(rows):
                for key, row in rows:
                    new_key = _new_key(key, source, target)
                    replaced = await current_version(tr, bucket, new_key)
                    record = decode_version(row)
                    await move(store, tr, bucket, (key, record), (new_key, replaced))
                return len(rows)
            under_way = TreeRename(
                format=FORMAT, bucket=bucket_name, new_prefix=target, started_ms=store.clock()
            )
            row_key = keyspace.tree_rename(bucket.bucket_id, source)
            tr.set(row_key, encode(under_way))
            return _UnderWay(row_key, ours=True)

        return await store.db.run(body)

    async def _check_sizes(self, bucket_name: str, source: bytes, target: bytes) -> None:
        """Raises: InvalidName when a key would become too long."""
        after = source

        async def body(tr: ReadTransaction) -> Rows:
            bucket = await get_bucket(tr, bucket_name)
            return await _rows_below(tr, bucket, source, after, SCAN_PAGE)

        while rows := await self._store.db.read(body):
            for key, _ in rows:
                _new_key(key, source, target)
            after = keyspace.after(rows[-1][0])


def _new_key(key: bytes, source: bytes, target: bytes) -> bytes:
    new_key = target + key[len(source) :]
    if len(new_key) > KEY_BYTES_MAX:
        raise InvalidName(new_key.decode(), f"a key has at most {KEY_BYTES_MAX} bytes")
    return new_key


async def _rows_below(
    tr: ReadTransaction, bucket: BucketInfo, prefix: bytes, first: bytes, limit: int
) -> Rows:
    """Return (key, row) of current versions below ``prefix``, from key ``first`` on."""
    base = keyspace.OBJECT + bucket.bucket_id
    end = keyspace.after_prefix(base + prefix)
    rows = await tr.get_range(base + first, end, limit=limit)
    return [(key[len(base) :], row) for key, row in rows]


def _count_within(rows: Rows) -> int:
    """Return how many of the rows one transaction may move; one at the least."""
    weight = 0
    for count, (_, row) in enumerate(rows):
        weight += len(row)
        record = decode_version(row)
        if isinstance(record.data, ChunkData):
            weight += len(record.data.chunks) * CHUNK_ROW_SIZE
        if weight > STEP_WEIGHT_MAX and count:
            return count
    return len(rows)


def _overlap(one: bytes, other: bytes) -> bool:
    return one.startswith(other) or other.startswith(one)


async def _meets(
    tr: ReadTransaction, bucket: BucketInfo, source: bytes, target: bytes
) -> _UnderWay | None:
    """Return a rename under way that has to end first, or that is this very one."""
    base = keyspace.TREE_RENAME + bucket.bucket_id
    for row_key, row in await tr.get_range(base, keyspace.after_prefix(base)):
        other, other_target = row_key[len(base) :], decode_tree_rename(row).new_prefix
        if (other, other_target) == (source, target):
            return _UnderWay(row_key, ours=True)
        if any(_overlap(a, b) for a in (source, target) for b in (other, other_target)):
            return _UnderWay(row_key, ours=False)
    return None


async def step(store: Store, row_key: bytes) -> TreeRename | bool:
    """Move the next keys of a rename under way. Return True when more may be left, the row as
    it was last when it is done, False when there was no such row any more."""
    size = 1 + 8
    bucket_id, source = BucketId(row_key[1:size]), row_key[size:]

    async def body(tr: Transaction) -> TreeRename | bool:
        row = await tr.get(row_key)
        if row is None:
            return False
        under_way = decode_tree_rename(row)
        bucket_row = await tr.get(keyspace.bucket(under_way.bucket))
        bucket = None if bucket_row is None else await get_bucket(tr, under_way.bucket)
        if bucket is None or bucket.bucket_id != bucket_id:
            tr.clear(row_key)
            return under_way
        first = max(source, keyspace.after(under_way.after))
        rows = await _rows_below(tr, bucket, source, first, ATOMIC_MAX)
        if not rows:
            tr.clear(row_key)
            return under_way
        rows = rows[: _count_within(rows)]
        moved = 0
        for key, value in rows:
            record = decode_version(value)
            moved += await _move_unless_taken(store, tr, bucket, (key, record), under_way, source)
        under_way = msgspec.structs.replace(
            under_way,
            after=rows[-1][0],
            moved=under_way.moved + moved,
            left=under_way.left + len(rows) - moved,
        )
        tr.set(row_key, encode(under_way))
        return True

    return await store.db.run(body)


async def _move_unless_taken(
    store: Store,
    tr: Transaction,
    bucket: BucketInfo,
    found: tuple[bytes, VersionRecord],
    under_way: TreeRename,
    source: bytes,
) -> bool:
    """Move one key, unless somebody has written the new one since the rename began, or the new
    one is not possible: what is there is never overwritten, and the key stays where it is."""
    new_key = under_way.new_prefix + found[0][len(source) :]
    if len(new_key) > KEY_BYTES_MAX:
        return False
    replaced = await current_version(tr, bucket, new_key)
    if replaced is not None and (replaced.size or new_key != under_way.new_prefix):
        return False
    await move(store, tr, bucket, found, (new_key, replaced))
    return True


async def finish(store: Store, row_key: bytes) -> TreeRename | None:
    """Take all steps that are left. Return the row as it was last, or None when somebody else
    took the last one."""
    while (done := await step(store, row_key)) is True:
        pass
    if isinstance(done, bool):
        return None
    log = structlog.get_logger()
    source = row_key[9:].decode(errors="replace")
    target = done.new_prefix.decode(errors="replace")
    event = "tree renamed, some keys stay" if done.left else "tree renamed"
    (log.warning if done.left else log.info)(
        event, bucket=done.bucket, source=source, target=target, moved=done.moved, left=done.left
    )
    return done


async def finish_all(store: Store) -> None:
    """Finish the renames that other processes left behind."""

    async def body(tr: ReadTransaction) -> Rows:
        begin = keyspace.TREE_RENAME
        return await tr.get_range(begin, keyspace.after_prefix(begin), limit=SCAN_PAGE)

    for row_key, _ in await store.db.read(body):
        await finish(store, row_key)
