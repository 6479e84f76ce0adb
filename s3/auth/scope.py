"""The parts of a signed request that are parsed before anything is computed: scope and dates."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import NoReturn

import msgspec

from s3.errors import s3_error

SKEW_MS_MAX = 15 * 60 * 1000
_ACCESS_KEY_SIZE_MAX = 128
_DATE = re.compile(rb"[0-9]{8}\Z")


class Scope(msgspec.Struct, frozen=True):
    """``ACCESSKEY/20130524/us-east-1/s3/aws4_request``, taken apart."""

    access_key: str
    date: bytes
    region: bytes
    text: bytes
    """Without the access key, as it is signed."""


class Complaint(msgspec.Struct, frozen=True):
    """How S3 begins its complaints about a credential in the place where it stood."""

    code: str
    prefix: str

    def fail(self, reason: str, **extra: str) -> NoReturn:
        raise s3_error(self.code, f"{self.prefix}; {reason}", **extra)


IN_HEADER = Complaint("AuthorizationHeaderMalformed", "The authorization header is malformed")
IN_QUERY = Complaint(
    "AuthorizationQueryParametersError", "Error parsing the X-Amz-Credential parameter"
)


def shown(raw: bytes, limit: int = 256) -> str:
    """Return client bytes as text for an error message, cut to ``limit``."""
    return raw[:limit].decode("utf-8", "replace")


def parse_credential(raw: bytes, complaint: Complaint) -> Scope:
    """Return the credential scope; whether its region is ours is checked by the caller.

    Raises: S3Error of the complaint's code.
    """
    # The access key may itself have slashes in it; the scope is always the last four parts.
    parts = raw.rsplit(b"/", 4)
    if len(parts) != 5 or not parts[0] or len(parts[0]) > _ACCESS_KEY_SIZE_MAX:
        complaint.fail(
            "the Credential is mal-formed; expecting "
            '"<YOUR-AKID>/YYYYMMDD/REGION/SERVICE/aws4_request".'
        )
    access_key, date, region, service, terminal = parts
    if _DATE.match(date) is None:
        complaint.fail(
            f'incorrect date format "{shown(date)}". This date in the credential must be in the '
            'format "yyyyMMdd".'
        )
    if service != b"s3":
        complaint.fail(f'incorrect service "{shown(service)}". This endpoint belongs to "s3".')
    if terminal != b"aws4_request":
        complaint.fail(
            f'incorrect terminal "{shown(terminal)}". This endpoint uses "aws4_request".'
        )
    text = raw[len(access_key) + 1 :]
    return Scope(access_key.decode("utf-8", "replace"), date, region, text)


def fail_region(region: bytes, expected: bytes, complaint: Complaint) -> NoReturn:
    complaint.fail(
        f"the region '{shown(region)}' is wrong; expecting '{shown(expected)}'",
        Region=shown(expected),
    )


def parse_timestamp(raw: bytes) -> int | None:
    """Return ``20130524T000000Z`` in ms since 1970, or None when it is not of that form."""
    if len(raw) != 16 or raw[8:9] != b"T" or raw[15:] != b"Z":
        return None
    if not (raw[:8].isdigit() and raw[9:15].isdigit()):
        return None
    try:
        moment = datetime(
            int(raw[:4]),
            int(raw[4:6]),
            int(raw[6:8]),
            int(raw[9:11]),
            int(raw[11:13]),
            int(raw[13:15]),
            tzinfo=UTC,
        )
    except ValueError:
        return None
    return int(moment.timestamp()) * 1000


def parse_http_date(raw: bytes) -> int | None:
    """Return the moment of an RFC 9110 date in ms since 1970, or None."""
    try:
        moment = parsedate_to_datetime(raw.decode("ascii"))
        if moment.tzinfo is None:
            moment = moment.replace(tzinfo=UTC)
        return int(moment.timestamp()) * 1000
    except (ValueError, TypeError, OverflowError, IndexError):
        return None


def format_timestamp(at_ms: int) -> bytes:
    """Return ``20130524T000000Z``."""
    return f"{datetime.fromtimestamp(at_ms // 1000, UTC):%Y%m%dT%H%M%SZ}".encode()


def format_iso(at_ms: int) -> str:
    """Return ``2013-05-24T00:00:00Z``, as S3's errors show times."""
    return f"{datetime.fromtimestamp(at_ms // 1000, UTC):%Y-%m-%dT%H:%M:%SZ}"


def check_skew(timestamp: bytes, at_ms: int, now_ms: int) -> None:
    """Refuse a request whose time is more than 15 minutes from ours.

    Raises: S3Error RequestTimeTooSkewed.
    """
    if abs(at_ms - now_ms) > SKEW_MS_MAX:
        raise s3_error(
            "RequestTimeTooSkewed",
            RequestTime=shown(timestamp),
            ServerTime=format_iso(now_ms),
            MaxAllowedSkewMilliseconds=str(SKEW_MS_MAX),
        )
