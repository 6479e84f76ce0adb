"""Failures that crashes and faults under a whole store once brought to light, each made small."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from engine.node.contract import NodeDown
from engine.node.index import READ_ONLY
from engine.services.collector import collect
from tests.support.disk import Fault, FaultDisk
from tests.support.drives import content, fragment, new_drive, put
from tests.support.engine import folder_in, pattern
from tests.support.engine import put as put_object


def test_failed_header_write_does_not_wait_for_the_index(tmp_path: Path) -> None:
    """It once waited with the volume locked, while a commit in the index waited for the volume:
    the drive stood still for ever."""
    disk = FaultDisk()
    drive = new_drive(tmp_path, disk)
    put(drive, fragment(1), content(1, 1_000))
    disk.faults = [Fault("pwritev", path=".vol")]
    refused: list[bool] = []

    def write() -> None:
        with pytest.raises(NodeDown):
            drive.open_writer(fragment(2), 100)
        refused.append(True)

    thread = threading.Thread(target=write)
    with drive.index._lock:  # as a commit has it while it enters its needles
        thread.start()
        thread.join(timeout=120)
        assert refused == [True]
    thread.join()
    put(drive, fragment(3), content(3, 1_000))
    states = [row.state for row in drive.index.volumes().values()]
    assert states.count(READ_ONLY) == 1
    drive.close()


async def test_fsck_does_not_miss_what_an_interrupted_collection_took(tmp_path: Path) -> None:
    """Some fragments of a chunk that waits for collection are gone: it is garbage, not damage."""
    folder = folder_in(tmp_path)
    await folder.prepare()
    async with folder.open() as opened:
        await opened.create_bucket("bucket", owner="owner")
        await put_object(opened, "bucket", "key", pattern(100_000))
        await opened.delete("bucket", "key")
        node = opened.store.pool.get(opened.store.pool.ids()[0])
        assert node is not None
        await node.delete([info.fragment for info in await node.list(b"", 10)])
        report = await opened.fsck(deep=True)
        assert report.clean, report.problems
        folder.clock.advance(60)
        assert (await collect(opened.store, grace_s=0)).garbage == 1
        assert (await opened.fsck(deep=True)).clean
