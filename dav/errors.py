"""WebDAV's errors: one table from the engine's leaves to a status, and one place for it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache
from html import escape
from http import HTTPStatus
from typing import Any

import structlog
from wsgidav.mw.base_mw import BaseMiddleware

from dav.names import BadTarget, NameTooLong, NoName, OtherHost, href
from dav.portal import ClientGone
from dav.times import http_date
from engine import errors as engine_errors
from engine.errors import EngineError, StorageError
from engine.http.message import BodyBroken

log = structlog.get_logger()

ENGINE_ERRORS: dict[type[EngineError], int] = {
    engine_errors.EngineError: 500,
    engine_errors.RequestError: 400,
    engine_errors.ConflictError: 409,
    engine_errors.StorageError: 500,
    engine_errors.ConfigError: 500,
    engine_errors.NoSuchBucket: 404,
    engine_errors.BucketExists: 405,
    engine_errors.BucketNotEmpty: 409,
    engine_errors.NoSuchConfiguration: 404,
    engine_errors.NoSuchKey: 404,
    engine_errors.NoSuchVersion: 404,
    engine_errors.IsDeleteMarker: 404,
    engine_errors.NoSuchUpload: 404,
    engine_errors.InvalidName: 403,
    engine_errors.InvalidArgument: 400,
    engine_errors.InvalidRange: 416,
    engine_errors.PreconditionFailed: 412,
    engine_errors.NotModified: 304,
    engine_errors.ConditionConflict: 409,
    engine_errors.BadDigest: 400,
    engine_errors.IncompleteBody: 400,
    engine_errors.EntityTooLarge: 413,
    engine_errors.EntityTooSmall: 400,
    engine_errors.BadPart: 400,
    engine_errors.InvalidPartOrder: 400,
    engine_errors.SlowDown: 503,
    engine_errors.Locked: 423,
    engine_errors.NoSuchLock: 409,
    engine_errors.NoSpace: 507,
    engine_errors.QuotaExceeded: 507,
    engine_errors.Unavailable: 503,
    engine_errors.StoreReadOnly: 503,
    engine_errors.Corrupt: 500,
}
"""RFC 4918, sections 9 to 11. A name that cannot be is forbidden, as with Apache's."""

_BODY_ERRORS = {"disconnected": 400, "timeout": 408, "framing": 400}

_REASONS = {207: "Multi-Status", 423: "Locked", 424: "Failed Dependency"}


class DavError(Exception):
    """An answer that is an error.

    ``condition``: element of a precondition that failed, in the DAV: namespace, with its slash:
    ``"lock-token-submitted"`` (RFC 4918, section 16); ``hrefs`` go inside. ``document``: XML to
    send as it is.
    """

    def __init__(
        self,
        status: int,
        reason: str = "",
        *,
        condition: str = "",
        hrefs: Iterable[str] = (),
        headers: Iterable[tuple[str, str]] = (),
        document: str = "",
    ) -> None:
        super().__init__(status, reason)
        self.status = status
        self.reason = reason
        self.condition = condition
        self.hrefs = list(hrefs)
        self.headers = list(headers)
        self.document = document


@lru_cache(maxsize=128)
def status_line(status: int) -> str:
    """Return e.g. ``404 Not Found``."""
    phrase = _REASONS.get(status)
    return f"{status} {phrase or HTTPStatus(status).phrase}"


def translate(error: EngineError) -> DavError:
    """Return what to answer, by the nearest class of ``ENGINE_ERRORS``."""
    status = next(ENGINE_ERRORS[kind] for kind in type(error).__mro__ if kind in ENGINE_ERRORS)
    reason = "" if status >= 500 and status != 507 else str(error)
    headers: list[tuple[str, str]] = []
    condition, hrefs = "", []
    match error:
        case engine_errors.Locked(bucket=bucket, root=root):
            condition = "lock-token-submitted"
            is_folder = not root or root.endswith("/")
            hrefs = [href(bucket, root.removesuffix("/"), folder=is_folder)]
        case engine_errors.QuotaExceeded():
            condition = "quota-not-exceeded"  # RFC 4331, section 6
        case engine_errors.NoSuchLock():
            condition = "lock-token-matches-request-uri"
        case engine_errors.NotModified():
            headers.append(("ETag", f'"{error.etag}"'))
            headers.append(("Last-Modified", http_date(error.modified_ms)))
        case engine_errors.InvalidRange():
            headers.append(("Content-Range", f"bytes */{error.size}"))
        case engine_errors.SlowDown() | engine_errors.Unavailable() | engine_errors.StoreReadOnly():
            headers.append(("Retry-After", "1"))
        case _:
            pass
    return DavError(status, reason, condition=condition, hrefs=hrefs, headers=headers)


def explain(error: Exception) -> DavError:
    """Return what to answer for any exception but ``ClientGone``; log our own faults, once."""
    match error:
        case DavError():
            return error
        case BadTarget():
            return DavError(400, str(error))
        case NameTooLong():
            return DavError(414, str(error))
        case NoName():
            return DavError(404)
        case OtherHost():
            return DavError(502, "the destination is on another server")
        case BodyBroken():
            return DavError(_BODY_ERRORS.get(error.reason, 400), f"body: {error.reason}")
        case EngineError():
            answered = translate(error)
            if isinstance(error, StorageError) or answered.status == 500:
                tell = log.error if answered.status == 500 else log.warning
                tell(
                    "dav.storage_failed",
                    error=str(error),
                    kind=type(error).__name__,
                    exc_info=error if answered.status == 500 else None,
                )
            return answered
        case _:
            log.error("dav.request_failed", exc_info=error)
            return DavError(500)


def error_body(error: DavError) -> tuple[str, bytes]:
    """Return content type and document."""
    if error.document:
        return "application/xml; charset=utf-8", error.document.encode()
    if error.condition:
        hrefs = "".join(f"<D:href>{escape(href)}</D:href>" for href in error.hrefs)
        text = (
            '<?xml version="1.0" encoding="utf-8"?>\n'
            f'<D:error xmlns:D="DAV:"><D:{error.condition}>{hrefs}</D:{error.condition}></D:error>'
        )
        return "application/xml; charset=utf-8", text.encode()
    title = escape(status_line(error.status))
    text = f"<!DOCTYPE html><title>{title}</title><h1>{title}</h1><p>{escape(error.reason)}\n"
    return "text/html; charset=utf-8", text.encode()


class ErrorAnswers(BaseMiddleware):
    """The outermost middleware: answers every exception, or ends a connection that cannot be."""

    def __call__(
        self, environ: dict[str, Any], start_response: Callable[..., Any]
    ) -> Iterator[bytes]:
        try:
            yield from self.next_app(environ, start_response)
        except ClientGone:
            raise ConnectionAbortedError("client gone") from None
        except OSError:
            # Of the client's socket: the engine raises its own errors.
            raise
        except Exception as error:
            answered = explain(error)
            if environ["lode.connection_used"]():
                raise ConnectionAbortedError(f"in the middle of an answer: {error}") from error
            yield from _answer(answered, environ, start_response)


def _answer(
    error: DavError, environ: dict[str, Any], start_response: Callable[..., Any]
) -> Iterator[bytes]:
    headers = [("Cache-Control", "no-cache"), *error.headers]
    if error.status == 304:
        start_response(status_line(304), headers)
        return
    kind, body = error_body(error)
    headers += [("Content-Type", kind), ("Content-Length", str(len(body)))]
    start_response(status_line(error.status), headers)
    if environ["REQUEST_METHOD"] != "HEAD":
        yield body
