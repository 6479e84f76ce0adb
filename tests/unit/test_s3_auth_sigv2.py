"""Signature Version 2 in presigned URLs and forms: AWS's examples, and agreement with botocore.

Source: https://docs.aws.amazon.com/AmazonS3/latest/API/RESTAuthentication.html
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from urllib.parse import urlsplit

import pytest
from botocore.auth import HmacV1PostAuth, HmacV1QueryAuth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials
from hypothesis import assume, given
from hypothesis import strategies as st

from engine.http.message import HeaderList, Request
from s3 import routing
from s3.auth import sigv2
from s3.auth.canonical import collect_headers, encode_component
from s3.auth.credentials import Credential
from s3.auth.post_policy import authenticate_form
from s3.auth.sigv2 import with_query_headers
from s3.auth.sigv4 import Authenticator, Identity, PayloadMode
from s3.errors import S3Error
from tests.support.s3_signing import EXAMPLE, authenticator, request_of

BOTO = Credentials(EXAMPLE.access_key, EXAMPLE.secret_key)
PUBLISHED_S = 1175139620
PUBLISHED = request_of(
    "GET",
    b"/photos/puppy.jpg",
    b"AWSAccessKeyId=AKIAIOSFODNN7EXAMPLE&Signature=NpgCjnDzrM%2BWFzoENXmpNDUsSn8%3D"
    b"&Expires=1175139620",
    [(b"host", b"johnsmith.s3.amazonaws.com")],
)
FAR_FUTURE_S = 10**10
ALL_HEADERS = ["content-md5", "content-type", "x-amz-acl", "x-amz-meta-a", "x-amz-meta-b", "range"]

key_text = st.text(
    st.characters(exclude_categories=["Cs"]) | st.sampled_from(" +%&=?#/~!'()*.\\\""), max_size=20
)
header_text = st.text(st.characters(min_codepoint=0x20, max_codepoint=0x7E), max_size=20)


def accepted(
    request: Request, *, host_bucket: str = "", checker: Authenticator | None = None
) -> Identity:
    checker = checker or authenticator()
    return checker.authenticate(with_query_headers(request), host_bucket=host_bucket)


def refusal(
    request: Request, *, host_bucket: str = "", checker: Authenticator | None = None
) -> S3Error:
    with pytest.raises(S3Error) as caught:
        accepted(request, host_bucket=host_bucket, checker=checker)
    return caught.value


def encoded(text: str, *, safe: str = "") -> str:
    return "".join(c if c in safe else encode_component(c.encode()).decode() for c in text)


def presigned(
    method: str = "GET",
    path: str = "/b/k",
    query: str = "",
    headers: Mapping[str, str] | None = None,
    *,
    host_bucket: str = "",
    expires: int = FAR_FUTURE_S,
    send_headers: bool = True,
) -> Request:
    """Return the request of a client that got its URL from botocore."""
    url = "http://localhost:9000" + path + (f"?{query}" if query else "")
    signed = AWSRequest(
        method=method,
        url=url,
        headers=dict(headers or {}),
        auth_path=f"/{host_bucket}{path}" if host_bucket else None,
    )
    HmacV1QueryAuth(BOTO, expires=expires).add_auth(signed)
    sent: HeaderList = [(b"host", b"localhost:9000")]
    if send_headers:
        sent += [(name.lower().encode(), value.encode()) for name, value in (headers or {}).items()]
    split = urlsplit(signed.url)
    return request_of(method, split.path.encode(), split.query.encode(), sent)


def test_the_published_url_is_accepted_until_it_expires() -> None:
    before = authenticator(PUBLISHED_S * 1000 - 1)
    identity = accepted(PUBLISHED, host_bucket="johnsmith", checker=before)
    assert (identity.access_key, identity.owner_id) == (EXAMPLE.access_key, EXAMPLE.owner_id)
    assert identity.presigned
    assert (identity.payload, identity.sha256) == (PayloadMode.UNSIGNED, None)
    by_path = replace(PUBLISHED, path=b"/johnsmith/photos/puppy.jpg")
    accepted(by_path, checker=before)
    expired = refusal(PUBLISHED, host_bucket="johnsmith", checker=authenticator(PUBLISHED_S * 1000))
    assert (expired.code, expired.message) == ("AccessDenied", "Request has expired")
    assert expired.extra == {
        "Expires": "2007-03-29T03:40:20Z",
        "ServerTime": "2007-03-29T03:40:20Z",
    }


@pytest.mark.parametrize(
    ("method", "headers", "date", "resource", "signature"),
    [
        (
            "GET",
            [],
            b"Tue, 27 Mar 2007 19:42:41 +0000",
            (b"/", b"prefix=photos&max-keys=50&marker=puppy", "johnsmith"),
            b"htDYFYduRNen8P9ZfE/s9SuKy0U=",
        ),
        (
            "GET",
            [],
            b"Tue, 27 Mar 2007 19:44:46 +0000",
            (b"/", b"acl", "johnsmith"),
            b"c2WLPFtWHVgbEmeEG93a4cG37dM=",
        ),
        (
            "PUT",
            [
                (b"x-amz-acl", b"public-read"),
                (b"content-type", b"application/x-download"),
                (b"content-md5", b"4gJE4saaMU4BqNR0kLY+lw=="),
                (b"x-amz-meta-reviewedby", b"joe@johnsmith.net"),
                (b"x-amz-meta-reviewedby", b"jane@johnsmith.net"),
                (b"x-amz-meta-filechecksum", b"0x02661779"),
                (b"x-amz-meta-checksumalgorithm", b"crc32"),
                (b"content-encoding", b"gzip"),
            ],
            b"Tue, 27 Mar 2007 21:06:08 +0000",
            (b"/db-backup.dat.gz", b"", "static.johnsmith.net"),
            b"ilyl83RwaSoYIEdixDQcA4OnAnc=",
        ),
        (
            "GET",
            [],
            b"Wed, 28 Mar 2007 01:29:59 +0000",
            (b"/", b"", ""),
            b"qGdzdERIC03wnaRNKh6OqZehG9s=",
        ),
        (
            "GET",
            [],
            b"Wed, 28 Mar 2007 01:49:49 +0000",
            (b"/dictionary/fran%C3%A7ais/pr%c3%a9f%c3%a8re", b"", ""),
            b"DNEZGsoieTZ92F3bUfSPQcbGmlM=",
        ),
    ],
)
def test_published_examples_have_their_signatures(
    method: str,
    headers: HeaderList,
    date: bytes,
    resource: tuple[bytes, bytes, str],
    signature: bytes,
) -> None:
    path, query, host_bucket = resource
    text = sigv2.string_to_sign(
        method,
        collect_headers(headers),
        date,
        sigv2.canonical_resource(path, query, host_bucket=host_bucket),
    )
    assert sigv2.sign(EXAMPLE.secret_key, text) == signature


@given(
    method=st.sampled_from(["GET", "PUT", "HEAD", "DELETE", "POST"]),
    key=key_text,
    query=st.lists(
        st.tuples(
            st.sampled_from(
                [
                    "versionId",
                    "uploadId",
                    "partNumber",
                    "response-content-type",
                    "response-content-disposition",
                    "tagging",
                    "prefix",
                    "x-id",
                ]
            ),
            st.none() | key_text,
        ),
        max_size=4,
    ),
    headers=st.dictionaries(st.sampled_from(ALL_HEADERS), header_text),
    host_bucket=st.sampled_from(["", "my.bucket"]),
    send_headers=st.booleans(),
)
def test_what_botocore_presigns_is_accepted(
    method: str,
    key: str,
    query: list[tuple[str, str | None]],
    headers: dict[str, str],
    host_bucket: str,
    send_headers: bool,
) -> None:
    path = ("/" if host_bucket else "/bucket/") + encoded(key, safe="/~")
    text = "&".join(n if v is None else f"{n}={encoded(v)}" for n, v in query)
    request = presigned(
        method, path, text, headers, host_bucket=host_bucket, send_headers=send_headers
    )
    assert accepted(request, host_bucket=host_bucket).access_key == EXAMPLE.access_key


def test_a_bucket_in_the_path_may_be_signed_with_a_slash_behind_it() -> None:
    # boto3 signs /bucket/ and sends /bucket.
    request = presigned(path="/bucket/", query="list-type=2")
    accepted(replace(request, path=b"/bucket"))
    accepted(presigned(path="/bucket", query="list-type=2"))
    object_url = presigned(path="/bucket/key/")
    assert refusal(replace(object_url, path=b"/bucket/key")).code == "SignatureDoesNotMatch"


SIGNED = presigned(
    "PUT",
    "/b/key",
    "partNumber=1&uploadId=abc",
    {"x-amz-meta-a": "value", "content-type": "a/b", "content-md5": "1B2M2Y8AsgTpgAmY7PhCfg=="},
)


@pytest.mark.parametrize(
    "change",
    [
        {"method": "GET"},
        {"path": b"/b/kez"},
        {"path": b"/b/k%65y"},
        {"path": b"/b/key/"},
        {"path": b"//b/key"},
        {"query": SIGNED.query.replace(b"partNumber=1", b"partNumber=2")},
        {"query": SIGNED.query.replace(b"uploadId=abc", b"uploadId=abd")},
        {"query": SIGNED.query.replace(b"&uploadId=abc", b"")},
        {"query": SIGNED.query + b"&versionId=1"},
        {"query": SIGNED.query + b"&tagging"},
        {"query": SIGNED.query + b"&retention"},
        {"query": SIGNED.query + b"&uploadId=abc"},
        {"query": SIGNED.query + b"&x-amz-acl=private"},
        {"query": SIGNED.query.replace(b"Expires=", b"Expires=1")},
        {"headers": [*SIGNED.headers, (b"x-amz-copy-source", b"/b/other")]},
        {"headers": [*SIGNED.headers, (b"x-amz-meta-a", b"more")]},
    ],
)
def test_a_changed_request_is_refused(change: dict[str, object]) -> None:
    accepted(SIGNED)
    changed = replace(SIGNED, **change)  # type: ignore[arg-type]
    assert refusal(changed).code == "SignatureDoesNotMatch"
    assert refusal(SIGNED, host_bucket="other").code == "SignatureDoesNotMatch"


@pytest.mark.parametrize("name", [b"x-amz-meta-a", b"content-type", b"content-md5"])
def test_a_changed_header_is_refused_though_the_url_carries_the_right_one(name: bytes) -> None:
    headers = [(n, b"changed" if n == name else v) for n, v in SIGNED.headers]
    assert refusal(replace(SIGNED, headers=headers)).code == "SignatureDoesNotMatch"


@given(data=st.data())
def test_no_other_signature_is_accepted(data: st.DataObject) -> None:
    found = dict(piece.split(b"=", 1) for piece in PUBLISHED.query.split(b"&"))
    right = b"NpgCjnDzrM+WFzoENXmpNDUsSn8="
    position = data.draw(st.integers(0, len(right) - 1))
    wrong = right[:position] + data.draw(st.binary(max_size=2)) + right[position + 1 :]
    assume(wrong not in (right, b""))
    found[b"Signature"] = encode_component(wrong)
    query = b"&".join(name + b"=" + value for name, value in found.items())
    error = refusal(
        replace(PUBLISHED, query=query), host_bucket="johnsmith", checker=authenticator(0)
    )
    assert error.code == "SignatureDoesNotMatch"


def test_a_mismatch_shows_what_was_signed() -> None:
    error = refusal(replace(PUBLISHED, path=b"/x"), host_bucket="b", checker=authenticator(0))
    assert error.extra["StringToSign"] == "GET\n\n\n1175139620\n/b/x"
    assert error.extra["AWSAccessKeyId"] == EXAMPLE.access_key
    assert error.extra["SignatureProvided"] == "NpgCjnDzrM+WFzoENXmpNDUsSn8="


@pytest.mark.parametrize(
    ("old", "new", "code", "message"),
    [
        (b"&Expires=1175139620", b"", "AccessDenied", "requires the Signature, Expires and"),
        (b"Signature=", b"x=", "AccessDenied", "requires the Signature, Expires and"),
        (b"AWSAccessKeyId=", b"x=", "AccessDenied", "requires the Signature, Expires and"),
        (b"Signature=", b"Signature=a&Signature=", "AccessDenied", "requires the Signature,"),
        (b"1175139620", b"soon", "AccessDenied", "Invalid date (should be seconds since epoch)"),
        (b"1175139620", b"-1", "AccessDenied", "Invalid date (should be seconds since epoch)"),
        (b"1175139620", b"9" * 5000, "AccessDenied", "Invalid date (should be seconds since"),
        (b"1175139620", b"0", "AccessDenied", "Request has expired"),
        (b"AKIA", b"AKIB", "InvalidAccessKeyId", ""),
        (b"AWSAccessKeyId=", b"a=%zz&AWSAccessKeyId=", "InvalidURI", ""),
        (b"&Expires", b"&x-amz-meta-a=1%0Ax-amz-acl:private&Expires", "InvalidArgument", ""),
        (b"&Expires", b"&x-amz-meta-a%3A1=2&Expires", "InvalidArgument", ""),
        (b"&Expires", b"&x-amz-security-token=t&Expires", "SignatureDoesNotMatch", ""),
    ],
)
def test_a_malformed_url_is_answered_as_s3_does(
    old: bytes, new: bytes, code: str, message: str
) -> None:
    assert old in PUBLISHED.query
    error = refusal(
        replace(PUBLISHED, query=PUBLISHED.query.replace(old, new)),
        host_bucket="johnsmith",
        checker=authenticator(0),
    )
    assert error.code == code
    assert message in error.message


@given(query=st.binary(max_size=60), name=st.sampled_from([b"Signature", b"AWSAccessKeyId"]))
def test_random_queries_are_refused(query: bytes, name: bytes) -> None:
    refusal(replace(PUBLISHED, query=name + b"=" + query + b"&AWSAccessKeyId"))


def test_a_session_token_and_aws_chunked_are_refused() -> None:
    assert refusal(presigned(headers={"x-amz-security-token": "t"})).code == "InvalidToken"
    for mode in (
        "STREAMING-AWS4-HMAC-SHA256-PAYLOAD",
        "STREAMING-AWS4-HMAC-SHA256-PAYLOAD-TRAILER",
        "STREAMING-UNSIGNED-PAYLOAD-TRAILER",
    ):
        request = presigned("PUT", headers={"x-amz-content-sha256": mode})
        assert refusal(request).code == "InvalidRequest"


def test_a_right_signature_in_the_header_is_refused() -> None:
    date = b"Tue, 27 Mar 2007 19:36:42 +0000"
    authorization = b"AWS AKIAIOSFODNN7EXAMPLE:bWq2s1WEIj+Ydj0vQ697zp+IXMU="
    request = request_of(
        "GET",
        b"/photos/puppy.jpg",
        b"",
        [(b"host", b"h"), (b"date", date), (b"authorization", authorization)],
    )
    error = refusal(request, host_bucket="johnsmith", checker=authenticator(PUBLISHED_S * 1000))
    assert error.code == "InvalidRequest"
    assert error.message.endswith("Please use AWS4-HMAC-SHA256.")
    both = replace(SIGNED, headers=[*SIGNED.headers, (b"authorization", authorization)])
    assert refusal(both).code == "InvalidArgument"


def test_headers_in_the_query_count_only_in_urls_of_this_version() -> None:
    for query in (b"x-amz-meta-a=1", b"x-amz-meta-a=AWSAccessKeyId", b"content-type=a%2Fb"):
        request = request_of("PUT", b"/b/k", query, [(b"host", b"h")])
        assert with_query_headers(request).headers == request.headers
    version_4 = replace(SIGNED, query=SIGNED.query + b"&X-Amz-Algorithm=x", headers=[])
    assert with_query_headers(version_4).headers == []
    added = with_query_headers(replace(SIGNED, headers=[(b"content-type", b"c/d")])).headers
    assert sorted(added) == [
        (b"content-md5", b"1B2M2Y8AsgTpgAmY7PhCfg=="),
        (b"content-type", b"c/d"),
        (b"x-amz-meta-a", b"value"),
    ]


def test_whatever_selects_an_operation_is_signed() -> None:
    # Else a URL for an object could be made into one for another operation on it.
    names = {name.encode() for level in routing.Level for name in routing._SUBRESOURCES[level]}
    assert {b"tagging", b"attributes", b"uploadId"} <= names
    assert names <= sigv2.SIGNED_PARAMETERS


# AWS's example of a form has another secret key than its newer examples.
FORM_EXAMPLE = Credential(
    EXAMPLE.access_key, "uV3F3YluFJax1cknvbcGwgjvx4QpvB+leU8dUj2o", "owner", "root"
)
PUBLISHED_POLICY = (
    "eyAiZXhwaXJhdGlvbiI6ICIyMDA3LTEyLTAxVDEyOjAwOjAwLjAwMFoiLAogICJjb25kaXRpb25zIjogWwogICAgeyJi"
    "dWNrZXQiOiAiam9obnNtaXRoIn0sCiAgICBbInN0YXJ0cy13aXRoIiwgIiRrZXkiLCAidXNlci9lcmljLyJdLAogICAg"
    "eyJhY2wiOiAicHVibGljLXJlYWQifSwKICAgIHsic3VjY2Vzc19hY3Rpb25fcmVkaXJlY3QiOiAiaHR0cDovL2pvaG5z"
    "bWl0aC5zMy5hbWF6b25hd3MuY29tL3N1Y2Nlc3NmdWxfdXBsb2FkLmh0bWwifSwKICAgIFsic3RhcnRzLXdpdGgiLCAi"
    "JENvbnRlbnQtVHlwZSIsICJpbWFnZS8iXSwKICAgIHsieC1hbXotbWV0YS11dWlkIjogIjE0MzY1MTIzNjUxMjc0In0s"
    "CiAgICBbInN0YXJ0cy13aXRoIiwgIiR4LWFtei1tZXRhLXRhZyIsICIiXQogIF0KfQo="
)


def test_the_published_form_is_accepted() -> None:
    # https://docs.aws.amazon.com/AmazonS3/latest/API/HTTPPOSTExamples.html
    fields = {
        "key": "user/eric/${filename}",
        "acl": "public-read",
        "success_action_redirect": "http://johnsmith.s3.amazonaws.com/successful_upload.html",
        "content-type": "image/jpeg",
        "x-amz-meta-uuid": "14365123651274",
        "x-amz-meta-tag": "",
        "awsaccesskeyid": "AKIAIOSFODNN7EXAMPLE",
        "policy": PUBLISHED_POLICY,
        "signature": "0RavWzkygo6QX9caELEqKi9kDbU=",
    }
    before = authenticator(1196510400_000 - 1, credential=FORM_EXAMPLE)
    assert authenticate_form(before, fields, bucket="johnsmith")[0] == FORM_EXAMPLE
    for changed in (
        {"policy": PUBLISHED_POLICY.replace("F", "G", 1)},
        {"signature": "1RavWzkygo6QX9caELEqKi9kDbU="},
        {"signature": "é"},
    ):
        with pytest.raises(S3Error) as caught:
            authenticate_form(before, {**fields, **changed}, bucket="johnsmith")
        assert caught.value.code == "SignatureDoesNotMatch"
    with pytest.raises(S3Error) as caught:
        authenticate_form(
            authenticator(1196510400_000, credential=FORM_EXAMPLE), fields, bucket="johnsmith"
        )
    assert caught.value.message == "Invalid according to Policy: Policy expired."


def form(fields: Mapping[str, str], conditions: list[object]) -> dict[str, str]:
    """Return the fields as botocore signs them, by lower-case name."""
    request = AWSRequest()
    request.context["s3-presign-post-fields"] = dict(fields)
    request.context["s3-presign-post-policy"] = {
        "expiration": "2013-05-25T00:00:00Z",
        "conditions": conditions,
    }
    HmacV1PostAuth(BOTO).add_auth(request)
    return {name.lower(): v for name, v in request.context["s3-presign-post-fields"].items()}


def form_refusal(fields: Mapping[str, str]) -> S3Error:
    with pytest.raises(S3Error) as caught:
        authenticate_form(authenticator(), fields, bucket="b")
    return caught.value


@given(
    fields=st.dictionaries(st.sampled_from(["acl", "x-amz-meta-a", "content-type"]), key_text),
    key=key_text,
)
def test_forms_that_botocore_signs_are_accepted(fields: dict[str, str], key: str) -> None:
    fields["key"] = key
    conditions: list[object] = [{"bucket": "b"}, *({n: v} for n, v in fields.items())]
    signed = form(fields, [*conditions, ["content-length-range", 2, 3]])
    credential, policy = authenticate_form(authenticator(), signed, bucket="b")
    assert credential == EXAMPLE
    assert (policy.size_min, policy.size_max) == (2, 3)


def test_a_form_of_this_version_is_held_to_its_policy() -> None:
    conditions: list[object] = [{"bucket": "b"}, ["starts-with", "$key", "up/"]]
    fields = form({"key": "up/a"}, conditions)
    authenticate_form(authenticator(), fields, bucket="b")
    assert form_refusal({**fields, "key": "down/a"}).code == "AccessDenied"
    assert "Extra input fields: acl" in form_refusal({**fields, "acl": "private"}).message
    assert form_refusal({**fields, "x-amz-security-token": "t"}).code == "InvalidToken"
    stranger = {**fields, "awsaccesskeyid": "AKIDSTRANGER"}
    assert form_refusal(stranger).code == "InvalidAccessKeyId"
    for name in ("awsaccesskeyid", "signature"):
        error = form_refusal({n: v for n, v in fields.items() if n != name})
        assert error.code == "InvalidArgument"
        assert error.extra["ArgumentName"].lower() == name
    for policy in ("", "{}"):
        assert form_refusal({**fields, "policy": policy}).code == "SignatureDoesNotMatch"


def test_the_fields_of_this_version_are_no_cover_in_forms_of_version_4() -> None:
    fields = form({"key": "a"}, [{"bucket": "b"}, {"key": "a"}])
    error = form_refusal({**fields, "x-amz-signature": "0" * 64})
    assert (error.code, error.extra["ArgumentName"]) == ("InvalidArgument", "X-Amz-Algorithm")
