"""The S3 API over HTTP: buckets and their configuration."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.support.s3 import ROOT, S3Server, running_s3


@pytest.fixture
async def s3(tmp_path: Path) -> AsyncIterator[S3Server]:
    async with running_s3(tmp_path) as server:
        yield server


async def test_buckets_are_made_listed_and_deleted(s3: S3Server) -> None:
    made = await s3.put("/first")
    assert made.headers["location"] == "/first"
    assert made.headers["x-amz-request-id"]
    assert made.headers["x-amz-id-2"]
    await s3.put("/second")
    listed = await s3.get("/")
    assert listed.texts("Buckets/Bucket/Name") == ["first", "second"]
    assert listed.text("Owner/ID") == ROOT.owner_id
    assert (await s3.request("DELETE", "/first")).status == 204
    assert (await s3.get("/")).texts("Buckets/Bucket/Name") == ["second"]
    gone = await s3.request("DELETE", "/first")
    assert (gone.status, gone.code) == (404, "NoSuchBucket")
    assert gone.text("BucketName") == "first"


async def test_buckets_are_listed_in_pages(s3: S3Server) -> None:
    for name in ("aaa", "bbb-1", "bbb-2", "bbb-3", "ccc"):
        await s3.put(f"/{name}")
    first = await s3.get("/", "max-buckets=2&prefix=bbb")
    assert first.texts("Buckets/Bucket/Name") == ["bbb-1", "bbb-2"]
    assert first.text("Prefix") == "bbb"
    token = first.text("ContinuationToken")
    second = await s3.get("/", f"max-buckets=2&prefix=bbb&continuation-token={token}")
    assert second.texts("Buckets/Bucket/Name") == ["bbb-3"]
    assert second.text("ContinuationToken") is None
    for query in ("max-buckets=0", "max-buckets=10001", "max-buckets=x", "continuation-token=zz"):
        assert (await s3.get("/", query)).code == "InvalidArgument"


async def test_making_a_bucket_twice_succeeds_in_us_east_1(s3: S3Server) -> None:
    await s3.put("/bucket")
    await s3.put("/bucket/key", b"kept")
    assert (await s3.request("PUT", "/bucket")).status == 200
    assert (await s3.get("/bucket/key")).body == b"kept"


async def test_making_a_bucket_twice_conflicts_elsewhere(tmp_path: Path) -> None:
    async with running_s3(tmp_path, region="eu-central-1") as s3:
        body = (
            b"<CreateBucketConfiguration><LocationConstraint>eu-central-1</LocationConstraint>"
            b"</CreateBucketConfiguration>"
        )
        assert (await s3.request("PUT", "/bucket", body=body)).status == 200
        again = await s3.request("PUT", "/bucket", body=body)
        assert (again.status, again.code) == (409, "BucketAlreadyOwnedByYou")
        assert (await s3.get("/bucket", "location")).xml.text == "eu-central-1"
        head = await s3.request("HEAD", "/bucket")
        assert head.headers["x-amz-bucket-region"] == "eu-central-1"


async def test_location_constraint_must_be_the_region(s3: S3Server) -> None:
    def body(region: str) -> bytes:
        return (
            '<CreateBucketConfiguration xmlns="http://s3.amazonaws.com/doc/2006-03-01/">'
            f"<LocationConstraint>{region}</LocationConstraint></CreateBucketConfiguration>"
        ).encode()

    wrong = await s3.request("PUT", "/bucket", body=body("eu-west-1"))
    assert (wrong.status, wrong.code) == (400, "IllegalLocationConstraintException")
    nowhere = await s3.request("PUT", "/bucket", body=body("nowhere"))
    assert (nowhere.status, nowhere.code) == (400, "InvalidLocationConstraint")
    broken = await s3.request("PUT", "/bucket", body=b"<CreateBucketConfiguration>")
    assert broken.code == "MalformedXML"
    assert (await s3.request("HEAD", "/bucket")).status == 404
    assert (await s3.request("PUT", "/bucket", body=body("us-east-1"))).status == 200
    assert (await s3.get("/bucket", "location")).xml.text is None


async def test_a_bucket_can_be_made_with_tags(s3: S3Server) -> None:
    def body(key: str) -> bytes:
        tag = f"<Tag><Key>{key}</Key><Value>v</Value></Tag>"
        return f"<CreateBucketConfiguration><Tags>{tag}</Tags></CreateBucketConfiguration>".encode()

    refused = await s3.request("PUT", "/bucket", body=body("aws:reserved"))
    assert (refused.status, refused.code) == (400, "InvalidTag")
    assert (await s3.request("HEAD", "/bucket")).status == 404
    assert (await s3.request("PUT", "/bucket", body=body("team"))).status == 200
    tags = await s3.get("/bucket", "tagging")
    assert (tags.texts("TagSet/Tag/Key"), tags.texts("TagSet/Tag/Value")) == (["team"], ["v"])


@pytest.mark.parametrize(
    ("name", "value", "code"),
    [
        ("x-amz-acl", "public-read", "InvalidBucketAclWithObjectOwnership"),
        ("x-amz-acl", "nonsense", "InvalidArgument"),
        ("x-amz-grant-read", 'id="somebody"', "InvalidBucketAclWithObjectOwnership"),
        ("x-amz-bucket-namespace", "account-regional", "NotImplemented"),
    ],
)
async def test_no_bucket_is_made_with_what_it_cannot_have(
    s3: S3Server, name: str, value: str, code: str
) -> None:
    refused = await s3.request("PUT", "/bucket", headers={name: value})
    assert (refused.status, refused.code) == (501 if code == "NotImplemented" else 400, code)
    assert (await s3.request("HEAD", "/bucket")).status == 404


async def test_acl_documents_that_are_malformed_are_called_so(s3: S3Server) -> None:
    await s3.put("/bucket")
    grant = b"<Grant><Permission>READ</Permission></Grant>"
    without_grantee = b"<AccessControlList>%b</AccessControlList>" % grant
    for body in (
        b"<AccessControl",
        b"<AccessControlPolicy/>",
        b"<AccessControlPolicy>%b</AccessControlPolicy>" % without_grantee,
    ):
        refused = await s3.request("PUT", "/bucket", "acl", body=body)
        assert (refused.status, refused.code) == (400, "MalformedACLError"), body


@pytest.mark.parametrize("name", ["ab", "Upper", "a_b", "192.168.1.1", "xn--abc"])
async def test_wrong_bucket_names_are_named_so(s3: S3Server, name: str) -> None:
    assert (await s3.request("PUT", f"/{name}")).code == "InvalidBucketName"
    assert (await s3.get(f"/{name}")).code == "InvalidBucketName"
    assert (await s3.get(f"/{name}/key")).code == "InvalidBucketName"


async def test_head_bucket_tells_existence_without_a_document(s3: S3Server) -> None:
    await s3.put("/bucket")
    there = await s3.request("HEAD", "/bucket")
    assert (there.status, there.body) == (200, b"")
    assert there.headers["x-amz-bucket-region"] == "us-east-1"
    assert there.headers["x-amz-access-point-alias"] == "false"
    absent = await s3.request("HEAD", "/absent")
    assert (absent.status, absent.body) == (404, b"")


async def test_a_bucket_with_objects_stays_and_uploads_go_with_it(s3: S3Server) -> None:
    await s3.put("/bucket")
    await s3.put("/bucket/key", b"x")
    upload = (await s3.request("POST", "/bucket/key", "uploads")).text("UploadId")
    refused = await s3.request("DELETE", "/bucket")
    assert (refused.status, refused.code) == (409, "BucketNotEmpty")
    part = await s3.request(
        "PUT", "/bucket/key", f"partNumber=1&uploadId={upload}", body=os.urandom(100_000)
    )
    assert part.status == 200
    await s3.request("DELETE", "/bucket/key")
    assert (await s3.request("DELETE", "/bucket")).status == 204
    await s3.put("/bucket")
    assert (await s3.get("/bucket/key", f"uploadId={upload}")).code == "NoSuchUpload"
    assert (await s3.get("/bucket", "uploads")).texts("Upload") == []
    await s3.engine.collect_garbage(grace_s=0)
    report = await s3.engine.fsck()
    assert report.clean, report


async def test_versioning_is_unset_then_enabled_then_suspended(s3: S3Server) -> None:
    await s3.put("/bucket")
    assert (await s3.get("/bucket", "versioning")).text("Status") is None
    for status in ("Enabled", "Suspended"):
        body = f"<VersioningConfiguration><Status>{status}</Status></VersioningConfiguration>"
        put = await s3.request("PUT", "/bucket", "versioning", body=body.encode())
        assert put.status == 200
        assert (await s3.get("/bucket", "versioning")).text("Status") == status


@pytest.mark.parametrize(
    ("inside", "code"),
    [
        ("<Status>On</Status>", "MalformedXML"),
        ("", "IllegalVersioningConfigurationException"),
        ("<Status>Enabled</Status><MfaDelete>Enabled</MfaDelete>", "NotImplemented"),
    ],
)
async def test_wrong_versioning_documents(s3: S3Server, inside: str, code: str) -> None:
    await s3.put("/bucket")
    body = f"<VersioningConfiguration>{inside}</VersioningConfiguration>".encode()
    assert (await s3.request("PUT", "/bucket", "versioning", body=body)).code == code


async def test_bucket_tags(s3: S3Server) -> None:
    await s3.put("/bucket")
    assert (await s3.get("/bucket", "tagging")).code == "NoSuchTagSet"
    body = b"<Tagging><TagSet><Tag><Key>a</Key><Value>1 &amp; 2</Value></Tag></TagSet></Tagging>"
    refused = await s3.request("PUT", "/bucket", "tagging", body=body)
    assert refused.code == "InvalidTag"
    body = body.replace(b" &amp; ", b"+")
    assert (await s3.request("PUT", "/bucket", "tagging", body=body)).status == 204
    assert (await s3.get("/bucket", "tagging")).text("TagSet/Tag/Value") == "1+2"
    assert (await s3.request("DELETE", "/bucket", "tagging")).status == 204
    assert (await s3.get("/bucket", "tagging")).code == "NoSuchTagSet"


@pytest.mark.parametrize(
    ("query", "code"),
    [
        ("policy", "NoSuchBucketPolicy"),
        ("policyStatus", "NoSuchBucketPolicy"),
        ("lifecycle", "NoSuchLifecycleConfiguration"),
        ("encryption", "ServerSideEncryptionConfigurationNotFoundError"),
        ("object-lock", "ObjectLockConfigurationNotFoundError"),
        ("website", "NoSuchWebsiteConfiguration"),
        ("replication", "ReplicationConfigurationNotFoundError"),
        ("publicAccessBlock", "NoSuchPublicAccessBlockConfiguration"),
        ("cors", "NoSuchCORSConfiguration"),
        ("tagging", "NoSuchTagSet"),
    ],
)
async def test_configurations_that_are_not_there(s3: S3Server, query: str, code: str) -> None:
    await s3.put("/bucket")
    answer = await s3.get("/bucket", query)
    assert (answer.status, answer.code) == (404, code)
    assert (await s3.get("/absent", query)).code == "NoSuchBucket"


@pytest.mark.parametrize(
    ("query", "root"),
    [
        ("logging", "BucketLoggingStatus"),
        ("notification", "NotificationConfiguration"),
        ("accelerate", "AccelerateConfiguration"),
        ("requestPayment", "RequestPaymentConfiguration"),
        ("ownershipControls", "OwnershipControls"),
        ("acl", "AccessControlPolicy"),
        ("location", "LocationConstraint"),
    ],
)
async def test_configurations_with_defaults(s3: S3Server, query: str, root: str) -> None:
    await s3.put("/bucket")
    answer = await s3.get("/bucket", query)
    assert (answer.status, answer.xml.tag) == (200, root)
    assert (await s3.request("PUT", "/bucket", "encryption", body=b"<x/>")).code == (
        "NotImplemented"
    )


async def test_acls_are_disabled(s3: S3Server) -> None:
    await s3.put("/bucket")
    await s3.put("/bucket/key", b"x")
    for path in ("/bucket", "/bucket/key"):
        shown = await s3.get(path, "acl")
        assert shown.text("AccessControlList/Grant/Permission") == "FULL_CONTROL"
        same = await s3.request("PUT", path, "acl", headers={"x-amz-acl": "private"})
        assert same.status == 200
        assert (await s3.request("PUT", path, "acl", body=shown.body)).status == 200
        public = await s3.request("PUT", path, "acl", headers={"x-amz-acl": "public-read"})
        assert (public.status, public.code) == (400, "AccessControlListNotSupported")
    made = await s3.request("PUT", "/other", headers={"x-amz-acl": "public-read"})
    assert made.code == "InvalidBucketAclWithObjectOwnership"


async def test_expected_bucket_owner_must_own_the_bucket(s3: S3Server) -> None:
    await s3.put("/bucket")
    await s3.put("/bucket/key", b"x")
    right = {"x-amz-expected-bucket-owner": ROOT.owner_id}
    wrong = {"x-amz-expected-bucket-owner": "111122223333"}
    assert (await s3.request("GET", "/bucket/key", headers=right)).status == 200
    answer = await s3.request("GET", "/bucket/key", headers=wrong)
    assert (answer.status, answer.code) == (403, "AccessDenied")
    copied = await s3.request(
        "PUT",
        "/bucket/copy",
        headers={
            "x-amz-copy-source": "/bucket/key",
            "x-amz-source-expected-bucket-owner": "111122223333",
        },
    )
    assert copied.code == "AccessDenied"


CORS = (
    b"<CORSConfiguration><CORSRule><AllowedOrigin>https://one.test</AllowedOrigin>"
    b"<AllowedMethod>GET</AllowedMethod><AllowedMethod>PUT</AllowedMethod>"
    b"<AllowedHeader>*</AllowedHeader><ExposeHeader>ETag</ExposeHeader>"
    b"<MaxAgeSeconds>30</MaxAgeSeconds></CORSRule></CORSConfiguration>"
)


async def test_cors_preflight_and_actual_requests(s3: S3Server) -> None:
    await s3.put("/bucket")
    preflight = {
        "origin": "https://one.test",
        "access-control-request-method": "PUT",
        "access-control-request-headers": "X-Amz-Date, content-type",
    }
    closed = await s3.request("OPTIONS", "/bucket/key", headers=preflight, signed=False)
    assert (closed.status, closed.code) == (403, "AccessForbidden")
    assert (await s3.request("PUT", "/bucket", "cors", body=CORS)).status == 200
    opened = await s3.request("OPTIONS", "/bucket/key", headers=preflight, signed=False)
    assert opened.status == 200
    assert opened.headers["access-control-allow-origin"] == "https://one.test"
    assert opened.headers["access-control-allow-methods"] == "GET, PUT"
    assert opened.headers["access-control-allow-headers"] == "x-amz-date, content-type"
    assert opened.headers["access-control-max-age"] == "30"
    other = await s3.request(
        "OPTIONS", "/bucket/key", headers=preflight | {"origin": "https://two"}, signed=False
    )
    assert other.code == "AccessForbidden"
    unclear = await s3.request("OPTIONS", "/bucket/key", signed=False)
    assert (unclear.status, unclear.code) == (400, "BadRequest")
    actual = await s3.request("GET", "/bucket/key", headers={"origin": "https://one.test"})
    assert (actual.status, actual.code) == (404, "NoSuchKey")
    assert actual.headers["access-control-allow-origin"] == "https://one.test"
    assert actual.headers["access-control-expose-headers"] == "ETag"
    foreign = await s3.request("GET", "/bucket/key", headers={"origin": "https://two.test"})
    assert "access-control-allow-origin" not in foreign.headers
    shown = await s3.get("/bucket", "cors")
    assert shown.texts("CORSRule/AllowedMethod") == ["GET", "PUT"]
    assert (await s3.request("DELETE", "/bucket", "cors")).status == 204
    assert (await s3.get("/bucket", "cors")).code == "NoSuchCORSConfiguration"


@pytest.mark.parametrize("query", ["versioning", "tagging", "cors"])
async def test_configurations_need_a_document(s3: S3Server, query: str) -> None:
    await s3.put("/bucket")
    refused = await s3.request("PUT", "/bucket", query)
    assert (refused.status, refused.code) == (400, "MissingRequestBodyError")
    other = await s3.request("PUT", "/bucket", query, body=b"<Other/>")
    assert (other.status, other.code) == (400, "MalformedXML")
