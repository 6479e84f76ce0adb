"""Locks, as a transaction that writes sees them: which cover a key, and whether they let it by.

A lock has a *root*: a key, a folder (``a/b/``) or the bucket (the empty key), and is one row under
``W`` together with the other, shared, locks of that root. It covers

* its root;
* when it is deep and its root a folder, every key below;
* when it is not deep and its root a folder, which members the folder has: a key appears or
  vanishes there only with the token (RFC 4918, section 7.4).

Every write asks ``check_locks`` in the transaction that commits it, so a lock that was taken
before is never passed by, whichever frontend or process writes. In a bucket without locks that
is one range read that finds nothing; with locks it costs at most as many reads as the key has
locks around it or characters, whichever is less, however many locks there are.

Locks that timed out are as good as gone; their rows go when a write meets them or the sweep does.
The root of a lock exists as an object (a bucket always does): who locks a free name makes an empty
object, who locks a folder that only its members make gets a marker. What is deleted or moved away
loses the locks on it; what is replaced keeps them.

Source: RFC 4918, sections 6, 7, 9.10 and 10.4.
"""

from __future__ import annotations

from functools import partial

import msgspec

from engine.errors import Locked, NoSuchBucket, PreconditionFailed
from engine.ids import BucketId
from engine.meta import keyspace
from engine.meta.kv import ReadTransaction, Transaction
from engine.meta.records import FORMAT, LockEntry, LocksRecord, decode_locks, encode
from engine.store import Store, get_bucket
from engine.types import BucketInfo, Conditions, StateList
from engine.versions import current_version

SWEEP_PAGE = 500


class RootLocks(msgspec.Struct, frozen=True):
    """The locks of one root, those that timed out among them."""

    root: bytes
    locks: list[LockEntry]

    def live(self, now_ms: int) -> list[LockEntry]:
        return [lock for lock in self.locks if lock.expires_ms > now_ms]


def parent(key: bytes) -> bytes:
    """Return the folder that a key, or a folder, is a member of; empty: the bucket."""
    return key[: key.rstrip(b"/").rfind(b"/") + 1]


def is_folder(root: bytes) -> bool:
    return not root or root.endswith(b"/")


async def locks_around(tr: ReadTransaction, bucket_id: BucketId, key: bytes) -> list[RootLocks]:
    """Return the locks of the key itself and of every folder above it, outermost first."""
    base = keyspace.LOCK + bucket_id
    begin, end = base, base + keyspace.after(key)
    found: list[RootLocks] = []
    while rows := await tr.get_range(begin, end, limit=1):
        row_key, row = rows[0]
        root = row_key[len(base) :]
        if key.startswith(root):
            if root == key or is_folder(root):
                found.append(RootLocks(root, decode_locks(row).locks))
            begin = keyspace.after(row_key)
        else:
            # Whatever is around the key and behind this root has one character more in common.
            begin = base + key[: _common(root, key) + 1]
    return found


def _common(one: bytes, other: bytes) -> int:
    """Return how many bytes two keys have in common at their beginning."""
    low, high = 0, min(len(one), len(other))
    while low < high:
        middle = (low + high + 1) // 2
        if one[:middle] == other[:middle]:
            low = middle
        else:
            high = middle - 1
    return low


async def locks_below(tr: ReadTransaction, bucket_id: BucketId, folder: bytes) -> list[RootLocks]:
    """Return the locks with roots below a folder, itself left out."""
    begin = keyspace.lock(bucket_id, folder)
    rows = await tr.get_range(keyspace.after(begin), keyspace.after_prefix(begin))
    return [RootLocks(key[9:], decode_locks(row).locks) for key, row in rows]


def _holds_one(locks: list[LockEntry], conditions: Conditions) -> bool:
    return any(
        lock.token in conditions.lock_tokens and lock.principal == conditions.principal
        for lock in locks
    )


def refuse_unless_held(
    around: list[RootLocks],
    bucket: str,
    key: bytes,
    conditions: Conditions,
    *,
    now_ms: int,
    membership: bool,
) -> None:
    """Decide from the locks around a key. Locks that cover it together are all shared, and the
    token of any one will do; so it is with those that guard its folder's members.

    Raises: Locked.
    """
    covering: list[LockEntry] = []
    guarding: list[LockEntry] = []
    covering_root = guarding_root = b""
    for found in around:
        for lock in found.live(now_ms):
            if lock.deep or found.root == key:
                covering.append(lock)
                covering_root = found.root
            elif membership and found.root == parent(key):
                guarding.append(lock)
                guarding_root = found.root
    for locks, root in ((covering, covering_root), (guarding, guarding_root)):
        if locks and not _holds_one(locks, conditions):
            raise Locked(bucket, key.decode(), root.decode())


async def check_locks(
    store: Store,
    tr: Transaction,
    bucket: BucketInfo,
    raw_key: bytes,
    conditions: Conditions,
    *,
    membership: bool,
    removes: bool = False,
) -> None:
    """Let a write of one key by, or refuse it; before the transaction's first write.

    Args:
        membership: the key appears or vanishes.
        removes: the key goes, and takes the locks on it along.
    Raises: Locked; PreconditionFailed when no state list holds.
    """
    around = await refuse_if_locked(store, tr, bucket, raw_key, conditions, membership=membership)
    for found in around:
        if (removes and found.root == raw_key) or not found.live(store.clock()):
            tr.clear(keyspace.lock(bucket.bucket_id, found.root))


async def refuse_if_locked(
    store: Store,
    tr: ReadTransaction,
    bucket: BucketInfo,
    raw_key: bytes,
    conditions: Conditions,
    *,
    membership: bool,
) -> list[RootLocks]:
    """Decide as ``check_locks`` does, and change nothing; return the locks around the key."""
    if conditions.states:
        await check_states(store, conditions.states, tr)
    around = await locks_around(tr, bucket.bucket_id, raw_key)
    if around:
        refuse_unless_held(
            around,
            bucket.name,
            raw_key,
            conditions,
            now_ms=store.clock(),
            membership=membership,
        )
    return around


async def check_tree_locks(
    store: Store,
    tr: Transaction,
    bucket: BucketInfo,
    folder: bytes,
    conditions: Conditions,
    *,
    removes: bool,
) -> None:
    """Let a change of a folder with everything below by, or refuse it.

    Args:
        removes: all of it goes, and takes the locks on it along.
    Raises: Locked; PreconditionFailed when no state list holds.
    """
    await check_locks(store, tr, bucket, folder, conditions, membership=True, removes=removes)
    below = await locks_below(tr, bucket.bucket_id, folder)
    now_ms = store.clock()
    for found in below:
        live = found.live(now_ms)
        if live and not _holds_one(live, conditions):
            raise Locked(bucket.name, folder.decode(), found.root.decode())
    if removes and below:
        begin = keyspace.lock(bucket.bucket_id, folder)
        tr.clear_range(begin, keyspace.after_prefix(begin))


async def check_states(store: Store, states: tuple[StateList, ...], tr: ReadTransaction) -> None:
    """Raises: PreconditionFailed unless one of the lists holds."""
    for state in states:
        if await _holds(store, tr, state):
            return
    raise PreconditionFailed("If")


async def _holds(store: Store, tr: ReadTransaction, state: StateList) -> bool:
    try:
        bucket = await get_bucket(tr, state.bucket)
    except NoSuchBucket:
        return all(test.negated for test in state.tests)
    key = state.key.encode()
    now_ms = store.clock()
    current = await current_version(tr, bucket, key) if key else None
    tokens: set[str] | None = None
    for test in state.tests:
        if test.etag is not None:
            true = current is not None and current.etag == test.etag
        else:
            if tokens is None:
                tokens = await _tokens(tr, bucket.bucket_id, key, now_ms)
            true = test.token in tokens
        if true == test.negated:
            return False
    return True


async def _tokens(tr: ReadTransaction, bucket_id: BucketId, key: bytes, now_ms: int) -> set[str]:
    """Return the tokens of the locks of a resource: who names it may leave a folder's slash out."""
    keys = (key,) if is_folder(key) else (key, key + b"/")
    return {
        lock.token
        for name in keys
        for found in await locks_around(tr, bucket_id, name)
        for lock in found.live(now_ms)
        if lock.deep or found.root == name
    }


def put_locks(tr: Transaction, bucket_id: BucketId, root: bytes, locks: list[LockEntry]) -> None:
    """Make these the locks of a root."""
    if locks:
        tr.set(keyspace.lock(bucket_id, root), encode(LocksRecord(format=FORMAT, locks=locks)))
    else:
        tr.clear(keyspace.lock(bucket_id, root))


async def sweep_locks(store: Store) -> None:
    """Remove the rows of all locks that timed out; page by page, each a transaction."""
    begin = keyspace.LOCK
    while True:

        async def body(tr: ReadTransaction, begin: bytes = begin) -> list[tuple[bytes, bytes]]:
            end = keyspace.after_prefix(keyspace.LOCK)
            return await tr.get_range(begin, end, limit=SWEEP_PAGE)

        rows = await store.db.read(body)
        now_ms = store.clock()
        over = [key for key, row in rows if _is_over(row, now_ms)]
        if over:
            await store.db.run(partial(_clear_timed_out, store, over))
        if len(rows) < SWEEP_PAGE:
            return
        begin = keyspace.after(rows[-1][0])


def _is_over(row: bytes, now_ms: int) -> bool:
    return all(lock.expires_ms <= now_ms for lock in decode_locks(row).locks)


async def _clear_timed_out(store: Store, keys: list[bytes], tr: Transaction) -> None:
    """Remove those of the rows that are still there and still timed out."""
    now_ms = store.clock()
    for key in keys:
        row = await tr.get(key)
        if row is not None and _is_over(row, now_ms):
            tr.clear(key)
