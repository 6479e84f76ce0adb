"""``x-amz-expected-bucket-owner``: refuse to touch a bucket that is somebody else's."""

from __future__ import annotations

from s3.config import Api
from s3.errors import s3_error
from s3.request import S3Request

HEADER = b"x-amz-expected-bucket-owner"
SOURCE_HEADER = b"x-amz-source-expected-bucket-owner"


async def check_owner(api: Api, expected: bytes, bucket: str) -> None:
    """Raises AccessDenied, NoSuchBucket."""
    if (await api.engine.bucket(bucket)).owner != expected.decode("latin-1"):
        raise s3_error("AccessDenied")


async def check_source_owner(api: Api, request: S3Request, bucket: str) -> None:
    expected = request.headers.get(SOURCE_HEADER)
    if expected is not None:
        await check_owner(api, expected, bucket)
