"""The one tree of errors that the engine raises.

Leaves carry typed fields, not prose; each frontend has one table from leaf to its protocol's
answer (``s3/errors.py`` and its siblings) and a test that the table is complete.

Whose fault an error is shows in its branch:

* ``RequestError``: the caller asked for something that cannot be; asking again changes nothing.
* ``ConflictError``: somebody else was faster; asking again may succeed.
* ``StorageError``: the store could not do its part; operators should look.
"""

from __future__ import annotations

from collections.abc import Sequence

__all__ = [
    "BadDigest",
    "BadPart",
    "BucketExists",
    "BucketNotEmpty",
    "ConditionConflict",
    "ConfigError",
    "ConflictError",
    "Corrupt",
    "EngineError",
    "EntityTooLarge",
    "EntityTooSmall",
    "IncompleteBody",
    "InvalidArgument",
    "InvalidName",
    "InvalidPartOrder",
    "InvalidRange",
    "IsDeleteMarker",
    "Locked",
    "NoSpace",
    "NoSuchBucket",
    "NoSuchConfiguration",
    "NoSuchKey",
    "NoSuchLock",
    "NoSuchUpload",
    "NoSuchVersion",
    "NotModified",
    "PreconditionFailed",
    "QuotaExceeded",
    "RequestError",
    "SlowDown",
    "StorageError",
    "StoreReadOnly",
    "Unavailable",
]


class EngineError(Exception):
    """The root: whatever the engine raises on purpose is one of these."""


class RequestError(EngineError):
    """The request cannot be met as it stands."""


class ConflictError(EngineError):
    """Another writer interfered; the same request may succeed when repeated."""


class StorageError(EngineError):
    """The store itself could not do what it should."""


class ConfigError(EngineError):
    """Configuration or a data folder is wrong; the message names the key, file or folder."""


class NoSuchBucket(RequestError):
    def __init__(self, bucket: str) -> None:
        super().__init__(f"no bucket {bucket!r}")
        self.bucket = bucket


class BucketExists(RequestError):
    def __init__(self, bucket: str, owner: str) -> None:
        super().__init__(f"bucket {bucket!r} exists")
        self.bucket = bucket
        self.owner = owner


class BucketNotEmpty(RequestError):
    def __init__(self, bucket: str) -> None:
        super().__init__(f"bucket {bucket!r} still has objects, versions or uploads")
        self.bucket = bucket


class NoSuchConfiguration(RequestError):
    """The bucket has no configuration document of this kind (``cors``, ``tagging``)."""

    def __init__(self, bucket: str, kind: str) -> None:
        super().__init__(f"bucket {bucket!r} has no {kind} configuration")
        self.bucket = bucket
        self.kind = kind


class NoSuchKey(RequestError):
    """The key has no current version.

    ``delete_marker`` is the version id of the delete marker that hides it, when there is one.
    """

    def __init__(self, bucket: str, key: str, delete_marker: str | None = None) -> None:
        super().__init__(f"no object {key!r} in bucket {bucket!r}")
        self.bucket = bucket
        self.key = key
        self.delete_marker = delete_marker


class NoSuchVersion(RequestError):
    def __init__(self, bucket: str, key: str, version_id: str) -> None:
        super().__init__(f"no version {version_id} of {key!r} in bucket {bucket!r}")
        self.bucket = bucket
        self.key = key
        self.version_id = version_id


class IsDeleteMarker(RequestError):
    """The version that was named is a delete marker; it has no bytes and no attributes."""

    def __init__(self, bucket: str, key: str, version_id: str, created_ms: int) -> None:
        super().__init__(f"version {version_id} of {key!r} is a delete marker")
        self.bucket = bucket
        self.key = key
        self.version_id = version_id
        self.created_ms = created_ms


class NoSuchLock(RequestError):
    """No lock with this token, of this principal, covers the key; it may have timed out."""

    def __init__(self, bucket: str, key: str, token: str) -> None:
        super().__init__(f"no lock {token} on {key!r} in bucket {bucket!r}")
        self.bucket = bucket
        self.key = key
        self.token = token


class NoSuchUpload(RequestError):
    def __init__(self, upload_id: str) -> None:
        super().__init__(f"no multipart upload {upload_id}")
        self.upload_id = upload_id


class InvalidName(RequestError):
    """A bucket name or key that is not allowed; ``reason`` says why in one clause."""

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(f"{name!r}: {reason}")
        self.name = name
        self.reason = reason


class InvalidArgument(RequestError):
    def __init__(self, argument: str, reason: str) -> None:
        super().__init__(f"{argument}: {reason}")
        self.argument = argument
        self.reason = reason


class InvalidRange(RequestError):
    """No byte of the range lies in the object; ``size`` is the object's size in bytes."""

    def __init__(self, size: int) -> None:
        super().__init__(f"range outside of {size} bytes")
        self.size = size


class PreconditionFailed(RequestError):
    """``condition`` names what failed: a header (``If-Match``, ``If-None-Match``, ...), ``data
    id`` (``Conditions.if_match_data_id``) or ``empty target`` (``Engine.rename_tree``)."""

    def __init__(self, condition: str) -> None:
        super().__init__(f"{condition} does not hold")
        self.condition = condition


class QuotaExceeded(RequestError):
    """The bucket may not grow so far. ``limit``: ``bytes`` or ``objects``; ``used`` and ``quota``
    are in its unit."""

    def __init__(self, bucket: str, limit: str, used: int, quota: int) -> None:
        super().__init__(f"bucket {bucket!r} has {used} of at most {quota} {limit}")
        self.bucket = bucket
        self.limit = limit
        self.used = used
        self.quota = quota


class NotModified(RequestError):
    """A conditional read whose answer is that nothing changed (RFC 9110, section 15.4.5)."""

    def __init__(
        self, etag: str, modified_ms: int, headers: Sequence[tuple[str, str]] = ()
    ) -> None:
        super().__init__("not modified")
        self.etag = etag
        self.modified_ms = modified_ms
        self.headers = headers
        """Standard headers that are kept with the object, by lower-case name."""


class ConditionConflict(ConflictError):
    """Lost a race: the object changed between the check and the commit."""

    def __init__(self, key: str) -> None:
        super().__init__(f"{key!r} was changed by another request")
        self.key = key


class Locked(ConflictError):
    """A lock whose token was not given covers ``key``, or what a new lock would cover.

    ``root`` is the key that is locked: ``key`` itself, a folder above or something below it;
    a folder ends with ``/``, and the bucket itself is the empty key.
    """

    def __init__(self, bucket: str, key: str, root: str) -> None:
        super().__init__(f"{key!r} in bucket {bucket!r} is locked at {root!r}")
        self.bucket = bucket
        self.key = key
        self.root = root


class BadDigest(RequestError):
    """The bytes that came do not have the digest that was announced."""

    def __init__(self, algorithm: str) -> None:
        super().__init__(f"{algorithm} does not match")
        self.algorithm = algorithm


class IncompleteBody(RequestError):
    """Fewer bytes came than were announced."""

    def __init__(self, expected: int, received: int) -> None:
        super().__init__(f"{received} bytes of {expected}")
        self.expected = expected
        self.received = received


class EntityTooLarge(RequestError):
    def __init__(self, size: int, limit: int) -> None:
        super().__init__(f"{size} bytes, at most {limit} are allowed")
        self.size = size
        self.limit = limit


class EntityTooSmall(RequestError):
    """A part that is not the last has fewer than 5 MiB."""

    def __init__(self, part_number: int, size: int, limit: int, etag: str) -> None:
        super().__init__(f"part {part_number} has {size} bytes, at least {limit} are needed")
        self.part_number = part_number
        self.size = size
        self.limit = limit
        self.etag = etag


class BadPart(RequestError):
    """Complete names a part that was not uploaded, or with another ETag or checksum."""

    def __init__(self, part_number: int, etag: str = "") -> None:
        super().__init__(f"part {part_number} is missing or differs")
        self.part_number = part_number
        self.etag = etag


class InvalidPartOrder(RequestError):
    """The part list of Complete is not in ascending order."""


class SlowDown(StorageError):
    """A queue is full: the caller should wait and try again."""


class NoSpace(StorageError):
    """The drives have no room left for new data; deleting still works."""


class Unavailable(StorageError):
    """Too few nodes, or the metadata store, answer; what is asked for may well exist."""

    def __init__(self, what: str) -> None:
        super().__init__(what)
        self.what = what


class StoreReadOnly(StorageError):
    """Nobody may change the store just now; ``why`` says it in a few words. Reading goes on."""

    def __init__(self, why: str) -> None:
        super().__init__(f"the store is read-only: {why}")
        self.why = why


class Corrupt(StorageError):
    """More damage than the redundancy covers: the right bytes cannot be had now."""

    def __init__(self, what: str) -> None:
        super().__init__(what)
        self.what = what
