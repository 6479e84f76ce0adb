"""A whole store whose power fails: metadata, drives and their indexes recorded in one log.

A scenario is a list of steps; each changes one key at most, or several keys independently. Before
the first step and after each, ``Recording.acknowledge`` notes the *view* of the store: what a
client can see of each key. After a crash each key must be as it was acknowledged last, or as the
step that was under way would have left it, and nothing else.

A failed state is replayed from the log that the test has left:

    python -m tests.support.crash check LOG CRASH_AT:SEED ...
"""

from __future__ import annotations

import hashlib
import os
import pickle
import sys
import traceback
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias
from unittest.mock import patch

import msgspec
import structlog
import trio

from engine.engine import Engine
from engine.ids import ChunkId
from engine.meta import keyspace
from engine.services.repair import DamageLog, repair_queue
from engine.services.scan import scan_prefix
from engine.services.strays import delete_strays
from tests.support.disk import OperationLog, RecordingDisk, RecordingVFS
from tests.support.engine import (
    START_MS,
    Folder,
    ManualClock,
    SeededRandom,
    count_fragments,
    count_rows,
    folder_in,
    pattern,
    put,
    read,
    scratch_folder,
)
from tests.support.logs import Logs

View: TypeAlias = dict[str, tuple[object, ...]]
"""What there is of each key of each bucket: versions with digests of their bytes, uploads with
parts. Buckets stand there under ``bucket/``."""
Step: TypeAlias = Callable[["Recording"], Awaitable[None]]

DRIVES, PROFILE = 3, "2+1"
SESSION_S = 3600.0
RESERVE_SIZE = 16 << 20
AFTER = "after-the-crash"
AFTER_SIZE = 9_000


def store_in(path: Path, *, drives: int = DRIVES, **settings: object) -> Folder:
    """Small drives; volumes so small that a few objects fill several."""
    return folder_in(
        path,
        drives=drives,
        profile=PROFILE,
        **{"chunk_size": 32 << 10, "volume_size": 96 << 10, "session_s": SESSION_S, **settings},
    )


def set_reserve_aside(path: Path) -> None:
    """Have the reserve of the metadata store there without writing its 16 MiB each time."""
    meta = path / "data" / "meta"
    meta.mkdir(parents=True, exist_ok=True)
    with (meta / "store.sqlite-reserve").open("wb") as file:
        file.truncate(RESERVE_SIZE)


# What a client sees


async def view_of(opened: Engine) -> View:
    """Return everything that clients can see, with the bytes read."""
    view: View = {}
    buckets, _ = await opened.list_buckets()
    for bucket in buckets:
        view[f"{bucket.name}/"] = (bucket.versioning,)
        await _view_bucket(opened, bucket.name, view)
    return view


async def _view_bucket(opened: Engine, bucket: str, view: View) -> None:
    found: dict[str, list[object]] = {}
    current = []
    seen: set[str] = set()
    for version in (await opened.list_versions(bucket)).versions:
        record = version.version
        if version.key not in seen and not record.delete_marker:
            current.append(version.key)
        seen.add(version.key)
        sum_ = ""
        if not record.delete_marker:
            data = await read(opened, bucket, version.key, version_id=record.version_id)
            assert len(data) == record.size
            sum_ = hashlib.sha256(data).hexdigest()
        row = ("version", record.version_id, record.etag, record.delete_marker, record.size, sum_)
        found.setdefault(version.key, []).append(row)
    listed = [item.key for item in (await opened.list_objects(bucket)).objects]
    assert listed == current, "the listing of objects and that of versions differ"
    for upload in (await opened.list_uploads(bucket)).uploads:
        listing = await opened.list_parts(bucket, upload.key, upload.upload_id)
        parts = tuple((part.number, part.size, part.etag) for part in listing.parts)
        found.setdefault(upload.key, []).append(("upload", upload.upload_id, parts))
    for key, rows in found.items():
        view[f"{bucket}/{key}"] = tuple(rows)


# Recording


@dataclass
class Recording:
    """A store in use; each change of its disks goes to ``log``."""

    folder: Folder
    log: OperationLog
    disk: RecordingDisk
    opened: Engine
    started: list[int] = field(default_factory=list)

    async def acknowledge(self) -> None:
        """Note what there is now: it has been acknowledged."""
        view = await view_of(self.opened)
        self.log.mark(("view", view))

    async def put(self, key: str, size: int, seed: int = 0, *, bucket: str = "plain") -> None:
        data = pattern(size, seed)
        await put(self.opened, bucket, key, data)
        assert await read(self.opened, bucket, key) == data


@dataclass
class Recorded:
    """A log, and what the checks need to know about the store."""

    log: OperationLog
    end_ms: int
    damaged: bool = False
    """The scenario damages fragments: an interrupted repair may leave them so."""
    new: bool = False
    """The log begins with an empty folder."""


@asynccontextmanager
async def recording(root: Path, name: str) -> AsyncIterator[Recording]:
    """Yield a store with two buckets (``plain`` and ``versioned``) that is being recorded."""
    folder = store_in(root)
    set_reserve_aside(root)
    await folder.prepare()
    async with folder.open() as opened:
        await opened.create_bucket("plain", owner="owner")
        await opened.create_bucket("versioned", owner="owner")
        await opened.set_versioning("versioned", "Enabled")
    (root / "data" / "meta" / "store.sqlite-reserve").unlink()  # else the log would hold it
    log = OperationLog(root)
    set_reserve_aside(root)
    meta, index = RecordingVFS(f"{name}-meta", log), RecordingVFS(f"{name}-index", log)
    config = msgspec.structs.replace(
        folder.config, meta_vfs=f"{name}-meta", index_vfs=f"{name}-index"
    )
    disk = RecordingDisk(log)
    recorded = Folder(config, folder.clock, folder.random, disk)
    try:
        async with recorded.open() as opened:
            now = Recording(recorded, log, disk, opened)
            await now.acknowledge()
            yield now
    finally:
        meta.unregister()
        index.unregister()


async def record(
    root: Path, name: str, steps: Iterable[Step], *, damaged: bool = False
) -> Recorded:
    async with recording(root, name) as now:
        for step in steps:
            await step(now)
            await now.acknowledge()
    return Recorded(now.log, now.folder.clock(), damaged=damaged)


async def record_new(root: Path, name: str) -> Recorded:
    """Record the making of a store in an empty folder."""
    folder = store_in(root)
    for drive in folder.config.drives:
        drive.mkdir(parents=True)
    set_reserve_aside(root)
    # The identity is written by plain calls, which are atomic; what follows is recorded.
    from engine.identity import read_or_make_identity

    read_or_make_identity(folder.config, START_MS)
    (root / "data" / "meta" / "store.sqlite-reserve").unlink()
    log = OperationLog(root)
    set_reserve_aside(root)
    log.mark(("view", {}))
    meta, index = RecordingVFS(f"{name}-meta", log), RecordingVFS(f"{name}-index", log)
    config = msgspec.structs.replace(
        folder.config, meta_vfs=f"{name}-meta", index_vfs=f"{name}-index"
    )
    recorded = Folder(config, folder.clock, folder.random, RecordingDisk(log))
    try:
        with patch(
            "engine.meta.sqlite_file._sync_folder", lambda path: log.synced_folder(str(path))
        ):
            await recorded.prepare()
            async with recorded.open() as opened:
                await opened.create_bucket("plain", owner="owner")
                log.mark(("view", await view_of(opened)))
    finally:
        meta.unregister()
        index.unregister()
    return Recorded(log, recorded.clock(), new=True)


# Checking


def allowed_views(recorded: Recorded, crash_at: int) -> tuple[View, View]:
    """Return what had been acknowledged, and what the step under way was about to reach."""
    views: list[View] = [mark[1] for mark in recorded.log.marked(sys.maxsize)]  # type: ignore[index]
    done = len(recorded.log.marked(crash_at))
    return views[max(done - 1, 0)], views[min(done, len(views) - 1)]


def compare(found: View, before: View, after: View) -> None:
    for key in found.keys() | before.keys() | after.keys():
        seen = found.get(key)
        assert seen in (before.get(key), after.get(key)), (
            f"{key!r} is {seen}, acknowledged was {before.get(key)}, under way was {after.get(key)}"
        )


async def check_state(recorded: Recorded, crash_at: int, seed: int, target: Path) -> None:
    """Crash, open the store as after any start, and check that nothing is lost or half there.

    Raises: AssertionError, or whatever the store raised.
    """
    recorded.log.materialize(crash_at, seed, target)
    await check_store(recorded, crash_at, target)


async def check_store(recorded: Recorded, crash_at: int, target: Path) -> None:
    """Check the store that a crash has left in ``target``, and use it."""
    before, after = allowed_views(recorded, crash_at)
    set_reserve_aside(target)
    folder = store_in(target)
    folder.clock = ManualClock(recorded.end_ms + 1000)
    folder.random = SeededRandom(crash_at + 1)
    await folder.prepare()
    async with folder.open() as opened:
        found = await view_of(opened)
        compare(found, before, after)
        report = await opened.fsck(deep=True)
        excused = {"orphan_fragments"}
        if recorded.damaged:
            # When the crash also lost the index, a damaged needle that is the last of its volume
            # looks like one that was never synced (docs/decisions/0004): it counts as missing.
            excused |= {"damaged_fragments", "missing_fragments"}
        for name in (
            "missing_fragments",
            "damaged_fragments",
            "orphan_chunks",
            "unreadable_chunks",
            "wrong_counters",
            "orphan_fragments",
        ):
            assert getattr(report, name) == 0 or name in excused, report.problems
        if "plain/" not in found:
            await opened.create_bucket("plain", owner="owner")
        await put(opened, "plain", AFTER, pattern(AFTER_SIZE))
        folder.clock.advance(2 * SESSION_S)
        if recorded.damaged:
            await queue_all(opened)
            await repair_queue(opened.store)
        await opened.collect_garbage(grace_s=0)
        await delete_strays(opened.store)  # a collector that was cut short leaves its fragments so
        await check_settled(opened)
        assert await read(opened, "plain", AFTER) == pattern(AFTER_SIZE)
        seen = await view_of(opened)
        del seen[f"plain/{AFTER}"]
        assert seen == {"plain/": seen["plain/"], **found}, "collection changed what is seen"


async def queue_all(opened: Engine) -> None:
    log = DamageLog()
    async for key, _ in scan_prefix(opened.store.db, keyspace.CHUNK):
        await log._queue(opened.store, ChunkId(key[1:]), 0, "damaged")


async def check_settled(opened: Engine) -> None:
    """Nothing is wrong, and nothing is left but what is owned: after repair and collection."""
    report = await opened.fsck(deep=True)
    assert report.clean, report.problems
    assert await count_fragments(opened) == report.fragments
    assert await count_rows(opened, keyspace.GARBAGE) == 0


# States in other processes


def save(recorded: Recorded, path: Path) -> None:
    path.write_bytes(pickle.dumps(recorded))


def load(path: Path) -> Recorded:
    recorded = pickle.loads(path.read_bytes())
    assert isinstance(recorded, Recorded)
    return recorded


async def check_in_processes(
    log: Path, states: Sequence[tuple[int, int]], *, command: str = "check", processes: int = 2
) -> list[str]:
    """Check states of a saved log; return a line for each that failed: how to replay it.

    Two processes at once: each state is checked by a store of its own.
    """
    failures: list[str] = []

    async def some(part: Sequence[tuple[int, int]]) -> None:
        names = "\n".join(f"{crash_at}:{seed}" for crash_at, seed in part)
        done = await trio.run_process(
            [sys.executable, "-W", "error", "-m", "tests.support.crash", command, str(log), "-"],
            stdin=names.encode(),
            capture_stdout=True,
            check=False,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        )
        lines = done.stdout.decode().splitlines()
        failures.extend(line for line in lines if not line.startswith("checked "))
        if f"checked {len(part)}" not in lines:
            failures.append(f"the process ended with {done.returncode}")

    async with trio.open_nursery() as nursery:
        for number in range(processes):
            nursery.start_soon(some, states[number::processes])
    return failures


async def check_again(recorded: Recorded, crash_at: int, seed: int, target: Path) -> None:
    """Crash while the store recovers from a crash, at several moments, and check each."""
    first = target / "first"
    recorded.log.materialize(crash_at, seed, first)
    log = OperationLog(first)
    set_reserve_aside(first)
    meta, index = RecordingVFS("again-meta", log), RecordingVFS("again-index", log)
    folder = store_in(first, meta_vfs="again-meta", index_vfs="again-index")
    folder.clock = ManualClock(recorded.end_ms + 1000)
    folder.random = SeededRandom(crash_at + 7)
    folder.disk = RecordingDisk(log)
    try:
        await folder.prepare()
        async with folder.open() as opened:
            folder.clock.advance(2 * SESSION_S)
            await opened.collect_garbage(grace_s=0)
    finally:
        meta.unregister()
        index.unregister()
    later = Recorded(recorded.log, folder.clock(), recorded.damaged, recorded.new)
    step = max(1, len(log.operations) // 6)
    for again, other in log.states(step=step):
        log.materialize(again, other + seed % 8, target / "second")
        try:
            await check_store(later, crash_at, target / "second")
        except BaseException as error:
            error.add_note(f"crashed again after operation {again} of {len(log.operations)}")
            raise


async def _check_all(log: Path, states: Sequence[tuple[int, int]], command: str) -> int:
    recorded = load(log)
    check = {"check": check_state, "again": check_again}[command]
    failed = 0
    with scratch_folder() as scratch:
        for crash_at, seed in states:
            logs = Logs()
            if recorded.damaged:
                logs.expect("damage found")
            if recorded.new:
                logs.expect("drive added")  # the making of the store goes on where it ended
            structlog.configure(processors=[logs.take], cache_logger_on_first_use=False)
            try:
                await check(recorded, crash_at, seed, scratch / "crashed")
                assert not logs.unexpected, logs.unexpected
            except Exception as error:  # noqa: BLE001 - told, and the next state is checked
                failed += 1
                what = " ".join(f"{type(error).__name__}: {error}".split())[:600]
                notes = " ".join(getattr(error, "__notes__", []))
                print(
                    f"python -m tests.support.crash {command} {log} {crash_at}:{seed}"
                    f"  # of {len(recorded.log.operations)}: {what} {notes}"
                )
                if len(states) == 1:
                    traceback.print_exc()
    print(f"checked {len(states)}")
    return failed


def main(arguments: list[str]) -> int:
    command, log, *names = arguments
    if names == ["-"]:
        names = sys.stdin.read().split()
    states = [(int(name.partition(":")[0]), int(name.partition(":")[2])) for name in names]
    return min(trio.run(_check_all, Path(log), states, command), 1)


if __name__ == "__main__":
    # Pickles name this module as tests import it, not as __main__.
    from tests.support import crash

    sys.exit(crash.main(sys.argv[1:]))
