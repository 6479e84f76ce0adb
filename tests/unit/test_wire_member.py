"""A member behind a socket: adoption, drives that come and go, limits, damage."""

from __future__ import annotations

import errno
import json
import os
import shutil
import threading
from pathlib import Path

import pytest
import trio

from engine.ids import MemberId
from engine.node.contract import (
    FragmentDamaged,
    FragmentMissing,
    NodeBusy,
    NodeDown,
    NodeError,
    NodeFull,
)
from engine.node.disk import DiskSpace
from engine.node.wire.messages import AdoptionRefused, DriveHealth
from engine.node.wire.remote import RemoteNode
from engine.node.wire.service import ServiceConfig
from engine.node.wire.slot import ShelfConfig
from tests.support.disk import Fault, FaultDisk, UnsyncedDisk
from tests.support.drives import STORE, content, fragment
from tests.support.logs import Logs
from tests.support.members import MEMBER, ServedMember, node_id, serving_member

MIB = 1 << 20

EAGER = ShelfConfig(volume_size=64 * MIB, reserve=0, look_s=0.01)
OVER_FAULTS = ServiceConfig(name="m1", version="0", send_files=False)


async def store(node: RemoteNode, number: int, payload: bytes) -> None:
    writer = await node.open_writer(fragment(number), len(payload))
    await writer.write([payload])
    await writer.commit()


async def load(node: RemoteNode, number: int, size: int, offset: int = 0) -> bytes:
    payload = bytearray(size)
    await node.read_into(fragment(number), offset, [memoryview(payload)])
    return bytes(payload)


def first_folder(member: ServedMember) -> Path:
    return Path(member.folders[0])


def unplug(folder: Path, target: Path) -> None:
    folder.rename(target)


def replace_drive(folder: Path, old: Path) -> None:
    folder.rename(old)
    folder.mkdir()


def volume_of(member: ServedMember) -> Path:
    [volume] = first_folder(member).glob("volumes/*.vol")
    return volume


async def drives_when(member: ServedMember, number: int, state: str) -> DriveHealth:
    """Return the drive's health once it is in the state."""
    with trio.fail_after(60):
        while True:
            drive = (await member.client.health()).drives[number - 1]
            if drive.state == state:
                return drive
            await trio.sleep(0.01)


# Adoption


async def test_a_new_member_says_what_it_is_and_keeps_nothing(tmp_path: Path) -> None:
    config = ServiceConfig(name="m1", version="7", zone="z", rack="r", host="h")
    async with serving_member(
        tmp_path / "m", drives=2, service_config=config, adopt=False
    ) as member:
        health = await member.client.health()
        assert (health.name, health.version) == ("m1", "7")
        assert (health.zone, health.rack, health.host) == ("z", "r", "h")
        assert (health.member, health.store) == ("", "")
        assert [drive.state for drive in health.drives] == ["empty", "empty"]
        assert [drive.folder for drive in health.drives] == member.folders
        with pytest.raises(NodeDown):
            await store(member.node(), 1, b"x")


async def test_an_adopted_member_serves_its_drives_as_nodes(tmp_path: Path) -> None:
    async with serving_member(tmp_path / "m", drives=2) as member:
        health = await member.client.health()
        assert (health.member, health.store) == (MEMBER.hex(), STORE)
        assert [drive.node for drive in health.drives] == [node_id(1).hex(), node_id(2).hex()]
        assert all(drive.state == "up" and drive.drive for drive in health.drives)
        await store(member.node(1), 1, b"one")
        await store(member.node(2), 2, b"two")
        assert await load(member.node(1), 1, 3) == b"one"
        with pytest.raises(FragmentMissing):
            await load(member.node(1), 2, 3)
        with pytest.raises(NodeDown):
            await load(member.node(3), 1, 3)


async def test_an_adoption_may_be_repeated(tmp_path: Path) -> None:
    async with serving_member(tmp_path / "m") as member:
        await store(member.node(), 1, b"kept")
        await member.adopt()
        assert await load(member.node(), 1, 4) == b"kept"


async def test_a_member_remembers_what_it_is(tmp_path: Path) -> None:
    async with serving_member(tmp_path / "m", drives=2) as member:
        await store(member.node(2), 1, b"kept")
    async with serving_member(tmp_path / "m", drives=2, adopt=False) as member:
        health = await member.client.health()
        assert (health.member, health.store) == (MEMBER.hex(), STORE)
        assert [drive.state for drive in health.drives] == ["up", "up"]
        assert await load(member.node(2), 1, 4) == b"kept"


async def test_a_member_of_one_store_is_not_adopted_by_another(tmp_path: Path) -> None:
    async with serving_member(tmp_path / "m") as member:
        for id_, store_id in ((MEMBER, "another"), (MemberId(b"member-2"), STORE)):
            with pytest.raises(AdoptionRefused, match="already"):
                await member.client.adopt(id_, store_id, {})
        assert (await member.client.health()).store == STORE


async def test_a_folder_that_holds_something_else_is_not_formatted(
    tmp_path: Path, logs: Logs
) -> None:
    folder = tmp_path / "m" / "drive1"
    folder.mkdir(parents=True)
    (folder / "letters.txt").write_text("not ours")
    logs.expect("^drive absent$")
    async with serving_member(tmp_path / "m", adopt=False) as member:
        with pytest.raises(AdoptionRefused, match="not empty"):
            await member.adopt()
        assert [path.name for path in folder.iterdir()] == ["letters.txt"]


async def test_a_drive_is_not_made_another_node(tmp_path: Path) -> None:
    async with serving_member(tmp_path / "m") as member:
        with pytest.raises(AdoptionRefused, match="already"):
            await member.client.adopt(MEMBER, STORE, {member.folders[0]: node_id(9)})
        with pytest.raises(AdoptionRefused, match="no drive folder"):
            await member.client.adopt(MEMBER, STORE, {"/elsewhere": node_id(9)})


async def test_a_refused_adoption_leaves_the_daemon_without_a_member(tmp_path: Path) -> None:
    async with serving_member(tmp_path / "m", adopt=False) as member:
        with pytest.raises(AdoptionRefused):
            await member.client.adopt(MEMBER, STORE, {"/elsewhere": node_id(1)})
        assert (await member.client.health()).member == ""
        await member.adopt()


# Drives that come and go


async def test_a_drive_that_is_gone_fails_alone_and_serves_again_when_it_is_back(
    tmp_path: Path, logs: Logs
) -> None:
    logs.expect("^drive failed$")
    logs.expect("^drive absent$")
    async with (
        serving_member(tmp_path / "m", drives=2, shelf_config=EAGER) as member,
        trio.open_nursery() as nursery,
    ):
        nursery.start_soon(member.shelf.watch)
        await store(member.node(1), 1, b"kept")
        folder = first_folder(member)
        unplug(folder, tmp_path / "unplugged")
        gone = await drives_when(member, 1, "missing")
        assert (gone.node, gone.drive) == (node_id(1).hex(), "")
        with pytest.raises(NodeDown):
            await load(member.node(1), 1, 4)
        await store(member.node(2), 2, b"works")
        unplug(tmp_path / "unplugged", folder)
        await drives_when(member, 1, "up")
        assert await load(member.node(1), 1, 4) == b"kept"
        nursery.cancel_scope.cancel()


async def test_a_replaced_drive_shows_as_empty_until_it_is_adopted(
    tmp_path: Path, logs: Logs
) -> None:
    logs.expect("^drive failed$")
    logs.expect("^drive absent$")
    async with (
        serving_member(tmp_path / "m", shelf_config=EAGER) as member,
        trio.open_nursery() as nursery,
    ):
        nursery.start_soon(member.shelf.watch)
        before = (await member.client.health()).drives[0]
        folder = first_folder(member)
        replace_drive(folder, tmp_path / "broken")
        empty = await drives_when(member, 1, "empty")
        assert empty.node == before.node
        assert os.listdir(folder) == []
        await member.adopt()
        after = await drives_when(member, 1, "up")
        assert after.node == before.node
        assert after.drive != before.drive
        await store(member.node(), 1, b"new")
        nursery.cancel_scope.cancel()


async def test_a_drive_keeps_its_node_when_folders_change_places(tmp_path: Path) -> None:
    async with serving_member(tmp_path / "m", drives=2) as member:
        await store(member.node(1), 1, b"kept")
        first, second = map(Path, member.folders)
    first.rename(tmp_path / "aside")
    second.rename(first)
    (tmp_path / "aside").rename(second)
    async with serving_member(tmp_path / "m", drives=2, adopt=False) as member:
        nodes = [drive.node for drive in (await member.client.health()).drives]
        assert nodes == [node_id(2).hex(), node_id(1).hex()]
        assert await load(member.node(1), 1, 4) == b"kept"


async def test_a_copy_of_a_drive_is_not_served(tmp_path: Path) -> None:
    async with serving_member(tmp_path / "m", drives=2) as member:
        first, second = map(Path, member.folders)
    shutil.rmtree(second)
    shutil.copytree(first, second)
    async with serving_member(tmp_path / "m", drives=2, adopt=False) as member:
        states = sorted(drive.state for drive in (await member.client.health()).drives)
        assert states == ["foreign", "up"]


async def test_a_drive_of_another_store_is_left_alone(tmp_path: Path, logs: Logs) -> None:
    logs.expect("^drive absent$")
    async with serving_member(tmp_path / "other") as other:
        folder = other.folders[0]
    identity = Path(folder) / "drive.json"
    document = json.loads(identity.read_text())
    identity.write_text(json.dumps({**document, "store_id": "another"}))
    shutil.move(folder, tmp_path / "m" / "drive1")
    async with serving_member(tmp_path / "m", adopt=False) as member:
        assert (await member.client.health()).drives[0].state == "foreign"
        with pytest.raises(AdoptionRefused, match="another"):
            await member.adopt()


# Errors and limits


@pytest.mark.parametrize(
    ("fault", "expected"),
    [
        (Fault("pwritev", errno.ENOSPC), NodeFull),
        (Fault("pwritev", errno.EIO), NodeDown),
        (Fault("fdatasync", errno.EIO), NodeDown),
    ],
)
async def test_a_disk_that_fails_a_write_says_so_and_keeps_nothing(
    tmp_path: Path, fault: Fault, expected: type[NodeError]
) -> None:
    disk = FaultDisk()
    async with serving_member(
        tmp_path / "m", disk=disk, service_config=OVER_FAULTS, shelf_config=EAGER
    ) as member:
        node = member.node()
        await store(node, 1, b"before")
        disk.faults.append(fault)
        with pytest.raises(NodeError) as caught:
            await store(node, 2, content(2, 3 * MIB))
        assert type(caught.value) is expected
        disk.faults.clear()
        assert [info.fragment for info in await node.list(b"", 10)] == [fragment(1)]
        assert await load(node, 1, 6) == b"before"
        await store(node, 3, b"after")


async def test_a_full_drive_takes_no_fragment_and_still_deletes(tmp_path: Path) -> None:
    disk = FaultDisk()
    async with serving_member(tmp_path / "m", disk=disk, service_config=OVER_FAULTS) as member:
        node = member.node()
        await store(node, 1, b"x" * 1000)
        disk.free = 0
        with pytest.raises(NodeFull):
            await node.open_writer(fragment(2), 100)
        assert await load(node, 1, 1000) == b"x" * 1000
        await node.delete([fragment(1)])
        assert await node.stat(fragment(1)) is None


@pytest.mark.parametrize("size", [100, 300_000, 3 * MIB])
@pytest.mark.parametrize("send_files", [True, False])
async def test_a_volume_that_was_cut_off_is_damage(
    tmp_path: Path, size: int, send_files: bool
) -> None:
    config = ServiceConfig(name="m1", version="0", send_files=send_files)
    async with serving_member(tmp_path / "m", service_config=config, shelf_config=EAGER) as member:
        node = member.node()
        await store(node, 1, content(1, size))
        os.truncate(volume_of(member), size // 2)
        with pytest.raises(FragmentDamaged):
            await load(node, 1, size)
        await store(node, 2, b"others work")
        assert set(member.log.troubles) <= {"http_file_broken"}


async def test_a_fragment_is_verified_where_it_lies(tmp_path: Path) -> None:
    async with serving_member(tmp_path / "m", shelf_config=EAGER) as member:
        node = member.node()
        for number in range(3):
            await store(node, number, content(number, 2 * MIB))
        volume = volume_of(member)
        data = bytearray(volume.read_bytes())
        at = data.find(content(1, 2 * MIB)[-100:])
        data[at] ^= 1
        volume.write_bytes(data)
        asked = [fragment(number) for number in range(4)] * 20
        found = await member.client.verify(node.node_id, asked)
        assert [found[fragment(number)] for number in range(4)] == [
            "whole",
            "damaged",
            "whole",
            "missing",
        ]


async def test_a_member_with_too_much_to_do_is_busy_and_not_down(tmp_path: Path) -> None:
    config = ServiceConfig(name="m1", version="0", running_max=2)
    async with serving_member(tmp_path / "m", service_config=config) as member:
        node = member.node()
        writers = [await node.open_writer(fragment(number), 10) for number in (1, 2)]
        with pytest.raises(NodeBusy):
            await node.open_writer(fragment(3), 10)
        with pytest.raises(NodeBusy):
            await node.stat(fragment(1))
        for writer in writers:
            await writer.write([b"x"])
            await writer.commit()
        await store(node, 3, b"works")
        assert len(await node.list(b"", 10)) == 3


async def test_more_uploads_than_buffers_all_arrive(tmp_path: Path) -> None:
    config = ServiceConfig(name="m1", version="0", buffers_size=1)
    async with serving_member(tmp_path / "m", service_config=config, shelf_config=EAGER) as member:
        node = member.node()
        writers = [await node.open_writer(fragment(number), 2 * MIB) for number in range(4)]
        for part in range(2):
            for number, writer in enumerate(writers):
                await writer.write([content(number, 2 * MIB)[part * MIB : (part + 1) * MIB]])
        for writer in writers:
            await writer.commit()
        for number in range(4):
            assert await load(node, number, 2 * MIB) == content(number, 2 * MIB)


async def test_an_upload_that_ends_early_leaves_nothing(tmp_path: Path) -> None:
    async with serving_member(tmp_path / "m", shelf_config=EAGER) as member:
        node = member.node()
        writer = await node.open_writer(fragment(1), 4 * MIB)
        await writer.write([content(1, 3 * MIB)])
        await writer.abort()
        with trio.fail_after(60):
            while member.service.metrics.running:  # noqa: ASYNC110  nothing tells
                await trio.sleep(0.01)
        assert await node.list(b"", 10) == []
        drive = member.shelf.slots[0].drive
        assert drive is not None
        assert drive._promised == 0
        assert (await node.space()).live == 0


async def test_compaction_gives_space_back_when_asked(tmp_path: Path) -> None:
    async with serving_member(tmp_path / "m") as member, trio.open_nursery() as nursery:
        nursery.start_soon(member.shelf.compact_regularly)
        node = member.node()
        for number in range(8):
            await store(node, number, content(number, MIB))
        await node.delete([fragment(number) for number in range(7)])
        before = (await node.space()).dead
        assert before >= 6 * MIB
        await member.client.compact()
        with trio.fail_after(60):
            while (await node.space()).dead > before // 2:  # noqa: ASYNC110  nothing tells
                await trio.sleep(0.01)
        assert await load(node, 7, MIB) == content(7, MIB)
        nursery.cancel_scope.cancel()


class HangingDisk(UnsyncedDisk):
    """A real disk of which one folder's drive stops answering while ``hang`` is clear."""

    def __init__(self, folder: str) -> None:
        super().__init__()
        self.answers = threading.Event()
        self.answers.set()
        self._folder = folder

    def statvfs(self, path: str) -> DiskSpace:
        if path.startswith(self._folder):
            self.answers.wait()
        return super().statvfs(path)


async def test_a_drive_that_hangs_fails_alone_and_at_once_until_it_answers_again(
    tmp_path: Path,
) -> None:
    config = ShelfConfig(
        volume_size=64 * MIB, reserve=0, look_s=0.01, hung_s=2.0, threads=2, queue=2
    )
    disk = HangingDisk(str(tmp_path / "m" / "drive1"))
    async with (
        serving_member(tmp_path / "m", drives=2, disk=disk, shelf_config=config) as member,
        trio.open_nursery() as nursery,
    ):
        try:
            nursery.start_soon(member.shelf.watch)
            await store(member.node(1), 1, b"kept")
            disk.answers.clear()
            failed = await drives_when(member, 1, "failed")
            assert "has not answered" in failed.reason
            with pytest.raises(NodeDown, match="hangs"):
                await member.node(1).open_writer(fragment(2), 10)
            await store(member.node(2), 2, b"works")
        finally:
            disk.answers.set()
        await drives_when(member, 1, "up")
        assert await load(member.node(1), 1, 4) == b"kept"
        nursery.cancel_scope.cancel()


async def test_more_calls_than_may_wait_for_a_drive_are_refused_as_busy(tmp_path: Path) -> None:
    config = ShelfConfig(volume_size=64 * MIB, reserve=0, threads=1, queue=1)
    disk = HangingDisk(str(tmp_path / "m" / "drive1"))
    async with serving_member(tmp_path / "m", disk=disk, shelf_config=config) as member:
        busy = 0

        async def ask() -> None:
            nonlocal busy
            try:
                await member.node().space()
            except NodeBusy:
                busy += 1
                disk.answers.set()

        disk.answers.clear()
        async with trio.open_nursery() as nursery:
            for _ in range(5):
                nursery.start_soon(ask)
        assert busy > 0
        assert (await member.node().space()).fragments == 0
