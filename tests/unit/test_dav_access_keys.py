"""What an access key may do through WebDAV."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from dav.app import HANDLERS, WRITING
from engine.access import FULL, NOTHING, Access
from tests.support.dav import SECRET, Door, basic, dav_door
from tests.support.engine import engine_in

KEYS = {
    "root": FULL,
    "reader": Access(read_only=True),
    "mine": Access(buckets=frozenset({"mine", "new"})),
    "gone": NOTHING,
}


@asynccontextmanager
async def opened(folder: Path) -> AsyncIterator[Door]:
    async with (
        engine_in(folder, drives=1, profile="1+0") as engine,
        dav_door(
            engine,
            secret_of=dict.fromkeys([*KEYS, "someone"], SECRET).get,
            access_of=lambda key: KEYS.get(key, FULL),
        ) as door,
    ):
        await door.made("/mine/", "/other/", "/mine/file", "/other/file")
        yield door


@pytest.fixture
async def door(tmp_path: Path) -> AsyncIterator[Door]:
    async with opened(tmp_path) as made:
        yield made


def hrefs(body: bytes) -> list[str]:
    return re.findall(r"<D:href>([^<]*)</D:href>", body.decode())


async def test_a_key_for_reading_is_refused_whatever_changes_something(door: Door) -> None:
    login = basic("reader")
    for method in HANDLERS:
        answer = await door.call(
            method, "/mine/file", login=login, Destination="/mine/new", Depth="0"
        )
        assert (answer.status == 403) == (method in WRITING), (method, answer)
    assert (await door.get("/mine/file")).body == b"/mine/file"


async def test_a_key_of_other_buckets_is_refused_whatever_it_asks(door: Door) -> None:
    login = basic("mine")
    for method in HANDLERS:
        if method == "OPTIONS":
            continue  # the same for every path
        for path in ("/other/", "/other/file", "/absent/file"):
            answer = await door.call(method, path, login=login, Destination="/mine/new", Depth="0")
            assert answer.status == 403, (method, path, answer)
    for method in ("COPY", "MOVE"):
        for path in ("/other/file", "/absent/x"):
            answer = await door.call(method, "/mine/file", login=login, Destination=path)
            assert answer.status == 403, (method, path, answer)
    assert (await door.get("/other/file")).body == b"/other/file"


async def test_a_key_sees_its_buckets_alone_and_does_all_there(door: Door) -> None:
    login = basic("mine")
    assert (await door.call("MKCOL", "/new/", login=login)).status == 201
    found = await door.call("PROPFIND", "/", login=login, Depth="1")
    assert hrefs(found.body) == ["/", "/mine/", "/new/"]
    page = await door.call("GET", "/", login=login)
    assert b"/mine/" in page.body
    assert b"other" not in page.body
    moved = await door.call("MOVE", "/mine/file", login=login, Destination="/new/file")
    assert moved.status == 201
    assert (await door.call("GET", "/new/file", login=login)).body == b"/mine/file"
    assert (await door.call("DELETE", "/new/", login=login)).status == 204


async def test_a_key_that_vanished_after_the_login_may_do_nothing(door: Door) -> None:
    login = basic("gone")
    for method, path in (("GET", "/mine/file"), ("PUT", "/mine/file"), ("PROPFIND", "/mine/")):
        assert (await door.call(method, path, login=login, Depth="0")).status == 403
    found = await door.call("PROPFIND", "/", login=login, Depth="1")
    assert hrefs(found.body) == ["/"]
