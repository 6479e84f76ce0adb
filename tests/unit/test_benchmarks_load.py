"""The benchmarks' clients: what they send is signed, what comes back is checked."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.measure import BenchmarkFailed
from benchmarks.servers import find_nginx, run_bare
from benchmarks.signed import REGION, Endpoint, request_head
from benchmarks.stream_client import Job, run_job
from benchmarks.wrk import find_wrk, make_script, parse_result, run_wrk, threads_for
from engine.http.message import HeaderList
from s3.auth.credentials import Credential, RootCredential
from s3.auth.sigv4 import Authenticator
from tests.support.s3_signing import request_of

CREDENTIAL = Credential("BENCHMARK", "a secret of its own", "owner", "root")


@contextlib.contextmanager
def serve_once(answer: bytes) -> Iterator[Endpoint]:
    """Answer every connection's first bytes with ``answer`` and close it."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        ended = threading.Event()

        def serve() -> None:
            while True:
                sock, _ = listener.accept()
                with sock:
                    if ended.is_set():
                        return
                    sock.recv(65536)
                    sock.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        host, port = listener.getsockname()
        try:
            yield Endpoint(host, port)
        finally:
            ended.set()
            socket.create_connection((host, port)).close()
            thread.join()


def job_for(endpoint: Endpoint, response_size: int) -> Job:
    return Job(
        host=endpoint.host,
        port=endpoint.port,
        heads=[b"GET /1 HTTP/1.1\r\n\r\n"],
        connections=1,
        seconds=30,
        requests_max=1,
        response_size=response_size,
    )


def parse(head: bytes) -> tuple[str, str, HeaderList]:
    lines = head.removesuffix(b"\r\n\r\n").split(b"\r\n")
    method, target, version = lines[0].split(b" ")
    assert version == b"HTTP/1.1"
    headers = [(name, value) for name, _, value in (line.partition(b": ") for line in lines[1:])]
    return method.decode(), target.decode(), headers


@pytest.mark.parametrize(
    ("method", "target", "body_size"),
    [
        ("GET", "/bench/4096/000001", None),
        ("PUT", "/bench/4096/000001", 4096),
        ("GET", "/many?list-type=2&start-after=folder-000001%2Fdata", None),
    ],
)
def test_requests_carry_a_signature_that_the_server_accepts(
    method: str, target: str, body_size: int | None
) -> None:
    endpoint = Endpoint("127.0.0.1", 9000, CREDENTIAL)
    head = request_head(endpoint, method, target, body_size=body_size)
    sent_method, sent_target, headers = parse(head)
    assert (sent_method, sent_target) == (method, target)
    assert dict(headers).get(b"content-length") == (
        None if body_size is None else str(body_size).encode()
    )
    path, _, query = sent_target.partition("?")
    authenticator = Authenticator(
        credentials=RootCredential(CREDENTIAL),
        region=REGION,
        clock=lambda: time.time_ns() // 1_000_000,
    )
    identity = authenticator.authenticate(
        request_of(method, path.encode(), query.encode(), headers)
    )
    assert identity.access_key == CREDENTIAL.access_key


def test_yardsticks_get_no_signature() -> None:
    _, _, headers = parse(request_head(Endpoint("127.0.0.1", 9000), "GET", "/4096"))
    assert [name for name, _ in headers] == [b"host"]


def test_streaming_client_counts_what_crossed_in_both_directions() -> None:
    with run_bare(workers=1) as endpoint:
        got, failures = run_job(
            Job(
                host=endpoint.host,
                port=endpoint.port,
                connections=3,
                seconds=30,
                requests_max=7,
                heads=[request_head(endpoint, "GET", "/3000000")],
                response_size=3_000_000,
            )
        )
        assert failures == []
        assert (got.requests, got.bytes) == (7, 21_000_000)
        put, failures = run_job(
            Job(
                host=endpoint.host,
                port=endpoint.port,
                connections=2,
                seconds=30,
                requests_max=4,
                heads=[request_head(endpoint, "PUT", "/sink", body_size=1_000_000)],
                body_size=1_000_000,
            )
        )
        assert failures == []
        assert (put.requests, put.bytes, put.failed) == (4, 4_000_000, 0)


def test_streaming_client_refuses_another_status() -> None:
    with serve_once(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 6\r\n\r\ndenied") as endpoint:
        sample, failures = run_job(job_for(endpoint, 6))
    assert (sample.requests, sample.failed) == (0, 1)
    assert "status 403" in failures[0]


def test_streaming_client_refuses_a_shorter_body() -> None:
    with serve_once(b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\n123456") as endpoint:
        sample, failures = run_job(job_for(endpoint, 7))
    assert sample.failed == 1
    assert "6 bytes" in failures[0]


def test_streaming_client_refuses_a_body_that_breaks_off() -> None:
    with serve_once(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n123456") as endpoint:
        sample, failures = run_job(job_for(endpoint, 9))
    assert sample.failed == 1
    assert "closed within a body" in failures[0]


def test_wrk_result_counts_every_kind_of_failure() -> None:
    line = (
        'RESULT {"requests":200,"us":2000000,"bytes":9,"p50_us":1500,"p99_us":2500,'
        '"status":1,"connect":2,"read":3,"write":4,"timeout":5}'
    )
    sample = parse_result(f"Running 2s test\n{line}\n", payload_size=10)
    assert (sample.per_second, sample.bytes, sample.failed) == (100, 2000, 15)
    assert (sample.p50_ms, sample.p99_ms) == (1.5, 2.5)


def test_wrk_without_a_result_is_an_error() -> None:
    with pytest.raises(BenchmarkFailed, match="unable to connect"):
        parse_result("unable to connect to 127.0.0.1", payload_size=1)


def test_wrk_script_holds_every_request_whole(tmp_path: Path) -> None:
    make_script(tmp_path, [b"first", b"the second"], b"body", 1)
    assert (tmp_path / "heads.bin").read_bytes() == b"firstthe second"
    assert 'gmatch("%d+")' in (tmp_path / "load.lua").read_text()
    assert '"5 10"' in (tmp_path / "load.lua").read_text()


def test_threads_grow_with_connections_up_to_the_cores() -> None:
    assert threads_for(1) == threads_for(16) == 1
    assert threads_for(10_000) >= threads_for(32) >= 1


def test_missing_tools_are_named_with_their_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda name, path=None: None)
    with pytest.raises(BenchmarkFailed, match="apt-get install wrk"):
        find_wrk()
    with pytest.raises(BenchmarkFailed, match="apt-get install nginx-light"):
        find_nginx()


def test_wrk_sends_the_requests_and_checks_the_length(tmp_path: Path) -> None:
    try:
        find_wrk()
    except BenchmarkFailed as missing:
        pytest.skip(str(missing))
    with run_bare(workers=1) as endpoint:
        heads = [request_head(endpoint, "GET", "/1000")] * 3
        sample = run_wrk(
            endpoint, heads, folder=tmp_path, connections=2, seconds=1, response_size=1000
        )
        assert sample.requests > 0
        assert sample.failed == 0
        with pytest.raises(BenchmarkFailed, match="not 2000"):
            run_wrk(endpoint, heads, folder=tmp_path, connections=2, seconds=1, response_size=2000)


def test_bare_server_is_gone_afterwards() -> None:
    with run_bare(workers=2) as endpoint:
        assert len(endpoint.pids) == 2
    for pid in endpoint.pids:
        found = subprocess.run(["ps", "-p", str(pid)], capture_output=True, check=False)
        assert found.returncode != 0
