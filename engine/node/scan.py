"""Reading a volume from one end to the other, past whatever is damaged in it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from awscrt.checksums import crc64nvme

from engine.node.disk import Disk, read_all
from engine.node.needle import (
    ALIGNMENT,
    BLANK,
    FILE_HEADER_SIZE,
    FILLER,
    HEADER_SIZE,
    NEEDLE_MAGIC,
    NEEDLE_OVERHEAD,
    RECORD_SIZE,
    Commit,
    Header,
    Tombstone,
    align,
    parse_commit,
    parse_file_header,
    parse_header,
    parse_tombstones,
)

_WINDOW = 1 << 20


@dataclass(frozen=True, slots=True)
class Found:
    """A header and, if the needle is whole, its commit record."""

    header: Header
    commit: Commit | None
    blank: bool
    """There is no commit record; false with ``commit`` None: it is damaged."""


@dataclass(frozen=True, slots=True)
class Gap:
    offset: int
    size: int
    last: bool
    """No header follows."""


class VolumeReader:
    """Walks one volume file. All methods raise OSError."""

    def __init__(self, disk: Disk, fd: int) -> None:
        self._disk = disk
        self._fd = fd
        self.size = disk.fstat(fd).size
        self._window = bytearray(min(_WINDOW, align(self.size + 1)))

    def bytes_at(self, offset: int, size: int) -> bytes:
        raw = bytearray(size)
        return bytes(raw[: read_all(self._disk, self._fd, [raw], offset)])

    def identity(self) -> tuple[int, bytes] | None:
        return parse_file_header(self.bytes_at(0, FILE_HEADER_SIZE))

    def checksum(self, offset: int, size: int) -> int | None:
        """Return the payload's CRC64 of the needle at ``offset``, or None if it is cut short."""
        crc, done = 0, 0
        while done < size:
            view = memoryview(self._window)[: min(len(self._window), size - done)]
            if read_all(self._disk, self._fd, [view], offset + NEEDLE_OVERHEAD + done) < len(view):
                return None
            crc = crc64nvme(view, crc)
            done += len(view)
        return crc

    def is_intact(self, offset: int, commit: Commit) -> bool:
        return self.checksum(offset, commit.size) == commit.crc

    def tombstones(self, found: Found) -> list[Tombstone] | None:
        """Return what the needle holds, or None when it is damaged."""
        assert found.commit is not None
        if not self.is_intact(found.header.offset, found.commit):
            return None
        return parse_tombstones(
            self.bytes_at(found.header.offset + NEEDLE_OVERHEAD, found.commit.size)
        )

    def needle_at(self, offset: int, uuid: bytes | None) -> Found | None:
        raw = self.bytes_at(offset, RECORD_SIZE)
        header = parse_header(raw[:HEADER_SIZE], offset, uuid)
        if header is None:
            return None
        record = raw[HEADER_SIZE:]
        return Found(header, parse_commit(record, header), record == BLANK[: len(record)])

    def next_header(self, begin: int, end: int, uuid: bytes | None) -> int | None:
        """Return the offset of the first header in [begin, end), which are aligned."""
        at = begin
        while at < end:
            view = memoryview(self._window)[: min(len(self._window), max(0, self.size - at))]
            count = read_all(self._disk, self._fd, [view], at) if view else 0
            if count < HEADER_SIZE:
                return None
            position = self._window.find(NEEDLE_MAGIC, 0, count)
            while position >= 0 and at + position < end:
                if position % ALIGNMENT == 0:
                    raw = bytes(self._window[position : position + HEADER_SIZE])
                    if parse_header(raw, at + position, uuid) is not None:
                        return at + position
                position = self._window.find(NEEDLE_MAGIC, position + 1, count)
            at += len(self._window)
        return None

    def walk(self, begin: int, uuid: bytes) -> Iterator[Found | Gap]:
        """Yield every needle and gap from ``begin`` (aligned) to the end of the file."""
        at = begin
        while at < self.size:
            found = self.needle_at(at, uuid)
            if found is None:
                following = self.next_header(at + ALIGNMENT, align(self.size), uuid)
                yield Gap(at, (following or self.size) - at, following is None)
                if following is None:
                    return
                at = following
                continue
            yield found
            if found.commit is not None:
                at += found.commit.extent
            elif found.header.kind == FILLER:
                at += found.header.extent  # whatever was there before
            else:
                # Its extent may have been shortened by a commit record that is lost.
                end = at + found.header.extent
                inner = self.next_header(at + ALIGNMENT, min(end, align(self.size)), uuid)
                at = inner or end
