"""What a request says about its own signature, from the Authorization header or from the query."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from s3.auth import canonical, scope
from s3.auth.scope import IN_HEADER, IN_QUERY, Complaint, shown
from s3.errors import S3Error, s3_error

EXPIRES_S_MAX = 7 * 24 * 3600

_QUERY_NAMES = (
    b"X-Amz-Algorithm",
    b"X-Amz-Credential",
    b"X-Amz-Signature",
    b"X-Amz-Date",
    b"X-Amz-SignedHeaders",
    b"X-Amz-Expires",
)


class Parameters(msgspec.Struct, frozen=True, kw_only=True):
    """The claims; nothing of it is verified yet."""

    credential: bytes
    signed_headers: bytes
    signature: bytes
    timestamp: bytes
    """``20130524T000000Z``"""
    at_ms: int
    payload: bytes
    """Value of ``x-amz-content-sha256``."""
    expires_s: int | None
    """Of a presigned URL, counted from ``at_ms``; None in a header."""
    complaint: Complaint


def version_2() -> S3Error:
    """Return the refusal of Signature Version 2 where it is not accepted.

    That is everywhere but in presigned URLs and forms; AWS's regions without it answer so.
    """
    return s3_error(
        "InvalidRequest",
        "The authorization mechanism you have provided is not supported. "
        "Please use AWS4-HMAC-SHA256.",
    )


def from_header(authorization: bytes, headers: Mapping[bytes, bytes]) -> Parameters:
    """Return the claims of an Authorization header.

    Raises:
        S3Error: AuthorizationHeaderMalformed, InvalidArgument, InvalidRequest, or AccessDenied
            when the request has no usable date.
    """
    if not authorization.startswith(b"AWS4-HMAC-SHA256 "):
        _fail_scheme(authorization)
    credential = signed_headers = signature = b""
    count = 0
    for piece in authorization[17:].split(b","):
        name, _, value = piece.strip().partition(b"=")
        count += 1
        if name == b"Credential":
            credential = value
        elif name == b"SignedHeaders":
            signed_headers = value
        elif name == b"Signature":
            signature = value
    if count != 3 or not (credential and signed_headers and signature):
        IN_HEADER.fail(
            "the authorization header requires three components: Credential, SignedHeaders, and "
            "Signature."
        )
    timestamp, at_ms = _header_date(headers)
    payload = headers.get(b"x-amz-content-sha256")
    if payload is None:
        raise s3_error(
            "InvalidRequest", "Missing required header for this request: x-amz-content-sha256"
        )
    return Parameters(
        credential=credential,
        signed_headers=signed_headers,
        signature=signature,
        timestamp=timestamp,
        at_ms=at_ms,
        payload=payload,
        expires_s=None,
        complaint=IN_HEADER,
    )


def _fail_scheme(authorization: bytes) -> None:
    scheme = authorization.split(b" ", 1)[0]
    if scheme == b"AWS":
        raise version_2()
    if scheme == b"AWS4-ECDSA-P256-SHA256":
        raise s3_error("NotImplemented", "Signature Version 4A is not implemented")
    if scheme.startswith(b"AWS4-HMAC-SHA256"):
        IN_HEADER.fail(
            "the authorization header requires three components: Credential, SignedHeaders, and "
            "Signature."
        )
    # Only the scheme is repeated: what follows it may be a password.
    raise s3_error(
        "InvalidArgument",
        "Unsupported Authorization Type",
        ArgumentName="Authorization",
        ArgumentValue=shown(scheme),
    )


def _header_date(headers: Mapping[bytes, bytes]) -> tuple[bytes, int]:
    raw = headers.get(b"x-amz-date")
    if raw is None:
        raw = headers.get(b"date", b"")
    at_ms = scope.parse_timestamp(raw)
    if at_ms is not None:
        return raw, at_ms
    at_ms = scope.parse_http_date(raw)
    if at_ms is None:
        raise s3_error(
            "AccessDenied", "AWS authentication requires a valid Date or x-amz-date header"
        )
    return scope.format_timestamp(at_ms), at_ms


def query_parameters(query: bytes) -> dict[bytes, list[bytes]]:
    """Return decoded values by decoded name.

    Raises: S3Error InvalidURI.
    """
    parameters: dict[bytes, list[bytes]] = {}
    try:
        for piece in query.split(b"&"):
            name, _, value = piece.partition(b"=")
            parameters.setdefault(canonical.decode_component(name), []).append(
                canonical.decode_component(value)
            )
    except canonical.MalformedEncoding:
        raise s3_error("InvalidURI") from None
    return parameters


def from_query(query: Mapping[bytes, list[bytes]], headers: Mapping[bytes, bytes]) -> Parameters:
    """Return the claims of a presigned URL.

    Raises: S3Error AuthorizationQueryParametersError.
    """
    values = []
    for name in _QUERY_NAMES:
        found = query.get(name, ())
        if len(found) != 1 or not found[0]:
            raise s3_error(IN_QUERY.code)
        values.append(found[0])
    algorithm, credential, signature, timestamp, signed_headers, expires = values
    if algorithm != b"AWS4-HMAC-SHA256":
        raise s3_error(IN_QUERY.code, 'X-Amz-Algorithm only supports "AWS4-HMAC-SHA256"')
    at_ms = scope.parse_timestamp(timestamp)
    if at_ms is None:
        raise s3_error(
            IN_QUERY.code,
            "X-Amz-Date must be in the ISO8601 Long Format \"yyyyMMdd'T'HHmmss'Z'\"",
        )
    payload = headers.get(b"x-amz-content-sha256")
    if payload is None:
        payload = query.get(b"X-Amz-Content-Sha256", [b"UNSIGNED-PAYLOAD"])[0]
    return Parameters(
        credential=credential,
        signed_headers=signed_headers,
        signature=signature,
        timestamp=timestamp,
        at_ms=at_ms,
        payload=payload,
        expires_s=_parse_expires(expires),
        complaint=IN_QUERY,
    )


def _parse_expires(raw: bytes) -> int:
    if not raw.lstrip(b"-").isdigit() or len(raw) > 20:
        raise s3_error(IN_QUERY.code, "X-Amz-Expires should be a number")
    expires_s = int(raw) if not raw.startswith(b"--") else -1
    if expires_s < 0:
        raise s3_error(IN_QUERY.code, "X-Amz-Expires must be non-negative")
    if expires_s > EXPIRES_S_MAX:
        raise s3_error(
            IN_QUERY.code,
            "X-Amz-Expires must be less than a week (in seconds); that is, the given "
            f"X-Amz-Expires must be less than {EXPIRES_S_MAX} seconds",
        )
    return expires_s
