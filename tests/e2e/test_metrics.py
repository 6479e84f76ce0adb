"""``--metrics``: what Prometheus and a load balancer see of a running server."""

from __future__ import annotations

import os
import signal
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.support.clients import s3_client
from tests.support.server import Server, serving

WAIT_S = 120.0


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("metrics")
    with serving(folder / "store", "--workers", "2", "--metrics", "127.0.0.1:0") as running:
        yield running


def fetch(server: Server, path: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(server.metrics_url + path, timeout=WAIT_S) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def figures(server: Server) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    status, text = fetch(server, "/metrics")
    assert status == 200
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def total(server: Server, name: str, **labels: str) -> float:
    """Add up all samples of the name that have these labels."""
    return sum(
        value
        for (sample, found), value in figures(server).items()
        if sample == name and labels.items() <= dict(found).items()
    )


def test_requests_of_all_workers_are_added_up(server: Server) -> None:
    client = s3_client(server)
    client.create_bucket(Bucket="counted")
    before = total(server, "lode_requests_total", operation="PutObject")
    sent = total(server, "lode_body_bytes_total", frontend="s3", direction="in")
    for number in range(20):
        # A connection each, so that both workers get some.
        s3_client(server).put_object(Bucket="counted", Key=f"key{number}", Body=b"x" * 1000)
    assert total(server, "lode_requests_total", operation="PutObject") - before == 20
    assert total(server, "lode_request_seconds_count", operation="PutObject") - before == 20
    assert total(server, "lode_body_bytes_total", frontend="s3", direction="in") - sent >= 20_000


def test_errors_are_counted_by_their_code(server: Server) -> None:
    client = s3_client(server)
    with pytest.raises(client.exceptions.NoSuchBucket):
        client.list_objects_v2(Bucket="absent-bucket")
    assert total(server, "lode_requests_total", code="NoSuchBucket", status="404") == 1


def test_the_state_of_the_drives_is_shown(server: Server) -> None:
    deadline = time.monotonic() + WAIT_S
    while total(server, "lode_node_state", state="up") != 1:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert total(server, "lode_node_bytes", kind="total") > 0


def test_health_and_readiness_are_told_apart(server: Server) -> None:
    assert fetch(server, "/healthz") == (200, "ok\n")
    assert fetch(server, "/readyz") == (200, "ok\n")
    assert fetch(server, "/other")[0] == 404
    worker = server.workers[0]
    os.kill(worker, signal.SIGKILL)
    deadline = time.monotonic() + WAIT_S
    while worker in server.workers or fetch(server, "/readyz")[0] != 200:
        assert fetch(server, "/healthz")[0] == 200
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_figures_outlive_the_worker_that_counted_them(server: Server) -> None:
    s3_client(server).list_buckets()
    before = total(server, "lode_requests_total")
    for worker in server.workers:
        os.kill(worker, signal.SIGKILL)
    deadline = time.monotonic() + WAIT_S
    while fetch(server, "/readyz")[0] != 200:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    s3_client(server).list_buckets()
    assert total(server, "lode_requests_total") > before


def test_no_folder_is_left_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scratch = tmp_path / "tmp"
    scratch.mkdir()
    environment = {"TMPDIR": str(scratch)}
    arguments = ("--workers", "1", "--metrics", "127.0.0.1:0")
    with serving(tmp_path / "store", *arguments, environment=environment) as server:
        assert list(scratch.iterdir())
        assert server.stop() == 0
    assert list(scratch.iterdir()) == []
