"""What desktop clients send, in their order and with their headers, over one connection each.

Recorded by others; each test names its source. Host and Authorization are put in here.
"""

from __future__ import annotations

import re
import socket
from collections.abc import Callable
from pathlib import Path

from tests.support.dav import Answer, Door, dav_door, in_thread, read_answer, with_login
from tests.support.engine import engine_in, read


class Wire:
    """One connection that is kept: every request is sent as it stands."""

    def __init__(self, opened: socket.socket) -> None:
        self._opened = opened
        self.token = ""

    def send(
        self,
        head: str,
        body: bytes = b"",
        *,
        status: int,
        login: bool = True,
        chunked: bool = False,
    ) -> Answer:
        """Send a request whose lines are ``head``; its answer must have the status.

        ``{token}`` stands for the last lock's. Content-Length is put in when there is a body.
        """
        lines = [line.strip() for line in head.strip().splitlines()]
        if chunked:
            lines.append("Transfer-Encoding: Chunked")
            middle = len(body) // 2
            body = b"".join(
                b"%x\r\n%b\r\n" % (len(part), part) for part in (body[:middle], body[middle:], b"")
            )
        elif body:
            lines.append(f"Content-Length: {len(body)}")
        raw = "\r\n".join(lines).replace("{token}", self.token).encode() + b"\r\n\r\n" + body
        self._opened.sendall(with_login(raw) if login else raw)
        if lines[0].startswith("HEAD "):
            answer = read_head(self._opened)
        else:
            answer = read_answer(self._opened)
        assert answer.status == status, (lines[0], answer)
        if "lock-token" in answer.headers:
            self.token = answer["Lock-Token"].strip("<>")
        return answer


def read_head(opened: socket.socket) -> Answer:
    """Read an answer to HEAD: whatever length it announces, nothing follows."""
    buffer = b""
    while not buffer.endswith(b"\r\n\r\n"):
        received = opened.recv(1)
        assert received, buffer
        buffer += received
    lines = buffer.decode("latin-1").split("\r\n")
    headers = {name.lower(): value for name, _, value in (x.partition(": ") for x in lines[1:-2])}
    return Answer(int(lines[0].split()[1]), headers, b"")


async def replay(tmp_path: Path, script: Callable[[Wire], None]) -> bytes | None:
    """Run a script against a server with one bucket, ``share``; return ``share/file``."""
    async with engine_in(tmp_path) as engine, dav_door(engine) as door:
        await door.made("/share/")

        def talk(door: Door = door) -> None:
            script(Wire(door.connect()))

        await in_thread(talk)
        listed = await engine.list_objects("share")
        found = [entry.key for entry in listed.objects if not entry.key.startswith("._")]
        assert len(found) == 1, found
        return await read(engine, "share", found[0])


EXPLORER = "User-Agent: Microsoft-WebDAV-MiniRedir/10.0.19041\ntranslate: f"
LOCKINFO = (
    b'<?xml version="1.0" encoding="utf-8" ?><D:lockinfo xmlns:D="DAV:"><D:lockscope>'
    b"<D:exclusive/></D:lockscope><D:locktype><D:write/></D:locktype><D:owner><D:href>"
    b"DESKTOP\\someone</D:href></D:owner></D:lockinfo>"
)
WIN32 = (
    b'<?xml version="1.0" encoding="utf-8" ?><D:propertyupdate xmlns:D="DAV:" '
    b'xmlns:Z="urn:schemas-microsoft-com:"><D:set><D:prop><Z:Win32CreationTime>'
    b"Thu, 14 Jun 2018 21:19:53 GMT</Z:Win32CreationTime><Z:Win32LastAccessTime>"
    b"Thu, 14 Jun 2018 21:19:53 GMT</Z:Win32LastAccessTime><Z:Win32LastModifiedTime>"
    b"Thu, 14 Jun 2018 21:19:53 GMT</Z:Win32LastModifiedTime><Z:Win32FileAttributes>"
    b"00000000</Z:Win32FileAttributes></D:prop></D:set></D:propertyupdate>"
)
WIN32_AGAIN = (
    b'<?xml version="1.0" encoding="utf-8" ?><D:propertyupdate xmlns:D="DAV:" '
    b'xmlns:Z="urn:schemas-microsoft-com:"><D:set><D:prop><Z:Win32LastModifiedTime>'
    b"Thu, 14 Jun 2018 21:19:54 GMT</Z:Win32LastModifiedTime><Z:Win32FileAttributes>"
    b"00000020</Z:Win32FileAttributes></D:prop></D:set></D:propertyupdate>"
)


async def test_explorer_copies_a_file_in(tmp_path: Path) -> None:
    """Source: mar10/wsgidav issue 112 (the order, and that a refused PROPPATCH loses the time);
    drakkan/sftpgo issue 207."""

    def script(wire: Wire) -> None:
        wire.send(f"OPTIONS / HTTP/1.1\nConnection: Keep-Alive\n{EXPLORER}", status=200)
        wire.send(f"PROPFIND /share HTTP/1.1\n{EXPLORER}\nDepth: 0\nContent-Length: 0", status=207)
        wire.send(
            f"PROPFIND /share/compat.py HTTP/1.1\n{EXPLORER}\nDepth: 0\nContent-Length: 0",
            status=404,
        )
        wire.send(f"PUT /share/compat.py HTTP/1.1\n{EXPLORER}\nContent-Length: 0", status=201)
        wire.send(
            f"LOCK /share/compat.py HTTP/1.1\n{EXPLORER}\nTimeout: Second-3600\n"
            'Content-Type: text/xml; charset="utf-8"',
            LOCKINFO,
            status=200,
        )
        wire.send(
            f"PROPPATCH /share/compat.py HTTP/1.1\n{EXPLORER}\nIf: (<{{token}}>)\n"
            'Content-Type: text/xml; charset="utf-8"',
            WIN32,
            status=207,
        )
        wire.send(f"HEAD /share/compat.py HTTP/1.1\n{EXPLORER}", status=200)
        wire.send(
            f"PUT /share/compat.py HTTP/1.1\n{EXPLORER}\nIf: (<{{token}}>)", b"text", status=204
        )
        done = wire.send(
            f"PROPPATCH /share/compat.py HTTP/1.1\n{EXPLORER}\nIf: (<{{token}}>)",
            WIN32_AGAIN,
            status=207,
        )
        assert b"200 OK" in done.body
        wire.send(
            f"UNLOCK /share/compat.py HTTP/1.1\n{EXPLORER}\nLock-Token: <{{token}}>", status=204
        )
        shown = wire.send(
            f"PROPFIND /share HTTP/1.1\n{EXPLORER}\nDepth: 1\nContent-Length: 0", status=207
        )
        assert shown.body.count(b"Thu, 14 Jun 2018 21:19:54 GMT") == 2
        assert b"00000020" in shown.body

    assert await replay(tmp_path, script) == b"text"


async def test_explorer_looks_around_renames_and_deletes(tmp_path: Path) -> None:
    """Source: danmunn/redmine_dmsf issue 334 (desktop.ini, New folder, its PROPPATCH, the MOVE);
    MS-WDV, section 2.2.2 (Depth with noroot)."""

    def script(wire: Wire) -> None:
        for name in ("desktop.ini", "folder.jpg", "New%20folder"):
            wire.send(
                f"PROPFIND /share/{name} HTTP/1.1\n{EXPLORER}\nDepth: 0\nContent-Length: 0",
                status=404,
            )
        wire.send(f"MKCOL /share/New%20folder HTTP/1.1\n{EXPLORER}\nContent-Length: 0", status=201)
        wire.send(f"PROPPATCH /share/New%20folder HTTP/1.1\n{EXPLORER}", WIN32, status=207)
        wire.send(
            f"MOVE /share/New%20folder HTTP/1.1\n{EXPLORER}\nContent-Length: 0\n"
            "Destination: http://localhost/share/Pictures%20%C3%BC\nOverwrite: F",
            status=201,
        )
        shown = wire.send(
            f"PROPFIND /share/ HTTP/1.1\n{EXPLORER}\nDepth: 1,noroot\nContent-Length: 0",
            status=207,
        )
        assert shown.body.count(b"<D:response>") == 1
        assert b"/share/Pictures%20%C3%BC/" in shown.body
        wire.send(f"PUT /share/file HTTP/1.1\n{EXPLORER}", b"kept", status=201)
        wire.send(f"DELETE /share/Pictures%20%C3%BC HTTP/1.1\n{EXPLORER}", status=204)

    assert await replay(tmp_path, script) == b"kept"


WORD = "User-Agent: Microsoft Office Word 2014\nX-Office-Major-Version: 16\ntranslate: f"


async def test_word_opens_edits_and_saves(tmp_path: Path) -> None:
    """Source: nextcloud/server pull request 16739 (OPTIONS without credentials, and 404 for them
    breaks opening), sabre-io/dav issues 955 (LOCK) and 980 (the token in Lock-Token instead of
    If), mikedeboer/jsDAV issue 129 (GET with Depth)."""

    def script(wire: Wire) -> None:
        wire.send("PUT /share/Test.docx HTTP/1.1", b"old", status=201)
        for path in ("/", "/share/"):
            answer = wire.send(
                f"OPTIONS {path} HTTP/1.1\nHost: localhost\n{WORD}", status=200, login=False
            )
            # Without it Office opens documents read-only (Winterleaf-WebDavSharp issue 11).
            assert answer["MS-Author-Via"] == "DAV"
            assert "2" in answer["DAV"]
        wire.send(
            "HEAD /share/Test.docx HTTP/1.1\nHost: localhost\n"
            "User-Agent: Microsoft Office Existence Discovery",
            status=200,
            login=False,
        )
        wire.send(
            f"LOCK /share/Test.docx HTTP/1.1\n{WORD}\nTimeout: Second-3600\nDepth: 0\n"
            'Content-Type: text/xml; charset="utf-8"',
            LOCKINFO,
            status=200,
        )
        answer = wire.send(
            f"GET /share/Test.docx HTTP/1.1\n{WORD}\nDepth: 0\n"
            'Content-Type: text/xml; charset="utf-8"',
            status=200,
        )
        assert answer.body == b"old"
        # The lock is kept alive while the document is open.
        wire.send(
            f"LOCK /share/Test.docx HTTP/1.1\n{WORD}\nTimeout: Second-3600\nIf: (<{{token}}>)\n"
            "Content-Length: 0",
            status=200,
        )
        wire.send(
            f"PUT /share/Test.docx HTTP/1.1\n{WORD}\nLock-Token: <{{token}}>", b"new", status=204
        )
        wire.send(
            f"UNLOCK /share/Test.docx HTTP/1.1\n{WORD}\nLock-Token: <{{token}}>\nContent-Length: 0",
            status=204,
        )

    assert await replay(tmp_path, script) == b"new"


async def test_words_owner_file_comes_and_goes(tmp_path: Path) -> None:
    """Source: OpenMarshal/npm-WebDAV-Server issue 37 (through Explorer's redirector)."""

    def script(wire: Wire) -> None:
        wire.send("PUT /share/test.docx HTTP/1.1", b"old", status=201)
        name = "/share/~%24test.docx"
        wire.send(
            f"LOCK /share/test.docx HTTP/1.1\n{EXPLORER}\nTimeout: Second-3600",
            LOCKINFO,
            status=200,
        )
        document = wire.token
        wire.send(f"PUT {name} HTTP/1.1\n{EXPLORER}\nContent-Length: 0", status=201)
        wire.send(f"LOCK {name} HTTP/1.1\n{EXPLORER}", LOCKINFO, status=200)
        wire.send(f"HEAD {name} HTTP/1.1\n{EXPLORER}", status=200)
        wire.send(f"PUT {name} HTTP/1.1\n{EXPLORER}\nIf: (<{{token}}>)", b"me", status=204)
        wire.send(f"PROPPATCH {name} HTTP/1.1\n{EXPLORER}\nIf: (<{{token}}>)", WIN32, status=207)
        wire.send(f"UNLOCK {name} HTTP/1.1\n{EXPLORER}\nLock-Token: <{{token}}>", status=204)
        wire.send(f"PROPFIND {name} HTTP/1.1\n{EXPLORER}\nDepth: 0\nContent-Length: 0", status=207)
        wire.send(f"DELETE {name} HTTP/1.1\n{EXPLORER}", status=204)
        wire.token = document
        wire.send(
            f"PUT /share/test.docx HTTP/1.1\n{EXPLORER}\nIf: (<{{token}}>)", b"new", status=204
        )
        wire.send(
            f"UNLOCK /share/test.docx HTTP/1.1\n{EXPLORER}\nLock-Token: <{{token}}>", status=204
        )

    assert await replay(tmp_path, script) == b"new"


FINDER = "User-Agent: WebDAVFS/3.0.0 (03008000) Darwin/22.6.0 (x86_64)\nAccept: */*"
FINDER_LOCK = (
    b'<?xml version="1.0" encoding="utf-8"?>\n<D:lockinfo xmlns:D="DAV:">\n'
    b"<D:lockscope><D:exclusive/></D:lockscope>\n<D:locktype><D:write/></D:locktype>\n<D:owner>\n"
    b"<D:href>http://www.apple.com/webdav_fs/</D:href>\n</D:owner>\n</D:lockinfo>\n"
)
FINDER_FIND = (
    b'<?xml version="1.0" encoding="utf-8"?>\n<D:propfind xmlns:D="DAV:">\n<D:prop>\n'
    b"<D:getlastmodified/>\n<D:getcontentlength/>\n<D:creationdate/>\n<D:resourcetype/>\n"
    b"</D:prop>\n</D:propfind>\n"
)
FINDER_ROOM = (
    b'<?xml version="1.0" encoding="utf-8"?>\n<D:propfind xmlns:D="DAV:">\n<D:prop>\n'
    b"<D:quota-available-bytes/>\n<D:quota-used-bytes/>\n<D:quota/>\n<D:quotaused/>\n"
    b"</D:prop>\n</D:propfind>\n"
)


def finder_put(wire: Wire, name: str, data: bytes) -> None:
    """Copy one file: an empty one, locked twice, then its bytes in chunks."""
    find = f"PROPFIND {name} HTTP/1.1\n{FINDER}\nDepth: 0\nContent-Type: text/xml"
    lock = f"LOCK {name} HTTP/1.1\n{FINDER}\nDepth: 0\nTimeout: Second-600"
    unlock = f"UNLOCK {name} HTTP/1.1\n{FINDER}\nLock-Token: <{{token}}>"
    wire.send(find, FINDER_FIND, status=404)
    wire.send(f"PUT {name} HTTP/1.1\n{FINDER}\nContent-Length: 0", status=201)
    wire.send(lock, FINDER_LOCK, status=200)
    wire.send(unlock, status=204)
    wire.send(find, FINDER_FIND, status=207)
    wire.send(lock, FINDER_LOCK, status=200)
    assert wire.send(f"GET {name} HTTP/1.1\n{FINDER}", status=200).body == b""
    wire.send(
        f"PUT {name} HTTP/1.1\n{FINDER}\nX-Expected-Entity-Length: {len(data)}\nIf: (<{{token}}>)",
        data,
        status=204,
        chunked=True,
    )
    wire.send(unlock, status=204)


async def test_finder_copies_a_file_in_with_its_fork(tmp_path: Path) -> None:
    """Source: edu-sharing, webdav-macos-mimetype-repro.sh (from a packet trace of macOS);
    lighttpd 1.4, src/mod_webdav.c (LOCK as recorded); X-Expected-Entity-Length as in sabre-io/dav
    and cs3org/reva."""

    def script(wire: Wire) -> None:
        wire.send(f"OPTIONS /share/ HTTP/1.1\n{FINDER}", status=200)
        room = wire.send(f"PROPFIND /share/ HTTP/1.1\n{FINDER}\nDepth: 0", FINDER_ROOM, status=207)
        # Zero would be a full disk.
        available = re.search(rb"<D:quota-available-bytes>(\d+)<", room.body)
        assert available is not None
        assert int(available[1]) > 0
        finder_put(wire, "/share/photo%20%C3%BC.jpg", b"picture" * 1000)
        finder_put(wire, "/share/._photo%20%C3%BC.jpg", b"fork")
        shown = wire.send(f"PROPFIND /share/ HTTP/1.1\n{FINDER}\nDepth: 1", FINDER_FIND, status=207)
        assert b"<D:getcontentlength>7000</D:getcontentlength>" in shown.body

    assert await replay(tmp_path, script) == b"picture" * 1000


async def test_finder_replaces_safely_when_it_is_cut_off(tmp_path: Path) -> None:
    """What came is less than X-Expected-Entity-Length says: the file stays as it was.

    Source: cs3org/reva, ocdav put.go, and sabre-io/dav's CorePlugin on Finder's chunks.
    """

    def script(wire: Wire) -> None:
        wire.send("PUT /share/file HTTP/1.1", b"whole", status=201)
        wire.send(
            f"PUT /share/file HTTP/1.1\n{FINDER}\nX-Expected-Entity-Length: 100",
            b"part",
            status=400,
            chunked=True,
        )

    assert await replay(tmp_path, script) == b"whole"


LIBRE = "User-Agent: LibreOffice 7.4.7.2 curl/7.88.1\nAccept: */*"
LIBRE_FIND = (
    b'<?xml version="1.0" encoding="utf-8"?>\n<propfind xmlns="DAV:"><prop>\n'
    b'<resourcetype xmlns="DAV:"/>\n<IsReadOnly xmlns="http://ucb.openoffice.org/dav/props/"/>\n'
    b'<getcontenttype xmlns="DAV:"/>\n<supportedlock xmlns="DAV:"/>\n</prop></propfind>\n'
)
LIBRE_LOCK = (
    b'<?xml version="1.0" encoding="UTF-8"?>\n<lockinfo xmlns="DAV:"><lockscope><exclusive/>'
    b"</lockscope><locktype><write/></locktype><owner>Someone</owner></lockinfo>"
)


async def test_libreoffice_opens_and_saves(tmp_path: Path) -> None:
    """Source: owncloud/core issue 34394 (the PROPFIND, and that it locks if ``supportedlock`` says
    so); LibreOffice core, ucb/source/ucp/webdav-curl/CurlSession.cxx (its LOCK in the default
    namespace, refreshed with Second-180; If with the token at PUT)."""

    def script(wire: Wire) -> None:
        wire.send("PUT /share/Example.odt HTTP/1.1", b"old", status=201)
        wire.send(f"OPTIONS /share/Example.odt HTTP/1.1\n{LIBRE}", status=200)
        found = wire.send(
            f"PROPFIND /share/Example.odt HTTP/1.1\n{LIBRE}\nDepth: 0\n"
            "Content-Type: application/xml",
            LIBRE_FIND,
            status=207,
        )
        assert b"<D:lockentry>" in found.body
        wire.send(
            f"LOCK /share/Example.odt HTTP/1.1\n{LIBRE}\nDepth: 0\nTimeout: Second-180\n"
            "Content-Type: application/xml",
            LIBRE_LOCK,
            status=200,
        )
        assert wire.send(f"GET /share/Example.odt HTTP/1.1\n{LIBRE}", status=200).body == b"old"
        again = wire.send(
            f"LOCK /share/Example.odt HTTP/1.1\n{LIBRE}\nTimeout: Second-180\nIf: (<{{token}}>)",
            status=200,
        )
        assert b"Second-180" in again.body
        wire.send(
            f"PUT /share/Example.odt HTTP/1.1\n{LIBRE}\nIf: (<{{token}}>)", b"new", status=204
        )
        wire.send(
            f"UNLOCK /share/Example.odt HTTP/1.1\n{LIBRE}\nLock-Token: <{{token}}>", status=204
        )

    assert await replay(tmp_path, script) == b"new"


async def test_libreoffice_saves_a_new_document(tmp_path: Path) -> None:
    """Source: danmunn/redmine_dmsf issue 1113: it locks the new name before it writes."""

    def script(wire: Wire) -> None:
        wire.send(f"OPTIONS /share/Test2.ods HTTP/1.1\n{LIBRE}", status=200)
        wire.send(f"PROPFIND /share/Test2.ods HTTP/1.1\n{LIBRE}\nDepth: 0", LIBRE_FIND, status=404)
        wire.send(
            f"LOCK /share/Test2.ods HTTP/1.1\n{LIBRE}\nDepth: 0\nTimeout: Second-180",
            LIBRE_LOCK,
            status=201,
        )
        wire.send(
            f"PUT /share/Test2.ods HTTP/1.1\n{LIBRE}\nIf: (<{{token}}>)", b"sheet", status=204
        )
        wire.send(f"UNLOCK /share/Test2.ods HTTP/1.1\n{LIBRE}\nLock-Token: <{{token}}>", status=204)

    assert await replay(tmp_path, script) == b"sheet"
