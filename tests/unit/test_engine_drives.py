"""Which folder is which node: moved, copied, replaced, and interrupted on the way."""

from __future__ import annotations

import shutil
from pathlib import Path

import msgspec
import pytest

from engine.drives import known_nodes
from engine.errors import ConfigError
from engine.node.disk import RealDisk
from engine.node.identity import format_drive
from tests.support.engine import Folder, folder_in, pattern, put, read
from tests.support.logs import Logs


async def make(path: Path) -> Folder:
    folder = folder_in(path)
    await folder.prepare()
    async with folder.open() as engine:
        await engine.create_bucket("bucket", owner="owner")
        await put(engine, "bucket", "key", pattern(300_000))
    return folder


async def test_a_drive_that_moved_keeps_its_node_though_its_old_place_is_empty(
    tmp_path: Path, logs: Logs
) -> None:
    logs.expect("drive added|damage found")
    folder = await make(tmp_path)
    old, new = folder.config.drives[0], folder.config.drives[-1].with_name("elsewhere")
    shutil.move(old, new)
    old.mkdir()
    drives = (*folder.config.drives, new)
    moved = Folder(msgspec.structs.replace(folder.config, drives=drives))
    await moved.prepare()
    async with moved.open() as engine:
        nodes = await known_nodes(engine.store.db)
        assert len(nodes) == 7
        assert all(record.state == "up" for record in nodes.values())
        assert await read(engine, "bucket", "key") == pattern(300_000)
        report = await engine.fsck(deep=True)
        assert report.clean, report.problems


async def test_a_copied_drive_is_refused(tmp_path: Path) -> None:
    folder = await make(tmp_path)
    shutil.rmtree(folder.config.drives[1])
    shutil.copytree(folder.config.drives[0], folder.config.drives[1])
    with pytest.raises(ConfigError, match="copy of the drive"):
        await folder.prepare()


async def test_a_replaced_drive_is_filled_also_when_the_start_was_cut_short(
    tmp_path: Path, logs: Logs
) -> None:
    logs.expect("drive replaced|damage found")
    folder = await make(tmp_path)
    place = folder.config.drives[0]
    async with folder.open() as engine:
        nodes = await known_nodes(engine.store.db)
        node_id = next(node for node, record in nodes.items() if record.location == str(place))
        store_id = engine.store.store_id
    shutil.rmtree(place)
    place.mkdir()
    # The start got as far as formatting the drive.
    format_drive(str(place), store_id, node_id, RealDisk())
    await folder.prepare()
    async with folder.open() as engine:
        assert (await known_nodes(engine.store.db))[node_id].state == "rebuilding"
