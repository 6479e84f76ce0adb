"""What a worker process is given and does to itself before it serves."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path

import pytest
import structlog

from cli.credentials import Credentials
from cli.handover import (
    Report,
    WorkerConfig,
    decode_config,
    decode_report,
    encode_config,
    encode_report,
)
from cli.logs import configure_logs
from engine.config import Profile, StoreConfig


def test_a_config_survives_the_pipe() -> None:
    config = WorkerConfig(
        number=2,
        store=StoreConfig(data=Path("/a b"), drives=(Path("/d/1"),), profile=Profile(4, 2)),
        sockets=[5, 7],
        board=9,
        workers=2,
        credentials=Credentials("access", "secret\nsecret"),
        owner_id="owner",
        region="eu-1",
        domains=("s3.example.org",),
        tls_cert=Path("/cert"),
        tls_key=None,
        log_level="debug",
        log_json=False,
    )
    line = encode_config(config)
    assert line.count(b"\n") == 1
    assert decode_config(line) == config


def test_a_report_survives_the_pipe() -> None:
    report = Report(ready=False, message="no\nroom", usage=True)
    line = encode_report(report)
    assert line.count(b"\n") == 1
    assert decode_report(line) == report


def test_logs_are_json_lines_where_no_terminal_is(monkeypatch: pytest.MonkeyPatch) -> None:
    stderr = io.TextIOWrapper(io.BytesIO())
    monkeypatch.setattr(sys, "stderr", stderr)
    configure_logs("info", as_json=False, worker=3)
    log = structlog.get_logger()
    log.debug("not written")
    log.info("event", path=Path("/x"), size=1)
    try:
        raise ValueError("why")
    except ValueError:
        log.exception("failed")
    structlog.contextvars.clear_contextvars()
    first, second = map(json.loads, stderr.buffer.getvalue().splitlines())
    assert first["event"] == "event"
    assert first["level"] == "info"
    assert first["worker"] == 3
    assert first["path"] == "/x"
    assert first["timestamp"].endswith("Z")
    assert second["level"] == "error"
    assert "ValueError: why" in second["exception"]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc only")
def test_big_buffers_are_used_again_instead_of_faulted_in() -> None:
    # In a process of its own: the setting cannot be taken back.
    code = """
import resource
from cli.allocator import keep_memory
assert keep_memory()
bytearray(8 << 20)
start = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(100):
    bytearray(1 << 20)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - start)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    # Without the setting each buffer is 256 fresh pages: 25,600 faults.
    assert int(done.stdout) < 2_500


def test_a_worker_started_by_hand_says_how_to_start_it() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "cli.worker"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 1
    assert "lode serve" in done.stderr.splitlines()[-1]
