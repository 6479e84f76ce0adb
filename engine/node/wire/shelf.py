"""``Shelf``: the drive folders of one member, each open, or watched until it can be opened.

====================== =====================================================================
``node.json``          which member this is, of which store, and which node is in which folder
====================== =====================================================================

What a folder is shows in its own ``drive.json``; ``node.json`` remembers what it was, so that an
empty one can be told from a new one. Nothing is formatted but by ``adopt``: only the gateways know
whether an empty folder is a new node, or the replacement of one that they can fill again.

A drive that fails ends nothing but itself: it is closed once no call uses it, and looked at again
every few seconds. A drive that hangs is left alone: its calls wait in its own threads, and the
bound on them makes later ones fail at once.

Concurrency: the trio thread owns all state here, like ``Slot``'s.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Final

import msgspec
import structlog
import trio

from engine.ids import NODE_ID_SIZE, NodeId
from engine.node.compaction import compact
from engine.node.contract import NodeDown, NodeError, Space
from engine.node.disk import Disk
from engine.node.drive import Drive, format_drive, open_drive
from engine.node.identity import DriveUnusable, read_identity
from engine.node.wire.messages import (
    AdoptedDrive,
    Adoption,
    AdoptionRefused,
    DriveHealth,
    DriveState,
)
from engine.node.wire.slot import ShelfConfig, Slot

FILE: Final = "node.json"
_FORMAT: Final = 1
_CLOSE_S_MAX: Final = 10.0
_ADOPT_LOOK_S: Final = 30.0
"""An adoption waits so long for each drive to open; it does so later in any case."""


_STATES: Final[Mapping[str, DriveState]] = MappingProxyType(
    {"empty": "empty", "missing": "missing", "foreign": "foreign"}
)
"""Of a folder that cannot be opened, by what is wrong with it; else ``failed``."""


class _File(msgspec.Struct, frozen=True):
    """``node.json``."""

    format: int
    member: str
    store: str
    drives: list[AdoptedDrive]


class Shelf:
    def __init__(
        self, data: Path, folders: Sequence[Path], *, disk: Disk, config: ShelfConfig
    ) -> None:
        """Read ``node.json``; opens nothing yet.

        Args:
            data: the member's folder, which exists.
            folders: drive folders; empty: those that it had, or ``data/drive``.
        Raises:
            OSError, ValueError: ``node.json`` cannot be read, or is damaged.
        """
        self._data = data.absolute()
        self._disk = disk
        self.config = config
        known = self._load()
        self.member = known.member if known is not None else ""
        self.store = known.store if known is not None else ""
        nodes = (
            {}
            if known is None
            else {drive.folder: NodeId(bytes.fromhex(drive.node)) for drive in known.drives}
        )
        paths = [str(folder.absolute()) for folder in folders] or [
            str(self._data / name) for name in nodes
        ]
        self.slots = [
            Slot(path, nodes.get(self._name(path)), config)
            for path in paths or [str(self._data / "drive")]
        ]
        self._adopting = trio.Lock()
        self._compact_now = trio.Event()
        self._closed = False

    # node.json

    def _name(self, path: str) -> str:
        """Return how a folder is written down: relative inside the data folder."""
        folder = Path(path)
        return str(folder.relative_to(self._data)) if folder.is_relative_to(self._data) else path

    def _load(self) -> _File | None:
        path = self._data / FILE
        try:
            content = path.read_bytes()
        except FileNotFoundError:
            return None
        try:
            known = msgspec.json.decode(content, type=_File)
            sizes = {len(bytes.fromhex(drive.node)) for drive in known.drives}
            if known.format != _FORMAT or sizes - {NODE_ID_SIZE}:
                raise ValueError(f"of format {known.format}")
        except ValueError as error:
            raise ValueError(f"{path} is damaged, or of a later version: {error}") from error
        return known

    def _save(self) -> None:
        """Write ``node.json``, durably. Raises OSError."""
        drives = [
            AdoptedDrive(self._name(slot.folder), slot.node.hex())
            for slot in self.slots
            if slot.node is not None
        ]
        content = msgspec.json.encode(_File(_FORMAT, self.member, self.store, drives))
        path = self._data / FILE
        fresh = path.with_suffix(".new")
        with fresh.open("wb") as file:
            file.write(msgspec.json.format(content) + b"\n")
            file.flush()
            os.fsync(file.fileno())
        fresh.replace(path)
        folder = os.open(self._data, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)

    # What others ask

    def find(self, node: NodeId) -> Slot:
        """Return the slot whose drive is this node. Raises NodeDown: none is, at least now."""
        for slot in self.slots:
            if slot.node == node and slot.drive is not None:
                return slot
        raise NodeDown(f"no drive here is node {node.hex()}")

    def health(self) -> list[DriveHealth]:
        return [slot.health() for slot in self.slots]

    def compact_soon(self) -> None:
        self._compact_now.set()

    async def adopt(self, adoption: Adoption) -> None:
        """Become this member of this store, and format the folders named; durable on return.

        Raises: AdoptionRefused, NodeDown.
        """
        async with self._adopting:
            wanted = self._check(adoption)
            before = self.member, self.store
            # First, so that a look at a drive that was just formatted knows whose it is.
            self.member, self.store = adoption.member, adoption.store
            try:
                for slot, node in wanted.items():
                    await self._format(slot, node)
                await trio.to_thread.run_sync(self._save)
            except OSError as error:
                self.member, self.store = before
                raise NodeDown(f"{self._data / FILE}: {error.strerror}") from error
            except BaseException:
                self.member, self.store = before
                raise
            for slot in self.slots:
                if slot.drive is None:
                    with trio.move_on_after(_ADOPT_LOOK_S):
                        await self._look(slot)

    def _check(self, adoption: Adoption) -> dict[Slot, NodeId]:
        try:
            nodes = {each.folder: NodeId(bytes.fromhex(each.node)) for each in adoption.drives}
            sizes = {len(node) for node in nodes.values()} | {len(bytes.fromhex(adoption.member))}
        except ValueError:
            sizes = set()
        if sizes != {NODE_ID_SIZE} or not adoption.store:
            raise AdoptionRefused("no adoption: an id is not one")
        if self.member and (self.member, self.store) != (adoption.member, adoption.store):
            raise AdoptionRefused(f"is member {self.member} of the store {self.store} already")
        slots = {slot.folder: slot for slot in self.slots}
        unknown = nodes.keys() - slots.keys()
        if unknown:
            raise AdoptionRefused(f"has no drive folder {min(unknown)}")
        return {slots[folder]: node for folder, node in nodes.items()}

    async def _format(self, slot: Slot, node: NodeId) -> None:
        if slot.drive is not None and slot.node == node:
            return
        if any(other.node == node and other.drive is not None for other in self.slots):
            raise AdoptionRefused(f"{slot.folder}: another drive here is node {node.hex()}")
        try:
            found = await slot.run(lambda: read_identity(slot.folder, self.store, self._disk))
        except DriveUnusable as error:
            if error.kind != "empty":
                raise AdoptionRefused(str(error)) from error
            try:
                await slot.run(lambda: format_drive(slot.folder, self.store, node, self._disk))
            except DriveUnusable as error:
                raise AdoptionRefused(str(error)) from error
        else:
            if found.node_id != node:
                raise AdoptionRefused(f"{slot.folder}: is node {found.node_id.hex()} already")
        slot.node = node
        structlog.get_logger().info("drive adopted", drive=slot.folder, node=node.hex())

    # Opening, watching, closing

    async def open(self) -> None:
        """Try every drive once."""
        async with trio.open_nursery() as nursery:
            for slot in self.slots:
                nursery.start_soon(self._look, slot)

    async def watch(self) -> None:
        """Look at every drive now and then, until cancelled."""
        async with trio.open_nursery() as nursery:
            for slot in self.slots:
                nursery.start_soon(self._watch, slot)

    async def _watch(self, slot: Slot) -> None:
        while True:
            await trio.sleep(self.config.look_s)
            await self._look(slot)

    async def _look(self, slot: Slot) -> None:
        """See whether the drive is well; open it, or let it go."""
        async with slot.looking:
            if slot.drive is None:
                await self._open(slot)
            else:
                await self._visit(slot, slot.drive)

    async def _visit(self, slot: Slot, drive: Drive) -> None:
        try:
            slot.space, slot.volumes = await slot.finish(lambda: self._examine(drive))
        except NodeError as error:
            structlog.get_logger().error("drive failed", drive=slot.folder, reason=str(error))
            await self._let_go(slot, error)
        slot.looked = trio.current_time()

    def _examine(self, drive: Drive) -> tuple[Space, int]:
        """In a thread: return its space and number of volumes.

        Raises: NodeDown: the folder is gone, or holds something else.
        """
        found = read_identity(drive.path, self.store, self._disk)
        if found.drive_id != drive.drive_id:
            raise NodeDown(f"{drive.path}: holds another drive")
        return drive.space(), len(drive.index.volumes())

    async def _open(self, slot: Slot) -> None:
        if self._closed:
            return
        try:
            drive = await trio.to_thread.run_sync(lambda: self._open_drive(slot.folder))
        except NodeError as error:
            self._note_absent(slot, error)
            return
        if any(other.drive is not None and other.node == drive.node_id for other in self.slots):
            # This slot's own drive is not open: looks at one slot come one after another.
            await trio.to_thread.run_sync(drive.close)
            slot.state, slot.reason = "foreign", "is a copy of another drive here"
            return
        moved = slot.node != drive.node_id
        slot.node, slot.drive = drive.node_id, drive
        slot.space = None
        slot.state, slot.reason = "up", ""
        slot.looked = trio.current_time()
        structlog.get_logger().info("drive open", drive=slot.folder, node=drive.node_id.hex())
        with contextlib.suppress(NodeError):
            slot.space, slot.volumes = await slot.finish(lambda: self._examine(drive))
        if moved and self.member:
            with contextlib.suppress(OSError):  # what is in the drive counts, not this note
                await trio.to_thread.run_sync(self._save)

    def _open_drive(self, folder: str) -> Drive:
        """In a thread."""
        if not self.store:
            Path(folder).mkdir(parents=True, exist_ok=True)
        read_identity(folder, self.store, self._disk)
        return open_drive(
            folder,
            store_id=self.store,
            disk=self._disk,
            volume_size=self.config.volume_size,
            reserve=self.config.reserve,
            wait_s=self.config.open_wait_s,
        )

    def _note_absent(self, slot: Slot, error: NodeError) -> None:
        kind = error.kind if isinstance(error, DriveUnusable) else "failed"
        before = slot.state
        slot.state = _STATES.get(kind, "failed")
        slot.reason = str(error)
        if slot.state != before:
            log = structlog.get_logger()
            say = log.info if slot.state == "empty" and slot.node is None else log.warning
            say("drive absent", drive=slot.folder, state=slot.state, reason=slot.reason)

    async def _let_go(self, slot: Slot, error: NodeError) -> None:
        """Close a drive that failed, once the calls that use it have ended."""
        drive, slot.drive, slot.space = slot.drive, None, None
        self._note_absent(slot, error)
        assert drive is not None
        while slot.users:
            await slot.idle.wait()
        await trio.to_thread.run_sync(drive.close)

    async def compact_regularly(self) -> None:
        """Give space of deleted fragments back, regularly and when asked; until cancelled."""
        while True:
            with trio.move_on_after(self.config.compact_s):
                await self._compact_now.wait()
            self._compact_now = trio.Event()
            for slot in self.slots:
                if slot.drive is not None and slot.state == "up":
                    await self._compact(slot)

    async def _compact(self, slot: Slot) -> None:
        def pace(size: int) -> None:
            if self._closed:
                raise NodeDown("the daemon ends")
            time.sleep(size / self.config.compact_rate)

        try:
            with slot.use() as drive:
                stats = await trio.to_thread.run_sync(lambda: compact(drive, budget=pace))
        except NodeError as error:
            if not self._closed:
                structlog.get_logger().warning("drive not compacted", reason=str(error))
            return
        if stats.volumes:
            structlog.get_logger().info(
                "drive compacted", drive=slot.folder, volumes=stats.volumes, freed=stats.bytes_freed
            )

    def begin_close(self) -> None:
        """Let compaction end in good order, and open nothing any more."""
        self._closed = True

    async def aclose(self) -> None:
        """Close every drive; a drive that hangs is left to the end of the process."""
        self._closed = True
        with trio.move_on_after(_CLOSE_S_MAX, shield=True):
            async with trio.open_nursery() as nursery:
                for slot in self.slots:
                    if slot.drive is not None:
                        nursery.start_soon(_close, slot.drive)
                        slot.drive = None


async def _close(drive: Drive) -> None:
    await trio.to_thread.run_sync(drive.close, abandon_on_cancel=True)
