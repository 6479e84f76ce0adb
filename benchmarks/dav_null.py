"""``python -m benchmarks.dav_null PORT``: WebDAV that only remembers, the floor of its benchmarks.

It keeps files in memory, asks nobody for a password and promises nothing. What a client takes with
it is the client's own time: whoever is as fast as this cannot be faster.
"""

from __future__ import annotations

import asyncio
import sys

_HEAD_END = b"\r\n\r\n"
_OPEN = '<?xml version="1.0" encoding="utf-8"?>\n<D:multistatus xmlns:D="DAV:">'
_TIMES = (
    "<D:getlastmodified>Sat, 01 Jan 2000 00:00:00 GMT</D:getlastmodified>"
    "</D:prop><D:status>HTTP/1.1 200 OK</D:status></D:propstat></D:response>"
)


class Tree:
    """Files and folders by path as the client writes it, without a slash at the end."""

    def __init__(self) -> None:
        self._files: dict[str, bytes] = {}
        self._folders: dict[str, dict[str, None]] = {"": {}}
        """The paths of each folder's members."""

    def answer(self, method: str, path: str, depth: str, body: bytes) -> tuple[str, bytes]:
        """Return the status and the body of the answer."""
        there = path in self._files or path in self._folders
        match method:
            case "MKCOL" | "PUT" if path.rpartition("/")[0] not in self._folders:
                return "409 Conflict", b""
            case "MKCOL" if there:
                return "405 Method Not Allowed", b""
            case "MKCOL":
                self._folders[path] = {}
            case "PUT" if path in self._folders:
                return "405 Method Not Allowed", b""
            case "PUT":
                self._files[path] = body
            case _ if not there:
                return "404 Not Found", b""
            case "GET":
                return "200 OK", self._files.get(path, b"")
            case "DELETE":
                self._forget(path)
                return "204 No Content", b""
            case "PROPFIND":
                paths = [path, *(self._folders.get(path, ()) if depth == "1" else ())]
                text = "".join([_OPEN, *map(self._response, paths), "</D:multistatus>"])
                return "207 Multi-Status", text.encode()
            case _:
                return "501 Not Implemented", b""
        self._folders[path.rpartition("/")[0]][path] = None
        return "201 Created", b""

    def _forget(self, path: str) -> None:
        del self._folders[path.rpartition("/")[0]][path]
        left = [path]
        while left:
            gone = left.pop()
            left += self._folders.pop(gone, ())
            self._files.pop(gone, None)

    def _response(self, path: str) -> str:
        file = self._files.get(path)
        if file is None:
            what = f"{path}/</D:href><D:propstat><D:prop><D:resourcetype><D:collection/>"
            return f"<D:response><D:href>{what}</D:resourcetype>{_TIMES}"
        what = f"{path}</D:href><D:propstat><D:prop><D:resourcetype/>"
        size = f"<D:getcontentlength>{len(file)}</D:getcontentlength>"
        return f"<D:response><D:href>{what}{size}{_TIMES}"


class Connection(asyncio.Protocol):
    """Answers one request after another; a body has to say its length."""

    def __init__(self, tree: Tree) -> None:
        self._tree = tree
        self._buffer = bytearray()
        self._needed = 0
        """Bytes of the request that is being received; 0 while its head is."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        while self._answered():
            pass

    def _answered(self) -> bool:
        """Answer the next request, if all of it is there."""
        if len(self._buffer) < self._needed:
            return False
        head_end = self._buffer.find(_HEAD_END)
        if head_end < 0:
            return False
        first, *lines = self._buffer[:head_end].decode("latin-1").split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in map(_split, lines)}
        begin = head_end + len(_HEAD_END)
        self._needed = begin + int(headers.get("content-length", 0))
        if len(self._buffer) < self._needed:
            return False
        body = bytes(memoryview(self._buffer)[begin : self._needed])
        del self._buffer[: self._needed]
        self._needed = 0
        method, target, _ = first.split(" ")
        path = target.rstrip("/")
        status, content = self._tree.answer(method, path, headers.get("depth", ""), body)
        # A 204 has neither body nor length.
        length = "" if status.startswith("204") else f"Content-Length: {len(content)}\r\n"
        head = f"HTTP/1.1 {status}\r\nContent-Type: application/xml\r\n{length}\r\n"
        self._transport.write(head.encode() + content)
        return True


def _split(line: str) -> tuple[str, str, str]:
    return line.partition(":")


async def serve(port: int) -> None:
    tree = Tree()
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: Connection(tree), "127.0.0.1", port)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(serve(int(sys.argv[1])))
