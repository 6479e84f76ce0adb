"""A whole store whose disks refuse one call, or all from some moment on: each sync, each write.

What was acknowledged stays; what failed is old or new and whole; the error says what is wrong; and
after the next start the store is as good as ever."""

from __future__ import annotations

import errno
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import apsw
import pytest

from engine.engine import Engine
from engine.errors import NoSpace, NoSuchKey, StorageError, Unavailable
from engine.meta.kv import MetadataFailed
from engine.services.repair import repair_queue
from engine.types import Attributes, CompletePart
from tests.support.crash import SESSION_S, check_settled, set_reserve_aside, store_in
from tests.support.disk import Fault, FaultDisk
from tests.support.engine import (
    Folder,
    ManualClock,
    SeededRandom,
    part_size_min,
    pattern,
    put,
    put_part,
    read,
    scratch_folder,
)
from tests.support.kv import FaultVfs
from tests.support.logs import Logs

SIZES = {"record": 50, "row": 700, "copies": 3_000, "coded": 20_000, "chunks": 80_000}
LOGGED = (
    "damage found|drive absent|garbage stays|session not closed|session not renewed"
    "|chunk not repaired|fragment|commit|not deleted"
)
Contents = dict[str, bytes | None]


@dataclass
class Use:
    """Uses a store and keeps account of what each key may hold."""

    opened: Engine
    sure: Contents
    unsure: dict[str, list[bytes | None]] = field(default_factory=dict)
    """What keys may hold besides: calls that failed may have had their effect."""
    errors: list[StorageError] = field(default_factory=list)

    async def attempt(self, key: str, after: bytes | None, call: Awaitable[object]) -> bool:
        try:
            await call
        except StorageError as error:
            self.errors.append(error)
            self.unsure.setdefault(key, []).append(after)
            return False
        self.sure[key] = after
        self.unsure.pop(key, None)
        return True

    async def put(self, key: str, size: int, seed: int) -> bool:
        data = pattern(size, seed)
        return await self.attempt(key, data, put(self.opened, "plain", key, data))

    async def delete(self, key: str) -> bool:
        return await self.attempt(key, None, self.opened.delete("plain", key))

    async def upload(self, key: str) -> bool:
        parts = [pattern(SIZES["coded"], 8), pattern(SIZES["copies"], 8)]
        return await self.attempt(key, b"".join(parts), self._upload(key, parts))

    async def _upload(self, key: str, parts: list[bytes]) -> None:
        info = await self.opened.create_upload("plain", key, attributes=Attributes())
        done = [
            await put_part(self.opened, "plain", key, info.upload_id, number, data)
            for number, data in enumerate(parts, 1)
        ]
        listed = [CompletePart(part.number, part.etag, []) for part in done]
        with part_size_min(1):
            await self.opened.complete_upload("plain", key, info.upload_id, listed)

    async def run(self) -> None:
        for key, size in SIZES.items():
            await self.put(f"new {key}", size, 1)
        await self.put("coded", SIZES["coded"], 2)
        await self.put("row", SIZES["copies"], 2)
        await self.upload("chunks")
        await self.delete("copies")
        await check(self.opened, self)


async def content(opened: Engine, key: str) -> bytes | None:
    try:
        return await read(opened, "plain", key)
    except NoSuchKey:
        return None


async def check(opened: Engine, use: Use) -> None:
    """Each key holds what was acknowledged, or what a call that failed may have left."""
    listed = {item.key for item in (await opened.list_objects("plain")).objects}
    for key in use.sure.keys() | use.unsure.keys():
        found = await content(opened, key)
        assert found in [use.sure.get(key), *use.unsure.get(key, [])], key
        assert (found is not None) == (key in listed), key


class Store:
    """Copies of one store, each used under a fault of its own."""

    def __init__(self, scratch: Path) -> None:
        self._base = scratch / "base"
        self._copy = scratch / "copy"
        self._clock = ManualClock()

    def _folder(self, path: Path, **settings: object) -> Folder:
        folder = store_in(path, drives=4, **settings)
        folder.clock = self._clock
        return folder

    async def prepare(self) -> None:
        set_reserve_aside(self._base)
        folder = self._folder(self._base)
        await folder.prepare()
        async with folder.open() as opened:
            await opened.create_bucket("plain", owner="owner")
            for key, size in SIZES.items():
                await put(opened, "plain", key, pattern(size))
        (self._base / "data" / "meta" / "store.sqlite-reserve").unlink()

    @asynccontextmanager
    async def use(self, disk: FaultDisk | None = None, **settings: object) -> AsyncIterator[Use]:
        """Yield a new copy; afterwards it is opened without faults and checked to the end."""
        shutil.rmtree(self._copy, ignore_errors=True)
        shutil.copytree(self._base, self._copy)
        set_reserve_aside(self._copy)
        await self._folder(self._copy).prepare()  # which finds the drives at their new place
        folder = self._folder(self._copy, **settings)
        folder.disk = disk
        folder.random = SeededRandom(1)
        async with folder.open() as opened:
            use = Use(opened, {key: pattern(size) for key, size in SIZES.items()})
            yield use
        await self._check_next_start(use)

    async def _check_next_start(self, use: Use) -> None:
        folder = self._folder(self._copy)
        folder.random = SeededRandom(2)
        await folder.prepare()
        async with folder.open() as opened:
            await check(opened, use)
            report = await opened.fsck(deep=True)
            bad = report.unreadable_chunks + report.wrong_counters + report.orphan_chunks
            assert bad == 0, report.problems
            await put(opened, "plain", "after", pattern(9_000))
            folder.clock.advance(2 * SESSION_S)
            await repair_queue(opened.store)
            await opened.collect_garbage(grace_s=0)
            await check_settled(opened)
            await check(opened, use)


@pytest.fixture
async def store(logs: Logs) -> AsyncIterator[Store]:
    logs.expect(LOGGED)
    with scratch_folder() as scratch:
        store = Store(scratch)
        await store.prepare()
        yield store


async def at_every(
    name: str, step: int, once: Callable[[int], Awaitable[bool]], *, least: int
) -> None:
    """Run ``once(n)`` for n = 0, step, ... until it says that its fault was never met."""
    for number in range(0, 100_000, step):
        try:
            if not await once(number):
                assert number >= least, f"only {number} calls were met"
                return
        except BaseException as error:
            error.add_note(f"{name}: the call that failed was number {number}")
            raise


# Drives


@pytest.mark.parametrize(("call", "step"), [("fdatasync", 1), ("fsync_dir", 1), ("pwritev", 4)])
async def test_drive_that_fails_once_loses_nothing(store: Store, call: str, step: int) -> None:
    async def once(number: int) -> bool:
        fault = Fault(call, errno.EIO, after=number)
        disk = FaultDisk()
        async with store.use(disk) as use:
            disk.faults = [fault]
            await use.run()
            for error in use.errors:
                assert isinstance(error, Unavailable)
            met = fault.count == 0
            disk.faults = []
            # Three of the four drives are left, and so the next one goes there.
            assert await use.put("next", SIZES["coded"], 3)
            return met

    await at_every(call, step, once, least=1)


@pytest.mark.parametrize("count", [1, -1])
async def test_drives_that_are_full_say_so_and_serve_the_rest(store: Store, count: int) -> None:
    async def once(number: int) -> bool:
        fault = Fault("pwritev", errno.ENOSPC, after=number, count=count, path=".vol")
        disk = FaultDisk()
        async with store.use(disk) as use:
            disk.faults = [fault]
            await use.run()
            for error in use.errors:
                assert isinstance(error, NoSpace)
            met = fault.count < count or (count == -1 and fault.after == 0)
            if met and count == -1:
                assert not await use.put("too much", SIZES["coded"], 3)
                assert await use.put("small", SIZES["record"], 3)
                assert await use.delete("coded")
                await check(use.opened, use)
            disk.faults = []
            return met

    await at_every("pwritev", 5, once, least=20)


# Metadata and indexes


class Nth:
    """Fails call ``number`` of a kind, and with ``on`` all that follow."""

    def __init__(
        self, vfs: FaultVfs, event: str, number: int, error: type[apsw.Error], *, on: bool = False
    ) -> None:
        self.met = False
        self._event, self._left, self._error, self._on = event, number, error, on
        vfs.before = self._before

    def _before(self, event: str, kind: str) -> None:
        if event != self._event or (self.met and not self._on):
            return
        if self._left > 0:
            self._left -= 1
            return
        self.met = True
        raise self._error("injected")


@pytest.fixture
def vfs() -> Iterator[FaultVfs]:
    vfs = FaultVfs("faulty-store")
    yield vfs
    vfs.unregister()


@pytest.mark.parametrize(("event", "step"), [("sync", 1), ("write", 5)])
async def test_metadata_that_fails_once_takes_no_more_writes(
    store: Store, vfs: FaultVfs, event: str, step: int
) -> None:
    async def once(number: int) -> bool:
        async with store.use(meta_vfs="faulty-store") as use:
            fault = Nth(vfs, event, number, apsw.IOError)
            await use.run()
            for error in use.errors:
                assert isinstance(error, MetadataFailed)
            if fault.met and use.errors:
                assert not await use.put("next", SIZES["record"], 3)
                assert not await use.delete("coded")
                await check(use.opened, use)
            return fault.met

    await at_every(event, step, once, least=10)


async def test_metadata_disk_that_is_full_refuses_data_and_lets_deletes_through(
    store: Store, vfs: FaultVfs
) -> None:
    async def once(number: int) -> bool:
        async with store.use(meta_vfs="faulty-store") as use:
            fault = Nth(vfs, "write", number, apsw.FullError)
            await use.run()
            for error in use.errors:
                assert isinstance(error, NoSpace)
            assert "copies" not in use.unsure  # deletes get the space of the reserve
            vfs.before = lambda *_: None
            assert await use.put("next", SIZES["coded"], 3)
            assert await use.delete("coded")
            return fault.met

    await at_every("write", 5, once, least=10)


@pytest.mark.parametrize("error", [apsw.IOError, apsw.FullError])
@pytest.mark.parametrize(("event", "step"), [("sync", 1), ("write", 7)])
async def test_index_that_fails_once_loses_nothing(
    store: Store, vfs: FaultVfs, event: str, step: int, error: type[apsw.Error]
) -> None:
    async def once(number: int) -> bool:
        async with store.use(index_vfs="faulty-store") as use:
            fault = Nth(vfs, event, number, error)
            await use.run()
            for raised in use.errors:
                assert isinstance(raised, Unavailable | NoSpace)
            return fault.met

    await at_every(event, step, once, least=0 if event == "sync" else 20)
