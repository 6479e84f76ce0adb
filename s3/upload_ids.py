"""Upload ids as clients see them: 32 hexadecimal digits."""

from __future__ import annotations

import re

from engine.ids import UploadId
from s3.errors import S3Error, s3_error

_SHOWN = re.compile(r"[0-9a-f]{32}")


def show_upload_id(upload_id: UploadId) -> str:
    return upload_id.hex()


def parse_upload_id(text: str) -> UploadId:
    """Raises NoSuchUpload for what cannot be an id."""
    if _SHOWN.fullmatch(text) is None:
        raise no_such_upload(text)
    return UploadId(bytes.fromhex(text))


def no_such_upload(text: str) -> S3Error:
    return s3_error("NoSuchUpload", UploadId=text)
