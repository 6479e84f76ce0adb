"""Basic and Digest: who is let in, and what a captured request is worth."""

from __future__ import annotations

from pathlib import Path

import pytest

from dav.auth import (
    NONCE_S,
    SKEW_S,
    WINDOW,
    Nonces,
    digest_response,
    is_loopback,
    parse_digest,
    same_target,
)
from tests.support.dav import ACCESS, SECRET, Answer, Door, basic, challenge, dav_door
from tests.support.engine import engine_in


def digest(
    asked: Answer, method: str, uri: str, *, secret: str = SECRET, count: int = 1, **more: str
) -> str:
    """Return the Authorization header that answers a challenge."""
    fields = {
        "username": ACCESS,
        "realm": challenge(asked)["realm"],
        "nonce": challenge(asked)["nonce"],
        "uri": uri,
        "nc": f"{count:08x}",
        "cnonce": "abc",
        "qop": "auth",
        **more,
    }
    response = digest_response(fields, user=fields["username"], secret=secret, method=method)
    quoted = ", ".join(f'{name}="{value}"' for name, value in fields.items())
    return f'Digest {quoted}, response="{response}"'


async def ask(door: Door, uri: str = "/") -> Answer:
    answer = await door.call("GET", uri, login="")
    assert answer.status == 401
    return answer


def test_the_response_is_that_of_the_rfc() -> None:
    # RFC 7616, section 3.9.1.
    fields = parse_digest(
        'username="Mufasa", realm="http-auth@example.org", uri="/dir/index.html", '
        'algorithm=MD5, nonce="7ypf/xlj9XXwfDPEoM4URrv/xwf94BcCAzFZH4GiTo0v", nc=00000001, '
        'cnonce="f2/wE4q74E6zIJEtWaHKaf5wv/H5QzzpXusqGemxURZJ", qop=auth, '
        'response="8ca523f5e9506fed4657c9700eebdbec", '
        'opaque="FQhe/qaU925kfnzjCev0ciny7QMkPqMAFRtzCUYo5tdS"'
    )
    response = digest_response(fields, user="Mufasa", secret="Circle of Life", method="GET")
    assert response == fields["response"]


def test_quoted_values_may_have_commas_and_escapes() -> None:
    fields = parse_digest(r'uri="/a,b=c", username="a\"b", nc=1')
    assert fields == {"uri": "/a,b=c", "username": 'a"b', "nc": "1"}


@pytest.mark.parametrize(
    ("uri", "target", "same"),
    [
        ("/a b", "/a%20b", True),
        ("http://host/a", "/a", True),
        ("/a", "/a?x=1", True),
        ("/a", "/b", False),
        ("/a/", "/a", False),
    ],
)
def test_the_uri_has_to_be_the_target(uri: str, target: str, same: bool) -> None:
    assert same_target(uri, target) is same


@pytest.mark.parametrize(
    ("address", "local"),
    [
        ("127.0.0.1", True),
        ("127.8.8.8", True),
        ("::1", True),
        ("::ffff:127.0.0.1", True),
        ("10.0.0.1", False),
        ("::ffff:10.0.0.1", False),
        ("", False),
        ("x", False),
    ],
)
def test_this_machine(address: str, local: bool) -> None:
    assert is_loopback(address) is local


def test_a_count_is_good_once_in_any_order() -> None:
    nonces = Nonces(b"key", lambda: 1000.0)
    nonce = nonces.make()
    assert [nonces.use(nonce, f"{n:x}") for n in (3, 1, 2, 300, 299)] == [True] * 5
    assert [nonces.use(nonce, f"{n:x}") for n in (1, 2, 3, 300, 299, 300 - WINDOW, 0)] == [
        False
    ] * 7


def test_a_nonce_is_ours_and_young() -> None:
    now = 1000.0
    nonces = Nonces(b"key", lambda: now)
    nonce = nonces.make()
    assert not Nonces(b"other", lambda: now).use(nonce, "1")
    assert not nonces.use("AAAA", "1")
    assert not nonces.use("!", "1")
    assert not nonces.use(nonce, "x")
    assert nonces.use(nonce, "1")
    now += NONCE_S + 1
    assert not nonces.use(nonce, "2")


def test_processes_with_one_key_take_each_others_nonces() -> None:
    now = 1000.0
    one, other = Nonces(b"key", lambda: now), Nonces(b"key", lambda: now - SKEW_S)
    nonce = one.make()
    assert one.use(nonce, "1")
    assert other.use(nonce, "2")
    assert not other.use(nonce, "2")
    assert one.use(nonce, "3")
    now += NONCE_S + 1
    assert not one.use(nonce, "4")
    later = one.make()
    now -= SKEW_S + 2
    assert not one.use(later, "1"), "made in the future"


async def test_a_digest_is_good_at_every_server_of_a_store(tmp_path: Path) -> None:
    async with (
        engine_in(tmp_path) as engine,
        dav_door(engine, nonce_key=b"k") as first,
        dav_door(engine, nonce_key=b"k") as second,
        dav_door(engine, nonce_key=b"other") as stranger,
    ):
        asked = await ask(first)
        for number, door in enumerate((first, second, first, second), 1):
            login = digest(asked, "GET", "/", count=number)
            assert (await door.call("GET", "/", login=login)).status == 200
        refused = await stranger.call("GET", "/", login=digest(asked, "GET", "/", count=9))
        assert refused.status == 401
        assert challenge(refused)["stale"] == "true"


async def test_basic_and_digest_let_in(tmp_path: Path) -> None:
    async with engine_in(tmp_path) as engine, dav_door(engine) as door:
        assert (await door.call("GET", "/")).status == 200
        asked = await ask(door)
        answer = await door.call("GET", "/", login=digest(asked, "GET", "/"))
        assert answer.status == 200


@pytest.mark.parametrize(
    "login",
    [
        basic(password="wrong"),
        basic(user="nobody"),
        basic(user="", password=""),
        basic(user="nobody", password=""),
        "Basic !!!",
        "Basic",
        "Digest",
        'Digest username="someone"',
        "Bearer x",
    ],
)
async def test_others_are_refused(tmp_path: Path, login: str) -> None:
    async with engine_in(tmp_path) as engine, dav_door(engine) as door:
        assert (await door.call("GET", "/", login=login)).status == 401


async def test_a_digest_is_bound_to_method_target_secret_and_nonce(tmp_path: Path) -> None:
    async with engine_in(tmp_path) as engine, dav_door(engine) as door:
        asked = await ask(door)

        async def status(method: str, path: str, login: str) -> int:
            return (await door.call(method, path, login=login)).status

        assert await status("MKCOL", "/other/", digest(asked, "GET", "/other/")) == 401
        assert await status("GET", "/b/", digest(asked, "GET", "/")) == 401
        assert await status("GET", "/", digest(asked, "GET", "/", secret="x")) == 401
        assert await status("GET", "/", digest(asked, "GET", "/", nonce="bWFkZSB1cA==")) == 401
        assert await status("GET", "/", digest(asked, "GET", "/", realm="else")) == 401
        assert await status("GET", "/", digest(asked, "GET", "/", qop="auth-int")) == 401
        assert await status("GET", "/", digest(asked, "GET", "/")) == 200


async def test_a_replayed_digest_is_stale(tmp_path: Path) -> None:
    async with engine_in(tmp_path) as engine, dav_door(engine) as door:
        login = digest(await ask(door), "MKCOL", "/bucket/")
        assert (await door.call("MKCOL", "/bucket/", login=login)).status == 201
        again = await door.call("MKCOL", "/bucket/", login=login)
        assert again.status == 401
        assert challenge(again)["stale"] == "true"


async def test_basic_is_not_offered_where_others_could_read_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dav.auth.is_loopback", lambda address: False)
    async with engine_in(tmp_path) as engine:
        async with dav_door(engine) as door:
            refused = await door.call("GET", "/")
            assert refused.status == 401
            assert "Basic" not in refused["www-authenticate"]
            login = digest(refused, "GET", "/")
            assert (await door.call("GET", "/", login=login)).status == 200
        async with dav_door(engine, basic_without_tls=True) as door:
            assert (await door.call("GET", "/")).status == 200


async def test_office_learns_nothing_before_it_logs_in(tmp_path: Path) -> None:
    agent = {"User-Agent": "Microsoft Office Existence Discovery"}
    async with engine_in(tmp_path) as engine, dav_door(engine) as door:
        await door.made("/bucket/", "/bucket/here.docx")
        for method in ("OPTIONS", "HEAD"):
            answers = [
                await door.call(method, path, login="", **agent)
                for path in ("/bucket/", "/bucket/here.docx", "/bucket/absent", "/nowhere/x")
            ]
            assert {answer.status for answer in answers} == {200}
            assert len({frozenset(a.headers.items() - {("date", a["date"])}) for a in answers}) == 1
            assert answers[0]["ms-author-via"] == "DAV"
        assert (await door.call("GET", "/bucket/here.docx", login="", **agent)).status == 401
        assert (await door.call("PUT", "/bucket/x", b"x", login="", **agent)).status == 401
        assert (await door.call("HEAD", "/bucket/", login="")).status == 401
