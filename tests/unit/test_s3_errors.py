"""The table from the engine's errors to S3's is complete and says what it should."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import s3
from engine import errors
from engine.errors import EngineError
from engine.meta.kv import LimitExceeded, MetadataFailed
from s3.app import error_headers
from s3.errors import CODES, ENGINE_ERRORS, translate
from s3.responses import error_response


def leaves() -> list[type[EngineError]]:
    classes = [getattr(errors, name) for name in errors.__all__]
    return [kind for kind in classes if not any(k for k in classes if kind in k.__bases__)]


def test_every_leaf_of_the_engines_tree_has_a_row() -> None:
    assert {kind.__name__ for kind in leaves()} == {kind.__name__ for kind in ENGINE_ERRORS}


@pytest.mark.parametrize(
    ("error", "code", "status"),
    [
        (errors.NoSuchBucket("b"), "NoSuchBucket", 404),
        (errors.BucketExists("b", "o"), "BucketAlreadyExists", 409),
        (errors.BucketNotEmpty("b"), "BucketNotEmpty", 409),
        (errors.NoSuchConfiguration("b", "cors"), "NoSuchCORSConfiguration", 404),
        (errors.NoSuchConfiguration("b", "tagging"), "NoSuchTagSet", 404),
        (errors.NoSuchKey("b", "k"), "NoSuchKey", 404),
        (errors.NoSuchVersion("b", "k", "v"), "NoSuchVersion", 404),
        (errors.IsDeleteMarker("b", "k", "v", 0), "MethodNotAllowed", 405),
        (errors.NoSuchUpload("u"), "NoSuchUpload", 404),
        (errors.InvalidName("n", "r"), "InvalidBucketName", 400),
        (errors.InvalidArgument("a", "r"), "InvalidArgument", 400),
        (errors.InvalidRange(5), "InvalidRange", 416),
        (errors.PreconditionFailed("If-Match"), "PreconditionFailed", 412),
        (errors.NotModified("e", 0), "NotModified", 304),
        (errors.ConditionConflict("k"), "ConditionalRequestConflict", 409),
        (errors.Locked("b", "k", ""), "OperationAborted", 409),
        (errors.NoSuchLock("b", "k", "t"), "InternalError", 500),
        (errors.BadDigest("CRC32"), "BadDigest", 400),
        (errors.IncompleteBody(2, 1), "IncompleteBody", 400),
        (errors.EntityTooLarge(2, 1), "EntityTooLarge", 400),
        (errors.EntityTooSmall(1, 2, 3, "e"), "EntityTooSmall", 400),
        (errors.BadPart(1), "InvalidPart", 400),
        (errors.InvalidPartOrder(), "InvalidPartOrder", 400),
        (errors.SlowDown(), "SlowDown", 503),
        (errors.NoSpace(), "InsufficientStorage", 507),
        (errors.QuotaExceeded("b", "bytes", 1, 2), "QuotaExceeded", 403),
        (errors.Unavailable("x"), "ServiceUnavailable", 503),
        (errors.Corrupt("x"), "InternalError", 500),
        (errors.ConfigError("x"), "InternalError", 500),
        (LimitExceeded("x"), "InternalError", 500),
        (MetadataFailed("x"), "InternalError", 500),
    ],
)
def test_translation(error: EngineError, code: str, status: int) -> None:
    answered = translate(error)
    assert (answered.code, answered.status) == (code, status)


def test_codes_that_the_source_names_are_in_the_table() -> None:
    named = set()
    for path in Path(s3.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if (
                isinstance(node, ast.Call)
                and isinstance(node.func, ast.Name)
                and node.func.id in ("s3_error", "_plain")
            ):
                named |= {
                    arg.value
                    for arg in node.args[:1]
                    if isinstance(arg, ast.Constant) and isinstance(arg.value, str)
                }
    assert len(named) > 40
    assert named <= set(CODES)


def test_error_document_escapes_and_names_the_request() -> None:
    answer = error_response(
        translate(errors.NoSuchKey("b", "a<&>\x01")),
        resource="/b/a<",
        request_id="RID",
        host_id="HID",
        headers=[],
        head=False,
    )
    assert answer.status == 404
    assert bytes(answer.body).decode() == (
        '<?xml version="1.0" encoding="UTF-8"?>\n'
        "<Error><Code>NoSuchKey</Code><Message>The specified key does not exist.</Message>"
        "<Key>a&lt;&amp;&gt;\ufffd</Key><Resource>/b/a&lt;</Resource>"
        "<RequestId>RID</RequestId><HostId>HID</HostId></Error>"
    )


def test_head_and_not_modified_get_no_document() -> None:
    for error, head, status in (
        (errors.NoSuchKey("b", "k"), True, 404),
        (errors.NotModified("e", 0), False, 304),
    ):
        answer = error_response(
            translate(error), resource="/", request_id="R", host_id="H", headers=[], head=head
        )
        assert (answer.status, answer.body) == (status, b"")


def test_delete_markers_show_in_headers() -> None:
    assert error_headers(errors.NoSuchKey("b", "k")) == []
    assert dict(error_headers(errors.NoSuchKey("b", "k", "v1"))) == {
        b"x-amz-delete-marker": b"true",
        b"x-amz-version-id": b"v1",
    }
    named = dict(error_headers(errors.IsDeleteMarker("b", "k", "v1", 784111777000)))
    assert named[b"Allow"] == b"DELETE"
    assert named[b"x-amz-delete-marker"] == b"true"
    assert named[b"Last-Modified"] == b"Sun, 06 Nov 1994 08:49:37 GMT"
