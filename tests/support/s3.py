"""A store with the S3 API on a loopback port, and a small client that signs what it sends."""

from __future__ import annotations

import hashlib
import re
import socket
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast
from urllib.parse import quote
from xml.etree import ElementTree

import trio
from structlog.typing import FilteringBoundLogger

from cli.logins import Logins
from engine.config import Profile, StoreConfig
from engine.engine import Engine
from engine.http.limits import Limits
from engine.http.server import open_listeners, serve
from engine.opening import WallClock, open_engine, prepare_store
from s3.app import S3Config, make_handler
from s3.auth.credentials import Credential
from s3.auth.presign import presign_url, sign_request

ROOT = Credential("LODEACCESSKEY", "lode-secret-key", "root-owner-id", "root")
NAMESPACE = "{http://s3.amazonaws.com/doc/2006-03-01/}"
SMALL = {
    "block_size": 64 * 1024,
    "volume_size": 64 << 20,
    "reserve": 1 << 20,
}
"""Store settings for tests: stripes of several blocks at sizes that are quick to send."""


class Log:
    """Keeps what was logged at warning and above; ``running_s3`` fails when some is left."""

    def __init__(self) -> None:
        self.troubles: list[tuple[str, dict[str, Any]]] = []

    def debug(self, event: str, **fields: Any) -> None:
        return

    info = debug

    def warning(self, event: str, **fields: Any) -> None:
        self.troubles.append((event, fields))

    error = exception = warning

    def as_logger(self) -> FilteringBoundLogger:
        return cast(FilteringBoundLogger, self)


@dataclass
class Answer:
    status: int
    headers: dict[str, str]
    """By lower-case name; latin-1. Repeated headers are joined with commas."""
    body: bytes

    @property
    def xml(self) -> ElementTree.Element:
        """The document, its names without namespace."""
        root = ElementTree.fromstring(self.body)
        for element in root.iter():
            element.tag = element.tag.rpartition("}")[2]
        return root

    @property
    def code(self) -> str:
        """S3's error code."""
        found = self.xml.findtext("Code")
        assert found is not None, self.body
        return found

    def text(self, path: str) -> str | None:
        return self.xml.findtext(path)

    def texts(self, path: str) -> list[str]:
        return [element.text or "" for element in self.xml.findall(path)]


@dataclass
class S3Server:
    engine: Engine
    port: int
    log: Log
    region: str = "us-east-1"
    credential: Credential = field(default=ROOT)
    clock: WallClock = field(default_factory=WallClock)

    @property
    def host(self) -> str:
        return f"127.0.0.1:{self.port}"

    async def request(
        self,
        method: str,
        path: str | bytes,
        query: str | bytes = "",
        *,
        headers: Mapping[str, str | bytes] | None = None,
        body: bytes = b"",
        signed: bool = True,
        credential: Credential | None = None,
        payload: bytes | None = None,
        host: str = "",
        wire_body: bytes | None = None,
    ) -> Answer:
        """Send one request on a connection of its own and return the answer.

        Args:
            path: text is percent-encoded; bytes are sent as they are.
            payload: value of ``x-amz-content-sha256``; None: the body's digest.
            wire_body: what is sent instead of ``body``, whose length stays announced.
        """
        raw_path = quote(path, safe="/~").encode() if isinstance(path, str) else path
        raw_query = query.encode() if isinstance(query, str) else query
        lines = [(b"host", (host or self.host).encode())]
        given = {name.lower(): value for name, value in (headers or {}).items()}
        if (body or method in ("PUT", "POST")) and "content-length" not in given:
            given["content-length"] = str(len(body))
        for name, value in given.items():
            raw = value if isinstance(value, bytes) else value.encode("latin-1")
            if raw or name != "content-length":
                lines.append((name.encode(), raw))
        if signed:
            lines, _ = sign_request(
                method,
                raw_path,
                raw_query,
                lines,
                credential=credential or self.credential,
                region=self.region,
                at_ms=self.clock(),
                payload=payload or hashlib.sha256(body).hexdigest().encode(),
            )
        target = raw_path + (b"?" + raw_query if raw_query else b"")
        return await self.send(method, target, lines, body if wire_body is None else wire_body)

    async def send(
        self, method: str, target: bytes, headers: list[tuple[bytes, bytes]], body: bytes = b""
    ) -> Answer:
        """Send a request as it is, end the sending side, and return the answer."""
        head = [b"%b %b HTTP/1.1" % (method.encode(), target)]
        head += [b"%b: %b" % pair for pair in headers]
        head += [b"connection: close", b"", b""]
        stream = await trio.open_tcp_stream("127.0.0.1", self.port)
        async with stream:
            try:
                await stream.send_all(b"\r\n".join(head) + body)
                await stream.send_eof()
            except trio.BrokenResourceError:
                pass  # refused early: the answer is there already
            received = bytearray()
            while data := await stream.receive_some():
                received += data
        return parse_answer(bytes(received))

    def presigned(self, method: str, path: str, query: str = "", *, expires_s: int = 60) -> bytes:
        """Return the target of a presigned URL."""
        return presign_url(
            method,
            quote(path, safe="/~").encode(),
            query.encode(),
            host=self.host.encode(),
            credential=self.credential,
            region=self.region,
            at_ms=self.clock(),
            expires_s=expires_s,
        )

    async def put(self, path: str, body: bytes = b"", **headers: str) -> Answer:
        """PUT that must succeed; header names are written with underscores."""
        given = {name.replace("_", "-"): value for name, value in headers.items()}
        answer = await self.request("PUT", path, headers=given, body=body)
        assert answer.status == 200, answer
        return answer

    async def get(self, path: str, query: str = "", **headers: str) -> Answer:
        given = {name.replace("_", "-"): value for name, value in headers.items()}
        return await self.request("GET", path, query, headers=given)


def parse_answer(raw: bytes) -> Answer:
    """Return the final response of a connection's bytes; 1xx are left out."""
    while True:
        head, mark, rest = raw.partition(b"\r\n\r\n")
        assert mark, raw
        lines = head.split(b"\r\n")
        match = re.match(rb"HTTP/1\.1 (\d{3})", lines[0])
        assert match is not None, lines[0]
        if not match[1].startswith(b"1"):
            break
        raw = rest
    headers: dict[str, str] = {}
    for line in lines[1:]:
        name, _, value = line.partition(b":")
        key, text = name.decode().lower(), value.strip().decode("latin-1")
        headers[key] = f"{headers[key]},{text}" if key in headers else text
    if headers.get("transfer-encoding") == "chunked":
        rest = _dechunk(rest)
    return Answer(int(match[1]), headers, rest)


def _dechunk(raw: bytes) -> bytes:
    body = bytearray()
    while True:
        line, _, raw = raw.partition(b"\r\n")
        size = int(line, 16)
        if size == 0:
            return bytes(body)
        body += raw[:size]
        raw = raw[size + 2 :]


@asynccontextmanager
async def running_s3(
    folder: Path,
    *,
    drives: int = 1,
    profile: str = "1+0",
    region: str = "us-east-1",
    domains: tuple[str, ...] = (),
    services: bool = False,
    limits: Limits | None = None,
    **settings: Any,
) -> AsyncIterator[S3Server]:
    """Serve a new store in ``folder`` over real HTTP until the context ends.

    Fails at the end when something was logged as a warning or worse that the test did not take
    out of ``S3Server.log.troubles``.
    """
    config = StoreConfig(
        data=folder / "data",
        drives=tuple(folder / f"drive{number}" for number in range(drives)),
        profile=Profile.parse(profile),
        services=services,
        **(SMALL | settings),
    )
    await prepare_store(config)
    log = Log()
    listeners: list[socket.socket] = open_listeners("127.0.0.1", 0)
    async with open_engine(config) as engine, trio.open_nursery() as keys:
        await keys.start(engine.access_keys.follow)
        clock = WallClock()
        s3_config = S3Config(
            credentials=Logins(ROOT, engine.access_keys),
            owner_id=ROOT.owner_id,
            owner_name=ROOT.display_name,
            clock=clock,
            region=region,
            domains=domains,
        )
        handler = make_handler(engine, s3_config, log=log.as_logger())
        shutdown = trio.Event()
        async with trio.open_nursery() as nursery:

            async def run(task_status: trio.TaskStatus[None]) -> None:
                await serve(
                    handler,
                    listeners,
                    limits=limits or Limits(),
                    tls=None,
                    log=log.as_logger(),
                    shutdown=shutdown,
                    task_status=task_status,
                )

            await nursery.start(run)
            port = listeners[0].getsockname()[1]
            yield S3Server(engine, port, log, region)
            shutdown.set()
        keys.cancel_scope.cancel()
    assert log.troubles == []
