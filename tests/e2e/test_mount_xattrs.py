"""Extended attributes of files in a mount: what S3 knows, and user metadata that can be set."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from engine.engine import Engine
from tests.support.mounts import Mount, ask, mounted


def refused(number: int, call: Callable[..., object], *arguments: object) -> None:
    with pytest.raises(OSError) as failed:
        call(*arguments)
    assert errno.errorcode[failed.value.errno or 0] == errno.errorcode[number]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("xattrs") / "store"


@pytest.fixture(scope="module")
def mount(data: Path) -> Iterator[Mount]:
    with mounted(data, data.with_name("mnt"), xattr=True) as mount:
        yield mount
        assert mount.stop() == 0
    assert mount.troubles == []


def metadata(data: Path, key: str) -> dict[str, str]:
    async def question(engine: Engine) -> dict[str, str]:
        return dict((await engine.head("bucket", key)).record.metadata)

    return ask(data, question)


def test_what_s3_knows_is_shown_and_user_metadata_can_be_set(mount: Mount, data: Path) -> None:
    file = mount.path / "file.txt"
    file.write_bytes(b"x")
    names = os.listxattr(file)
    assert {"user.s3.etag", "user.s3.content-type", "user.s3.checksum.crc64nvme"} <= set(names)
    assert os.getxattr(file, "user.s3.content-type") == b"text/plain"
    os.setxattr(file, "user.s3.metadata.colour", b"red")
    assert os.getxattr(file, "user.s3.metadata.colour") == b"red"
    assert metadata(data, "file.txt")["colour"] == "red"
    os.removexattr(file, "user.s3.metadata.colour")
    refused(errno.ENODATA, os.getxattr, file, "user.s3.metadata.colour")
    refused(errno.ENODATA, os.removexattr, file, "user.s3.metadata.colour")
    refused(errno.ENODATA, os.getxattr, file, "user.other")
    refused(errno.ENOTSUP, os.setxattr, file, "user.s3.etag", b"x")
    refused(errno.ENOTSUP, os.removexattr, file, "user.s3.etag")
    refused(errno.ENOTSUP, os.setxattr, file, "user.other", b"x")
    refused(errno.ENOSPC, os.setxattr, file, "user.s3.metadata.long", b"x" * 2048)


def test_user_metadata_is_what_a_header_of_s3_can_be(mount: Mount, data: Path) -> None:
    file = mount.path / "file"
    file.write_bytes(b"x")
    for name in ("a b", "a:b", "a\nb", "a/b", "\xe9", ""):
        refused(errno.ENOTSUP, os.setxattr, file, f"user.s3.metadata.{name}", b"x")
    for value in (b"a\nb", b"\x7f", b"a\0"):
        refused(errno.EINVAL, os.setxattr, file, "user.s3.metadata.name", value)
    os.setxattr(file, "user.s3.metadata.Upper", "日本".encode())
    assert os.getxattr(file, "user.s3.metadata.uPPer") == "日本".encode()
    assert metadata(data, "file")["upper"].encode("latin-1") == "日本".encode()
    os.removexattr(file, "user.s3.metadata.UPPER")
    assert "upper" not in metadata(data, "file")


def test_what_is_set_while_a_file_is_written_is_kept(mount: Mount, data: Path) -> None:
    descriptor = os.open(mount.path / "file", os.O_CREAT | os.O_RDWR)
    os.setxattr(descriptor, "user.s3.metadata.new", b"1")
    assert os.getxattr(descriptor, "user.s3.metadata.new") == b"1"
    os.write(descriptor, b"x")
    os.fsync(descriptor)
    assert metadata(data, "file")["new"] == "1"
    os.setxattr(descriptor, "user.s3.metadata.saved", b"2")
    os.removexattr(descriptor, "user.s3.metadata.new")
    assert metadata(data, "file").keys() >= {"saved"}
    os.write(descriptor, b"y")
    os.setxattr(descriptor, "user.s3.metadata.written", b"3")
    os.close(descriptor)
    kept = metadata(data, "file")
    assert {name: kept.get(name) for name in ("new", "saved", "written")} == {
        "new": None,
        "saved": "2",
        "written": "3",
    }


def test_they_are_off_by_default(tmp_path: Path) -> None:
    with mounted(tmp_path / "store", tmp_path / "mnt") as mount:
        (mount.path / "file").write_bytes(b"x")
        refused(errno.ENOTSUP, os.getxattr, mount.path / "file", "user.s3.etag")
        refused(errno.ENOTSUP, os.setxattr, mount.path / "file", "user.s3.metadata.a", b"x")
