"""Opening a store: metadata, drives, session and services, put together and taken apart."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial

import structlog
import trio

from engine.cluster.admin import make_secret
from engine.cluster.heartbeat import Heartbeat
from engine.cluster.view import ClusterView
from engine.cluster.wire import Connect, connect_over_http
from engine.config import Profile, StoreConfig
from engine.data.context import Limiters, first_error
from engine.data.nodes import NodePool
from engine.data.store import DataStore
from engine.drives import Drives, is_cluster, known_nodes, prepare_drives
from engine.engine import Engine
from engine.errors import ConfigError
from engine.identity import read_or_make_identity
from engine.ids import Clock, Random
from engine.locks import sweep_locks
from engine.meta import keyspace
from engine.meta.kv import Database, ReadTransaction, Transaction
from engine.meta.read_only import GuardedDatabase
from engine.metadata import find_identity, open_metadata, shared_store_id
from engine.node.disk import Disk, RealDisk
from engine.rename_tree import finish_all
from engine.services.collector import collect
from engine.services.leases import Step, run_leased
from engine.services.repair import DamageLog
from engine.services.scrub import Scrub
from engine.services.upkeep import Upkeep
from engine.sessions import Sessions
from engine.store import Store

COLLECT_EVERY_S = 60.0
COMPACT_EVERY_S = 300.0
FINISH_RENAMES_EVERY_S = 60.0
SWEEP_LOCKS_EVERY_S = 300.0
HEARTBEAT_LEASE_S = 10.0
"""So soon another gateway watches the members when the one that did is gone."""
CLOSE_S_MAX = 20.0
WORK_THREADS = 4
DISK_THREADS = 64


class WallClock:
    """Milliseconds since 1970 that never go back within this process."""

    def __init__(self) -> None:
        self._last = 0

    def __call__(self) -> int:
        self._last = max(self._last, time.time_ns() // 1_000_000)
        return self._last


async def prepare_store(
    config: StoreConfig,
    *,
    disk: Disk | None = None,
    clock: Clock | None = None,
    cluster: bool = False,
    cluster_secret: bytes | None = None,
) -> None:
    """Make the store if the folder is new, and see to its drives; before any process opens it.

    Args:
        cluster: its drives are to be those of its members; it gets a secret, and no drive.
        cluster_secret: None: the one that it has, or a new one.
    Raises: ConfigError: what is wrong with which folder or setting.
    """
    disk, clock = disk or RealDisk(), clock or WallClock()
    store_id = await shared_store_id(config, make=True)
    identity = read_or_make_identity(config, clock(), store_id)
    lock = os.open(config.data / "lode.json", os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        (config.data / "meta").mkdir(exist_ok=True)
        async with open_metadata(config) as database:
            db = GuardedDatabase(database)
            if cluster:
                # The secret is among the metadata.
                (config.data / "meta").chmod(0o700)
                await make_secret(db, cluster_secret)
            await _settle_profile(config, db)
            await prepare_drives(config, db, identity.store_id, disk, clock())
    finally:
        os.close(lock)


async def _settle_profile(config: StoreConfig, db: Database) -> None:
    known = await known_nodes(db)
    drives = max(len(known), len(config.drives), 1)
    stored = await _stored_profile(db)
    profile = config.profile or stored or Profile.default_for(drives)
    # Members join one after another; until there are enough, writing says so.
    if profile.width > drives and not await is_cluster(db):
        raise ConfigError(
            f"profile {profile} needs {profile.width} drives, there are {drives}; "
            f"give more with --drives, or --profile {Profile.default_for(drives)}"
        )
    if profile == stored:
        return

    async def body(tr: Transaction) -> None:
        tr.set(keyspace.setting("profile"), str(profile).encode())

    await db.run(body)


async def _stored_profile(db: Database) -> Profile | None:
    async def body(tr: ReadTransaction) -> bytes | None:
        return await tr.get(keyspace.setting("profile"))

    stored = await db.read(body)
    return None if stored is None else Profile.parse(stored.decode())


@asynccontextmanager
async def open_engine(
    config: StoreConfig,
    *,
    disk: Disk | None = None,
    clock: Clock | None = None,
    random: Random = os.urandom,
    connect: Connect | None = None,
) -> AsyncIterator[Engine]:
    """Open a store that ``prepare_store`` has made; the context owns all its tasks.

    Several processes may have one store open. On leaving, running services end and the session
    is closed, so that nothing is left for the collector.

    Args:
        connect: how members of the cluster are reached; None: over their wire protocol.
    Raises: ConfigError.
    """
    disk, clock = disk or RealDisk(), clock or WallClock()
    identity = await find_identity(config, clock())
    async with AsyncExitStack() as stack:
        database = await stack.enter_async_context(open_metadata(config))
        db = GuardedDatabase(database)
        limiters = Limiters(
            work=trio.CapacityLimiter(WORK_THREADS), disk=trio.CapacityLimiter(DISK_THREADS)
        )
        pool = NodePool(clock=time.monotonic)
        drives = Drives(config, identity.store_id, pool, disk, limiters.disk)
        stack.push_async_callback(drives.aclose)
        connect = connect or connect_over_http(config.member_tls)
        view = ClusterView(db, pool, connect, drives.attach)
        stack.push_async_callback(view.aclose)
        await view.sync()
        profile = config.profile or await _stored_profile(db)
        if profile is None:
            raise ConfigError(f"{config.data}: the store was not made to its end; start it again")
        sessions = Sessions(database, clock, random, session_s=config.session_s)
        await sessions.start()
        stack.push_async_callback(_finish, sessions)
        tasks = await stack.enter_async_context(_background())
        damage = DamageLog()
        data = DataStore(
            config,
            profile,
            pool,
            limiters=limiters,
            new_chunk_id=sessions.next_chunk_id,
            on_damage=damage.report,
            nursery=tasks,
        )
        store = Store(
            config=config,
            store_id=identity.store_id,
            profile=profile,
            db=db,
            pool=pool,
            data=data,
            sessions=sessions,
            clock=clock,
            random=random,
        )
        tasks.start_soon(sessions.run)
        tasks.start_soon(drives.watch)
        tasks.start_soon(damage.run, store)
        upkeep = Upkeep(store)
        tasks.start_soon(view.run, upkeep.wake)
        if config.services:
            _start_services(store, drives, view, upkeep, tasks)
        yield Engine(store)


def _start_services(
    store: Store, drives: Drives, view: ClusterView, upkeep: Upkeep, tasks: trio.Nursery
) -> None:
    store.wake_repair = upkeep.wake
    upkeep.wake()
    heartbeat = Heartbeat(store, view)
    scrub = Scrub(store)
    services: list[tuple[str, Step, Step]] = [
        ("heartbeat", heartbeat.work, heartbeat.wait),
        ("repair", upkeep.work, upkeep.wait),
        ("scrub", scrub.work, scrub.wait),
        ("collector", partial(_collect, store), partial(trio.sleep, COLLECT_EVERY_S)),
        ("locks", partial(sweep_locks, store), partial(trio.sleep, SWEEP_LOCKS_EVERY_S)),
        ("tree renames", partial(finish_all, store), partial(trio.sleep, FINISH_RENAMES_EVERY_S)),
        ("compaction", drives.compact, partial(trio.sleep, COMPACT_EVERY_S)),
    ]
    for name, work, wait in services:
        lease_s = HEARTBEAT_LEASE_S if name == "heartbeat" else None
        tasks.start_soon(partial(run_leased, store, name, work, wait, lease_s=lease_s))


async def _collect(store: Store) -> None:
    await collect(store)


@asynccontextmanager
async def _background() -> AsyncIterator[trio.Nursery]:
    """A nursery whose tasks are cancelled on leaving; errors are raised bare."""
    try:
        async with trio.open_nursery() as nursery:
            try:
                yield nursery
            finally:
                nursery.cancel_scope.cancel()
    except BaseExceptionGroup as group:
        raise first_error(group) from None


async def _finish(sessions: Sessions) -> None:
    with trio.move_on_after(CLOSE_S_MAX, shield=True):
        try:
            await sessions.finish()
        except Exception as error:  # noqa: BLE001 - closing goes on; the session will expire
            structlog.get_logger().warning("session not closed", error=str(error))
