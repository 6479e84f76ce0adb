"""How much room there is, for the quota properties."""

from __future__ import annotations

import trio

from engine.config import Profile
from engine.engine import Engine
from engine.types import BucketInfo

KEPT_S = 10.0


class Room:
    """Bytes of user data; looked at every few seconds. Used in the trio run only."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._at = float("-inf")
        self._figures: tuple[int, int] | None = None

    async def figures(self, bucket: BucketInfo | None) -> tuple[int, int] | None:
        """Return (available, used) bytes; None when no drive can be asked.

        Of a bucket with a quota: what is left of it, and what the bucket takes; else of the
        store. Clients take 0 for a full disk and refuse to write, so it is 0 only when that is so.
        """
        figures = await self._drives()
        if figures is None or bucket is None or bucket.quota is None:
            return figures
        usage = await self._engine.bucket_usage(bucket.name)
        if usage.quota_bytes is None:
            return figures
        return min(figures[0], max(0, usage.quota_bytes - usage.bytes)), max(0, usage.bytes)

    async def _drives(self) -> tuple[int, int] | None:
        now = trio.current_time()
        if now - self._at > KEPT_S:
            status = await self._engine.status()
            profile = Profile.parse(status.profile)
            free = [drive.free for drive in status.drives if drive.total]
            available = sum(free) * profile.data // profile.width
            self._figures = (max(0, available), max(0, status.bytes)) if free else None
            self._at = now
        return self._figures
