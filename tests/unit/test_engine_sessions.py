"""Sessions, read pins and garbage collection: what is kept for whom, and what goes."""

from __future__ import annotations

from pathlib import Path

import pytest

from engine.engine import Engine
from engine.errors import NoSuchBucket, NoSuchKey, Unavailable
from engine.ids import SESSION_ID_SIZE
from engine.meta import keyspace
from engine.meta.kv import ReadTransaction, Transaction
from engine.sessions import SessionExpired
from engine.types import Attributes, CompletePart
from tests.support.engine import (
    CRC64,
    BytesSource,
    Folder,
    count_fragments,
    count_rows,
    data_rows,
    engine_in,
    folder_in,
    keep_crc64,
    pattern,
    put,
    put_part,
    read,
)
from tests.support.logs import Logs

LARGE = 300_000


async def declare_others_dead(by: Engine, folder: Folder) -> None:
    """Let all sessions but that of ``by`` expire, and be found out."""
    folder.clock.advance(2 * folder.config.session_s)
    await by.store.sessions.renew()
    await by.collect_garbage()


async def test_session_declared_dead_cannot_commit(tmp_path: Path, logs: Logs) -> None:
    folder = folder_in(tmp_path)
    await folder.prepare()
    async with folder.open() as sleeper, folder.open() as other:
        await sleeper.create_bucket("bucket", owner="owner")
        staged = await sleeper.store.data.stage(
            BytesSource(pattern(LARGE)), size=LARGE, algorithms=frozenset({"MD5"})
        )
        assert await count_fragments(other) > 0
        await declare_others_dead(other, folder)
        assert await count_fragments(other) == 0
        await staged.discard()
        with pytest.raises(Unavailable):
            await put(sleeper, "bucket", "key", pattern(LARGE))
        with pytest.raises(NoSuchKey):
            await other.head("bucket", "key")


async def test_what_is_refused_for_a_dead_session_leaves_no_fragments(tmp_path: Path) -> None:
    folder = folder_in(tmp_path)
    await folder.prepare()
    async with folder.open() as sleeper, folder.open() as other:
        await sleeper.create_bucket("bucket", owner="owner")
        await put(sleeper, "bucket", "first", b"x")
        await declare_others_dead(other, folder)
        with pytest.raises(SessionExpired):
            await put(sleeper, "bucket", "key", pattern(LARGE))
        assert await count_fragments(other) == 0


async def test_expired_process_goes_on_under_a_new_session(tmp_path: Path, logs: Logs) -> None:
    logs.expect("session expired")
    folder = folder_in(tmp_path)
    await folder.prepare()
    async with folder.open() as sleeper, folder.open() as other:
        await sleeper.create_bucket("bucket", owner="owner")
        before = sleeper.store.sessions.session_id
        await declare_others_dead(other, folder)
        await sleeper.store.sessions.renew()
        assert sleeper.store.sessions.session_id != before
        await put(sleeper, "bucket", "key", pattern(LARGE))
        assert await read(other, "bucket", "key") == pattern(LARGE)


async def test_renewal_does_not_bring_a_dead_session_back(tmp_path: Path, logs: Logs) -> None:
    logs.expect("session expired")
    folder = folder_in(tmp_path)
    await folder.prepare()
    async with folder.open() as sleeper, folder.open() as other:
        dead = sleeper.store.sessions.session_id
        # The row says dead, and is not removed: some drive did not answer the collector.
        folder.clock.advance(2 * folder.config.session_s)
        await other.store.sessions.renew()
        row_key = keyspace.session(dead)

        async def bury(tr: Transaction) -> None:
            row = await tr.get(row_key)
            assert row is not None
            tr.set(row_key, row[:-1] + b"\xc3")  # MessagePack's true, for the last field

        await other.store.db.run(bury)
        await sleeper.store.sessions.renew()

        async def look(tr: ReadTransaction) -> bytes | None:
            return await tr.get(row_key)

        row = await other.store.db.read(look)
        assert row is not None
        assert row.endswith(b"\xc3")
        assert sleeper.store.sessions.session_id != dead


async def test_orphans_of_a_dead_session_are_collected(tmp_path: Path) -> None:
    folder = folder_in(tmp_path)
    await folder.prepare()
    async with folder.open() as crashed, folder.open() as other:
        await crashed.create_bucket("bucket", owner="owner")
        await put(crashed, "bucket", "kept", pattern(LARGE))
        owned = await count_fragments(other)
        await crashed.store.data.stage(
            BytesSource(pattern(LARGE, 1)), size=LARGE, algorithms=frozenset({"MD5"})
        )
        assert await count_fragments(other) == 2 * owned
        assert (await other.collect_garbage(grace_s=0)).orphans == 0
        folder.clock.advance(2 * folder.config.session_s)
        await other.store.sessions.renew()
        assert (await other.collect_garbage()).orphans == owned
        assert await count_fragments(other) == owned
        assert await read(other, "bucket", "kept") == pattern(LARGE)


async def test_what_a_closed_engine_left_behind_is_collected(tmp_path: Path) -> None:
    folder = folder_in(tmp_path)
    await folder.prepare()
    async with folder.open() as opened:
        await opened.store.data.stage(
            BytesSource(pattern(LARGE)), size=LARGE, algorithms=frozenset({"MD5"})
        )
    async with folder.open() as opened:
        assert await count_fragments(opened) > 0
        await opened.collect_garbage()
        assert await count_fragments(opened) == 0
        assert await count_rows(opened, keyspace.SESSION) == 1


async def test_closing_leaves_no_session_that_wrote_nothing(tmp_path: Path) -> None:
    folder = folder_in(tmp_path)
    await folder.prepare()
    async with folder.open() as opened:
        assert len(opened.store.sessions.session_id) == SESSION_ID_SIZE
    async with folder.open() as opened:
        assert await count_rows(opened, keyspace.SESSION) == 1


@pytest.mark.parametrize("gone", ["replaced", "deleted"])
@pytest.mark.parametrize("where", ["here", "in another process"])
@pytest.mark.parametrize("kind", ["whole", "in parts"])
async def test_open_object_stays_readable_while_garbage_is_collected(
    tmp_path: Path, gone: str, where: str, kind: str
) -> None:
    folder = folder_in(tmp_path)
    await folder.prepare()
    async with folder.open() as reader, folder.open() as other:
        collector = reader if where == "here" else other
        await reader.create_bucket("bucket", owner="owner")
        if kind == "whole":
            await put(reader, "bucket", "key", pattern(LARGE))
        else:
            info = await reader.create_upload("bucket", "key", attributes=Attributes())
            part = await put_part(reader, "bucket", "key", info.upload_id, 1, pattern(LARGE))
            await reader.complete_upload(
                "bucket", "key", info.upload_id, [CompletePart(1, part.etag, [])]
            )
        opened = await reader.open("bucket", "key")
        async with opened:
            if gone == "replaced":
                await put(other, "bucket", "key", b"new")
            else:
                await other.delete("bucket", "key")
            for _ in range(2):
                folder.clock.advance(60)
                await reader.store.sessions.renew()
                await other.store.sessions.renew()
                await collector.collect_garbage(grace_s=0)
            stream = await opened.stream(0, LARGE)
            assert b"".join([bytes(buffer) async for buffer in stream]) == pattern(LARGE)
            await stream.aclose()
        folder.clock.advance(60)
        await reader.store.sessions.renew()
        await other.store.sessions.renew()
        await collector.collect_garbage(grace_s=0)
        assert await count_fragments(reader) == 0


async def test_reader_that_began_while_the_delete_committed_keeps_its_bytes(
    tmp_path: Path,
) -> None:
    """The delete is dated before the read begins, and becomes visible after it."""
    folder = folder_in(tmp_path)
    await folder.prepare()
    async with folder.open() as reader, folder.open() as other:
        await reader.create_bucket("bucket", owner="owner")
        await put(reader, "bucket", "key", pattern(LARGE))
        dated = folder.clock()
        async with await reader.open("bucket", "key") as opened:
            await reader.store.sessions.renew()
            await other.delete("bucket", "key")
            await backdate_garbage(other, dated)
            folder.clock.advance(60)
            await other.collect_garbage(grace_s=0)
            await reader.collect_garbage(grace_s=0)
            stream = await opened.stream(0, LARGE)
            assert b"".join([bytes(buffer) async for buffer in stream]) == pattern(LARGE)
            await stream.aclose()


async def backdate_garbage(opened: Engine, deleted_ms: int) -> None:
    async def body(tr: Transaction) -> None:
        rows = await tr.get_range(keyspace.GARBAGE, keyspace.after_prefix(keyspace.GARBAGE))
        for key, row in rows:
            tr.clear(key)
            tr.set(keyspace.GARBAGE + deleted_ms.to_bytes(6, "big") + key[7:], row)

    await opened.store.db.run(body)


async def test_garbage_stays_for_the_grace_time(tmp_path: Path) -> None:
    folder = folder_in(tmp_path, grace_s=1000.0)
    await folder.prepare()
    async with folder.open() as opened:
        await opened.create_bucket("bucket", owner="owner")
        await put(opened, "bucket", "key", pattern(LARGE))
        await opened.delete("bucket", "key")
        assert (await opened.status()).garbage_queue == 1
        folder.clock.advance(990)
        assert (await opened.collect_garbage()).garbage == 0
        folder.clock.advance(20)
        report = await opened.collect_garbage()
        assert (report.garbage, report.bytes) == (1, LARGE)
        assert await count_fragments(opened) == 0


async def test_deleting_a_bucket_leaves_no_rows_of_it(tmp_path: Path) -> None:
    folder = folder_in(tmp_path)
    await folder.prepare()
    async with folder.open() as opened:
        await opened.create_bucket("bucket", owner="owner")
        await opened.set_versioning("bucket", "Enabled")
        await opened.put_bucket_config("bucket", "cors", b"<x/>")
        for size in (10, 500, LARGE):
            info = await put(opened, "bucket", "key", pattern(size))
            await opened.delete("bucket", "key", version_id=info.version_id)
        marker = await opened.delete("bucket", "key")
        await opened.delete("bucket", "key", version_id=marker.version_id)
        await opened.delete_bucket("bucket")
        await opened.collect_garbage(grace_s=0)
        assert await data_rows(opened) == {}
        assert await count_rows(opened, keyspace.CONFIG) == 0
        await opened.create_bucket("bucket", owner="owner")
        assert (await opened.list_versions("bucket")).versions == []


async def test_put_into_a_bucket_that_goes_meanwhile_leaves_nothing(tmp_path: Path) -> None:
    async with engine_in(tmp_path) as opened:
        await opened.create_bucket("bucket", owner="owner")
        data = pattern(LARGE)

        class DeletingSource(BytesSource):
            async def readinto(self, buffer: memoryview) -> int:
                size = await super().readinto(buffer)
                if size:
                    return size
                await opened.delete_bucket("bucket")
                return 0

        with pytest.raises(NoSuchBucket):
            await opened.put(
                "bucket",
                "key",
                DeletingSource(data),
                size=None,
                algorithms=CRC64,
                attributes=Attributes(),
                check=keep_crc64,
            )
        assert await count_fragments(opened) == 0
        assert await data_rows(opened) == {}
