"""boto3 with today's defaults: buckets, their documents, versions and listings."""

from __future__ import annotations

import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from botocore.exceptions import ClientError

from tests.support.clients import error_code
from tests.support.server import Server

KEY_COUNT = 1230


@pytest.fixture(scope="module")
def full_bucket(s3: Any, make_bucket: Any) -> str:
    """A bucket with KEY_COUNT keys ``folder-NN/NNNN``, thirty to a folder."""
    name: str = make_bucket()

    def put(number: int) -> None:
        s3.put_object(Bucket=name, Key=key_of(number), Body=b"%d" % number)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(put, range(KEY_COUNT)))
    return name


def key_of(number: int) -> str:
    return f"folder-{number // 30:02}/{number:04}"


def test_buckets_are_made_found_listed_and_removed(s3: Any) -> None:
    s3.create_bucket(Bucket="life.of-a-bucket")
    # S3 answers a repeated creation by the owner with 200 in us-east-1.
    s3.create_bucket(Bucket="life.of-a-bucket")
    head = s3.head_bucket(Bucket="life.of-a-bucket")
    assert head["BucketRegion"] == "us-east-1"
    assert s3.get_bucket_location(Bucket="life.of-a-bucket")["LocationConstraint"] is None
    listed = s3.list_buckets()
    assert "life.of-a-bucket" in [entry["Name"] for entry in listed["Buckets"]]
    assert listed["Owner"]["ID"]
    s3.put_object(Bucket="life.of-a-bucket", Key="k", Body=b"x")
    with pytest.raises(ClientError) as raised:
        s3.delete_bucket(Bucket="life.of-a-bucket")
    assert error_code(raised) == (409, "BucketNotEmpty")
    s3.delete_object(Bucket="life.of-a-bucket", Key="k")
    s3.delete_bucket(Bucket="life.of-a-bucket")
    with pytest.raises(ClientError) as raised:
        s3.head_bucket(Bucket="life.of-a-bucket")
    assert error_code(raised) == (404, "404")


def test_buckets_are_listed_in_pages(s3: Any) -> None:
    names = [f"paged-{number:02}" for number in range(25)]
    for name in names:
        s3.create_bucket(Bucket=name)
    pages = list(
        s3.get_paginator("list_buckets").paginate(
            Prefix="paged-", PaginationConfig={"PageSize": 10}
        )
    )
    assert [len(page["Buckets"]) for page in pages] == [10, 10, 5]
    assert [entry["Name"] for page in pages for entry in page["Buckets"]] == names


def test_names_that_cannot_be_are_refused(s3: Any) -> None:
    for name in ("Upper", "192.168.5.4", "a..b", "xn--a"):
        with pytest.raises(ClientError) as raised:
            s3.create_bucket(Bucket=name)
        assert error_code(raised) == (400, "InvalidBucketName"), name


def test_documents_of_a_bucket_are_kept_and_removed(s3: Any, bucket: str) -> None:
    tags = [{"Key": "team", "Value": "data"}]
    with pytest.raises(ClientError) as raised:
        s3.get_bucket_tagging(Bucket=bucket)
    assert error_code(raised) == (404, "NoSuchTagSet")
    s3.put_bucket_tagging(Bucket=bucket, Tagging={"TagSet": tags})
    assert s3.get_bucket_tagging(Bucket=bucket)["TagSet"] == tags
    s3.delete_bucket_tagging(Bucket=bucket)
    rules = [
        {
            "AllowedMethods": ["GET", "PUT"],
            "AllowedOrigins": ["https://*.example.org"],
            "AllowedHeaders": ["*"],
            "ExposeHeaders": ["ETag"],
            "MaxAgeSeconds": 600,
        }
    ]
    with pytest.raises(ClientError) as raised:
        s3.get_bucket_cors(Bucket=bucket)
    assert error_code(raised) == (404, "NoSuchCORSConfiguration")
    s3.put_bucket_cors(Bucket=bucket, CORSConfiguration={"CORSRules": rules})
    assert s3.get_bucket_cors(Bucket=bucket)["CORSRules"] == rules
    s3.delete_bucket_cors(Bucket=bucket)
    with pytest.raises(ClientError) as raised:
        s3.get_bucket_cors(Bucket=bucket)
    assert error_code(raised) == (404, "NoSuchCORSConfiguration")


def test_a_browser_may_do_what_the_cors_rules_say(server: Server, s3: Any, bucket: str) -> None:
    rule = {"AllowedMethods": ["PUT"], "AllowedOrigins": ["https://a.example"]}
    rule |= {"AllowedHeaders": ["content-*"]}
    s3.put_bucket_cors(Bucket=bucket, CORSConfiguration={"CORSRules": [rule]})
    asked = {
        "Origin": "https://a.example",
        "Access-Control-Request-Method": "PUT",
        "Access-Control-Request-Headers": "content-type",
    }

    def preflight(**changed: str) -> Any:
        headers = {**asked, **{name.replace("_", "-"): value for name, value in changed.items()}}
        request = urllib.request.Request(
            f"{server.url}/{bucket}/k", method="OPTIONS", headers=headers
        )
        with urllib.request.urlopen(request, timeout=120) as response:
            return response.headers

    assert preflight()["Access-Control-Allow-Origin"] == "https://a.example"
    for changed in ({"Origin": "https://b.example"}, {"Access_Control_Request_Method": "GET"}):
        with pytest.raises(urllib.error.HTTPError) as raised:
            preflight(**changed)
        assert raised.value.code == 403
        raised.value.close()


def test_versions_are_kept_listed_and_removed(s3: Any, bucket: str) -> None:
    assert "Status" not in s3.get_bucket_versioning(Bucket=bucket)
    s3.put_object(Bucket=bucket, Key="k", Body=b"before")
    s3.put_bucket_versioning(Bucket=bucket, VersioningConfiguration={"Status": "Enabled"})
    assert s3.get_bucket_versioning(Bucket=bucket)["Status"] == "Enabled"
    ids = [s3.put_object(Bucket=bucket, Key="k", Body=body)["VersionId"] for body in (b"1", b"22")]
    marker = s3.delete_object(Bucket=bucket, Key="k")
    assert marker["DeleteMarker"] is True
    with pytest.raises(ClientError) as raised:
        s3.get_object(Bucket=bucket, Key="k")
    assert error_code(raised) == (404, "NoSuchKey")
    listed = s3.list_object_versions(Bucket=bucket)
    assert [v["VersionId"] for v in listed["Versions"]] == [ids[1], ids[0], "null"]
    assert [v["IsLatest"] for v in listed["Versions"]] == [False] * 3
    assert listed["DeleteMarkers"][0]["VersionId"] == marker["VersionId"]
    for version, body in zip([*ids, "null"], [b"1", b"22", b"before"], strict=True):
        got = s3.get_object(Bucket=bucket, Key="k", VersionId=version)
        assert (got["Body"].read(), got["VersionId"]) == (body, version)
    with pytest.raises(ClientError) as raised:
        s3.get_object(Bucket=bucket, Key="k", VersionId=marker["VersionId"])
    assert error_code(raised) == (405, "MethodNotAllowed")
    s3.delete_object(Bucket=bucket, Key="k", VersionId=marker["VersionId"])
    assert s3.get_object(Bucket=bucket, Key="k")["Body"].read() == b"22"
    old = {"Bucket": bucket, "Key": "k", "VersionId": ids[0]}
    restored = s3.copy_object(Bucket=bucket, Key="k", CopySource=old)
    assert restored["CopySourceVersionId"] == ids[0]
    assert s3.get_object(Bucket=bucket, Key="k")["Body"].read() == b"1"


def test_suspended_versioning_writes_the_null_version(s3: Any, bucket: str) -> None:
    s3.put_bucket_versioning(Bucket=bucket, VersioningConfiguration={"Status": "Enabled"})
    kept = s3.put_object(Bucket=bucket, Key="k", Body=b"kept")["VersionId"]
    s3.put_bucket_versioning(Bucket=bucket, VersioningConfiguration={"Status": "Suspended"})
    s3.put_object(Bucket=bucket, Key="k", Body=b"null 1")
    s3.put_object(Bucket=bucket, Key="k", Body=b"null 2")
    listed = s3.list_object_versions(Bucket=bucket)["Versions"]
    assert [v["VersionId"] for v in listed] == ["null", kept]
    assert s3.get_object(Bucket=bucket, Key="k", VersionId="null")["Body"].read() == b"null 2"
    done = s3.delete_objects(
        Bucket=bucket,
        Delete={"Objects": [{"Key": "k", "VersionId": v["VersionId"]} for v in listed]},
    )
    assert len(done["Deleted"]) == 2
    s3.delete_bucket(Bucket=bucket)


@pytest.mark.parametrize("operation", ["list_objects", "list_objects_v2", "list_object_versions"])
@pytest.mark.parametrize("page", [100, 1000])
def test_pages_of_a_listing_make_the_whole(
    s3: Any, full_bucket: str, operation: str, page: int
) -> None:
    paginator = s3.get_paginator(operation)
    pages = list(paginator.paginate(Bucket=full_bucket, PaginationConfig={"PageSize": page}))
    name = "Versions" if operation == "list_object_versions" else "Contents"
    keys = [entry["Key"] for each in pages for entry in each[name]]
    assert keys == [key_of(number) for number in range(KEY_COUNT)]
    assert len(pages) == -(-KEY_COUNT // page)


@pytest.mark.parametrize("operation", ["list_objects", "list_objects_v2", "list_object_versions"])
def test_a_delimiter_shows_folders(s3: Any, full_bucket: str, operation: str) -> None:
    pages = list(
        s3.get_paginator(operation).paginate(
            Bucket=full_bucket, Delimiter="/", PaginationConfig={"PageSize": 7}
        )
    )
    folders = [entry["Prefix"] for page in pages for entry in page["CommonPrefixes"]]
    assert folders == [f"folder-{number:02}/" for number in range(KEY_COUNT // 30)]
    one = list(
        s3.get_paginator(operation).paginate(
            Bucket=full_bucket, Delimiter="/", Prefix="folder-03/", PaginationConfig={"PageSize": 8}
        )
    )
    name = "Versions" if operation == "list_object_versions" else "Contents"
    assert [entry["Key"] for page in one for entry in page.get(name, [])] == [
        key_of(number) for number in range(90, 120)
    ]


def test_a_listing_begins_behind_what_is_asked(s3: Any, full_bucket: str) -> None:
    after = s3.list_objects_v2(Bucket=full_bucket, StartAfter=key_of(1200))
    assert [entry["Key"] for entry in after["Contents"]] == [key_of(n) for n in range(1201, 1230)]
    marker = s3.list_objects(Bucket=full_bucket, Marker="folder-40/1228x", MaxKeys=5)
    assert [entry["Key"] for entry in marker["Contents"]] == [key_of(1229)]
    assert s3.list_objects_v2(Bucket=full_bucket, MaxKeys=0)["KeyCount"] == 0
    owner = s3.list_objects_v2(Bucket=full_bucket, MaxKeys=1, FetchOwner=True)["Contents"][0]
    assert owner["Owner"]["ID"]


def test_what_is_not_there_yet_says_so(s3: Any, bucket: str) -> None:
    rule = {"ID": "x", "Status": "Enabled", "Filter": {}, "Expiration": {"Days": 1}}
    with pytest.raises(ClientError) as raised:
        s3.put_bucket_lifecycle_configuration(
            Bucket=bucket, LifecycleConfiguration={"Rules": [rule]}
        )
    assert error_code(raised) == (501, "NotImplemented")
    with pytest.raises(ClientError) as raised:
        s3.get_bucket_lifecycle_configuration(Bucket=bucket)
    assert error_code(raised) == (404, "NoSuchLifecycleConfiguration")
