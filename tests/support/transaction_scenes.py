"""What a store does in every kind of transaction: short scenes, each with the kinds that it shows.

A new kind of transaction belongs here: into a scene that does what asks for it, and into that
scene's list (``tests/fault/test_fdb_lost_commits.py`` says which are missing).
"""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import msgspec

from engine.cluster.admin import Placing
from engine.config import Profile
from engine.engine import Engine
from engine.ids import NodeId
from engine.locks import sweep_locks
from engine.meta import keyspace
from engine.meta.copying import abort_copy, copy_metadata
from engine.meta.fdb import FdbLocation, open_fdb
from engine.meta.kv import Transaction
from engine.meta.memory import MemoryDatabase
from engine.meta.read_only import clear_read_only, set_read_only
from engine.opening import prepare_store
from engine.services.collector import collect
from engine.services.leases import acquire, release
from engine.services.progress import next_page
from engine.services.repair import queue_repair, rebuild_nodes, repair_queue
from engine.services.scrub import ask_for_scrub
from engine.services.strays import delete_strays
from engine.sessions import Sessions
from engine.types import (
    NO_CONDITIONS,
    Attributes,
    CompletePart,
    CopySource,
    DeleteItem,
    LockRequest,
    PropertyChange,
    Quota,
)
from tests.support.engine import Folder, folder_in, part_size_min, pattern, put, put_part, read
from tests.support.lost_commits import Fate
from tests.support.machines import Cluster, Machine, open_again

CHUNKED = 20_000
"""Bytes of an object that lies on drives, ``INLINE`` of one in a row of its own."""
INLINE = 500


class Stage:
    """A place for one run of a scene."""

    def __init__(self, path: Path, location: FdbLocation, fate: Fate) -> None:
        self.path = path
        self.location = location
        self.fate = fate

    def folder(self) -> Folder:
        """Return the settings of a store on two drives."""
        folder = folder_in(self.path, drives=2, profile="1+1", meta=str(self.location))
        folder.clock, folder.random = self.fate, self.fate.random  # type: ignore[assignment]
        return folder

    @asynccontextmanager
    async def engine(self) -> AsyncIterator[Engine]:
        """Make the store, open it, and make a bucket."""
        folder = self.folder()
        await folder.prepare()
        async with folder.open() as engine:
            await engine.create_bucket("bucket", owner="owner")
            yield engine

    @asynccontextmanager
    async def cluster(self, *, members: int = 3) -> AsyncIterator[Cluster]:
        """Make a store on the first machines of four, open it, and store two objects."""
        config = msgspec.structs.replace(
            self.folder().config, drives=(), profile=Profile.parse("1+1")
        )
        machines = {f"m{number}": Machine(number, drives=1) for number in range(1, 5)}
        await prepare_store(config, clock=self.fate, cluster=True)
        async with open_again(config, machines, self.fate) as cluster:  # type: ignore[arg-type]
            await cluster.add(*list(machines)[:members])
            await cluster.engine.create_bucket("bucket", owner="owner")
            for number in range(2):
                await put(cluster.engine, "bucket", f"{number}", pattern(CHUNKED, number))
            yield cluster


async def buckets(stage: Stage) -> Any:
    async with stage.engine() as engine:
        await engine.set_versioning("bucket", "Enabled")
        await engine.put_bucket_config("bucket", "cors", b"<a/>")
        await engine.put_bucket_config("bucket", "policy", b"{}")
        await engine.delete_bucket_config("bucket", "policy")
        await engine.set_quota("bucket", Quota(bytes=1000, objects=5))
        await engine.create_bucket("gone", owner="owner")
        await engine.delete_bucket("gone")
        return await engine.list_buckets(), await engine.bucket_usage("bucket")


async def objects(stage: Stage) -> Any:
    answers: list[Any] = []
    async with stage.engine() as engine:
        for versioning in ("", "Enabled", "Suspended"):
            if versioning:
                await engine.set_versioning("bucket", versioning)
            for size in (10, INLINE, CHUNKED):
                answers.append(await put(engine, "bucket", f"k{size}", pattern(size)))
                answers.append(await put(engine, "bucket", "again", pattern(size, 1)))
            answers.append(await engine.set_tags("bucket", "again", [("a", versioning)]))
            answers.append(
                await engine.set_metadata("bucket", "again", lambda pairs: [*pairs, ("m", "1")])
            )
            for key in ("again", f"copy{versioning}"):
                source = CopySource("bucket", "again", None, NO_CONDITIONS)
                attributes = Attributes(metadata=[("m", "2")])
                answers.append(
                    await engine.copy(source, "bucket", key, attributes=attributes, tags=None)
                )
            answers.append(await engine.delete("bucket", "k10"))
            items = [DeleteItem(f"k{size}", None) for size in (10, INLINE)]
            answers.append(await engine.delete_many("bucket", items))
        changes = [PropertyChange("{x}a", "<a xmlns='x'/>")]
        await engine.properties.change("bucket", "again", changes)
        await engine.properties.change("bucket", "again", [], modified="1.5")
        answers.append(await engine.rename("bucket", "again", "renamed"))
        answers.append(await read(engine, "bucket", "renamed"))
        answers.append(await engine.bucket_usage("bucket"))
    return answers


async def uploads(stage: Stage) -> Any:
    answers: list[Any] = []
    async with stage.engine() as engine:
        await put(engine, "bucket", "source", pattern(CHUNKED))
        with part_size_min(1):
            for key in ("made", "left"):
                upload = await engine.create_upload("bucket", key, attributes=Attributes())
                name = ("bucket", key, upload.upload_id)
                source = CopySource("bucket", "source", None, NO_CONDITIONS)
                parts = [
                    await put_part(engine, *name, 1, pattern(INLINE)),
                    await put_part(engine, *name, 1, pattern(CHUNKED, 1)),
                    (await engine.copy_part(source, *name, 2))[0],
                ]
                if key == "left":
                    await engine.abort_upload(*name)
                    continue
                chosen = [CompletePart(part.number, part.etag, []) for part in parts[1:]]
                answers.append(await engine.complete_upload(*name, chosen))
                answers.append(await engine.complete_upload(*name, chosen))
        answers.append(await read(engine, "bucket", "made"))
    return answers


async def trees(stage: Stage) -> Any:
    async with stage.engine() as engine:
        for number in range(5):
            await put(engine, "bucket", f"a/{number}", pattern(INLINE, number))
        moved = [await engine.rename_tree("bucket", "a/", "b/")]
        with patch("engine.rename_tree.ATOMIC_MAX", 2):
            moved.append(await engine.rename_tree("bucket", "b/", "c/"))
        return moved, await engine.list_objects("bucket")


async def locks(stage: Stage) -> Any:
    async with stage.engine() as engine:
        locking = engine.locking
        deep = LockRequest("me", "<o/>", exclusive=True, deep=True, timeout_s=10)
        shared = msgspec.structs.replace(deep, exclusive=False, deep=False)
        answers: list[Any] = [
            await locking.lock("bucket", "folder/", deep),
            await locking.lock("bucket", "new", shared),
            first := await locking.lock("bucket", "new", shared),
        ]
        token = first[0].token
        conditions = msgspec.structs.replace(NO_CONDITIONS, principal="me")
        answers.append(await locking.refresh("bucket", "new", token, 100, conditions=conditions))
        await locking.unlock("bucket", "new", answers[1][0].token, principal="me")
        stage.fate.advance(50)
        await sweep_locks(engine.store)
        answers.append(await locking.around("bucket", "new"))
        return answers


async def garbage(stage: Stage) -> Any:
    async with stage.engine() as engine:
        store = engine.store
        for size in (INLINE, CHUNKED):
            await put(engine, "bucket", f"{size}", pattern(size))
            await engine.delete("bucket", f"{size}")
        upload = await engine.create_upload("bucket", "left", attributes=Attributes())
        for number, size in enumerate((INLINE, CHUNKED), 1):
            await put_part(engine, "bucket", "left", upload.upload_id, number, pattern(size))
        await engine.abort_upload("bucket", "left", upload.upload_id)
        # A process that died: it renewed its session once, and never again.
        other = Sessions(store.db, stage.fate, stage.fate.random, session_s=1.0)
        await other.start()
        await other.renew()
        other.next_chunk_id()
        stage.fate.advance(7200)
        return await collect(store, grace_s=0), await collect(store, grace_s=0)


async def sessions(stage: Stage) -> Any:
    async with stage.engine() as engine:
        other = Sessions(engine.store.db, stage.fate, stage.fate.random, session_s=10.0)
        await other.start()
        await other.renew()
        other.next_chunk_id()
        await other.finish()


async def leases(stage: Stage) -> Any:
    async with stage.engine() as engine:
        store = engine.store
        answers = [await acquire(store, "service", name) for name in (b"one", b"one", b"two")]
        await release(store, "service", b"two")
        await release(store, "service", b"one")
        answers.append(await acquire(store, "service", b"two"))
        return answers


async def counters(stage: Stage) -> Any:
    async with stage.engine() as engine:
        info = await put(engine, "bucket", "k", pattern(INLINE))

        async def spoil(tr: Transaction) -> None:
            tr.add(keyspace.usage(info.bucket.bucket_id, 3, b"b"), 5)

        await engine.store.db.run(spoil)
        return await engine.fsck(repair_counters=True), await engine.bucket_usage("bucket")


async def repairs(stage: Stage) -> Any:
    """A fragment is lost, and a drive is replaced by an empty one."""
    folder = stage.folder()
    async with stage.engine() as engine:
        store = engine.store
        await put(engine, "bucket", "k", pattern(CHUNKED))
        ((chunk_id, chunk),) = await next_page(store.db, keyspace.CHUNK)
        node = store.pool.usable(chunk.nodes[1])
        assert node is not None
        await node.delete([bytes(chunk_id) + b"\1"])  # type: ignore[list-item]
        assert await queue_repair(store, chunk_id, [1], "missing")
        made = [await repair_queue(store)]
        await ask_for_scrub(store)
    place = folder.config.drives[0]
    shutil.rmtree(place)
    place.mkdir()
    await folder.prepare()
    async with folder.open() as engine:
        made.append(await rebuild_nodes(engine.store))
        return made, await read(engine, "bucket", "k")


async def members(stage: Stage) -> Any:
    """Members come, drain, stay after all, are forgotten, and one is replaced."""
    async with stage.cluster() as cluster:
        admin = cluster.admin
        cluster.machines["m1"].version = "2"
        await cluster.heartbeat.round()
        await cluster.settle()
        answers: list[Any] = [await admin.drain("m3"), await admin.undrain("m3")]
        await cluster.view.sync()
        answers.append(await admin.drain("m3"))
        await cluster.view.sync()
        await cluster.settle()
        answers.append(await admin.remove("m3"))
        await cluster.view.sync()
        await cluster.lose("m2")
        address = cluster.machines["m4"].address
        answers.append(await admin.replace("m2", address, Placing()))
        await cluster.view.sync()
        await cluster.settle()
        answers += [await read(cluster.engine, "bucket", f"{number}") for number in range(2)]
        answers.append(cluster.fragments())
        return answers


async def strays(stage: Stage) -> Any:
    """What cannot be deleted now is deleted later, and what nobody owns as well."""
    async with stage.cluster(members=2) as cluster:
        store = cluster.store
        node = cluster.machines["m1"].drives[0].node
        assert node is not None
        node.memory.fragments[bytes(17)] = bytearray(b"orphan")  # type: ignore[index]
        await cluster.settle()
        cluster.machines["m2"].switch(on=False)
        await cluster.set_health("m2", "down")
        await cluster.engine.delete("bucket", "0")
        collected = await collect(store, grace_s=0)
        cluster.machines["m2"].switch(on=True)
        await cluster.set_health("m2", "up")

        async def forgotten(tr: Transaction) -> None:
            unknown = NodeId(bytes(8))
            tr.set(keyspace.stray(unknown, bytes(17)), b"")  # type: ignore[arg-type]

        await store.db.run(forgotten)
        return collected, await delete_strays(store), cluster.fragments()


async def access_keys(stage: Stage) -> Any:
    pairs = iter((f"ACCESS{number}", f"secret{number}") for number in range(9))
    async with stage.engine() as engine:
        keys = engine.access_keys
        with patch("engine.access_keys.new_pair", lambda: next(pairs)):
            answers: list[Any] = [
                await keys.settle_root("root", "first"),
                await keys.settle_root("root", "second"),
                await keys.create("reader", read_only=True),
                await keys.create("writer", buckets=["bucket"]),
            ]
        answers.append(await keys.set_disabled("reader", True))
        answers.append(await keys.delete("writer"))
        return answers, await keys.list()


async def copying(stage: Stage) -> Any:
    source = MemoryDatabase()

    async def fill(tr: Transaction) -> None:
        for number in range(2500):
            tr.set(b"k%04d" % number, bytes(400))

    await source.run(fill)

    def interrupt(phase: str, done: int) -> None:
        raise InterruptedError

    async def copy(progress: Callable[[str, int], None]) -> int:
        return await copy_metadata(source, target, "0" * 32, place="there", progress=progress)

    async with open_fdb(stage.location) as target:
        with suppress(InterruptedError):
            await copy(interrupt)
        answers: list[Any] = [
            await abort_copy(source, target, "0" * 32),
            await copy(lambda phase, done: None),
        ]
        await set_read_only(target, "being copied back")
        answers += [await clear_read_only(target), await clear_read_only(target)]
        return answers


class Scene(NamedTuple):
    play: Callable[[Stage], Awaitable[Any]]
    kinds: frozenset[str]
    """The transactions that it shows."""


def _scene(play: Callable[[Stage], Awaitable[Any]], *kinds: str) -> Scene:
    return Scene(play, frozenset(f"engine.{kind}" for kind in kinds))


SCENES: dict[str, Scene] = {
    "buckets": _scene(
        buckets,
        "buckets:Buckets.create",
        "buckets:Buckets.delete",
        "buckets:Buckets.set_versioning",
        "buckets:Buckets.put_config",
        "buckets:Buckets.delete_config",
        "quota:Quotas.set_quota",
    ),
    "objects": _scene(
        objects,
        "objects:Objects.commit_put",
        "objects:Objects.delete",
        "objects:Objects.delete_many",
        "objects:Objects._copy_in_place",
        "objects:Objects.set_tags",
        "objects:Objects.set_metadata",
        "properties:Properties.change",
        "rename:Renames.rename",
    ),
    "uploads": _scene(
        uploads,
        "multipart:Uploads.create",
        "multipart:Uploads.put_part",
        "multipart:Uploads.abort",
        "completion:Completion._commit_complete",
    ),
    "trees": _scene(trees, "rename_tree:TreeRenames._begin", "rename_tree:step"),
    "locks": _scene(
        locks,
        "locking:Locking.lock",
        "locking:Locking.refresh",
        "locking:Locking.unlock",
        "locks:sweep_locks",
    ),
    "garbage": _scene(
        garbage,
        "services.collector:_clear",
        "services.collector:_Batch._delete",
        "services.collector:_declare_dead",
        "services.collector:_trim_feed",
    ),
    "sessions": _scene(
        sessions,
        "sessions:Sessions.start",
        "sessions:Sessions.renew",
        "sessions:Sessions.finish",
    ),
    "leases": _scene(leases, "services.leases:acquire", "services.leases:release"),
    "counters": _scene(counters, "services.fsck:_Check._repair_usage"),
    "repairs": _scene(
        repairs,
        "metadata:shared_store_id",
        "opening:_settle_profile",
        "drives:_write_node",
        "services.repair:queue_repairs",
        "services.repair:settle",
        "services.repair:_finish_rebuild",
        "services.progress:Progress.save",
        "services.scrub:ask_for_scrub",
    ),
    "members": _scene(
        members,
        "cluster.admin:make_secret",
        "cluster.admin:ClusterAdmin.add",
        "cluster.admin:ClusterAdmin.drain",
        "cluster.admin:ClusterAdmin.undrain",
        "cluster.admin:ClusterAdmin.remove",
        "cluster.admin:ClusterAdmin.replace",
        "cluster.heartbeat:Heartbeat._write",
        "services.census:_Walk.finish",
        "services.rebalance:Rebalance._ask_for_census",
        "services.upkeep:_ask_for_census",
    ),
    "strays": _scene(
        strays,
        "services.census:_Walk._examine_loose",
        "services.strays:_clear",
        "services.strays:_forget",
    ),
    "access keys": _scene(
        access_keys,
        "access_keys:AccessKeys.settle_root",
        "access_keys:AccessKeys.create",
        "access_keys:AccessKeys.set_disabled",
        "access_keys:AccessKeys.delete",
    ),
    "copying": _scene(
        copying,
        "meta.copying:_begin",
        "meta.copying:_copy_sessions",
        "meta.copying:_copy_step",
        "meta.copying:abort_copy",
        "meta.copying:copy_metadata",
        "meta.read_only:clear_read_only",
        "meta.read_only:set_read_only",
    ),
}
