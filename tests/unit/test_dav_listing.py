"""The page for browsers."""

from __future__ import annotations

import html
import re
from pathlib import Path
from unittest.mock import patch

from dav.names import href
from tests.support.dav import Door, dav_door
from tests.support.engine import engine_in, put

LINK = re.compile(rb'<tr[^>]*><td><a href="([^"]*)"( download="[^"]*")?>')


async def links(door: Door, path: str) -> list[tuple[str, bool]]:
    answer = await door.get(path)
    assert answer.status == 200
    assert answer["content-type"] == "text/html; charset=utf-8"
    return [
        (html.unescape(where.decode()), bool(download))
        for where, download in LINK.findall(answer.body)
    ]


async def test_folders_come_first_and_every_link_leads_to_its_entry(tmp_path: Path) -> None:
    names = ["<b>&\"'.txt", "a b", "ä", "100%", "#?;", "x%file", "..", "z"]
    async with engine_in(tmp_path) as engine, dav_door(engine) as door:
        await door.made("/bucket/", "/bucket/zz-folder/", "/bucket/d/")
        for name in names:
            await put(engine, "bucket", name, name.encode())
        await put(engine, "bucket", "d", b"beside")
        found = await links(door, "/bucket/")
        assert [is_file for _, is_file in found] == [False] * 2 + [True] * (len(names) + 1)
        bodies = {(await door.get(where)).body for where, is_file in found if is_file}
        assert bodies == {name.encode() for name in names} | {b"beside"}
        assert await links(door, "/") == [("/bucket/", False)]
        assert await links(door, "/bucket/d/") == []


async def test_no_name_becomes_markup(tmp_path: Path) -> None:
    async with engine_in(tmp_path) as engine, dav_door(engine) as door:
        await door.made("/bucket/")
        await put(engine, "bucket", '<script>"x"</script>/<img src=x>', b"x")
        for path in ("/bucket/", href("bucket", '<script>"x"<', folder=True)):
            page = await door.get(path)
            assert page.status == 200
            assert page["content-security-policy"].startswith("default-src 'none'")
            assert b"<script" not in page.body
            assert b"<img" not in page.body
        assert "default-src 'none'" in page.headers.get(
            "content-security-policy", "default-src 'none'"
        )


async def test_a_long_folder_has_pages(tmp_path: Path) -> None:
    async with engine_in(tmp_path) as engine, dav_door(engine) as door:
        await door.made("/bucket/", "/bucket/d/")
        for number in range(7):
            await put(engine, "bucket", f"d/{number} &", b"x")
        seen: list[str] = []
        path = "/bucket/d/"
        with patch("dav.listing.PAGE", 3):
            while True:
                seen += [where for where, _ in await links(door, path)]
                more = re.search(rb'<a href="(\?after=[^"]+)">next', (await door.get(path)).body)
                if more is None:
                    break
                path = "/bucket/d/" + html.unescape(more[1].decode())
        assert len(seen) == len(set(seen)) == 7


async def test_head_has_the_headers_of_the_page(tmp_path: Path) -> None:
    async with engine_in(tmp_path) as engine, dav_door(engine) as door:
        await door.made("/bucket/")
        page, head = await door.get("/bucket/"), await door.call("HEAD", "/bucket/")
        assert head.body == b""
        assert head["content-length"] == page["content-length"]
        assert (await door.get("/absent/")).status == 404
