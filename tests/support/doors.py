"""Doors: one store's operations as a frontend offers them, with answers that can be compared.

The model (``model.py``) offers the same calls, synchronously. Answers are plain values; refusals
are ``Refused`` with the name of a leaf of the engine's error tree.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

Pairs = tuple[tuple[str, str], ...]


class Refused(Exception):
    """``name``: the leaf of ``EngineError``."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.name = name


@dataclass(frozen=True)
class Stored:
    version_id: str | None
    """None in a bucket that never had versioning."""
    etag: str


@dataclass(frozen=True)
class Got:
    data: bytes = field(repr=False)
    """Empty for HEAD."""
    size: int
    """Of the whole object."""
    etag: str
    version_id: str | None
    metadata: Pairs
    """Sorted by name."""


@dataclass(frozen=True)
class Removed:
    version_id: str | None
    delete_marker: bool


@dataclass(frozen=True)
class Page:
    """``entries`` are (key, size, etag)."""

    entries: tuple[tuple[str, int, str], ...]
    prefixes: tuple[str, ...]
    next_after: str | None


@dataclass(frozen=True)
class VersionEntry:
    key: str
    version_id: str
    delete_marker: bool
    is_latest: bool
    size: int
    etag: str


@dataclass(frozen=True)
class VersionPage:
    entries: tuple[VersionEntry, ...]
    prefixes: tuple[str, ...]
    next_key: str | None
    next_version_id: str | None


@dataclass(frozen=True)
class UploadPage:
    """``entries`` are (key, upload id)."""

    entries: tuple[tuple[str, str], ...]
    prefixes: tuple[str, ...]
    next_key: str | None
    next_upload_id: str | None


@dataclass(frozen=True)
class PartPage:
    """``entries`` are (number, size, etag)."""

    entries: tuple[tuple[int, int, str], ...]
    next_after: int | None


class Door(Protocol):
    """Every method raises ``Refused``. Version and upload ids are opaque strings."""

    async def create_bucket(self, bucket: str) -> None: ...
    async def delete_bucket(self, bucket: str) -> None: ...
    async def set_versioning(self, bucket: str, state: str) -> None: ...
    async def list_buckets(self) -> tuple[str, ...]: ...

    async def put(
        self,
        bucket: str,
        key: str,
        data: bytes,
        *,
        metadata: Pairs = (),
        if_match: str | None = None,
        if_none_match: bool = False,
    ) -> Stored:
        """``if_none_match`` stands for ``If-None-Match: *``."""

    async def get(
        self,
        bucket: str,
        key: str,
        *,
        version_id: str | None = None,
        first: int | None = None,
        last: int | None = None,
        if_match: str | None = None,
        if_none_match: str | None = None,
    ) -> Got:
        """``first`` to ``last`` (inclusive) is a range; ``last`` may lie behind the end."""

    async def head(self, bucket: str, key: str, *, version_id: str | None = None) -> Got: ...

    async def delete(
        self,
        bucket: str,
        key: str,
        *,
        version_id: str | None = None,
        if_match: str | None = None,
    ) -> Removed: ...

    async def delete_many(
        self, bucket: str, items: tuple[tuple[str, str | None], ...]
    ) -> tuple[Removed | str, ...]:
        """``items`` are (key, version id); an error is answered by its name."""

    async def copy(
        self,
        source_bucket: str,
        source_key: str,
        bucket: str,
        key: str,
        *,
        version_id: str | None = None,
        metadata: Pairs | None = None,
    ) -> Stored:
        """``metadata`` None copies the source's."""

    async def set_tags(
        self, bucket: str, key: str, tags: Pairs, *, version_id: str | None = None
    ) -> None: ...
    async def get_tags(self, bucket: str, key: str, *, version_id: str | None = None) -> Pairs: ...

    async def create_upload(self, bucket: str, key: str, *, metadata: Pairs = ()) -> str: ...
    async def put_part(
        self, bucket: str, key: str, upload_id: str, number: int, data: bytes
    ) -> str:
        """Return the part's ETag."""

    async def copy_part(
        self,
        source_bucket: str,
        source_key: str,
        bucket: str,
        key: str,
        upload_id: str,
        number: int,
    ) -> str: ...
    async def complete(
        self, bucket: str, key: str, upload_id: str, parts: tuple[tuple[int, str], ...]
    ) -> Stored:
        """``parts`` are (number, ETag)."""

    async def abort(self, bucket: str, key: str, upload_id: str) -> None: ...
    async def list_parts(
        self, bucket: str, key: str, upload_id: str, *, after: int = 0, limit: int = 1000
    ) -> PartPage: ...

    async def list_objects(
        self,
        bucket: str,
        *,
        prefix: str = "",
        delimiter: str = "",
        after: str = "",
        limit: int = 1000,
    ) -> Page: ...
    async def list_versions(
        self,
        bucket: str,
        *,
        prefix: str = "",
        delimiter: str = "",
        key_marker: str = "",
        version_id_marker: str = "",
        limit: int = 1000,
    ) -> VersionPage: ...
    async def list_uploads(
        self,
        bucket: str,
        *,
        prefix: str = "",
        delimiter: str = "",
        key_marker: str = "",
        upload_id_marker: str = "",
        limit: int = 1000,
    ) -> UploadPage: ...
    async def collect(self) -> None:
        """Collect all garbage, without a grace time."""
