"""A request as its handler sees it, and what a handler gives back.

A handler is one async function of the trio run. It blocks nowhere: bytes that it wants to read
from or write to the client go through the thread that waits for it (``dav.portal``).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeAlias

from dav.body import RequestBody
from dav.config import DavConfig
from dav.errors import status_line
from dav.names import Target, parse_destination, parse_target
from dav.portal import Client, Crossing
from dav.room import Room
from engine.access import FULL, Access
from engine.engine import Engine
from engine.http.message import Buffer

HeaderPairs: TypeAlias = Sequence[tuple[str, str]]


@dataclass(slots=True)
class Reply:
    """A whole answer. For HEAD give the headers of GET, Content-Length among them."""

    status: int
    headers: list[tuple[str, str]] = field(default_factory=list)
    body: Buffer = b""


class DavRequest:
    """Made in the thread; its methods say where they may be called."""

    __slots__ = (
        "_environ",
        "_start_response",
        "_write",
        "access",
        "body",
        "client",
        "config",
        "engine",
        "method",
        "room",
        "target",
    )

    def __init__(
        self,
        environ: dict[str, Any],
        start_response: Callable[..., Callable[[Buffer], None]],
        engine: Engine,
        config: DavConfig,
        room: Room,
    ) -> None:
        """Raises: BadTarget, NoName, Unavailable."""
        self._environ = environ
        self._start_response = start_response
        self._write: Callable[[Buffer], None] | None = None
        self.body: RequestBody = environ["lode.body"]
        self.client: Client = environ["lode.connection"]
        self.config = config
        self.engine = engine
        self.room = room
        self.method: str = environ["REQUEST_METHOD"]
        self.target: Target = parse_target(environ["REQUEST_URI"])
        self.access: Access = config.access_of(self.user) if self.user else FULL
        """What who logged in may do; who did not is answered before it matters."""

    @property
    def user(self) -> str:
        """The access key that the request was authenticated with."""
        name: str = self._environ["wsgidav.auth.user_name"]
        return name

    @property
    def query(self) -> str:
        text: str = self._environ["QUERY_STRING"]
        return text

    @property
    def has_body(self) -> bool:
        return self.body.length != 0

    def header(self, name: str) -> str | None:
        """Return a header's value, stripped; bytes beyond ASCII are latin-1. ``name`` as it is
        written: ``If-None-Match``."""
        key = name.upper().replace("-", "_")
        if key not in ("CONTENT_TYPE", "CONTENT_LENGTH"):
            key = "HTTP_" + key
        value: str | None = self._environ.get(key)
        return value

    def destination(self) -> Target | None:
        """Return where to copy or move. Raises: BadTarget, NoName, OtherHost."""
        value = self.header("Destination")
        if value is None:
            return None
        return parse_destination(value, host=self.header("Host") or "")

    # In the trio run

    async def read(self, crossing: Crossing, size: int) -> bytes:
        """Return ``size`` bytes of the body; fewer at its end. Raises: BodyBroken."""
        if self.body.in_memory:
            return self.body.read(size)
        return await crossing.in_thread(partial(self.body.read, size))

    async def readinto(self, crossing: Crossing, buffer: memoryview) -> int:
        """Fill ``buffer`` from the body; fewer bytes at its end, then 0. Raises: BodyBroken."""
        if self.body.in_memory:
            return self.body.readinto(buffer)
        return await crossing.in_thread(partial(self.body.readinto, buffer))

    async def begin(self, crossing: Crossing, status: int, headers: HeaderPairs) -> None:
        """Start an answer whose body follows by ``send``. Without Content-Length it is chunked."""
        await crossing.in_thread(partial(self.begin_in_thread, status, headers))

    async def send(self, crossing: Crossing, buffer: Buffer) -> None:
        """Send a piece of the body; the buffer is free again on return."""
        assert self._write is not None
        await crossing.in_thread(partial(self._write, buffer))

    # In the thread

    def begin_in_thread(self, status: int, headers: HeaderPairs) -> None:
        self._write = self._start_response(status_line(status), list(headers))

    def answer(self, reply: Reply | None) -> Iterable[Buffer]:
        """Give a whole answer; nothing is left to do when the handler has sent it by itself."""
        if reply is None:
            return ()
        headers = list(reply.headers)
        names = {name.lower() for name, _ in headers}
        if "content-length" not in names and reply.status not in (204, 304):
            headers.append(("Content-Length", str(len(reply.body))))
        self.begin_in_thread(reply.status, headers)
        return (reply.body,) if len(reply.body) else ()


Handler: TypeAlias = Callable[[DavRequest, Crossing], Awaitable[Reply | None]]
