"""How much room there is: ``statfs``, and quotas as far as they are known before a commit."""

from __future__ import annotations

import pyfuse3
import trio

from engine.config import Profile
from engine.engine import Engine
from engine.errors import NoSuchBucket, QuotaExceeded
from engine.types import BucketUsage
from fs.attributes import BLOCK_SIZE
from fs.names import NAME_BYTES_MAX

KEPT_S = 10.0
QUOTA_KEPT_S = 1.0
FILES_MAX = 1 << 40
"""There is no limit on objects; programs want a number."""


class Space:
    """The room of the drives, without what redundancy takes; looked at every few seconds.

    A mount of one bucket shows no more than what the bucket's quota leaves.
    """

    def __init__(self, engine: Engine, bucket: str = "") -> None:
        self._engine = engine
        self._bucket = bucket
        self._at = float("-inf")
        self._total = 0
        self._free = 0
        self._files = 0

    async def statfs(self) -> pyfuse3.StatvfsData:
        now = trio.current_time()
        if now - self._at > KEPT_S:
            self._at = now
            status = await self._engine.status()
            profile = Profile.parse(status.profile)
            self._total = sum(d.total for d in status.drives) * profile.data // profile.width
            self._free = sum(d.free for d in status.drives) * profile.data // profile.width
            self._files = status.objects
        total, free, files, files_free = (
            self._total,
            max(0, self._free),
            FILES_MAX,
            FILES_MAX - self._files,
        )
        if self._bucket:
            usage = await self._engine.bucket_usage(self._bucket)
            if usage.quota_bytes is not None:
                free = min(free, max(0, usage.quota_bytes - usage.bytes))
                # What is used shows as such, also above a quota that was lowered.
                total = max(usage.quota_bytes, usage.bytes)
            if usage.quota_objects is not None:
                files = max(usage.quota_objects, usage.objects)
                files_free = max(0, usage.quota_objects - usage.objects)
        data = pyfuse3.StatvfsData()
        data.f_bsize = data.f_frsize = BLOCK_SIZE
        data.f_blocks = total // BLOCK_SIZE
        data.f_bfree = data.f_bavail = free // BLOCK_SIZE
        data.f_files = files
        data.f_ffree = data.f_favail = files_free
        data.f_namemax = NAME_BYTES_MAX
        return data


class Quotas:
    """Tells a writer early what the commit would tell it late.

    The commit decides: what passes here may still be refused there. A bucket that has no quota
    is looked at once a second.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._unlimited: dict[str, float] = {}
        """When a bucket was found to have no quota."""

    async def check(self, bucket: str, size: int, count: int) -> None:
        """Refuse ``size`` more bytes, or ``count`` more files, that do not fit.

        Raises: QuotaExceeded.
        """
        now = trio.current_time()
        if now - self._unlimited.get(bucket, float("-inf")) < QUOTA_KEPT_S:
            return
        try:
            usage = await self._engine.bucket_usage(bucket)
        except NoSuchBucket:
            return  # the commit says so
        if usage.quota_bytes is None and usage.quota_objects is None:
            self._unlimited[bucket] = now
            return
        match _lacking(usage, size, count):
            case "bytes":
                raise QuotaExceeded(bucket, "bytes", usage.bytes, usage.quota_bytes or 0)
            case "objects":
                raise QuotaExceeded(bucket, "objects", usage.objects, usage.quota_objects or 0)


def _lacking(usage: BucketUsage, size: int, count: int) -> str:
    """Return which limit would be exceeded; empty: none."""
    size_max, count_max = usage.quota_bytes, usage.quota_objects
    if size_max is not None and size > 0 and usage.bytes + size > size_max:
        return "bytes"
    if count_max is not None and count > 0 and usage.objects + count > count_max:
        return "objects"
    return ""
