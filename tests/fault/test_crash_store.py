"""Power fails at every write and sync of a whole store: what was acknowledged is there, the rest
is old or new and whole, fsck is clean, and the store goes on."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import trio

from engine.engine import Engine
from engine.node.compaction import compact
from engine.node.drive import Drive
from engine.node.files import volume_path
from engine.node.needle import NEEDLE_OVERHEAD
from engine.services.repair import repair_queue
from engine.types import Attributes, CompletePart, UploadInfo
from tests.support.crash import (
    Recorded,
    Recording,
    Step,
    check_in_processes,
    queue_all,
    record,
    record_new,
    save,
)
from tests.support.engine import part_size_min, pattern, put, put_part, scratch_folder
from tests.support.logs import Logs

RECORD, ROW, COPIES, CODED, CHUNKS = 50, 700, 3_000, 20_000, 80_000
"""Sizes of each durability class: in the record, in a row, copied, coded, in several chunks."""
SEEDS_SOAK = 16


def putting(key: str, size: int, seed: int = 0, *, bucket: str = "plain") -> Step:
    return lambda now: now.put(key, size, seed, bucket=bucket)


def deleting(key: str, *, bucket: str = "plain", oldest: bool = False) -> Step:
    async def step(now: Recording) -> None:
        version_id = None
        if oldest:
            versions = (await now.opened.list_versions(bucket, prefix=key)).versions
            version_id = versions[-1].version.version_id
        await now.opened.delete(bucket, key, version_id=version_id)

    return step


def uploading(key: str, *sizes: int, abort: bool = False) -> list[Step]:
    """A multipart upload; each part and the end are steps of their own."""
    uploads: list[UploadInfo] = []
    parts: list[CompletePart] = []

    async def create(now: Recording) -> None:
        parts.clear()  # the steps are run again when the scenario is
        uploads[:] = [await now.opened.create_upload("plain", key, attributes=Attributes())]

    def one(number: int, size: int) -> Step:
        async def step(now: Recording) -> None:
            data = pattern(size, number)
            part = await put_part(now.opened, "plain", key, uploads[0].upload_id, number, data)
            parts.append(CompletePart(part.number, part.etag, []))

        return step

    async def end(now: Recording) -> None:
        if abort:
            await now.opened.abort_upload("plain", key, uploads[0].upload_id)
        else:
            with part_size_min(1):
                await now.opened.complete_upload("plain", key, uploads[0].upload_id, parts)

    return [create, *(one(number, size) for number, size in enumerate(sizes, 1)), end]


async def put_at_once(now: Recording) -> None:
    """Several writers, whose commits share syncs."""
    sizes = {"one": COPIES, "two": CODED, "three": ROW, "four": CODED + 1, "five": RECORD}
    async with trio.open_nursery() as nursery:
        for key, size in sizes.items():
            nursery.start_soon(put, now.opened, "plain", key, pattern(size, 5))


async def collect(now: Recording) -> None:
    now.folder.clock.advance(60)
    await now.opened.collect_garbage(grace_s=0)


async def compact_all(now: Recording) -> None:
    for drive in drives_of(now.opened):
        await trio.to_thread.run_sync(lambda drive=drive: compact(drive, dead_ratio=0.1))


async def damage(now: Recording) -> None:
    """Change some bytes of every fragment on one drive, durably."""
    drive = drives_of(now.opened)[0]
    for info in drive.list(b"", 100):
        place = drive.index.find(info.fragment)
        assert place is not None
        fd = now.disk.open(volume_path(drive.path, place[0]), os.O_RDWR)
        now.disk.pwritev(fd, [bytes(64)], place[1] + NEEDLE_OVERHEAD + 10)
        now.disk.fdatasync(fd)
        now.disk.close(fd)


async def repair(now: Recording) -> None:
    await queue_all(now.opened)
    assert await repair_queue(now.opened.store) > 0


def drives_of(opened: Engine) -> list[Drive]:
    nodes = [opened.store.pool.get(node_id) for node_id in opened.store.pool.ids()]
    drives = [node.blocking for node in nodes if node is not None]
    assert all(isinstance(drive, Drive) for drive in drives)
    return drives  # type: ignore[return-value]  # asserted


PUTS = [putting(f"{size}", size) for size in (RECORD, ROW, COPIES, CODED, CHUNKS)]
OVERWRITES = [
    putting("a", CODED),
    putting("a", COPIES, 1),
    putting("a", CODED, 2),
    putting("a", RECORD, 3),
    putting("v", CODED, bucket="versioned"),
    putting("v", ROW, 1, bucket="versioned"),
    putting("v", CODED, 2, bucket="versioned"),
]
UPLOADS = [
    putting("m", CODED),
    *uploading("m", CODED, CHUNKS, ROW),
    *uploading("aborted", CODED, COPIES, abort=True),
    collect,
]
DELETES = [
    *PUTS,
    putting("v", CODED, bucket="versioned"),
    putting("v", COPIES, 1, bucket="versioned"),
    deleting("v", bucket="versioned"),
    deleting("v", bucket="versioned", oldest=True),
    *(deleting(f"{size}") for size in (RECORD, ROW, COPIES, CHUNKS)),
    collect,
    compact_all,
    putting("again", CODED, 9),
]
SCENARIOS: dict[str, list[Step]] = {
    "put": [*PUTS, put_at_once],
    "overwrite": OVERWRITES,
    "multipart": UPLOADS,
    "delete": DELETES,
    "repair": [*PUTS, damage, repair],
}
NAMES = [*SCENARIOS, "new"]


@pytest.fixture(autouse=True)
def damage_is_expected(logs: Logs) -> None:
    logs.expect("damage found")


@pytest.fixture(scope="module")
def logs_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("crash-logs")


async def recorded_log(name: str, folder: Path) -> tuple[Recorded, Path]:
    """Record a scenario; return it and the file that it was saved to, for replays."""
    with scratch_folder() as root:
        if name == "new":
            recorded = await record_new(root, name)
        else:
            recorded = await record(root, name, SCENARIOS[name], damaged=name == "repair")
    path = folder / f"{name}.log"
    save(recorded, path)
    return recorded, path


def report(failures: list[str]) -> None:
    if failures:
        shown = "\n".join(failures[:20])
        pytest.fail(f"{len(failures)} states failed; to replay:\n{shown}", pytrace=False)


def sampled(recorded: Recorded, count: int, *, seed: int | None = None) -> list[tuple[int, int]]:
    """Return about ``count`` crashes spread over the log, by a fixed stride, seeds taking turns."""
    total = len(recorded.log.operations)
    step = max(1, total // count)
    return [
        (crash_at, crash_at * 1000 + (number % 9 if seed is None else seed))
        for number, crash_at in enumerate(range(0, total + 1, step))
    ]


@pytest.mark.parametrize("name", NAMES)
async def test_store_survives_power_failure(name: str, logs_folder: Path) -> None:
    recorded, path = await recorded_log(name, logs_folder)
    assert len(recorded.log.operations) > 50
    report(await check_in_processes(path, sampled(recorded, 100)))


@pytest.mark.soak
@pytest.mark.parametrize("name", NAMES)
async def test_store_survives_power_failure_at_every_operation(
    name: str, logs_folder: Path
) -> None:
    recorded, path = await recorded_log(name, logs_folder)
    states = list(recorded.log.states(seeds=SEEDS_SOAK))
    report(await check_in_processes(path, states))


@pytest.mark.parametrize("name", NAMES)
async def test_store_survives_power_failure_during_recovery(name: str, logs_folder: Path) -> None:
    recorded, path = await recorded_log(name, logs_folder)
    report(await check_in_processes(path, sampled(recorded, 4), command="again"))


@pytest.mark.soak
@pytest.mark.parametrize("name", NAMES)
async def test_store_survives_power_failure_during_every_recovery(
    name: str, logs_folder: Path
) -> None:
    recorded, path = await recorded_log(name, logs_folder)
    report(await check_in_processes(path, sampled(recorded, 1 << 30), command="again"))
