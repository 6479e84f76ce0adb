"""207 for trees: only the members that failed are in it (RFC 4918, sections 9.6.1 and 9.8.5)."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from dav.errors import status_line, translate
from dav.names import href
from dav.request import Reply
from dav.tree import Failure

HEAD = '<?xml version="1.0" encoding="utf-8"?>\n<D:multistatus xmlns:D="DAV:">'
TAIL = "</D:multistatus>"
XML_TYPE = "application/xml; charset=utf-8"


def multistatus(bucket: str, failures: Sequence[Failure]) -> Reply:
    parts = [HEAD]
    for failure in failures:
        is_folder = failure.key.endswith("/")
        where = href(bucket, failure.key.removesuffix("/"), folder=is_folder)
        answered = translate(failure.error)
        condition = f"<D:error><D:{answered.condition}/></D:error>" if answered.condition else ""
        parts.append(
            f"<D:response><D:href>{escape(where)}</D:href>"
            f"<D:status>HTTP/1.1 {status_line(answered.status)}</D:status>{condition}</D:response>"
        )
    parts.append(TAIL)
    return Reply(207, [("Content-Type", XML_TYPE)], "".join(parts).encode())
