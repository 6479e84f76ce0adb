"""The client's side of Signature Version 4: signs requests, chunks, URLs and POST policies."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Iterator

from engine.http.message import HeaderList
from s3.auth import canonical, scope
from s3.auth.credentials import Credential
from s3.auth.sigv4 import SigningContext


def sign_request(
    method: str,
    path: bytes,
    query: bytes,
    headers: HeaderList,
    *,
    credential: Credential,
    region: str,
    at_ms: int,
    payload: bytes = b"UNSIGNED-PAYLOAD",
    unsigned: Iterable[bytes] = (),
) -> tuple[HeaderList, SigningContext]:
    """Return the headers to send, and what the chunks of an aws-chunked body are signed with.

    Args:
        path, query: as they are sent, encoded.
        headers: lower-case names, ``host`` among them.
        payload: what ``x-amz-content-sha256`` is to say.
        unsigned: names of headers that are sent without being signed.
    """
    timestamp = scope.format_timestamp(at_ms)
    sent = [*headers, (b"x-amz-date", timestamp), (b"x-amz-content-sha256", payload)]
    left_out = set(unsigned)
    collected = canonical.collect_headers(sent)
    signed_headers = b";".join(sorted(name for name in collected if name not in left_out))
    text = canonical.canonical_request(
        method,
        canonical.canonical_path(path),
        canonical.canonical_query(query),
        collected,
        signed_headers=signed_headers,
        payload=payload,
    )
    context = _sign(text, credential, region, timestamp)
    authorization = b"AWS4-HMAC-SHA256 Credential=%b/%b,SignedHeaders=%b,Signature=%b" % (
        credential.access_key.encode(),
        context.scope,
        signed_headers,
        context.seed,
    )
    return [*sent, (b"authorization", authorization)], context


def presign_url(
    method: str,
    path: bytes,
    query: bytes = b"",
    *,
    host: bytes,
    credential: Credential,
    region: str,
    at_ms: int,
    expires_s: int,
    headers: HeaderList | None = None,
) -> bytes:
    """Return the target (path and query) that anybody may request until it expires.

    Args:
        host: value of the Host header that the request will have.
        headers: further headers that the request must have, with exactly these values.
    """
    timestamp = scope.format_timestamp(at_ms)
    collected = canonical.collect_headers([(b"host", host), *(headers or [])])
    signed_headers = b";".join(sorted(collected))
    scope_text = _scope_text(timestamp, region)
    added = (
        (b"X-Amz-Algorithm", canonical.ALGORITHM),
        (b"X-Amz-Credential", credential.access_key.encode() + b"/" + scope_text),
        (b"X-Amz-Date", timestamp),
        (b"X-Amz-Expires", str(expires_s).encode()),
        (b"X-Amz-SignedHeaders", signed_headers),
    )
    parts = [query] if query else []
    parts += [name + b"=" + canonical.encode_component(value) for name, value in added]
    full = b"&".join(parts)
    text = canonical.canonical_request(
        method,
        canonical.canonical_path(path),
        canonical.canonical_query(full),
        collected,
        signed_headers=signed_headers,
        payload=collected.get(b"x-amz-content-sha256", b"UNSIGNED-PAYLOAD"),
    )
    signature = _sign(text, credential, region, timestamp).seed
    return path + b"?" + full + b"&X-Amz-Signature=" + signature


def sign_policy(policy: bytes, *, credential: Credential, region: str, at_ms: int) -> HeaderList:
    """Return the form fields that sign a POST policy (a JSON document), ``policy`` included.

    The policy must itself have conditions for the fields ``x-amz-algorithm``,
    ``x-amz-credential`` and ``x-amz-date``.
    """
    timestamp = scope.format_timestamp(at_ms)
    text = _scope_text(timestamp, region)
    encoded = base64.b64encode(policy)
    key = canonical.signing_key(credential.secret_key, timestamp[:8], region.encode())
    return [
        (b"x-amz-algorithm", canonical.ALGORITHM),
        (b"x-amz-credential", credential.access_key.encode() + b"/" + text),
        (b"x-amz-date", timestamp),
        (b"policy", encoded),
        (b"x-amz-signature", canonical.sign(key, encoded)),
    ]


def encode_chunks(
    chunks: Iterable[bytes],
    context: SigningContext | None,
    trailers: HeaderList | None = None,
) -> Iterator[bytes]:
    """Yield an aws-chunked body piece by piece.

    Args:
        chunks: none of them empty; the end is added.
        context: signs chunks and trailers; None: nothing is signed.
        trailers: None: a body without trailers.
    """
    previous = context.seed if context is not None else b""
    for chunk in (*chunks, b""):
        head = b"%x" % len(chunk)
        if context is not None:
            previous = canonical.sign(
                context.key,
                canonical.chunk_to_sign(
                    context.timestamp, context.scope, previous, canonical.hex_sha256(chunk)
                ),
            )
            head += b";chunk-signature=" + previous
        yield head + b"\r\n"
        if chunk:
            yield chunk + b"\r\n"
    if trailers:
        yield b"".join([name + b":" + value + b"\r\n" for name, value in trailers])
        if context is not None:
            text = canonical.trailer_to_sign(context.timestamp, context.scope, previous, trailers)
            signature = canonical.sign(context.key, text)
            yield b"x-amz-trailer-signature:" + signature + b"\r\n"
    yield b"\r\n"


def _scope_text(timestamp: bytes, region: str) -> bytes:
    return b"%b/%b/s3/aws4_request" % (timestamp[:8], region.encode())


def _sign(text: bytes, credential: Credential, region: str, timestamp: bytes) -> SigningContext:
    scope_text = _scope_text(timestamp, region)
    key = canonical.signing_key(credential.secret_key, timestamp[:8], region.encode())
    seed = canonical.sign(key, canonical.string_to_sign(timestamp, scope_text, text))
    return SigningContext(key, timestamp, scope_text, seed)
