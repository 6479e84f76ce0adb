"""Signature Version 4: agreement with botocore's signer, and what is answered to bad requests."""

from __future__ import annotations

from dataclasses import replace
from urllib.parse import urlsplit

import pytest
from botocore.auth import S3SigV4Auth, S3SigV4QueryAuth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials
from hypothesis import given
from hypothesis import strategies as st

from engine.http.message import HeaderList, Request
from s3.auth.canonical import encode_component
from s3.auth.credentials import Credential, RootCredential
from s3.auth.presign import presign_url, sign_request
from s3.auth.sigv4 import KEYS_MAX, Authenticator, PayloadMode
from s3.errors import S3Error
from tests.support.s3_signing import EXAMPLE, EXAMPLE_MS, authenticator, request_of

HOUR_MS = 3600_000
BOTO = Credentials(EXAMPLE.access_key, EXAMPLE.secret_key)

key_text = st.text(
    st.characters(exclude_categories=["Cs"]) | st.sampled_from(" +%&=?#/~!'()*.\\\""), max_size=20
)
header_text = st.text(st.characters(min_codepoint=0x20, max_codepoint=0x7E), max_size=30)


def refusal(request: Request, checker: Authenticator | None = None) -> S3Error:
    with pytest.raises(S3Error) as caught:
        (checker or authenticator()).authenticate(request)
    return caught.value


def signed(
    method: str = "GET",
    path: bytes = b"/b/k",
    query: bytes = b"",
    headers: HeaderList | None = None,
    *,
    payload: bytes = b"UNSIGNED-PAYLOAD",
    region: str = "us-east-1",
    at_ms: int = EXAMPLE_MS,
    credential: Credential = EXAMPLE,
    unsigned: tuple[bytes, ...] = (),
) -> Request:
    sent, _ = sign_request(
        method,
        path,
        query,
        headers or [(b"host", b"localhost:9000")],
        credential=credential,
        region=region,
        at_ms=at_ms,
        payload=payload,
        unsigned=unsigned,
    )
    return request_of(method, path, query, sent)


def with_header(request: Request, name: bytes, value: bytes | None) -> Request:
    """Return the request with the header replaced, or removed when ``value`` is None."""
    kept = [pair for pair in request.headers if pair[0] != name]
    return replace(request, headers=kept if value is None else [*kept, (name, value)])


def edited(request: Request, old: bytes, new: bytes) -> Request:
    """Return the request with a text of its Authorization header replaced."""
    value = request.header(b"authorization") or b""
    assert old in value
    return with_header(request, b"authorization", value.replace(old, new))


def from_boto(method: str, url: str, headers: list[tuple[str, str]]) -> Request:
    split = urlsplit(url)
    sent = [(name.lower().encode(), value.encode()) for name, value in headers]
    if not any(name == b"host" for name, _ in sent):
        sent.append((b"host", split.netloc.encode()))
    return request_of(method, split.path.encode(), split.query.encode(), sent)


@given(
    method=st.sampled_from(["GET", "PUT", "HEAD", "DELETE", "POST"]),
    key=key_text,
    query=st.lists(st.tuples(key_text.filter(bool), key_text), max_size=4),
    headers=st.dictionaries(
        st.sampled_from(["x-amz-meta-a", "content-type", "x-amz-tagging", "range", "x-other"]),
        header_text,
    ),
)
def test_what_botocore_signs_is_accepted(
    method: str, key: str, query: list[tuple[str, str]], headers: dict[str, str]
) -> None:
    path = "/bucket/" + "/".join(encode_component(p.encode()).decode() for p in key.split("/"))
    text = "&".join(
        encode_component(n.encode()).decode() + "=" + encode_component(v.encode()).decode()
        for n, v in query
    )
    url = f"http://localhost:9000{path}" + (f"?{text}" if text else "")
    request = AWSRequest(method=method, url=url, headers=headers, data=b"")
    S3SigV4Auth(BOTO, "s3", "us-east-1").add_auth(request)
    arrived = from_boto(method, url, list(request.headers.items()))
    at_ms = boto_ms(arrived)
    # urlsplit drops an empty query and cuts at "#", which is encoded above.
    assert authenticator(at_ms).authenticate(arrived).access_key == EXAMPLE.access_key


def boto_ms(request: Request) -> int:
    from s3.auth.scope import parse_timestamp

    raw = request.header(b"x-amz-date")
    if raw is None:
        raw = request.query.split(b"X-Amz-Date=")[1][:16]
    at_ms = parse_timestamp(raw)
    assert at_ms is not None
    return at_ms


@given(key=key_text, expires=st.integers(1, 604800), query=key_text)
def test_what_botocore_presigns_is_accepted(key: str, expires: int, query: str) -> None:
    path = "/bucket/" + encode_component(key.encode()).decode().replace("%2F", "/")
    value = encode_component(query.encode()).decode()
    url = f"http://localhost:9000{path}?response-content-type={value}"
    request = AWSRequest(method="GET", url=url)
    S3SigV4QueryAuth(BOTO, "s3", "us-east-1", expires=expires).add_auth(request)
    arrived = from_boto("GET", request.url, [])
    assert authenticator(boto_ms(arrived)).authenticate(arrived).presigned


def test_canonical_form_is_taken_of_the_path_as_sent() -> None:
    # What a client signs for the key "a b+c/../d~" and sends with more or less encoding.
    request = signed(path=b"/b/a%20b%2Bc/../d~")
    for path in (b"/b/a%20b+c/../d~", b"/b/a%20b%2bc/%2E%2E/d%7E"):
        authenticator().authenticate(replace(request, path=path))
    assert refusal(replace(request, path=b"/b/d~")).code == "SignatureDoesNotMatch"


def test_a_plus_in_the_query_is_a_space() -> None:
    request = signed(query=b"prefix=a%20b")
    authenticator().authenticate(replace(request, query=b"prefix=a+b"))
    assert refusal(replace(request, query=b"prefix=a%2Bb")).code == "SignatureDoesNotMatch"


def test_repeated_headers_are_signed_as_one() -> None:
    headers = [(b"host", b"h"), (b"x-amz-meta-a", b"1 "), (b"x-amz-meta-a", b" 2")]
    request = signed(headers=headers)
    authenticator().authenticate(request)
    joined = with_header(request, b"x-amz-meta-a", b"1,2")
    authenticator().authenticate(joined)
    assert refusal(with_header(request, b"x-amz-meta-a", b"2,1")).code == "SignatureDoesNotMatch"


@pytest.mark.parametrize("target", ["path", "query", "range", "x-amz-meta-a", "host", "payload"])
@given(data=st.data())
def test_any_changed_byte_of_what_is_signed_is_refused(target: str, data: st.DataObject) -> None:
    headers = [(b"host", b"localhost"), (b"range", b"bytes=0-99"), (b"x-amz-meta-a", b"value")]
    request = signed("PUT", b"/bucket/key", b"partNumber=1&uploadId=abc", headers)
    letters = b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"

    def changed(value: bytes) -> bytes:
        index = data.draw(st.integers(0, len(value) - 1))
        letter = data.draw(st.sampled_from([c for c in letters if c != value[index]]))
        return value[:index] + bytes([letter]) + value[index + 1 :]

    match target:
        case "path":
            request = replace(request, path=changed(request.path))
        case "query":
            request = replace(request, query=changed(request.query))
        case "payload":
            request = with_header(request, b"x-amz-content-sha256", b"0" * 64)
        case name:
            value = request.header(name.encode()) or b""
            request = with_header(request, name.encode(), changed(value))
    assert refusal(request).code == "SignatureDoesNotMatch"


@given(data=st.data())
def test_any_changed_byte_of_the_signature_is_refused(data: st.DataObject) -> None:
    request = signed()
    value = request.header(b"authorization") or b""
    index = data.draw(st.integers(len(value) - 64, len(value) - 1))
    flipped = value[:index] + bytes([value[index] ^ 1]) + value[index + 1 :]
    changed = with_header(request, b"authorization", flipped)
    assert refusal(changed).code == "SignatureDoesNotMatch"


def test_another_method_or_secret_is_refused() -> None:
    assert refusal(replace(signed(), method="PUT")).code == "SignatureDoesNotMatch"
    wrong = Credential(EXAMPLE.access_key, "guess", "", "")
    error = refusal(signed(credential=wrong))
    assert error.status == 403
    assert error.extra["AWSAccessKeyId"] == EXAMPLE.access_key
    assert error.extra["StringToSign"].startswith("AWS4-HMAC-SHA256\n20130524T000000Z\n")
    assert error.extra["CanonicalRequest"].startswith("GET\n/b/k\n")
    assert len(error.extra["SignatureProvided"]) == 64
    assert error.extra["StringToSignBytes"].startswith("41 57 53 34")


def test_an_unknown_access_key_is_refused() -> None:
    stranger = Credential("AKIDSTRANGER", "secret", "", "")
    error = refusal(signed(credential=stranger))
    assert error.code == "InvalidAccessKeyId"
    assert error.extra == {"AWSAccessKeyId": "AKIDSTRANGER"}


def test_an_unsigned_request_is_refused() -> None:
    request = request_of("GET", b"/b/k", b"versionId=1", [(b"host", b"h")])
    assert refusal(request).code == "AccessDenied"


@pytest.mark.parametrize(
    ("name", "shown"),
    [(b"x-amz-acl", "x-amz-acl"), (b"x-amz-date", "x-amz-date"), (b"host", "host")],
)
def test_headers_that_matter_must_be_signed(name: bytes, shown: str) -> None:
    headers = [(b"host", b"h"), (b"x-amz-acl", b"private")]
    error = refusal(signed(headers=headers, unsigned=(name,)))
    assert error.code == "AccessDenied"
    assert error.message == "There were headers present in the request which were not signed"
    assert error.extra == {"HeadersNotSigned": shown}


@pytest.mark.parametrize(
    ("old", "new", "code", "message"),
    [
        (b"Credential=", b"Kredential=", "AuthorizationHeaderMalformed", "three components"),
        (b",SignedHeaders", b" SignedHeaders", "AuthorizationHeaderMalformed", "three components"),
        (b"SHA256 ", b"SHA256,", "AuthorizationHeaderMalformed", "three components"),
        (b",Signature", b",A=b,Signature", "AuthorizationHeaderMalformed", "three components"),
        (b"/20130524/", b"/", "AuthorizationHeaderMalformed", "the Credential is mal-formed"),
        (b"/20130524/", b"/2013-05-24/", "AuthorizationHeaderMalformed", "incorrect date format"),
        (b"/20130524/", b"/20130525/", "AuthorizationHeaderMalformed", "Invalid credential date"),
        (b"/s3/", b"/ec2/", "AuthorizationHeaderMalformed", 'incorrect service "ec2"'),
        (b"/aws4_request", b"/aws5", "AuthorizationHeaderMalformed", 'incorrect terminal "aws5"'),
        (b"AWS4-HMAC-SHA256", b"AWS", "InvalidRequest", "Please use AWS4-HMAC-SHA256."),
        (b"AWS4-HMAC-SHA256", b"Basic", "InvalidArgument", "Unsupported Authorization Type"),
        (b"AWS4-HMAC", b"AWS4-ECDSA-P256", "NotImplemented", "4A"),
    ],
)
def test_a_malformed_authorization_is_answered_as_s3_does(
    old: bytes, new: bytes, code: str, message: str
) -> None:
    error = refusal(edited(signed(), old, new))
    assert error.code == code
    assert message in error.message


def test_another_region_is_answered_with_the_right_one_unless_any_will_do() -> None:
    request = signed(region="eu-west-1")
    error = refusal(request)
    assert error.code == "AuthorizationHeaderMalformed"
    assert error.extra == {"Region": "us-east-1"}
    assert "the region 'eu-west-1' is wrong; expecting 'us-east-1'" in error.message
    checker = authenticator()
    checker.authenticate(request, any_region=True)
    # What was let through once for any region is not let through elsewhere.
    assert refusal(request, checker).code == "AuthorizationHeaderMalformed"


@pytest.mark.parametrize("away_ms", [-15 * 60_000 - 1, 15 * 60_000 + 1])
def test_a_request_more_than_15_minutes_away_is_refused(away_ms: int) -> None:
    error = refusal(signed(), authenticator(EXAMPLE_MS + away_ms))
    assert error.code == "RequestTimeTooSkewed"
    assert error.extra["RequestTime"] == "20130524T000000Z"
    assert error.extra["MaxAllowedSkewMilliseconds"] == "900000"


def test_a_request_15_minutes_away_is_accepted() -> None:
    for away_ms in (-15 * 60_000, 15 * 60_000):
        authenticator(EXAMPLE_MS + away_ms).authenticate(signed())


def test_a_request_needs_a_date_and_a_payload_hash() -> None:
    request = with_header(signed(), b"x-amz-date", None)
    assert refusal(request).code == "AccessDenied"
    assert "valid Date or x-amz-date" in refusal(request).message
    request = with_header(signed(), b"x-amz-content-sha256", None)
    assert refusal(request).code == "InvalidRequest"
    assert refusal(request).message.endswith("x-amz-content-sha256")


@pytest.mark.parametrize(
    ("value", "mode"),
    [
        (b"UNSIGNED-PAYLOAD", PayloadMode.UNSIGNED),
        (b"STREAMING-AWS4-HMAC-SHA256-PAYLOAD", PayloadMode.STREAMING_SIGNED),
        (b"STREAMING-AWS4-HMAC-SHA256-PAYLOAD-TRAILER", PayloadMode.STREAMING_SIGNED_TRAILER),
        (b"STREAMING-UNSIGNED-PAYLOAD-TRAILER", PayloadMode.STREAMING_UNSIGNED_TRAILER),
    ],
)
def test_payload_modes_are_recognised(value: bytes, mode: PayloadMode) -> None:
    identity = authenticator().authenticate(signed(payload=value))
    assert identity.payload is mode
    assert identity.sha256 is None


@pytest.mark.parametrize(
    ("value", "code"),
    [
        (b"unsigned-payload", "InvalidArgument"),
        (b"f" * 63, "InvalidArgument"),
        (b"g" * 64, "InvalidArgument"),
        (b"", "InvalidArgument"),
        (b"STREAMING-AWS4-ECDSA-P256-SHA256-PAYLOAD", "NotImplemented"),
    ],
)
def test_other_payload_hashes_are_refused(value: bytes, code: str) -> None:
    assert refusal(signed(payload=value)).code == code


def presigned(expires_s: int = 600, headers: HeaderList | None = None) -> Request:
    target = presign_url(
        "GET",
        b"/b/k",
        b"versionId=1",
        host=b"h",
        credential=EXAMPLE,
        region="us-east-1",
        at_ms=EXAMPLE_MS,
        expires_s=expires_s,
        headers=headers,
    )
    path, _, query = target.partition(b"?")
    return request_of("GET", path, query, [(b"host", b"h"), *(headers or [])])


def test_a_presigned_url_expires() -> None:
    checker = authenticator(EXAMPLE_MS + 600_000)
    error = refusal(presigned(), checker)
    assert (error.code, error.message) == ("AccessDenied", "Request has expired")
    assert error.extra["X-Amz-Expires"] == "600"
    assert error.extra["Expires"] == "2013-05-24T00:10:00Z"


def test_a_presigned_url_from_the_future_is_not_yet_valid() -> None:
    error = refusal(presigned(), authenticator(EXAMPLE_MS - HOUR_MS))
    assert (error.code, error.message) == ("AccessDenied", "Request is not yet valid")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (b"X-Amz-Expires=600", b"X-Amz-Expires=604801", "less than a week"),
        (b"X-Amz-Expires=600", b"X-Amz-Expires=-1", "non-negative"),
        (b"X-Amz-Expires=600", b"X-Amz-Expires=soon", "should be a number"),
        (b"X-Amz-Expires=600", b"X-Amz-Expires=%D9%A1", "should be a number"),
        (b"X-Amz-Expires=600", b"X-Amz-Expires=--1", "non-negative"),
        (b"X-Amz-Expires=600", b"", "requires the X-Amz-Algorithm"),
        (b"&X-Amz-Expires", b"&X-Amz-Expires=600&X-Amz-Expires", "requires the X-Amz-Algorithm"),
        (b"=AWS4-HMAC", b"=AWS5-HMAC", "X-Amz-Algorithm only supports"),
        (b"Date=20130524T", b"Date=20130524", "ISO8601 Long Format"),
        (b"Date=20130524T", b"Date=20130523T", "Invalid credential date"),
        (b"us-east-1", b"us-east-9", "the region 'us-east-9' is wrong"),
        (b"%2Fs3%2F", b"%2F", "the Credential is mal-formed"),
    ],
)
def test_a_malformed_presigned_url_is_answered_as_s3_does(
    old: bytes, new: bytes, message: str
) -> None:
    request = presigned()
    assert old in request.query
    error = refusal(replace(request, query=request.query.replace(old, new, 1)))
    assert error.code == "AuthorizationQueryParametersError"
    assert message in error.message


def test_a_changed_presigned_url_is_refused() -> None:
    request = presigned(headers=[(b"x-amz-meta-a", b"1")])
    authenticator().authenticate(request)
    other = replace(request, query=request.query.replace(b"versionId=1", b"versionId=2"))
    assert refusal(other).code == "SignatureDoesNotMatch"
    longer = replace(request, query=request.query.replace(b"=600", b"=601"))
    assert refusal(longer).code == "SignatureDoesNotMatch"
    more = replace(request, headers=[*request.headers, (b"x-amz-acl", b"public-read")])
    assert refusal(more).code == "AccessDenied"


def test_two_signatures_at_once_are_refused() -> None:
    both = replace(presigned(), headers=signed().headers)
    assert refusal(both).code == "InvalidArgument"


def test_a_query_that_cannot_be_decoded_is_refused() -> None:
    assert refusal(replace(signed(), query=b"a=%zz")).code == "InvalidURI"
    assert refusal(replace(signed(), path=b"/b/%4")).code == "InvalidURI"
    assert refusal(replace(presigned(), query=b"X-Amz-Algorithm=%")).code == "InvalidURI"


def test_a_session_token_is_refused() -> None:
    headers = [(b"host", b"h"), (b"x-amz-security-token", b"abc")]
    assert refusal(signed(headers=headers)).code == "InvalidToken"


class Rotating:
    def __init__(self) -> None:
        self.credential: Credential | None = EXAMPLE

    def lookup(self, access_key: str) -> Credential | None:
        return self.credential


def test_a_changed_or_removed_secret_counts_at_once() -> None:
    store = Rotating()
    checker = Authenticator(credentials=store, region="us-east-1", clock=lambda: EXAMPLE_MS)
    checker.authenticate(signed())
    store.credential = Credential(EXAMPLE.access_key, "new", "owner", "root")
    assert refusal(signed(), checker).code == "SignatureDoesNotMatch"
    checker.authenticate(signed(credential=store.credential))
    store.credential = None
    assert refusal(signed(), checker).code == "InvalidAccessKeyId"


def test_the_cache_of_keys_is_bounded_and_holds_only_proven_ones() -> None:
    checker = authenticator()
    for number in range(KEYS_MAX + 10):
        checker.authenticate(signed(region=f"r-{number}"), any_region=True)
    assert len(checker._keys) == KEYS_MAX
    kept = set(checker._keys)
    forged = edited(signed(region="guess"), b"Signature=", b"Signature=0")
    with pytest.raises(S3Error):
        checker.authenticate(forged, any_region=True)
    assert set(checker._keys) == kept


def test_secrets_are_not_in_reprs() -> None:
    checker = authenticator()
    identity = checker.authenticate(signed())
    shown = repr(identity) + repr(EXAMPLE) + repr(checker._keys) + repr(RootCredential(EXAMPLE))
    assert EXAMPLE.secret_key not in shown
    assert repr(identity.signing.key) not in shown
