"""Drives that are gone, emptied, replaced or full, and damaged blocks: the right bytes or an
error, never wrong bytes; and what was lost is made again."""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import pytest
import trio

from engine.config import Profile
from engine.engine import Engine
from engine.errors import Corrupt, NoSpace, StorageError, Unavailable
from engine.ids import ChunkId, NodeId, fragment_id
from engine.meta import keyspace
from engine.meta.records import decode_chunk
from engine.node.drive import Drive
from engine.node.needle import NEEDLE_OVERHEAD
from engine.services.repair import DamageLog, rebuild_nodes, repair_queue
from engine.services.scan import scan_prefix
from engine.services.strays import delete_strays
from tests.support.engine import (
    BLOCK_SIZE,
    Folder,
    border_sizes,
    count_rows,
    folder_in,
    pattern,
    put,
    read,
    upload,
)
from tests.support.logs import Logs

SIZES = [size for size in border_sizes() if size > 1024] + [300_000]
DAMAGE_LOGGED = "damage found|drive missing|drive absent|drive replaced|drive not usable"
STRIPE_BLOCK = BLOCK_SIZE + 32


@asynccontextmanager
async def filled(path: Path, **settings: object) -> AsyncIterator[tuple[Folder, Engine]]:
    """A store with one object of every size, and one in parts."""
    folder = folder_in(path, **settings)  # type: ignore[arg-type]  # passed on as they are
    await folder.prepare()
    async with folder.open() as opened:
        await opened.create_bucket("bucket", owner="owner")
        for size in SIZES:
            await put(opened, "bucket", f"{size}", pattern(size))
        await upload(opened, "bucket", "parts", [pattern(5 << 20, 1), pattern(70_000, 1)])
        yield folder, opened


async def check_all(opened: Engine) -> None:
    for size in SIZES:
        assert await read(opened, "bucket", f"{size}") == pattern(size)
    whole = pattern(5 << 20, 1) + pattern(70_000, 1)
    assert await read(opened, "bucket", "parts") == whole


async def check_write(opened: Engine, lost: int) -> None:
    """A write needs a node more than reading does, so that nothing hangs on a single drive."""
    if lost > 1:
        with pytest.raises(Unavailable):
            await put(opened, "bucket", "new", pattern(300_000, 7))
        return
    await put(opened, "bucket", "new", pattern(300_000, 7))
    assert await read(opened, "bucket", "new") == pattern(300_000, 7)
    assert (await opened.status()).repair_queue > 0


def take_away(drives: tuple[Path, ...]) -> list[Path]:
    """Rename drive folders away; return where they are now."""
    return [drive.rename(drive.with_name(drive.name + "-away")) for drive in drives]


def bring_back(away: list[Path]) -> None:
    for drive in away:
        drive.rename(drive.with_name(drive.name.removesuffix("-away")))


async def chunks(opened: Engine) -> list[tuple[ChunkId, int, int, list[bytes]]]:
    """Return (id, data blocks, parity blocks, nodes) of every chunk."""
    found = []
    async for key, row in scan_prefix(opened.store.db, keyspace.CHUNK):
        record = decode_chunk(row)
        nodes: list[bytes] = list(record.nodes)
        found.append((ChunkId(key[1:]), record.data_blocks, record.parity_blocks, nodes))
    return found


def drives_of(opened: Engine) -> dict[bytes, Drive]:
    drives: dict[bytes, Drive] = {}
    for node_id in opened.store.pool.ids():
        node = opened.store.pool.get(node_id)
        assert node is not None
        assert isinstance(node.blocking, Drive)
        drives[node_id] = node.blocking
    return drives


def flip(drive: Drive, chunk_id: ChunkId, index: int, offset: int) -> bool:
    """Flip a byte of a fragment in its volume; False when the fragment is shorter."""
    place = drive.index.find(fragment_id(chunk_id, index))
    assert place is not None
    volume, begin, size = place
    if offset >= size:
        return False
    path = Path(drive.path) / "volumes"
    (file,) = [entry for entry in path.iterdir() if int(entry.stem, 16) == volume]
    with file.open("r+b") as opened:
        opened.seek(begin + NEEDLE_OVERHEAD + offset)
        byte = opened.read(1)
        opened.seek(-1, 1)
        opened.write(bytes([byte[0] ^ 0x40]))
    return True


async def damage(opened: Engine, *, more: int = 0) -> int:
    """Damage ``parity + more`` blocks of every stripe, other ones in each; return how many."""
    drives = drives_of(opened)
    count = 0
    for chunk_id, data_blocks, parity_blocks, nodes in await chunks(opened):
        width = data_blocks + parity_blocks
        for stripe in range(10):
            for step in range(parity_blocks + more):
                index = (stripe + step) % width
                offset = stripe * STRIPE_BLOCK + 17
                count += flip(drives[nodes[index]], chunk_id, index, offset)
    return count


@pytest.mark.parametrize("lost", [1, 2])
async def test_reads_survive_drives_that_vanish_while_running(
    tmp_path: Path, logs: Logs, lost: int
) -> None:
    logs.expect(DAMAGE_LOGGED)
    async with filled(tmp_path) as (folder, opened):
        take_away(folder.config.drives[:lost])
        await check_all(opened)
        await check_write(opened, lost)


@pytest.mark.parametrize("lost", [1, 2])
async def test_store_opens_and_serves_with_drives_missing(
    tmp_path: Path, logs: Logs, lost: int
) -> None:
    logs.expect(DAMAGE_LOGGED)
    async with filled(tmp_path) as (folder, _):
        pass
    away = take_away(folder.config.drives[:lost])
    await folder.prepare()
    async with folder.open() as opened:
        states = [drive.state for drive in (await opened.status()).drives]
        assert sorted(states) == ["missing"] * lost + ["up"] * (6 - lost)
        await check_all(opened)
        await check_write(opened, lost)
        report = await opened.fsck(deep=True)
        assert report.missing_fragments > 0
        assert report.unreadable_chunks == 0
    bring_back(away)
    await folder.prepare()
    async with folder.open() as opened:
        await check_all(opened)
        await repair_queue(opened.store)
        assert (await opened.status()).repair_queue == 0
        report = await opened.fsck(deep=True)
        assert report.clean, report.problems
        if lost == 1:
            assert sum(drive.repaired for drive in (await opened.status()).drives) > 0
            assert await read(opened, "bucket", "new") == pattern(300_000, 7)


async def test_one_drive_more_than_parity_is_an_error_and_never_wrong_bytes(
    tmp_path: Path, logs: Logs
) -> None:
    logs.expect(DAMAGE_LOGGED)
    async with filled(tmp_path) as (folder, _):
        pass
    away = take_away(folder.config.drives[:3])
    await folder.prepare()
    async with folder.open() as opened:
        refused = 0
        for size in SIZES:
            try:
                assert await read(opened, "bucket", f"{size}") == pattern(size)
            except Unavailable:
                refused += 1
        assert refused > 0
        with pytest.raises(Unavailable):
            await put(opened, "bucket", "new", pattern(300_000, 7))
        await opened.delete("bucket", f"{SIZES[0]}")
    bring_back(away)
    await folder.prepare()
    async with folder.open() as opened:
        await put(opened, "bucket", f"{SIZES[0]}", pattern(SIZES[0]))
        await check_all(opened)


@pytest.mark.parametrize("lost", [1, 2])
async def test_emptied_drives_are_filled_again(tmp_path: Path, logs: Logs, lost: int) -> None:
    logs.expect(DAMAGE_LOGGED)
    async with filled(tmp_path) as (folder, _):
        pass
    for drive in folder.config.drives[:lost]:
        shutil.rmtree(drive)
        drive.mkdir()
    await folder.prepare()
    async with folder.open() as opened:
        states = [drive.state for drive in (await opened.status()).drives]
        assert sorted(states) == ["rebuilding"] * lost + ["up"] * (6 - lost)
        await check_all(opened)
        assert await rebuild_nodes(opened.store) > 0
        await repair_queue(opened.store)
        assert {drive.state for drive in (await opened.status()).drives} == {"up"}
        report = await opened.fsck(deep=True)
        assert report.clean, report.problems
    # What was rebuilt carries the store when as many other drives go.
    take_away(folder.config.drives[-2:])
    await folder.prepare()
    async with folder.open() as opened:
        await check_all(opened)


async def test_damage_up_to_parity_in_every_stripe_is_read_through_and_healed(
    tmp_path: Path, logs: Logs
) -> None:
    logs.expect(DAMAGE_LOGGED)
    async with filled(tmp_path) as (_, opened):
        assert await damage(opened) > 100
        before = await opened.fsck(deep=True)
        assert before.damaged_fragments > 0
        await check_all(opened)
        # Readers report what they met; damage to blocks that they did not need stays unknown.
        await queue_all(opened)
        assert await repair_queue(opened.store) > 0
        await check_all(opened)
        report = await opened.fsck(deep=True)
        assert report.clean, report.problems
        drives = (await opened.status()).drives
        assert sum(drive.repaired for drive in drives) >= before.damaged_fragments


async def queue_all(opened: Engine) -> None:
    """Queue every chunk for repair, as a scrub would."""
    log = DamageLog()
    for chunk_id, *_ in await chunks(opened):
        await log._queue(opened.store, chunk_id, 0, "damaged")


async def test_damage_beyond_parity_is_corrupt_and_never_wrong_bytes(
    tmp_path: Path, logs: Logs
) -> None:
    logs.expect(DAMAGE_LOGGED + "|chunk not repaired")
    async with filled(tmp_path) as (_, opened):
        await damage(opened, more=1)
        for size in SIZES:
            with pytest.raises(Corrupt):
                await read(opened, "bucket", f"{size}")
        with pytest.raises(Corrupt):
            await read(opened, "bucket", "parts")
        await queue_all(opened)
        assert await repair_queue(opened.store) == 0
        report = await opened.fsck(deep=True)
        assert not report.clean
        assert report.unreadable_chunks > 0
        for size in SIZES:
            await opened.delete("bucket", f"{size}")


async def test_reading_damage_counts_it_and_queues_its_repair(tmp_path: Path, logs: Logs) -> None:
    logs.expect(DAMAGE_LOGGED)
    folder = folder_in(tmp_path)
    await folder.prepare()
    async with folder.open() as opened:
        await opened.create_bucket("bucket", owner="owner")
        await put(opened, "bucket", "key", pattern(100_000))
        ((chunk_id, _, _, nodes),) = await chunks(opened)
        assert flip(drives_of(opened)[nodes[1]], chunk_id, 1, 100)
        assert await read(opened, "bucket", "key") == pattern(100_000)
        await logs.wait_for("damage found")
        assert await count_rows(opened, keyspace.REPAIR) == 1
        assert await repair_queue(opened.store) == 1
        (found,) = [drive for drive in (await opened.status()).drives if drive.damaged]
        assert (found.node_id, found.damaged, found.repaired) == (nodes[1].hex(), 1, 1)
        report = await opened.fsck(deep=True)
        assert report.clean, report.problems


async def test_fsck_finds_a_flipped_byte_only_when_deep(tmp_path: Path, logs: Logs) -> None:
    folder = folder_in(tmp_path)
    await folder.prepare()
    async with folder.open() as opened:
        await opened.create_bucket("bucket", owner="owner")
        await put(opened, "bucket", "key", pattern(100_000))
        ((chunk_id, _, _, nodes),) = await chunks(opened)
        assert flip(drives_of(opened)[nodes[5]], chunk_id, 5, 100)
        assert (await opened.fsck()).clean
        assert (await opened.fsck(deep=True)).damaged_fragments == 1


async def test_full_drives_refuse_writes_and_serve_reads_and_deletes(
    tmp_path: Path, logs: Logs
) -> None:
    async with filled(tmp_path) as (folder, _):
        pass
    full = Folder(
        msgspec.structs.replace(folder.config, reserve=1 << 60),
        clock=folder.clock,
        random=folder.random,
    )
    async with full.open() as opened:
        with pytest.raises(NoSpace):
            await put(opened, "bucket", "new", pattern(300_000))
        with pytest.raises(NoSpace):
            await put(opened, "bucket", "new", pattern(3_000))
        await put(opened, "bucket", "inline", pattern(500))
        await check_all(opened)
        assert {drive.state for drive in (await opened.status()).drives} == {"full"}
        for size in SIZES:
            await opened.delete("bucket", f"{size}")
        await opened.delete("bucket", "parts")
        full.clock.advance(60)
        assert (await opened.collect_garbage(grace_s=0)).bytes > 0
        report = await opened.fsck(deep=True)
        assert report.clean, report.problems
        assert sum(drive.fragments for drive in (await opened.status()).drives) == 0


async def test_one_full_drive_does_not_stop_writes(tmp_path: Path, logs: Logs) -> None:
    logs.expect(DAMAGE_LOGGED)
    folder = folder_in(tmp_path)
    await folder.prepare()
    async with folder.open() as opened:
        await opened.create_bucket("bucket", owner="owner")
        next(iter(drives_of(opened).values()))._reserve = 1 << 60
        await put(opened, "bucket", "key", pattern(300_000))
        assert await read(opened, "bucket", "key") == pattern(300_000)
        assert (await opened.status()).repair_queue > 0


@pytest.mark.parametrize(("drives", "profile"), [(1, "1+0"), (2, "1+1"), (3, "2+1")])
async def test_small_stores_survive_as_many_drives_as_they_promise(
    tmp_path: Path, logs: Logs, drives: int, profile: str
) -> None:
    logs.expect(DAMAGE_LOGGED)
    async with filled(tmp_path, drives=drives, profile=profile) as (folder, opened):
        await check_all(opened)
        report = await opened.fsck(deep=True)
        assert report.clean, report.problems
    parity = Profile.parse(profile).parity
    take_away(folder.config.drives[:parity])
    await folder.prepare()
    async with folder.open() as opened:
        await check_all(opened)
    take_away(folder.config.drives[parity : parity + 1])
    await folder.prepare()
    async with folder.open() as opened:
        with pytest.raises(StorageError):
            await read(opened, "bucket", "300000")


async def test_fragments_move_to_a_spare_drive_and_are_not_left_twice(
    tmp_path: Path, logs: Logs
) -> None:
    logs.expect(DAMAGE_LOGGED)
    async with filled(tmp_path, drives=7) as (folder, _):
        pass
    away = take_away(folder.config.drives[:1])
    await folder.prepare()
    async with folder.open() as opened:
        await queue_all(opened)
        assert await repair_queue(opened.store) > 0
        report = await opened.fsck(deep=True)
        assert report.clean, report.problems
        await check_all(opened)
    bring_back(away)
    await folder.prepare()
    async with folder.open() as opened:
        await check_all(opened)
        assert (await opened.fsck()).clean
        assert await delete_strays(opened.store) > 0
        assert await delete_strays(opened.store) == 0
        report = await opened.fsck(deep=True)
        assert report.clean, report.problems
        found = [drive.fragments for drive in (await opened.status()).drives]
        assert sum(found) == report.fragments


async def test_service_repairs_what_readers_find(tmp_path: Path, logs: Logs) -> None:
    logs.expect(DAMAGE_LOGGED)
    folder = folder_in(tmp_path, services=True)
    await folder.prepare()
    async with folder.open() as opened:
        await opened.create_bucket("bucket", owner="owner")
        await put(opened, "bucket", "key", pattern(100_000))
        ((chunk_id, _, _, nodes),) = await chunks(opened)
        assert flip(drives_of(opened)[nodes[1]], chunk_id, 1, 100)
        assert await read(opened, "bucket", "key") == pattern(100_000)
        key = keyspace.node_counter(NodeId(nodes[1]), "repaired")
        with trio.fail_after(60):
            await opened.store.db.watch(key, None)
        report = await opened.fsck(deep=True)
        assert report.clean, report.problems


async def test_service_fills_a_replaced_drive(tmp_path: Path, logs: Logs) -> None:
    logs.expect(DAMAGE_LOGGED)
    async with filled(tmp_path) as (folder, _):
        pass
    shutil.rmtree(folder.config.drives[0])
    folder.config.drives[0].mkdir()
    await folder.prepare()
    serving = msgspec.structs.replace(folder.config, services=True)
    async with Folder(serving, folder.clock, folder.random).open() as opened:
        with trio.fail_after(60):
            await logs.wait_for("drive rebuilt")
        report = await opened.fsck(deep=True)
        assert report.clean, report.problems
