"""A store that is read-only while its metadata is copied, through the engine, S3 and WebDAV."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
import trio

from engine.engine import Engine
from engine.errors import ConfigError, StoreReadOnly
from engine.meta import keyspace
from engine.meta.copying import end_copy
from engine.meta.kv import Database
from engine.meta.read_only import GuardedDatabase, clear_read_only, set_read_only
from engine.metadata import open_metadata
from engine.services.leases import READ_ONLY_S, run_leased
from engine.types import NO_CONDITIONS, Attributes, DeleteItem
from tests.support.dav import dav_door
from tests.support.engine import (
    count_fragments,
    data_rows,
    engine_in,
    folder_in,
    pattern,
    put,
    put_part,
    read,
)
from tests.support.kv import fetch
from tests.support.logs import Logs
from tests.support.s3 import running_s3

WHY = "being copied to fdb:/there"


def database_of(engine: Engine) -> Database:
    """Return the database as a copy uses it: not guarded."""
    guarded = engine.store.db
    assert isinstance(guarded, GuardedDatabase)
    return guarded._db


async def test_everything_can_be_read_and_nothing_changed(tmp_path: Path) -> None:
    async with engine_in(tmp_path) as engine:
        await engine.create_bucket("bucket", owner="me")
        large = pattern(300_000)
        await put(engine, "bucket", "small", b"1")
        await put(engine, "bucket", "large", large)
        upload = await engine.create_upload("bucket", "parts", attributes=Attributes())
        await set_read_only(database_of(engine), WHY)
        changes: list[Callable[[], Awaitable[object]]] = [
            lambda: engine.create_bucket("other", owner="me"),
            lambda: engine.delete_bucket("bucket"),
            lambda: engine.set_versioning("bucket", "Enabled"),
            lambda: engine.put_bucket_config("bucket", "cors", b""),
            lambda: put(engine, "bucket", "small", b"2"),
            lambda: put(engine, "bucket", "new", large),
            lambda: engine.delete("bucket", "small"),
            lambda: engine.delete_many("bucket", [DeleteItem("small", None, NO_CONDITIONS)]),
            lambda: engine.rename("bucket", "small", "other"),
            lambda: engine.rename_tree("bucket", "s", "t"),
            lambda: engine.set_tags("bucket", "small", []),
            lambda: engine.create_upload("bucket", "more", attributes=Attributes()),
            lambda: put_part(engine, "bucket", "parts", upload.upload_id, 1, large),
            lambda: engine.abort_upload("bucket", "parts", upload.upload_id),
            lambda: engine.access_keys.create("lab"),
            lambda: engine.collect_garbage(),
        ]
        for change in changes:
            with pytest.raises(StoreReadOnly, match=WHY):
                await change()
        assert await read(engine, "bucket", "small") == b"1"
        assert await read(engine, "bucket", "large") == large
        assert f"the store is read-only: {WHY}" in (await engine.status()).warnings
        await clear_read_only(database_of(engine))
        await put(engine, "bucket", "small", b"2")


async def test_bytes_that_were_on_their_way_are_refused_and_not_left_behind(
    tmp_path: Path,
) -> None:
    async with engine_in(tmp_path) as engine:
        await engine.create_bucket("bucket", owner="me")
        before = await count_fragments(engine)
        rows = await data_rows(engine)

        class LateMark:
            """Sets the mark when all bytes were taken."""

            def __init__(self) -> None:
                self._left = 300_000

            async def readinto(self, buffer: memoryview) -> int:
                if not self._left:
                    await set_read_only(database_of(engine), WHY)
                size = min(len(buffer), self._left)
                self._left -= size
                return size

        with pytest.raises(StoreReadOnly):
            await engine.put(
                "bucket",
                "late",
                LateMark(),
                size=None,
                algorithms=frozenset(),
                attributes=Attributes(),
                check=lambda _: [],
            )
        assert await data_rows(engine) == rows
        assert await count_fragments(engine) == before


async def test_sessions_live_on(tmp_path: Path) -> None:
    folder = folder_in(tmp_path, drives=1, profile="1+0")
    await folder.prepare()
    async with folder.open() as engine:
        db = database_of(engine)
        await set_read_only(db, WHY)
        key = keyspace.session(engine.store.sessions.session_id)
        before = await fetch(db, key)
        await engine.store.sessions.renew()
        assert await fetch(db, key) not in (None, before)
        # A process that starts now reads as well.
        async with folder.open() as other:
            assert (await other.list_buckets())[0] == []
    await folder.prepare()


async def test_services_wait_and_go_on_by_themselves(
    tmp_path: Path, logs: Logs, autojump_clock: trio.testing.MockClock
) -> None:
    async with engine_in(tmp_path, drives=1, profile="1+0") as engine:
        db = database_of(engine)
        await set_read_only(db, WHY)
        worked = trio.Event()

        async def work() -> None:
            worked.set()

        async def wait() -> None:
            await trio.sleep(0.01)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(run_leased, engine.store, "a service", work, wait)
            await trio.sleep(5 * READ_ONLY_S)
            assert not worked.is_set()
            await clear_read_only(db)
            await worked.wait()
            nursery.cancel_scope.cancel()
    assert logs.unexpected == []


async def test_metadata_that_has_moved_is_not_opened(tmp_path: Path) -> None:
    folder = folder_in(tmp_path, drives=1, profile="1+0")
    await folder.prepare()
    async with folder.open() as engine:
        await end_copy(database_of(engine), "fdb:/there")
        with pytest.raises(StoreReadOnly, match="moved to fdb:/there"):
            await engine.create_bucket("bucket", owner="me")
    with pytest.raises(ConfigError, match="moved to fdb:/there"):
        async with open_metadata(folder.config):
            pass


async def test_s3_answers_503_to_writes_and_serves_reads(tmp_path: Path) -> None:
    async with running_s3(tmp_path) as s3:
        await s3.put("/bucket")
        await s3.put("/bucket/key", b"data")
        await set_read_only(database_of(s3.engine), WHY)
        for method, path, body in (
            ("PUT", "/bucket/key", b"new"),
            ("PUT", "/bucket/large", bytes(200_000)),
            ("DELETE", "/bucket/key", b""),
            ("PUT", "/other", b""),
        ):
            answer = await s3.request(method, path, body=body)
            assert (answer.status, answer.code) == (503, "ServiceUnavailable"), (method, path)
        assert (await s3.get("/bucket/key")).body == b"data"
        assert (await s3.get("/bucket")).texts("Contents/Key") == ["key"]
        await clear_read_only(database_of(s3.engine))
        await s3.put("/bucket/key", b"new")
        assert {event for event, _ in s3.log.troubles} == {"s3.storage_failed"}
        s3.log.troubles.clear()


async def test_webdav_answers_503_with_retry_after_and_serves_reads(
    tmp_path: Path, logs: Logs
) -> None:
    logs.expect("dav.storage_failed")
    async with engine_in(tmp_path) as engine, dav_door(engine) as door:
        await door.made("/bucket/", "/bucket/file")
        await set_read_only(database_of(engine), WHY)
        for method, path in (
            ("PUT", "/bucket/file"),
            ("PUT", "/bucket/new"),
            ("DELETE", "/bucket/file"),
            ("MKCOL", "/bucket/folder/"),
            ("MKCOL", "/other/"),
            ("MOVE", "/bucket/file"),
            ("COPY", "/bucket/file"),
            ("LOCK", "/bucket/file"),
        ):
            body = b"x" if method == "PUT" else None
            if method == "LOCK":
                body = (
                    b'<D:lockinfo xmlns:D="DAV:"><D:lockscope><D:exclusive/></D:lockscope>'
                    b"<D:locktype><D:write/></D:locktype></D:lockinfo>"
                )
            answer = await door.call(method, path, body, Destination="/bucket/there", Depth="0")
            assert answer.status == 503, (method, path, answer)
            assert answer["retry-after"]
        assert (await door.get("/bucket/file")).body == b"/bucket/file"
        assert (await door.call("PROPFIND", "/bucket/", Depth="1")).status == 207
        await clear_read_only(database_of(engine))
        assert (await door.put("/bucket/file", b"new")).status == 204
