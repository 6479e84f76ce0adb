"""The WebDAV frontend: wsgidav's application with our middlewares, provider and request server.

A request's way: ``DavServer`` (a thread) → ``ErrorAnswers`` → ``Authenticator`` → ``Resolver``
→ ``DavRequests`` → through the portal → a handler in the trio run → ``Engine``.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from typing import Any

from wsgidav.dav_provider import DAVProvider
from wsgidav.mw.base_mw import BaseMiddleware
from wsgidav.request_server import RequestServer
from wsgidav.wsgidav_app import WsgiDAVApp

from dav.auth import Authenticator
from dav.clients import DAV_CLASSES
from dav.config import DavConfig
from dav.download import download
from dav.errors import DavError, ErrorAnswers
from dav.listing import list_folder
from dav.locks import lock, unlock
from dav.namespace import copy, delete, mkcol, move
from dav.portal import Crossing, Portal
from dav.propfind import propfind
from dav.proppatch import proppatch
from dav.put import put
from dav.request import DavRequest, Handler, Reply
from dav.room import Room
from dav.tree import find
from engine.access import FULL
from engine.engine import Engine
from engine.http.message import Buffer


async def get(request: DavRequest, crossing: Crossing) -> Reply | None:
    """Answer GET and HEAD: a file's bytes, or a page that lists a folder."""
    found = await find(request.engine, request.target)
    if found is None:
        raise DavError(404)
    if found.is_folder:
        return await list_folder(request, found)
    return await download(request, crossing, found)


async def options(request: DavRequest, crossing: Crossing) -> Reply:
    """Never called: what is the same for every path is answered without crossing."""
    return Reply(200, options_headers(request.config))


def options_headers(config: DavConfig) -> list[tuple[str, str]]:
    """Say what can be done; the same for every path, so it tells nothing about what exists."""
    return [
        ("DAV", DAV_CLASSES if not config.read_only else "1, 3"),
        ("MS-Author-Via", "DAV"),
        allow(config),
        ("Accept-Ranges", "bytes"),
    ]


def allow(config: DavConfig) -> tuple[str, str]:
    """Return the header that names the methods."""
    names = [name for name in HANDLERS if name not in WRITING or not config.read_only]
    return "Allow", ", ".join(names)


HANDLERS: Mapping[str, Handler] = {
    "OPTIONS": options,
    "GET": get,
    "HEAD": get,
    "PUT": put,
    "DELETE": delete,
    "MKCOL": mkcol,
    "COPY": copy,
    "MOVE": move,
    "PROPFIND": propfind,
    "PROPPATCH": proppatch,
    "LOCK": lock,
    "UNLOCK": unlock,
}
WRITING = frozenset({"PUT", "DELETE", "MKCOL", "COPY", "MOVE", "PROPPATCH", "LOCK", "UNLOCK"})
UNBOUNDED = frozenset({"GET", "PUT", "DELETE", "COPY", "MOVE", "PROPFIND"})
"""Methods that take as long as there is something to move; they end with their client."""


def check_access(request: DavRequest, *, write: bool) -> None:
    """Refuse what the key may not do. The root shows the buckets that it reaches, and no more.

    Raises: DavError 403, BadTarget, NoName, OtherHost.
    """
    if write and request.access.read_only:
        raise DavError(403, "this access key is for reading")
    destination = request.destination() if request.method in ("COPY", "MOVE") else None
    for target in (request.target, destination):
        if target is not None and target.bucket and not request.access.reaches(target.bucket):
            raise DavError(403, "this access key is for other buckets")


PART_OF_A_NAME = "this is a part of names that are too long; what is in it can be changed"


class EngineProvider(DAVProvider):
    """What wsgidav needs to route requests: all of it is one share.

    Resources are not wsgidav's: a handler asks the engine itself, in the trio run, once, instead
    of in a thread, property by property.
    """

    def __init__(self, engine: Engine, portal: Portal, config: DavConfig) -> None:
        super().__init__()
        self.engine = engine
        self.portal = portal
        self.room = Room(engine)
        self.config = config

    def is_readonly(self) -> bool:
        return self.config.read_only

    def get_resource_inst(self, path: str, environ: dict[str, Any]) -> None:
        raise NotImplementedError("handlers ask the engine")


class DavRequests(RequestServer):
    """Hands each request to its handler, in place of wsgidav's own ``do_`` methods."""

    def __call__(
        self, environ: dict[str, Any], start_response: Callable[..., Any]
    ) -> Iterable[Buffer]:
        provider: EngineProvider = self._davProvider
        config = provider.config
        method = environ["REQUEST_METHOD"]
        if method == "OPTIONS" and environ["REQUEST_URI"] == "*":
            environ["REQUEST_URI"] = "/"
        handler = HANDLERS.get(method)
        if handler is None:
            raise DavError(405 if method in _KNOWN else 501, headers=[allow(config)])
        if config.read_only and method in WRITING:
            raise DavError(403, "this server is read-only", headers=[allow(config)])
        request = DavRequest(environ, start_response, provider.engine, config, provider.room)
        if request.target.more and method in WRITING:
            raise DavError(403, PART_OF_A_NAME, headers=[allow(config)])
        if method == "OPTIONS" or (not request.user and method == "HEAD"):
            # Office asks before it logs in; it learns nothing but that this is a server.
            return request.answer(Reply(200, options_headers(config)))
        if request.access is not FULL:
            check_access(request, write=method in WRITING)
        request.body.fetch()
        reply = provider.portal.run(
            partial(handler, request),
            request.client,
            timeout_s=None if method in UNBOUNDED else config.limits.operation_s,
        )
        return request.answer(reply)


_KNOWN = frozenset({"POST", "PATCH", "TRACE", "CONNECT", "REPORT", "SEARCH", "ACL", *WRITING})


class Resolver(BaseMiddleware):
    """The innermost middleware."""

    def __init__(self, wsgidav_app: DavApp, next_app: Any, config: dict[str, Any]) -> None:
        super().__init__(wsgidav_app, next_app, config)
        # It keeps nothing of a request, so one is enough.
        self._requests = DavRequests(wsgidav_app.provider_map["/"])

    def __call__(
        self, environ: dict[str, Any], start_response: Callable[..., Any]
    ) -> Iterable[Buffer]:
        return self._requests(environ, start_response)


class DavApp(WsgiDAVApp):
    """The WSGI application. It does not rewrite paths: names are read from the raw target."""

    def __init__(self, engine: Engine, portal: Portal, config: DavConfig) -> None:
        # wsgidav tells of its own set-up, which is not what runs here.
        logging.getLogger("wsgidav").setLevel(logging.CRITICAL)
        super().__init__(
            {
                "provider_mapping": {"/": EngineProvider(engine, portal, config)},
                "middleware_stack": [ErrorAnswers, Authenticator, Resolver],
                "lock_storage": None,
                "property_manager": None,
                "logging": {"enable": False},
                "verbose": 0,
                "lode": config,
            }
        )

    def __call__(
        self, environ: dict[str, Any], start_response: Callable[..., Any]
    ) -> Iterator[bytes]:
        environ["wsgidav.app"] = self
        environ["wsgidav.config"] = self.config
        environ["wsgidav.provider"] = self.provider_map["/"]
        environ["wsgidav.verbose"] = self.verbose
        answer: Iterator[bytes] = self.application(environ, start_response)
        return answer
