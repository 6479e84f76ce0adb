"""DeleteObjects: up to 1,000 deletes in one request."""

from __future__ import annotations

from engine.errors import EngineError
from engine.http.message import Response
from engine.types import Deleted, DeleteItem
from s3.body import read_document, understand
from s3.conditions import delete_item_conditions
from s3.config import Api
from s3.errors import S3Error, s3_error, translate
from s3.request import S3Request, check_key
from s3.responses import xml_response
from s3.xml import Element, element, malformed, parse

ITEMS_MAX = 1000


async def delete_objects(api: Api, request: S3Request) -> Response:
    raw = await read_document(
        request, limit=api.config.large_document_size_max, digest_required=True
    )
    items, quiet = await understand(raw, parse_delete)
    refused: dict[int, S3Error] = {}
    for index, item in enumerate(items):
        try:
            check_key(item.key)
        except S3Error as error:
            refused[index] = error
    accepted = [item for index, item in enumerate(items) if index not in refused]
    answers = iter(await api.engine.delete_many(request.bucket, accepted))
    rows = []
    for index, item in enumerate(items):
        refusal = refused.get(index)
        answer = next(answers) if refusal is None else refusal
        if isinstance(answer, EngineError):
            rows.append(_error(item, translate(answer)))
        elif isinstance(answer, S3Error):
            rows.append(_error(item, answer))
        elif not quiet:
            rows.append(_deleted(item, answer))
    return xml_response("DeleteResult", rows)


def parse_delete(raw: bytes) -> tuple[list[DeleteItem], bool]:
    """Return the items of a Delete document and whether only errors are wanted.

    Raises:
        S3Error: MalformedXML, also for none or more than ``ITEMS_MAX`` objects.
    """
    root = parse(raw, "Delete")
    quiet = (root.get("Quiet") or "false").strip().lower()
    if quiet not in ("true", "false"):
        raise malformed()
    found = root.find_all("Object")
    if not 0 < len(found) <= ITEMS_MAX:
        raise malformed()
    return [_item(each) for each in found], quiet == "true"


def _item(each: Element) -> DeleteItem:
    key = each.get("Key")
    if not key:
        raise s3_error("UserKeyMustBeSpecified") if key == "" else malformed()
    conditions = delete_item_conditions(
        etag=each.get("ETag"), size=each.get("Size"), modified=each.get("LastModifiedTime")
    )
    return DeleteItem(key, each.get("VersionId") or None, conditions)


def _deleted(item: DeleteItem, deleted: Deleted) -> str:
    parts = ["<Deleted>", element("Key", item.key)]
    if item.version_id is not None:
        parts.append(element("VersionId", item.version_id))
    if deleted.delete_marker:
        parts.append("<DeleteMarker>true</DeleteMarker>")
        if deleted.version_id is not None:
            parts.append(element("DeleteMarkerVersionId", deleted.version_id))
    parts.append("</Deleted>")
    return "".join(parts)


def _error(item: DeleteItem, error: S3Error) -> str:
    parts = ["<Error>", element("Key", item.key)]
    if item.version_id is not None:
        parts.append(element("VersionId", item.version_id))
    parts += [element("Code", error.code), element("Message", error.message), "</Error>"]
    return "".join(parts)
