"""Open files and directories, by the number that the kernel knows them by."""

from __future__ import annotations

import errno
from typing import Generic, Protocol, TypeAlias, TypeVar

from fs.errors import Refused
from fs.inodes import Node

Readable: TypeAlias = bytes | bytearray | memoryview


class FileHandle(Protocol):
    """One ``open`` of a file. Raises what ``fs.errors`` knows."""

    node: Node
    dropping: bool
    """It is counted in ``node.dropping``."""

    async def read(self, offset: int, size: int) -> Readable:
        """Return ``size`` bytes, fewer only at the end; valid until the next await."""

    async def write(self, offset: int, data: bytes) -> int:
        """Take all of ``data``; return how many bytes that were."""

    async def flush(self) -> None:
        """Called at every ``close`` of a descriptor: commit what is written, and say if it
        failed. Nothing to do is no error."""

    async def fsync(self) -> None:
        """Commit what is written."""

    async def aclose(self) -> None:
        """Called once, when the last descriptor is gone; an error reaches nobody."""


H = TypeVar("H")


class Handles(Generic[H]):
    """Numbers for handles of one kind."""

    def __init__(self) -> None:
        self._handles: dict[int, H] = {}
        self._last = 0

    def __len__(self) -> int:
        return len(self._handles)

    def add(self, handle: H) -> int:
        self._last += 1
        self._handles[self._last] = handle
        return self._last

    def get(self, number: int) -> H:
        try:
            return self._handles[number]
        except KeyError:
            raise Refused(errno.EBADF) from None

    def remove(self, number: int) -> H | None:
        return self._handles.pop(number, None)

    def all(self) -> list[H]:
        return list(self._handles.values())
