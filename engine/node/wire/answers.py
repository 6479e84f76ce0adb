"""What a member makes of a request's words, and of its own errors. Pure, no I/O."""

from __future__ import annotations

from typing import Final

from engine.http.message import HeaderList, Response
from engine.node.contract import NodeBusy, NodeError, NodeRefused
from engine.node.wire import auth, messages
from engine.node.wire.messages import ErrorReport

JSON: Final = ((b"Content-Type", b"application/json"),)
_BUSY: Final = (*JSON, (b"Retry-After", b"1"))


class Malformed(Exception):
    """The request makes no sense; the message says why."""


def parse_range(value: bytes) -> tuple[int, int]:
    """Return where to begin and end (exclusive)."""
    unit, _, part = value.partition(b"=")
    first, dash, last = part.partition(b"-")
    if unit != b"bytes" or not dash or not first.isdigit() or not last.isdigit():
        raise Malformed("a range is written as bytes=FIRST-LAST")
    begin, end = int(first), int(last) + 1
    if begin >= end:
        raise Malformed("an empty range")
    return begin, end


def parse_id(text: bytes, size: int) -> bytes:
    value = bytes.fromhex(text.decode("ascii"))
    if len(value) != size:
        raise Malformed(f"an id has {2 * size} hexadecimal digits")
    return value


def end_of(trailers: HeaderList) -> bytes | None:
    for name, value in trailers:
        if name == auth.END_TRAILER:
            return value
    return None


def failure_answer(error: NodeError) -> Response:
    status, code = messages.status_of(error)
    body = messages.encode_json(ErrorReport(code.decode("ascii"), str(error)))
    headers = _BUSY if isinstance(error, NodeBusy) else JSON
    return Response(
        status,
        (*headers, (b"Lode-Error", code)),
        body,
        close=isinstance(error, NodeRefused),
    )


def explain(status: int, code: str, reason: str) -> Response:
    return Response(status, JSON, messages.encode_json(ErrorReport(code, reason)), close=True)
