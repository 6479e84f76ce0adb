"""AWS's published examples of Signature Version 4, byte for byte.

Source: https://docs.aws.amazon.com/AmazonS3/latest/API/sig-v4-header-based-auth.html and
https://docs.aws.amazon.com/AmazonS3/latest/API/sigv4-query-string-auth.html
"""

from __future__ import annotations

import pytest

from s3.auth.presign import presign_url
from s3.auth.sigv4 import PayloadMode
from tests.support.s3_signing import EXAMPLE, EXAMPLE_MS, authenticator, request_of

HOST = (b"host", b"examplebucket.s3.amazonaws.com")
DATE = (b"x-amz-date", b"20130524T000000Z")
EMPTY = b"e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"


def signed(signed_headers: bytes, signature: bytes) -> tuple[bytes, bytes]:
    return (
        b"authorization",
        b"AWS4-HMAC-SHA256 Credential=AKIAIOSFODNN7EXAMPLE/20130524/us-east-1/s3/aws4_request,"
        b"SignedHeaders=" + signed_headers + b",Signature=" + signature,
    )


EXAMPLES = {
    "get object": request_of(
        "GET",
        b"/test.txt",
        b"",
        [
            HOST,
            (b"range", b"bytes=0-9"),
            (b"x-amz-content-sha256", EMPTY),
            DATE,
            signed(
                b"host;range;x-amz-content-sha256;x-amz-date",
                b"f0e8bdb87c964420e857bd35b5d6ed310bd44f0170aba48dd91039c6036bdb41",
            ),
        ],
    ),
    "put object": request_of(
        "PUT",
        b"/test%24file.text",
        b"",
        [
            HOST,
            (b"date", b"Fri, 24 May 2013 00:00:00 GMT"),
            DATE,
            (b"x-amz-storage-class", b"REDUCED_REDUNDANCY"),
            (
                b"x-amz-content-sha256",
                b"44ce7dd67c959e0d3524ffac1771dfbba87d2b6b4b4e99e42034a8b803f8b072",
            ),
            signed(
                b"date;host;x-amz-content-sha256;x-amz-date;x-amz-storage-class",
                b"98ad721746da40c64f1a55b78f14c238d841ea1380cd77a1b5971af0ece108bd",
            ),
        ],
    ),
    "get bucket lifecycle": request_of(
        "GET",
        b"/",
        b"lifecycle",
        [
            HOST,
            DATE,
            (b"x-amz-content-sha256", EMPTY),
            signed(
                b"host;x-amz-content-sha256;x-amz-date",
                b"fea454ca298b7da1c68078a5d1bdbfbbe0d65c699e0f91ac7a200a0136783543",
            ),
        ],
    ),
    "list objects": request_of(
        "GET",
        b"/",
        b"max-keys=2&prefix=J",
        [
            HOST,
            DATE,
            (b"x-amz-content-sha256", EMPTY),
            signed(
                b"host;x-amz-content-sha256;x-amz-date",
                b"34b48302e7b5fa45bde8084f4b7868a86f0a534bc59db6670ed5711ef69dc6f7",
            ),
        ],
    ),
}


@pytest.mark.parametrize("name", EXAMPLES)
def test_the_published_header_examples_are_accepted(name: str) -> None:
    identity = authenticator().authenticate(EXAMPLES[name])
    assert identity.access_key == "AKIAIOSFODNN7EXAMPLE"
    assert identity.owner_id == "owner"
    assert identity.payload is PayloadMode.SIGNED
    assert not identity.presigned


def test_the_signed_digest_is_what_the_body_must_have() -> None:
    identity = authenticator().authenticate(EXAMPLES["put object"])
    assert identity.sha256 is not None
    assert identity.sha256.hex().startswith("44ce7dd67c959e0d")


PRESIGNED = (
    b"X-Amz-Algorithm=AWS4-HMAC-SHA256"
    b"&X-Amz-Credential=AKIAIOSFODNN7EXAMPLE%2F20130524%2Fus-east-1%2Fs3%2Faws4_request"
    b"&X-Amz-Date=20130524T000000Z&X-Amz-Expires=86400&X-Amz-SignedHeaders=host"
    b"&X-Amz-Signature=aeeed9bbccd4d02ee5c0109b86d86835f995330da4c265957d157751f604d404"
)


def test_the_published_presigned_url_is_accepted_until_it_expires() -> None:
    request = request_of("GET", b"/test.txt", PRESIGNED, [HOST])
    identity = authenticator(EXAMPLE_MS + 86_399_000).authenticate(request)
    assert identity.presigned
    assert identity.payload is PayloadMode.UNSIGNED


def test_presigning_makes_the_published_url() -> None:
    target = presign_url(
        "GET",
        b"/test.txt",
        host=HOST[1],
        credential=EXAMPLE,
        region="us-east-1",
        at_ms=EXAMPLE_MS,
        expires_s=86400,
    )
    assert target == b"/test.txt?" + PRESIGNED
