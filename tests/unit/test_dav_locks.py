"""LOCK, UNLOCK and If over the wire, and what they mean to the other doors."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import Element

import pytest
import trio
from defusedxml.ElementTree import fromstring

from dav.locks import DEFAULT_S, TIMEOUT_S_MAX, parse_timeout
from engine.errors import Locked
from tests.support.dav import ACCESS, SECRET, Answer, Door, basic, dav_door
from tests.support.engine import engine_in, folder_in, put, read

D = "{DAV:}"


@asynccontextmanager
async def door_in(tmp_path: Path, **settings: Any) -> AsyncIterator[Door]:
    async with engine_in(tmp_path) as engine, dav_door(engine, **settings) as door:
        await door.made("/bucket/")
        yield door


def lockinfo(scope: str = "exclusive", owner: str = "<D:href>me</D:href>") -> bytes:
    return (
        f'<?xml version="1.0"?><D:lockinfo xmlns:D="DAV:"><D:lockscope><D:{scope}/></D:lockscope>'
        f"<D:locktype><D:write/></D:locktype><D:owner>{owner}</D:owner></D:lockinfo>"
    ).encode()


async def lock(door: Door, path: str, scope: str = "exclusive", **headers: str) -> str:
    """Return the token's URI in angle brackets."""
    answer = await door.call("LOCK", path, lockinfo(scope), **headers)
    assert answer.status in (200, 201), answer
    return answer["Lock-Token"]


def active(answer: Answer) -> list[Element]:
    found = fromstring(answer.body).find(f"{D}lockdiscovery")
    assert found is not None
    return list(found)


async def discovered(door: Door, path: str) -> list[str]:
    """Return the tokens that PROPFIND shows, in angle brackets."""
    body = b'<D:propfind xmlns:D="DAV:"><D:prop><D:lockdiscovery/></D:prop></D:propfind>'
    answer = await door.call("PROPFIND", path, body, Depth="0")
    found = fromstring(answer.body).iter(f"{D}locktoken")
    return [f"<{token.findtext(D + 'href')}>" for token in found]


def condition(answer: Answer) -> tuple[str, list[str | None]]:
    error = fromstring(answer.body)
    assert error.tag == D + "error"
    return error[0].tag.removeprefix(D), [href.text for href in error[0]]


async def test_a_lock_is_described_in_its_answer(tmp_path: Path) -> None:
    async with door_in(tmp_path) as door:
        await door.made("/bucket/file")
        owner = '<x:who xmlns:x="urn:x">Ann &amp; <b/></x:who>'
        answer = await door.call(
            "LOCK", "/bucket/file", lockinfo(owner=owner), Timeout="Second-600", Depth="0"
        )
        assert answer.status == 200
        assert re.fullmatch(r"<opaquelocktoken:[0-9a-f-]{36}>", answer["Lock-Token"])
        [shown] = active(answer)
        assert shown.find(f"{D}lockscope/{D}exclusive") is not None
        assert shown.find(f"{D}locktype/{D}write") is not None
        assert shown.findtext(D + "depth") == "0"
        assert shown.findtext(D + "timeout") == "Second-600"
        assert f"<{shown.findtext(f'{D}locktoken/{D}href')}>" == answer["Lock-Token"]
        assert shown.findtext(f"{D}lockroot/{D}href") == "/bucket/file"
        who = shown.find(f"{D}owner/{{urn:x}}who")
        assert who is not None
        assert who.text == "Ann & "
        assert await discovered(door, "/bucket/file") == [answer["Lock-Token"]]


async def test_a_locked_file_answers_423_until_its_token_comes(tmp_path: Path) -> None:
    async with door_in(tmp_path) as door:
        await door.made("/bucket/file", "/bucket/other")
        token = await lock(door, "/bucket/file")
        calls: dict[str, tuple[str, str, bytes | None, dict[str, str]]] = {
            "PUT": ("PUT", "/bucket/file", b"new", {}),
            "DELETE": ("DELETE", "/bucket/file", None, {}),
            "MOVE": ("MOVE", "/bucket/file", None, {"Destination": "/bucket/away"}),
            "MOVE onto": ("MOVE", "/bucket/other", None, {"Destination": "/bucket/file"}),
            "COPY onto": ("COPY", "/bucket/other", None, {"Destination": "/bucket/file"}),
            "PROPPATCH": (
                "PROPPATCH",
                "/bucket/file",
                b'<D:propertyupdate xmlns:D="DAV:"><D:set><D:prop><x/></D:prop></D:set>'
                b"</D:propertyupdate>",
                {},
            ),
        }
        for method, path, body, headers in calls.values():
            answer = await door.call(method, path, body, **headers)
            assert answer.status == 423, (method, path)
            assert condition(answer) == ("lock-token-submitted", ["/bucket/file"])
        assert (await door.get("/bucket/file")).body == b"/bucket/file"
        # Copying from it needs no token.
        answer = await door.call("COPY", "/bucket/file", Destination="/bucket/copy")
        assert answer.status == 201
        assert (await door.put("/bucket/file", b"new", If=f"({token})")).status == 204
        # Office sends it in Lock-Token as well: MS-WDV, section 2.2.1.
        assert (await door.put("/bucket/file", b"newer", Lock_Token=token)).status == 204


async def test_a_lock_on_a_free_name_makes_an_empty_file(tmp_path: Path) -> None:
    async with door_in(tmp_path) as door:
        answer = await door.call("LOCK", "/bucket/new.docx", lockinfo())
        assert answer.status == 201
        token = answer["Lock-Token"]
        shown = await door.get("/bucket/new.docx")
        assert (shown.status, shown.body) == (200, b"")
        assert (await door.put("/bucket/new.docx", b"text")).status == 423
        assert (await door.put("/bucket/new.docx", b"text", If=f"({token})")).status == 204
        answer = await door.call("UNLOCK", "/bucket/new.docx", Lock_Token=token)
        assert answer.status == 204
        assert (await door.get("/bucket/new.docx")).body == b"text"


async def test_a_lock_needs_a_place(tmp_path: Path) -> None:
    async with door_in(tmp_path) as door:
        for path, status in (
            ("/bucket/no/parent", 409),
            ("/no-bucket/file", 409),
            ("/bucket/new/", 409),
            ("/", 403),
        ):
            assert (await door.call("LOCK", path, lockinfo())).status == status, path


async def test_what_a_deep_lock_of_a_folder_covers(tmp_path: Path) -> None:
    async with door_in(tmp_path) as door:
        await door.made("/bucket/a/", "/bucket/a/b/", "/bucket/a/b/file", "/bucket/c")
        token = await lock(door, "/bucket/a/")
        held = f"</bucket/a/> ({token})"
        for path in ("/bucket/a/b/file", "/bucket/a/b/new"):
            assert (await door.put(path, b"x")).status == 423
            assert (await door.put(path, b"x", If=held)).status in (201, 204)
        assert await discovered(door, "/bucket/a/b/file") == [token]
        assert await discovered(door, "/bucket/c") == []
        assert (await door.call("MKCOL", "/bucket/a/new/")).status == 423
        assert (await door.call("DELETE", "/bucket/a/b/")).status in (207, 423)
        assert (await door.call("MOVE", "/bucket/a/", Destination="/bucket/z/")).status == 423
        answer = await door.call("MOVE", "/bucket/a/", Destination="/bucket/z/", If=held)
        assert answer.status == 201
        # RFC 4918, section 7.6: the lock stays behind and is gone.
        assert await discovered(door, "/bucket/z/b/file") == []
        assert (await door.put("/bucket/z/b/file", b"free")).status == 204


async def test_members_that_are_locked_stay_when_their_folder_is_deleted(tmp_path: Path) -> None:
    async with door_in(tmp_path) as door:
        await door.made("/bucket/a/", "/bucket/a/one", "/bucket/a/two")
        token = await lock(door, "/bucket/a/one")
        answer = await door.call("DELETE", "/bucket/a/")
        assert answer.status == 207
        assert [href.text for href in fromstring(answer.body).iter(D + "href")] == ["/bucket/a/one"]
        assert (await door.get("/bucket/a/one")).status == 200
        assert (await door.get("/bucket/a/two")).status == 404
        answer = await door.call("DELETE", "/bucket/a/", If=f"</bucket/a/one> ({token})")
        assert answer.status == 204
        assert (await door.get("/bucket/a/one")).status == 404


async def test_locks_in_the_way_are_named(tmp_path: Path) -> None:
    async with door_in(tmp_path) as door:
        await door.made("/bucket/a/", "/bucket/a/file")
        await lock(door, "/bucket/a/file", "shared")
        answer = await door.call("LOCK", "/bucket/a/file", lockinfo())
        assert answer.status == 423
        assert condition(answer) == ("no-conflicting-lock", ["/bucket/a/file"])
        # RFC 4918, section 9.10.9.
        answer = await door.call("LOCK", "/bucket/a/", lockinfo(), Depth="infinity")
        assert answer.status == 207
        statuses = {
            response.findtext(D + "href"): response.findtext(D + "status")
            for response in fromstring(answer.body)
        }
        assert statuses == {
            "/bucket/a/file": "HTTP/1.1 423 Locked",
            "/bucket/a/": "HTTP/1.1 424 Failed Dependency",
        }
        assert (await door.call("LOCK", "/bucket/a/", lockinfo(), Depth="0")).status == 200
        assert (await door.call("LOCK", "/bucket/a/file", lockinfo("shared"))).status == 200
        assert len(await discovered(door, "/bucket/a/file")) == 2


async def test_refreshing_needs_the_token_and_moves_the_end(tmp_path: Path) -> None:
    async with door_in(tmp_path) as door:
        await door.made("/bucket/file", "/bucket/other")
        token = await lock(door, "/bucket/file", Timeout="Second-60")
        answer = await door.call("LOCK", "/bucket/file", If=f"({token})", Timeout="Second-500")
        assert answer.status == 200
        assert "lock-token" not in answer.headers
        assert active(answer)[0].findtext(D + "timeout") == "Second-500"
        assert (await door.call("LOCK", "/bucket/file")).status == 400
        for path in ("/bucket/file", "/bucket/other"):
            bad = "(<opaquelocktoken:nonsense>)" if path.endswith("file") else f"({token})"
            assert (await door.call("LOCK", path, If=bad)).status == 412


async def test_unlock_refuses_what_does_not_fit(tmp_path: Path) -> None:
    async with door_in(tmp_path) as door:
        await door.made("/bucket/file", "/bucket/other")
        token = await lock(door, "/bucket/file")
        assert (await door.call("UNLOCK", "/bucket/file")).status == 400
        assert (await door.call("UNLOCK", "/bucket/file", Lock_Token="nonsense")).status == 400
        for path, given in (
            ("/bucket/file", "<opaquelocktoken:nonsense>"),
            ("/bucket/other", token),
            ("/bucket/absent", token),
        ):
            answer = await door.call("UNLOCK", path, Lock_Token=given)
            assert answer.status == 409, path
            assert condition(answer)[0] == "lock-token-matches-request-uri"
        assert await discovered(door, "/bucket/file") == [token]


async def test_locks_are_good_in_the_hands_of_their_user_only(tmp_path: Path) -> None:
    async with engine_in(tmp_path) as engine:
        await engine.create_bucket("bucket", owner="owner")
        await put(engine, "bucket", "file", b"old")
        secrets = {ACCESS: SECRET, "other": "secret"}
        async with dav_door(engine, secret_of=secrets.get) as door:
            token = await lock(door, "/bucket/file")
            login = basic("other", "secret")
            answer = await door.call("PUT", "/bucket/file", b"x", login=login, If=f"({token})")
            assert answer.status == 423
            answer = await door.call("UNLOCK", "/bucket/file", login=login, Lock_Token=token)
            assert answer.status == 409


@pytest.mark.parametrize(
    ("header", "status"),
    [
        ("({token})", 204),
        ("({token} [{etag}])", 204),
        ('({token} ["else"])', 412),
        ('({token} ["else"]) ({token})', 204),
        ("(Not {token})", 412),
        ("(Not <DAV:no-lock> {token})", 204),
        ("(<DAV:no-lock>)", 412),
        ("(<DAV:no-lock>) (Not <DAV:no-lock>)", 423),
        ("([{etag}])", 423),
        ("</bucket/other> ({token})", 412),
        ("</bucket/other> (Not {token})", 204),
        ("({token}", 400),
    ],
)
async def test_if_is_decided_and_then_the_locks(tmp_path: Path, header: str, status: int) -> None:
    async with door_in(tmp_path) as door:
        etag = (await door.put("/bucket/file", b"old"))["ETag"]
        await door.made("/bucket/other")
        token = await lock(door, "/bucket/file")
        answer = await door.put("/bucket/file", b"new", If=header.format(token=token, etag=etag))
        assert answer.status == status
        expected = b"new" if status == 204 else b"old"
        assert (await door.get("/bucket/file")).body == expected


async def test_if_with_an_etag_decides_without_any_lock(tmp_path: Path) -> None:
    async with door_in(tmp_path) as door:
        old = (await door.put("/bucket/file", b"old"))["ETag"]
        await door.put("/bucket/file", b"newer")
        assert (await door.put("/bucket/file", b"lost", If=f"([{old}])")).status == 412
        assert (await door.call("DELETE", "/bucket/file", If=f"([{old}])")).status == 412
        answer = await door.call(
            "MOVE", "/bucket/file", Destination="/bucket/moved", If=f"([{old}])"
        )
        assert answer.status == 412
        answer = await door.call(
            "COPY", "/bucket/file", Destination="/bucket/copied", If=f"([{old}])"
        )
        assert answer.status == 412
        assert (await door.get("/bucket/file")).body == b"newer"
        assert (await door.get("/bucket/copied")).status == 404


async def test_moving_a_locked_file_onto_a_locked_file_needs_both_tokens(tmp_path: Path) -> None:
    """What Office does when it saves: the new text is moved onto the locked document."""
    async with door_in(tmp_path) as door:
        await door.made("/bucket/temp", "/bucket/doc")
        temp, doc = await lock(door, "/bucket/temp"), await lock(door, "/bucket/doc")
        for held in (f"({temp})", f"</bucket/doc> ({doc})"):
            answer = await door.call("MOVE", "/bucket/temp", Destination="/bucket/doc", If=held)
            assert answer.status == 423
        both = f"</bucket/temp> ({temp}) </bucket/doc> ({doc})"
        answer = await door.call("MOVE", "/bucket/temp", Destination="/bucket/doc", If=both)
        assert answer.status == 204
        assert (await door.get("/bucket/doc")).body == b"/bucket/temp"
        assert await discovered(door, "/bucket/doc") == [doc]


async def test_two_editors_with_locks_and_without_lose_nothing_silently(tmp_path: Path) -> None:
    async with door_in(tmp_path) as door:
        etag = (await door.put("/bucket/file", b"0"))["ETag"]
        statuses: list[int] = []

        async def save(number: int) -> None:
            answer = await door.put("/bucket/file", b"%d" % number, If_Match=etag)
            statuses.append(answer.status)

        async with trio.open_nursery() as nursery:
            for number in range(1, 9):
                nursery.start_soon(save, number)
        assert sorted(statuses) == [204] + [412] * 7
        granted: list[int] = []

        async def take() -> None:
            granted.append((await door.call("LOCK", "/bucket/file", lockinfo())).status)

        async with trio.open_nursery() as nursery:
            for _ in range(8):
                nursery.start_soon(take)
        assert sorted(granted) == [200] + [423] * 7


async def test_other_doors_are_told_of_locks(tmp_path: Path) -> None:
    async with door_in(tmp_path) as door:
        await door.made("/bucket/file")
        token = await lock(door, "/bucket/file")
        with pytest.raises(Locked):
            await put(door.engine, "bucket", "file", b"through S3")
        await door.call("UNLOCK", "/bucket/file", Lock_Token=token)
        await put(door.engine, "bucket", "file", b"through S3")
        assert await read(door.engine, "bucket", "file") == b"through S3"


async def test_locks_outlive_the_server(tmp_path: Path) -> None:
    folder = folder_in(tmp_path)
    await folder.prepare()
    async with folder.open() as engine, dav_door(engine) as door:
        await door.made("/bucket/", "/bucket/file")
        token = await lock(door, "/bucket/file")
    async with (
        folder.open() as one,
        folder.open() as other,
        dav_door(one) as door,
        dav_door(other) as second,
    ):
        for gateway in (door, second):
            assert (await gateway.put("/bucket/file", b"x")).status == 423
        assert (await second.put("/bucket/file", b"x", If=f"({token})")).status == 204


@pytest.mark.parametrize(
    "body",
    [
        b"<a/>",
        b'<D:lockinfo xmlns:D="DAV:"/>',
        lockinfo("private"),
        lockinfo().replace(b"write", b"read"),
        lockinfo().replace(b"<D:exclusive/>", b"<D:exclusive/><D:shared/>"),
        b"not xml",
    ],
)
async def test_wrong_lock_bodies_are_refused(tmp_path: Path, body: bytes) -> None:
    async with door_in(tmp_path) as door:
        assert (await door.call("LOCK", "/bucket/file", body)).status == 400
        assert (await door.get("/bucket/file")).status == 404


async def test_a_lock_is_0_or_infinitely_deep(tmp_path: Path) -> None:
    async with door_in(tmp_path) as door:
        answer = await door.call("LOCK", "/bucket/", lockinfo(), Depth="1")
        assert answer.status == 400


async def test_an_owner_is_bounded(tmp_path: Path) -> None:
    async with door_in(tmp_path) as door:
        answer = await door.call("LOCK", "/bucket/file", lockinfo(owner="x" * 4000))
        assert answer.status == 400


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        (None, DEFAULT_S),
        ("", DEFAULT_S),
        ("Second-600", 600),
        ("Infinite, Second-4100000000", TIMEOUT_S_MAX),
        ("Second-4100000000", TIMEOUT_S_MAX),
        ("Second-0", 1),
        ("Extend-5, Second-7", 7),
        ("second-30", 30),
        ("Second-" + "9" * 500, TIMEOUT_S_MAX),
        ("Second--1, nonsense", DEFAULT_S),
    ],
)
def test_timeouts_are_read_and_bounded(header: str | None, seconds: int) -> None:
    assert parse_timeout(header) == seconds
