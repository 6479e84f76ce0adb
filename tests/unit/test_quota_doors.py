"""A bucket's quota through WebDAV and through S3."""

from __future__ import annotations

from pathlib import Path

from defusedxml.ElementTree import fromstring

from engine.types import Quota
from tests.support.dav import dav_door
from tests.support.engine import engine_in, put

D = "{DAV:}"
QUOTA = (
    b'<D:propfind xmlns:D="DAV:"><D:prop><D:quota-available-bytes/><D:quota-used-bytes/>'
    b"</D:prop></D:propfind>"
)


async def test_webdav_answers_507_and_says_that_it_is_the_quota(tmp_path: Path) -> None:
    async with engine_in(tmp_path) as engine, dav_door(engine) as door:
        await door.made("/bucket/")
        await engine.set_quota("bucket", Quota(bytes=1000, objects=2))
        await put(engine, "bucket", "file", bytes(400))
        for size in (601, 200_000):
            answer = await door.put("/bucket/new", bytes(size))
            assert answer.status == 507
            assert fromstring(answer.body).find(D + "quota-not-exceeded") is not None
        assert (await door.call("GET", "/bucket/new")).status == 404
        assert (await door.put("/bucket/file", bytes(1000))).status in (200, 204)
        assert (await door.call("MKCOL", "/bucket/folder/")).status == 201
        assert (await door.call("MKCOL", "/bucket/second/")).status == 507
        copy = await door.call("COPY", "/bucket/file", Destination="/bucket/copy")
        assert copy.status == 507
        move = await door.call("MOVE", "/bucket/file", Destination="/bucket/moved")
        assert move.status == 201


async def test_webdav_shows_what_the_quota_leaves(tmp_path: Path) -> None:
    async with engine_in(tmp_path) as engine, dav_door(engine) as door:
        await door.made("/bucket/")
        await door.made("/bucket/folder/")
        await engine.set_quota("bucket", Quota(bytes=1000))
        await put(engine, "bucket", "file", bytes(400))
        for path in ("/bucket/", "/bucket/folder/"):
            answer = await door.call("PROPFIND", path, QUOTA, Depth="0")
            found = fromstring(answer.body)
            assert found.findtext(f".//{D}quota-available-bytes") == "600"
            assert found.findtext(f".//{D}quota-used-bytes") == "400"
        await engine.set_quota("bucket", Quota(bytes=10))
        found = fromstring((await door.call("PROPFIND", "/bucket/", QUOTA, Depth="0")).body)
        assert found.findtext(f".//{D}quota-available-bytes") == "0"
