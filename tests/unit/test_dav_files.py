"""PUT, GET and HEAD over a real socket."""

from __future__ import annotations

import hashlib
import socket
from pathlib import Path

import pytest
import trio

from dav.config import MacFiles
from dav.times import http_date
from engine.engine import Engine
from engine.errors import NoSuchKey
from engine.types import NO_CONDITIONS, Attributes
from tests.support.dav import basic, dav_door, in_thread, read_answer, with_login
from tests.support.engine import (
    KIB,
    border_sizes,
    count_fragments,
    data_rows,
    engine_in,
    pattern,
    put,
    read,
)

BIG = 300 * KIB


async def absent(engine: Engine, key: str) -> bool:
    try:
        await engine.head("bucket", key)
    except NoSuchKey:
        return True
    return False


async def test_what_is_put_is_what_is_got(tmp_path: Path) -> None:
    async with engine_in(tmp_path) as engine, dav_door(engine) as door:
        await door.made("/bucket/")
        for size in border_sizes():
            data = pattern(size)
            made = await door.put(f"/bucket/{size}", data, Content_Type="text/x-test")
            assert made.status == 201
            assert made["etag"] == f'"{hashlib.md5(data).hexdigest()}"'
            got = await door.get(f"/bucket/{size}")
            assert got.status == 200
            assert got.body == data
            assert got["content-type"] == "text/x-test"
            assert got["etag"] == made["etag"]
            assert int(got["content-length"]) == size
            head = await door.call("HEAD", f"/bucket/{size}")
            assert (head.status, head.body) == (200, b"")
            assert head["content-length"] == str(size)
            assert await read(engine, "bucket", str(size)) == data


async def test_replacing_answers_204_and_changes_the_etag(tmp_path: Path) -> None:
    async with engine_in(tmp_path) as engine, dav_door(engine) as door:
        await door.made("/bucket/", "/bucket/x")
        first = await door.call("HEAD", "/bucket/x")
        assert (await door.put("/bucket/x", b"new")).status == 204
        second = await door.get("/bucket/x")
        assert second.body == b"new"
        assert first["etag"] != second["etag"]


async def test_chunks_of_unknown_length(tmp_path: Path) -> None:
    data = pattern(BIG)
    async with engine_in(tmp_path) as engine, dav_door(engine) as door:
        await door.made("/bucket/")
        pieces = [data[at : at + 7001] for at in range(0, BIG, 7001)]
        assert (await door.call("PUT", "/bucket/x", pieces)).status == 201
        assert (await door.get("/bucket/x")).body == data
        assert (await door.call("PUT", "/bucket/empty", [])).status == 201
        assert (await door.get("/bucket/empty")).body == b""


@pytest.mark.parametrize("size", [0, 1, 500, 3 * KIB, BIG])
@pytest.mark.parametrize("framing", ["length", "chunks"])
async def test_a_put_that_breaks_off_leaves_nothing(
    tmp_path: Path, size: int, framing: str
) -> None:
    """wsgidav 4.4.0 made an empty resource first, and answered 201 to what came of the rest."""
    async with engine_in(tmp_path) as engine, dav_door(engine) as door:
        await door.made("/bucket/", "/bucket/old")
        before = await count_fragments(engine)

        def send(path: bytes) -> None:
            opened = door.connect()
            with opened:
                if framing == "length":
                    head = b"Content-Length: %d" % (size + 10)
                    body = pattern(size)
                else:
                    head = b"Transfer-Encoding: chunked"
                    body = b"%x\r\n%s\r\n" % (size, pattern(size)) if size else b""
                opened.sendall(with_login(b"PUT %s HTTP/1.1\r\n%s\r\n\r\n" % (path, head)) + body)
                opened.shutdown(socket.SHUT_WR)
                answer = read_answer(opened)
                assert answer.status == 400

        await in_thread(send, b"/bucket/new")
        await in_thread(send, b"/bucket/old")
        assert await absent(engine, "new")
        assert await read(engine, "bucket", "old") == b"/bucket/old"
        assert await count_fragments(engine) == before


async def test_finders_chunks_have_to_have_the_length_that_it_says(tmp_path: Path) -> None:
    # macOS sends PUT with chunks and X-Expected-Entity-Length: Apple, webdavfs, network.c.
    async with engine_in(tmp_path) as engine, dav_door(engine) as door:
        await door.made("/bucket/")

        async def send(said: str) -> int:
            headers = {"X-Expected-Entity-Length": said}
            return (await door.call("PUT", "/bucket/x", [b"abc", b"de"], **headers)).status

        assert [await send(said) for said in ("6", "4", "x", "-5")] == [400] * 4
        assert await absent(engine, "x")
        assert await send("5") == 201


async def test_a_digest_that_differs_leaves_nothing(tmp_path: Path) -> None:
    async with engine_in(tmp_path) as engine, dav_door(engine) as door:
        await door.made("/bucket/")
        wrong = await door.put("/bucket/x", b"abc", Content_MD5="AAAAAAAAAAAAAAAAAAAAAA==")
        assert wrong.status == 400
        assert (await door.put("/bucket/x", b"abc", Content_MD5="x")).status == 400
        assert await absent(engine, "x")


async def test_continue_comes_behind_the_login_and_only_if_the_body_is_wanted(
    tmp_path: Path,
) -> None:
    async with engine_in(tmp_path) as engine, dav_door(engine) as door:
        await door.made("/bucket/")

        def first_line(path: str, login: str, more: str = "") -> bytes:
            opened = door.connect()
            opened.sendall(
                f"PUT {path} HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n{login}{more}"
                "Expect: 100-continue\r\n\r\n".encode()
            )
            return opened.recv(65536).partition(b"\r\n")[0]

        login = f"Authorization: {basic()}\r\n"
        assert await in_thread(first_line, "/bucket/x", login) == b"HTTP/1.1 100 Continue"
        refused = await in_thread(first_line, "/bucket/x", "")
        assert refused == b"HTTP/1.1 401 Unauthorized"
        nowhere = await in_thread(first_line, "/bucket/no/x", login)
        assert nowhere == b"HTTP/1.1 409 Conflict"
        conditional = await in_thread(first_line, "/bucket/x", login, 'If-Match: "x"\r\n')
        assert conditional == b"HTTP/1.1 412 Precondition Failed"


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"If-Match": "*"}, 204),
        ({"If-Match": '"ETAG"'}, 204),
        ({"If-Match": '"other", "ETAG"'}, 204),
        ({"If-Match": '"other"'}, 412),
        ({"If-Match": 'W/"ETAG"'}, 412),
        ({"If-None-Match": "*"}, 412),
        ({"If-None-Match": '"ETAG"'}, 412),
        ({"If-None-Match": '"other"'}, 204),
        ({"If-Unmodified-Since": "LATER"}, 204),
        ({"If-Unmodified-Since": "SAME"}, 204),
        ({"If-Unmodified-Since": "EARLIER"}, 412),
        ({"If-Match": '"ETAG"', "If-Unmodified-Since": "EARLIER"}, 204),
        ({"If-Unmodified-Since": "no date"}, 204),
    ],
)
@pytest.mark.parametrize("method", ["PUT", "DELETE"])
async def test_conditions_of_writes(
    tmp_path: Path, method: str, headers: dict[str, str], status: int
) -> None:
    async with engine_in(tmp_path) as engine, dav_door(engine) as door:
        await door.made("/bucket/", "/bucket/x")
        info = await engine.head("bucket", "x")
        filled = {name: fill(value, info.etag, info.modified_ms) for name, value in headers.items()}
        body = b"new" if method == "PUT" else None
        assert (await door.call(method, "/bucket/x", body, **filled)).status == status
        changed = await absent(engine, "x") or (await read(engine, "bucket", "x")) == b"new"
        assert changed == (status == 204)


def fill(value: str, etag: str, modified_ms: int) -> str:
    return (
        value.replace("ETAG", etag)
        .replace("SAME", http_date(modified_ms))
        .replace("LATER", http_date(modified_ms + 5000))
        .replace("EARLIER", http_date(modified_ms - 5000))
    )


async def test_if_match_on_what_is_not_there_fails(tmp_path: Path) -> None:
    """wsgidav 4.4.0 looks at conditions only when the resource exists."""
    async with engine_in(tmp_path) as engine, dav_door(engine) as door:
        await door.made("/bucket/")
        for match in ("*", '"x"'):
            assert (await door.put("/bucket/x", b"x", If_Match=match)).status == 412
        assert await absent(engine, "x")
        assert (await door.put("/bucket/x", b"x", If_None_Match="*")).status == 201


async def test_of_two_editors_that_save_at_once_one_is_told(tmp_path: Path) -> None:
    """The condition is decided by the commit, not when the request came."""
    async with engine_in(tmp_path) as engine, dav_door(engine) as door:
        await door.made("/bucket/", "/bucket/x")
        etag = (await door.call("HEAD", "/bucket/x"))["etag"]

        def begin() -> socket.socket:
            opened = door.connect()
            head = f"PUT /bucket/x HTTP/1.1\r\nIf-Match: {etag}\r\nContent-Length: 2\r\n"
            opened.sendall(with_login(head.encode() + b"Expect: 100-continue\r\n\r\n"))
            assert b"100 Continue" in opened.recv(65536)
            return opened

        def finish(opened: socket.socket, body: bytes) -> int:
            opened.sendall(body)
            return read_answer(opened).status

        first, second = await in_thread(begin), await in_thread(begin)
        assert await in_thread(finish, second, b"22") == 204
        assert await in_thread(finish, first, b"11") == 412
        assert await read(engine, "bucket", "x") == b"22"


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"If-Modified-Since": "SAME"}, 304),
        ({"If-Modified-Since": "LATER"}, 304),
        ({"If-Modified-Since": "EARLIER"}, 200),
        ({"If-Modified-Since": "no date"}, 200),
        ({"If-None-Match": '"ETAG"'}, 304),
        ({"If-None-Match": 'W/"ETAG"'}, 304),
        ({"If-None-Match": "*"}, 304),
        ({"If-None-Match": '"other"'}, 200),
        ({"If-None-Match": '"other"', "If-Modified-Since": "SAME"}, 200),
        ({"If-None-Match": '"ETAG"', "If-Modified-Since": "EARLIER"}, 304),
        ({"If-Match": '"ETAG"'}, 200),
        ({"If-Match": '"other"'}, 412),
        ({"If-Match": '"ETAG"', "If-Unmodified-Since": "EARLIER"}, 200),
        ({"If-Unmodified-Since": "EARLIER"}, 412),
        ({"If-Match": '"other"', "If-None-Match": '"ETAG"'}, 412),
    ],
)
@pytest.mark.parametrize("method", ["GET", "HEAD"])
async def test_conditions_of_reads(
    tmp_path: Path, method: str, headers: dict[str, str], status: int
) -> None:
    """wsgidav 4.4.0 sends the bytes again when the times are equal."""
    async with engine_in(tmp_path) as engine, dav_door(engine) as door:
        await door.made("/bucket/", "/bucket/x")
        info = await engine.head("bucket", "x")
        filled = {name: fill(value, info.etag, info.modified_ms) for name, value in headers.items()}
        answer = await door.call(method, "/bucket/x", **filled)
        assert answer.status == status
        if status == 304:
            assert answer["etag"] == f'"{info.etag}"'
            assert answer.body == b""


async def test_one_range(tmp_path: Path) -> None:
    data = pattern(BIG)
    async with engine_in(tmp_path) as engine, dav_door(engine) as door:
        await door.made("/bucket/")
        await door.put("/bucket/x", data)
        for text, first, end in (("0-0", 0, 1), ("100-", 100, BIG), ("-7", BIG - 7, BIG)):
            answer = await door.get("/bucket/x", Range=f"bytes={text}")
            assert answer.status == 206
            assert answer.body == data[first:end]
            assert answer["content-range"] == f"bytes {first}-{end - 1}/{BIG}"
        outside = await door.get("/bucket/x", Range=f"bytes={BIG}-")
        assert outside.status == 416
        assert outside["content-range"] == f"bytes */{BIG}"
        assert (await door.get("/bucket/x", Range="bytes=2-1")).status == 200


@pytest.mark.parametrize("size", [400, BIG])
async def test_several_ranges_come_as_parts(tmp_path: Path, size: int) -> None:
    """wsgidav 4.4.0 sends the first one only."""
    data = pattern(size)
    async with engine_in(tmp_path) as engine, dav_door(engine) as door:
        await door.made("/bucket/")
        await door.put("/bucket/x", data, Content_Type="text/plain")
        answer = await door.get("/bucket/x", Range="bytes=0-1,50-99,-3")
        assert answer.status == 206
        kind, _, boundary = answer["content-type"].partition("; boundary=")
        assert kind == "multipart/byteranges"
        parts = answer.body.split(f"\r\n--{boundary}".encode())
        assert parts[0] == b""
        assert parts[-1] == b"--\r\n"
        expected = [(0, 2), (50, 100), (size - 3, size)]
        assert len(parts) == 2 + len(expected)
        for part, (first, end) in zip(parts[1:], expected, strict=False):
            head, _, body = part.partition(b"\r\n\r\n")
            assert f"Content-Range: bytes {first}-{end - 1}/{size}".encode() in head
            assert b"Content-Type: text/plain" in head
            assert body == data[first:end]


async def test_if_range_continues_the_same_version_only(tmp_path: Path) -> None:
    async with engine_in(tmp_path) as engine, dav_door(engine) as door:
        await door.made("/bucket/", "/bucket/x")
        info = await engine.head("bucket", "x")

        async def status(value: str) -> int:
            value = fill(value, info.etag, info.modified_ms)
            return (await door.get("/bucket/x", Range="bytes=0-1", If_Range=value)).status

        assert await status('"ETAG"') == 206
        assert await status("SAME") == 206
        assert await status('"other"') == 200
        assert await status('W/"ETAG"') == 200
        assert await status("LATER") == 200
        assert await status("EARLIER") == 200


async def test_a_download_keeps_its_version_while_it_is_replaced(tmp_path: Path) -> None:
    size = 6 << 20
    data = pattern(size)
    async with engine_in(tmp_path) as engine, dav_door(engine) as door:
        await door.made("/bucket/")
        await put(engine, "bucket", "x", data)
        opened = door.connect()

        def begin() -> bytes:
            opened.sendall(with_login(b"GET /bucket/x HTTP/1.1\r\n\r\n"))
            return opened.recv(1000)

        def finish(start: bytes) -> bytes:
            head, _, body = start.partition(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 200")
            parts, left = [body], size - len(body)
            while left:
                parts.append(opened.recv(1 << 20))
                assert parts[-1]
                left -= len(parts[-1])
            return b"".join(parts)

        start = await in_thread(begin)
        await put(engine, "bucket", "x", b"new")
        await engine.delete("bucket", "x")
        await engine.collect_garbage(grace_s=0)
        assert await in_thread(finish, start) == data


async def test_a_client_that_leaves_a_download_frees_its_version(tmp_path: Path) -> None:
    async with engine_in(tmp_path) as engine, dav_door(engine) as door:
        await door.made("/bucket/")
        await put(engine, "bucket", "x", pattern(6 << 20))

        def begin() -> None:
            with door.connect() as opened:
                opened.sendall(with_login(b"GET /bucket/x HTTP/1.1\r\n\r\n"))
                assert opened.recv(1000)

        await in_thread(begin)
        await engine.delete("bucket", "x")
        await engine.delete_bucket("bucket")
        with trio.fail_after(20):
            while await data_rows(engine):
                await engine.collect_garbage(grace_s=0)
                await trio.sleep(0.01)


async def test_content_types_that_nobody_chose_are_guessed(tmp_path: Path) -> None:
    async with engine_in(tmp_path) as engine, dav_door(engine) as door:
        await door.made("/bucket/", "/bucket/a.html", "/bucket/b.tar.gz", "/bucket/c")
        s3_default = Attributes(headers=[("content-type", "binary/octet-stream")])
        await put(engine, "bucket", "d.pdf", b"x", attributes=s3_default, conditions=NO_CONDITIONS)

        async def kind(name: str) -> str:
            return (await door.get(f"/bucket/{name}"))["content-type"]

        assert await kind("a.html") == "text/html"
        assert await kind("b.tar.gz") == "application/octet-stream"
        assert await kind("c") == "application/octet-stream"
        assert await kind("d.pdf") == "application/pdf"
        page = await door.get("/bucket/a.html")
        assert page["content-security-policy"].startswith("sandbox")
        assert page["x-content-type-options"] == "nosniff"


async def test_the_time_of_a_file_is_kept_as_rclone_keeps_it(tmp_path: Path) -> None:
    async with engine_in(tmp_path) as engine, dav_door(engine) as door:
        await door.made("/bucket/")
        answer = await door.put("/bucket/x", b"x", X_OC_Mtime="1577836800.5")
        assert answer["x-oc-mtime"] == "accepted"
        info = await engine.head("bucket", "x")
        assert info.record.metadata == [("mtime", "1577836800.5")]


@pytest.mark.parametrize(
    ("path", "headers", "status"),
    [
        ("/", {}, 405),
        ("/bucket", {}, 405),
        ("/bucket/dir", {}, 405),
        ("/bucket/dir/", {}, 405),
        ("/bucket/new/", {}, 409),
        ("/bucket/absent/x", {}, 409),
        ("/absent/x", {}, 409),
        ("/bucket/x", {"Content-Range": "bytes 0-2/5"}, 400),
        ("/bucket/" + "k" * 1100, {}, 414),
        ("/bucket/" + "/".join(["k" * 250] * 5), {}, 409),
        ("/bucket/../x", {}, 404),
        ("/bucket/%ff", {}, 400),
    ],
)
async def test_puts_that_cannot_be(
    tmp_path: Path, path: str, headers: dict[str, str], status: int
) -> None:
    async with engine_in(tmp_path) as engine, dav_door(engine) as door:
        await door.made("/bucket/", "/bucket/dir/")
        assert (await door.put(path, b"abc", **headers)).status == status
        listing = await engine.list_objects("bucket")
        assert [found.key for found in listing.objects] == ["dir/"]


@pytest.mark.parametrize("policy", MacFiles)
async def test_files_of_macos(tmp_path: Path, policy: MacFiles) -> None:
    async with engine_in(tmp_path) as engine, dav_door(engine, mac_files=policy) as door:
        await door.made("/bucket/")
        for name in ("._x", ".DS_Store"):
            answer = await door.put(f"/bucket/{name}", b"fork")
            assert answer.status == (403 if policy is MacFiles.REFUSE else 201)
            got = await door.get(f"/bucket/{name}")
            assert got.status == (200 if policy is MacFiles.KEEP else 404)
        assert (await door.put("/bucket/x", b"x")).status == 201


async def test_a_file_beside_a_folder_of_its_name_has_a_mark(tmp_path: Path) -> None:
    async with engine_in(tmp_path) as engine, dav_door(engine) as door:
        await door.made("/bucket/")
        await put(engine, "bucket", "a", b"file")
        assert (await door.get("/bucket/a")).body == b"file"
        assert (await door.get("/bucket/a%25file")).status == 404
        await put(engine, "bucket", "a/b", b"below")
        assert (await door.get("/bucket/a%25file")).body == b"file"
        assert (await door.get("/bucket/a/b")).body == b"below"
        assert (await door.get("/bucket/a"))["content-type"].startswith("text/html")
        assert (await door.put("/bucket/a%25file", b"new")).status == 204
        assert await read(engine, "bucket", "a") == b"new"


async def test_a_read_only_server_changes_nothing(tmp_path: Path) -> None:
    async with engine_in(tmp_path) as engine:
        await engine.create_bucket("bucket", owner="x")
        await put(engine, "bucket", "x", b"old")
        async with dav_door(engine, read_only=True) as door:
            for method in ("PUT", "DELETE", "MKCOL", "COPY", "MOVE"):
                answer = await door.call(method, "/bucket/x", Destination="/bucket/y")
                assert answer.status == 403
            assert (await door.get("/bucket/x")).body == b"old"
            assert "PUT" not in (await door.call("OPTIONS", "/"))["allow"]


async def test_slow_and_large_bodies_of_refused_requests_do_not_hurt(tmp_path: Path) -> None:
    async with engine_in(tmp_path) as engine, dav_door(engine) as door:
        answer = await door.put("/absent/x", bytes(4 << 20))
        assert answer.status == 409
        assert answer["connection"] == "close"
        await door.made("/bucket/")
        opened = door.connect()

        def twice() -> list[int]:
            request = with_login(b"PUT /absent/x HTTP/1.1\r\nContent-Length: 5\r\n\r\n") + b"12345"
            opened.sendall(request)
            first = read_answer(opened).status
            opened.sendall(with_login(b"OPTIONS /bucket/ HTTP/1.1\r\n\r\n"))
            return [first, read_answer(opened).status]

        assert await in_thread(twice) == [409, 200]


async def test_saving_a_file_keeps_what_others_keep_with_it(tmp_path: Path) -> None:
    async with engine_in(tmp_path) as engine, dav_door(engine) as door:
        await door.made("/bucket/")
        made = Attributes(
            headers=[("content-type", "text/x-own"), ("content-encoding", "gzip")],
            metadata=[("mode", "0100755"), ("mtime", "1"), ("md5chksum", "x"), ("own", "y")],
            tags=[("team", "red")],
        )
        await put(engine, "bucket", "x", b"old", attributes=made)
        assert (await door.put("/bucket/x", b"new", X_OC_Mtime="2")).status == 204
        record = (await engine.head("bucket", "x")).record
        assert record.headers == [("content-type", "text/x-own")]
        assert record.metadata == [("mode", "0100755"), ("own", "y"), ("mtime", "2")]
        assert record.tags == [("team", "red")]
        assert (await door.put("/bucket/x", b"new", Content_Type="text/new")).status == 204
        assert (await door.get("/bucket/x"))["content-type"] == "text/new"


async def test_saving_over_a_symbolic_link_makes_a_file(tmp_path: Path) -> None:
    async with engine_in(tmp_path) as engine, dav_door(engine) as door:
        await door.made("/bucket/")
        link = Attributes(metadata=[("mode", "0120777"), ("uid", "7")])
        await put(engine, "bucket", "x", b"target", attributes=link)
        assert (await door.put("/bucket/x", b"new")).status == 204
        assert (await engine.head("bucket", "x")).record.metadata == [("uid", "7")]
