"""Authentication of requests: Signature Version 4 in the header or in the query.

Version 2 in the query is accepted too, see ``sigv2``.

``Authenticator.authenticate`` runs for every request, so it does the least it can: signing keys
are derived once a day, and nothing is re-encoded that already has its canonical form.

Concurrency: no method awaits, so one authenticator serves all tasks of a thread.
"""

from __future__ import annotations

import enum
import hmac
from binascii import unhexlify
from collections.abc import Mapping

import msgspec

from engine.access import Access
from engine.http.message import Request
from engine.ids import Clock
from s3.auth import canonical, parameters, scope, sigv2
from s3.auth.credentials import Credential, CredentialStore
from s3.auth.parameters import Parameters
from s3.auth.scope import Complaint, Scope, shown
from s3.errors import S3Error, s3_error

KEYS_MAX = 256
"""Signing keys that are kept: one per access key, day and region in use."""

_HEX = b"0123456789abcdefABCDEF"
_SHOWN_MAX = 8192


class PayloadMode(enum.Enum):
    """What ``x-amz-content-sha256`` says of the body."""

    SIGNED = enum.auto()
    """The body's SHA-256 is signed: ``Identity.sha256``."""
    UNSIGNED = enum.auto()
    STREAMING_SIGNED = enum.auto()
    """aws-chunked, each chunk signed."""
    STREAMING_SIGNED_TRAILER = enum.auto()
    """The same with trailers, signed too."""
    STREAMING_UNSIGNED_TRAILER = enum.auto()
    """aws-chunked with trailers, nothing of it signed."""


_MODES = {
    b"UNSIGNED-PAYLOAD": PayloadMode.UNSIGNED,
    b"STREAMING-AWS4-HMAC-SHA256-PAYLOAD": PayloadMode.STREAMING_SIGNED,
    b"STREAMING-AWS4-HMAC-SHA256-PAYLOAD-TRAILER": PayloadMode.STREAMING_SIGNED_TRAILER,
    b"STREAMING-UNSIGNED-PAYLOAD-TRAILER": PayloadMode.STREAMING_UNSIGNED_TRAILER,
}
_MODES_NOT_THERE = (
    b"STREAMING-AWS4-ECDSA-P256-SHA256-PAYLOAD",
    b"STREAMING-AWS4-ECDSA-P256-SHA256-PAYLOAD-TRAILER",
)


class SigningContext(msgspec.Struct, frozen=True):
    """What the signatures of an aws-chunked body are chained from."""

    key: bytes
    timestamp: bytes
    scope: bytes
    seed: bytes
    """Signature of the request itself, in hexadecimal."""

    def __repr__(self) -> str:
        return f"SigningContext({self.scope!r})"


class Identity(msgspec.Struct, frozen=True, kw_only=True):
    """Who sent a request, and what is known of its body."""

    access_key: str
    owner_id: str
    display_name: str
    access: Access
    payload: PayloadMode
    sha256: bytes | None
    """Digest that the body must have (32 bytes), with ``PayloadMode.SIGNED`` only."""
    signing: SigningContext | None
    """None with Signature Version 2, which has no ``PayloadMode.STREAMING_*``."""
    presigned: bool


class SigningKey(msgspec.Struct, frozen=True):
    """The key of one credential for one day and region."""

    scope: Scope
    credential: Credential
    key: bytes

    def __repr__(self) -> str:
        return f"SigningKey({self.scope!r})"


class Authenticator:
    """Checks signatures for one endpoint.

    Args:
        region: the one that clients must sign for.
        clock: what expiry and skew are measured with.
    """

    __slots__ = ("_clock", "_credentials", "_keys", "_region")

    def __init__(self, *, credentials: CredentialStore, region: str, clock: Clock) -> None:
        self._credentials = credentials
        self._region = region.encode()
        self._clock = clock
        self._keys: dict[bytes, SigningKey] = {}

    @property
    def region(self) -> str:
        return self._region.decode()

    def now_ms(self) -> int:
        return self._clock()

    def authenticate(
        self, request: Request, *, host_bucket: str = "", any_region: bool = False
    ) -> Identity:
        """Return who signed the request. The body is not touched.

        Args:
            host_bucket: the bucket when the Host header names it; Version 2 signs it.
            any_region: accept a signature for whatever region (GetBucketLocation, ListBuckets).
        Raises:
            S3Error: whatever S3 answers; AccessDenied when nothing is signed at all.
        """
        headers = canonical.collect_headers(request.headers)
        authorization = headers.get(b"authorization")
        query = request.query
        if query and (b"X-Amz-" in query or b"Signature" in query or b"AWSAccessKeyId" in query):
            claims = _claims_of_query(query, headers, authorization)
            if isinstance(claims, sigv2.Claims):
                return self._verify_2(request, headers, claims, host_bucket)
            if claims is not None:
                return self._verify(request, headers, claims, any_region)
        if authorization is None:
            raise s3_error("AccessDenied")
        claims = parameters.from_header(authorization, headers)
        return self._verify(request, headers, claims, any_region)

    def signing_key(
        self, raw_credential: bytes, complaint: Complaint, *, any_region: bool = False
    ) -> SigningKey:
        """Return the key that a signature under this credential is to be checked with.

        Raises: S3Error, of the complaint's code or InvalidAccessKeyId.
        """
        known = self._keys.get(raw_credential)
        if known is not None:
            parsed = known.scope
        else:
            parsed = scope.parse_credential(raw_credential, complaint)
        if parsed.region != self._region and not any_region:
            scope.fail_region(parsed.region, self._region, complaint)
        credential = self.credential(parsed.access_key)
        if known is not None and known.credential == credential:
            return known
        key = canonical.signing_key(credential.secret_key, parsed.date, parsed.region)
        return SigningKey(parsed, credential, key)

    def credential(self, access_key: str) -> Credential:
        """Return the credential of an access key. Raises S3Error InvalidAccessKeyId."""
        credential = self._credentials.lookup(access_key)
        if credential is None:
            raise s3_error("InvalidAccessKeyId", AWSAccessKeyId=access_key)
        return credential

    def remember(self, raw_credential: bytes, found: SigningKey) -> None:
        """Keep a key that a signature was right with, so that guesses cannot push keys out."""
        keys = self._keys
        if keys.get(raw_credential) is found:
            return
        if len(keys) >= KEYS_MAX:
            del keys[next(iter(keys))]
        keys[raw_credential] = found

    def _verify(
        self,
        request: Request,
        headers: Mapping[bytes, bytes],
        claims: Parameters,
        any_region: bool,
    ) -> Identity:
        found = self.signing_key(claims.credential, claims.complaint, any_region=any_region)
        parsed = found.scope
        timestamp = claims.timestamp
        if timestamp[:8] != parsed.date:
            claims.complaint.fail(
                f'Invalid credential date "{shown(parsed.date)}". This date is not the same as '
                f'X-Amz-Date: "{shown(timestamp[:8])}".'
            )
        presigned = claims.expires_s is not None
        if claims.expires_s is None:
            scope.check_skew(timestamp, claims.at_ms, self._clock())
        else:
            _check_expiry(claims.at_ms, claims.expires_s, self._clock())
        payload, digest = _payload_mode(claims.payload)
        _check_all_signed(headers, claims.signed_headers)
        try:
            path = canonical.canonical_path(request.path)
            query = canonical.canonical_query(
                request.query, leave_out=b"X-Amz-Signature" if presigned else b""
            )
        except canonical.MalformedEncoding:
            raise s3_error("InvalidURI") from None
        text = canonical.canonical_request(
            request.method,
            path,
            query,
            headers,
            signed_headers=claims.signed_headers,
            payload=claims.payload,
        )
        to_sign = canonical.string_to_sign(timestamp, parsed.text, text)
        signature = canonical.sign(found.key, to_sign)
        if not hmac.compare_digest(signature, claims.signature):
            raise _mismatch(parsed.access_key, claims.signature, to_sign, text)
        if b"x-amz-security-token" in headers or b"X-Amz-Security-Token=" in query:
            # Only temporary credentials have tokens, and there are none yet.
            raise s3_error("InvalidToken")
        self.remember(claims.credential, found)
        credential = found.credential
        return Identity(
            access_key=credential.access_key,
            owner_id=credential.owner_id,
            display_name=credential.display_name,
            access=credential.access,
            payload=payload,
            sha256=digest,
            signing=SigningContext(found.key, timestamp, parsed.text, signature),
            presigned=presigned,
        )

    def _verify_2(
        self,
        request: Request,
        headers: Mapping[bytes, bytes],
        claims: sigv2.Claims,
        host_bucket: str,
    ) -> Identity:
        credential = self.credential(claims.access_key)
        sigv2.check_expiry(claims.expires, self._clock())
        messages = sigv2.url_strings_to_sign(
            request, headers, claims.expires, host_bucket=host_bucket
        )
        sigv2.verify(credential, messages, claims.signature)
        if b"x-amz-security-token" in headers:
            raise s3_error("InvalidToken")
        payload, digest = _payload_mode(headers.get(b"x-amz-content-sha256", b"UNSIGNED-PAYLOAD"))
        if payload not in (PayloadMode.UNSIGNED, PayloadMode.SIGNED):
            raise parameters.version_2()
        return Identity(
            access_key=credential.access_key,
            owner_id=credential.owner_id,
            display_name=credential.display_name,
            access=credential.access,
            payload=payload,
            sha256=digest,
            signing=None,
            presigned=True,
        )


def _claims_of_query(
    query: bytes, headers: Mapping[bytes, bytes], authorization: bytes | None
) -> Parameters | sigv2.Claims | None:
    """Return the claims of a presigned URL, or None when the query carries no signature."""
    found = parameters.query_parameters(query)
    version_2 = sigv2.is_presigned(found)
    if not (version_2 or b"X-Amz-Algorithm" in found or b"X-Amz-Signature" in found):
        return None
    if authorization is not None:
        raise s3_error(
            "InvalidArgument",
            "Only one auth mechanism allowed; only the X-Amz-Algorithm query parameter, Signature "
            "query string parameter or the Authorization header should be specified",
            ArgumentName="Authorization",
            ArgumentValue=shown(authorization.split(b" ", 1)[0]),
        )
    if version_2:
        return sigv2.from_query(found)
    return parameters.from_query(found, headers)


def _payload_mode(value: bytes) -> tuple[PayloadMode, bytes | None]:
    if len(value) == 64 and not value.translate(None, _HEX):
        return PayloadMode.SIGNED, unhexlify(value)
    mode = _MODES.get(value)
    if mode is not None:
        return mode, None
    if value in _MODES_NOT_THERE:
        raise s3_error("NotImplemented", "Signature Version 4A is not implemented")
    raise s3_error(
        "InvalidArgument",
        "x-amz-content-sha256 must be UNSIGNED-PAYLOAD, STREAMING-UNSIGNED-PAYLOAD-TRAILER, "
        "STREAMING-AWS4-HMAC-SHA256-PAYLOAD, STREAMING-AWS4-HMAC-SHA256-PAYLOAD-TRAILER, "
        "STREAMING-AWS4-ECDSA-P256-SHA256-PAYLOAD, "
        "STREAMING-AWS4-ECDSA-P256-SHA256-PAYLOAD-TRAILER or a valid sha256 value.",
        ArgumentName="x-amz-content-sha256",
        ArgumentValue=shown(value),
    )


def _check_all_signed(headers: Mapping[bytes, bytes], signed_headers: bytes) -> None:
    signed = signed_headers.split(b";")
    missing = [name for name in headers if name[:6] == b"x-amz-" and name not in signed]
    if b"host" not in signed:
        missing.append(b"host")
    if missing:
        raise s3_error(
            "AccessDenied",
            "There were headers present in the request which were not signed",
            HeadersNotSigned=", ".join(shown(name) for name in sorted(missing)),
        )


def _check_expiry(at_ms: int, expires_s: int, now_ms: int) -> None:
    if at_ms > now_ms + scope.SKEW_MS_MAX:
        raise s3_error(
            "AccessDenied",
            "Request is not yet valid",
            **{"X-Amz-Date": scope.format_iso(at_ms), "ServerTime": scope.format_iso(now_ms)},
        )
    ends_ms = at_ms + expires_s * 1000
    if now_ms >= ends_ms:
        raise s3_error(
            "AccessDenied",
            "Request has expired",
            **{
                "X-Amz-Expires": str(expires_s),
                "Expires": scope.format_iso(ends_ms),
                "ServerTime": scope.format_iso(now_ms),
            },
        )


def _mismatch(access_key: str, signature: bytes, to_sign: bytes, text: bytes) -> S3Error:
    return s3_error(
        "SignatureDoesNotMatch",
        AWSAccessKeyId=access_key,
        StringToSign=shown(to_sign, _SHOWN_MAX),
        SignatureProvided=shown(signature),
        StringToSignBytes=to_sign[:_SHOWN_MAX].hex(" "),
        CanonicalRequest=shown(text, _SHOWN_MAX),
        CanonicalRequestBytes=text[:_SHOWN_MAX].hex(" "),
    )
