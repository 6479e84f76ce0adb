"""What an access key may do: read or write, in all buckets or in some. Pure."""

from __future__ import annotations

import msgspec


class Access(msgspec.Struct, frozen=True):
    """A permission. Buckets are meant by name, also those that are still to be made."""

    read_only: bool = False
    buckets: frozenset[str] | None = None
    """None: all."""

    def reaches(self, bucket: str) -> bool:
        """Whether the bucket is there at all for who has this permission."""
        return self.buckets is None or bucket in self.buckets

    def allows(self, bucket: str, *, write: bool) -> bool:
        return self.reaches(bucket) and not (write and self.read_only)


FULL = Access()
NOTHING = Access(read_only=True, buckets=frozenset())
