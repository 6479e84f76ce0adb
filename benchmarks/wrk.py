"""Small requests: load from ``wrk``, which costs about 3 us of CPU per request.

The requests are whole and signed before it starts; its Lua side only hands them out in turn.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import msgspec

from benchmarks.machine import cpu_seconds
from benchmarks.measure import BenchmarkFailed, Sample
from benchmarks.signed import Endpoint

CONNECTIONS_PER_THREAD = 16
OVERTIME_S = 30.0

_SCRIPT = """\
local threads = 0
function setup(thread)
  thread:set("number", threads)
  threads = threads + 1
end

function init(args)
  local file = assert(io.open("{heads}", "rb"))
  local heads = file:read("*a")
  file:close()
  file = assert(io.open("{body}", "rb"))
  local body = file:read("*a")
  file:close()
  requests, from = {{}}, 1
  for size in ("{sizes}"):gmatch("%d+") do
    requests[#requests + 1] = heads:sub(from, from + size - 1) .. body
    from = from + size
  end
  -- Threads begin apart, so that two of them do not write the same key.
  turn = math.floor(#requests * number / {threads})
end

function request()
  turn = turn % #requests + 1
  return requests[turn]
end

function done(summary, latency)
  local errors = summary.errors
  io.write(string.format(
    'RESULT {{"requests":%d,"us":%d,"bytes":%d,"p50_us":%d,"p99_us":%d,"status":%d,' ..
    '"connect":%d,"read":%d,"write":%d,"timeout":%d}}\\n',
    summary.requests, summary.duration, summary.bytes, latency:percentile(50),
    latency:percentile(99), errors.status, errors.connect, errors.read, errors.write,
    errors.timeout))
end
"""


def find_wrk() -> str:
    """Raises: BenchmarkFailed: says what to install."""
    found = shutil.which("wrk")
    if found is None:
        raise BenchmarkFailed("wrk is not installed: apt-get install wrk")
    return found


def make_script(folder: Path, heads: list[bytes], body: bytes, threads: int) -> Path:
    """Write the Lua script and its data into ``folder`` and return the script's path."""
    (folder / "heads.bin").write_bytes(b"".join(heads))
    (folder / "body.bin").write_bytes(body)
    script = folder / "load.lua"
    script.write_text(
        _SCRIPT.format(
            heads=folder / "heads.bin",
            body=folder / "body.bin",
            sizes=" ".join(str(len(head)) for head in heads),
            threads=threads,
        )
    )
    return script


def threads_for(connections: int) -> int:
    cores = len(os.sched_getaffinity(0))
    return max(1, min(cores, connections // CONNECTIONS_PER_THREAD))


def parse_result(output: str, *, payload_size: int) -> Sample:
    """Return the sample in the line that the script's ``done`` wrote.

    Args:
        payload_size: bytes of payload per request.
    Raises: BenchmarkFailed: there is no such line, or answers were shorter than the payload.
    """
    line = next((text for text in output.splitlines() if text.startswith("RESULT ")), None)
    if line is None:
        raise BenchmarkFailed(f"wrk gave no result: {output.strip()[-300:]}")
    result = json.loads(line.removeprefix("RESULT "))
    kinds = ("status", "connect", "read", "write", "timeout")
    return Sample(
        requests=result["requests"],
        seconds=result["us"] / 1e6,
        bytes=result["requests"] * payload_size,
        p50_ms=result["p50_us"] / 1e3,
        p99_ms=result["p99_us"] / 1e3,
        failed=sum(result[kind] for kind in kinds),
    )


def run_wrk(
    endpoint: Endpoint,
    heads: list[bytes],
    *,
    folder: Path,
    connections: int,
    seconds: int,
    body: bytes = b"",
    response_size: int = 0,
) -> Sample:
    """Send the requests in turn over ``connections`` for ``seconds``, whole ones as wrk wants them.

    Args:
        body: follows every head.
        response_size: least bytes that every answer's body must have, on the average.
    Raises: BenchmarkFailed.
    """
    threads = threads_for(connections)
    script = make_script(folder, heads, body, threads)
    command = [find_wrk(), f"-t{threads}", f"-c{connections}", f"-d{seconds}s"]
    command += ["--timeout", "20s", "-s", str(script), f"http://{endpoint.authority}/"]
    cpu_before = cpu_seconds(endpoint.pids)
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=seconds + OVERTIME_S, check=False
        )
    except subprocess.TimeoutExpired:
        raise BenchmarkFailed(f"wrk did not end within {seconds + OVERTIME_S:.0f} s") from None
    if done.returncode:
        raise BenchmarkFailed(f"wrk failed: {(done.stderr or done.stdout).strip()[-300:]}")
    sample = parse_result(done.stdout, payload_size=max(len(body), response_size))
    sample = msgspec.structs.replace(sample, cpu_s=cpu_seconds(endpoint.pids) - cpu_before)
    received = json.loads(done.stdout.split("RESULT ", 1)[1].splitlines()[0])["bytes"]
    if received < sample.requests * response_size:
        raise BenchmarkFailed(
            f"answers of {received / max(1, sample.requests):.0f} bytes, not {response_size}"
        )
    return sample
