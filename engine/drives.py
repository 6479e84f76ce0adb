"""Local drives: which folder is which node, and what to do when one is gone, new or replaced.

A node id names a slot for fragments; chunk records hold node ids. The drive in a slot is known by
``drive.json`` in its folder. At start every configured folder is looked at:

* it is a drive of this store: it serves its node, wherever the folder is now;
* it is empty and its slot is known: the drive was replaced; it is formatted for the same node,
  which is then filled again (``rebuilding``);
* it is empty and unknown: a new node;
* it is not there: its node is absent, until the folder comes back.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from pathlib import Path

import msgspec
import structlog
import trio

from engine.cluster.membership import SECRET, ask_for, set_node
from engine.config import StoreConfig
from engine.data.nodes import NodePool
from engine.errors import ConfigError
from engine.ids import NODE_ID_SIZE, NodeId
from engine.meta import keyspace
from engine.meta.kv import Database, ReadTransaction, Transaction
from engine.meta.records import FORMAT, NodeRecord, decode_node
from engine.node.compaction import compact
from engine.node.contract import NodeError
from engine.node.disk import Disk
from engine.node.drive import Drive, open_drive
from engine.node.identity import (
    DriveEmpty,
    DriveForeign,
    DriveMissing,
    DriveUnusable,
    Identity,
    format_drive,
    read_identity,
)
from engine.node.local import LocalNode

LOOK_AGAIN_S = 10.0


def location_of(config: StoreConfig, folder: Path) -> str:
    """Return how a folder is written down: relative inside the data folder, so that it moves."""
    folder, data = folder.absolute(), config.data.absolute()
    return str(folder.relative_to(data)) if folder.is_relative_to(data) else str(folder)


def folder_of(config: StoreConfig, record: NodeRecord) -> Path:
    return config.data.absolute() / record.location


async def known_nodes(db: Database) -> dict[NodeId, NodeRecord]:
    async def body(tr: ReadTransaction) -> list[tuple[bytes, bytes]]:
        return await tr.get_range(keyspace.NODE, keyspace.after_prefix(keyspace.NODE))

    return {NodeId(key[1:]): decode_node(row) for key, row in await db.read(body)}


async def is_cluster(db: Database) -> bool:
    """Return whether the store has a cluster's secret, hence has or will have members."""

    async def body(tr: ReadTransaction) -> bool:
        return await tr.get(SECRET) is not None

    return await db.read(body)


async def prepare_drives(
    config: StoreConfig, db: Database, store_id: str, disk: Disk, now_ms: int
) -> None:
    """Format folders that are new or were replaced, and write down which node is where.

    A store whose drives are its members' needs none of its own.

    Raises: ConfigError: a folder belongs to another store, or cannot be used.
    """
    known = await known_nodes(db)
    local = {node_id: record for node_id, record in known.items() if record.member is None}
    folders = config.drives or tuple(folder_of(config, record) for record in local.values())
    if not folders and not await is_cluster(db):
        folders = (config.data / "drive",)
    places = {record.location: node_id for node_id, record in local.items()}
    found: dict[NodeId, Path] = {}
    empty: list[Path] = []
    for folder in folders:
        is_known = location_of(config, folder) in places
        identity = _look_at(folder, store_id, disk, make=not is_known)
        if identity is None:
            continue
        if isinstance(identity, DriveEmpty):
            empty.append(folder)
            continue
        if identity.node_id in found:
            raise ConfigError(f"{folder}: is a copy of the drive in {found[identity.node_id]}")
        found[identity.node_id] = folder
        record = known.get(identity.node_id)
        await _write_node(config, db, folder, identity, record, now_ms)
    # Only now: a drive whose old place is empty may have been found at another.
    for folder in empty:
        node_id = places.get(location_of(config, folder))
        if node_id is None or node_id in found:
            node_id = NodeId(os.urandom(NODE_ID_SIZE))
        record = known.get(node_id)
        identity = format_drive(str(folder), store_id, node_id, disk)
        if known:
            what = "drive added" if record is None else "drive replaced"
            structlog.get_logger().warning(what, drive=str(folder), node=node_id.hex())
        await _write_node(config, db, folder, identity, record, now_ms)


def _look_at(
    folder: Path, store_id: str, disk: Disk, *, make: bool
) -> Identity | DriveEmpty | None:
    """Return whose folder it is, that it is empty, or None: it cannot be used now.

    Args:
        make: make the folder if it is not there.
    Raises: ConfigError.
    """
    log = structlog.get_logger()
    try:
        if make:
            folder.mkdir(parents=True, exist_ok=True)
        return read_identity(str(folder), store_id, disk)
    except DriveEmpty as nothing:
        return nothing
    except DriveMissing:
        log.error("drive missing", drive=str(folder))
    except DriveForeign as error:
        raise ConfigError(f"{error}; take it out, or empty it to use it here") from None
    except DriveUnusable as error:
        log.error("drive not usable", drive=str(folder), reason=error.reason)
    except OSError as error:
        raise ConfigError(f"{folder}: {error.strerror}") from None
    return None


async def _write_node(
    config: StoreConfig,
    db: Database,
    folder: Path,
    identity: Identity,
    before: NodeRecord | None,
    now_ms: int,
) -> None:
    """Write down that the node is in ``folder``; another drive than before must be filled."""
    location = location_of(config, folder)
    if before is None:
        record = NodeRecord(
            format=FORMAT, drive_id=identity.drive_id, location=location, added_ms=now_ms
        )
    else:
        record = msgspec.structs.replace(before, location=location, member=None)
        if before.drive_id != identity.drive_id:
            record = msgspec.structs.replace(record, drive_id=identity.drive_id, state="rebuilding")
    if record == before:
        return

    async def body(tr: Transaction) -> None:
        set_node(tr, identity.node_id, record)
        if before is None:
            ask_for(tr, ["rebalance"], now_ms)
        if record.state == "rebuilding":
            tr.clear(keyspace.work(f"rebuild {identity.node_id.hex()}"))

    await db.run(body)


class Drives:
    """The drives that this process has open, as nodes of a pool.

    Concurrency: ``_lock`` is held while drives are opened or closed.
    """

    def __init__(
        self,
        config: StoreConfig,
        store_id: str,
        pool: NodePool,
        disk: Disk,
        limiter: trio.CapacityLimiter,
    ) -> None:
        self._config = config
        self._store_id = store_id
        self._pool = pool
        self._disk = disk
        self._limiter = limiter
        self._open: dict[NodeId, LocalNode] = {}
        self._absent: dict[NodeId, NodeRecord] = {}
        self._lock = trio.Lock()

    @property
    def open_drives(self) -> Sequence[Drive]:
        return [node.drive for node in self._open.values()]

    async def attach(self, nodes: dict[NodeId, NodeRecord]) -> None:
        """Open what is there and not open yet; the rest is absent. Close what is not among
        ``nodes`` any more: a member has the drive now, or it was removed."""
        async with self._lock:
            for node_id in self._open.keys() - nodes.keys():
                await self._open.pop(node_id).aclose()
            for node_id in self._absent.keys() - nodes.keys():
                del self._absent[node_id]
            for node_id, record in nodes.items():
                if node_id not in self._open and self._absent.get(node_id) != record:
                    await self._attach(node_id, record)

    async def _attach(self, node_id: NodeId, record: NodeRecord) -> bool:
        folder = folder_of(self._config, record)
        try:
            drive = await trio.to_thread.run_sync(
                lambda: open_drive(
                    str(folder),
                    store_id=self._store_id,
                    disk=self._disk,
                    volume_size=self._config.volume_size,
                    reserve=self._config.reserve,
                    index_vfs=self._config.index_vfs,
                ),
                limiter=self._limiter,
            )
        except NodeError as error:
            if node_id not in self._absent:
                structlog.get_logger().warning("drive absent", drive=str(folder), reason=str(error))
            self._absent[node_id] = record
            self._pool.add_absent(node_id, weight=record.weight)
            return False
        node = LocalNode(drive, limiter=self._limiter)
        if node.node_id != node_id:
            await node.aclose()
            self._absent[node_id] = record
            self._pool.add_absent(node_id, weight=record.weight)
            return False
        self._absent.pop(node_id, None)
        self._open[node_id] = node
        self._pool.add(node, weight=record.weight)
        return True

    async def watch(self) -> None:
        """Bring drives back whose folders return, until cancelled."""
        while True:
            await trio.sleep(LOOK_AGAIN_S)
            async with self._lock:
                for node_id, record in list(self._absent.items()):
                    if await self._attach(node_id, record):
                        structlog.get_logger().info("drive is back", drive=record.location)
            for node in list(self._open.values()):
                # Also lets go of volumes that another process has compacted away.
                with contextlib.suppress(NodeError):
                    await node.space()

    async def compact(self) -> None:
        """Give back the space of deleted fragments on each drive that is open."""
        for node in list(self._open.values()):
            try:
                await trio.to_thread.run_sync(
                    compact, node.drive, limiter=self._limiter, abandon_on_cancel=False
                )
            except NodeError as error:
                structlog.get_logger().warning("drive not compacted", reason=str(error))

    async def aclose(self) -> None:
        for node_id, node in self._open.items():
            self._pool.add_absent(node_id)
            await node.aclose()
        self._open.clear()
