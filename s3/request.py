"""One S3 request: what a raw target and headers mean. Pure; nothing here does I/O."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from urllib.parse import unquote_to_bytes

from engine.http.message import HeaderList, Request
from engine.types import KEY_BYTES_MAX
from s3.auth.sigv4 import Identity
from s3.errors import S3Error, s3_error

_BAD_ESCAPE = re.compile(rb"%(?![0-9A-Fa-f]{2})")
_BUCKET_NAME = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")
_IP_ADDRESS = re.compile(r"\d+\.\d+\.\d+\.\d+")
_RESERVED_PREFIXES = ("xn--", "sthree-", "amzn-s3-demo-")
_RESERVED_SUFFIXES = ("-s3alias", "--ol-s3", ".mrap", "--x-s3", "--table-s3")


@dataclass(slots=True)
class S3Request:
    http: Request
    method: str
    bucket: str
    """Empty for requests to the service itself."""
    key: str
    """Empty for requests to a bucket."""
    params: dict[str, str]
    """Decoded query; of a repeated name the first value."""
    headers: dict[bytes, bytes]
    """By lower-case name; repeated headers are joined with commas."""
    request_id: str
    signed_by: Identity | None = None
    host_bucket: str = ""
    """The bucket again when the Host header names it and not the path."""

    @property
    def identity(self) -> Identity:
        """Who signed the request. Operations run only after it is known."""
        if self.signed_by is None:
            raise s3_error("AccessDenied")
        return self.signed_by

    def header(self, name: bytes) -> str | None:
        """Return the header's value as latin-1, or None."""
        value = self.headers.get(name)
        return None if value is None else value.decode("latin-1")

    @property
    def resource(self) -> str:
        """The decoded path of the resource, as error documents name it."""
        if not self.bucket:
            return "/"
        return f"/{self.bucket}/{self.key}" if self.key else f"/{self.bucket}"


def parse_request(http: Request, request_id: str, domains: Sequence[bytes]) -> S3Request:
    """Return the request with its target decoded.

    Args:
        domains: lower-case names below which buckets are addressed by virtual host.
    Raises:
        S3Error: InvalidURI, KeyTooLongError.
    """
    headers = join_headers(http.headers)
    host_bucket = _virtual_host(headers.get(b"host", b""), domains) if domains else ""
    path = http.path
    if path[:1] != b"/":
        raise s3_error("InvalidURI", URI=path.decode("latin-1"))
    if host_bucket:
        bucket = host_bucket
        key = decode_path(path[1:])
    else:
        raw_bucket, _, raw_key = path[1:].partition(b"/")
        bucket = decode_path(raw_bucket)
        key = decode_path(raw_key)
        if key and not bucket:
            raise s3_error("InvalidURI", URI=path.decode("latin-1"))
    if len(key) > KEY_BYTES_MAX // 4:
        check_key(key)
    params = parse_query(http.query) if http.query else {}
    return S3Request(
        http, http.method, bucket, key, params, headers, request_id, host_bucket=host_bucket
    )


def check_key(key: str) -> None:
    """Raises KeyTooLongError."""
    size = len(key.encode())
    if size > KEY_BYTES_MAX:
        raise s3_error("KeyTooLongError", Size=str(size), MaxSizeAllowed=str(KEY_BYTES_MAX))


def join_headers(headers: HeaderList) -> dict[bytes, bytes]:
    joined = dict(headers)
    if len(joined) != len(headers):
        joined.clear()
        for name, value in headers:
            known = joined.get(name)
            joined[name] = value if known is None else known + b"," + value
    return joined


def _virtual_host(host: bytes, domains: Sequence[bytes]) -> str:
    """Return the bucket that the Host header names, or an empty string."""
    name = host.lower()
    colon = name.rfind(b":")
    if colon > 0 and name[colon + 1 :].isdigit():
        name = name[:colon]
    for domain in domains:
        if name.endswith(domain):
            rest = name[: -len(domain)]
            if len(rest) > 1 and rest[-1:] == b".":
                return rest[:-1].decode("latin-1")
    return ""


def decode_path(raw: bytes) -> str:
    """Return percent-encoded UTF-8 as text; ``+`` is itself. Raises InvalidURI."""
    if b"%" in raw:
        if _BAD_ESCAPE.search(raw) is not None:
            raise _invalid_uri(raw)
        raw = unquote_to_bytes(raw)
    try:
        return raw.decode()
    except UnicodeDecodeError:
        raise _invalid_uri(raw) from None


def _invalid_uri(raw: bytes) -> S3Error:
    return s3_error("InvalidURI", URI=raw.decode("latin-1"))


def parse_query(query: bytes) -> dict[str, str]:
    """Return name → value, ``+`` decoded as a space; a name without ``=`` has an empty value.

    Raises:
        S3Error: InvalidURI for a wrong escape or what is not UTF-8.
    """
    params: dict[str, str] = {}
    for pair in query.split(b"&"):
        name, _, value = pair.partition(b"=")
        if name:
            params.setdefault(_decode_query(name), _decode_query(value))
    return params


def _decode_query(raw: bytes) -> str:
    if b"+" in raw:
        raw = raw.replace(b"+", b" ")
    return decode_path(raw)


def bucket_name_problem(name: str) -> str | None:
    """Return why S3 refuses the bucket name in one clause, or None when it is right.

    Source: https://docs.aws.amazon.com/AmazonS3/latest/userguide/bucketnamingrules.html
    """
    if _BUCKET_NAME.fullmatch(name) is None:
        return "3 to 63 of a-z, 0-9, dots and hyphens, beginning and ending with a letter or digit"
    if ".." in name:
        return "two dots beside each other"
    if _IP_ADDRESS.fullmatch(name) is not None:
        return "looks like an IP address"
    if name.startswith(_RESERVED_PREFIXES) or name.endswith(_RESERVED_SUFFIXES):
        return "has a reserved beginning or end"
    return None


def int_param(
    request: S3Request, name: str, default: int, *, least: int = 0, most: int = 2**31 - 1
) -> int:
    """Return a number of the query. Raises InvalidArgument."""
    text = request.params.get(name)
    if not text:
        return default
    digits = text.removeprefix("-")
    if not (digits.isascii() and digits.isdigit() and len(digits) <= 10):
        raise s3_error(
            "InvalidArgument",
            f"Provided {name} not an integer or within integer range",
            ArgumentName=name,
            ArgumentValue=text,
        )
    value = int(text)
    if not least <= value <= most:
        raise s3_error(
            "InvalidArgument",
            f"Argument {name} must be an integer between {least} and {most}",
            ArgumentName=name,
            ArgumentValue=text,
        )
    return value
