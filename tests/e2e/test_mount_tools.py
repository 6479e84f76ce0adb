"""Programs on ``lode mount`` while others use the same bucket through ``lode serve``.

Three processes of ours on one store: the server, and the mount, each as its command starts it.
"""

from __future__ import annotations

import hashlib
import mmap
import os
import random
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from tests.support.clients import find_command
from tests.support.lode_mount import lode_mount
from tests.support.mounts import run
from tests.support.server import ROOT, Server, clean_environment

MIB = 1 << 20
SEEN_S = 60.0
READ_AHEAD_KB = 4096


@pytest.fixture(scope="module")
def tools_bucket(s3: Any) -> str:
    s3.create_bucket(Bucket="tools")
    return "tools"


@pytest.fixture(scope="module")
def top(store_folder: Path, tools_bucket: str) -> Iterator[Path]:
    with lode_mount(store_folder / "store", tools_bucket, store_folder / "mnt"):
        yield store_folder / "mnt"


@pytest.fixture
def place(top: Path, request: pytest.FixtureRequest) -> Path:
    """A directory of the test's own; its name is the prefix of its keys."""
    path = top / request.node.name.replace("[", "-").rstrip("]")
    path.mkdir()
    return path


def wait_until(check: Callable[[], bool]) -> None:
    deadline = time.monotonic() + SEEN_S
    while not check():
        assert time.monotonic() < deadline
        time.sleep(0.01)  # changes take a moment to reach the kernel


def content(seed: int, size: int) -> bytes:
    return random.Random(seed).randbytes(size)


def stored(s3: Any, bucket: str, key: str) -> bytes:
    body: bytes = s3.get_object(Bucket=bucket, Key=key)["Body"].read()
    return body


def test_the_kernel_reads_ahead_as_far_as_it_was_asked_to(top: Path) -> None:
    device = top.stat().st_dev
    setting = Path(f"/sys/class/bdi/{os.major(device)}:{os.minor(device)}/read_ahead_kb")
    assert int(setting.read_text()) == READ_AHEAD_KB


def test_what_is_closed_is_in_s3_and_what_is_put_is_in_the_folder(
    s3: Any, tools_bucket: str, place: Path
) -> None:
    for number, size in enumerate((0, 1, 4096, 300_000, 5 * MIB + 3)):
        data = content(number, size)
        with (place / f"mine{number}").open("wb") as file:
            file.write(data)
            if not data:
                # A file to which nothing was written is committed a moment after its close.
                os.fsync(file.fileno())
        key = f"{place.name}/mine{number}"
        found = s3.get_object(Bucket=tools_bucket, Key=key)
        assert found["Body"].read() == data
        assert found["ETag"].strip('"') == hashlib.md5(data, usedforsecurity=False).hexdigest()
        assert not (place / f"theirs{number}").exists()
        s3.put_object(Bucket=tools_bucket, Key=f"{place.name}/theirs{number}", Body=data)
        wait_until((place / f"theirs{number}").exists)
        assert (place / f"theirs{number}").read_bytes() == data
    s3.delete_object(Bucket=tools_bucket, Key=f"{place.name}/theirs0")
    wait_until(lambda: "theirs0" not in os.listdir(place))


def test_an_upload_in_parts_appears_when_it_is_complete(
    s3: Any, tools_bucket: str, place: Path
) -> None:
    key = f"{place.name}/parts"
    parts = [content(number, 5 * MIB + number) for number in range(3)]
    upload = s3.create_multipart_upload(Bucket=tools_bucket, Key=key)["UploadId"]
    named = {"Bucket": tools_bucket, "Key": key, "UploadId": upload}
    done = []
    for number, body in enumerate(parts, 1):
        etag = s3.upload_part(**named, PartNumber=number, Body=body)["ETag"]
        done.append({"PartNumber": number, "ETag": etag})
    assert os.listdir(place) == []
    s3.complete_multipart_upload(**named, MultipartUpload={"Parts": done})
    wait_until((place / "parts").exists)
    whole = b"".join(parts)
    assert (place / "parts").read_bytes() == whole
    with (place / "parts").open("rb") as file:
        border = len(parts[0])
        assert os.pread(file.fileno(), 10_000, border - 5000) == whole[border - 5000 :][:10_000]


def test_readers_see_whole_versions_while_s3_replaces_the_file(
    s3: Any, tools_bucket: str, place: Path
) -> None:
    """64 readers: each descriptor gives the bytes of one version, from its beginning to its end,
    by reading, by mapping and past the page cache."""
    key, size, versions = f"{place.name}/busy", 3 * MIB + 77, 12
    digests = {hashlib.sha256(content(seed, size)).digest() for seed in range(versions)}
    s3.put_object(Bucket=tools_bucket, Key=key, Body=content(0, size))
    wait_until((place / "busy").exists)
    written = threading.Event()

    def write() -> None:
        try:
            for seed in range(1, versions):
                s3.put_object(Bucket=tools_bucket, Key=key, Body=content(seed, size))
        finally:
            written.set()

    def read(number: int) -> tuple[int, int]:
        good = count = 0
        while count == 0 or not written.is_set():
            good += hashlib.sha256(_read_whole(place / "busy", number % 3)).digest() in digests
            count += 1
        return good, count

    with ThreadPoolExecutor(65) as pool:
        writer = pool.submit(write)
        readers = [pool.submit(read, number) for number in range(64)]
        writer.result()
        for reader in readers:
            good, count = reader.result()
            assert good == count
    last = content(versions - 1, size)
    wait_until(lambda: (place / "busy").read_bytes() == last)


def _read_whole(path: Path, way: int) -> bytes:
    flags = os.O_RDONLY | (os.O_DIRECT if way == 2 else 0)
    descriptor = _open(path, flags)
    try:
        match way:
            case 0:
                return b"".join(iter(lambda: os.read(descriptor, 300_000), b""))
            case 1:
                with mmap.mmap(descriptor, 0, prot=mmap.PROT_READ) as mapped:
                    return mapped[:]
            case _:
                buffer = mmap.mmap(-1, MIB)
                pieces = []
                while count := os.preadv(descriptor, [buffer], len(pieces) * MIB):
                    pieces.append(buffer[:count])
                return b"".join(pieces)
    finally:
        os.close(descriptor)


def _open(path: Path, flags: int) -> int:
    """Open as programs do that know network file systems: the kernel itself tries ESTALE once."""
    for _ in range(50):
        with suppress(OSError):
            return os.open(path, flags)
    return os.open(path, flags)


def test_direct_writes_are_stored(s3: Any, tools_bucket: str, place: Path) -> None:
    data = content(3, 2 * MIB)
    buffer = mmap.mmap(-1, MIB)
    flags = os.O_WRONLY | os.O_CREAT | os.O_DIRECT
    descriptor = os.open(place / "direct", flags, 0o644)
    try:
        for offset in (MIB, 0):
            buffer[:] = data[offset : offset + MIB]
            assert os.pwrite(descriptor, buffer, offset) == MIB
    finally:
        os.close(descriptor)
    assert stored(s3, tools_bucket, f"{place.name}/direct") == data


def test_a_shared_mapping_is_written_back(s3: Any, tools_bucket: str, place: Path) -> None:
    data = bytearray(content(4, MIB + 5))
    path = place / "mapped"
    path.write_bytes(data)
    with path.open("r+b") as file, mmap.mmap(file.fileno(), 0) as mapped:
        mapped[500_000:500_010] = b"0123456789"
        mapped.flush()
    data[500_000:500_010] = b"0123456789"
    assert path.read_bytes() == data
    assert stored(s3, tools_bucket, f"{place.name}/mapped") == data


@pytest.mark.parametrize("backup", ["yes", "no", "auto"])
def test_vim_saves(s3: Any, tools_bucket: str, place: Path, backup: str) -> None:
    """By a copy beside it, by renaming the old one away, and as vim sees fit; with a swap file."""
    path = place / "text"
    path.write_text("first\n")
    path.chmod(0o640)
    path.with_name("other").write_text("")
    vim = find_command("vim" if shutil.which("vim") else "vim.tiny")
    settings = f"set nocompatible swapfile writebackup backupcopy={backup} fsync"
    for number in range(3):
        change = f"$s/$/\\rline {number}/"
        run(vim, "-u", "NONE", "-es", "-c", settings, "-c", change, "-c", "wq", str(path))
    expected = "first\nline 0\nline 1\nline 2\n"
    assert path.read_text() == expected
    assert stored(s3, tools_bucket, f"{place.name}/text") == expected.encode()
    assert path.stat().st_mode & 0o777 == 0o640
    assert sorted(os.listdir(place)) == ["other", "text"]
    listed = s3.list_objects_v2(Bucket=tools_bucket, Prefix=f"{place.name}/")["Contents"]
    assert {entry["Key"] for entry in listed} - {f"{place.name}/"} == {
        f"{place.name}/other",
        f"{place.name}/text",
    }


def test_a_tree_goes_in_by_tar_and_comes_out_through_s3(
    s3: Any, tools_bucket: str, place: Path, tmp_path: Path
) -> None:
    source = ROOT / "engine" / "meta"
    shown = {path.relative_to(source).as_posix(): path.read_bytes() for path in source.glob("*.py")}
    script = 'tar cf - -C "$0" --exclude=__pycache__ . | tar xf - -C "$1"'
    run("bash", "-c", script, str(source), str(place))
    listed = s3.list_objects_v2(Bucket=tools_bucket, Prefix=f"{place.name}/")["Contents"]
    keys = [entry["Key"] for entry in listed if not entry["Key"].endswith("/")]
    found = {key.removeprefix(f"{place.name}/"): stored(s3, tools_bucket, key) for key in keys}
    assert found == shown


PYTHON_CASES = {
    "test.test_shutil": ["TestCopyTree", "TestCopy", "TestCopyFile", "TestMove", "TestRmTree"],
    "test.test_os": [
        "FileTests",
        "StatAttributeTests",
        "WalkTests",
        "FwalkTests",
        "MakedirTests",
        "RemoveDirsTests",
        "TestScandir",
    ],
}


@pytest.mark.parametrize("module", PYTHON_CASES)
def test_what_python_tests_of_itself_holds(place: Path, module: str) -> None:
    """CPython's own tests, with their temporary files in the mount."""
    if subprocess.run([sys.executable, "-c", f"import {module}"], check=False).returncode:
        pytest.skip("this Python comes without its tests")
    names = [f"{module}.{name}" for name in PYTHON_CASES[module]]
    done = subprocess.run(
        [sys.executable, "-m", "unittest", *names],
        cwd=place,
        env={**clean_environment(), "TMPDIR": str(place)},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-6000:]


def test_the_server_has_nothing_to_complain_of(server: Server, top: Path) -> None:
    assert server.troubles == []
