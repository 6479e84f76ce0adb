"""POST policies and the forms that carry them.

Source: https://docs.aws.amazon.com/AmazonS3/latest/API/sigv4-post-example.html
"""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence

import pytest
import trio
from hypothesis import assume, given
from hypothesis import strategies as st

from engine.http.message import BodyBroken, Request
from s3.auth.form import FIELDS_SIZE_MAX, Form, read_form
from s3.auth.post_policy import authenticate_form, parse_policy
from s3.auth.presign import sign_policy
from s3.errors import S3Error
from tests.support.s3_signing import (
    EXAMPLE,
    EXAMPLE_MS,
    PiecewiseBody,
    authenticator,
    cut,
    read_all,
    request_of,
)

BOUNDARY = b"9431149156168"
PUBLISHED = (
    '{ "expiration": "2015-12-30T12:00:00.000Z",\r\n'
    '  "conditions": [\r\n'
    '    {"bucket": "sigv4examplebucket"},\r\n'
    '    ["starts-with", "$key", "user/user1/"],\r\n'
    '    {"acl": "public-read"},\r\n'
    '    {"success_action_redirect": '
    '"http://sigv4examplebucket.s3.amazonaws.com/successful_upload.html"},\r\n'
    '    ["starts-with", "$Content-Type", "image/"],\r\n'
    '    {"x-amz-meta-uuid": "14365123651274"},\r\n'
    '    {"x-amz-server-side-encryption": "AES256"},\r\n'
    '    ["starts-with", "$x-amz-meta-tag", ""],\r\n'
    "\r\n"
    '    {"x-amz-credential": "AKIAIOSFODNN7EXAMPLE/20151229/us-east-1/s3/aws4_request"},\r\n'
    '    {"x-amz-algorithm": "AWS4-HMAC-SHA256"},\r\n'
    '    {"x-amz-date": "20151229T000000Z" }\r\n'
    "  ]\r\n"
    "}"
)
PUBLISHED_FIELDS = {
    "key": "user/user1/${filename}",
    "acl": "public-read",
    "success_action_redirect": "http://sigv4examplebucket.s3.amazonaws.com/successful_upload.html",
    "Content-Type": "image/jpeg",
    "x-amz-meta-uuid": "14365123651274",
    "x-amz-server-side-encryption": "AES256",
    "X-Amz-Credential": "AKIAIOSFODNN7EXAMPLE/20151229/us-east-1/s3/aws4_request",
    "X-Amz-Algorithm": "AWS4-HMAC-SHA256",
    "X-Amz-Date": "20151229T000000Z",
    "x-amz-meta-tag": "",
    "Policy": base64.b64encode(PUBLISHED.encode()).decode(),
    "X-Amz-Signature": "8afdbf4008c03f22c2cd3cdb72e4afbb1f6a588f3255ac628749a66d7f09699e",
}
PUBLISHED_MS = 1451347200_000


def encoded(
    fields: dict[str, str], content: bytes = b"content", *, behind: bytes = b"--\r\n"
) -> bytes:
    parts = [
        b'--%b\r\nContent-Disposition: form-data; name="%b"\r\n\r\n%b\r\n'
        % (BOUNDARY, name.encode(), value.encode())
        for name, value in fields.items()
    ]
    file = (
        b'--%b\r\nContent-Disposition: form-data; name="file"; filename="C:\\a\\My File.jpg"\r\n'
        b"Content-Type: image/jpeg\r\n\r\n%b\r\n--%b%b" % (BOUNDARY, content, BOUNDARY, behind)
    )
    return b"".join(parts) + file


def posted(pieces: Sequence[bytes], *, broken: str = "") -> Request:
    content_type = b"multipart/form-data; boundary=" + BOUNDARY
    request = request_of("POST", b"/b", b"", [(b"host", b"h"), (b"content-type", content_type)])
    request.body = PiecewiseBody(pieces, broken=broken)
    return request


async def form_of(fields: dict[str, str], content: bytes = b"content") -> Form:
    return await read_form(posted([encoded(fields, content)]))


async def refused(request: Request) -> S3Error:
    async def read() -> None:
        await read_all((await read_form(request)).file)

    with pytest.raises(S3Error) as caught:
        await read()
    return caught.value


async def test_the_published_form_is_accepted() -> None:
    form = await form_of(PUBLISHED_FIELDS)
    credential, policy = authenticate_form(
        authenticator(PUBLISHED_MS), form.fields, bucket="sigv4examplebucket"
    )
    assert credential == EXAMPLE
    assert (policy.size_min, policy.size_max) == (0, None)
    assert form.fields["key"] == "user/user1/My File.jpg"
    assert form.file_type == "image/jpeg"
    assert await read_all(form.file) == b"content"


BASE = {"key": "up/a", "x-amz-meta-a": "1"}
CONDITIONS: list[object] = [
    {"bucket": "b"},
    ["starts-with", "$key", "up/"],
    ["eq", "$x-amz-meta-a", "1"],
    ["starts-with", "$x-amz-credential", ""],
    {"x-amz-algorithm": "AWS4-HMAC-SHA256"},
    {"x-amz-date": "20130524T000000Z"},
]


def signed(
    fields: dict[str, str],
    conditions: list[object],
    *,
    expiration: object = "2013-05-25T00:00:00Z",
) -> dict[str, str]:
    text = json.dumps({"expiration": expiration, "conditions": conditions}).encode()
    added = sign_policy(text, credential=EXAMPLE, region="us-east-1", at_ms=EXAMPLE_MS)
    return {**fields, **{name.decode(): value.decode() for name, value in added}}


def refusal(fields: dict[str, str], *, bucket: str = "b", now_ms: int = EXAMPLE_MS) -> S3Error:
    with pytest.raises(S3Error) as caught:
        authenticate_form(authenticator(now_ms), fields, bucket=bucket)
    return caught.value


def test_a_form_within_its_policy_is_accepted() -> None:
    conditions = [*CONDITIONS, ["content-length-range", 1, 10], ["content-length-range", 0, "9"]]
    fields = signed({**BASE, "x-ignore-me": "x"}, conditions)
    _, policy = authenticate_form(authenticator(), fields, bucket="b")
    assert (policy.size_min, policy.size_max) == (1, 9)


@pytest.mark.parametrize(
    ("changed", "bucket", "message"),
    [
        ({"key": "down/a"}, "b", '["starts-with", "$key", "up/"]'),
        ({"x-amz-meta-a": "2"}, "b", '["eq", "$x-amz-meta-a", "1"]'),
        ({}, "other", '["eq", "$bucket", "b"]'),
        ({"acl": "public-read"}, "b", "Extra input fields: acl"),
    ],
)
def test_a_form_outside_its_policy_is_refused(
    changed: dict[str, str], bucket: str, message: str
) -> None:
    error = refusal(signed({**BASE, **changed}, CONDITIONS), bucket=bucket)
    assert error.code == "AccessDenied"
    assert error.message.startswith("Invalid according to Policy: ")
    assert message in error.message


def test_a_missing_field_breaks_its_condition() -> None:
    error = refusal(signed({"key": "up/a"}, CONDITIONS))
    assert '["eq", "$x-amz-meta-a", "1"]' in error.message


def test_every_member_of_a_content_type_list_must_match() -> None:
    conditions = [*CONDITIONS, ["starts-with", "$Content-Type", "image/"]]
    fields = signed({**BASE, "content-type": "image/png,image/gif"}, conditions)
    authenticate_form(authenticator(), fields, bucket="b")
    fields = signed({**BASE, "content-type": "image/png,text/html"}, conditions)
    assert refusal(fields).code == "AccessDenied"


@pytest.mark.parametrize(
    "condition",
    [
        ["eq", "key", "x"],
        ["ends-with", "$key", "x"],
        ["eq", "$key"],
        [],
        ["content-length-range", 5, 1],
        ["content-length-range", -1, 5],
        ["content-length-range", "a", "b"],
    ],
)
def test_a_condition_that_is_none_refuses_the_form(condition: list[object]) -> None:
    assert refusal(signed(BASE, [*CONDITIONS, condition])).code == "AccessDenied"


def test_an_expired_policy_is_refused() -> None:
    error = refusal(signed(BASE, CONDITIONS), now_ms=EXAMPLE_MS + 24 * 3600_000)
    assert error.message == "Invalid according to Policy: Policy expired."


def test_a_changed_policy_or_signature_is_refused() -> None:
    fields = signed(BASE, CONDITIONS)
    wider = signed(BASE, [*CONDITIONS, ["starts-with", "$acl", ""]])["policy"]
    assert refusal({**fields, "policy": wider}).code == "SignatureDoesNotMatch"
    assert refusal({**fields, "x-amz-signature": "0" * 64}).code == "SignatureDoesNotMatch"
    other_day = {**fields, "x-amz-date": "20130525T000000Z"}
    assert refusal(other_day).code == "AuthorizationQueryParametersError"


@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("key", "InvalidArgument"),
        ("policy", "AccessDenied"),
        ("x-amz-algorithm", "InvalidArgument"),
        ("x-amz-credential", "InvalidArgument"),
        ("x-amz-date", "InvalidArgument"),
        ("x-amz-signature", "InvalidArgument"),
    ],
)
def test_the_fields_of_a_signature_are_needed(name: str, code: str) -> None:
    fields = signed(BASE, CONDITIONS)
    del fields[name]
    assert refusal(fields).code == code


def test_strangers_are_refused() -> None:
    fields = signed(BASE, CONDITIONS)
    stranger = fields["x-amz-credential"].replace("AKIA", "AKIB")
    assert refusal({**fields, "x-amz-credential": stranger}).code == "InvalidAccessKeyId"


@pytest.mark.parametrize(
    "document",
    [
        "",
        "{",
        "[]",
        "null",
        '{"conditions": []}',
        '{"expiration": "2030-01-01T00:00:00Z"}',
        '{"expiration": "soon", "conditions": []}',
        '{"expiration": 5, "conditions": []}',
        '{"expiration": "2030-01-01T00:00:00Z", "conditions": [[["a"]]]}',
        "[" * 20_000,
        "\x00",
    ],
)
def test_a_policy_that_is_none_is_an_invalid_document(document: str) -> None:
    with pytest.raises(S3Error) as caught:
        parse_policy(base64.b64encode(document.encode()).decode())
    assert caught.value.code == "InvalidPolicyDocument"


@given(data=st.data(), size=st.sampled_from([1, 7, 1024, 5000]))
def test_any_cut_of_the_form_gives_the_same_file(data: st.DataObject, size: int) -> None:
    lookalikes = [b"\r\n--", b"\r", b"\n", b"\r\n--" + BOUNDARY[:-1], b"--" + BOUNDARY, b"x" * 900]
    content = b"".join(data.draw(st.lists(st.sampled_from(lookalikes), max_size=12)))
    # Pieces that happen to join to a boundary do end the file; clients choose another one then.
    assume(b"\r\n--" + BOUNDARY not in content)
    whole = encoded({"key": "k"}, content)
    pieces = cut(whole, data.draw(st.lists(st.integers(0, len(whole)), max_size=10)))

    async def main() -> None:
        form = await read_form(posted(pieces))
        assert form.fields == {"key": "k"}
        assert await read_all(form.file, size) == content
        assert form.file.size == len(content)

    trio.run(main)


async def test_fields_behind_the_file_are_ignored() -> None:
    behind = b'\r\nContent-Disposition: form-data; name="acl"\r\n\r\nx\r\n--' + BOUNDARY + b"--\r\n"
    form = await read_form(posted([encoded({"key": "k"}, behind=behind)]))
    assert await read_all(form.file) == b"content"
    assert "acl" not in form.fields


async def test_a_file_outside_the_size_range_is_refused() -> None:
    for low, high, code in ((0, 6, "EntityTooLarge"), (8, 9, "EntityTooSmall"), (7, 7, "")):
        form = await form_of({"key": "k"})
        form.file.limit(low, high)
        if not code:
            assert await read_all(form.file) == b"content"
            continue
        with pytest.raises(S3Error) as caught:
            await read_all(form.file)
        assert caught.value.code == code
        assert caught.value.extra["ProposedSize"] == "7"


async def test_a_form_that_ends_early_is_incomplete() -> None:
    whole = encoded({"key": "k"})
    for end in (0, 1, 5, 40, 120, len(whole) - 30, len(whole) - 5):
        assert (await refused(posted([whole[:end]]))).code == "IncompleteBody", end
    assert (await refused(posted([whole[:90]], broken="disconnected"))).code == "IncompleteBody"
    with pytest.raises(BodyBroken):
        await read_form(posted([whole[:90]], broken="timeout"))


async def test_the_part_in_front_of_the_file_is_bounded() -> None:
    big = encoded({"key": "k", "x-amz-meta-a": "x" * FIELDS_SIZE_MAX})
    assert (await refused(posted([big]))).code == "MaxPostPreDataLengthExceededError"
    endless = posted([b"--" + BOUNDARY + b"\r\n" + b"x" * 100_000])
    assert (await refused(endless)).code == "MaxPostPreDataLengthExceededError"
    many = encoded({f"x-amz-meta-{n}": "" for n in range(300)})
    assert (await refused(posted([many]))).code == "MaxPostPreDataLengthExceededError"


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"--other\r\n" * 3000, "MaxPostPreDataLengthExceededError"),
        (b"preamble\r\n" + encoded({"key": "k"}), "MalformedPOSTRequest"),
        (b"--" + BOUNDARY + b"--\r\n", "InvalidArgument"),
        (b"--" + BOUNDARY + b"xx\r\n", "MalformedPOSTRequest"),
        (b"--" + BOUNDARY + b"\r\nContent-Type: x\r\n\r\n", "MalformedPOSTRequest"),
        (b"--" + BOUNDARY + b"\r\nContent-Disposition: form-data\r\n\r\n", "MalformedPOSTRequest"),
        (encoded({"key": "k"}, behind=b"zz"), "MalformedPOSTRequest"),
        (encoded({"key": "k"}, behind=b"--" + b"x" * 100_000), "MalformedPOSTRequest"),
        (encoded({"key": "a"}).replace(b'"key"', b'"k\xff"'), "MalformedPOSTRequest"),
        (encoded({"key": "a", "KEY": "b"}), "InvalidArgument"),
    ],
)
async def test_a_malformed_form_is_refused(body: bytes, code: str) -> None:
    assert (await refused(posted([body]))).code == code


@pytest.mark.parametrize(
    ("content_type", "code"),
    [
        (b"", "PreconditionFailed"),
        (b"application/json", "PreconditionFailed"),
        (b"multipart/form-data", "MalformedPOSTRequest"),
        (b'multipart/form-data; boundary=""', "MalformedPOSTRequest"),
        (b"multipart/form-data; boundary=" + b"x" * 71, "MalformedPOSTRequest"),
    ],
)
async def test_another_content_type_is_refused(content_type: bytes, code: str) -> None:
    request = request_of("POST", b"/b", b"", [(b"content-type", content_type)])
    assert (await refused(request)).code == code
