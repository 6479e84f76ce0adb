"""The volumes that a process has open for reading: bounded, and safe to close under a reader."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

from engine.node.disk import Disk
from engine.node.identity import VOLUMES

SUFFIX = ".vol"


def volume_path(folder: str, number: int) -> str:
    return os.path.join(folder, VOLUMES, f"{number:08x}{SUFFIX}")


def volume_numbers(disk: Disk, folder: str) -> Iterator[int]:
    """Yield the numbers of the volume files in a drive's folder, in no order."""
    for name in disk.listdir(os.path.join(folder, VOLUMES)):
        stem, suffix = os.path.splitext(name)
        if suffix == SUFFIX and len(stem) == 8:
            with contextlib.suppress(ValueError):
                yield int(stem, 16)


class OpenFile:
    """A descriptor that lives as long as somebody holds this object.

    A reader holds it for the time of its read, so the cache may drop it at any moment: the
    descriptor is closed by whoever lets go last, and its number is never reused under a reader.
    """

    __slots__ = ("_disk", "fd")

    def __init__(self, disk: Disk, path: str) -> None:
        self.fd = -1
        self._disk = disk
        self.fd = disk.open(path, os.O_RDONLY)

    def __del__(self) -> None:
        if self.fd >= 0:
            with contextlib.suppress(OSError):
                self._disk.close(self.fd)


class VolumeFiles:
    """Open volumes by number, at most ``limit``; the one opened first makes room.

    Concurrency: single operations of a dict, which are atomic; two threads may open the same
    volume at once, then one of the two is dropped.
    """

    def __init__(self, disk: Disk, folder: str, limit: int) -> None:
        self._disk = disk
        self._folder = folder
        self._limit = limit
        self._open: dict[int, OpenFile] = {}

    def get(self, number: int) -> OpenFile:
        """Return the volume's file; hold the object while using its descriptor.

        Raises: OSError.
        """
        found = self._open.get(number)
        if found is not None:
            return found
        if len(self._open) >= self._limit:
            with contextlib.suppress(KeyError, StopIteration, RuntimeError):
                del self._open[next(iter(self._open))]
        found = OpenFile(self._disk, volume_path(self._folder, number))
        self._open[number] = found
        return found

    def drop(self, number: int) -> None:
        self._open.pop(number, None)

    def drop_unlinked(self) -> None:
        """Let go of volumes that compaction, in whatever process, has unlinked: their space is
        not free before.
        """
        for number, file in list(self._open.items()):
            try:
                gone = self._disk.fstat(file.fd).links == 0
            except OSError:
                gone = True
            if gone:
                self.drop(number)

    def close(self) -> None:
        self._open.clear()
