"""Times as WebDAV writes them: HTTP dates for modification, RFC 3339 for creation. Whole seconds;
stored times are ms since 1970."""

from __future__ import annotations

import calendar
import time
from email.utils import parsedate_tz
from functools import lru_cache

_DAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")


@lru_cache(maxsize=4096)
def _http_date(seconds: int) -> str:
    t = time.gmtime(seconds)
    day, month = _DAYS[t.tm_wday], _MONTHS[t.tm_mon - 1]
    clock = f"{t.tm_hour:02}:{t.tm_min:02}:{t.tm_sec:02}"
    return f"{day}, {t.tm_mday:02} {month} {t.tm_year:04} {clock} GMT"


def http_date(ms: int) -> str:
    """Return e.g. ``Sun, 06 Nov 1994 08:49:37 GMT`` (RFC 9110, section 5.6.7)."""
    return _http_date(ms // 1000)


def iso_date(ms: int) -> str:
    """Return e.g. ``1994-11-06T08:49:37Z`` (RFC 3339)."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(ms // 1000))


def parse_http_date(text: str) -> int | None:
    """Return ms since 1970, or None when it is no date."""
    try:
        parsed = parsedate_tz(text)
        if parsed is None or not 1900 <= parsed[0] <= 9999:
            return None
        return (calendar.timegm((*parsed[:6], 0, 0, 0)) - (parsed[9] or 0)) * 1000
    except (ValueError, OverflowError, IndexError, TypeError):
        return None
