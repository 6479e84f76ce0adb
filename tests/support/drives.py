"""Drives and fragments for tests of the node."""

from __future__ import annotations

import mmap
import random
from pathlib import Path

from engine.ids import FragmentId, NodeId
from engine.node.disk import Disk
from engine.node.drive import Drive, format_drive, open_drive
from engine.node.needle import PAGE, extent_size
from tests.support.disk import UnsyncedDisk

STORE = "store"
NODE = NodeId(b"node-id!")


def fragment(number: int) -> FragmentId:
    return FragmentId(number.to_bytes(16, "big") + b"\0")


def content(seed: int, size: int) -> bytes:
    return random.Random(seed).randbytes(size)


def new_drive(path: Path, disk: Disk | None = None, **options: int | str) -> Drive:
    """Format ``path`` and open it; without syncs unless a disk is given."""
    disk = disk or UnsyncedDisk()
    path.mkdir(parents=True, exist_ok=True)
    format_drive(str(path), STORE, NODE, disk)
    return reopen(path, disk, **options)


def reopen(path: Path, disk: Disk | None = None, **options: int | str) -> Drive:
    options.setdefault("reserve", 0)
    return open_drive(str(path), store_id=STORE, disk=disk or UnsyncedDisk(), **options)  # type: ignore[arg-type]


def pieces(payload: bytes) -> list[bytes | memoryview]:
    """Return the payload with its whole pages in memory that can be written past the cache."""
    whole = len(payload) & -PAGE
    if not whole:
        return [payload]
    mapped = mmap.mmap(-1, whole)
    mapped[:] = payload[:whole]
    return [memoryview(mapped), payload[whole:]]


def put(drive: Drive, name: FragmentId, payload: bytes, size_max: int | None = None) -> None:
    writer = drive.open_writer(name, len(payload) if size_max is None else size_max)
    try:
        writer.write(pieces(payload))
        writer.commit()
    except BaseException:
        writer.abort()
        raise


def get(drive: Drive, name: FragmentId) -> bytes | None:
    """Return the payload, or None when the drive does not have the fragment."""
    info = drive.stat(name)
    if info is None:
        return None
    payload = bytearray(info.size)
    drive.read_into(name, 0, [memoryview(payload)], nowait=False)
    return bytes(payload)


def everything(drive: Drive) -> dict[FragmentId, bytes]:
    found = {}
    for info in drive.list(b"", 1_000_000):
        payload = get(drive, info.fragment)
        assert payload is not None
        found[info.fragment] = payload
    return found


def check_sums(drive: Drive) -> None:
    """The volumes' sums are what the needles add up to."""
    rows = drive.index.volumes()
    for number, row in rows.items():
        needles = drive.index.needles_in(number)
        assert row.needles == len(needles)
        assert row.live == sum(extent_size(size) for _, _, size in needles)


def lose_index(path: Path) -> None:
    for suffix in ("", "-wal", "-shm"):
        (path / f"index.sqlite{suffix}").unlink(missing_ok=True)
