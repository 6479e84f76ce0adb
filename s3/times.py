"""Times as HTTP and S3 write them. Stored times are ms since 1970; both formats show seconds."""

from __future__ import annotations

import calendar
import re
import time
from datetime import UTC, datetime
from functools import lru_cache

_DAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
_MONTH_NUMBERS = {name: number for number, name in enumerate(_MONTHS, 1)}

_FIXDATE = re.compile(r"[A-Z][a-z]{2}, (\d{2}) ([A-Z][a-z]{2}) (\d{4}) (\d\d):(\d\d):(\d\d) GMT")
_RFC850 = re.compile(r"[A-Z][a-z]+, (\d{2})-([A-Z][a-z]{2})-(\d{2}) (\d\d):(\d\d):(\d\d) GMT")
_ASCTIME = re.compile(r"[A-Z][a-z]{2} ([A-Z][a-z]{2}) ([ \d]\d) (\d\d):(\d\d):(\d\d) (\d{4})")


@lru_cache(maxsize=4096)
def _http_date(seconds: int) -> bytes:
    t = time.gmtime(seconds)
    day, month = _DAYS[t.tm_wday], _MONTHS[t.tm_mon - 1]
    clock = f"{t.tm_hour:02}:{t.tm_min:02}:{t.tm_sec:02}"
    return f"{day}, {t.tm_mday:02} {month} {t.tm_year:04} {clock} GMT".encode()


@lru_cache(maxsize=16384)
def _iso_time(seconds: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S.000Z", time.gmtime(seconds))


def http_date(ms: int) -> bytes:
    """Return e.g. ``Sun, 06 Nov 1994 08:49:37 GMT`` (RFC 9110, section 5.6.7)."""
    return _http_date(ms // 1000)


def iso_time(ms: int) -> str:
    """Return e.g. ``2009-10-12T17:50:30.000Z``, whole seconds as S3 shows them."""
    return _iso_time(ms // 1000)


def parse_http_date(text: str) -> int | None:
    """Return ms since 1970, or None if it is none of the three forms of RFC 9110.

    The day of the week is not compared with the date. Two-digit years mean the century that
    puts them at most 50 years into the future.
    """
    if match := _FIXDATE.fullmatch(text):
        day, month, year, hour, minute, second = match.groups()
    elif match := _RFC850.fullmatch(text):
        day, month, year, hour, minute, second = match.groups()
        now = time.gmtime().tm_year
        full = now - now % 100 + int(year)
        year = str(full - 100 if full > now + 50 else full)
    elif match := _ASCTIME.fullmatch(text):
        month, day, hour, minute, second, year = match.groups()
    else:
        return None
    number = _MONTH_NUMBERS.get(month)
    if number is None:
        return None
    try:
        # second 60 is a leap second; datetime does not know it and it is not worth a rule
        moment = datetime(
            int(year), number, int(day), int(hour), int(minute), int(second), tzinfo=UTC
        )
    except ValueError:
        return None
    return calendar.timegm(moment.timetuple()) * 1000


def parse_time(text: str) -> int | None:
    """Return ms since 1970 of an HTTP date or an ISO 8601 time with a zone, else None."""
    parsed = parse_http_date(text)
    if parsed is not None:
        return parsed
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        return None
    if moment.tzinfo is None:
        return None
    return int(moment.timestamp() * 1000)
