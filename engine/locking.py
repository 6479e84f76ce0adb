"""Taking, renewing, giving back and showing locks (``engine.locks`` says what they do)."""

from __future__ import annotations

import uuid
from functools import partial

import msgspec

from engine.conditions import check_write
from engine.empty import put_empty
from engine.errors import ConditionConflict, InvalidArgument, Locked, NoSuchLock
from engine.locks import (
    RootLocks,
    check_locks,
    check_states,
    is_folder,
    locks_around,
    locks_below,
    put_locks,
)
from engine.members import member_rows
from engine.meta import keyspace
from engine.meta.kv import ReadTransaction, Transaction
from engine.meta.records import LockEntry, decode_locks, decode_tree_rename
from engine.store import Store, get_bucket, key_bytes
from engine.types import NO_CONDITIONS, BucketInfo, Conditions, LockInfo, LockRequest, StateList
from engine.versions import current_version

SHARED_MAX = 32
"""Locks of one root; with ``OWNER_SIZE_MAX`` they stay within one value."""

OWNER_SIZE_MAX = 2048
PRINCIPAL_SIZE_MAX = 256


def lock_info(bucket: str, root: bytes, lock: LockEntry) -> LockInfo:
    return LockInfo(
        bucket=bucket,
        root=root.decode(),
        token=lock.token,
        exclusive=lock.exclusive,
        deep=lock.deep,
        principal=lock.principal,
        owner=lock.owner,
        timeout_s=lock.timeout_s,
        expires_ms=lock.expires_ms,
    )


def _root_bytes(key: str) -> bytes:
    """Return a root as it is stored; unlike a key it may be empty. Raises: InvalidName."""
    return key_bytes(key) if key else b""


class Locking:
    """Keys may be folders (``a/``), or empty for the bucket itself."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def lock(
        self,
        bucket_name: str,
        key: str,
        wanted: LockRequest,
        *,
        conditions: Conditions = NO_CONDITIONS,
    ) -> tuple[LockInfo, bool]:
        """Lock a key, a folder or a bucket; a key that is free becomes an empty object. Return
        the lock and whether that was so.

        Raises: NoSuchBucket, InvalidName, InvalidArgument, PreconditionFailed; Locked: another
        lock is in the way; ConditionConflict: a tree is just being renamed there.
        """
        root = _root_bytes(key)
        if len(wanted.owner.encode()) > OWNER_SIZE_MAX:
            raise InvalidArgument("owner", f"at most {OWNER_SIZE_MAX} bytes")
        if len(wanted.principal.encode()) > PRINCIPAL_SIZE_MAX:
            raise InvalidArgument("principal", f"at most {PRINCIPAL_SIZE_MAX} bytes")
        store = self._store
        token = str(uuid.UUID(bytes=store.random(16), version=4))

        async def body(tr: Transaction) -> tuple[LockInfo, bool]:
            bucket = await get_bucket(tr, bucket_name)
            await _refuse_while_renamed(tr, bucket, root)
            current = await current_version(tr, bucket, root) if root else None
            check_write(conditions, bucket_name, key, current)
            around = await locks_around(tr, bucket.bucket_id, root)
            now_ms = store.clock()
            _refuse_conflicts(around, bucket_name, root, wanted, now_ms)
            if wanted.deep and is_folder(root):
                below = await locks_below(tr, bucket.bucket_id, root)
                _refuse_conflicts(below, bucket_name, root, wanted, now_ms, below=True)
            created = False
            if root and current is None:
                await check_locks(store, tr, bucket, root, conditions, membership=True)
                await put_empty(store, tr, bucket, root)
                created = not is_folder(root)
            elif conditions.states:
                await check_states(store, conditions.states, tr)
            entry = LockEntry(
                token=token,
                exclusive=wanted.exclusive,
                deep=wanted.deep,
                principal=wanted.principal,
                owner=wanted.owner,
                timeout_s=wanted.timeout_s,
                expires_ms=now_ms + wanted.timeout_s * 1000,
            )
            kept = _of_root(around, root, now_ms)
            if len(kept) >= SHARED_MAX:
                raise Locked(bucket_name, key, key)
            put_locks(tr, bucket.bucket_id, root, [*kept, entry])
            return lock_info(bucket_name, root, entry), created

        return await store.db.run(body)

    async def refresh(
        self, bucket_name: str, key: str, token: str, timeout_s: int, *, conditions: Conditions
    ) -> LockInfo:
        """Let a lock that covers the key live ``timeout_s`` from now on.

        Raises: NoSuchBucket, NoSuchLock (also when it is another principal's),
        PreconditionFailed.
        """
        store = self._store

        async def body(tr: Transaction) -> LockInfo:
            bucket = await get_bucket(tr, bucket_name)
            if conditions.states:
                await check_states(store, conditions.states, tr)
            now_ms = store.clock()
            found, entry = await _held(tr, bucket, key, token, conditions.principal, now_ms)
            renewed = msgspec.structs.replace(
                entry, timeout_s=timeout_s, expires_ms=now_ms + timeout_s * 1000
            )
            locks = [renewed if lock.token == token else lock for lock in found.live(now_ms)]
            put_locks(tr, bucket.bucket_id, found.root, locks)
            return lock_info(bucket_name, found.root, renewed)

        return await store.db.run(body)

    async def unlock(self, bucket_name: str, key: str, token: str, *, principal: str) -> None:
        """Give back a lock that covers the key. Raises: NoSuchBucket, NoSuchLock."""
        store = self._store

        async def body(tr: Transaction) -> None:
            bucket = await get_bucket(tr, bucket_name)
            now_ms = store.clock()
            found, _ = await _held(tr, bucket, key, token, principal, now_ms)
            locks = [lock for lock in found.live(now_ms) if lock.token != token]
            put_locks(tr, bucket.bucket_id, found.root, locks)

        await store.db.run(body)

    async def around(self, bucket_name: str, key: str) -> list[LockInfo]:
        """Return the locks that cover the key, outermost first. Raises: NoSuchBucket."""
        raw_key = _root_bytes(key)

        async def body(tr: ReadTransaction) -> list[LockInfo]:
            bucket = await get_bucket(tr, bucket_name)
            now_ms = self._store.clock()
            return [
                lock_info(bucket_name, found.root, lock)
                for found in await locks_around(tr, bucket.bucket_id, raw_key)
                for lock in found.live(now_ms)
                if lock.deep or found.root == raw_key
            ]

        return await self._store.db.read(body)

    async def of_members(
        self, bucket_name: str, folder: str, first: str, last: str
    ) -> dict[str, list[LockInfo]]:
        """Return the locks whose roots are members of a folder, by their keys, from ``first`` to
        ``last``; a member that is a folder ends with a slash. Raises: NoSuchBucket."""

        async def body(tr: ReadTransaction) -> dict[str, list[LockInfo]]:
            bucket = await get_bucket(tr, bucket_name)
            base = keyspace.LOCK + bucket.bucket_id
            rows = await member_rows(tr, base, folder.encode(), first.encode(), last.encode())
            now_ms = self._store.clock()
            return {
                key.decode(): [
                    lock_info(bucket_name, key, lock)
                    for lock in RootLocks(key, decode_locks(row).locks).live(now_ms)
                ]
                for key, row in rows
            }

        return await self._store.db.read(body)

    async def check(self, states: tuple[StateList, ...]) -> None:
        """Raises: PreconditionFailed unless one of the lists holds, or there is none."""
        if states:
            await self._store.db.read(partial(check_states, self._store, states))


async def _held(
    tr: ReadTransaction, bucket: BucketInfo, key: str, token: str, principal: str, now_ms: int
) -> tuple[RootLocks, LockEntry]:
    """Return the lock with this token that covers the key. Raises: NoSuchLock."""
    raw_key = _root_bytes(key)
    for found in await locks_around(tr, bucket.bucket_id, raw_key):
        for lock in found.live(now_ms):
            if (
                lock.token == token
                and lock.principal == principal
                and (lock.deep or found.root == raw_key)
            ):
                return found, lock
    raise NoSuchLock(bucket.name, key, token)


def _of_root(around: list[RootLocks], root: bytes, now_ms: int) -> list[LockEntry]:
    return [lock for found in around if found.root == root for lock in found.live(now_ms)]


def _refuse_conflicts(
    others: list[RootLocks],
    bucket: str,
    root: bytes,
    wanted: LockRequest,
    now_ms: int,
    *,
    below: bool = False,
) -> None:
    """Raises: Locked: two locks would cover one key, and one of them is exclusive."""
    for found in others:
        for lock in found.live(now_ms):
            meets = below or lock.deep or found.root == root
            if meets and (wanted.exclusive or lock.exclusive):
                raise Locked(bucket, root.decode(), found.root.decode())


async def _refuse_while_renamed(tr: ReadTransaction, bucket: BucketInfo, root: bytes) -> None:
    """A rename in steps asked for locks before its first one, and goes on whatever comes.

    Raises: ConditionConflict.
    """
    base = keyspace.TREE_RENAME + bucket.bucket_id
    for row_key, row in await tr.get_range(base, keyspace.after_prefix(base)):
        for prefix in (row_key[len(base) :], decode_tree_rename(row).new_prefix):
            if prefix.startswith(root) or root.startswith(prefix):
                raise ConditionConflict(root.decode())
