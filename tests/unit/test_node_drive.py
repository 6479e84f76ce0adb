"""One drive: opening, volumes, space, deletes, compaction and the loss of parts of it."""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import tempfile
import threading
from collections.abc import Sequence
from pathlib import Path

import pytest

from engine.ids import NodeId
from engine.node.compaction import compact
from engine.node.contract import Buffer, FragmentMissing, NodeDown, NodeFull
from engine.node.disk import RealDisk
from engine.node.drive import Drive, format_drive, open_drive
from engine.node.identity import (
    DriveBusy,
    DriveEmpty,
    DriveForeign,
    DriveMissing,
    DriveUnreadable,
)
from tests.support.disk import FaultDisk, UnsyncedDisk
from tests.support.drives import (
    NODE,
    STORE,
    check_sums,
    content,
    everything,
    fragment,
    get,
    lose_index,
    new_drive,
    put,
    reopen,
)

KIB = 1024


def volume_files(path: Path) -> list[Path]:
    return sorted((path / "volumes").iterdir())


# Opening


def test_each_reason_not_to_open_has_its_error(tmp_path: Path) -> None:
    with pytest.raises(DriveMissing):
        reopen(tmp_path / "absent")
    with pytest.raises(DriveEmpty):
        reopen(tmp_path)
    drive = new_drive(tmp_path / "drive")
    drive.close()
    with pytest.raises(DriveForeign):
        open_drive(str(tmp_path / "drive"), store_id="another")
    (tmp_path / "drive" / "drive.json").write_text("{")
    with pytest.raises(DriveUnreadable):
        reopen(tmp_path / "drive")


def test_drive_of_another_format_is_refused_and_left_alone(tmp_path: Path) -> None:
    drive = new_drive(tmp_path)
    put(drive, fragment(1), b"x")
    drive.close()
    file = tmp_path / "drive.json"
    file.write_text(file.read_text().replace('"format":2', '"format":1'))
    with pytest.raises(DriveUnreadable, match="format 1"):
        reopen(tmp_path)
    file.write_text(file.read_text().replace('"format":1', '"format":2'))
    drive = reopen(tmp_path)
    assert everything(drive) == {fragment(1): b"x"}
    drive.close()


def test_lost_identity_of_a_drive_with_volumes_is_not_taken_for_an_empty_folder(
    tmp_path: Path,
) -> None:
    drive = new_drive(tmp_path)
    put(drive, fragment(1), b"x")
    drive.close()
    (tmp_path / "drive.json").unlink()
    with pytest.raises(DriveUnreadable):
        reopen(tmp_path)
    with pytest.raises(DriveForeign):
        format_drive(str(tmp_path), STORE, NODE, RealDisk())


def test_folder_with_other_files_is_not_formatted(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(DriveForeign):
        format_drive(str(tmp_path), STORE, NODE, RealDisk())
    assert os.listdir(tmp_path) == ["thesis.tex"]


def test_identity_survives(tmp_path: Path) -> None:
    drive = new_drive(tmp_path)
    drive_id = drive.drive_id
    drive.close()
    drive = reopen(tmp_path)
    assert (drive.node_id, drive.drive_id) == (NodeId(NODE), drive_id)
    drive.close()


def test_fragments_survive_reopening_and_the_volume_is_continued(tmp_path: Path) -> None:
    for number in range(3):
        drive = new_drive(tmp_path) if number == 0 else reopen(tmp_path)
        put(drive, fragment(number), content(number, 5_000))
        assert drive.report.replayed == 0
        drive.close()
    drive = reopen(tmp_path)
    assert everything(drive) == {fragment(n): content(n, 5_000) for n in range(3)}
    assert len(volume_files(tmp_path)) == 1
    drive.close()


# Volumes


def test_full_volume_is_followed_by_another(tmp_path: Path) -> None:
    drive = new_drive(tmp_path, volume_size=64 * KIB)
    for number in range(12):
        put(drive, fragment(number), content(number, 20 * KIB))
    put(drive, fragment(50), content(50, 200 * KIB))
    assert len(volume_files(tmp_path)) == 5
    assert get(drive, fragment(50)) == content(50, 200 * KIB)
    assert len(everything(drive)) == 13
    check_sums(drive)
    drive.close()


def test_unused_room_of_a_short_fragment_is_given_back(tmp_path: Path) -> None:
    drive = new_drive(tmp_path)
    put(drive, fragment(1), b"x" * 1_000, size_max=10_000_000)
    put(drive, fragment(2), b"y" * 1_000, size_max=10_000_000)
    (volume,) = volume_files(tmp_path)
    assert volume.stat().st_size < 12 * KIB
    assert volume.stat().st_blocks * 512 <= 12 * KIB
    assert get(drive, fragment(2)) == b"y" * 1_000
    drive.close()


def test_unused_room_between_two_fragments_keeps_no_blocks(tmp_path: Path) -> None:
    drive = new_drive(tmp_path)
    first, second = (drive.open_writer(fragment(number), 10_000_000) for number in (1, 2))
    first.write([b"x" * 1_000])
    first.commit()
    (volume,) = volume_files(tmp_path)
    assert volume.stat().st_size > 20_000_000
    second.abort()
    assert volume.stat().st_blocks * 512 <= 16 * KIB
    assert everything(drive) == {fragment(1): b"x" * 1_000}
    drive.close()
    drive = reopen(tmp_path)
    assert drive.report.damage == []
    assert everything(drive) == {fragment(1): b"x" * 1_000}
    drive.close()


def cached_pages(path: Path) -> int:
    """Return how many pages of a file are in the page cache (mincore)."""
    libc = ctypes.CDLL(None, use_errno=True)
    size = path.stat().st_size
    with path.open("r+b") as file, mmap.mmap(file.fileno(), size) as mapped:
        flags = (ctypes.c_ubyte * (-(-size // 4096)))()
        anchor = ctypes.c_char.from_buffer(mapped)
        assert libc.mincore(ctypes.c_void_p(ctypes.addressof(anchor)), size, flags) == 0
        del anchor
        return sum(flag & 1 for flag in flags)


def can_write_direct(folder: Path) -> bool:
    with tempfile.NamedTemporaryFile(dir=folder) as probe:
        try:
            os.close(os.open(probe.name, os.O_RDWR | os.O_DIRECT))
        except OSError:
            return False
    return os.statvfs(folder).f_bsize == 4096


def test_large_aligned_fragments_go_past_the_page_cache(tmp_path: Path) -> None:
    if not can_write_direct(tmp_path):
        pytest.skip("the file system of temporary files cannot")
    drive = new_drive(tmp_path, RealDisk(), direct_min=1 << 20)
    payload = content(1, (2 << 20) + 1_000)
    put(drive, fragment(1), payload)
    (volume,) = volume_files(tmp_path)
    assert cached_pages(volume) < 16
    assert get(drive, fragment(1)) == payload
    put(drive, fragment(2), content(2, (1 << 20) - 1))
    assert everything(drive) == {fragment(1): payload, fragment(2): content(2, (1 << 20) - 1)}
    drive.close()
    lose_index(tmp_path)
    drive = reopen(tmp_path)
    assert drive.report.damage == []
    assert len(everything(drive)) == 2
    drive.close()


class PlainDisk(UnsyncedDisk):
    """Of a file system that can neither reserve blocks nor write past the page cache."""

    def __init__(self, *, extends: bool, opens: bool, writes: bool) -> None:
        super().__init__()
        self.extends, self.opens, self.writes = extends, opens, writes
        self.direct: set[int] = set()

    def extend(self, fd: int, offset: int, size: int) -> bool:
        return self.extends and super().extend(fd, offset, size)

    def open_direct(self, path: str) -> int:
        if not self.opens:
            return -1
        fd = self.open(path, os.O_RDWR)
        self.direct.add(fd)
        return fd

    def pwritev(self, fd: int, buffers: Sequence[Buffer], offset: int) -> int:
        if fd in self.direct and not self.writes:
            raise OSError(errno.EINVAL, "alignment")
        return super().pwritev(fd, buffers, offset)


@pytest.mark.parametrize(
    ("extends", "opens", "writes"),
    [(False, True, True), (True, False, True), (True, True, False), (True, True, True)],
)
def test_large_fragments_are_written_also_where_the_file_system_helps_less(
    tmp_path: Path, extends: bool, opens: bool, writes: bool
) -> None:
    disk = PlainDisk(extends=extends, opens=opens, writes=writes)
    drive = new_drive(tmp_path, disk, direct_min=4096)
    expected = {}
    for number, size in enumerate((100, 4096, 50_000, 8192, 20_001)):
        expected[fragment(number)] = content(number, size)
        put(drive, fragment(number), expected[fragment(number)], size_max=size * 2)
    assert everything(drive) == expected
    check_sums(drive)
    drive.close()
    lose_index(tmp_path)
    drive = reopen(tmp_path)
    assert drive.report.damage == []
    assert everything(drive) == expected
    drive.close()


def test_aborted_fragments_leave_no_blocks_behind(tmp_path: Path) -> None:
    drive = new_drive(tmp_path)
    first = drive.open_writer(fragment(1), 1_000_000)
    second = drive.open_writer(fragment(2), 1_000_000)
    put(drive, fragment(3), b"z" * 100)
    for writer in (first, second):
        writer.write([b"x" * 1_000_000])
        writer.abort()
    (volume,) = volume_files(tmp_path)
    assert volume.stat().st_blocks * 512 < 100_000
    assert everything(drive) == {fragment(3): b"z" * 100}
    drive.close()
    drive = reopen(tmp_path)
    assert everything(drive) == {fragment(3): b"z" * 100}
    drive.close()


def test_large_fragment_passes(tmp_path: Path) -> None:
    drive = new_drive(tmp_path)
    piece = content(1, 1 << 20)
    writer = drive.open_writer(fragment(1), 72 << 20)
    for _ in range(72):
        writer.write([piece])
    writer.commit()
    tail = bytearray(1 << 20)
    assert drive.read_into(fragment(1), 71 << 20, [memoryview(tail)], nowait=False)
    assert tail == piece
    drive.close()


def test_many_volumes_are_read_with_few_open_files(tmp_path: Path) -> None:
    drive = new_drive(tmp_path, volume_size=8 * KIB, open_files=3)
    for number in range(30):
        put(drive, fragment(number), content(number, 4 * KIB))
    before = len(os.listdir("/proc/self/fd"))
    assert len(everything(drive)) == 30
    assert len(os.listdir("/proc/self/fd")) <= before + 3
    drive.close()


def test_threads_write_one_drive_at_once(tmp_path: Path) -> None:
    drive = new_drive(tmp_path, RealDisk(), volume_size=256 * KIB)
    errors: list[BaseException] = []

    def work(thread: int) -> None:
        try:
            for number in range(thread * 100, thread * 100 + 20):
                put(drive, fragment(number), content(number, 3_000), size_max=4_000)
                if number % 3 == 0:
                    drive.delete([fragment(number)])
        except BaseException as error:  # noqa: BLE001, ASYNC103  # the test's own thread reports it
            errors.append(error)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    expected = {
        fragment(n): content(n, 3_000)
        for thread in range(8)
        for n in range(thread * 100, thread * 100 + 20)
        if n % 3
    }
    assert everything(drive) == expected
    drive.close()
    lose_index(tmp_path)
    drive = reopen(tmp_path)
    assert everything(drive) == expected
    check_sums(drive)
    drive.close()


def test_removed_folder_is_noticed_by_the_next_commit(tmp_path: Path) -> None:
    drive = new_drive(tmp_path)
    put(drive, fragment(1), b"x")
    for file in volume_files(tmp_path):
        file.unlink()
    with pytest.raises(NodeDown):
        put(drive, fragment(2), b"y")
    drive.close()


# Space


def test_new_fragments_are_refused_when_only_the_reserve_is_left(tmp_path: Path) -> None:
    disk = FaultDisk()
    drive = new_drive(tmp_path, disk, reserve=100_000)
    put(drive, fragment(1), b"x" * 1_000)
    disk.free = 110_000
    with pytest.raises(NodeFull):
        drive.open_writer(fragment(2), 20_000)
    writer = drive.open_writer(fragment(3), 6_000)
    with pytest.raises(NodeFull):
        drive.open_writer(fragment(4), 6_000)
    writer.abort()
    drive.open_writer(fragment(4), 6_000).abort()
    disk.free = 0
    assert drive.space().free == 0
    drive.delete([fragment(1)])
    assert drive.stat(fragment(1)) is None
    drive.close()


# Compaction


def fill(drive: Drive, count: int, size: int = 4_000) -> None:
    for number in range(count):
        put(drive, fragment(number), content(number, size))


def test_compaction_gives_space_back_and_keeps_what_lives(tmp_path: Path) -> None:
    drive = new_drive(tmp_path, volume_size=32 * KIB)
    fill(drive, 40)
    before = sum(file.stat().st_size for file in volume_files(tmp_path))
    drive.delete([fragment(number) for number in range(40) if number % 4])
    stats = compact(drive)
    assert stats.volumes > 0
    assert sum(file.stat().st_size for file in volume_files(tmp_path)) < before // 2
    expected = {fragment(n): content(n, 4_000) for n in range(0, 40, 4)}
    assert everything(drive) == expected
    check_sums(drive)
    drive.close()
    lose_index(tmp_path)
    drive = reopen(tmp_path)
    assert everything(drive) == expected
    drive.close()


def test_dead_volume_is_unlinked_without_copying(tmp_path: Path) -> None:
    drive = new_drive(tmp_path, volume_size=32 * KIB)
    fill(drive, 7)
    drive.delete([fragment(number) for number in range(7)])
    stats = compact(drive)
    assert stats.needles == 0
    assert not (tmp_path / "volumes" / "00000001.vol").exists()
    assert drive.space().dead == 0
    drive.close()


def test_second_compaction_has_nothing_to_do(tmp_path: Path) -> None:
    drive = new_drive(tmp_path, volume_size=32 * KIB)
    fill(drive, 20)
    drive.delete([fragment(number) for number in range(0, 20, 2)])
    compact(drive)
    assert compact(drive).volumes == 0
    drive.close()


def test_tombstone_outlives_its_own_volume_while_the_needle_is_still_on_disk(
    tmp_path: Path,
) -> None:
    drive = new_drive(tmp_path, volume_size=32 * KIB)
    fill(drive, 7)  # volume 1
    fill_after = [fragment(number) for number in range(100, 105)]
    for name in fill_after:
        put(drive, name, b"x" * 4_000)  # volume 2
    drive.delete([fragment(1)])  # its tombstone is in volume 2
    drive.delete(fill_after)
    stats = compact(drive, dead_ratio=0.5)
    assert stats.volumes == 1
    assert (tmp_path / "volumes" / "00000001.vol").exists()
    assert not (tmp_path / "volumes" / "00000002.vol").exists()
    drive.close()
    lose_index(tmp_path)
    drive = reopen(tmp_path)
    assert sorted(everything(drive)) == [fragment(n) for n in range(7) if n != 1]
    drive.close()


def test_tombstones_go_when_what_they_name_is_gone(tmp_path: Path) -> None:
    drive = new_drive(tmp_path, volume_size=32 * KIB)
    fill(drive, 7)
    for number in range(7):
        drive.delete([fragment(number)])
    dropped = sum(compact(drive, dead_ratio=0.1).tombstones_dropped for _ in range(3))
    assert dropped == 7
    assert sum(file.stat().st_size for file in volume_files(tmp_path)) <= KIB
    drive.close()


def test_reader_that_looked_up_the_old_place_looks_again(tmp_path: Path) -> None:
    drive = new_drive(tmp_path, volume_size=32 * KIB)
    fill(drive, 7)
    put(drive, fragment(50), b"next volume")
    drive.delete([fragment(number) for number in range(5)])
    find = drive.index.find
    looked = 0

    def find_then_compact(name: bytes) -> tuple[int, int, int] | None:
        nonlocal looked
        place = find(name)
        looked += 1
        if looked == 1:
            drive.index.find = find  # type: ignore[method-assign]
            compact(drive)
        return place

    drive.index.find = find_then_compact  # type: ignore[method-assign]
    data = bytearray(4_000)
    assert drive.read_into(fragment(6), 0, [memoryview(data)], nowait=False)
    assert data == content(6, 4_000)
    drive.close()


def test_delete_during_compaction_wins(tmp_path: Path) -> None:
    drive = new_drive(tmp_path, volume_size=32 * KIB)
    fill(drive, 7)
    put(drive, fragment(50), b"next volume")
    drive.delete([fragment(number) for number in range(5)])

    def delete_meanwhile(_: int) -> None:
        drive.delete([fragment(6)])

    compact(drive, budget=delete_meanwhile)
    expected = {fragment(5): content(5, 4_000), fragment(50): b"next volume"}
    assert everything(drive) == expected
    compact(drive, dead_ratio=0.01)
    drive.close()
    lose_index(tmp_path)
    drive = reopen(tmp_path)
    assert everything(drive) == expected
    drive.close()


def test_compaction_that_is_stopped_leaves_no_copy_behind(tmp_path: Path) -> None:
    drive = new_drive(tmp_path, volume_size=32 * KIB)
    fill(drive, 7)
    put(drive, fragment(50), b"next volume")
    drive.delete([fragment(number) for number in range(5)])
    pieces = []

    def stop(size: int) -> None:
        pieces.append(size)
        if len(pieces) == 2:
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError):
        compact(drive, budget=stop)
    drive.delete([fragment(5), fragment(6)])
    compact(drive, dead_ratio=0.01)
    drive.close()
    lose_index(tmp_path)
    drive = reopen(tmp_path)
    assert everything(drive) == {fragment(50): b"next volume"}
    drive.close()


def test_only_one_process_compacts(tmp_path: Path) -> None:
    drive = new_drive(tmp_path)
    other = reopen(tmp_path)
    fill(drive, 3)
    drive.delete([fragment(0), fragment(1)])
    busy = []
    compact(drive, budget=lambda _: busy.append(compact(other).busy))
    assert busy == [True]
    drive.close()
    other.close()


def test_volume_in_use_by_another_process_is_left_alone(tmp_path: Path) -> None:
    drive, other = new_drive(tmp_path), reopen(tmp_path)
    fill(drive, 3)
    drive.delete([fragment(0), fragment(1)])
    assert compact(other).volumes == 0
    assert get(other, fragment(2)) == content(2, 4_000)
    drive.close()
    assert compact(other).volumes == 1
    assert get(other, fragment(2)) == content(2, 4_000)
    other.close()


def test_needle_deleted_behind_a_slow_writer_stays_deleted_after_a_kill(tmp_path: Path) -> None:
    drive = new_drive(tmp_path)
    slow = drive.open_writer(fragment(1), 1_000)  # holds the replay's beginning back
    put(drive, fragment(2), b"deleted")
    put(drive, fragment(3), b"damaged")
    drive.seal(1)
    drive.delete([fragment(2)])  # the tombstone is in another volume
    put(drive, fragment(3), b"repaired")
    slow.abort()
    drive.close()
    drive = reopen(tmp_path)
    assert everything(drive) == {fragment(3): b"repaired"}
    drive.close()


# Loss


def test_volume_that_vanished_is_reported_and_its_needles_are_missing(tmp_path: Path) -> None:
    drive = new_drive(tmp_path, volume_size=32 * KIB)
    fill(drive, 14)
    drive.close()
    volume_files(tmp_path)[0].unlink()
    drive = reopen(tmp_path)
    assert drive.report.missing == 7
    assert sorted(everything(drive)) == [fragment(number) for number in range(7, 14)]
    with pytest.raises(FragmentMissing):
        drive.read_into(fragment(1), 0, [memoryview(bytearray(1))], nowait=False)
    drive.close()


def test_damaged_index_is_built_again(tmp_path: Path) -> None:
    drive = new_drive(tmp_path, volume_size=32 * KIB)
    fill(drive, 14)
    drive.delete([fragment(3)])
    expected = everything(drive)
    drive.close()
    (tmp_path / "index.sqlite").write_bytes(b"garbage" * 1_000)
    drive = reopen(tmp_path)
    assert drive.report.rebuilt
    assert everything(drive) == expected
    drive.close()


def test_index_is_not_rebuilt_under_another_process(tmp_path: Path) -> None:
    drive = new_drive(tmp_path)
    fill(drive, 2)
    (tmp_path / "index.sqlite").rename(tmp_path / "moved")
    with pytest.raises(DriveBusy):
        reopen(tmp_path)
    drive.close()
