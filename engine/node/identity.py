"""Which drive a folder is: ``drive.json``, and what can be wrong with it."""

from __future__ import annotations

import os
import uuid

import msgspec

from engine.ids import NODE_ID_SIZE, NodeId
from engine.node.contract import NodeDown
from engine.node.disk import Disk, write_all

FILE = "drive.json"
VOLUMES = "volumes"
_FORMAT = 2
_IGNORED = {"lost+found", FILE + ".new"}


class DriveUnusable(NodeDown):
    """The folder cannot be used as the drive that it should be; ``path`` names it."""

    kind = "unusable"

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(f"{path}: {reason}")
        self.path = path
        self.reason = reason


class DriveMissing(DriveUnusable):
    """There is no such folder."""

    kind = "missing"


class DriveEmpty(DriveUnusable):
    """The folder was never formatted: a new disk, or one that is not mounted."""

    kind = "empty"


class DriveForeign(DriveUnusable):
    """The folder belongs to another store, or holds files that are not ours."""

    kind = "foreign"


class DriveUnreadable(DriveUnusable):
    """The folder, or its identity, cannot be read, or is of another format."""

    kind = "unreadable"


class DriveBusy(DriveUnusable):
    """Another process repairs the drive, or has it open while it needs repair."""

    kind = "busy"


class Identity(msgspec.Struct, frozen=True):
    format: int
    store_id: str
    node_id: NodeId
    drive_id: str


class _File(msgspec.Struct, frozen=True):
    """``drive.json`` as it is written."""

    format: int
    store_id: str
    node_id: str
    drive_id: str


def format_drive(path: str, store_id: str, node_id: NodeId, disk: Disk) -> Identity:
    """Make an empty folder a drive of the store, durably; the folder itself must exist.

    Repeating it after it was cut short is fine: ``drive.json`` is what is written last.

    Raises:
        DriveMissing, DriveUnreadable; DriveForeign: the folder is not empty.
    """
    try:
        names = set(disk.listdir(path)) - _IGNORED
        if names - {VOLUMES}:
            raise DriveForeign(path, f"is not empty: {sorted(names)[0]!r} is in it")
        folder = os.path.join(path, VOLUMES)
        if VOLUMES not in names:
            disk.mkdir(folder)
        elif disk.listdir(folder):
            raise DriveForeign(path, "holds volumes without an identity")
        identity = Identity(_FORMAT, store_id, node_id, uuid.uuid4().hex)
        _write(path, identity, disk)
    except FileNotFoundError as error:
        raise DriveMissing(path, "no such folder") from error
    except OSError as error:
        raise DriveUnreadable(path, str(error.strerror)) from error
    return identity


def _write(path: str, identity: Identity, disk: Disk) -> None:
    content = msgspec.json.encode(
        _File(_FORMAT, identity.store_id, identity.node_id.hex(), identity.drive_id)
    )
    temporary = os.path.join(path, FILE + ".new")
    fd = disk.open(temporary, os.O_RDWR | os.O_CREAT | os.O_TRUNC)
    try:
        write_all(disk, fd, [content + b"\n"], 0)
        disk.fdatasync(fd)
    finally:
        disk.close(fd)
    disk.rename(temporary, os.path.join(path, FILE))
    disk.fsync_dir(path)


def read_identity(path: str, store_id: str, disk: Disk) -> Identity:
    """Return which drive of the store the folder is.

    Raises: DriveMissing, DriveEmpty, DriveForeign, DriveUnreadable.
    """
    try:
        names = disk.listdir(path)
    except FileNotFoundError as error:
        raise DriveMissing(path, "no such folder") from error
    except OSError as error:
        raise DriveUnreadable(path, str(error.strerror)) from error
    try:
        fd = disk.open(os.path.join(path, FILE), os.O_RDONLY)
        try:
            content = bytearray(4096)
            del content[disk.preadv(fd, [content], 0) :]
        finally:
            disk.close(fd)
        found = msgspec.json.decode(bytes(content), type=_File)
        node_id = NodeId(bytes.fromhex(found.node_id))
    except FileNotFoundError as error:
        if VOLUMES in names and _has_volumes(path, disk):
            raise DriveUnreadable(path, f"holds volumes, but no {FILE}") from error
        raise DriveEmpty(path, "was never formatted") from error
    except OSError as error:
        raise DriveUnreadable(path, str(error.strerror)) from error
    except (msgspec.DecodeError, ValueError) as error:
        raise DriveUnreadable(path, f"{FILE} is damaged") from error
    if found.format != _FORMAT or len(node_id) != NODE_ID_SIZE:
        raise DriveUnreadable(path, f"{FILE} is of format {found.format}")
    if found.store_id != store_id:
        raise DriveForeign(path, f"belongs to the store {found.store_id}")
    return Identity(found.format, found.store_id, node_id, found.drive_id)


def _has_volumes(path: str, disk: Disk) -> bool:
    try:
        return bool(disk.listdir(os.path.join(path, VOLUMES)))
    except OSError:
        return True
