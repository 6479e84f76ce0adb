"""``statfs``: how much room there is."""

from __future__ import annotations

import pyfuse3
import trio

from engine.config import Profile
from engine.engine import Engine
from fs.attributes import BLOCK_SIZE
from fs.names import NAME_BYTES_MAX

KEPT_S = 10.0
FILES_MAX = 1 << 40
"""There is no limit on objects; programs want a number."""


class Space:
    """The room of the drives, without what redundancy takes; looked at every few seconds."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
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
        data = pyfuse3.StatvfsData()
        data.f_bsize = data.f_frsize = BLOCK_SIZE
        data.f_blocks = self._total // BLOCK_SIZE
        data.f_bfree = data.f_bavail = max(0, self._free) // BLOCK_SIZE
        data.f_files = FILES_MAX
        data.f_ffree = data.f_favail = FILES_MAX - self._files
        data.f_namemax = NAME_BYTES_MAX
        return data
