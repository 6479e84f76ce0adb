"""Names over 255 bytes: shown in pieces, as in the mount, and reached through them."""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import unquote_to_bytes

import pytest

from dav.names import href, parse_target
from tests.support.dav import Door, dav_door
from tests.support.engine import engine_in, put, read

LONG = "long " * 60 + "é😀.txt"
"""Two pieces."""
LONGER = "x" * 500 + ".txt"
"""Three, which begin like those of other keys."""
KEYS = (
    *(LONG, LONGER, "x" * 250, "x" * 300, "plain"),
    f"{LONG}s/inside",
    f"folder/{LONGER}",
    f"folder/{LONGER}/deep",
)


async def names(door: Door, url: str, depth: str = "1,noroot") -> list[str]:
    answer = await door.call("PROPFIND", url, Depth=depth)
    assert answer.status == 207
    return re.findall(r"<D:href>([^<]*)</D:href>", answer.body.decode())


async def walk(door: Door, url: str) -> list[str]:
    """Return the URLs of all files below, in the way that a client finds them."""
    found = []
    for inner in await names(door, url):
        found += await walk(door, inner) if inner.endswith("/") else [inner]
    return found


async def test_every_long_name_is_found_read_and_written(tmp_path: Path) -> None:
    async with engine_in(tmp_path) as engine, dav_door(engine, infinite_depth=True) as door:
        await door.made("/bucket/")
        for key in KEYS:
            await put(engine, "bucket", key, b"old")
        listed = await engine.list_objects("bucket", limit=100)
        assert {found.key for found in listed.objects} == set(KEYS)

        urls = await walk(door, "/bucket/")
        assert len(urls) == len(set(urls)) == len(KEYS)
        for url in urls:
            assert all(len(unquote_to_bytes(part)) <= 255 for part in url.split("/"))
            target = parse_target(url)
            assert (await door.put(url, target.path.encode())).status == 204
        assert {(await door.get(url)).body.decode() for url in urls} == set(KEYS)
        for key in KEYS:
            assert await read(engine, "bucket", key) == key.encode()
        assert sorted(u for u in await names(door, "/bucket/", "infinity") if u[-1] != "/") == (
            sorted(urls)
        )
        for url in urls:
            assert (await door.call("DELETE", url)).status == 204


async def test_long_names_are_copied_moved_locked_and_shown(tmp_path: Path) -> None:
    async with engine_in(tmp_path) as engine, dav_door(engine) as door:
        await door.made("/bucket/", "/bucket/file")
        where = href("bucket", LONG, folder=False)
        for method, status in (("COPY", 201), ("MOVE", 204)):
            answer = await door.call(method, "/bucket/file", Destination=where)
            assert answer.status == status
        assert (await door.get(where)).body == b"/bucket/file"
        lockinfo = (
            b'<D:lockinfo xmlns:D="DAV:"><D:lockscope><D:exclusive/></D:lockscope>'
            b"<D:locktype><D:write/></D:locktype></D:lockinfo>"
        )
        locked = await door.call("LOCK", where, lockinfo, Depth="0")
        assert locked.status == 200
        refused = await door.put(where, b"x")
        assert refused.status == 423
        assert where.encode() in refused.body
        token = locked["lock-token"]
        assert (await door.call("UNLOCK", where, Lock_Token=token)).status == 204

        page = (await door.get("/bucket/")).body.decode()
        (more,) = re.findall(r'href="([^"]*%25more/)"', page)
        assert f'href="{where}"' in (await door.get(more)).body.decode()


@pytest.mark.parametrize(
    "method", ["PUT", "MKCOL", "DELETE", "PROPPATCH", "LOCK", "UNLOCK", "COPY", "MOVE"]
)
async def test_a_piece_of_a_name_is_only_looked_at(tmp_path: Path, method: str) -> None:
    async with engine_in(tmp_path) as engine, dav_door(engine) as door:
        await door.made("/bucket/", "/bucket/file")
        where = href("bucket", LONG, folder=False)
        assert (await door.put(where, b"long")).status == 201
        more = where.rpartition("/")[0] + "/"
        assert (await door.get(more)).status == 200
        assert (await door.call(method, more, Destination="/bucket/to")).status == 403
        if method in ("COPY", "MOVE"):
            assert (await door.call(method, "/bucket/file", Destination=more)).status == 403
        assert (await door.get(where)).body == b"long"
        # Nothing goes on there any more.
        assert (await door.call("DELETE", where)).status == 204
        assert (await door.call("PROPFIND", more, Depth="0")).status == 404


async def test_names_that_were_not_cut_are_refused(tmp_path: Path) -> None:
    async with engine_in(tmp_path) as engine, dav_door(engine) as door:
        await door.made("/bucket/", "/bucket/file")
        for method in ("PUT", "GET", "MKCOL"):
            assert (await door.call(method, "/bucket/" + "x" * 256)).status == 414
        answer = await door.call("MOVE", "/bucket/file", Destination="/bucket/" + "x" * 256)
        assert answer.status == 414
        assert (await door.get("/bucket/file")).status == 200
