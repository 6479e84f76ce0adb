"""What request headers say about an object beside its bytes."""

from __future__ import annotations

from collections.abc import Mapping

from engine.types import Attributes, Pairs
from s3.errors import s3_error
from s3.tagging import parse_tagging_header

METADATA_SIZE_MAX = 2048
"""Bytes of names and values of user metadata."""

DEFAULT_CONTENT_TYPE = "binary/octet-stream"

STORAGE_CLASSES = frozenset(
    {
        "STANDARD",
        "REDUCED_REDUNDANCY",
        "STANDARD_IA",
        "ONEZONE_IA",
        "INTELLIGENT_TIERING",
        "GLACIER",
        "GLACIER_IR",
        "DEEP_ARCHIVE",
    }
)
_ACLS_ACCEPTED = frozenset({b"private", b"bucket-owner-full-control"})
_ACLS = _ACLS_ACCEPTED | {
    b"public-read",
    b"public-read-write",
    b"authenticated-read",
    b"aws-exec-read",
    b"bucket-owner-read",
    b"log-delivery-write",
}
"""All canned ACLs that there are."""

_ENCRYPTION = (b"x-amz-server-side-encryption", b"x-amz-copy-source-server-side-encryption")

_KEPT = {
    b"content-type": "content-type",
    b"cache-control": "cache-control",
    b"content-disposition": "content-disposition",
    b"content-language": "content-language",
    b"expires": "expires",
    b"x-amz-website-redirect-location": "x-amz-website-redirect-location",
}
_META = b"x-amz-meta-"
_REDIRECT = b"x-amz-website-redirect-location"


def parse_attributes(headers: Mapping[bytes, bytes]) -> Attributes:
    """Return what Put, CreateMultipartUpload and Copy with REPLACE keep with the object.

    Values are kept byte for byte (as latin-1); ``aws-chunked`` is taken out of Content-Encoding.

    Raises:
        S3Error: MetadataTooLarge, InvalidStorageClass, AccessControlListNotSupported, InvalidTag,
            InvalidArgument, NotImplemented, InvalidRequest, InvalidRedirectLocation.
    """
    kept: Pairs = []
    metadata: Pairs = []
    tags: Pairs = []
    storage_class = "STANDARD"
    metadata_size = 0
    if b"content-type" not in headers:
        kept.append(("content-type", DEFAULT_CONTENT_TYPE))
    for name, value in headers.items():
        stored = _KEPT.get(name)
        if stored is not None:
            if name == _REDIRECT and not value.startswith((b"/", b"http://", b"https://")):
                raise s3_error("InvalidRedirectLocation")
            kept.append((stored, value.decode("latin-1")))
        elif name == b"content-encoding":
            encoding = without_aws_chunked(value)
            if encoding:
                kept.append(("content-encoding", encoding.decode("latin-1")))
        elif name.startswith(b"x-amz-"):
            if name.startswith(_META):
                metadata_size += len(name) - len(_META) + len(value)
                metadata.append((name[len(_META) :].decode("latin-1"), value.decode("latin-1")))
            elif name == b"x-amz-storage-class":
                storage_class = parse_storage_class(value.decode("latin-1"))
            elif name == b"x-amz-tagging":
                tags = parse_tagging_header(value)
            else:
                refuse_header(name, value)
    if metadata_size > METADATA_SIZE_MAX:
        raise s3_error(
            "MetadataTooLarge", Size=str(metadata_size), MaxSizeAllowed=str(METADATA_SIZE_MAX)
        )
    return Attributes(headers=kept, metadata=metadata, tags=tags, storage_class=storage_class)


def parse_storage_class(name: str) -> str:
    if name not in STORAGE_CLASSES:
        raise s3_error("InvalidStorageClass", StorageClassRequested=name)
    return name


def without_aws_chunked(value: bytes) -> bytes:
    """Return Content-Encoding without the framing that is only on the wire."""
    if b"aws-chunked" not in value:
        return value
    codings = [coding.strip() for coding in value.split(b",")]
    return b",".join(coding for coding in codings if coding and coding != b"aws-chunked")


def refuse_header(name: bytes, value: bytes) -> None:
    """Raise for an ``x-amz-`` header that asks for what is not there; others pass.

    ACLs are as in a bucket with the setting that S3 gives new buckets: ownership by the bucket
    owner, ACLs disabled.
    """
    if name.startswith(_ENCRYPTION):
        raise s3_error("NotImplemented", Header=name.decode("latin-1"))
    if name.startswith(b"x-amz-object-lock-"):
        raise s3_error("InvalidRequest", "Bucket is missing Object Lock Configuration")
    if name.startswith(b"x-amz-grant-"):
        raise s3_error("AccessControlListNotSupported")
    if name == b"x-amz-acl" and value not in _ACLS_ACCEPTED:
        check_canned_acl(value)
        raise s3_error("AccessControlListNotSupported")
    if name == b"x-amz-write-offset-bytes":
        raise s3_error("NotImplemented", Header=name.decode("latin-1"))


def check_canned_acl(value: bytes) -> None:
    """Raises InvalidArgument for what is the name of no canned ACL."""
    if value not in _ACLS:
        raise s3_error(
            "InvalidArgument",
            ArgumentName="x-amz-acl",
            ArgumentValue=value[:256].decode("latin-1"),
        )


def refuse_headers(headers: Mapping[bytes, bytes]) -> None:
    """Apply ``refuse_header`` to all of them, for requests that keep no attributes."""
    for name, value in headers.items():
        if name.startswith(b"x-amz-"):
            refuse_header(name, value)
