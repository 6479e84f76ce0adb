"""Failing calls, a full disk and changed bytes under a drive."""

from __future__ import annotations

import errno
import threading
from pathlib import Path

import pytest

from engine.node.contract import FragmentDamaged, NodeDown, NodeFull
from engine.node.drive import Drive
from engine.node.index import READ_ONLY
from tests.support.disk import Fault, FaultDisk
from tests.support.drives import (
    check_sums,
    content,
    everything,
    fragment,
    get,
    lose_index,
    new_drive,
    pieces,
    put,
    reopen,
)

VOLUMES = ".vol"


def faulty(path: Path, **options: int) -> tuple[Drive, FaultDisk]:
    disk = FaultDisk()
    return new_drive(path, disk, **options), disk


# Failing syncs


def test_failed_sync_stops_the_volume_for_good_and_leaves_the_rest_readable(
    tmp_path: Path,
) -> None:
    drive, disk = faulty(tmp_path)
    put(drive, fragment(1), content(1, 1_000))
    disk.faults = [Fault("fdatasync", path="00000001.vol")]
    with pytest.raises(NodeDown):
        put(drive, fragment(2), content(2, 1_000))
    assert get(drive, fragment(1)) == content(1, 1_000)
    assert drive.stat(fragment(2)) is None
    put(drive, fragment(3), content(3, 1_000))
    assert (tmp_path / "volumes" / "00000002.vol").exists()
    drive.close()
    drive = reopen(tmp_path)
    assert get(drive, fragment(1)) == content(1, 1_000)
    assert get(drive, fragment(3)) == content(3, 1_000)
    put(drive, fragment(4), b"x")
    first_volume = drive.index.volumes()[1]
    assert first_volume.needles == 1
    drive.close()


def test_open_writers_of_a_failed_volume_fail_and_are_never_synced_again(tmp_path: Path) -> None:
    drive, disk = faulty(tmp_path)
    bystander = drive.open_writer(fragment(5), 100)
    bystander.write([b"x" * 50])
    disk.faults = [Fault("fdatasync", path=VOLUMES)]
    with pytest.raises(NodeDown):
        put(drive, fragment(6), b"y")
    syncs = disk.calls.count("fdatasync")
    with pytest.raises(NodeDown):
        bystander.commit()
    bystander.abort()
    assert disk.calls.count("fdatasync") == syncs
    drive.close()


def test_drive_that_fails_three_syncs_takes_no_more_writes(tmp_path: Path) -> None:
    drive, disk = faulty(tmp_path)
    put(drive, fragment(1), b"x")
    # Of each new volume the first sync, of its header, still works.
    for number in range(3):
        disk.faults = [Fault("fdatasync", path=VOLUMES, after=0 if number == 0 else 1)]
        with pytest.raises(NodeDown):
            put(drive, fragment(2), b"y")
    disk.faults = []
    with pytest.raises(NodeDown):
        put(drive, fragment(2), b"y")
    assert get(drive, fragment(1)) == b"x"
    drive.close()


def test_all_who_wait_for_a_failing_sync_are_told(tmp_path: Path) -> None:
    drive, disk = faulty(tmp_path)
    put(drive, fragment(0), b"x")
    writers = [drive.open_writer(fragment(number), 100) for number in range(1, 9)]
    for writer in writers:
        writer.write([b"x"])
    disk.faults = [Fault("fdatasync", path=VOLUMES, count=-1)]
    told: list[bool] = []

    def commit(index: int) -> None:
        try:
            writers[index].commit()
        except NodeDown:
            told.append(True)

    threads = [threading.Thread(target=commit, args=(index,)) for index in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=120)
    assert told == [True] * 8
    assert sorted(everything(drive)) == [fragment(0)]
    drive.close()


# Full disks


def test_write_on_a_full_disk_gives_its_room_back(tmp_path: Path) -> None:
    drive, disk = faulty(tmp_path)
    put(drive, fragment(1), b"x")
    (volume,) = (tmp_path / "volumes").iterdir()
    size = volume.stat().st_size
    writer = drive.open_writer(fragment(2), 1_000_000)
    writer.write([b"y" * 400_000])
    disk.faults = [Fault("pwritev", errno.ENOSPC, path=VOLUMES)]
    with pytest.raises(NodeFull):
        writer.write([b"y" * 400_000])
    writer.abort()
    assert volume.stat().st_size <= (size + 511) // 512 * 512
    put(drive, fragment(3), b"z")
    assert sorted(everything(drive)) == [fragment(1), fragment(3)]
    drive.close()


def test_full_disk_at_reserving_is_node_full(tmp_path: Path) -> None:
    drive, disk = faulty(tmp_path)
    put(drive, fragment(1), b"x")
    disk.faults = [Fault("pwritev", errno.ENOSPC, path=VOLUMES)]
    with pytest.raises(NodeFull):
        drive.open_writer(fragment(2), 100)
    put(drive, fragment(2), b"y")
    drive.close()


def test_full_disk_at_taking_blocks_is_node_full(tmp_path: Path) -> None:
    drive, disk = faulty(tmp_path, direct_min=4096)
    put(drive, fragment(1), content(1, 9_000))
    disk.faults = [Fault("extend", errno.ENOSPC)]
    with pytest.raises(NodeFull):
        put(drive, fragment(2), content(2, 9_000))
    put(drive, fragment(3), content(3, 9_000))
    assert drive.space().fragments == 2
    drive.close()
    drive = reopen(tmp_path)
    assert drive.report.damage == []
    assert everything(drive) == {fragment(n): content(n, 9_000) for n in (1, 3)}
    drive.close()


def test_sync_that_fails_after_writing_past_the_page_cache_stops_the_volume(
    tmp_path: Path,
) -> None:
    drive, disk = faulty(tmp_path, direct_min=4096)
    put(drive, fragment(1), content(1, 9_000))
    disk.faults = [Fault("fdatasync", path="00000001.vol")]
    with pytest.raises(NodeDown):
        put(drive, fragment(2), content(2, 9_000))
    put(drive, fragment(3), content(3, 9_000))
    assert (tmp_path / "volumes" / "00000002.vol").exists()
    drive.close()
    drive = reopen(tmp_path)
    assert everything(drive) == {fragment(n): content(n, 9_000) for n in (1, 3)}
    drive.close()


def test_write_past_the_page_cache_that_fails_concerns_its_fragment(tmp_path: Path) -> None:
    drive, disk = faulty(tmp_path, direct_min=4096)
    writer = drive.open_writer(fragment(1), 20_000)
    writer.write(pieces(content(1, 8_192)))
    disk.faults = [Fault("pwritev", errno.EIO)]
    with pytest.raises(NodeDown):
        writer.write(pieces(content(2, 8_192)))
    writer.abort()
    put(drive, fragment(3), content(3, 9_000))
    assert everything(drive) == {fragment(3): content(3, 9_000)}
    check_sums(drive)
    drive.close()


def test_delete_uses_up_the_reserve_when_nothing_else_is_left(tmp_path: Path) -> None:
    drive, disk = faulty(tmp_path, reserve=4096)
    put(drive, fragment(1), b"x")
    assert (tmp_path / "reserve").exists()
    disk.faults = [Fault("pwritev", errno.ENOSPC, path=VOLUMES)]
    drive.delete([fragment(1)])
    assert drive.stat(fragment(1)) is None
    assert not (tmp_path / "reserve").exists()
    drive.close()
    drive = reopen(tmp_path, reserve=4096)
    assert (tmp_path / "reserve").exists()
    assert everything(drive) == {}
    drive.close()


# Failing and changed reads


def test_unreadable_sector_is_damage_and_a_lost_device_is_down(tmp_path: Path) -> None:
    drive, disk = faulty(tmp_path)
    put(drive, fragment(1), b"x" * 100)
    disk.faults = [Fault("preadv", errno.EIO, path=VOLUMES)]
    with pytest.raises(FragmentDamaged):
        get(drive, fragment(1))
    disk.faults = [Fault("preadv", errno.ENODEV, path=VOLUMES)]
    with pytest.raises(NodeDown):
        get(drive, fragment(1))
    disk.faults = [Fault("preadv", errno.EIO, path=VOLUMES)]
    assert not drive.read_into(fragment(1), 0, [memoryview(bytearray(9))], nowait=True)
    drive.close()


def test_volume_that_ends_within_a_fragment_is_damage(tmp_path: Path) -> None:
    drive, _ = faulty(tmp_path)
    put(drive, fragment(1), b"x" * 10_000)
    (volume,) = (tmp_path / "volumes").iterdir()
    with volume.open("r+b") as file:
        file.truncate(5_000)
    with pytest.raises(FragmentDamaged):
        get(drive, fragment(1))
    drive.close()
    drive = reopen(tmp_path)
    assert [damage.what for damage in drive.report.damage] == ["cut off"]
    drive.close()


def test_volume_that_became_shorter_does_not_bring_deleted_fragments_back(tmp_path: Path) -> None:
    drive, _ = faulty(tmp_path, volume_size=16 << 10)
    for number in range(3):
        put(drive, fragment(number), content(number, 4_000))
    drive.delete([fragment(1), fragment(2)])
    put(drive, fragment(3), content(3, 4_000))
    drive.delete([fragment(3)])
    assert len(list((tmp_path / "volumes").iterdir())) == 2
    drive.close()
    with (tmp_path / "volumes" / "00000001.vol").open("r+b") as file:
        file.truncate(512 + 3 * 4_608 - 1_000)
    drive = reopen(tmp_path, volume_size=16 << 10)
    assert [damage.what for damage in drive.report.damage] == ["cut off"]
    assert everything(drive) == {fragment(0): content(0, 4_000)}
    put(drive, fragment(4), b"x")
    assert drive.index.volumes()[1].state == READ_ONLY
    assert everything(drive) == {fragment(0): content(0, 4_000), fragment(4): b"x"}
    check_sums(drive)
    drive.close()


def filled(path: Path) -> None:
    drive = new_drive(path)
    for number in range(8):
        put(drive, fragment(number), content(number, 5_000))
    drive.delete([fragment(7)])
    drive.close()


def flip(path: Path, offset: int) -> None:
    (volume,) = (path / "volumes").iterdir()
    with volume.open("r+b") as file:
        file.seek(offset)
        (byte,) = file.read(1)
        file.seek(offset)
        file.write(bytes([byte ^ 4]))


NEEDLE = 5_632
"""Extent of 5,000 bytes."""


@pytest.mark.parametrize(("at", "what"), [(10, "header"), (70, "commit record")])
def test_damaged_needle_in_the_middle_is_reported_and_the_others_are_found(
    tmp_path: Path, at: int, what: str
) -> None:
    filled(tmp_path)
    flip(tmp_path, 512 + 3 * NEEDLE + at)
    lose_index(tmp_path)
    drive = reopen(tmp_path)
    (damage,) = drive.report.damage
    assert (damage.what, damage.offset, damage.size) == (what, 512 + 3 * NEEDLE, NEEDLE)
    expected = {fragment(n): content(n, 5_000) for n in range(7) if n != 3}
    assert everything(drive) == expected
    # A damaged volume is read, and no longer appended to.
    put(drive, fragment(20), b"x")
    assert len(list((tmp_path / "volumes").iterdir())) == 2
    check_sums(drive)
    drive.close()


def test_damaged_header_does_no_harm_while_the_index_is_there(tmp_path: Path) -> None:
    filled(tmp_path)
    flip(tmp_path, 512 + 3 * NEEDLE + 10)
    drive = reopen(tmp_path)
    assert get(drive, fragment(3)) == content(3, 5_000)
    drive.close()


def test_damaged_file_header_is_reported_and_the_needles_are_found(tmp_path: Path) -> None:
    filled(tmp_path)
    flip(tmp_path, 20)
    lose_index(tmp_path)
    drive = reopen(tmp_path)
    assert [damage.what for damage in drive.report.damage] == ["file header"]
    assert len(everything(drive)) == 7
    drive.close()


def test_torn_tail_is_given_up_and_never_written_to_again(tmp_path: Path) -> None:
    filled(tmp_path)
    (volume,) = (tmp_path / "volumes").iterdir()
    size = volume.stat().st_size
    with volume.open("ab") as file:
        file.truncate((size + 511) // 512 * 512)
        file.write(b"LdNd" + b"\xff" * 3_000)
    drive = reopen(tmp_path)
    assert drive.report.damage == []
    assert drive.report.given_up_bytes > 3_000
    assert len(everything(drive)) == 7
    end = (volume.stat().st_size + 511) // 512 * 512
    put(drive, fragment(20), b"x")
    assert [offset for *_, offset, _ in drive.index.needles_in(1)][-1] == end
    drive.close()
    lose_index(tmp_path)
    drive = reopen(tmp_path)
    assert drive.report.damage == []
    assert len(everything(drive)) == 8
    drive.close()


def test_full_drive_with_a_torn_tail_is_opened_and_its_volume_left_alone(tmp_path: Path) -> None:
    filled(tmp_path)
    (volume,) = (tmp_path / "volumes").iterdir()
    size = (volume.stat().st_size + 511) // 512 * 512
    with volume.open("ab") as file:
        file.truncate(size)
        file.write(b"LdNd" + b"\xff" * 3_000)
    disk = FaultDisk(Fault("pwritev", errno.ENOSPC, count=-1, path=VOLUMES))
    drive = reopen(tmp_path, disk)
    assert drive.report.damage == []
    assert len(everything(drive)) == 7
    assert drive.index.volumes()[1].state == READ_ONLY
    disk.faults = []
    put(drive, fragment(20), b"x")
    assert volume.stat().st_size == size + 3_004
    drive.close()


def test_copy_of_a_volume_stored_as_an_object_is_not_taken_for_needles(tmp_path: Path) -> None:
    filled(tmp_path)
    drive = reopen(tmp_path)
    (volume,) = (tmp_path / "volumes").iterdir()
    trap = bytes(384) + volume.read_bytes()  # the copied headers come to lie on multiples of 512
    put(drive, fragment(30), trap)
    writer = drive.open_writer(fragment(31), len(trap))
    writer.write([trap])  # and a second one that is never committed
    expected = everything(drive)
    drive.close()
    lose_index(tmp_path)
    drive = reopen(tmp_path)
    assert everything(drive) == expected
    assert drive.report.damage == []
    drive.close()


def test_recovery_does_not_cut_what_it_cannot_read(tmp_path: Path) -> None:
    filled(tmp_path)
    lose_index(tmp_path)
    (volume,) = (tmp_path / "volumes").iterdir()
    size = volume.stat().st_size
    drive = reopen(tmp_path, FaultDisk(Fault("preadv", path=VOLUMES, after=4, count=-1)))
    assert [damage.what for damage in drive.report.damage] == ["unreadable"]
    assert volume.stat().st_size == size
    drive.close()
    drive = reopen(tmp_path)
    assert len(everything(drive)) == 7
    drive.close()
