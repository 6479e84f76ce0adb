"""A WebDAV server in this process, over an engine of the test's own, and a client that hides
nothing: what it sends is what the test says."""

from __future__ import annotations

import base64
import http.client
import re
import socket
import ssl
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass, field
from typing import Any, TypeVar

import structlog
import trio

from dav.app import DavApp
from dav.config import DavConfig, DavLimits
from dav.portal import Portal, open_portal
from dav.server import DavServer, Observer
from engine.engine import Engine

T = TypeVar("T")

ACCESS, SECRET = "someone", "some secret key"
OWNER = "0" * 64
WAIT_S = 120.0
"""For an answer that will come; a test that waits so long has failed."""

LIMITS = DavLimits(idle_s=WAIT_S, stop_s=5.0)


def basic(user: str = ACCESS, password: str = SECRET) -> str:
    return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()


@dataclass(frozen=True)
class Answer:
    status: int
    headers: Mapping[str, str]
    """Names in lower case; values of one name that came several times are lines."""
    body: bytes

    def __getitem__(self, name: str) -> str:
        return self.headers[name.lower()]


@dataclass
class Door:
    """A running server."""

    engine: Engine
    server: DavServer
    portal: Portal
    port: int
    tls: ssl.SSLContext | None = None
    """Of the client."""
    open_sockets: list[socket.socket] = field(default_factory=list)

    async def call(
        self,
        method: str,
        path: str,
        body: bytes | Iterable[bytes] | None = None,
        *,
        login: str | None = None,
        **headers: str,
    ) -> Answer:
        """Send one request over a connection of its own. ``headers``: ``_`` stands for ``-``."""
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        if login is None:
            named.setdefault("Authorization", basic())
        elif login:
            named["Authorization"] = login
        return await in_thread(self._call, method, path, body, named)

    def _call(
        self,
        method: str,
        path: str,
        body: bytes | Iterable[bytes] | None,
        headers: dict[str, str],
    ) -> Answer:
        if self.tls is None:
            connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=WAIT_S)
        else:
            connection = http.client.HTTPSConnection(
                "localhost", self.port, timeout=WAIT_S, context=self.tls
            )
        with closing(connection):
            connection.request(method, path, body=body, headers=headers)
            response = connection.getresponse()
            found: dict[str, str] = {}
            for name, value in response.getheaders():
                name = name.lower()
                found[name] = f"{found[name]}\n{value}" if name in found else value
            return Answer(response.status, found, response.read())

    async def put(self, path: str, body: bytes, **headers: str) -> Answer:
        return await self.call("PUT", path, body, **headers)

    async def get(self, path: str, **headers: str) -> Answer:
        return await self.call("GET", path, **headers)

    async def made(self, *paths: str) -> None:
        """Make folders, and files with their own path as content."""
        for path in paths:
            if path.endswith("/"):
                answer = await self.call("MKCOL", path)
            else:
                answer = await self.put(path, path.encode())
            assert answer.status == 201, (path, answer)

    def connect(self) -> socket.socket:
        """Return a plain connection, closed with the server."""
        opened = socket.create_connection(("127.0.0.1", self.port), timeout=WAIT_S)
        self.open_sockets.append(opened)
        return opened

    async def raw(self, request: bytes, *, login: bool = True) -> Answer:
        """Send bytes as they are, and read one answer until its announced end, or the close."""

        def talk() -> Answer:
            opened = self.connect()
            opened.sendall(with_login(request) if login else request)
            return read_answer(opened)

        return await in_thread(talk)


def with_login(request: bytes) -> bytes:
    """Return the request with Host and Authorization put in behind its first line."""
    line, _, rest = request.partition(b"\r\n")
    return line + f"\r\nHost: localhost\r\nAuthorization: {basic()}\r\n".encode() + rest


def read_answer(opened: socket.socket) -> Answer:
    """Read one answer, interim ones left out."""
    buffer = b""
    while True:
        while b"\r\n\r\n" not in buffer:
            received = opened.recv(65536)
            if not received:
                raise AssertionError(f"closed behind {buffer!r}")
            buffer += received
        head, _, buffer = buffer.partition(b"\r\n\r\n")
        status = int(head.split(b" ", 2)[1])
        if status >= 200:
            break
    lines = head.decode("latin-1").split("\r\n")[1:]
    headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
    length = int(headers.get("content-length", "0"))
    while len(buffer) < length:
        received = opened.recv(65536)
        if not received:
            break
        buffer += received
    return Answer(status, headers, buffer)


async def in_thread(work: Callable[..., T], *arguments: Any) -> T:
    return await trio.to_thread.run_sync(work, *arguments)


@asynccontextmanager
async def dav_door(
    engine: Engine,
    *,
    limits: DavLimits = LIMITS,
    tls: ssl.SSLContext | None = None,
    client_tls: ssl.SSLContext | None = None,
    observer: Observer | None = None,
    **settings: Any,
) -> AsyncIterator[Door]:
    """Serve the engine on a free port of the loopback. ``settings``: fields of ``DavConfig``."""
    settings.setdefault("secret_of", {ACCESS: SECRET}.get)
    config = DavConfig(owner_id=OWNER, limits=limits, **settings)
    listener = socket.create_server(("127.0.0.1", 0), backlog=128)
    listener.setblocking(False)
    with listener:
        async with open_portal() as portal:
            server = DavServer(
                listener,
                DavApp(engine, portal, config),
                limits=limits,
                tls=tls,
                log=structlog.get_logger(),
                observer=observer,
            )
            server.prepare()
            door = Door(engine, server, portal, listener.getsockname()[1], client_tls)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(trio.to_thread.run_sync, server.run)
                try:
                    yield door
                finally:
                    for opened in door.open_sockets:
                        opened.close()
                    with trio.CancelScope(shield=True):
                        await trio.to_thread.run_sync(server.stop)


def challenge(answer: Answer) -> dict[str, str]:
    """Return the fields of a Digest challenge."""
    return dict(re.findall(r'(\w+)="?([^",]+)"?', answer["www-authenticate"].splitlines()[0]))
