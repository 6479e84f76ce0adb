"""Reading through a mount whose nodes are slow, as those of other machines are, or go meanwhile."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import trio

from engine.config import Profile, StoreConfig
from engine.opening import open_engine, prepare_store
from tests.support.engine import pattern, put
from tests.support.mounts import Mount, mounted

MIB = 1 << 20
SIZE = 48 * MIB
DATA = pattern(SIZE, 1)
DELAY_S = 0.005
READS = SIZE // MIB


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """The folder of a store on six drives, 4+2, with the object ``large``."""

    async def main() -> None:
        drives = tuple(tmp_path / f"drive{number}" for number in range(1, 7))
        profile = Profile.parse("4+2")
        config = StoreConfig(
            data=tmp_path / "store", drives=drives, profile=profile, services=False
        )
        config.data.mkdir()
        await prepare_store(config)
        async with open_engine(config) as engine:
            await engine.create_bucket("bucket", owner="owner")
            await put(engine, "bucket", "large", DATA)

    trio.run(main)
    return tmp_path / "store"


def pieces(descriptor: int) -> Iterator[bytes]:
    """Read on to the end, 1 MiB at a time."""
    while piece := os.read(descriptor, MIB):
        yield piece


def append_all(content: bytearray, reading: Iterator[bytes]) -> None:
    for piece in reading:
        content += piece


def lose_nodes(mount: Mount, count: int) -> None:
    """Let so many nodes be gone, and return when they are."""
    deadline = time.monotonic() + 120.0
    for number in range(1, count + 1):
        mount.process.send_signal(signal.SIGUSR1)
        while sum(entry["event"] == "node lost" for entry in mount.log) < number:
            assert time.monotonic() < deadline
            time.sleep(0.01)  # another process is waited for


def nodes_of(mount: Mount) -> list[dict[str, Any]]:
    """Return what a mount that has ended says of its nodes."""
    return [entry for entry in mount.log if entry["event"] == "node"]


def test_every_node_is_slow(store: Path, tmp_path: Path) -> None:
    with mounted(store, tmp_path / "mnt", delay_s=DELAY_S) as mount:
        descriptor = os.open(mount.path / "large", os.O_RDONLY)
        try:
            assert b"".join(pieces(descriptor)) == DATA
            chance = random.Random(1)
            for _ in range(20):
                offset = chance.randrange(SIZE)
                assert os.pread(descriptor, 9000, offset) == DATA[offset : offset + 9000]
        finally:
            os.close(descriptor)
        assert mount.stop() == 0
    assert mount.troubles == []
    # Both patience with nodes that are all alike and reading ahead: no node is asked much more
    # often than there are batches, and those that were asked for parity hardly at all.
    asked = sorted(node["calls"] for node in nodes_of(mount))
    assert len(asked) == 6
    assert 0 < asked[-1] < READS + 40


@pytest.mark.parametrize("lost", [1, 2])
def test_nodes_go_while_a_file_is_read(store: Path, tmp_path: Path, lost: int) -> None:
    with mounted(store, tmp_path / "mnt", delay_s=DELAY_S) as mount:
        descriptor = os.open(mount.path / "large", os.O_RDONLY)
        try:
            reading = pieces(descriptor)
            begun = b"".join(next(reading) for _ in range(5))
            lose_nodes(mount, lost)
            assert begun + b"".join(reading) == DATA
        finally:
            os.close(descriptor)
        # And for who opens it afterwards.
        with (mount.path / "large").open("rb", buffering=0) as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            assert b"".join(iter(lambda: file.read(MIB), b"")) == DATA
        assert mount.stop() == 0
    assert {entry["event"] for entry in mount.troubles} <= {"damage found"}
    gone = [node for node in nodes_of(mount) if node["gone"]]
    assert len(gone) == lost
    # Once it is known to be gone it is left alone: no request waits for it again and again.
    assert all(node["refused"] <= 8 for node in gone), gone


def test_too_many_nodes_gone_is_an_error_and_never_wrong_bytes(store: Path, tmp_path: Path) -> None:
    with mounted(store, tmp_path / "mnt", delay_s=DELAY_S) as mount:
        descriptor = os.open(mount.path / "large", os.O_RDONLY)
        try:
            reading = pieces(descriptor)
            begun = b"".join(next(reading) for _ in range(3))
            lose_nodes(mount, 3)
            got = bytearray(begun)
            with pytest.raises(OSError, match="Input/output error"):
                append_all(got, reading)
            assert got == DATA[: len(got)]
        finally:
            os.close(descriptor)
        # The mount lives on.
        assert os.listdir(mount.path) == ["large"]
        assert mount.stop() == 0
