"""Leases: one process at a time runs a service, whoever takes it first and renews it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TypeAlias

import structlog
import trio

from engine.errors import EngineError, StorageError, StoreReadOnly
from engine.meta import keyspace
from engine.meta.kv import ReadTransaction, Transaction
from engine.meta.records import FORMAT, LeaseRecord, decode_lease, encode
from engine.store import Store

LEASE_S = 30.0
RELEASE_S_MAX = 2.0
READ_ONLY_S = 2.0
"""How soon to try again when the store may not be changed."""

Step: TypeAlias = Callable[[], Awaitable[None]]


async def acquire(store: Store, name: str, holder: bytes, *, lease_s: float = LEASE_S) -> bool:
    """Take or renew the lease for ``holder``; False while somebody else has it."""
    now = store.clock()

    async def is_taken(tr: ReadTransaction) -> bool:
        row = await tr.get(keyspace.lease(name))
        if row is None:
            return False
        lease = decode_lease(row)
        return lease.holder != holder and lease.expires_ms > now

    # Most look in vain, and often: reading takes no lock from those who write.
    if await store.db.read(is_taken):
        return False

    async def body(tr: Transaction) -> bool:
        if await is_taken(tr):
            return False
        record = LeaseRecord(format=FORMAT, holder=holder, expires_ms=now + int(lease_s * 1000))
        tr.set(keyspace.lease(name), encode(record))
        return True

    return await store.db.run(body)


async def release(store: Store, name: str, holder: bytes) -> None:
    async def body(tr: Transaction) -> None:
        row = await tr.get(keyspace.lease(name))
        if row is not None and decode_lease(row).holder == holder:
            tr.clear(keyspace.lease(name))

    await store.db.run(body)


async def run_leased(
    store: Store, name: str, work: Step, wait: Step, *, lease_s: float | None = None
) -> None:
    """Run ``work`` again and again, as long as this process has the lease; ``wait`` in between.

    An EngineError ends one round only. While ``work`` runs the lease is renewed; when it is lost
    (the process was stopped for longer than it lasts), the round is cancelled. Cancelled itself,
    it gives the lease up at once.

    Args:
        lease_s: how long others wait for a process that died; None: ``LEASE_S``.
    """
    holder = store.random(16)
    lease_s = LEASE_S if lease_s is None else min(lease_s, LEASE_S)
    log = structlog.get_logger().bind(service=name)
    while True:
        await wait()
        try:
            if not await acquire(store, name, holder, lease_s=lease_s):
                continue
            try:
                async with trio.open_nursery() as nursery:
                    scope = nursery.cancel_scope
                    nursery.start_soon(_keep, store, name, holder, scope, lease_s)
                    try:
                        await work()
                    except EngineError as error:
                        log.warning("round ended early", error=str(error))
                    scope.cancel()
            finally:
                with trio.move_on_after(RELEASE_S_MAX, shield=True):
                    await release(store, name, holder)
        except StoreReadOnly:
            # Services have time; whoever made it so has said it.
            await trio.sleep(READ_ONLY_S)
        except StorageError as error:
            log.error("metadata store failed", error=str(error))


async def _keep(
    store: Store, name: str, holder: bytes, scope: trio.CancelScope, lease_s: float
) -> None:
    while True:
        await trio.sleep(lease_s / 3)
        try:
            kept = await acquire(store, name, holder, lease_s=lease_s)
        except StorageError as error:
            # Without news of the lease somebody else may have it soon: the round ends here.
            if not isinstance(error, StoreReadOnly):
                structlog.get_logger().error("lease not renewed", service=name, error=str(error))
            kept = False
        if not kept:
            scope.cancel()
            return
