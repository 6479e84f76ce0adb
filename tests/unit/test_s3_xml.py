"""XML: what is refused, what is kept, and that writing and reading agree."""

from __future__ import annotations

from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from s3.errors import S3Error
from s3.xml import DEPTH_MAX, document, element, escape, parse

_XML_CHARS = st.text(
    st.characters(codec="utf-8", exclude_categories=("Cs", "Cc"), exclude_characters="\ufffe\uffff")
    | st.sampled_from("\t\n\r")
)


@given(_XML_CHARS)
def test_text_survives_writing_and_reading(text: str) -> None:
    raw = document("Root", [element("Key", text)])
    assert parse(raw, "Root").get("Key") == text
    assert ElementTree.fromstring(raw)[0].text in (text, text or None)


@given(st.binary(max_size=300))
def test_random_bytes_are_malformed_or_a_tree(raw: bytes) -> None:
    try:
        name = parse(raw, "Delete").name
    except S3Error as error:
        name = error.code
    assert name in ("Delete", "MalformedXML")


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"not xml",
        b"<Delete>",
        b"<Other/>",
        b"<Delete/><Delete/>",
        b"<Delete>\x00</Delete>",
        b"<Delete>\xff\xfe</Delete>",
        b"<!DOCTYPE Delete><Delete/>",
        b'<!DOCTYPE Delete [<!ENTITY a "b">]><Delete>&a;</Delete>',
        b'<!DOCTYPE d SYSTEM "file:///etc/passwd"><Delete/>',
        b"<Delete>&undefined;</Delete>",
    ],
)
def test_unsafe_or_broken_documents_are_refused(raw: bytes) -> None:
    with pytest.raises(S3Error) as caught:
        parse(raw, "Delete")
    assert (caught.value.code, caught.value.status) == ("MalformedXML", 400)


def test_nesting_beyond_the_limit_is_refused() -> None:
    def nested(depth: int) -> bytes:
        return b"<Delete>" + b"<a>" * (depth - 1) + b"</a>" * (depth - 1) + b"</Delete>"

    assert parse(nested(DEPTH_MAX), "Delete").children
    with pytest.raises(S3Error):
        parse(nested(DEPTH_MAX + 1), "Delete")


@pytest.mark.parametrize(
    "raw",
    [
        b"<Tagging><TagSet/></Tagging>",
        b'<Tagging xmlns="http://s3.amazonaws.com/doc/2006-03-01/"><TagSet/></Tagging>',
        b'<s:Tagging xmlns:s="urn:x"><s:TagSet/></s:Tagging>',
        b'\xef\xbb\xbf<?xml version="1.0" encoding="UTF-8"?>\n<Tagging> <TagSet/> </Tagging>',
    ],
)
def test_namespaces_make_no_difference(raw: bytes) -> None:
    assert parse(raw, "Tagging").find("TagSet") is not None


def test_spaces_of_a_key_are_kept() -> None:
    assert parse(b"<Delete><Key> a \n</Key></Delete>", "Delete").get("Key") == " a \n"


def test_control_characters_are_written_as_references() -> None:
    assert escape("a\x01\r\x0b\uffff") == "a&#x1;&#xd;&#xb;&#xffff;"
    assert escape("a<b>&\"'") == "a&lt;b&gt;&amp;&quot;'"
    assert escape("tab\tline\n") == "tab\tline\n"
