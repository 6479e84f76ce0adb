"""Bringing an index up to what the volumes hold, after a crash or the loss of the index.

A volume that no process appends to is walked from ``indexed_to`` on:

* a needle with a commit record, whose payload has the checksum in it, is entered;
* one with a blank commit record was never acknowledged: dead space;
* bytes that are no header: the next header is searched at every multiple of 512. If a later commit
  says that what lies before the gap's end was durable once, the gap is *damage* and is reported;
  else it was never synced, thus never acknowledged. What follows the last needle becomes filler.

Tombstones are collected over all volumes and applied last, so the order of volumes is no matter;
they name the needle's place, so they never hit a later needle of the same fragment. One that names
a copy also hits what it was copied from, should compaction not have come to let that go.

``indexed_to`` moves when all is done: a crash on the way repeats everything, harmlessly. A needle
that loses to another loses its commit record too; so that no later recovery decides otherwise, what
was decided is durable in the index before anything can be built on it.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

from engine.ids import FragmentId
from engine.node.contract import NodeDown
from engine.node.disk import Disk, write_all
from engine.node.files import volume_numbers, volume_path
from engine.node.index import OPEN, READ_ONLY, RETIRED, Index, VolumeRow
from engine.node.needle import (
    BLANK,
    COPY,
    FILE_HEADER_SIZE,
    FILLER,
    HEADER_SIZE,
    NEEDLE_OVERHEAD,
    NO_FRAGMENT,
    PAGE,
    TOMBSTONES,
    Source,
    Tombstone,
    align,
    extent_size,
    pack_header,
)
from engine.node.scan import Found, Gap, VolumeReader
from engine.node.volume import FULL_ERRORS

_BATCH = 4096


@dataclass(frozen=True, slots=True)
class Damage:
    """Bytes of a volume that had been durable and are not what was written."""

    volume: int
    offset: int
    size: int
    what: str


@dataclass(slots=True)
class RecoveryReport:
    rebuilt: bool = False
    """The index was lost; all volumes were read."""
    replayed: int = 0
    """Needles entered into the index."""
    abandoned: int = 0
    """Needles that were begun and never acknowledged."""
    given_up_bytes: int = 0
    """Bytes behind the last needle of a volume: nothing that was acknowledged."""
    missing: int = 0
    """Needles of volumes that are gone."""
    damage: list[Damage] = field(default_factory=list)


@dataclass(slots=True)
class _Tail:
    """What the walk over one volume found."""

    row: VolumeRow
    end: int
    """Behind the last needle that is kept."""
    durable_to: int = 0
    """What the commit records say was durable."""
    unsure: list[Found] = field(default_factory=list)
    """Needles of which no later one says that they were durable."""
    needles: list[tuple[FragmentId, int, int]] = field(default_factory=list)
    tombstones: list[Tombstone] = field(default_factory=list)
    tombstone_bytes: int = 0
    damage: list[Damage] = field(default_factory=list)
    gone: set[int] = field(default_factory=set)
    """Offsets of needles that had been in the index and were removed."""
    full: bool = False
    """The drive has no room to mark what was lost: nothing more is written to the volume."""


class Recovery:
    """One run over the volumes of a drive that nobody appends to.

    The caller holds the drive's opening lock. ``rebuild``: the index is new and empty, and no
    other process has the drive open.
    """

    def __init__(self, disk: Disk, folder: str, index: Index, *, rebuild: bool) -> None:
        self._disk = disk
        self._folder = folder
        self._index = index
        self._rebuild = rebuild
        self._conflicts: list[tuple[int, FragmentId, int, int]] = []
        self._copies: dict[Source, Source] = {}
        """By the place of a copy: where it was copied from, in a volume that is still there."""
        self._unused: list[tuple[int, int]] = []
        """Copies (volume, offset) that the index never came to point to."""
        self._uuids: set[bytes] = set()
        self.report = RecoveryReport()

    def run(self) -> RecoveryReport:
        """Raises: NodeDown, NodeFull."""
        try:
            self._run()
        except OSError as error:
            raise NodeDown(f"{self._folder}: recovery: {error.strerror}") from error
        return self.report

    def _run(self) -> None:
        self._unlink_retired()
        rows = self._index.volumes()
        numbers = sorted(volume_numbers(self._disk, self._folder))
        self.report.rebuilt = self._rebuild and bool(numbers)
        gone = [rows[number] for number in rows if number not in set(numbers)]
        dirty = [number for number in numbers if self._take(number, rows.get(number))]
        rows = self._index.volumes()
        self._uuids = {row.uuid for row in rows.values()} - {row.uuid for row in gone}
        tails = [self._replay(rows[number]) for number in dirty if number in rows]
        self._apply(tails, rows)
        for row in gone:
            self.report.missing += row.needles
            self._index.drop_volume(row.number, with_needles=row.needles > 0)

    def _unlink_retired(self) -> None:
        retired = [row for row in self._index.volumes().values() if row.state == RETIRED]
        for row in retired:
            if self._is_still(row):
                unlink_if_there(self._disk, volume_path(self._folder, row.number))
        if retired:
            self._disk.fsync_dir(os.path.dirname(volume_path(self._folder, 0)))
        for row in retired:
            self._index.drop_volume(row.number)

    def _is_still(self, row: VolumeRow) -> bool:
        """Return whether the volume's file is the one that the row is about, or of no volume."""
        try:
            with self._opened(row.number) as fd:
                reader = VolumeReader(self._disk, fd)
                identity = reader.identity()
                uuid = identity[1] if identity is not None else _uuid_within(reader)
        except FileNotFoundError:
            return False
        except OSError:
            return True  # what cannot be read any more was not needed anyway
        return uuid is None or uuid == row.uuid

    def _take(self, number: int, row: VolumeRow | None) -> bool:
        """Make sure of a volume's row; False when there is nothing to replay.

        The lock on the volume need not outlast this and ``_replay``: nobody appends to a volume
        that is not clean, and who cleans it holds the opening lock.
        """
        try:
            fd = self._disk.open(volume_path(self._folder, number), os.O_RDWR)
        except FileNotFoundError:
            return False  # compaction was just done with it
        try:
            if not self._disk.lock(fd, exclusive=True):
                return False
            return self._examine(number, row, VolumeReader(self._disk, fd))
        finally:
            self._disk.close(fd)

    def _examine(self, number: int, row: VolumeRow | None, reader: VolumeReader) -> bool:
        identity = reader.identity()
        if row is not None and identity is not None and identity[1] != row.uuid:
            # Somebody put another file in the volume's place.
            self.report.missing += row.needles
            self._index.drop_volume(number, with_needles=True)
            row = None
        if row is not None:
            return align(reader.size) != align(row.indexed_to)
        uuid = identity[1] if identity is not None else _uuid_within(reader)
        if uuid is None:
            # The process that made it died before the file header was durable.
            self._disk.unlink(volume_path(self._folder, number))
            return False
        self._index.add_volume(number, uuid, FILE_HEADER_SIZE)
        if identity is None:
            damage = Damage(number, 0, FILE_HEADER_SIZE, "file header")
            self.report.damage.append(damage)
            self._index.set_state(number, READ_ONLY)
        return True

    # One volume

    def _replay(self, row: VolumeRow) -> _Tail:
        tail = _Tail(row, align(row.indexed_to), gone=self._index.gone_from(row.number))
        fd = self._disk.open(volume_path(self._folder, row.number), os.O_RDWR)
        try:
            if not self._disk.lock(fd, exclusive=True):
                return tail
            reader = VolumeReader(self._disk, fd)
            # What a killed process left in the page cache is valid to read, and not yet durable.
            self._disk.fdatasync(fd)
            self._check_size(reader, tail)
            try:
                self._walk(fd, reader, tail)
            except OSError as error:
                if error.errno != errno.EIO:
                    raise
                damage = Damage(row.number, tail.end, reader.size - tail.end, "unreadable")
                tail.damage.append(damage)
            else:
                self._close(fd, reader, tail)
            self._load(tail)
        finally:
            self._disk.close(fd)
        return tail

    def _walk(self, fd: int, reader: VolumeReader, tail: _Tail) -> None:
        number = tail.row.number
        gaps: list[Damage] = []
        for item in reader.walk(tail.end, tail.row.uuid):
            if isinstance(item, Gap):
                if not item.last:
                    gaps.append(Damage(number, item.offset, item.size, "header"))
                continue
            header, commit = item.header, item.commit
            if commit is not None:
                tail.unsure.append(item)
                if commit.synced_to > tail.durable_to:
                    tail.durable_to = commit.synced_to
                    self._settle(reader, tail)
            elif item.blank:
                self.report.abandoned += header.kind != FILLER
            else:
                what = Damage(number, header.offset, header.extent, "commit record")
                tail.damage.append(what)
                tail.end = header.offset + header.extent
        tail.damage += [gap for gap in gaps if gap.offset < tail.durable_to]
        for item in tail.unsure:
            assert item.commit is not None
            if reader.is_intact(item.header.offset, item.commit):
                self._accept(reader, tail, item)
            else:
                # A crash lost part of it: it was not acknowledged.
                self.report.abandoned += 1
                self._blank(fd, item.header.offset)
        self._fill(fd, tail, [gap for gap in gaps if tail.durable_to <= gap.offset < tail.end])

    def _fill(self, fd: int, tail: _Tail, gaps: list[Damage]) -> None:
        """Say that there is nothing where headers were lost before they were durable: what is
        written behind them from now on would say that they had been."""
        try:
            for gap in gaps:
                header = pack_header(FILLER, tail.row.uuid, gap.offset, NO_FRAGMENT, gap.size)
                write_all(self._disk, fd, [header + BLANK], gap.offset)
        except OSError as error:
            if error.errno not in FULL_ERRORS:
                raise
            tail.full = True
            return
        if gaps:
            self._disk.fdatasync(fd)

    def _settle(self, reader: VolumeReader, tail: _Tail) -> None:
        """Accept the needles that a later one says are durable, without reading them: should
        they be damaged, their readers find out block by block.
        """
        rest = []
        for item in tail.unsure:
            assert item.commit is not None
            if item.header.offset + item.commit.extent <= tail.durable_to:
                self._accept(reader, tail, item)
            else:
                rest.append(item)
        tail.unsure = rest

    def _close(self, fd: int, reader: VolumeReader, tail: _Tail) -> None:
        """Let the volume go on behind all that was ever written to it, whatever became of that: a
        tombstone, or what the index knows to be gone, may name a place there.
        """
        end = align(reader.size)
        if tail.end < end:
            self.report.given_up_bytes += end - tail.end
            rest = Damage(tail.row.number, tail.end, end - tail.end, "tail")
            self._fill(fd, tail, [rest])
            if tail.full:
                return
            begin = (tail.end + NEEDLE_OVERHEAD + PAGE - 1) & -PAGE
            if begin < end & -PAGE:
                with suppress(OSError):  # it is dead space then, until compaction
                    self._disk.punch_hole(fd, begin, (end & -PAGE) - begin)
            tail.end = end
        elif end < tail.end:
            # Nothing came to the end of the last extent.
            self._disk.ftruncate(fd, tail.end)
            self._disk.fdatasync(fd)

    def _check_size(self, reader: VolumeReader, tail: _Tail) -> None:
        """Report a file that is shorter than the index says.

        What is left of it was entered once. It is not walked again: that would bring back needles
        whose tombstones are in other volumes.
        """
        number, end = tail.row.number, align(reader.size)
        if end >= tail.end:
            return
        tail.damage = [
            Damage(number, offset, extent_size(size), "cut off")
            for _, offset, size in self._index.needles_in(number)
            if offset + NEEDLE_OVERHEAD + size > reader.size
        ] or [Damage(number, end, tail.end - end, "cut off")]
        tail.end = end

    def _accept(self, reader: VolumeReader, tail: _Tail, found: Found) -> None:
        header, commit = found.header, found.commit
        assert commit is not None
        tail.end = max(tail.end, header.offset + commit.extent)
        if header.kind == TOMBSTONES:
            tombstones = reader.tombstones(found)
            if tombstones is None:
                damage = Damage(tail.row.number, header.offset, commit.extent, "tombstones")
                tail.damage.append(damage)
            else:
                tail.tombstones += tombstones
            tail.tombstone_bytes += commit.extent
            return
        if header.kind == COPY and commit.source.uuid in self._uuids:
            self._copies[Source(tail.row.uuid, header.offset)] = commit.source
            place = tail.row.number, header.offset
            if not self._rebuild and self._index.find(header.fragment) != (*place, commit.size):
                # Compaction makes the index durable before it lets go of the source: this copy
                # was never put in its place.
                self._unused.append(place)
                return
        if header.offset not in tail.gone:
            self.report.replayed += 1
            tail.needles.append((header.fragment, header.offset, commit.size))
            if len(tail.needles) >= _BATCH:
                self._load(tail)

    def _load(self, tail: _Tail) -> None:
        number = tail.row.number
        if tail.needles:
            conflicts = self._index.load(number, tail.needles)
            self._conflicts += [(number, *needle) for needle in conflicts]
            tail.needles = []

    # All volumes together

    def _apply(self, tails: list[_Tail], rows: dict[int, VolumeRow]) -> None:
        places = {row.uuid: row.number for row in rows.values()}
        dead = self._with_sources({item for tail in tails for item in tail.tombstones})
        self._remove(dead, places)
        for conflict in self._conflicts:
            self._resolve(conflict, rows, dead)
        if self._conflicts or self._unused:
            self._index.sync()
        for number, offset in self._unused:
            self._disown(number, offset)
        for tail in tails:
            self.report.damage += tail.damage
            if (tail.damage or tail.full) and tail.row.state == OPEN:
                self._index.set_state(tail.row.number, READ_ONLY)
        self._index.finish([(t.row.number, t.end, t.tombstone_bytes) for t in tails])

    def _with_sources(self, dead: set[Tombstone]) -> set[Tombstone]:
        for fragment, place in list(dead):
            source = self._copies.get(place)
            while source is not None:
                dead.add(Tombstone(fragment, source))
                source = self._copies.get(source)
        return dead

    def _remove(self, dead: set[Tombstone], places: dict[bytes, int]) -> None:
        removals = []
        for fragment, place in dead:
            found = self._index.find(fragment)
            if found is None:
                continue
            number, offset, _ = found
            if (number, offset) == (places.get(place.uuid), place.offset) or (
                self._rebuild and self._source(number, offset) == place
            ):
                removals.append((fragment, number, offset))
        for begin in range(0, len(removals), _BATCH):
            self._index.remove(removals[begin : begin + _BATCH])

    def _resolve(
        self,
        conflict: tuple[int, FragmentId, int, int],
        rows: dict[int, VolumeRow],
        dead: set[Tombstone],
    ) -> None:
        """Choose between two needles of one fragment, whose bytes were the same once."""
        number, fragment, offset, size = conflict
        places = {Source(rows[number].uuid, offset), self._source(number, offset)}
        if any((fragment, place) in dead for place in places):
            return
        known = self._index.find(fragment)
        if known is not None and known[:2] == (number, offset):
            return
        if known is not None:
            if self._rebuild and self._is_intact(known[0], known[1]):
                self._disown(number, offset)
                return
            self._disown(known[0], known[1])
            self._index.remove([(fragment, known[0], known[1])])
        self._index.load(number, [(fragment, offset, size)])

    def _source(self, number: int, offset: int) -> Source | None:
        """Return where compaction copied the needle from, or None."""
        with self._opened(number) as fd:
            found = VolumeReader(self._disk, fd).needle_at(offset, None)
        if found is None or found.commit is None or found.header.kind != COPY:
            return None
        return found.commit.source

    def _is_intact(self, number: int, offset: int) -> bool:
        with self._opened(number) as fd:
            reader = VolumeReader(self._disk, fd)
            found = reader.needle_at(offset, None)
            if found is None or found.commit is None:
                return False
            return reader.is_intact(offset, found.commit)

    def _disown(self, number: int, offset: int) -> None:
        with self._opened(number) as fd:
            self._blank(fd, offset)

    def _blank(self, fd: int, offset: int) -> None:
        """Blank a commit record, so that no later rebuild finds the needle."""
        write_all(self._disk, fd, [BLANK], offset + HEADER_SIZE)
        self._disk.fdatasync(fd)

    @contextmanager
    def _opened(self, number: int) -> Iterator[int]:
        fd = self._disk.open(volume_path(self._folder, number), os.O_RDWR)
        try:
            yield fd
        finally:
            self._disk.close(fd)


def _uuid_within(reader: VolumeReader) -> bytes | None:
    """Return the uuid that the first needle header names: the file header is damaged."""
    at = reader.next_header(FILE_HEADER_SIZE, align(reader.size), None)
    found = None if at is None else reader.needle_at(at, None)
    return None if found is None else found.header.uuid


def unlink_if_there(disk: Disk, path: str) -> None:
    try:
        disk.unlink(path)
    except FileNotFoundError:
        return
