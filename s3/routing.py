"""Which operation a request is: one table over method, level and subresource."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import Final

from s3 import acl, buckets, copy, cors, delete_objects, listing, multipart, objects
from s3.config import Operation
from s3.errors import S3Error, s3_error
from s3.object_attributes import get_object_attributes
from s3.post_object import post_object
from s3.request import S3Request


class Level(IntEnum):
    SERVICE = 0
    BUCKET = 1
    OBJECT = 2


@dataclass(frozen=True, slots=True)
class Route:
    name: str
    """S3's name of the operation, for logs and metrics."""
    run: Operation
    any_region: bool = False
    """Whatever region is signed for: clients ask these to find the right one."""
    signed: bool = True
    """False: the operation itself decides who may (preflight, forms)."""


_SERVICE, _BUCKET, _OBJECT = Level.SERVICE, Level.BUCKET, Level.OBJECT
_COPY = " copy"
"""Appended to the subresource of a PUT with ``x-amz-copy-source``."""

_ROUTES: Final[dict[tuple[str, int, str], Route]] = {
    ("GET", _SERVICE, ""): Route("ListBuckets", buckets.list_buckets, any_region=True),
    ("GET", _BUCKET, ""): Route("ListObjects", listing.list_objects),
    ("PUT", _BUCKET, ""): Route("CreateBucket", buckets.create_bucket),
    ("HEAD", _BUCKET, ""): Route("HeadBucket", buckets.head_bucket, any_region=True),
    ("DELETE", _BUCKET, ""): Route("DeleteBucket", buckets.delete_bucket),
    ("POST", _BUCKET, ""): Route("PostObject", post_object, signed=False),
    ("POST", _BUCKET, "delete"): Route("DeleteObjects", delete_objects.delete_objects),
    ("GET", _BUCKET, "location"): Route("GetBucketLocation", buckets.get_location, any_region=True),
    ("GET", _BUCKET, "versions"): Route("ListObjectVersions", listing.list_versions),
    ("GET", _BUCKET, "uploads"): Route("ListMultipartUploads", multipart.list_uploads),
    ("GET", _BUCKET, "versioning"): Route("GetBucketVersioning", buckets.get_versioning),
    ("PUT", _BUCKET, "versioning"): Route("PutBucketVersioning", buckets.put_versioning),
    ("GET", _BUCKET, "tagging"): Route("GetBucketTagging", buckets.get_bucket_tagging),
    ("PUT", _BUCKET, "tagging"): Route("PutBucketTagging", buckets.put_bucket_tagging),
    ("DELETE", _BUCKET, "tagging"): Route("DeleteBucketTagging", buckets.delete_bucket_tagging),
    ("GET", _BUCKET, "cors"): Route("GetBucketCors", cors.get_cors),
    ("PUT", _BUCKET, "cors"): Route("PutBucketCors", cors.put_cors),
    ("DELETE", _BUCKET, "cors"): Route("DeleteBucketCors", cors.delete_cors),
    ("GET", _BUCKET, "acl"): Route("GetBucketAcl", acl.get_bucket_acl),
    ("PUT", _BUCKET, "acl"): Route("PutBucketAcl", acl.put_bucket_acl),
    ("GET", _BUCKET, "policy"): Route("GetBucketPolicy", buckets.get_policy),
    ("GET", _BUCKET, "policyStatus"): Route("GetBucketPolicyStatus", buckets.get_policy),
    ("GET", _BUCKET, "lifecycle"): Route("GetBucketLifecycleConfiguration", buckets.get_lifecycle),
    ("GET", _BUCKET, "encryption"): Route("GetBucketEncryption", buckets.get_encryption),
    ("GET", _BUCKET, "object-lock"): Route("GetObjectLockConfiguration", buckets.get_object_lock),
    ("GET", _BUCKET, "website"): Route("GetBucketWebsite", buckets.get_website),
    ("GET", _BUCKET, "replication"): Route("GetBucketReplication", buckets.get_replication),
    ("GET", _BUCKET, "publicAccessBlock"): Route(
        "GetPublicAccessBlock", buckets.get_public_access_block
    ),
    ("GET", _BUCKET, "ownershipControls"): Route(
        "GetBucketOwnershipControls", buckets.get_ownership_controls
    ),
    ("GET", _BUCKET, "logging"): Route("GetBucketLogging", buckets.get_logging),
    ("GET", _BUCKET, "notification"): Route(
        "GetBucketNotificationConfiguration", buckets.get_notification
    ),
    ("GET", _BUCKET, "requestPayment"): Route(
        "GetBucketRequestPayment", buckets.get_request_payment
    ),
    ("GET", _BUCKET, "accelerate"): Route(
        "GetBucketAccelerateConfiguration", buckets.get_accelerate
    ),
    ("GET", _OBJECT, ""): Route("GetObject", objects.get_object),
    ("HEAD", _OBJECT, ""): Route("HeadObject", objects.head_object),
    ("PUT", _OBJECT, ""): Route("PutObject", objects.put_object),
    ("PUT", _OBJECT, _COPY): Route("CopyObject", copy.copy_object),
    ("DELETE", _OBJECT, ""): Route("DeleteObject", objects.delete_object),
    ("GET", _OBJECT, "attributes"): Route("GetObjectAttributes", get_object_attributes),
    ("GET", _OBJECT, "tagging"): Route("GetObjectTagging", objects.get_object_tagging),
    ("PUT", _OBJECT, "tagging"): Route("PutObjectTagging", objects.put_object_tagging),
    ("DELETE", _OBJECT, "tagging"): Route("DeleteObjectTagging", objects.delete_object_tagging),
    ("GET", _OBJECT, "acl"): Route("GetObjectAcl", acl.get_object_acl),
    ("PUT", _OBJECT, "acl"): Route("PutObjectAcl", acl.put_object_acl),
    ("POST", _OBJECT, "uploads"): Route("CreateMultipartUpload", multipart.create_upload),
    ("PUT", _OBJECT, "uploadId"): Route("UploadPart", multipart.upload_part),
    ("PUT", _OBJECT, "uploadId" + _COPY): Route("UploadPartCopy", multipart.copy_part),
    ("GET", _OBJECT, "uploadId"): Route("ListParts", multipart.list_parts),
    ("POST", _OBJECT, "uploadId"): Route("CompleteMultipartUpload", multipart.complete_upload),
    ("DELETE", _OBJECT, "uploadId"): Route("AbortMultipartUpload", multipart.abort_upload),
}
_PREFLIGHT: Final = Route("PreflightRequest", cors.preflight, signed=False)

_NOT_IMPLEMENTED: Final[dict[tuple[int, str], str]] = {
    (_BUCKET, "abac"): "GET PUT",
    (_BUCKET, "accelerate"): "PUT",
    (_BUCKET, "analytics"): "GET PUT DELETE",
    (_BUCKET, "encryption"): "PUT DELETE",
    (_BUCKET, "intelligent-tiering"): "GET PUT DELETE",
    (_BUCKET, "inventory"): "GET PUT DELETE",
    (_BUCKET, "lifecycle"): "PUT DELETE",
    (_BUCKET, "logging"): "PUT",
    (_BUCKET, "metadataAnnotationTable"): "PUT",
    (_BUCKET, "metadataConfiguration"): "GET POST DELETE",
    (_BUCKET, "metadataInventoryTable"): "PUT",
    (_BUCKET, "metadataJournalTable"): "PUT",
    (_BUCKET, "metadataTable"): "GET POST DELETE",
    (_BUCKET, "metrics"): "GET PUT DELETE",
    (_BUCKET, "notification"): "PUT",
    (_BUCKET, "object-lock"): "PUT",
    (_BUCKET, "ownershipControls"): "PUT DELETE",
    (_BUCKET, "policy"): "PUT DELETE",
    (_BUCKET, "publicAccessBlock"): "PUT DELETE",
    (_BUCKET, "replication"): "PUT DELETE",
    (_BUCKET, "requestPayment"): "PUT",
    (_BUCKET, "session"): "GET",
    (_BUCKET, "website"): "PUT DELETE",
    (_OBJECT, "annotation"): "GET PUT DELETE",
    (_OBJECT, "encryption"): "PUT",
    (_OBJECT, "legal-hold"): "GET PUT",
    (_OBJECT, "renameObject"): "PUT",
    (_OBJECT, "restore"): "POST",
    (_OBJECT, "retention"): "GET PUT",
    (_OBJECT, "select"): "POST",
    (_OBJECT, "torrent"): "GET",
}
"""Methods of S3's operations that are not there."""


def _names(level: Level) -> frozenset[str]:
    known = {name.removesuffix(_COPY) for _, at, name in _ROUTES if at == level}
    known |= {name for at, name in _NOT_IMPLEMENTED if at == level}
    return frozenset(known - {""})


_SUBRESOURCES: Final = {level: _names(level) for level in Level}


def _allowed_methods() -> dict[tuple[int, str], str]:
    allowed: dict[tuple[int, str], set[str]] = {}
    for method, level, name in _ROUTES:
        allowed.setdefault((level, name.removesuffix(_COPY)), set()).add(method)
    for key, methods in _NOT_IMPLEMENTED.items():
        allowed.setdefault(key, set()).update(methods.split())
    return {key: ", ".join(sorted(methods)) for key, methods in allowed.items()}


_ALLOWED: Final = _allowed_methods()


class MethodNotAllowed(Exception):
    """The resource does not know the method; ``allow`` is for the header of that name."""

    def __init__(self, error: S3Error, allow: str) -> None:
        super().__init__(allow)
        self.error = error
        self.allow = allow


def find_route(request: S3Request) -> Route:
    """Return the request's operation. Pure, a few dictionary look-ups.

    Raises:
        S3Error: NotImplemented for what S3 has and we have not; InvalidArgument for two
            subresources at once.
        MethodNotAllowed: S3 has no such operation.
    """
    method = request.method
    level = _OBJECT if request.key else (_BUCKET if request.bucket else _SERVICE)
    name = _subresource(request, level) if request.params else ""
    if method == "PUT" and level is _OBJECT and b"x-amz-copy-source" in request.headers:
        route = _ROUTES.get((method, level, name + _COPY))
        if route is not None:
            return route
    route = _ROUTES.get((method, level, name))
    if route is not None:
        return route
    if method == "OPTIONS":
        return _PREFLIGHT
    if method in _NOT_IMPLEMENTED.get((level, name), "").split():
        raise s3_error("NotImplemented", f"The operation {method} ?{name} is not implemented.")
    raise MethodNotAllowed(
        s3_error("MethodNotAllowed", Method=method, ResourceType=_resource_type(level, name)),
        _ALLOWED.get((level, name), ""),
    )


def _subresource(request: S3Request, level: Level) -> str:
    found = _SUBRESOURCES[level].intersection(request.params)
    if len(found) == 1:
        return next(iter(found))
    if found:
        names = sorted(found)
        raise s3_error(
            "InvalidArgument",
            f"Conflicting query string parameters: {', '.join(names)}",
            ArgumentName="ResourceType",
            ArgumentValue=names[0],
        )
    if level is _OBJECT and request.method not in ("GET", "HEAD"):
        # Better refused than that "DELETE /bucket/key?cors" deletes the object.
        for name in _SUBRESOURCES[_BUCKET].intersection(request.params):
            raise s3_error(
                "InvalidRequest", f"There is no such thing as the ?{name} sub-resource for a key"
            )
    return ""


def _resource_type(level: Level, name: str) -> str:
    if name:
        return name.upper().replace("-", "_")
    return level.name
