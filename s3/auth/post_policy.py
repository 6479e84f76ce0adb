"""POST policies: what a form may upload, signed by somebody who may.

Source: https://docs.aws.amazon.com/AmazonS3/latest/API/sigv4-HTTPPOSTConstructPolicy.html, and
https://docs.aws.amazon.com/AmazonS3/latest/API/HTTPPOSTForms.html for Signature Version 2.
"""

from __future__ import annotations

import binascii
import hmac
import json
from collections.abc import Mapping
from datetime import UTC, datetime

import msgspec

from s3.auth import canonical, scope, sigv2
from s3.auth.credentials import Credential
from s3.auth.scope import Complaint, shown
from s3.auth.sigv4 import Authenticator
from s3.errors import S3Error, s3_error

_EXEMPT = frozenset({"x-amz-signature", "file", "policy"})
_VERSION_2 = frozenset({"awsaccesskeyid", "signature"})
"""Fields of Signature Version 2, exempt too where it signs the form."""
_IN_FORM = Complaint(
    "AuthorizationQueryParametersError", "Error parsing the X-Amz-Credential parameter"
)


class _Document(msgspec.Struct):
    expiration: str
    conditions: list[dict[str, str | int] | list[str | int]]


class Condition(msgspec.Struct, frozen=True):
    """``operator`` is ``eq`` or ``starts-with``; ``field`` is in lower case, without ``$``."""

    operator: str
    field: str
    value: str
    text: str
    """As error messages show it."""


class Policy(msgspec.Struct, frozen=True, kw_only=True):
    expires_ms: int
    conditions: tuple[Condition, ...]
    size_min: int
    """Bytes that the file must have at least."""
    size_max: int | None
    """And at most; None: the policy sets no bound."""


def authenticate_form(
    authenticator: Authenticator, fields: Mapping[str, str], *, bucket: str
) -> tuple[Credential, Policy]:
    """Return who signed the form's policy, and the policy, all of whose conditions hold.

    The caller applies ``size_min`` and ``size_max`` to the file (``FormFile.limit``).

    Args:
        fields: value by lower-case name, as ``read_form`` returns them.
        bucket: that the form was sent to.
    Raises:
        S3Error: AccessDenied (also without a policy), InvalidPolicyDocument, InvalidArgument,
            InvalidAccessKeyId, SignatureDoesNotMatch.
    """
    if "key" not in fields:
        raise _missing("key")
    if "policy" not in fields:
        raise s3_error("AccessDenied")
    exempt = _EXEMPT
    if "x-amz-signature" not in fields and not _VERSION_2.isdisjoint(fields):
        credential = _verify_signature_2(authenticator, fields)
        exempt |= _VERSION_2
    else:
        credential = _verify_signature(authenticator, fields)
    if "x-amz-security-token" in fields:
        # Only temporary credentials have tokens, and there are none yet.
        raise s3_error("InvalidToken")
    policy = parse_policy(fields["policy"])
    check_policy(policy, {**fields, "bucket": bucket}, authenticator.now_ms(), exempt=exempt)
    return credential, policy


def _verify_signature_2(authenticator: Authenticator, fields: Mapping[str, str]) -> Credential:
    for name in ("AWSAccessKeyId", "signature"):
        if not fields.get(name.lower()):
            raise _missing(name)
    credential = authenticator.credential(fields["awsaccesskeyid"])
    sigv2.verify(credential, [fields["policy"].encode()], fields["signature"].encode())
    return credential


def _verify_signature(authenticator: Authenticator, fields: Mapping[str, str]) -> Credential:
    for name in ("X-Amz-Algorithm", "X-Amz-Credential", "X-Amz-Date", "X-Amz-Signature"):
        if not fields.get(name.lower()):
            raise _missing(name)
    if fields["x-amz-algorithm"] != "AWS4-HMAC-SHA256":
        raise s3_error(
            "InvalidArgument",
            'X-Amz-Algorithm only supports "AWS4-HMAC-SHA256"',
            ArgumentName="X-Amz-Algorithm",
            ArgumentValue=fields["x-amz-algorithm"][:256],
        )
    raw_credential = fields["x-amz-credential"].encode()
    date = fields["x-amz-date"].encode()
    if scope.parse_timestamp(date) is None:
        raise s3_error(
            "InvalidArgument",
            "X-Amz-Date must be in the ISO8601 Long Format \"yyyyMMdd'T'HHmmss'Z'\"",
            ArgumentName="X-Amz-Date",
            ArgumentValue=shown(date),
        )
    found = authenticator.signing_key(raw_credential, _IN_FORM)
    if found.scope.date != date[:8]:
        _IN_FORM.fail(
            f'Invalid credential date "{shown(found.scope.date)}". This date is not the same as '
            f'X-Amz-Date: "{shown(date[:8])}".'
        )
    to_sign = fields["policy"].encode()
    provided = fields["x-amz-signature"].encode()
    if not hmac.compare_digest(canonical.sign(found.key, to_sign), provided):
        raise s3_error(
            "SignatureDoesNotMatch",
            AWSAccessKeyId=found.scope.access_key,
            StringToSign=shown(to_sign, 8192),
            SignatureProvided=shown(provided),
            StringToSignBytes=to_sign[:8192].hex(" "),
        )
    authenticator.remember(raw_credential, found)
    return found.credential


def parse_policy(encoded: str) -> Policy:
    """Return the policy of a form's field: a JSON document in base64.

    Raises: S3Error InvalidPolicyDocument, or AccessDenied for a condition that is none.
    """
    try:
        document = msgspec.json.decode(binascii.a2b_base64(encoded), type=_Document)
    except (ValueError, RecursionError):
        # msgspec's and binascii's errors are ValueErrors too.
        raise _invalid("Invalid JSON.") from None
    try:
        expires = datetime.fromisoformat(document.expiration)
        if expires.tzinfo is None:
            expires = expires.replace(tzinfo=UTC)
        expires_ms = int(expires.timestamp() * 1000)
    except (ValueError, OverflowError):
        raise _invalid(f"Invalid 'expiration' value: '{document.expiration[:64]}'") from None
    conditions: list[Condition] = []
    size_min, size_max = 0, None
    for entry in document.conditions:
        if isinstance(entry, dict):
            conditions += [_condition("eq", name, value) for name, value in entry.items()]
            continue
        match entry:
            case ["content-length-range", low, high]:
                size_min, size_max = _size_range(low, high, size_min, size_max)
            case [str(operator), str(name), value] if name.startswith("$"):
                conditions.append(_condition(operator.lower(), name[1:], value))
            case _:
                raise _failed(json.dumps(entry))
    return Policy(
        expires_ms=expires_ms, conditions=tuple(conditions), size_min=size_min, size_max=size_max
    )


def check_policy(
    policy: Policy,
    fields: Mapping[str, str],
    now_ms: int,
    *,
    exempt: frozenset[str] = _EXEMPT,
) -> None:
    """Refuse a form that is too late, breaks a condition, or has a field without a condition.

    Args:
        fields: value by lower-case name, ``bucket`` among them.
        exempt: names of fields that need no condition.
    Raises: S3Error AccessDenied.
    """
    if now_ms >= policy.expires_ms:
        raise s3_error("AccessDenied", "Invalid according to Policy: Policy expired.")
    covered = set()
    for condition in policy.conditions:
        covered.add(condition.field)
        value = fields.get(condition.field, "")
        if condition.operator == "eq":
            holds = value == condition.value
        elif condition.field == "content-type":
            # A list of types: each of them must begin so.
            holds = all(one.strip().startswith(condition.value) for one in value.split(","))
        else:
            holds = value.startswith(condition.value)
        if not holds:
            raise _failed(condition.text)
    extra = [
        name
        for name in fields
        if name not in covered and name not in exempt and not name.startswith("x-ignore-")
    ]
    if extra:
        raise s3_error(
            "AccessDenied",
            f"Invalid according to Policy: Extra input fields: {', '.join(extra)[:256]}",
        )


def _condition(operator: str, name: str, value: str | int) -> Condition:
    text = json.dumps([operator, f"${name}", value])
    if operator not in ("eq", "starts-with"):
        raise _failed(text)
    return Condition(operator, name.lower(), str(value), text)


def _size_range(
    low: str | int, high: str | int, size_min: int, size_max: int | None
) -> tuple[int, int]:
    """Return the narrower of the range so far and another one."""
    text = json.dumps(["content-length-range", low, high])
    try:
        first, last = int(low), int(high)
    except ValueError:
        raise _failed(text) from None
    if not 0 <= first <= last:
        raise _failed(text)
    return max(first, size_min), last if size_max is None else min(last, size_max)


def _missing(name: str) -> S3Error:
    return s3_error(
        "InvalidArgument",
        f"Bucket POST must contain a field named '{name}'.  If it is specified, please check the "
        "order of the fields.",
        ArgumentName=name,
        ArgumentValue="",
    )


def _invalid(reason: str) -> S3Error:
    return s3_error("InvalidPolicyDocument", f"Invalid Policy: {reason}")


def _failed(condition: str) -> S3Error:
    return s3_error(
        "AccessDenied", f"Invalid according to Policy: Policy Condition failed: {condition[:512]}"
    )
