"""The S3 frontend: one handler that authenticates, dispatches, and maps every error."""

from __future__ import annotations

import itertools
import os
import time

from structlog.typing import FilteringBoundLogger

from engine import errors as engine_errors
from engine.engine import Engine
from engine.errors import EngineError, StorageError
from engine.http.message import BodyBroken, Handler, Request, Response
from s3.access import check_operation
from s3.auth.sigv2 import with_query_headers
from s3.auth.sigv4 import Authenticator
from s3.config import Api, Observer, S3Config
from s3.cors import actual_headers
from s3.errors import S3Error, s3_error, translate
from s3.expected_owner import HEADER, check_owner
from s3.request import S3Request, bucket_name_problem, parse_request
from s3.responses import STANDARD_HEADERS, Headers, error_response, quoted
from s3.routing import MethodNotAllowed, Route, find_route
from s3.times import http_date

__all__ = ["Observer", "S3Config", "make_handler"]

_BODY_ERRORS = {
    "disconnected": "IncompleteBody",
    "timeout": "RequestTimeout",
    "framing": "InvalidRequest",
}


def make_handler(
    engine: Engine,
    config: S3Config,
    *,
    log: FilteringBoundLogger,
    observer: Observer | None = None,
) -> Handler:
    """Return the handler for ``engine.http.server``: S3's REST API over the engine."""
    return _Frontend(engine, config, log, observer).handle


class _Frontend:
    """Concurrency: no state but the request counter, which only moves between awaits."""

    def __init__(
        self,
        engine: Engine,
        config: S3Config,
        log: FilteringBoundLogger,
        observer: Observer | None,
    ) -> None:
        self._authenticator = Authenticator(
            credentials=config.credentials, region=config.region, clock=config.clock
        )
        self._api = Api(engine, config, self._authenticator)
        self._log = log
        self._observer = observer
        self._domains = tuple(
            sorted((domain.lower().encode() for domain in config.domains), key=len, reverse=True)
        )
        self._prefix = os.urandom(4).hex().upper()
        self._counter = itertools.count(1)
        self._host_id = config.host_id
        self._host_header = (b"x-amz-id-2", config.host_id.encode("latin-1"))

    async def handle(self, http: Request) -> Response:
        """Answer one request. Raises nothing but what cancels it."""
        started = time.perf_counter()
        request_id = f"{self._prefix}{next(self._counter):08X}"
        request: S3Request | None = None
        route: Route | None = None
        extra: Headers | None = None
        code = ""
        try:
            if http.query:
                http = with_query_headers(http)
            request = parse_request(http, request_id, self._domains)
            if b"origin" in request.headers:
                extra = await actual_headers(self._api, request)
            route = self._route(request)
            if route.signed:
                request.signed_by = self._authenticator.authenticate(
                    http, host_bucket=request.host_bucket, any_region=route.any_region
                )
                check_operation(request.signed_by.access, route.name, request)
                if HEADER in request.headers and request.bucket:
                    await check_owner(self._api, request.headers[HEADER], request.bucket)
            response = await route.run(self._api, request)
        except Exception as error:  # noqa: BLE001  the one place where all errors are answered
            answered, headers = self._explain(error, request, http, request_id)
            code = answered.code
            response = error_response(
                answered,
                resource=http.path.decode("latin-1") if request is None else request.resource,
                request_id=request_id,
                host_id=self._host_id,
                headers=headers,
                head=http.method == "HEAD",
            )
            response.close = isinstance(error, BodyBroken)
        response.headers = [
            *response.headers,
            *(extra or ()),
            (b"x-amz-request-id", request_id.encode()),
            self._host_header,
        ]
        seconds = time.perf_counter() - started
        name = route.name if route is not None else "Unknown"
        self._log.debug(
            "s3.request",
            operation=name,
            status=response.status,
            code=code,
            request_id=request_id,
            peer=http.peer,
            ms=seconds * 1000,
        )
        if self._observer is not None:
            self._observer.answered(name, response.status, code, seconds)
            sent = len(response.body) if isinstance(response.body, bytes) else response.length
            self._observer.moved(http.body.length or 0, 0 if http.method == "HEAD" else sent or 0)
        return response

    def _route(self, request: S3Request) -> Route:
        try:
            return find_route(request)
        except (S3Error, MethodNotAllowed):
            # Who may not ask anything is told that first, whatever it was.
            self._authenticator.authenticate(
                request.http, host_bucket=request.host_bucket, any_region=True
            )
            raise

    def _explain(
        self, error: Exception, request: S3Request | None, http: Request, request_id: str
    ) -> tuple[S3Error, Headers]:
        """Return what to answer for an error, and the headers that go with it; log our faults."""
        match error:
            case S3Error():
                return error, []
            case MethodNotAllowed():
                return error.error, [(b"Allow", error.allow.encode())]
            case BodyBroken():
                return s3_error(_BODY_ERRORS.get(error.reason, "InvalidRequest")), []
            case engine_errors.NoSuchBucket() if bucket_name_problem(error.bucket) is not None:
                return s3_error("InvalidBucketName", BucketName=error.bucket), []
            case StorageError():
                answered = translate(error)
                # A full or overloaded store is degraded; anything else is broken.
                tell = self._log.error if answered.status == 500 else self._log.warning
                tell(
                    "s3.storage_failed",
                    error=str(error),
                    kind=type(error).__name__,
                    request_id=request_id,
                    resource=_resource(request),
                    exc_info=error if answered.status == 500 else None,
                )
                return answered, []
            case EngineError() if (answered := translate(error)).status != 500:
                if isinstance(error, engine_errors.InvalidRange) and request is not None:
                    requested = request.header(b"range")
                    if requested is not None:
                        answered.extra["RangeRequested"] = requested
                return answered, error_headers(error)
            case _:
                self._log.error(
                    "s3.request_failed",
                    request_id=request_id,
                    method=http.method,
                    resource=_resource(request),
                    exc_info=error,
                )
                return s3_error("InternalError"), []


def _resource(request: S3Request | None) -> str:
    return "" if request is None else request.resource


def error_headers(error: EngineError) -> Headers:
    """Return the headers that tell more about an error than its document does."""
    match error:
        case engine_errors.NoSuchKey(delete_marker=str(version_id)):
            return [
                (b"x-amz-delete-marker", b"true"),
                (b"x-amz-version-id", version_id.encode()),
            ]
        case engine_errors.IsDeleteMarker():
            return [
                (b"Allow", b"DELETE"),
                (b"Last-Modified", http_date(error.created_ms)),
                (b"x-amz-delete-marker", b"true"),
                (b"x-amz-version-id", error.version_id.encode()),
            ]
        case engine_errors.NotModified():
            kept = dict(error.headers)
            # Caches go on with what they have for as long as these say (RFC 9110, 15.4.5).
            return [
                (b"ETag", quoted(error.etag)),
                (b"Last-Modified", http_date(error.modified_ms)),
                *(
                    (STANDARD_HEADERS[name], kept[name].encode("latin-1"))
                    for name in ("cache-control", "expires")
                    if name in kept
                ),
            ]
        case engine_errors.InvalidRange():
            return [(b"Content-Range", b"bytes */%d" % error.size)]
        case _:
            return []
