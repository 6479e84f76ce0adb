"""Access control lists as S3 shows them where they are disabled: the owner, full control."""

from __future__ import annotations

from engine.http.message import Response
from s3.attributes import refuse_headers
from s3.body import read_document
from s3.config import Api
from s3.errors import S3Error, s3_error
from s3.objects import version_param
from s3.request import S3Request
from s3.responses import XML_TYPE, Headers, version_headers
from s3.xml import document, element, parse

_XSI = "http://www.w3.org/2001/XMLSchema-instance"


def owner_element(api: Api, name: str = "Owner") -> str:
    config = api.config
    inside = element("ID", config.owner_id) + element("DisplayName", config.owner_name)
    return f"<{name}>{inside}</{name}>"


def _policy(api: Api, headers: Headers) -> Response:
    grantee = element("ID", api.config.owner_id) + element("DisplayName", api.config.owner_name)
    body = document(
        "AccessControlPolicy",
        [
            owner_element(api),
            "<AccessControlList><Grant>",
            f'<Grantee xmlns:xsi="{_XSI}" xsi:type="CanonicalUser">{grantee}</Grantee>',
            "<Permission>FULL_CONTROL</Permission></Grant></AccessControlList>",
        ],
    )
    return Response(200, [XML_TYPE, *headers], body)


async def get_bucket_acl(api: Api, request: S3Request) -> Response:
    await api.engine.bucket(request.bucket)
    return _policy(api, [])


async def get_object_acl(api: Api, request: S3Request) -> Response:
    info = await api.engine.head(request.bucket, request.key, version_id=version_param(request))
    return _policy(api, version_headers(info.version_id))


async def put_bucket_acl(api: Api, request: S3Request) -> Response:
    await _check_acl(api, request)
    await api.engine.bucket(request.bucket)
    return Response(200)


async def put_object_acl(api: Api, request: S3Request) -> Response:
    await _check_acl(api, request)
    info = await api.engine.head(request.bucket, request.key, version_id=version_param(request))
    return Response(200, version_headers(info.version_id))


async def _check_acl(api: Api, request: S3Request) -> None:
    """Accept what changes nothing; refuse the rest as S3 does with ACLs disabled."""
    refuse_headers(request.headers)
    raw = await read_document(request, limit=api.config.document_size_max)
    if b"x-amz-acl" in request.headers:
        return
    if not raw:
        raise s3_error(
            "MissingSecurityHeader",
            "Your request was missing a required header",
            MissingHeaderName="x-amz-acl",
        )
    for grantee, permission in _grants(raw):
        if grantee != api.config.owner_id or permission != "FULL_CONTROL":
            raise s3_error("AccessControlListNotSupported")


def _grants(raw: bytes) -> list[tuple[str | None, str | None]]:
    """Return (canonical user id, permission) of each grant. Raises MalformedACLError."""
    try:
        found = parse(raw, "AccessControlPolicy").require("AccessControlList").find_all("Grant")
        return [(each.require("Grantee").get("ID"), each.get("Permission")) for each in found]
    except S3Error:
        raise s3_error("MalformedACLError") from None
