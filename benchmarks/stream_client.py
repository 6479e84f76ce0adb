"""Large bodies: a client of plain sockets and threads, in a process of its own.

wrk reads 8 KiB at a time and keeps bodies in Lua; this reads into one warm buffer per connection
and sends from one shared body, so it costs little more than the kernel's copies. It reads a job
(JSON) on standard input and writes a ``Sample`` (JSON) on standard output.
"""

from __future__ import annotations

import itertools
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec

from benchmarks.machine import cpu_seconds
from benchmarks.measure import BenchmarkFailed, Sample
from benchmarks.signed import Endpoint

RECEIVE = 1 << 20
HEAD_MAX = 64 * 1024
SOCKET_S_MAX = 120.0
OVERTIME_S = 240.0


class Job(msgspec.Struct, frozen=True, kw_only=True):
    host: str
    port: int
    heads: list[bytes]
    """Sent in turn, over and over."""
    connections: int
    seconds: float
    """No request starts later than this; those under way are finished and counted."""
    requests_max: int = 0
    """0: as many as the time allows."""
    body_size: int = 0
    response_size: int = 0
    """Bytes that every answer's body must have; -1: any."""
    statuses: tuple[int, ...] = (200,)
    """Answers that count."""


class _Results:
    """What the connections found out; only appended to, which is atomic."""

    def __init__(self) -> None:
        self.latencies: list[float] = []
        self.failures: list[str] = []


def _read_head(sock: socket.socket, buffer: memoryview) -> tuple[int, int, int]:
    """Return (status, Content-Length, body bytes that came with the head)."""
    filled = 0
    while True:
        count = sock.recv_into(buffer[filled:])
        if not count:
            raise ConnectionError("closed by the server")
        filled += count
        raw = bytes(buffer[: min(filled, HEAD_MAX)])
        end = raw.find(b"\r\n\r\n")
        if end >= 0:
            break
        if filled >= HEAD_MAX:
            raise ConnectionError("an endless head")
    lines = raw[:end].lower().split(b"\r\n")
    length = next((int(line[15:]) for line in lines if line.startswith(b"content-length:")), -1)
    return int(lines[0].split(b" ", 2)[1]), length, filled - end - 4


def _exchange(
    sock: socket.socket, head: bytes, body: memoryview, job: Job, buffer: memoryview
) -> None:
    """Send one request and read its answer. Raises OSError when it is not what it should be."""
    sock.sendall(head)
    if body:
        sock.sendall(body)
    status, length, received = _read_head(sock, buffer)
    while received < length:
        count = sock.recv_into(buffer)
        if not count:
            raise ConnectionError("closed within a body")
        received += count
    if status not in job.statuses or job.response_size not in (received, -1):
        raise ConnectionError(f"status {status}, {received} bytes: {bytes(buffer[:300])!r}")


def _connection(
    job: Job, turns: Iterator[int], ends_at: float, body: memoryview, results: _Results
) -> None:
    buffer = memoryview(bytearray(RECEIVE))
    try:
        with socket.create_connection((job.host, job.port), timeout=SOCKET_S_MAX) as sock:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            for turn in turns:
                started = time.monotonic()
                if started >= ends_at or 0 < job.requests_max <= turn:
                    return
                _exchange(sock, job.heads[turn % len(job.heads)], body, job, buffer)
                results.latencies.append(time.monotonic() - started)
    except (OSError, ValueError) as error:
        results.failures.append(str(error))


def run_job(job: Job) -> tuple[Sample, list[str]]:
    """Run the load in this process; return the sample and what went wrong."""
    body = memoryview(bytes(range(256)) * (job.body_size // 256) + bytes(job.body_size % 256))
    results = _Results()
    turns = itertools.count()
    started = time.monotonic()
    threads = [
        threading.Thread(
            target=_connection, args=(job, turns, started + job.seconds, body, results)
        )
        for _ in range(job.connections)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    elapsed = time.monotonic() - started
    latencies = sorted(results.latencies)
    count = len(latencies)
    sample = Sample(
        requests=count,
        seconds=elapsed,
        bytes=count * max(job.body_size, job.response_size),
        p50_ms=latencies[count // 2] * 1e3 if count else 0.0,
        p90_ms=latencies[min(count - 1, count * 9 // 10)] * 1e3 if count else 0.0,
        p99_ms=latencies[min(count - 1, count * 99 // 100)] * 1e3 if count else 0.0,
        failed=len(results.failures),
    )
    return sample, results.failures


def run_stream(endpoint: Endpoint, heads: list[bytes], **load: float | tuple[int, ...]) -> Sample:
    """Run a ``Job`` in a process of its own; ``load`` has its further fields.

    Raises: BenchmarkFailed: a request failed, or it did not end in time.
    """
    job = msgspec.convert({"host": endpoint.host, "port": endpoint.port, "heads": [], **load}, Job)
    job = msgspec.structs.replace(job, heads=heads)
    cpu_before = cpu_seconds(endpoint.pids)
    try:
        done = subprocess.run(
            [sys.executable, "-m", "benchmarks.stream_client"],
            input=msgspec.json.encode(job),
            capture_output=True,
            cwd=Path(__file__).resolve().parents[1],
            timeout=job.seconds + OVERTIME_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise BenchmarkFailed("the streaming client did not end") from None
    if done.returncode:
        raise BenchmarkFailed(f"streaming client: {done.stderr.decode().strip()[-600:]}")
    sample = msgspec.json.decode(done.stdout, type=Sample)
    return msgspec.structs.replace(sample, cpu_s=cpu_seconds(endpoint.pids) - cpu_before)


def main() -> None:
    sample, failures = run_job(msgspec.json.decode(sys.stdin.buffer.read(), type=Job))
    if failures:
        sys.exit(f"{len(failures)} requests failed: {failures[0]}")
    sys.stdout.buffer.write(msgspec.json.encode(sample))


if __name__ == "__main__":
    main()
