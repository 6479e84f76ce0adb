"""CORS rules: which origins, methods and headers they cover, and which documents are refused."""

from __future__ import annotations

import pytest

from s3.cors import CorsRule, cors_document, find_rule, parse_cors, rule_headers
from s3.errors import S3Error

RULE = CorsRule(
    ("https://*.example.org", "https://one.test"),
    ("GET", "PUT"),
    ("x-amz-*", "range"),
    ("ETag",),
    60,
)
ANY = CorsRule(("*",), ("GET",))


@pytest.mark.parametrize(
    ("origin", "method", "headers", "allowed"),
    [
        ("https://a.example.org", "GET", (), True),
        ("https://one.test", "PUT", ("Range", "X-Amz-Date"), True),
        ("https://example.org", "GET", (), False),
        ("https://one.test.evil", "GET", (), False),
        ("http://one.test", "GET", (), False),
        ("https://one.test", "DELETE", (), False),
        ("https://one.test", "GET", ("content-type",), False),
    ],
)
def test_rules_cover_origins_methods_and_headers(
    origin: str, method: str, headers: tuple[str, ...], allowed: bool
) -> None:
    assert (find_rule([RULE], origin, method, headers) is not None) == allowed


def test_the_first_rule_that_fits_answers() -> None:
    found = find_rule([RULE, ANY], "https://else.where", "GET")
    assert found == (ANY, "*")
    headers = dict(rule_headers(*found, "https://else.where", preflight=True))
    assert headers[b"Access-Control-Allow-Origin"] == b"*"
    assert b"Access-Control-Allow-Credentials" not in headers


def test_a_named_origin_is_echoed_with_credentials() -> None:
    found = find_rule([RULE], "https://one.test", "GET")
    assert found is not None
    headers = dict(rule_headers(*found, "https://one.test", preflight=True))
    assert headers[b"Access-Control-Allow-Origin"] == b"https://one.test"
    assert headers[b"Access-Control-Allow-Credentials"] == b"true"
    assert headers[b"Access-Control-Max-Age"] == b"60"
    assert headers[b"Access-Control-Expose-Headers"] == b"ETag"


def test_rules_survive_their_document() -> None:
    assert parse_cors(cors_document([RULE, ANY])) == [RULE, ANY]


def _document(inside: str) -> bytes:
    return f"<CORSConfiguration>{inside}</CORSConfiguration>".encode()


def _rule(origin: str = "*", method: str = "GET", more: str = "") -> str:
    return (
        f"<CORSRule><AllowedOrigin>{origin}</AllowedOrigin>"
        f"<AllowedMethod>{method}</AllowedMethod>{more}</CORSRule>"
    )


@pytest.mark.parametrize(
    ("inside", "code"),
    [
        ("", "MalformedXML"),
        ("<Other/>", "MalformedXML"),
        ("<CORSRule><AllowedMethod>GET</AllowedMethod></CORSRule>", "MalformedXML"),
        ("<CORSRule><AllowedOrigin>*</AllowedOrigin></CORSRule>", "MalformedXML"),
        (_rule() * 101, "MalformedXML"),
        (_rule(more="<MaxAgeSeconds>x</MaxAgeSeconds>"), "MalformedXML"),
        (_rule(more=f"<ID>{'i' * 256}</ID>"), "MalformedXML"),
        (_rule(method="PATCH"), "InvalidRequest"),
        (_rule(origin="http://*.a.*"), "InvalidRequest"),
        (_rule(more="<AllowedHeader>*-*</AllowedHeader>"), "InvalidRequest"),
        (_rule(more="<ExposeHeader>x-*</ExposeHeader>"), "InvalidRequest"),
    ],
)
def test_documents_that_are_refused(inside: str, code: str) -> None:
    with pytest.raises(S3Error) as caught:
        parse_cors(_document(inside))
    assert caught.value.code == code
