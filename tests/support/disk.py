"""Disks for tests: one that fails on demand, one that records so that crashes can be replayed.

``OperationLog`` is what ``RecordingDisk`` and ``RecordingVFS`` write to; one log may serve both, so
that a whole store (drives and metadata) is crashed at one moment:

    log = OperationLog(root)
    disk = RecordingDisk(log)
    vfs = RecordingVFS("recorded", log)
    ... use the store below ``root``; call ``log.mark(x)`` when x has been acknowledged ...
    for crash_at, seed in log.states(seeds=3):
        log.materialize(crash_at, seed, target)
        ... open the store below ``target``; all of ``log.marked(crash_at)`` must be there ...
"""

from __future__ import annotations

import errno
import os
import random
import shutil
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import apsw

from engine.node.contract import Buffer
from engine.node.disk import DiskSpace, RealDisk

SECTOR = 512


# Recording


@dataclass(frozen=True, slots=True)
class Write:
    file: int
    offset: int
    data: bytes


@dataclass(frozen=True, slots=True)
class Truncate:
    file: int
    size: int


@dataclass(frozen=True, slots=True)
class Extend:
    """The file reaches at least to ``size``."""

    file: int
    size: int


@dataclass(frozen=True, slots=True)
class Punch:
    file: int
    offset: int
    size: int


@dataclass(frozen=True, slots=True)
class Sync:
    file: int


@dataclass(frozen=True, slots=True)
class Link:
    """``path`` (relative) came to name ``file``, or nothing (None)."""

    path: str
    file: int | None


@dataclass(frozen=True, slots=True)
class SyncFolder:
    path: str


Operation = Write | Truncate | Extend | Punch | Sync | Link | SyncFolder


@dataclass(slots=True)
class _Mark:
    at: int
    value: object


@dataclass
class OperationLog:
    """Every change below ``root`` in order. What is there at first counts as durable."""

    root: Path
    operations: list[Operation] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.root = Path(self.root).resolve()
        self._lock = threading.RLock()
        self._marks: list[_Mark] = []
        self._names: dict[str, int] = {}
        self._initial: dict[int, bytes] = {}
        self._folders: list[str] = []
        self._next = 0
        for folder, names, files in os.walk(self.root):
            self._folders += [self._relative(os.path.join(folder, name)) for name in names]
            for name in files:
                path = os.path.join(folder, name)
                file = self._new_file()
                self._names[self._relative(path)] = file
                self._initial[file] = Path(path).read_bytes()
        self._initial_names = dict(self._names)

    def __getstate__(self) -> dict[str, object]:
        """Pickled, a log can be replayed by other processes."""
        return {name: value for name, value in self.__dict__.items() if name != "_lock"}

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__dict__.update(state)
        self._lock = threading.RLock()

    # Used by the recorders

    def _relative(self, path: str) -> str:
        return os.path.relpath(os.path.abspath(path), self.root)

    def covers(self, path: str) -> bool:
        return Path(os.path.abspath(path)).is_relative_to(self.root)

    def _new_file(self) -> int:
        self._next += 1
        return self._next

    def add(self, operation: Operation) -> None:
        with self._lock:
            self.operations.append(operation)

    def opened(self, path: str, *, created: bool) -> int:
        """Return the number of the file at ``path``."""
        name = self._relative(path)
        with self._lock:
            if created or name not in self._names:
                self._names[name] = self._new_file()
                self.add(Link(name, self._names[name]))
            return self._names[name]

    def unlinked(self, path: str) -> None:
        name = self._relative(path)
        with self._lock:
            self._names.pop(name, None)
            self.add(Link(name, None))

    def renamed(self, old: str, new: str) -> None:
        with self._lock:
            file = self._names.pop(self._relative(old))
            self._names[self._relative(new)] = file
            self.add(Link(self._relative(old), None))
            self.add(Link(self._relative(new), file))

    def made_folder(self, path: str) -> None:
        self._folders.append(self._relative(path))

    def synced_folder(self, path: str) -> None:
        self.add(SyncFolder(self._relative(path)))

    # Used by tests

    def mark(self, value: object) -> None:
        """Note that ``value`` has been acknowledged: it must survive any later crash."""
        with self._lock:
            self._marks.append(_Mark(len(self.operations), value))

    def marked(self, crash_at: int) -> list[object]:
        """Return what had been acknowledged when ``crash_at`` operations were done."""
        return [mark.value for mark in self._marks if mark.at <= crash_at]

    def states(self, *, seeds: int = 1, begin: int = 0, step: int = 1) -> Iterator[tuple[int, int]]:
        """Yield (crash_at, seed) for a crash after every operation, ``seeds`` of each."""
        for crash_at in range(begin, len(self.operations) + 1, step):
            for seed in range(seeds):
                yield crash_at, crash_at * 1000 + seed

    def materialize(self, crash_at: int, seed: int, target: Path) -> None:
        """Write to ``target`` (made anew) what a power failure after ``crash_at`` operations
        might leave: synced bytes are there; others are there, lost, or torn at sectors; names
        whose folder was not synced are old or new. Folders themselves always survive. A sector
        that is written back is as it was in memory then, with all that came to it before.

        Every eighth seed keeps everything, as when only the process is killed.
        """
        chance = random.Random(seed)
        keep = seed % 8 == 7
        contents = {file: bytearray(data) for file, data in self._initial.items()}
        cached = {file: bytearray(data) for file, data in self._initial.items()}
        done = self.operations[:crash_at]
        for fate, operation in self._fates(done, chance, keep=keep):
            _apply(cached, operation)
            if isinstance(operation, Write):
                _write_back(contents, cached, operation, fate, chance)
            elif fate:
                _apply(contents, operation)
        names = self._surviving_names(done, chance, keep=keep)
        shutil.rmtree(target, ignore_errors=True)
        target.mkdir(parents=True)
        for folder in self._folders:
            (target / folder).mkdir(parents=True, exist_ok=True)
        for name, file in names.items():
            (target / name).write_bytes(contents.get(file, b""))

    def _fates(
        self, done: Sequence[Operation], chance: random.Random, *, keep: bool
    ) -> Iterator[tuple[float, Operation]]:
        """Yield each change of a file, and how likely each of its sectors survives.

        Half of the files lose their unsynced writes at random; the others lose all that came
        after some moment: else a journal would hardly ever survive beyond its first records.
        """
        synced = {op.file: index for index, op in enumerate(done) if isinstance(op, Sync)}
        cut: dict[int, int | None] = {}
        for index, operation in enumerate(done):
            if not isinstance(operation, (Write, Truncate, Extend, Punch)):
                continue
            file = operation.file
            if file not in cut:
                since = synced.get(file, 0)
                cut[file] = chance.randint(since, len(done)) if chance.random() < 0.5 else None
            moment = cut[file]
            if keep or index < synced.get(file, -1) or (moment is not None and index < moment):
                yield 1.0, operation
            elif moment is None:
                torn = 0.5 if isinstance(operation, Write) else 1.0
                yield chance.choices([1.0, torn, 0.0], [0.35, 0.25, 0.4])[0], operation
            else:
                yield 0.0, operation

    def _surviving_names(
        self, done: Sequence[Operation], chance: random.Random, *, keep: bool
    ) -> dict[str, int]:
        names: dict[str, int] = dict(self._initial_names)
        synced = {op.path: index for index, op in enumerate(done) if isinstance(op, SyncFolder)}
        lost: set[str] = set()
        for index, operation in enumerate(done):
            if not isinstance(operation, Link):
                continue
            folder = os.path.dirname(operation.path) or "."
            durable = keep or index < synced.get(folder, -1)
            if operation.path in lost or (not durable and chance.random() < 0.5):
                lost.add(operation.path)  # and so is every later change of this name
            elif operation.file is None:
                names.pop(operation.path, None)
            else:
                names[operation.path] = operation.file
        return names


def _write_back(
    contents: dict[int, bytearray],
    cached: dict[int, bytearray],
    write: Write,
    fate: float,
    chance: random.Random,
) -> None:
    """Write the sectors of a write back, each with the chance ``fate``, as they are in memory."""
    content, memory = contents.setdefault(write.file, bytearray()), cached[write.file]
    end = write.offset + len(write.data)
    for begin in range(write.offset // SECTOR * SECTOR, end, SECTOR):
        if fate == 1.0 or (fate and chance.random() < fate):
            sector = memory[begin : begin + SECTOR]
            if len(content) < begin:
                content.extend(bytes(begin - len(content)))
            content[begin : begin + len(sector)] = sector


def _apply(contents: dict[int, bytearray], operation: Operation) -> None:
    match operation:
        case Write(file, offset, data):
            content = contents.setdefault(file, bytearray())
            if len(content) < offset:
                content.extend(bytes(offset - len(content)))
            content[offset : offset + len(data)] = data
        case Truncate(file, size):
            content = contents.setdefault(file, bytearray())
            del content[size:]
            content.extend(bytes(size - len(content)))
        case Extend(file, size):
            content = contents.setdefault(file, bytearray())
            content.extend(bytes(max(0, size - len(content))))
        case Punch(file, offset, size):
            content = contents.setdefault(file, bytearray())
            end = min(offset + size, len(content))
            if offset < end:
                content[offset:end] = bytes(end - offset)
        case _:
            raise AssertionError(operation)


class RecordingDisk(RealDisk):
    """A real disk that logs every change; syncs are logged, not done."""

    def __init__(self, log: OperationLog) -> None:
        super().__init__()
        self.log = log
        self._files: dict[int, int] = {}

    def open(self, path: str, flags: int, mode: int = 0o644) -> int:
        existed = os.path.exists(path)
        fd = super().open(path, flags, mode)
        self._files[fd] = self.log.opened(path, created=not existed)
        if flags & os.O_TRUNC and existed:
            self.log.add(Truncate(self._files[fd], 0))
        return fd

    def pwritev(self, fd: int, buffers: Sequence[Buffer], offset: int) -> int:
        self.log.add(Write(self._files[fd], offset, b"".join(buffers)))
        return super().pwritev(fd, buffers, offset)

    def fdatasync(self, fd: int) -> None:
        self.log.add(Sync(self._files[fd]))

    def fsync_dir(self, path: str) -> None:
        self.log.synced_folder(path)

    def ftruncate(self, fd: int, size: int) -> None:
        self.log.add(Truncate(self._files[fd], size))
        super().ftruncate(fd, size)

    def punch_hole(self, fd: int, offset: int, size: int) -> None:
        self.log.add(Punch(self._files[fd], offset, size))
        super().punch_hole(fd, offset, size)

    def extend(self, fd: int, offset: int, size: int) -> bool:
        self.log.add(Extend(self._files[fd], offset + size))
        if os.fstat(fd).st_size < offset + size:
            os.ftruncate(fd, offset + size)
        return True

    def allocate(self, fd: int, size: int) -> None:
        self.log.add(Truncate(self._files[fd], size))
        os.ftruncate(fd, size)

    def unlink(self, path: str) -> None:
        super().unlink(path)
        self.log.unlinked(path)

    def rename(self, old: str, new: str) -> None:
        super().rename(old, new)
        self.log.renamed(old, new)

    def mkdir(self, path: str) -> None:
        super().mkdir(path)
        self.log.made_folder(path)


class _RecordingFile(apsw.VFSFile):
    def __init__(
        self, base: str, name: apsw.URIFilename | str | None, flags: list[int], log: OperationLog
    ) -> None:
        path = name.filename() if isinstance(name, apsw.URIFilename) else name
        existed = path is not None and os.path.exists(path)
        wanted = flags[0]
        super().__init__(base, name, flags)
        self._log = log
        self._folder: str | None = None
        self._number = 0
        if path is not None and log.covers(path):
            self._number = log.opened(path, created=not existed)
            # SQLite's unix VFS syncs the folder with a connection's first sync of a journal or
            # WAL, also of one that another connection made (UNIXFILE_DIRSYNC in os_unix.c).
            journals = apsw.SQLITE_OPEN_WAL | apsw.SQLITE_OPEN_MAIN_JOURNAL
            if wanted & journals and wanted & apsw.SQLITE_OPEN_CREATE:
                self._folder = os.path.dirname(path)

    def xWrite(self, data: bytes, offset: int) -> None:
        if self._number:
            self._log.add(Write(self._number, offset, bytes(data)))
        super().xWrite(data, offset)

    def xTruncate(self, newsize: int) -> None:
        if self._number:
            self._log.add(Truncate(self._number, newsize))
        super().xTruncate(newsize)

    def xSync(self, flags: int) -> None:
        if not self._number:
            super().xSync(flags)
            return
        self._log.add(Sync(self._number))
        if self._folder is not None:
            self._log.synced_folder(self._folder)
            self._folder = None


class RecordingVFS(apsw.VFS):
    """An SQLite VFS that logs the changes of databases, journals and WALs below the log's root.

    Syncs are logged, not done. The shared-memory file is not logged: it does not survive a crash.
    Pass ``name`` as the connection's ``vfs``, and call ``unregister`` when done.
    """

    def __init__(self, name: str, log: OperationLog) -> None:
        super().__init__(name, "")
        self._log = log

    def xOpen(self, name: apsw.URIFilename | str | None, flags: list[int]) -> apsw.VFSFile:
        return _RecordingFile("", name, flags, self._log)

    def xDelete(self, filename: str, syncdir: bool) -> None:
        super().xDelete(filename, syncdir)
        if self._log.covers(filename):
            self._log.unlinked(filename)
            if syncdir:
                self._log.synced_folder(os.path.dirname(filename))


# Failing


@dataclass
class Fault:
    """Fail calls of one kind: ``call`` is a method's name of ``Disk``.

    ``after`` calls pass first; then ``count`` fail (-1: all that follow).
    """

    call: str
    error: int = errno.EIO
    after: int = 0
    count: int = 1
    path: str = ""
    """Only files whose path contains this."""


class FaultDisk(RealDisk):
    """A real disk that fails as it is told; ``faults`` may be changed at any time.

    A failed fdatasync drops what was written to the file since the last sync, as the kernel may:
    the pages count as clean, and are gone when memory is needed.
    """

    def __init__(self, *faults: Fault) -> None:
        super().__init__()
        self.faults = list(faults)
        self.free: int | None = None
        """What ``statvfs`` says is free; None: the truth."""
        self.flip_reads: set[int] = set()
        """Offsets in volumes whose byte is read with one bit changed."""
        self.calls: list[str] = []
        self._paths: dict[int, str] = {}
        self._unsynced: dict[str, list[tuple[int, bytes]]] = {}
        """By path, since a file may be open twice: what writes since the last sync replaced."""

    def _call(self, call: str, path: str) -> None:
        self.calls.append(call)
        for fault in self.faults:
            if fault.call != call or fault.path not in path or fault.count == 0:
                continue
            if fault.after > 0:
                fault.after -= 1
                continue
            fault.count -= 1
            raise OSError(fault.error, os.strerror(fault.error), path)

    def open(self, path: str, flags: int, mode: int = 0o644) -> int:
        self._call("open", path)
        fd = super().open(path, flags, mode)
        self._paths[fd] = path
        self._unsynced.setdefault(path, [])
        return fd

    def preadv(self, fd: int, buffers: Sequence[Buffer], offset: int, flags: int = 0) -> int:
        self._call("preadv", self._paths[fd])
        count = super().preadv(fd, buffers, offset, flags)
        at = offset
        for buffer in buffers:
            view = memoryview(buffer)
            for flip in self.flip_reads:
                if at <= flip < min(at + len(view), offset + count):
                    view[flip - at] ^= 1
            at += len(view)
        return count

    def pwritev(self, fd: int, buffers: Sequence[Buffer], offset: int) -> int:
        self._call("pwritev", self._paths[fd])
        size = sum(memoryview(buffer).nbytes for buffer in buffers)
        with open(self._paths[fd], "rb") as file:
            before = os.pread(file.fileno(), size, offset).ljust(size, b"\0")
        self._unsynced[self._paths[fd]].append((offset, before))
        return super().pwritev(fd, buffers, offset)

    def fdatasync(self, fd: int) -> None:
        try:
            self._call("fdatasync", self._paths[fd])
        except OSError:
            for offset, before in reversed(self._unsynced[self._paths[fd]]):
                os.pwrite(fd, before, offset)
            raise
        self._unsynced[self._paths[fd]].clear()
        super().fdatasync(fd)

    def fsync_dir(self, path: str) -> None:
        self._call("fsync_dir", path)
        super().fsync_dir(path)

    def ftruncate(self, fd: int, size: int) -> None:
        self._call("ftruncate", self._paths[fd])
        super().ftruncate(fd, size)

    def extend(self, fd: int, offset: int, size: int) -> bool:
        self._call("extend", self._paths[fd])
        return super().extend(fd, offset, size)

    def punch_hole(self, fd: int, offset: int, size: int) -> None:
        self._call("punch_hole", self._paths[fd])
        super().punch_hole(fd, offset, size)

    def unlink(self, path: str) -> None:
        self._call("unlink", path)
        super().unlink(path)

    def listdir(self, path: str) -> list[str]:
        self._call("listdir", path)
        return super().listdir(path)

    def statvfs(self, path: str) -> DiskSpace:
        self._call("statvfs", path)
        real = super().statvfs(path)
        return real if self.free is None else DiskSpace(real.total, self.free)


class UnsyncedDisk(RealDisk):
    """A real disk without syncs: for tests that never lose power."""

    def fdatasync(self, fd: int) -> None:
        pass

    def fsync_dir(self, path: str) -> None:
        pass
