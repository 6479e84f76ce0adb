"""Tag sets of buckets and objects: rules, XML, and the ``x-amz-tagging`` header."""

from __future__ import annotations

from urllib.parse import unquote_to_bytes

from engine.types import Pairs
from s3.errors import S3Error, s3_error
from s3.xml import Element, document, element, malformed, parse_configuration

OBJECT_TAGS_MAX = 10
BUCKET_TAGS_MAX = 50
TAG_KEY_MAX = 128
TAG_VALUE_MAX = 256
_PUNCTUATION = frozenset("_.:/=+-@")


def _allowed(text: str) -> bool:
    return all(char.isalnum() or char.isspace() or char in _PUNCTUATION for char in text)


def check_tags(tags: Pairs, limit: int) -> None:
    """Raises InvalidTag, BadRequest.

    Source: S3 User Guide, "Categorizing your objects using tags".
    """
    if len(tags) > limit:
        what = "Object" if limit == OBJECT_TAGS_MAX else "Bucket"
        raise s3_error("BadRequest", f"{what} tags cannot be greater than {limit}")
    seen: set[str] = set()
    for key, value in tags:
        if not 0 < len(key) <= TAG_KEY_MAX or not _allowed(key):
            raise s3_error("InvalidTag", "The TagKey you have provided is invalid", TagKey=key)
        if len(value) > TAG_VALUE_MAX or not _allowed(value):
            raise s3_error(
                "InvalidTag",
                "The TagValue you have provided is invalid",
                TagKey=key,
                TagValue=value,
            )
        if key.startswith("aws:"):
            raise s3_error(
                "InvalidTag", "System tags cannot be added/updated by requester", TagKey=key
            )
        if key in seen:
            raise s3_error(
                "InvalidTag", "Cannot provide multiple Tags with the same key", TagKey=key
            )
        seen.add(key)


def parse_tagging(raw: bytes, limit: int) -> Pairs:
    """Return a Tagging document's tags. Raises what ``parse_configuration``, ``check_tags`` do."""
    return read_tag_set(parse_configuration(raw, "Tagging"), limit)


def read_tag_set(tagging: Element, limit: int) -> Pairs:
    return read_tags(tagging.require("TagSet"), limit)


def read_tags(parent: Element, limit: int) -> Pairs:
    """Return the tags that are the children of an element. Raises as ``parse_tagging`` does."""
    tags: Pairs = []
    for tag in parent.children:
        key, value = tag.get("Key"), tag.get("Value")
        if tag.name != "Tag" or key is None or value is None:
            raise malformed()
        tags.append((key, value))
    check_tags(tags, limit)
    return tags


def tagging_document(tags: Pairs) -> bytes:
    rows = [f"<Tag>{element('Key', key)}{element('Value', value)}</Tag>" for key, value in tags]
    return document("Tagging", ["<TagSet>", *rows, "</TagSet>"])


def parse_tagging_header(value: bytes) -> Pairs:
    """Return the tags of ``x-amz-tagging``: pairs encoded like a query."""
    tags: Pairs = []
    for pair in value.split(b"&"):
        if not pair:
            continue
        key, _, text = pair.partition(b"=")
        try:
            tags.append((_decode(key), _decode(text)))
        except UnicodeDecodeError:
            raise _bad_header(value) from None
    if len({key for key, _ in tags}) != len(tags):
        raise _bad_header(value)
    check_tags(tags, OBJECT_TAGS_MAX)
    return tags


def _decode(raw: bytes) -> str:
    return unquote_to_bytes(raw.replace(b"+", b" ")).decode()


def _bad_header(value: bytes) -> S3Error:
    return s3_error(
        "InvalidArgument",
        "The header 'x-amz-tagging' shall be encoded as UTF-8 then URLEncoded URL query "
        "parameters without tag name duplicates.",
        ArgumentName="x-amz-tagging",
        ArgumentValue=value.decode("latin-1"),
    )
