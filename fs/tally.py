"""What a mount counts as it goes along; ``fs.metrics`` shows it."""

from __future__ import annotations

import msgspec


class Tally(msgspec.Struct):
    """Counted since the mount was made; plain numbers, changed on the trio thread."""

    read_bytes: int = 0
    """Answered to the kernel; what is in its page cache it does not ask for."""
    written_bytes: int = 0
    entries_invalidated: int = 0
    """Notices to the kernel that somebody else changed what is under a name."""
    inodes_invalidated: int = 0
