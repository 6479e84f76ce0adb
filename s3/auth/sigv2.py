"""Signature Version 2, for presigned URLs and POST forms and nothing else.

boto3 and awscli still make both with it for us-east-1 and other old regions unless told
otherwise. It is HMAC-SHA1 over less than Version 4 signs: not the host, not the body, and of the
query only the parameters below, decoded, so that an ``&`` in a value looks like the next one.

Source: https://docs.aws.amazon.com/AmazonS3/latest/API/RESTAuthentication.html
"""

from __future__ import annotations

import binascii
import hmac
from collections.abc import Mapping, Sequence
from dataclasses import replace
from operator import itemgetter
from typing import Final

import msgspec

from engine.http.message import HeaderList, Request
from s3.auth import canonical, scope
from s3.auth.credentials import Credential
from s3.auth.parameters import query_parameters
from s3.auth.scope import shown
from s3.errors import s3_error

SIGNED_PARAMETERS: Final = frozenset(
    b"acl lifecycle location logging notification partNumber policy requestPayment torrent"
    b" uploadId uploads versionId versioning versions website delete"
    b" response-cache-control response-content-disposition response-content-encoding"
    b" response-content-language response-content-type response-expires"
    # Not in the documentation, but signed by AWS's SDKs:
    b" accelerate analytics cors defaultObjectAcl inventory metrics object-lock replication"
    b" restore select select-type storageClass tagging"
    # Signed by no client, so these cannot be presigned. But whoever got a URL for an object must
    # not make another operation of it by adding one of them.
    b" abac annotation attributes encryption intelligent-tiering legal-hold"
    b" metadataAnnotationTable metadataConfiguration metadataInventoryTable metadataJournalTable"
    b" metadataTable ownershipControls policyStatus publicAccessBlock renameObject retention"
    b" session".split()
)
"""Names of the query's parameters that are a part of the resource."""

_EXPIRES_DIGITS_MAX = 18
_SHOWN_MAX = 8192
_IN_NAMES = b"abcdefghijklmnopqrstuvwxyz0123456789-_."
_CONTROLS = bytes((*range(32), 127))


class Claims(msgspec.Struct, frozen=True):
    """What a presigned URL says of its own signature; nothing of it is verified yet."""

    access_key: str
    expires: bytes
    """Seconds since 1970, in digits."""
    signature: bytes


def is_presigned(parameters: Mapping[bytes, list[bytes]]) -> bool:
    """Return whether the query is signed, or meant to be, with this version and not with 4."""
    if b"X-Amz-Algorithm" in parameters or b"X-Amz-Signature" in parameters:
        return False
    return b"Signature" in parameters or b"AWSAccessKeyId" in parameters


def with_query_headers(request: Request) -> Request:
    """Return the request with the headers that its presigned URL carries in the query.

    Those are ``x-amz-*``, Content-Type and Content-MD5, as far as the client did not send them
    itself; a presigner puts there what it signed. All are signed as if they had been sent.

    Raises: S3Error InvalidURI, or InvalidArgument for what could not stand in a header.
    """
    if b"AWSAccessKeyId" not in request.query:
        return request
    parameters = query_parameters(request.query)
    if not is_presigned(parameters):
        return request
    sent = {name for name, _ in request.headers}
    added: HeaderList = []
    for raw_name, values in parameters.items():
        name = raw_name.lower()
        if name[:6] != b"x-amz-" and name not in (b"content-type", b"content-md5"):
            continue
        for value in values:
            # A line feed would let one signed header pass for several others.
            if name.translate(None, _IN_NAMES) or len(value.translate(None, _CONTROLS)) < len(
                value
            ):
                raise s3_error(
                    "InvalidArgument",
                    "A header in the query has characters that no header can have",
                    ArgumentName=shown(name),
                    ArgumentValue=shown(value),
                )
            if name not in sent:
                added.append((name, value))
    return replace(request, headers=[*request.headers, *added]) if added else request


def from_query(parameters: Mapping[bytes, list[bytes]]) -> Claims:
    """Return the claims of a presigned URL.

    Raises: S3Error AccessDenied.
    """
    values = []
    for name in (b"AWSAccessKeyId", b"Expires", b"Signature"):
        found = parameters.get(name, ())
        if len(found) != 1 or not found[0]:
            raise s3_error(
                "AccessDenied",
                "Query-string authentication requires the Signature, Expires and AWSAccessKeyId "
                "parameters",
            )
        values.append(found[0])
    access_key, expires, signature = values
    if not expires.isdigit() or len(expires) > _EXPIRES_DIGITS_MAX:
        raise s3_error(
            "AccessDenied", f"Invalid date (should be seconds since epoch): {shown(expires)}"
        )
    return Claims(access_key.decode("utf-8", "replace"), expires, signature)


def check_expiry(expires: bytes, now_ms: int) -> None:
    """Refuse a URL that is too late. As at AWS, none is valid for too long.

    Raises: S3Error AccessDenied.
    """
    ends_ms = int(expires) * 1000
    if now_ms >= ends_ms:
        raise s3_error(
            "AccessDenied",
            "Request has expired",
            Expires=scope.format_iso(ends_ms),
            ServerTime=scope.format_iso(now_ms),
        )


def canonical_resource(path: bytes, query: bytes, *, host_bucket: str) -> bytes:
    """Return the resource as it is signed: bucket, raw path, and the signed parameters.

    Args:
        host_bucket: the bucket when the Host header names it, else empty.
    Raises: canonical.MalformedEncoding.
    """
    signed = []
    for piece in query.split(b"&"):
        raw_name, mark, value = piece.partition(b"=")
        name = canonical.decode_component(raw_name)
        if name in SIGNED_PARAMETERS:
            signed.append((name, mark + canonical.decode_component(value)))
    signed.sort(key=itemgetter(0))
    resource = b"/" + host_bucket.encode("latin-1") + path if host_bucket else path
    if signed:
        resource += b"?" + b"&".join([name + value for name, value in signed])
    return resource


def string_to_sign(
    method: str, headers: Mapping[bytes, bytes], expires: bytes, resource: bytes
) -> bytes:
    """Return the string to sign.

    Args:
        headers: from ``canonical.collect_headers``.
        expires: ends the URL's validity; in AWS's examples of signed headers, the Date.
        resource: from ``canonical_resource``.
    """
    lines = [
        method.encode("ascii", "replace"),
        headers.get(b"content-md5", b"").strip(),
        headers.get(b"content-type", b"").strip(),
        expires,
    ]
    for name in sorted(headers):
        if name[:6] == b"x-amz-":
            lines.append(name + b":" + headers[name].strip())
    lines.append(resource)
    return b"\n".join(lines)


def url_strings_to_sign(
    request: Request, headers: Mapping[bytes, bytes], expires: bytes, *, host_bucket: str
) -> list[bytes]:
    """Return the strings of which a presigned URL may have signed any.

    A bucket in the path may be signed with a slash behind it, which botocore does without sending
    that slash.

    Args: as in ``canonical_resource`` and ``string_to_sign``.
    Raises: S3Error InvalidURI.
    """
    paths = [request.path]
    if not host_bucket and len(request.path) > 1 and request.path.count(b"/") == 1:
        paths.append(request.path + b"/")
    try:
        resources = [
            canonical_resource(path, request.query, host_bucket=host_bucket) for path in paths
        ]
    except canonical.MalformedEncoding:
        raise s3_error("InvalidURI") from None
    return [string_to_sign(request.method, headers, expires, resource) for resource in resources]


def sign(secret_key: str, message: bytes) -> bytes:
    """Return the signature: 28 characters of base64."""
    return binascii.b2a_base64(hmac.digest(secret_key.encode(), message, "sha1"), newline=False)


def verify(credential: Credential, messages: Sequence[bytes], signature: bytes) -> None:
    """Refuse a signature that is of none of the messages.

    Raises: S3Error SignatureDoesNotMatch, which shows the first message.
    """
    for message in messages:
        if hmac.compare_digest(sign(credential.secret_key, message), signature):
            return
    first = messages[0]
    raise s3_error(
        "SignatureDoesNotMatch",
        AWSAccessKeyId=credential.access_key,
        StringToSign=shown(first, _SHOWN_MAX),
        SignatureProvided=shown(signature),
        StringToSignBytes=first[:_SHOWN_MAX].hex(" "),
    )
