"""A file in a mount that somebody else replaces faster than it can be opened."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path

import pytest
import trio

from engine.config import StoreConfig
from engine.engine import Engine
from engine.opening import open_engine
from tests.support.engine import put
from tests.support.mounts import mounted

OPENERS = 4
OPENS = 150
KEPT_OPEN = 3


def version(number: int) -> bytes:
    """Versions have different sizes, and say throughout which one they are."""
    return b"%07d" % number * (number % 5 + 1)


def open_again_and_again(path: Path, flags: int) -> None:
    """Open it, while some that were opened before are open yet; each is read whole."""
    descriptors: list[int] = []
    for _ in range(OPENS):
        descriptors.append(os.open(path, flags))
        if len(descriptors) > KEPT_OPEN:
            read_whole(descriptors.pop(0))
    for descriptor in descriptors:
        read_whole(descriptor)


def read_whole(descriptor: int) -> None:
    content = os.read(descriptor, 1000)
    assert os.fstat(descriptor).st_size == len(content)
    assert content == version(int(content[:7]))
    os.close(descriptor)


async def replace_until(engine: Engine, opened: trio.Event) -> None:
    number = 0
    while not opened.is_set():
        await put(engine, "bucket", "file", version(number))
        number += 1


@pytest.mark.parametrize("flags", [os.O_RDONLY, os.O_RDWR])
def test_it_can_be_opened_every_time_and_each_time_is_one_version(
    tmp_path: Path, flags: int
) -> None:
    async def main() -> None:
        async with open_engine(StoreConfig(data=tmp_path / "store", services=False)) as engine:
            await put(engine, "bucket", "file", version(0))
            opened = trio.Event()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(replace_until, engine, opened)
                try:
                    async with trio.open_nursery() as openers:
                        for _ in range(OPENERS):
                            work = partial(open_again_and_again, mount.path / "file", flags)
                            openers.start_soon(trio.to_thread.run_sync, work)
                finally:
                    opened.set()

    with mounted(tmp_path / "store", tmp_path / "mnt") as mount:
        trio.run(main)
        assert mount.stop() == 0
        assert mount.troubles == []
