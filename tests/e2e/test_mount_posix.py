"""What POSIX says of open, mkdir, rmdir, unlink, rename and truncate, checked on a real mount in
the manner of pjdfstest; where the mount differs on purpose, the test says so."""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.mounts import Mount, mounted

LIBC = ctypes.CDLL(None, use_errno=True)
NOREPLACE, EXCHANGE = 1, 2


@pytest.fixture(scope="module")
def mount(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mount]:
    folder = tmp_path_factory.mktemp("posix")
    with mounted(folder / "store", folder / "mnt") as mount:
        yield mount
        assert mount.stop() == 0
    assert mount.troubles == []


@pytest.fixture
def place(mount: Mount) -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(dir=mount.path))
    yield path
    shutil.rmtree(path)


def refused(number: int, call: Callable[..., object], *arguments: object) -> None:
    """Assert that the call fails with this errno."""
    with pytest.raises(OSError) as failed:
        call(*arguments)
    assert errno.errorcode[failed.value.errno or 0] == errno.errorcode[number]


def rename2(old: Path, new: Path, flags: int) -> None:
    done = LIBC.renameat2(-100, os.fsencode(old), -100, os.fsencode(new), flags)
    if done:
        raise OSError(ctypes.get_errno(), "renameat2")


READS, WRITES, BOTH = os.O_RDONLY, os.O_WRONLY, os.O_RDWR


@pytest.mark.parametrize("exists", [False, True])
@pytest.mark.parametrize("access", [READS, WRITES, BOTH])
@pytest.mark.parametrize("create", [0, os.O_CREAT, os.O_CREAT | os.O_EXCL])
@pytest.mark.parametrize("truncate", [0, os.O_TRUNC])
@pytest.mark.parametrize("append", [0, os.O_APPEND])
def test_every_combination_of_open_flags_does_what_a_local_file_does(
    place: Path,
    tmp_path: Path,
    *,
    exists: bool,
    access: int,
    create: int,
    truncate: int,
    append: int,
) -> None:
    if access == READS and truncate:
        pytest.skip("POSIX leaves it undefined")
    seen = []
    for folder in (tmp_path, place):
        path = folder / "file"
        if exists:
            path.write_bytes(b"0123456789")
        steps: list[object] = []
        try:
            descriptor = os.open(path, access | create | truncate | append, 0o640)
        except OSError as error:
            steps.append(error.errno)
        else:
            calls: list[Callable[[], object]] = [
                lambda d=descriptor: os.fstat(d).st_size,  # type: ignore[misc]
                lambda d=descriptor: os.read(d, 4),  # type: ignore[misc]
                lambda d=descriptor: os.write(d, b"abc"),  # type: ignore[misc]
                lambda d=descriptor: os.lseek(d, 0, os.SEEK_CUR),  # type: ignore[misc]
                lambda d=descriptor: os.pread(d, 100, 1),  # type: ignore[misc]
                lambda d=descriptor: os.ftruncate(d, 6),  # type: ignore[misc]
                lambda d=descriptor: os.fstat(d).st_size,  # type: ignore[misc]
                lambda d=descriptor: os.fsync(d),  # type: ignore[misc]
            ]
            for call in calls:
                try:
                    steps.append(call())
                except OSError as error:
                    steps.append(-(error.errno or 0))
            os.close(descriptor)
        steps.append(path.read_bytes() if path.exists() else None)
        steps.append(stat.filemode(path.stat().st_mode) if path.exists() else None)
        seen.append(steps)
    assert seen[1] == seen[0]


def test_open_errors(place: Path) -> None:
    (place / "dir").mkdir()
    (place / "file").write_bytes(b"")
    refused(errno.ENOENT, os.open, place / "absent", os.O_RDONLY)
    refused(errno.ENOENT, os.open, place / "absent/file", os.O_CREAT | os.O_WRONLY)
    refused(errno.ENOTDIR, os.open, place / "file/below", os.O_CREAT | os.O_WRONLY)
    refused(errno.EISDIR, os.open, place / "dir", os.O_WRONLY)
    refused(errno.EEXIST, os.open, place / "dir", os.O_CREAT | os.O_EXCL | os.O_WRONLY)
    refused(errno.ENAMETOOLONG, os.open, place / ("x" * 256), os.O_CREAT | os.O_WRONLY)
    refused(errno.ENOTDIR, os.open, place / "file", os.O_RDONLY | os.O_DIRECTORY)
    os.symlink("loop", place / "loop")
    refused(errno.ELOOP, os.open, place / "loop", os.O_RDONLY)
    refused(errno.ELOOP, os.open, place / "loop", os.O_RDONLY | os.O_NOFOLLOW)


def test_a_new_file_is_there_before_it_is_closed(place: Path) -> None:
    with (place / "new").open("wb", buffering=0) as file:
        file.write(b"12345")
        assert (place / "new").stat().st_size == 5
        assert os.listdir(place) == ["new"]
        assert (place / "new").read_bytes() == b"12345"
        file.write(b"6")
        assert os.fstat(file.fileno()).st_size == 6
        refused(errno.EEXIST, (place / "new").open, "x")
        refused(errno.ENOTEMPTY, os.rmdir, place)
    assert (place / "new").read_bytes() == b"123456"


def test_two_descriptors_of_a_file_see_one_content(place: Path) -> None:
    path = place / "file"
    path.write_bytes(b"aaaaa")
    with path.open("r+b", buffering=0) as one, path.open("r+b", buffering=0) as other:
        one.write(b"bb")
        assert other.read() == b"bbaaa"
        other.seek(4)
        other.write(b"cc")
        assert os.pread(one.fileno(), 10, 0) == b"bbaacc"
    assert path.read_bytes() == b"bbaacc"


def test_reader_opened_before_sees_what_is_written_in_place(place: Path) -> None:
    path = place / "file"
    path.write_bytes(b"before")
    with path.open("rb", buffering=0) as reader:
        with path.open("r+b", buffering=0) as writer:
            writer.write(b"AFTER!")
            assert os.pread(reader.fileno(), 10, 0) == b"AFTER!"
        assert os.pread(reader.fileno(), 10, 0) == b"AFTER!"


def test_mkdir_and_rmdir(place: Path) -> None:
    os.mkdir(place / "dir", 0o750)
    assert (place / "dir").stat().st_mode == stat.S_IFDIR | 0o750
    refused(errno.EEXIST, os.mkdir, place / "dir")
    refused(errno.ENOENT, os.mkdir, place / "absent/dir")
    (place / "file").write_bytes(b"")
    refused(errno.EEXIST, os.mkdir, place / "file")
    refused(errno.ENOTDIR, os.mkdir, place / "file/dir")
    refused(errno.ENOTDIR, os.rmdir, place / "file")
    refused(errno.ENOENT, os.rmdir, place / "absent")
    (place / "dir/below").mkdir()
    refused(errno.ENOTEMPTY, os.rmdir, place / "dir")
    refused(errno.EINVAL, os.rmdir, f"{place}/dir/.")
    os.rmdir(place / "dir/below")
    os.rmdir(place / "dir")
    assert not (place / "dir").exists()


def test_a_directory_stays_when_it_becomes_empty(place: Path) -> None:
    (place / "dir").mkdir()
    (place / "dir/file").write_bytes(b"x")
    (place / "dir/file").unlink()
    assert os.listdir(place / "dir") == []
    (place / "dir/file").write_bytes(b"x")
    (place / "dir/file").rename(place / "file")
    assert os.listdir(place / "dir") == []


def test_unlink(place: Path) -> None:
    (place / "dir").mkdir()
    (place / "file").write_bytes(b"x")
    refused(errno.EISDIR, os.unlink, place / "dir")
    refused(errno.ENOENT, os.unlink, place / "absent")
    refused(errno.ENOTDIR, os.unlink, place / "file/below")
    os.symlink("file", place / "link")
    os.unlink(place / "link")
    assert (place / "file").exists()


@pytest.mark.parametrize("saved", [False, True])
def test_an_unlinked_file_lives_until_it_is_closed(place: Path, saved: bool) -> None:
    path = place / "file"
    descriptor = os.open(path, os.O_CREAT | os.O_RDWR)
    os.write(descriptor, b"12345")
    if saved:
        os.fsync(descriptor)
    os.unlink(path)
    assert not path.exists()
    assert os.fstat(descriptor).st_nlink == 0
    os.write(descriptor, b"678")
    assert os.pread(descriptor, 100, 0) == b"12345678"
    path.write_bytes(b"another")
    assert os.pread(descriptor, 100, 0) == b"12345678"
    os.ftruncate(descriptor, 2)
    assert os.fstat(descriptor).st_size == 2
    os.close(descriptor)
    assert path.read_bytes() == b"another"
    path.unlink()
    assert os.listdir(place) == []


def test_a_reader_keeps_an_unlinked_file(place: Path) -> None:
    path = place / "file"
    data = os.urandom(1_000_000)
    path.write_bytes(data)
    with path.open("rb") as reader:
        path.unlink()
        assert reader.read() == data


def test_rename_of_files(place: Path) -> None:
    (place / "one").write_bytes(b"one")
    (place / "two").write_bytes(b"two")
    inode = (place / "one").stat().st_ino
    os.rename(place / "one", place / "two")
    assert os.listdir(place) == ["two"]
    assert (place / "two").read_bytes() == b"one"
    assert (place / "two").stat().st_ino == inode
    os.rename(place / "two", place / "two")
    (place / "dir").mkdir()
    refused(errno.EISDIR, os.rename, place / "two", place / "dir")
    refused(errno.ENOENT, os.rename, place / "absent", place / "new")
    refused(errno.ENOENT, os.rename, place / "two", place / "absent/new")
    refused(errno.ENOTDIR, os.rename, place / "two", place / "two/below")
    os.rename(place / "two", place / "dir/two")
    assert (place / "dir/two").read_bytes() == b"one"


def test_rename_of_directories(place: Path) -> None:
    (place / "a/b").mkdir(parents=True)
    (place / "a/file").write_bytes(b"file")
    (place / "a/b/deep").write_bytes(b"deep")
    (place / "empty").mkdir()
    (place / "full").mkdir()
    (place / "full/file").write_bytes(b"")
    (place / "plain").write_bytes(b"")
    refused(errno.EINVAL, os.rename, place / "a", place / "a/b/c")
    refused(errno.ENOTEMPTY, os.rename, place / "a", place / "full")
    refused(errno.ENOTEMPTY, os.rename, place / "a/b", place / "a")
    refused(errno.ENOTDIR, os.rename, place / "a", place / "plain")
    os.rename(place / "a", place / "empty")
    os.rename(place / "empty", place / "new")
    assert (place / "new/file").read_bytes() == b"file"
    assert (place / "new/b/deep").read_bytes() == b"deep"
    assert sorted(os.listdir(place)) == ["full", "new", "plain"]


def test_rename_flags(place: Path) -> None:
    (place / "one").write_bytes(b"one")
    (place / "two").write_bytes(b"two")
    refused(errno.EEXIST, rename2, place / "one", place / "two", NOREPLACE)
    rename2(place / "one", place / "three", NOREPLACE)
    # Deviation: two names are never exchanged.
    refused(errno.EINVAL, rename2, place / "two", place / "three", EXCHANGE)
    assert (place / "three").read_bytes() == b"one"


def test_an_open_directory_follows_a_rename(place: Path) -> None:
    (place / "above/dir").mkdir(parents=True)
    (place / "above/dir/one").touch()
    descriptor = os.open(place / "above/dir", os.O_RDONLY | os.O_DIRECTORY)
    assert os.listdir(descriptor) == ["one"]
    os.rename(place / "above", place / "other")
    (place / "other/dir/two").touch()
    assert sorted(os.listdir(descriptor)) == ["one", "two"]
    os.close(descriptor)


def test_what_is_mapped_is_written_in_its_place_also_by_a_descriptor_that_appends(
    place: Path,
) -> None:
    path = place / "file"
    path.write_bytes(bytes(10_000))
    with path.open("r+b") as file, path.open("ab", buffering=0) as log:
        log.write(b"one")
        with mmap.mmap(file.fileno(), 10_000) as view:
            view[3:5] = view[9998:10_000] = b"MM"
        log.write(b"two")
    with path.open("a+b", buffering=0) as file, mmap.mmap(file.fileno(), 10_006) as view:
        view[0:2] = b"MM"
    assert path.read_bytes() == b"MM\0MM" + bytes(9993) + b"MM" + b"onetwo"


@pytest.mark.parametrize("size", [1000, 300_000, 3_000_000])
@pytest.mark.parametrize("how", ["unlinked", "replaced"])
def test_a_committed_file_without_a_name_is_read_on(place: Path, size: int, how: str) -> None:
    path, other, data = place / "file", place / "other", os.urandom(size)
    other.write_bytes(b"other")
    with path.open("w+b", buffering=0) as file:
        for first in range(0, size, 100_000):
            file.write(data[first : first + 100_000])
        os.fsync(file.fileno())
        if how == "unlinked":
            path.unlink()
        else:
            other.rename(path)
        assert os.pread(file.fileno(), size + 1, 0) == data
        os.pwrite(file.fileno(), b"X", 10)
        assert os.pread(file.fileno(), 20, 0) == data[:10] + b"X" + data[11:20]


def test_open_files_follow_a_rename(place: Path) -> None:
    (place / "dir").mkdir()
    with (place / "dir/file").open("wb", buffering=0) as file:
        file.write(b"before ")
        os.rename(place / "dir/file", place / "dir/moved")
        file.write(b"between ")
        os.rename(place / "dir", place / "other")
        file.write(b"after")
    assert os.listdir(place / "other") == ["moved"]
    assert (place / "other/moved").read_bytes() == b"before between after"


def test_a_replaced_open_file_lives_until_it_is_closed(place: Path) -> None:
    (place / "new").write_bytes(b"new")
    with (place / "old").open("w+b", buffering=0) as old:
        old.write(b"old")
        os.rename(place / "new", place / "old")
        assert (place / "old").read_bytes() == b"new"
        old.write(b"er")
        assert os.pread(old.fileno(), 10, 0) == b"older"
    assert (place / "old").read_bytes() == b"new"


@pytest.mark.parametrize("access", [READS, BOTH])
@pytest.mark.parametrize("replaced", [False, True])
def test_attributes_of_an_open_file_without_a_name_are_its_own(
    place: Path, access: int, replaced: bool
) -> None:
    path, other = place / "file", place / "other"
    path.write_bytes(b"old")
    descriptor = os.open(path, access)
    if replaced:
        other.write_bytes(b"new")
        other.rename(path)
    else:
        path.unlink()
        path.write_bytes(b"new")
    again = os.open(f"/proc/self/fd/{descriptor}", access)
    assert os.read(again, 10) == b"old"
    os.close(again)
    os.fchmod(descriptor, 0o600)
    os.fchown(descriptor, 12, 34)
    os.utime(descriptor, ns=(5, 5))
    found = os.fstat(descriptor)
    assert (found.st_mode, found.st_uid, found.st_gid) == (stat.S_IFREG | 0o600, 12, 34)
    assert (found.st_mtime_ns, found.st_size, found.st_nlink) == (5, 3, 0)
    os.close(descriptor)
    shown = path.stat()
    assert (shown.st_mode, shown.st_uid, shown.st_gid) == (stat.S_IFREG | 0o644, 0, 0)
    assert shown.st_mtime_ns > 5
    assert path.read_bytes() == b"new"


def test_a_removed_directory_that_is_open_is_empty_and_does_not_come_back(place: Path) -> None:
    (place / "dir").mkdir()
    descriptor = os.open(place / "dir", os.O_RDONLY | os.O_DIRECTORY)
    os.rmdir(place / "dir")
    assert os.fstat(descriptor).st_nlink == 0
    assert os.listdir(descriptor) == []
    os.fchmod(descriptor, 0o700)
    os.utime(descriptor, ns=(5, 5))
    with pytest.raises(FileNotFoundError):
        os.open("file", os.O_CREAT | os.O_WRONLY, dir_fd=descriptor)
    os.close(descriptor)
    assert os.listdir(place) == []


@pytest.mark.parametrize("size", [0, 1, 1000, 300_000, 2_000_000])
@pytest.mark.parametrize("target", [0, 1, 999, 262_144, 3_000_000])
def test_truncate(place: Path, size: int, target: int) -> None:
    data = os.urandom(size)
    (place / "file").write_bytes(data)
    os.truncate(place / "file", target)
    expected = data[:target].ljust(target, b"\0")
    assert (place / "file").stat().st_size == target
    assert (place / "file").read_bytes() == expected


def test_truncate_errors(place: Path) -> None:
    (place / "dir").mkdir()
    (place / "file").write_bytes(b"x")
    refused(errno.EISDIR, os.truncate, place / "dir", 0)
    refused(errno.ENOENT, os.truncate, place / "absent", 0)
    refused(errno.EINVAL, os.truncate, place / "file", -1)


def test_symbolic_links(place: Path) -> None:
    os.symlink("target", place / "link")
    assert os.readlink(place / "link") == "target"
    assert stat.S_ISLNK(os.lstat(place / "link").st_mode)
    refused(errno.EEXIST, os.symlink, "other", place / "link")
    (place / "target").write_bytes(b"x")
    assert (place / "link").read_bytes() == b"x"
    refused(errno.EINVAL, os.readlink, place / "target")
    os.symlink("x" * 4000, place / "long")
    assert os.readlink(place / "long") == "x" * 4000
    os.rename(place / "link", place / "moved")
    assert os.readlink(place / "moved") == "target"


def test_mode_owner_and_times_are_kept(place: Path) -> None:
    path = place / "file"
    path.write_bytes(b"x")
    os.chmod(path, 0o4751)
    os.chown(path, 1234, 5678)
    os.utime(path, ns=(5, -1_500_000_001))
    found = path.stat()
    assert (stat.S_IMODE(found.st_mode) & 0o777, found.st_uid, found.st_gid) == (0o751, 1234, 5678)
    assert found.st_mtime_ns == -1_500_000_001
    os.utime(path, ns=(5, 32_503_680_000_000_000_007))  # in the year 3000
    assert path.stat().st_mtime_ns == 32_503_680_000_000_000_007
    (place / "dir").mkdir()
    os.chmod(place / "dir", 0o700)
    os.utime(place / "dir", ns=(5, 7))
    found = (place / "dir").stat()
    assert (found.st_mode, found.st_mtime_ns) == (stat.S_IFDIR | 0o700, 7)
    descriptor = os.open(path, os.O_RDWR)
    os.write(descriptor, b"y")
    os.utime(descriptor, ns=(1, 42))
    os.fchmod(descriptor, 0o600)
    os.close(descriptor)
    found = path.stat()
    assert (found.st_mode, found.st_mtime_ns) == (stat.S_IFREG | 0o600, 42)


def test_writing_moves_the_time(place: Path) -> None:
    path = place / "file"
    path.write_bytes(b"x")
    os.utime(path, ns=(0, 0))
    with path.open("ab") as file:
        file.write(b"y")
    assert path.stat().st_mtime_ns > 1_000_000_000_000_000_000


def test_what_the_mount_does_not_do(place: Path) -> None:
    # Deviations: one name per file; no devices, pipes or sockets.
    (place / "file").write_bytes(b"")
    refused(errno.EPERM, os.link, place / "file", place / "other")
    refused(errno.EPERM, os.mkfifo, place / "pipe")
    refused(errno.EPERM, os.mknod, place / "device", stat.S_IFCHR | 0o600, os.makedev(1, 3))
    os.mknod(place / "plain", stat.S_IFREG | 0o604)
    assert (place / "plain").stat().st_mode == stat.S_IFREG | 0o604
