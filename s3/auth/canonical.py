"""Signature Version 4 as S3 computes it: pure functions on bytes, no I/O and no state.

Source: https://docs.aws.amazon.com/AmazonS3/latest/API/sig-v4-header-based-auth.html. S3 differs
from other services: the path is neither normalised nor encoded twice.
"""

from __future__ import annotations

import hmac
from binascii import hexlify
from collections.abc import Mapping
from hashlib import sha256
from urllib.parse import quote_from_bytes, unquote_to_bytes

from engine.http.message import HeaderList

ALGORITHM = b"AWS4-HMAC-SHA256"
EMPTY_SHA256 = sha256(b"").hexdigest().encode()

_UNRESERVED = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~"
_PLAIN_PATH = _UNRESERVED + b"/"
_PLAIN_QUERY = _UNRESERVED + b"=&"
_HEX = b"0123456789ABCDEFabcdef"


class MalformedEncoding(ValueError):
    """A ``%`` without two hexadecimal digits after it."""


def _decode(raw: bytes) -> bytes:
    for piece in raw.split(b"%")[1:]:
        if len(piece) < 2 or piece[0] not in _HEX or piece[1] not in _HEX:
            raise MalformedEncoding(raw)
    return unquote_to_bytes(raw)


def canonical_path(path: bytes) -> bytes:
    """Return the raw path with exactly the bytes encoded that S3 encodes, as ``%XX``.

    Raises: MalformedEncoding.
    """
    if not path.translate(None, _PLAIN_PATH):
        return path or b"/"
    return quote_from_bytes(_decode(path), safe="/").encode()


def encode_component(raw: bytes) -> bytes:
    """Return ``raw`` with every byte but letters, digits and ``-._~`` as ``%XX``."""
    return quote_from_bytes(raw, safe="").encode()


def decode_component(raw: bytes) -> bytes:
    """Return a query name or value without its encoding; ``+`` is a space.

    Raises: MalformedEncoding.
    """
    return _decode(raw.replace(b"+", b" "))


def canonical_query(query: bytes, *, leave_out: bytes = b"") -> bytes:
    """Return the raw query's parameters encoded and sorted by name, then value.

    Args:
        leave_out: name of a parameter that is no part of what is signed.
    Raises: MalformedEncoding.
    """
    if not query:
        return b""
    plain = not query.translate(None, _PLAIN_QUERY)
    pairs = []
    for piece in query.split(b"&"):
        if not piece:
            continue
        name, _, value = piece.partition(b"=")
        if not plain:
            name = encode_component(decode_component(name))
            value = encode_component(decode_component(value))
        if name != leave_out or not leave_out:
            pairs.append((name, value))
    pairs.sort()
    return b"&".join([name + b"=" + value for name, value in pairs])


def collect_headers(headers: HeaderList) -> dict[bytes, bytes]:
    """Return value by (lower-case) name; values of a repeated header are joined with a comma."""
    collected = dict(headers)
    if len(collected) != len(headers):
        collected.clear()
        for name, value in headers:
            known = collected.get(name)
            value = value.strip()
            collected[name] = value if known is None else known + b"," + value
    return collected


def canonical_request(
    method: str,
    path: bytes,
    query: bytes,
    headers: Mapping[bytes, bytes],
    *,
    signed_headers: bytes,
    payload: bytes,
) -> bytes:
    """Return what is hashed into the string to sign.

    Args:
        path, query: canonical already.
        headers: from ``collect_headers``; a signed header that is absent counts as empty.
        signed_headers: lower-case names with ``;`` between, in the order in which they are signed.
        payload: the value of ``x-amz-content-sha256``.
    """
    parts = [method.encode("ascii", "replace"), path, query]
    for name in signed_headers.split(b";"):
        value = headers.get(name, b"")
        folded = b"  " in value or b"\t" in value
        parts.append(name + b":" + (b" ".join(value.split()) if folded else value.strip()))
    parts += (b"", signed_headers, payload)
    return b"\n".join(parts)


def string_to_sign(timestamp: bytes, scope: bytes, canonical: bytes) -> bytes:
    """Return the string to sign for a canonical request.

    Args:
        timestamp: ``20130524T000000Z``.
        scope: ``20130524/us-east-1/s3/aws4_request``.
    """
    digest = hexlify(sha256(canonical).digest())
    return b"\n".join((ALGORITHM, timestamp, scope, digest))


def signing_key(secret_key: str, date: bytes, region: bytes) -> bytes:
    """Return the key for one day (``20130524``), region and the service ``s3``."""
    key = b"AWS4" + secret_key.encode()
    for message in (date, region, b"s3", b"aws4_request"):
        key = hmac.digest(key, message, "sha256")
    return key


def sign(key: bytes, message: bytes) -> bytes:
    """Return the signature: 64 lower-case hexadecimal digits."""
    return hexlify(hmac.digest(key, message, "sha256"))


def hex_sha256(data: bytes) -> bytes:
    return hexlify(sha256(data).digest())


def chunk_to_sign(timestamp: bytes, scope: bytes, previous: bytes, digest: bytes) -> bytes:
    """Return the string to sign of one chunk of an aws-chunked body.

    Args:
        previous: signature of the chunk before, or of the request.
        digest: SHA-256 of the chunk's data, in hexadecimal.
    Source: https://docs.aws.amazon.com/AmazonS3/latest/API/sigv4-streaming.html
    """
    return b"\n".join(
        (b"AWS4-HMAC-SHA256-PAYLOAD", timestamp, scope, previous, EMPTY_SHA256, digest)
    )


def trailer_to_sign(timestamp: bytes, scope: bytes, previous: bytes, trailers: HeaderList) -> bytes:
    """Return the string to sign of the trailers, given in the order in which they are sent.

    Source: https://docs.aws.amazon.com/AmazonS3/latest/API/sigv4-streaming-trailers.html
    """
    text = b"".join([name + b":" + value + b"\n" for name, value in trailers])
    return b"\n".join((b"AWS4-HMAC-SHA256-TRAILER", timestamp, scope, previous, hex_sha256(text)))
