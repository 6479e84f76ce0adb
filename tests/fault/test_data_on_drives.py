"""The data path over real drives: files, syncs and the page cache instead of memory."""

from __future__ import annotations

import itertools
import random
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from engine.config import Profile, StoreConfig
from engine.data.nodes import NodePool
from engine.data.store import DataStore
from engine.data.writer import StagedData
from engine.errors import Corrupt
from engine.ids import ChunkId, NodeId
from engine.node.disk import RealDisk
from engine.node.drive import open_drive
from engine.node.identity import format_drive
from engine.node.local import LocalNode
from tests.support.nodes import OWNER, BytesSource, segments

CONTENT = random.Random(9).randbytes((9 << 20) + 12_345)
STORE = "a" * 32


@asynccontextmanager
async def open_store(
    root: Path, damage: list[tuple[ChunkId, int, str]], *, session: bytes = b"session-ID"
) -> AsyncIterator[DataStore]:
    pool = NodePool(clock=time.monotonic)
    limiter = trio.CapacityLimiter(16)
    nodes = []
    for position in range(6):
        path = root / str(position)
        if not path.exists():
            path.mkdir()
            format_drive(str(path), STORE, NodeId(b"node%04d" % position), RealDisk())
        drive = open_drive(str(path), store_id=STORE, reserve=1 << 20)
        nodes.append(LocalNode(drive, limiter=limiter))
        pool.add(nodes[-1])
    counter = itertools.count(1)
    async with trio.open_nursery() as nursery:
        yield DataStore(
            StoreConfig(data=root, chunk_size=4 << 20),
            Profile(4, 2),
            pool,
            new_chunk_id=lambda: ChunkId(session + next(counter).to_bytes(6, "big")),
            on_damage=lambda *found: damage.append(found),
            nursery=nursery,
        )
        nursery.cancel_scope.cancel()
    for node in nodes:
        await node.aclose()


async def put(store: DataStore, content: bytes) -> StagedData:
    return await store.stage(BytesSource(content), size=len(content), algorithms=frozenset({"MD5"}))


async def get(store: DataStore, staged: StagedData) -> bytes:
    stream = store.stream(list(segments(staged)))
    try:
        return b"".join([bytes(view) async for view in stream])
    finally:
        await stream.aclose()


@pytest.mark.parametrize("size", [70_000, 300_000, len(CONTENT)])
async def test_objects_come_back_after_the_drives_were_closed(tmp_path: Path, size: int) -> None:
    damage: list[tuple[ChunkId, int, str]] = []
    async with open_store(tmp_path, damage) as store:
        staged = await put(store, CONTENT[:size])
        assert await get(store, staged) == CONTENT[:size]
        segments_of = list(segments(staged))
    async with open_store(tmp_path, damage, session=b"session-I2") as store:
        stream = store.stream(segments_of)
        assert b"".join([bytes(view) async for view in stream]) == CONTENT[:size]
        await stream.aclose()
    assert damage == []


async def test_bytes_flipped_in_the_files_of_two_drives_are_repaired(tmp_path: Path) -> None:
    damage: list[tuple[ChunkId, int, str]] = []
    chance = random.Random(4)
    async with open_store(tmp_path, damage) as store:
        staged = await put(store, CONTENT)
        harm_volumes(tmp_path, [1, 4], chance)
        assert await get(store, staged) == CONTENT
        assert {kind for _, _, kind in damage} == {"damaged"}
        for chunk_id, record in staged.chunk_records(OWNER):
            states = await store.examine(chunk_id, record, deep=True)
            bad = [state.index for state in states if state.state != "whole"]
            assert len(bad) <= 2
            targets = {i: store.pool.get(record.nodes[i]) for i in bad}
            await store.rebuild(
                chunk_id, record, bad, {i: node for i, node in targets.items() if node}
            )
            states = await store.examine(chunk_id, record, deep=True)
            assert {state.state for state in states} == {"whole"}
        damage.clear()
        assert await get(store, staged) == CONTENT
        assert damage == []


async def test_a_third_damaged_drive_is_an_error_and_no_wrong_bytes(tmp_path: Path) -> None:
    async with open_store(tmp_path, []) as store:
        staged = await put(store, CONTENT)
        for drive in (0, 2, 5):
            for path in (tmp_path / str(drive) / "volumes").iterdir():
                content = path.read_bytes()
                path.write_bytes(content[:8192] + bytes(len(content) - 8192))
        with pytest.raises(Corrupt):
            await get(store, staged)


async def test_discarded_data_leaves_no_fragment(tmp_path: Path) -> None:
    async with open_store(tmp_path, []) as store:
        staged = await put(store, CONTENT)
        await staged.discard()
        for node_id in store.pool.ids():
            node = store.pool.get(node_id)
            assert node is not None
            assert await node.list(b"", 10) == []


def harm_volumes(root: Path, drives: list[int], chance: random.Random) -> None:
    """Flip bits all over the payload of the drives' volumes, in place."""
    for drive in drives:
        for path in (root / str(drive) / "volumes").iterdir():
            with path.open("r+b") as file:
                size = path.stat().st_size
                for _ in range(20):
                    at = chance.randrange(16_384, size)
                    file.seek(at)
                    byte = file.read(1)[0]
                    file.seek(at)
                    file.write(bytes([byte ^ 0x40]))
