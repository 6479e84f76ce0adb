"""What an access key may ask for: AccessDenied for everything else, whether it is there or not."""

from __future__ import annotations

from engine.access import FULL, Access
from s3.errors import s3_error
from s3.request import S3Request

_READING = ("Get", "Head", "List")


def check_operation(access: Access, name: str, request: S3Request) -> None:
    """Refuse what the key that signed may not do.

    ``name``: S3's of the operation; one that does not begin as reading ones do, writes.
    Raises: S3Error AccessDenied.
    """
    if access is FULL:
        return
    # Without a bucket there is only ListBuckets, which shows what the key reaches.
    if request.bucket:
        check_bucket(access, request.bucket, write=not name.startswith(_READING))


def check_bucket(access: Access, bucket: str, *, write: bool) -> None:
    """Raises: S3Error AccessDenied."""
    if not access.allows(bucket, write=write):
        raise s3_error("AccessDenied")
