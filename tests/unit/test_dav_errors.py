"""Every error has an answer."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from dav.errors import ENGINE_ERRORS, DavError, error_body, explain, status_line, translate
from dav.names import BadTarget, NoName, OtherHost
from engine import errors
from engine.errors import EngineError
from engine.http.message import BodyBroken
from tests.support.logs import Logs


def leaves(kind: type[EngineError]) -> Iterator[type[EngineError]]:
    for child in kind.__subclasses__():
        yield child
        yield from leaves(child)


def test_the_table_has_every_error_that_frontends_may_meet() -> None:
    public = {getattr(errors, name) for name in errors.__all__}
    assert public <= set(ENGINE_ERRORS)


def test_every_status_has_a_line() -> None:
    for status in {*ENGINE_ERRORS.values(), 207, 423, 424, 401, 405, 502}:
        code, _, phrase = status_line(status).partition(" ")
        assert int(code) == status
        assert phrase


def test_an_error_without_a_row_of_its_own_is_answered_as_its_kind() -> None:
    class Fresh(errors.StorageError):
        pass

    assert translate(Fresh("x")).status == ENGINE_ERRORS[errors.StorageError]


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (DavError(418), 418),
        (BadTarget("x"), 400),
        (NoName(), 404),
        (OtherHost(), 502),
        (BodyBroken("timeout"), 408),
        (BodyBroken("disconnected"), 400),
        (BodyBroken("framing"), 400),
        (errors.NoSuchKey("b", "k"), 404),
        (errors.PreconditionFailed("If-Match"), 412),
        (errors.NoSuchBucket("b"), 404),
        (errors.BucketNotEmpty("b"), 409),
    ],
)
def test_what_is_the_clients_fault_is_not_logged(error: Exception, status: int) -> None:
    assert explain(error).status == status


def test_a_full_or_failing_store_is_logged(logs: Logs) -> None:
    logs.expect("dav.storage_failed")
    assert explain(errors.NoSpace()).status == 507
    busy = explain(errors.SlowDown())
    assert (busy.status, busy.headers) == (503, [("Retry-After", "1")])
    assert explain(errors.Corrupt("x")).status == 500


def test_a_bug_is_logged_and_says_nothing(logs: Logs) -> None:
    logs.expect("dav.request_failed")
    answered = explain(LookupError("secret"))
    assert answered.status == 500
    assert b"secret" not in error_body(answered)[1]


def test_preconditions_are_xml_and_the_rest_is_escaped() -> None:
    kind, body = error_body(DavError(423, condition="lock-token-submitted", hrefs=["/a&b"]))
    assert kind.startswith("application/xml")
    assert b"<D:lock-token-submitted><D:href>/a&amp;b</D:href></D:lock-token-submitted>" in body
    kind, body = error_body(DavError(404, "<script>"))
    assert b"<script>" not in body
