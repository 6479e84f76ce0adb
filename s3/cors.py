"""Cross-origin resource sharing: a bucket's rules, preflight, headers on actual responses.

Source: https://docs.aws.amazon.com/AmazonS3/latest/userguide/ManageCorsUsing.html and the Fetch
standard's CORS protocol.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from engine.errors import NoSuchBucket, NoSuchConfiguration
from engine.http.message import Response
from s3.body import read_document
from s3.config import Api
from s3.errors import S3Error, s3_error
from s3.request import S3Request
from s3.responses import XML_TYPE, Headers, no_content
from s3.xml import Element, document, element, malformed, parse_configuration

RULES_MAX = 100
DOCUMENT_SIZE_MAX = 64 * 1024
ID_MAX = 255
_METHODS = frozenset({"GET", "PUT", "HEAD", "POST", "DELETE"})
_VARY = (b"Vary", b"Origin, Access-Control-Request-Headers, Access-Control-Request-Method")
_NOT_ALLOWED = (
    "CORSResponse: This CORS request is not allowed. This is usually because the evalution of "
    "Origin, request method / Access-Control-Request-Method or Access-Control-Request-Headers "
    "are not whitelisted by the resource's CORS spec."
)


@dataclass(frozen=True, slots=True)
class CorsRule:
    origins: tuple[str, ...]
    methods: tuple[str, ...]
    headers: tuple[str, ...] = ()
    exposed: tuple[str, ...] = ()
    max_age_s: int | None = None
    id: str | None = None

    def match_origin(self, origin: str) -> str | None:
        """Return the pattern that covers the origin."""
        for pattern in self.origins:
            if _covers(pattern, origin):
                return pattern
        return None

    def allows_header(self, name: str) -> bool:
        return any(_covers(pattern.lower(), name.lower()) for pattern in self.headers)


def _covers(pattern: str, text: str) -> bool:
    """Return whether the text is the pattern, in which one ``*`` stands for anything."""
    first, star, last = pattern.partition("*")
    if not star:
        return pattern == text
    return len(text) >= len(first) + len(last) and text.startswith(first) and text.endswith(last)


def parse_cors(raw: bytes) -> list[CorsRule]:
    """Return the rules of a CORSConfiguration.

    Raises: MissingRequestBodyError, MalformedXML, InvalidRequest.
    """
    if len(raw) > DOCUMENT_SIZE_MAX:
        raise malformed()
    found = parse_configuration(raw, "CORSConfiguration").children
    if not 0 < len(found) <= RULES_MAX:
        raise malformed()
    return [_rule(each) for each in found]


def _rule(each: Element) -> CorsRule:
    if each.name != "CORSRule":
        raise malformed()
    origins = _texts(each, "AllowedOrigin")
    methods = _texts(each, "AllowedMethod")
    headers = _texts(each, "AllowedHeader")
    exposed = _texts(each, "ExposeHeader")
    if not origins or not methods:
        raise malformed()
    for method in methods:
        if method not in _METHODS:
            raise s3_error(
                "InvalidRequest",
                f"Found unsupported HTTP method in CORS config. Unsupported method is {method}",
            )
    for kind, values in (("AllowedOrigin", origins), ("AllowedHeader", headers)):
        for value in values:
            if value.count("*") > 1:
                raise s3_error(
                    "InvalidRequest", f'{kind} "{value}" can not have more than one wildcard.'
                )
    for value in exposed:
        if "*" in value:
            raise s3_error(
                "InvalidRequest",
                f'ExposeHeader "{value}" contains wildcard. We currently do not support wildcard '
                "for ExposeHeader.",
            )
    if len(each.get("ID") or "") > ID_MAX:
        raise malformed()
    age = each.get("MaxAgeSeconds")
    if age is not None and re.fullmatch(r"\s*\d{1,9}\s*", age, re.ASCII) is None:
        raise malformed()
    return CorsRule(
        origins, methods, headers, exposed, None if age is None else int(age), each.get("ID")
    )


def _texts(each: Element, name: str) -> tuple[str, ...]:
    return tuple(child.text.strip() for child in each.find_all(name))


def cors_document(rules: list[CorsRule]) -> bytes:
    rows = []
    for rule in rules:
        rows.append("<CORSRule>")
        if rule.id is not None:
            rows.append(element("ID", rule.id))
        rows += [element("AllowedOrigin", origin) for origin in rule.origins]
        rows += [element("AllowedMethod", method) for method in rule.methods]
        rows += [element("AllowedHeader", header) for header in rule.headers]
        rows += [element("ExposeHeader", header) for header in rule.exposed]
        if rule.max_age_s is not None:
            rows.append(element("MaxAgeSeconds", rule.max_age_s))
        rows.append("</CORSRule>")
    return document("CORSConfiguration", rows)


def find_rule(
    rules: list[CorsRule], origin: str, method: str, headers: tuple[str, ...] = ()
) -> tuple[CorsRule, str] | None:
    """Return the first rule that allows the request, and its pattern for the origin."""
    for rule in rules:
        pattern = rule.match_origin(origin)
        if (
            pattern is not None
            and method in rule.methods
            and all(rule.allows_header(name) for name in headers)
        ):
            return rule, pattern
    return None


def rule_headers(rule: CorsRule, pattern: str, origin: str, *, preflight: bool) -> Headers:
    allowed: Headers = []
    if pattern == "*":
        allowed.append((b"Access-Control-Allow-Origin", b"*"))
    else:
        allowed.append((b"Access-Control-Allow-Origin", origin.encode("latin-1")))
        allowed.append((b"Access-Control-Allow-Credentials", b"true"))
    allowed.append((b"Access-Control-Allow-Methods", ", ".join(rule.methods).encode()))
    if rule.exposed:
        exposed = ", ".join(rule.exposed).encode("latin-1", "replace")
        allowed.append((b"Access-Control-Expose-Headers", exposed))
    if preflight and rule.max_age_s is not None:
        allowed.append((b"Access-Control-Max-Age", b"%d" % rule.max_age_s))
    allowed.append(_VARY)
    return allowed


async def _rules(api: Api, bucket: str) -> list[CorsRule] | None:
    try:
        return parse_cors(await api.engine.bucket_config(bucket, "cors"))
    except NoSuchConfiguration:
        return None


async def actual_headers(api: Api, request: S3Request) -> Headers:
    """Return what a response to a request with ``Origin`` must carry; nothing if not allowed."""
    origin = request.header(b"origin")
    if origin is None or not request.bucket:
        return []
    try:
        rules = await _rules(api, request.bucket)
    except NoSuchBucket:
        return []
    # Browsers send the method of a preflight only there; an actual request is its own.
    found = find_rule(rules, origin, request.method) if rules is not None else None
    return [] if found is None else rule_headers(*found, origin, preflight=False)


async def preflight(api: Api, request: S3Request) -> Response:
    """Answer OPTIONS; it is never signed."""
    origin = request.header(b"origin")
    method = request.header(b"access-control-request-method")
    if origin is None:
        raise s3_error("BadRequest", "Insufficient information. Origin request header needed.")
    if method is None or method not in _METHODS:
        raise s3_error(
            "BadRequest",
            f"Invalid Access-Control-Request-Method: {method or 'null'}",
        )
    raw_headers = request.header(b"access-control-request-headers") or ""
    names = tuple(name.strip() for name in raw_headers.split(",") if name.strip())
    rules = await _rules(api, request.bucket) if request.bucket else None
    if rules is None:
        raise _forbidden("CORSResponse: CORS is not enabled for this bucket.", method, request)
    found = find_rule(rules, origin, method, names)
    if found is None:
        raise _forbidden(_NOT_ALLOWED, method, request)
    headers = rule_headers(*found, origin, preflight=True)
    if names:
        headers.append(
            (b"Access-Control-Allow-Headers", ", ".join(names).lower().encode("latin-1"))
        )
    return Response(200, headers)


def _forbidden(message: str, method: str, request: S3Request) -> S3Error:
    kind = "OBJECT" if request.key else "BUCKET"
    return s3_error("AccessForbidden", message, Method=method, ResourceType=kind)


async def get_cors(api: Api, request: S3Request) -> Response:
    return Response(200, [XML_TYPE], await api.engine.bucket_config(request.bucket, "cors"))


async def put_cors(api: Api, request: S3Request) -> Response:
    raw = await read_document(request, limit=DOCUMENT_SIZE_MAX)
    await api.engine.put_bucket_config(request.bucket, "cors", cors_document(parse_cors(raw)))
    return Response(200)


async def delete_cors(api: Api, request: S3Request) -> Response:
    await api.engine.delete_bucket_config(request.bucket, "cors")
    return no_content()
