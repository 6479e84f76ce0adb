"""ListBuckets, CreateBucket, HeadBucket, DeleteBucket, location, versioning, bucket tagging."""

from __future__ import annotations

import re

from engine.errors import BucketExists
from engine.http.message import Response
from engine.types import Pairs
from s3.acl import owner_element
from s3.attributes import check_canned_acl, refuse_header
from s3.body import read_document
from s3.config import Api
from s3.errors import s3_error
from s3.listing import decode_token, encode_token
from s3.request import S3Request, bucket_name_problem, int_param
from s3.responses import XML_TYPE, no_content, xml_response
from s3.tagging import BUCKET_TAGS_MAX, parse_tagging, read_tags, tagging_document
from s3.times import iso_time
from s3.xml import element, escape, malformed, parse, parse_configuration

PAGE_MAX = 10_000
_REGION = re.compile(r"[a-z]{2,3}(-[a-z]+)+-\d")
"""What the names of AWS's regions look like."""

_FIRST_REGION = "us-east-1"
"""S3's oldest region, with rules of its own: no LocationConstraint, creating twice succeeds."""


async def list_buckets(api: Api, request: S3Request) -> Response:
    params = request.params
    limit = int_param(request, "max-buckets", PAGE_MAX, least=1, most=PAGE_MAX)
    prefix = params.get("prefix", "")
    token = params.get("continuation-token")
    region = params.get("bucket-region") or api.config.region
    buckets, more = await api.engine.list_buckets(
        prefix=prefix,
        after="" if not token else decode_token(token),
        limit=limit,
        only=request.identity.access.buckets,
    )
    rows = [owner_element(api), "<Buckets>"]
    for bucket in buckets:
        if region == api.config.region:
            rows.append(
                f"<Bucket><Name>{bucket.name}</Name>"
                f"<CreationDate>{iso_time(bucket.created_ms)}</CreationDate>"
                f"<BucketRegion>{escape(region)}</BucketRegion></Bucket>"
            )
    rows.append("</Buckets>")
    if more:
        rows.append(element("ContinuationToken", encode_token(buckets[-1].name)))
    if prefix:
        rows.append(element("Prefix", prefix))
    return xml_response("ListAllMyBucketsResult", rows)


async def create_bucket(api: Api, request: S3Request) -> Response:
    name = request.bucket
    if bucket_name_problem(name) is not None:
        raise s3_error("InvalidBucketName", BucketName=name)
    _check_create_headers(request)
    raw = await read_document(request, limit=api.config.document_size_max)
    tags = _check_configuration(api, raw) if raw else []
    owner = request.identity.owner_id
    try:
        await api.engine.create_bucket(name, owner=owner, region=api.config.region)
        if tags:
            await api.engine.put_bucket_config(name, "tagging", tagging_document(tags))
    except BucketExists as error:
        if error.owner != owner:
            raise s3_error("BucketAlreadyExists", BucketName=name) from None
        if api.config.region != _FIRST_REGION:
            raise s3_error("BucketAlreadyOwnedByYou", BucketName=name) from None
    return Response(200, [(b"Location", b"/" + name.encode())])


def _check_create_headers(request: S3Request) -> None:
    for name, value in request.headers.items():
        if name == b"x-amz-acl":
            if value != b"private":
                check_canned_acl(value)
                raise s3_error("InvalidBucketAclWithObjectOwnership")
        elif name.startswith(b"x-amz-grant-"):
            raise s3_error("InvalidBucketAclWithObjectOwnership")
        elif name == b"x-amz-object-ownership":
            if value != b"BucketOwnerEnforced":
                raise s3_error("NotImplemented", Header=name.decode())
        elif name == b"x-amz-bucket-namespace":
            if value != b"global":
                raise s3_error("NotImplemented", Header=name.decode())
        elif name == b"x-amz-bucket-object-lock-enabled":
            if value.lower() == b"true":
                raise s3_error("NotImplemented", Header=name.decode())
        elif name.startswith(b"x-amz-"):
            refuse_header(name, value)


def _check_configuration(api: Api, raw: bytes) -> Pairs:
    """Return the tags to begin with. Accept a constraint that names our region, or none.

    S3 refuses to do without a constraint outside of us-east-1; here there is one region, so it
    is never wrong.
    """
    root = parse(raw, "CreateBucketConfiguration")
    if root.find("Location") is not None or root.find("Bucket") is not None:
        raise s3_error("NotImplemented", "Directory buckets are not implemented")
    constraint = (root.get("LocationConstraint") or "").strip()
    if constraint == "EU":
        constraint = "eu-west-1"
    if constraint and constraint != api.config.region:
        if _REGION.fullmatch(constraint) is None:
            raise s3_error("InvalidLocationConstraint", LocationConstraint=constraint[:256])
        raise s3_error(
            "IllegalLocationConstraintException",
            f"The {constraint} location constraint is incompatible for the region specific "
            "endpoint this request was sent to.",
        )
    tags = root.find("Tags")
    return [] if tags is None else read_tags(tags, BUCKET_TAGS_MAX)


async def head_bucket(api: Api, request: S3Request) -> Response:
    info = await api.engine.bucket(request.bucket)
    region = (info.region or api.config.region).encode()
    answer = [XML_TYPE, (b"x-amz-bucket-region", region), (b"x-amz-access-point-alias", b"false")]
    return Response(200, answer)


async def delete_bucket(api: Api, request: S3Request) -> Response:
    await api.engine.delete_bucket(request.bucket)
    return no_content()


async def get_location(api: Api, request: S3Request) -> Response:
    info = await api.engine.bucket(request.bucket)
    region = info.region or api.config.region
    if region == _FIRST_REGION:
        region = ""
    return xml_response("LocationConstraint", [escape(region)])


async def get_versioning(api: Api, request: S3Request) -> Response:
    info = await api.engine.bucket(request.bucket)
    rows = [element("Status", info.versioning)] if info.versioning else []
    return xml_response("VersioningConfiguration", rows)


async def put_versioning(api: Api, request: S3Request) -> Response:
    raw = await read_document(request, limit=api.config.document_size_max)
    root = parse_configuration(raw, "VersioningConfiguration")
    status = root.get("Status")
    if (root.get("MfaDelete") or "Disabled").strip() != "Disabled":
        raise s3_error("NotImplemented", "MFA delete is not implemented")
    if status is None:
        raise s3_error(
            "IllegalVersioningConfigurationException", "The Versioning element must be specified"
        )
    if status.strip() not in ("Enabled", "Suspended"):
        raise malformed()
    await api.engine.set_versioning(request.bucket, status.strip())
    return Response(200)


async def get_bucket_tagging(api: Api, request: S3Request) -> Response:
    return Response(200, [XML_TYPE], await api.engine.bucket_config(request.bucket, "tagging"))


async def put_bucket_tagging(api: Api, request: S3Request) -> Response:
    raw = await read_document(request, limit=api.config.document_size_max)
    tags = parse_tagging(raw, BUCKET_TAGS_MAX)
    await api.engine.put_bucket_config(request.bucket, "tagging", tagging_document(tags))
    return no_content()


async def delete_bucket_tagging(api: Api, request: S3Request) -> Response:
    await api.engine.delete_bucket_config(request.bucket, "tagging")
    return no_content()


# What a bucket without such configuration answers, for clients that ask before they work.


async def get_nothing(api: Api, request: S3Request, code: str) -> Response:
    """Raises the S3 error for a configuration that no bucket here has."""
    await api.engine.bucket(request.bucket)
    raise s3_error(code, BucketName=request.bucket)


async def get_policy(api: Api, request: S3Request) -> Response:
    return await get_nothing(api, request, "NoSuchBucketPolicy")


async def get_lifecycle(api: Api, request: S3Request) -> Response:
    return await get_nothing(api, request, "NoSuchLifecycleConfiguration")


async def get_encryption(api: Api, request: S3Request) -> Response:
    return await get_nothing(api, request, "ServerSideEncryptionConfigurationNotFoundError")


async def get_object_lock(api: Api, request: S3Request) -> Response:
    return await get_nothing(api, request, "ObjectLockConfigurationNotFoundError")


async def get_website(api: Api, request: S3Request) -> Response:
    return await get_nothing(api, request, "NoSuchWebsiteConfiguration")


async def get_replication(api: Api, request: S3Request) -> Response:
    return await get_nothing(api, request, "ReplicationConfigurationNotFoundError")


async def get_public_access_block(api: Api, request: S3Request) -> Response:
    return await get_nothing(api, request, "NoSuchPublicAccessBlockConfiguration")


async def get_ownership_controls(api: Api, request: S3Request) -> Response:
    await api.engine.bucket(request.bucket)
    rule = "<Rule><ObjectOwnership>BucketOwnerEnforced</ObjectOwnership></Rule>"
    return xml_response("OwnershipControls", [rule])


async def get_logging(api: Api, request: S3Request) -> Response:
    await api.engine.bucket(request.bucket)
    return xml_response("BucketLoggingStatus", [])


async def get_notification(api: Api, request: S3Request) -> Response:
    await api.engine.bucket(request.bucket)
    return xml_response("NotificationConfiguration", [])


async def get_accelerate(api: Api, request: S3Request) -> Response:
    await api.engine.bucket(request.bucket)
    return xml_response("AccelerateConfiguration", [])


async def get_request_payment(api: Api, request: S3Request) -> Response:
    await api.engine.bucket(request.bucket)
    return xml_response("RequestPaymentConfiguration", [element("Payer", "BucketOwner")])
