"""The time of modification to show: S3's own, or the one that came with the bytes."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Final

MTIME: Final = "mtime"
"""User metadata: when the bytes were modified where they came from, in seconds since 1970 with a
fraction. So rclone writes it, and so do the mount and WebDAV."""

_MS_MAX = 253_402_300_799_000
"""The end of the year 9999."""


def shown_ms(modified_ms: int, metadata: Iterable[tuple[str, str]]) -> int:
    """Return ``mtime`` of the metadata in ms, or ``modified_ms`` when there is none to show."""
    for name, value in metadata:
        if name == MTIME:
            try:
                seconds = float(value)
            except ValueError:
                continue
            if math.isfinite(seconds) and 0 <= seconds * 1000 <= _MS_MAX:
                return int(seconds * 1000)
    return modified_ms
