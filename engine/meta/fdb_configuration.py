"""What nearly every transaction reads and hardly any changes, kept in memory and proved in each.

FoundationDB keeps one key, ``\\xff/metadataVersion``, whose value comes with every read version at
no cost. Here whoever writes a configuration key (``kv.CONFIGURATION``) changes it in the same
transaction. So values that were read under one value of it hold for every read version that comes
with the same: a transaction takes them from memory, and before its result counts compares the value
that came with its own read version. If that differs the body runs again, without the cache. Reading
it is part of a transaction's conflict detection like any read: a commit fails when a configuration
key was changed since its snapshot.

Source: FoundationDB, documentation of "metadataVersion" in the client API; Record Layer's stores
do the same with their headers.

Concurrency: for one trio thread; transactions that run at the same time share it, and each keeps to
the values and the version that it began with.
"""

from __future__ import annotations

from typing import Final

VALUES_MAX: Final = 10_000
"""More are forgotten together: somebody asks for names that are not there."""

METADATA_VERSION: Final = b"\xff/metadataVersion"


class Configuration:
    """The values of one version, the newest that was seen."""

    __slots__ = ("values", "version")

    def __init__(self) -> None:
        self.version: bytes | None = None
        """Ascends bytewise; None: not seen yet."""
        self.values: dict[bytes, bytes | None] = {}
        """By key; replaced, never emptied, when the version changes."""

    def learn(self, version: bytes, values: dict[bytes, bytes | None]) -> None:
        """Take what was read under ``version``, unless a newer one is known."""
        if self.version is None or version > self.version:
            self.version, self.values = version, {}
        elif version != self.version:
            return
        if len(self.values) + len(values) > VALUES_MAX:
            self.values = {}
        self.values.update(values)
