"""Preconditions against the version that is there: the one place that decides them.

Source: RFC 9110, section 13.2.2 for the order; S3 User Guide, "Conditional requests", for what
is answered when the object is absent.
"""

from __future__ import annotations

from engine.errors import NoSuchKey, NotModified, PreconditionFailed
from engine.meta.records import VersionRecord
from engine.times import shown_ms
from engine.types import NO_CONDITIONS, Conditions


def _matches(etags: tuple[str, ...], etag: str) -> bool:
    return "*" in etags or etag in etags


def _seconds(ms: int) -> int:
    """HTTP dates have whole seconds."""
    return ms // 1000


def _modified(conditions: Conditions, record: VersionRecord) -> int:
    """Return the time of modification in seconds that dates are compared with."""
    if conditions.shown_times:
        return _seconds(shown_ms(record.modified_ms, record.metadata))
    return _seconds(record.modified_ms)


def check_read(conditions: Conditions, record: VersionRecord) -> None:
    """Decide a read of an existing version.

    Raises: PreconditionFailed, NotModified.
    """
    if conditions is NO_CONDITIONS:
        return
    if conditions.if_match is not None:
        if not _matches(conditions.if_match, record.etag):
            raise PreconditionFailed("If-Match")
    elif conditions.if_unmodified_since_ms is not None and _modified(conditions, record) > _seconds(
        conditions.if_unmodified_since_ms
    ):
        raise PreconditionFailed("If-Unmodified-Since")
    if conditions.if_none_match is not None:
        if _matches(conditions.if_none_match, record.etag):
            raise NotModified(record.etag, record.modified_ms, record.headers)
    elif conditions.if_modified_since_ms is not None and _modified(conditions, record) <= _seconds(
        conditions.if_modified_since_ms
    ):
        raise NotModified(record.etag, record.modified_ms, record.headers)


def check_write(
    conditions: Conditions, bucket: str, key: str, current: VersionRecord | None
) -> None:
    """Decide a write or delete against the current version, or the named one.

    Raises: PreconditionFailed; NoSuchKey when If-Match meets an absent object.
    """
    if conditions is NO_CONDITIONS:
        return
    if conditions.if_match_data_id is not None:
        # Before all others: who opened a version asks whether it is still there, not what is.
        data_id = b"" if current is None else current.data_id
        if data_id != conditions.if_match_data_id:
            raise PreconditionFailed("data id")
    if current is None:
        if conditions.if_match is not None:
            raise NoSuchKey(bucket, key)
        return
    if conditions.if_match is not None and not _matches(conditions.if_match, current.etag):
        raise PreconditionFailed("If-Match")
    if conditions.if_none_match is not None and _matches(conditions.if_none_match, current.etag):
        raise PreconditionFailed("If-None-Match")
    if conditions.if_match_size is not None and current.size != conditions.if_match_size:
        raise PreconditionFailed("x-amz-if-match-size")
    if conditions.if_match_modified_ms is not None and _seconds(current.modified_ms) != _seconds(
        conditions.if_match_modified_ms
    ):
        raise PreconditionFailed("x-amz-if-match-last-modified-time")
    if conditions.if_unmodified_since_ms is not None and _modified(conditions, current) > _seconds(
        conditions.if_unmodified_since_ms
    ):
        raise PreconditionFailed("If-Unmodified-Since")
