"""From exceptions to errno: the one table, and the one function that applies it."""

from __future__ import annotations

import errno

import trio

from engine import errors as engine_errors
from engine.changes import FeedLost
from fs.names import NotUtf8, ReservedName


class Refused(OSError):
    """What the file system refuses on purpose: the errno is the answer, nothing is logged."""

    def __init__(self, number: int, what: str = "") -> None:
        super().__init__(number, what)


ERRNO: dict[type[Exception], int] = {
    engine_errors.BadDigest: errno.EIO,
    engine_errors.BadPart: errno.EIO,
    engine_errors.BucketExists: errno.EEXIST,
    engine_errors.BucketNotEmpty: errno.ENOTEMPTY,
    engine_errors.ConditionConflict: errno.ESTALE,
    engine_errors.ConfigError: errno.EINVAL,
    engine_errors.Corrupt: errno.EIO,
    engine_errors.EntityTooLarge: errno.EFBIG,
    engine_errors.EntityTooSmall: errno.EIO,
    engine_errors.IncompleteBody: errno.EIO,
    engine_errors.InvalidArgument: errno.EINVAL,
    engine_errors.InvalidName: errno.EINVAL,
    engine_errors.InvalidPartOrder: errno.EIO,
    engine_errors.InvalidRange: errno.EINVAL,
    engine_errors.IsDeleteMarker: errno.ENOENT,
    engine_errors.Locked: errno.EBUSY,
    engine_errors.NoSpace: errno.ENOSPC,
    engine_errors.NoSuchBucket: errno.ENOENT,
    engine_errors.NoSuchConfiguration: errno.ENODATA,
    engine_errors.NoSuchKey: errno.ENOENT,
    engine_errors.NoSuchLock: errno.EIO,
    engine_errors.NoSuchUpload: errno.ESTALE,
    engine_errors.NoSuchVersion: errno.ENOENT,
    engine_errors.NotModified: errno.EIO,
    engine_errors.PreconditionFailed: errno.ESTALE,
    engine_errors.QuotaExceeded: errno.EDQUOT,
    engine_errors.SlowDown: errno.EAGAIN,
    engine_errors.StoreReadOnly: errno.EROFS,
    engine_errors.Unavailable: errno.EIO,
    FeedLost: errno.EIO,
    NotUtf8: errno.EILSEQ,
    ReservedName: errno.ENOENT,
    trio.TooSlowError: errno.ETIMEDOUT,
}
"""Leaves of the engine's tree, and the few others that handlers raise."""

_BRANCHES: tuple[tuple[type[Exception], int], ...] = (
    (engine_errors.ConflictError, errno.ESTALE),
    (engine_errors.RequestError, errno.EINVAL),
    (engine_errors.StorageError, errno.EIO),
)
"""For leaves that nobody entered yet; a test keeps this from happening."""


def errno_of(error: BaseException) -> int | None:
    """Return the errno that answers an exception; None: nobody foresaw it, so it is a bug."""
    if isinstance(error, OSError):
        return error.errno or errno.EIO
    for kind in type(error).__mro__:
        number = ERRNO.get(kind)
        if number is not None:
            return number
    for branch, number in _BRANCHES:
        if isinstance(error, branch):
            return number
    return None
