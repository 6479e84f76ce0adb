"""What files look like: content type, ETag, the headers that go with every answer about one."""

from __future__ import annotations

import mimetypes
from functools import lru_cache

from dav.times import http_date
from engine.meta.records import VersionRecord
from engine.times import shown_ms
from engine.types import Pairs

FOLDER_TYPE = "application/x-directory"
DEFAULT_TYPE = "application/octet-stream"

_KEPT = frozenset({"content-encoding", "content-language", "content-disposition", "cache-control"})
_S3_DEFAULT = "binary/octet-stream"
"""What S3 clients store without having thought about it."""

_TYPES = mimetypes.MimeTypes()


def content_type(record: VersionRecord, name: str) -> str:
    """Return what was stored, or else what the name says."""
    return type_of(record.headers, name)


def type_of(headers: Pairs, name: str) -> str:
    stored = dict(headers).get("content-type", "")
    if stored and stored != _S3_DEFAULT:
        return stored
    return guess_type(name)


def guess_type(name: str) -> str:
    # Only what is behind the dots matters, also where the name looks like a URL.
    return _guess(".".join(["x", *name.rsplit(".", 2)[1:]]))


@lru_cache(maxsize=1024)
def _guess(name: str) -> str:
    kind, encoding = _TYPES.guess_type(name, strict=False)
    # A .tar.gz is a file of its own kind, not a tar in transit.
    return DEFAULT_TYPE if kind is None or encoding is not None else kind


def file_headers(record: VersionRecord, name: str) -> list[tuple[str, str]]:
    """Return all but length and range. A file that a browser opens gets no rights of ours."""
    kept = [(key.title(), value) for key, value in record.headers if key in _KEPT]
    return [
        ("Content-Type", content_type(record, name)),
        ("Last-Modified", http_date(shown_ms(record.modified_ms, record.metadata))),
        ("ETag", f'"{record.etag}"'),
        ("Accept-Ranges", "bytes"),
        ("Content-Security-Policy", "sandbox; default-src 'self' 'unsafe-inline' data:"),
        ("X-Content-Type-Options", "nosniff"),
        *kept,
    ]
