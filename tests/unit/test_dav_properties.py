"""PROPFIND and PROPPATCH over the wire."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from xml.etree.ElementTree import Element

import pytest
from defusedxml.ElementTree import fromstring

from dav.config import DavLimits
from engine.types import Attributes
from tests.support.dav import Answer, Door, dav_door, in_thread, with_login
from tests.support.engine import engine_in, put

D = "{DAV:}"
WIN32 = "{urn:schemas-microsoft-com:}"


@asynccontextmanager
async def door_in(tmp_path: Path, **settings: object) -> AsyncIterator[Door]:
    async with engine_in(tmp_path) as engine, dav_door(engine, **settings) as door:
        await door.made("/bucket/")
        yield door


class Found:
    """A multistatus, by href: properties with 200, and names by the status they have."""

    def __init__(self, answer: Answer) -> None:
        assert answer.status == 207, answer
        assert answer["Content-Type"] == "application/xml; charset=utf-8"
        self.properties: dict[str, dict[str, Element]] = {}
        self.statuses: dict[str, dict[str, int]] = {}
        for response in fromstring(answer.body):
            assert response.tag == D + "response"
            href = response.findtext(D + "href") or ""
            assert href not in self.properties, "twice"
            found = self.properties[href] = {}
            statuses = self.statuses[href] = {}
            for propstat in response.findall(D + "propstat"):
                status = int((propstat.findtext(D + "status") or "").split()[1])
                for element in propstat.find(D + "prop") or ():
                    statuses[element.tag] = status
                    if status == 200:
                        found[element.tag] = element

    def text(self, href: str, name: str) -> str | None:
        return self.properties[href][name].text

    @property
    def hrefs(self) -> list[str]:
        return list(self.properties)


def prop(*names: str) -> bytes:
    """Return a PROPFIND body for names like ``getetag`` or ``{ns}name``."""
    elements = "".join(
        f'<x:{name.partition("}")[2]} xmlns:x="{name[1:].partition("}")[0]}"/>'
        if name.startswith("{")
        else f"<D:{name}/>"
        for name in names
    )
    return f'<D:propfind xmlns:D="DAV:"><D:prop>{elements}</D:prop></D:propfind>'.encode()


async def propfind(door: Door, path: str, body: bytes = b"", depth: str = "0") -> Found:
    return Found(await door.call("PROPFIND", path, body, Depth=depth))


async def proppatch(door: Door, path: str, inside: str, **headers: str) -> Answer:
    body = f'<D:propertyupdate xmlns:D="DAV:">{inside}</D:propertyupdate>'
    return await door.call("PROPPATCH", path, body.encode(), **headers)


def setting(xml: str) -> str:
    return f"<D:set><D:prop>{xml}</D:prop></D:set>"


async def test_a_file_shows_what_it_is(tmp_path: Path) -> None:
    async with door_in(tmp_path) as door:
        stored = await door.put("/bucket/note.txt", b"12345", Content_Language="de")
        found = (await propfind(door, "/bucket/note.txt")).properties["/bucket/note.txt"]
        head = await door.call("HEAD", "/bucket/note.txt")
        assert found[D + "getcontentlength"].text == "5"
        assert found[D + "getcontenttype"].text == "text/plain"
        assert found[D + "getcontentlanguage"].text == "de"
        assert found[D + "getetag"].text == stored["ETag"] == head["ETag"]
        assert found[D + "getlastmodified"].text == head["Last-Modified"]
        assert found[D + "displayname"].text == "note.txt"
        assert list(found[D + "resourcetype"]) == []
        assert found[D + "creationdate"].text is not None
        assert len(found[D + "supportedlock"]) == 2
        # RFC 4331, section 3: only for who asks.
        assert D + "quota-available-bytes" not in found


async def test_a_folder_is_a_collection_without_length_and_etag(tmp_path: Path) -> None:
    async with door_in(tmp_path) as door:
        await door.made("/bucket/made/", "/bucket/made/inner/", "/bucket/file")
        await put(door.engine, "bucket", "only/through/s3", b"")
        found = await propfind(door, "/bucket/", depth="1")
        assert found.hrefs == ["/bucket/", "/bucket/file", "/bucket/made/", "/bucket/only/"]
        for href in ("/bucket/", "/bucket/made/", "/bucket/only/"):
            shown = found.properties[href]
            assert [child.tag for child in shown[D + "resourcetype"]] == [D + "collection"]
            assert D + "getcontentlength" not in shown
            assert D + "getetag" not in shown
            assert shown[D + "getlastmodified"].text


async def test_the_root_shows_buckets(tmp_path: Path) -> None:
    async with door_in(tmp_path) as door:
        await door.made("/second/")
        assert (await propfind(door, "/", depth="1")).hrefs == ["/", "/bucket/", "/second/"]
        assert (await propfind(door, "/", depth="0")).hrefs == ["/"]


async def test_depth_decides_who_is_shown(tmp_path: Path) -> None:
    async with door_in(tmp_path, infinite_depth=True) as door:
        await door.made("/bucket/a/", "/bucket/a/b/", "/bucket/a/b/c", "/bucket/a/d")
        top, rest = "/bucket/a/", ["/bucket/a/b/", "/bucket/a/d"]
        assert (await propfind(door, "/bucket/a", depth="0")).hrefs == [top]
        assert (await propfind(door, "/bucket/a", depth="1")).hrefs == [top, *rest]
        # Explorer and Office: MS-WDV, section 2.2.2. wsgidav 4.4 answers 400.
        assert (await propfind(door, "/bucket/a", depth="1,noroot")).hrefs == rest
        everything = [top, *rest, "/bucket/a/b/c"]
        assert (await propfind(door, "/bucket/a", depth="infinity")).hrefs == everything
        all_hrefs = (await propfind(door, "/", depth="infinity")).hrefs
        assert sorted(all_hrefs) == sorted(["/", "/bucket/", *everything])
        assert (await door.call("PROPFIND", "/bucket/a", Depth="2")).status == 400


async def test_infinite_depth_is_refused_with_its_condition(tmp_path: Path) -> None:
    async with door_in(tmp_path) as door:
        for headers in ({"Depth": "infinity"}, {}):
            answer = await door.call("PROPFIND", "/bucket/", **headers)
            assert answer.status == 403
            assert fromstring(answer.body)[0].tag == D + "propfind-finite-depth"


async def test_named_properties_are_found_or_missing(tmp_path: Path) -> None:
    async with door_in(tmp_path) as door:
        await door.made("/bucket/file")
        body = prop("getcontentlength", "nonsense", "{http://x/}y", "{}bare")
        body = body.replace(b'<x:bare xmlns:x=""/>', b"<bare/>")
        statuses = (await propfind(door, "/bucket/file", body)).statuses["/bucket/file"]
        assert statuses == {
            D + "getcontentlength": 200,
            D + "nonsense": 404,
            "{http://x/}y": 404,
            "bare": 404,
        }


async def test_propname_gives_names_without_values(tmp_path: Path) -> None:
    """wsgidav 4.4 answers 500 for a resource that has dead properties of its own."""
    async with door_in(tmp_path) as door:
        await door.made("/bucket/file")
        await proppatch(door, "/bucket/file", setting('<c xmlns="urn:x">red</c>'))
        body = b'<D:propfind xmlns:D="DAV:"><D:propname/></D:propfind>'
        found = (await propfind(door, "/bucket/file", body)).properties["/bucket/file"]
        assert {D + "getetag", D + "resourcetype", "{urn:x}c"} <= set(found)
        assert all(not element.text and not len(element) for element in found.values())


async def test_allprop_includes_what_is_asked_for_besides(tmp_path: Path) -> None:
    async with door_in(tmp_path) as door:
        body = (
            b'<D:propfind xmlns:D="DAV:"><D:allprop/><D:include><D:quota-used-bytes/>'
            b"<D:nonsense/></D:include></D:propfind>"
        )
        found = await propfind(door, "/bucket/", body)
        assert found.text("/bucket/", D + "quota-used-bytes") is not None
        assert D + "resourcetype" in found.properties["/bucket/"]


async def test_quota_is_room_on_the_drives_and_never_zero_by_accident(tmp_path: Path) -> None:
    async with door_in(tmp_path) as door:
        body = prop("quota-available-bytes", "quota-used-bytes")
        for path in ("/", "/bucket/"):
            found = await propfind(door, path, body)
            assert int(found.text(path, D + "quota-available-bytes") or 0) > 1 << 20
            assert int(found.text(path, D + "quota-used-bytes") or -1) >= 0
        await door.made("/bucket/file")
        statuses = (await propfind(door, "/bucket/file", body)).statuses["/bucket/file"]
        assert set(statuses.values()) == {404}


@pytest.mark.parametrize(
    "body",
    [
        b"not xml",
        b"<D:propfind xmlns:D='DAV:'>",
        b"<propfind><allprop/></propfind>",
        b"<D:propfind xmlns:D='DAV:'/>",
        b"<D:propfind xmlns:D='DAV:'><D:allprop/><D:propname/></D:propfind>",
        b"<D:propfind xmlns:D='DAV:'><D:prop><x:y/></D:prop></D:propfind>",
        b'<!DOCTYPE a [<!ENTITY e SYSTEM "file:///etc/passwd">]>'
        b"<D:propfind xmlns:D='DAV:'><D:prop><D:a>&e;</D:a></D:prop></D:propfind>",
        b"<!DOCTYPE a [<!ENTITY e \"x\">]><D:propfind xmlns:D='DAV:'><D:allprop/></D:propfind>",
        b'<?xml version="1.0" encoding="nonsense"?><a/>',
        b"\xff\xfe\x00",
    ],
)
async def test_bodies_that_are_wrong_or_dangerous_are_refused(tmp_path: Path, body: bytes) -> None:
    async with door_in(tmp_path) as door:
        assert (await door.call("PROPFIND", "/bucket/", body, Depth="0")).status == 400


async def test_xml_bodies_have_a_bound(tmp_path: Path) -> None:
    async with door_in(tmp_path, limits=DavLimits(xml_size=1000)) as door:
        body = b"<D:propfind xmlns:D='DAV:'>" + b" " * 1000 + b"<D:allprop/></D:propfind>"
        assert (await door.call("PROPFIND", "/bucket/", body, Depth="0")).status == 413
        chunks = (body[at : at + 100] for at in range(0, len(body), 100))
        assert (await door.call("PROPFIND", "/bucket/", chunks, Depth="0")).status == 413


async def test_names_of_any_kind_have_hrefs_that_lead_back(tmp_path: Path) -> None:
    keys = [
        "ä b",
        "50%",
        "a+b",
        "a&b<c>'\"",
        "x" * 250,
        "emoji 😀",
        "tab\tbell\x07",
        "a#b?c",
        ";=,",
    ]
    async with door_in(tmp_path) as door:
        for key in (*keys, "both", "both/inner", "twice//inner"):
            await put(door.engine, "bucket", key, key.encode())
        found = await propfind(door, "/bucket/", depth="1")
        bodies = set()
        for href, shown in found.properties.items():
            assert href.isascii()
            assert " " not in href
            if not len(shown[D + "resourcetype"]):
                bodies.add((await door.get(href)).body.decode())
        assert bodies == {*keys, "both"}
        assert "/bucket/both/" in found.hrefs
        assert "/bucket/both%25file" in found.hrefs


async def test_a_long_folder_is_streamed_and_whole(tmp_path: Path) -> None:
    async with door_in(tmp_path) as door:
        names = [f"{number:05}" for number in range(2500)]
        for name in names:
            await put(door.engine, "bucket", f"many/{name}", b"")
        await put(door.engine, "bucket", "many/00500/inside", b"")
        await proppatch(door, "/bucket/many/02400", setting('<c xmlns="urn:x">red</c>'))
        answer = await door.call("PROPFIND", "/bucket/many/", Depth="1")
        assert answer["Transfer-Encoding"] == "chunked"
        found = Found(answer)
        expected = {f"/bucket/many/{name}" for name in names} - {"/bucket/many/00500"}
        expected |= {"/bucket/many/", "/bucket/many/00500/", "/bucket/many/00500%25file"}
        assert set(found.hrefs) == expected
        assert found.text("/bucket/many/02400", "{urn:x}c") == "red"


async def test_http_1_0_gets_a_long_folder_until_the_close(tmp_path: Path) -> None:
    async with door_in(tmp_path) as door:
        for number in range(1001):
            await put(door.engine, "bucket", f"{number:05}", b"")

        def talk() -> bytes:
            opened = door.connect()
            opened.sendall(with_login(b"PROPFIND /bucket/ HTTP/1.0\r\nDepth: 1\r\n\r\n"))
            received = b""
            while data := opened.recv(1 << 16):
                received += data
            return received

        head, _, body = (await in_thread(talk)).partition(b"\r\n\r\n")
        assert b" 207 " in head.split(b"\r\n")[0]
        assert len(fromstring(body)) == 1002


async def test_properties_are_kept_as_they_were_sent(tmp_path: Path) -> None:
    async with door_in(tmp_path) as door:
        await door.made("/bucket/file", "/bucket/folder/")
        xml = (
            '<x:c xmlns:x="urn:x" xmlns:y="urn:y" y:a="1" xml:lang="en">t<y:in>a&amp;&lt;</y:in>u'
            "</x:c><bare>b</bare>"
        )
        for path in ("/bucket/file", "/bucket/folder/", "/bucket/"):
            answer = await proppatch(door, path, setting(xml))
            assert set(Found(answer).statuses[path].values()) == {200}
            found = (await propfind(door, path, prop("{urn:x}c"))).properties[path]
            kept = found["{urn:x}c"]
            assert (kept.text, kept[0].tag, kept[0].text, kept[0].tail) == (
                "t",
                "{urn:y}in",
                "a&<",
                "u",
            )
            assert kept.attrib == {
                "{urn:y}a": "1",
                "{http://www.w3.org/XML/1998/namespace}lang": "en",
            }
        everything = (await propfind(door, "/bucket/file")).properties["/bucket/file"]
        assert everything["bare"].text == "b"


async def test_the_language_around_a_property_is_its_language(tmp_path: Path) -> None:
    """RFC 4918, section 4.3."""
    async with door_in(tmp_path) as door:
        await door.made("/bucket/file")
        inside = '<D:set><D:prop xml:lang="fr"><c xmlns="urn:x">rouge</c></D:prop></D:set>'
        await proppatch(door, "/bucket/file", inside)
        found = (await propfind(door, "/bucket/file")).properties["/bucket/file"]
        assert found["{urn:x}c"].get("{http://www.w3.org/XML/1998/namespace}lang") == "fr"


async def test_properties_follow_copies_and_moves_and_stay_through_put(tmp_path: Path) -> None:
    async with door_in(tmp_path) as door:
        await door.made("/bucket/file", "/bucket/tree/", "/bucket/tree/file", "/other/")
        for path in ("/bucket/file", "/bucket/tree/", "/bucket/tree/file"):
            await proppatch(door, path, setting(f'<c xmlns="urn:x">{path}</c>'))
        await door.put("/bucket/file", b"new")

        async def colour(path: str) -> str | None:
            found = (await propfind(door, path)).properties[path].get("{urn:x}c")
            return None if found is None else found.text

        async def send(method: str, source: str, target: str) -> None:
            answer = await door.call(method, source, Destination=f"http://127.0.0.1{target}")
            assert answer.status == 201, answer

        assert await colour("/bucket/file") == "/bucket/file"
        await send("COPY", "/bucket/file", "/bucket/copy")
        await send("MOVE", "/bucket/copy", "/bucket/moved")
        assert await colour("/bucket/moved") == "/bucket/file"
        await send("COPY", "/bucket/tree/", "/bucket/tree2/")
        await send("MOVE", "/bucket/tree2/", "/bucket/tree3/")
        await send("COPY", "/bucket/tree3/", "/other/tree4/")
        for tree in ("/bucket/tree/", "/bucket/tree3/", "/other/tree4/"):
            assert await colour(tree) == "/bucket/tree/"
            assert await colour(tree + "file") == "/bucket/tree/file"
        await door.call("DELETE", "/bucket/file")
        await door.put("/bucket/file", b"another")
        assert await colour("/bucket/file") is None


async def test_one_refused_property_stops_all_others(tmp_path: Path) -> None:
    async with door_in(tmp_path) as door:
        await door.made("/bucket/file")
        inside = setting('<c xmlns="urn:x">red</c><D:getetag>x</D:getetag>')
        statuses = Found(await proppatch(door, "/bucket/file", inside)).statuses["/bucket/file"]
        assert statuses == {"{urn:x}c": 424, D + "getetag": 403}
        assert "{urn:x}c" not in (await propfind(door, "/bucket/file")).properties["/bucket/file"]


async def test_removing_and_setting_happen_in_document_order(tmp_path: Path) -> None:
    async with door_in(tmp_path) as door:
        await door.made("/bucket/file")
        remove = '<D:remove><D:prop><c xmlns="urn:x"/></D:prop></D:remove>'
        add = setting('<c xmlns="urn:x">red</c>')
        for inside, there in ((add + remove, False), (remove + add, True), (remove, False)):
            answer = await proppatch(door, "/bucket/file", inside)
            assert set(Found(answer).statuses["/bucket/file"].values()) == {200}
            found = (await propfind(door, "/bucket/file")).properties["/bucket/file"]
            assert ("{urn:x}c" in found) == there


async def test_a_display_name_can_be_given(tmp_path: Path) -> None:
    async with door_in(tmp_path) as door:
        await door.made("/bucket/file")
        await proppatch(door, "/bucket/file", setting("<D:displayname>My file</D:displayname>"))
        for body in (b"", prop("displayname")):
            found = await propfind(door, "/bucket/file", body)
            assert found.text("/bucket/file", D + "displayname") == "My file"


async def test_too_many_properties_are_insufficient_storage(tmp_path: Path) -> None:
    async with door_in(tmp_path) as door:
        await door.made("/bucket/file")
        inside = setting(f'<c xmlns="urn:x">{"x" * 70_000}</c>')
        answer = await proppatch(door, "/bucket/file", inside)
        assert Found(answer).statuses["/bucket/file"] == {"{urn:x}c": 507}


async def test_proppatch_needs_something_to_change_and_somebody_to_have_it(tmp_path: Path) -> None:
    async with door_in(tmp_path) as door:
        change = setting('<c xmlns="urn:x"/>')
        assert (await proppatch(door, "/bucket/absent", change)).status == 404
        assert (await proppatch(door, "/", change)).status == 403
        assert (await proppatch(door, "/bucket/", "")).status == 400
        assert (await door.call("PROPPATCH", "/bucket/", b"<a/>")).status == 400
        assert (await door.call("PROPPATCH", "/bucket/")).status == 400


EXPLORER_TIMES = (
    '<Z:Win32CreationTime xmlns:Z="urn:schemas-microsoft-com:">Fri, 02 Jan 2009 03:04:05 GMT'
    '</Z:Win32CreationTime><Z:Win32LastModifiedTime xmlns:Z="urn:schemas-microsoft-com:">'
    "Sat, 03 Jan 2009 04:05:06 GMT</Z:Win32LastModifiedTime>"
    '<Z:Win32FileAttributes xmlns:Z="urn:schemas-microsoft-com:">00000020</Z:Win32FileAttributes>'
)


async def test_explorers_times_are_kept_and_shown_everywhere(tmp_path: Path) -> None:
    """MS-WDV, section 2.2.3: Explorer sets them behind each upload, and shows what comes back."""
    async with door_in(tmp_path) as door:
        await door.made("/bucket/file")
        answer = await proppatch(door, "/bucket/file", setting(EXPLORER_TIMES))
        assert set(Found(answer).statuses["/bucket/file"].values()) == {200}
        found = await propfind(door, "/bucket/file")
        shown = "Sat, 03 Jan 2009 04:05:06 GMT"
        assert found.text("/bucket/file", WIN32 + "Win32LastModifiedTime") == shown
        assert found.text("/bucket/file", WIN32 + "Win32FileAttributes") == "00000020"
        assert found.text("/bucket/file", D + "getlastmodified") == shown
        assert (await door.call("HEAD", "/bucket/file"))["Last-Modified"] == shown
        info = await door.engine.head("bucket", "file")
        assert dict(info.record.metadata)["mtime"] == "1230955506"


async def test_conditions_with_dates_mean_the_time_that_is_shown(tmp_path: Path) -> None:
    async with door_in(tmp_path) as door:
        await put(
            door.engine,
            "bucket",
            "file",
            b"x",
            attributes=Attributes(metadata=[("mtime", "1230955506.25")]),
        )
        shown = (await door.call("HEAD", "/bucket/file"))["Last-Modified"]
        assert shown == "Sat, 03 Jan 2009 04:05:06 GMT"
        # wsgidav 4.4 sends the body again for equal times.
        assert (await door.get("/bucket/file", If_Modified_Since=shown)).status == 304
        earlier = "Sat, 03 Jan 2009 04:05:05 GMT"
        assert (await door.get("/bucket/file", If_Modified_Since=earlier)).status == 200
        assert (await door.put("/bucket/file", b"", If_Unmodified_Since=earlier)).status == 412
        assert (await door.put("/bucket/file", b"", If_Unmodified_Since=shown)).status == 204


@pytest.mark.parametrize(
    "xml",
    [
        '<lastmodified xmlns="DAV:">1230955506</lastmodified>',
        "<D:getlastmodified>Sat, 03 Jan 2009 04:05:06 GMT</D:getlastmodified>",
    ],
)
async def test_other_clients_ways_to_set_the_time(tmp_path: Path, xml: str) -> None:
    """rclone's for Nextcloud and ownCloud (backend/webdav, SetModTime), and the obvious one."""
    async with door_in(tmp_path) as door:
        await door.made("/bucket/file")
        answer = await proppatch(door, "/bucket/file", setting(xml))
        assert set(Found(answer).statuses["/bucket/file"].values()) == {200}
        found = await propfind(door, "/bucket/file")
        shown = "Sat, 03 Jan 2009 04:05:06 GMT"
        assert found.text("/bucket/file", D + "getlastmodified") == shown
        assert D + "lastmodified" not in found.properties["/bucket/file"]


async def test_a_time_that_is_none_is_refused(tmp_path: Path) -> None:
    async with door_in(tmp_path) as door:
        await door.made("/bucket/file")
        answer = await proppatch(
            door, "/bucket/file", setting("<D:getlastmodified>yesterday</D:getlastmodified>")
        )
        assert Found(answer).statuses["/bucket/file"] == {D + "getlastmodified": 403}


async def test_a_read_only_server_finds_and_changes_nothing(tmp_path: Path) -> None:
    async with engine_in(tmp_path) as engine:
        await engine.create_bucket("bucket", owner="owner")
        await put(engine, "bucket", "file", b"x")
        async with dav_door(engine, read_only=True) as door:
            assert (await propfind(door, "/bucket/", depth="1")).hrefs == [
                "/bucket/",
                "/bucket/file",
            ]
            answer = await proppatch(door, "/bucket/file", setting('<c xmlns="urn:x"/>'))
            assert answer.status == 403
            assert (await door.call("LOCK", "/bucket/file", b"<x/>")).status == 403
