"""MKCOL, DELETE, COPY and MOVE of files and trees."""

from __future__ import annotations

import socket
from pathlib import Path
from unittest.mock import patch

import pytest
import trio

from engine.engine import Engine
from engine.errors import NoSpace
from engine.types import CopySource
from tests.support.dav import Door, dav_door, in_thread, with_login
from tests.support.engine import engine_in, pattern, put, read

TREE = ("/bucket/", "/bucket/a/", "/bucket/a/x", "/bucket/a/b/", "/bucket/a/b/y", "/bucket/a/e/")


async def keys(engine: Engine, bucket: str = "bucket") -> list[str]:
    return [found.key for found in (await engine.list_objects(bucket)).objects]


async def status(door: Door, method: str, path: str, to: str = "", **headers: str) -> int:
    if to:
        headers["Destination"] = to
    return (await door.call(method, path, **headers)).status


async def test_folders_are_made_once_and_below_a_folder(tmp_path: Path) -> None:
    async with engine_in(tmp_path) as engine, dav_door(engine) as door:
        assert await status(door, "MKCOL", "/bucket") == 201
        assert await status(door, "MKCOL", "/bucket/") == 405
        assert await status(door, "MKCOL", "/bucket/a") == 201
        assert await status(door, "MKCOL", "/bucket/a/") == 405
        assert await status(door, "MKCOL", "/bucket/no/b/") == 409
        assert await status(door, "MKCOL", "/absent/b/") == 409
        assert await status(door, "MKCOL", "/") == 405
        assert await status(door, "MKCOL", "/Not%20A%20Bucket/") == 403
        assert (await door.call("MKCOL", "/bucket/c/", b"body")).status == 415
        await door.made("/bucket/f")
        assert await status(door, "MKCOL", "/bucket/f/") == 405
        assert await status(door, "MKCOL", "/bucket/f/d/") == 409
        assert await keys(engine) == ["a/", "f"]


async def test_a_folder_that_only_its_members_make_is_one(tmp_path: Path) -> None:
    async with engine_in(tmp_path) as engine, dav_door(engine) as door:
        await door.made("/bucket/")
        await put(engine, "bucket", "s3/made/x", b"x")
        assert await status(door, "MKCOL", "/bucket/s3/") == 405
        await door.made("/bucket/s3/made/y", "/bucket/s3/z/")
        assert await status(door, "DELETE", "/bucket/s3/") == 204
        assert await keys(engine) == []


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("DELETE", "a/b/file"),
        ("DELETE", "a/b/"),
        ("MOVE", "a/b/file"),
        ("MOVE", "a/b/"),
    ],
)
async def test_a_folder_that_was_emptied_stays(tmp_path: Path, method: str, path: str) -> None:
    async with engine_in(tmp_path) as engine, dav_door(engine) as door:
        await door.made("/bucket/")
        await put(engine, "bucket", "a/b/file", b"x")
        headers = {"Destination": "/bucket/to"} if method == "MOVE" else {}
        answer = await door.call(method, f"/bucket/{path}", **headers)
        assert answer.status == (201 if method == "MOVE" else 204)
        parent = path.rstrip("/").rpartition("/")[0] + "/"
        assert (await door.call("PROPFIND", f"/bucket/{parent}", Depth="0")).status == 207
        assert [key for key in await keys(engine) if not key.startswith("to")] == [parent]


async def test_a_folder_stays_empty_under_its_lock(tmp_path: Path) -> None:
    lockinfo = (
        b'<D:lockinfo xmlns:D="DAV:"><D:lockscope><D:exclusive/></D:lockscope>'
        b"<D:locktype><D:write/></D:locktype></D:lockinfo>"
    )
    async with engine_in(tmp_path) as engine, dav_door(engine) as door:
        await door.made("/bucket/")
        await put(engine, "bucket", "a/b/file", b"x")
        token = (await door.call("LOCK", "/bucket/a/", lockinfo))["lock-token"]
        holder = f"</bucket/a/> ({token})"
        assert (await door.call("DELETE", "/bucket/a/b/file", If=holder)).status == 204
        assert "a/b/" in await keys(engine)
        assert "a/b/file" not in await keys(engine)


async def test_a_bucket_and_what_s3_deletes_leave_no_folder(tmp_path: Path) -> None:
    async with engine_in(tmp_path) as engine, dav_door(engine) as door:
        await door.made("/bucket/", "/bucket/file")
        assert await status(door, "DELETE", "/bucket/file") == 204
        await put(engine, "bucket", "a/file", b"x")
        await engine.delete("bucket", "a/file")
        assert await keys(engine) == []
        assert (await door.call("PROPFIND", "/bucket/a/", Depth="0")).status == 404


async def test_a_tree_is_deleted_whole(tmp_path: Path) -> None:
    async with engine_in(tmp_path) as engine, dav_door(engine) as door:
        await door.made(*TREE, "/bucket/ab", "/bucket/b")
        assert await status(door, "DELETE", "/bucket/a/", Depth="0") == 400
        assert await status(door, "DELETE", "/bucket/a/", Depth="infinity") == 204
        assert await keys(engine) == ["ab", "b"]
        assert await status(door, "DELETE", "/bucket/a/") == 404
        assert await status(door, "DELETE", "/") == 403


async def test_a_bucket_goes_with_all_that_is_in_it(tmp_path: Path) -> None:
    async with engine_in(tmp_path) as engine, dav_door(engine) as door:
        await door.made(*TREE)
        assert await status(door, "DELETE", "/bucket/") == 204
        assert await engine.list_buckets() == ([], False)


async def test_a_bucket_that_keeps_versions_stays(tmp_path: Path) -> None:
    async with engine_in(tmp_path) as engine, dav_door(engine) as door:
        await door.made("/bucket/")
        await engine.set_versioning("bucket", "Enabled")
        await door.made("/bucket/x")
        assert await status(door, "DELETE", "/bucket/") == 409
        assert (await engine.list_versions("bucket")).versions


@pytest.mark.parametrize("method", ["COPY", "MOVE"])
async def test_a_file_goes_to_a_new_name_and_over_an_old_one(tmp_path: Path, method: str) -> None:
    async with engine_in(tmp_path) as engine, dav_door(engine) as door:
        await door.made("/bucket/", "/bucket/x", "/bucket/old", "/other/", "/bucket/d/")
        data = pattern(300_000)
        await door.put("/bucket/x", data, Content_Type="text/x-test")
        for to, expected in (("/bucket/new", 201), ("/bucket/old", 204), ("/other/x", 201)):
            await put(engine, "bucket", "s", data)
            await engine.copy(CopySource("bucket", "x"), "bucket", "s", attributes=None, tags=None)
            assert await status(door, method, "/bucket/s", to) == expected
            got = await door.get(to)
            assert got.body == data
            assert got["content-type"] == "text/x-test"
            assert (await door.get("/bucket/s")).status == (404 if method == "MOVE" else 200)


@pytest.mark.parametrize("method", ["COPY", "MOVE"])
async def test_a_tree_goes_to_a_new_name(tmp_path: Path, method: str) -> None:
    async with engine_in(tmp_path) as engine, dav_door(engine) as door:
        await door.made(*TREE, "/bucket/ab", "/other/")
        assert await status(door, method, "/bucket/a/", "/bucket/t/") == 201
        moved = ["t/", "t/b/", "t/b/y", "t/e/", "t/x"]
        there = [key for key in await keys(engine) if key.startswith("t")]
        assert there == moved
        assert await read(engine, "bucket", "t/b/y") == b"/bucket/a/b/y"
        kept = [key for key in await keys(engine) if key.startswith("a/")]
        assert bool(kept) == (method == "COPY")
        assert await status(door, method, "/bucket/t", "/other/t") == 201
        assert await keys(engine, "other") == moved
        assert "ab" in await keys(engine)


@pytest.mark.parametrize("method", ["COPY", "MOVE"])
async def test_a_tree_replaces_what_is_there(tmp_path: Path, method: str) -> None:
    """RFC 4918, section 9.8.4: what was there is not mixed with what comes."""
    async with engine_in(tmp_path) as engine, dav_door(engine) as door:
        await door.made(*TREE, "/bucket/t/", "/bucket/t/old", "/bucket/f")
        to = "/bucket/t/"
        assert await status(door, method, "/bucket/a/", to, Overwrite="F") == 412
        assert "t/old" in await keys(engine)
        assert await status(door, method, "/bucket/a/", to) == 204
        assert "t/old" not in await keys(engine)
        assert "t/b/y" in await keys(engine)
        assert await status(door, method, "/bucket/t/", "/bucket/f") == 204
        assert "f" not in await keys(engine)
        assert "f/b/y" in await keys(engine)


@pytest.mark.parametrize("method", ["COPY", "MOVE"])
async def test_a_file_replaces_a_folder(tmp_path: Path, method: str) -> None:
    async with engine_in(tmp_path) as engine, dav_door(engine) as door:
        await door.made(*TREE, "/bucket/f")
        assert await status(door, method, "/bucket/f", "/bucket/a", Overwrite="F") == 412
        assert await status(door, method, "/bucket/f", "/bucket/a/") == 204
        assert await read(engine, "bucket", "a") == b"/bucket/f"
        assert [key for key in await keys(engine) if key.startswith("a/")] == []


async def test_a_copy_of_depth_0_takes_the_folder_alone(tmp_path: Path) -> None:
    async with engine_in(tmp_path) as engine, dav_door(engine) as door:
        await door.made(*TREE)
        assert await status(door, "COPY", "/bucket/a/", "/bucket/t/", Depth="0") == 201
        assert [key for key in await keys(engine) if key.startswith("t")] == ["t/"]
        assert await status(door, "COPY", "/bucket/a/", "/bucket/u/", Depth="1") == 400
        assert await status(door, "MOVE", "/bucket/a/", "/bucket/u/", Depth="0") == 400


@pytest.mark.parametrize("method", ["COPY", "MOVE"])
@pytest.mark.parametrize(
    ("path", "to", "expected"),
    [
        ("/bucket/a/x", "/bucket/no/x", 409),
        ("/bucket/a/x", "/absent/x", 409),
        ("/bucket/a/x", "/bucket/a/x", 403),
        ("/bucket/a/", "/bucket/a/", 403),
        ("/bucket/a/", "/bucket/a/b/c/", 403),
        ("/bucket/a/b/", "/bucket/a/", 403),
        ("/bucket/a/x", "/", 403),
        ("/bucket/absent", "/bucket/y", 404),
        ("/bucket/a/x", "http://elsewhere.example/bucket/y", 502),
        ("/bucket/a/x", "nonsense", 400),
        ("/bucket/a/x", "/bucket/../x", 404),
        ("/bucket/a/x", "", 400),
        ("/bucket/a/x", "/bucket", 403),
        ("/bucket/a/", "/bucket", 403),
        ("/", "/bucket/a/r/", 403),
    ],
)
async def test_where_nothing_can_go(
    tmp_path: Path, method: str, path: str, to: str, expected: int
) -> None:
    async with engine_in(tmp_path) as engine, dav_door(engine) as door:
        await door.made(*TREE)
        before = await keys(engine)
        assert await status(door, method, path, to) == expected
        assert await keys(engine) == before


async def test_a_bucket_keeps_its_name(tmp_path: Path) -> None:
    async with engine_in(tmp_path) as engine, dav_door(engine) as door:
        await door.made(*TREE)
        assert await status(door, "MOVE", "/bucket/", "/renamed/") == 403


async def test_overwrite_f_is_decided_by_the_commit(tmp_path: Path) -> None:
    async with engine_in(tmp_path) as engine, dav_door(engine) as door:
        await door.made("/bucket/", "/bucket/x")
        real = engine.paths.find
        raced = False

        async def find(bucket: str, path: str):  # type: ignore[no-untyped-def]
            """Somebody writes the target right behind the look at it."""
            nonlocal raced
            found = await real(bucket, path)
            if path == "y" and not raced:
                raced = True
                await put(engine, "bucket", "y", b"theirs")
            return found

        with patch.object(engine.paths, "find", find):
            for method in ("COPY", "MOVE"):
                raced = False
                await engine.delete("bucket", "y")
                assert await status(door, method, "/bucket/x", "/bucket/y", Overwrite="F") == 412
                assert await read(engine, "bucket", "y") == b"theirs"
        assert await read(engine, "bucket", "x") == b"/bucket/x"


async def test_a_move_keeps_the_history_of_what_it_replaces(tmp_path: Path) -> None:
    async with engine_in(tmp_path) as engine, dav_door(engine) as door:
        await door.made("/bucket/")
        await engine.set_versioning("bucket", "Enabled")
        await door.made("/bucket/x", "/bucket/y")
        assert await status(door, "MOVE", "/bucket/x", "/bucket/y") == 204
        versions = (await engine.list_versions("bucket", prefix="y")).versions
        assert len(versions) == 2
        assert await read(engine, "bucket", "y") == b"/bucket/x"


async def test_members_that_failed_are_named_and_their_folders_stay(tmp_path: Path) -> None:
    async with engine_in(tmp_path) as engine, dav_door(engine) as door:
        await door.made(*TREE)
        real = engine.delete_many

        async def fail(bucket, items):  # type: ignore[no-untyped-def]
            answers = await real(bucket, [item for item in items if item.key != "a/b/y"])
            for position, item in enumerate(items):
                if item.key == "a/b/y":
                    answers.insert(position, NoSpace())
            return answers

        with patch.object(engine, "delete_many", fail):
            answer = await door.call("DELETE", "/bucket/a/")
        assert answer.status == 207
        assert answer.body.count(b"<D:response>") == 1
        assert b"<D:href>/bucket/a/b/y</D:href>" in answer.body
        assert b"507 Insufficient Storage" in answer.body
        assert await keys(engine) == ["a/", "a/b/", "a/b/y"]


async def test_a_client_that_leaves_stops_a_big_copy(tmp_path: Path) -> None:
    async with engine_in(tmp_path) as engine, dav_door(engine) as door:
        await door.made("/bucket/", "/bucket/a/")
        for number in range(40):
            await put(engine, "bucket", f"a/{number:02}", b"x")
        started = trio.Event()
        finished = trio.Event()
        real = engine.copy

        async def slow(*arguments, **more):  # type: ignore[no-untyped-def]
            started.set()
            try:
                await trio.sleep_forever()
            except trio.Cancelled:
                finished.set()
                raise
            return await real(*arguments, **more)

        def begin() -> socket.socket:
            opened = door.connect()
            head = b"COPY /bucket/a/ HTTP/1.1\r\nDestination: /bucket/b/\r\n\r\n"
            opened.sendall(with_login(head))
            return opened

        with patch.object(engine, "copy", slow), trio.fail_after(20):
            opened = await in_thread(begin)
            await started.wait()
            opened.close()
            await finished.wait()


async def test_what_cannot_be_done_says_what_can(tmp_path: Path) -> None:
    async with engine_in(tmp_path) as engine, dav_door(engine) as door:
        assert await status(door, "POST", "/") == 405
        assert "PUT" in (await door.call("POST", "/"))["allow"]
        assert await status(door, "BREW", "/") == 501
        answer = await door.call("OPTIONS", "/anywhere/at/all")
        assert answer.status == 200
        assert answer["dav"] == "1, 2, 3"
        assert answer["ms-author-via"] == "DAV"
        star = await door.raw(b"OPTIONS * HTTP/1.1\r\n\r\n")
        assert star.status == 200


async def test_a_fragment_deletes_nothing(tmp_path: Path) -> None:
    async with engine_in(tmp_path) as engine, dav_door(engine) as door:
        await door.made(*TREE)
        answer = await door.raw(b"DELETE /bucket/a/#x HTTP/1.1\r\n\r\n")
        assert answer.status == 400
        assert "a/x" in await keys(engine)


async def test_absolute_targets_and_doubled_slashes(tmp_path: Path) -> None:
    async with engine_in(tmp_path) as engine, dav_door(engine) as door:
        await door.made(*TREE)
        for target in (b"//bucket//a/x", b"http://localhost/bucket/a/x", b"///bucket/a///x"):
            answer = await door.raw(b"GET %s HTTP/1.1\r\n\r\n" % target)
            assert answer.body == b"/bucket/a/x"
