"""``python -m benchmarks.cluster``: what sockets between gateway and drives cost.

Six drives, 4+2, 64 MiB objects, in two stores side by side: all drives in the server's own
processes, and one member daemon for each drive, reached over loopback. The target is at least
60 % of the former's rate, on two cores that run client, gateway and all six daemons.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import secrets
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

from benchmarks.measure import MIB, BenchmarkFailed, Sample
from benchmarks.servers import DRIVES, HOST, ROOT, run_lode
from benchmarks.signed import Endpoint, request_head, request_heads
from benchmarks.stream_client import run_stream
from benchmarks.transfers import in_turn
from s3.auth.credentials import Credential

SIZE = 64 * MIB
OBJECTS = 4
RATIO_MIN = 0.6
BUCKET = "cluster"
STOP_S_MAX = 60.0

LODE = (sys.executable, "-m", "cli.main")


@contextlib.contextmanager
def run_cluster(folder: Path, *, workers: int) -> Iterator[Endpoint]:
    """Serve a store whose six drives are members of their own, until the context is left.

    Raises: BenchmarkFailed.
    """
    credential = Credential("BENCHMARK", secrets.token_hex(20), "", "")
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "LODE_ACCESS_KEY": credential.access_key,
        "LODE_SECRET_KEY": credential.secret_key,
    }
    store = str(folder / "store")
    with contextlib.ExitStack() as stack:
        log = stack.enter_context((folder / "cluster.log").open("wb"))

        def run(*arguments: str) -> str:
            done = subprocess.run(
                [*LODE, *arguments, "--data", store],
                cwd=folder,
                env=environment,
                capture_output=True,
                text=True,
                check=False,
            )
            if done.returncode:
                raise BenchmarkFailed(f"lode {arguments[0]}: {done.stderr.strip()[-600:]}")
            return done.stdout

        def start(*arguments: str) -> tuple[subprocess.Popen[bytes], str]:
            process = subprocess.Popen(
                [*LODE, *arguments, "--log-level", "warning"],
                cwd=folder,
                env=environment,
                stdout=subprocess.PIPE,
                stderr=log,
            )
            stack.callback(_stop, process)
            assert process.stdout is not None
            words = process.stdout.readline().decode().split()
            address = next((word for word in words if "=http://" in word), None)
            if address is None:
                raise BenchmarkFailed(f"lode {arguments[0]} did not start")
            return process, address.partition("://")[2]

        run("cluster", "init", "--profile", "4+2")
        key = folder / "cluster.key"
        key.touch(0o600)
        key.write_text(run("cluster", "secret"))
        pids = []
        for number in range(1, DRIVES + 1):
            process, address = start(
                *("node", "--data", str(folder / f"member{number}"), "--name", f"m{number}"),
                *("--listen", f"{HOST}:0", "--secret-file", str(key)),
            )
            pids.append(process.pid)
            run("node", "add", address)
        gateway, address = start(
            "serve", "--data", store, "--s3", f"{HOST}:0", "--workers", str(workers)
        )
        port = int(address.rpartition(":")[2])
        yield Endpoint(HOST, port, credential, (gateway.pid, *pids))


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(STOP_S_MAX)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def measure(
    endpoints: dict[str, Endpoint], method: str, *, connections: int, rounds: int, seconds: float
) -> float:
    """Print the rates; return the cluster's as a share of the other's, by medians."""
    targets = [f"/{BUCKET}/{number}" for number in range(max(OBJECTS, connections))]
    size = SIZE if method == "PUT" else None
    runs = {
        name: partial(
            run_stream,
            endpoint,
            request_heads(endpoint, method, targets, body_size=size),
            connections=connections,
            seconds=seconds,
            body_size=size or 0,
            response_size=0 if size else SIZE,
        )
        for name, endpoint in endpoints.items()
    }
    samples = in_turn(runs, rounds)
    rates = {name: _rate(found) for name, found in samples.items()}
    ratio = rates["cluster"] / rates["in process"]
    figures = ", ".join(
        f"{name} {rate:.0f} MiB/s at {_cost(samples[name]):.2f} ms of CPU per MiB"
        for name, rate in rates.items()
    )
    print(f"{method} 64 MiB x {connections}: {figures}: {ratio:.0%}", flush=True)
    return ratio


def _rate(samples: Sequence[Sample]) -> float:
    return statistics.median(sample.bytes_per_second for sample in samples) / MIB


def _cost(samples: Sequence[Sample]) -> float:
    return statistics.median(sample.cpu_s * 1e3 / (sample.bytes / MIB) for sample in samples)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.cluster", description=__doc__)
    parser.add_argument("--folder", type=Path, default=None, help="on the disk to be measured")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=3.0, help="length of every run")
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    ratios = []
    with (
        tempfile.TemporaryDirectory(prefix="lode-bench-", dir=options.folder) as made,
        contextlib.ExitStack() as stack,
    ):
        folders = [Path(made) / name for name in ("local", "cluster")]
        for folder in folders:
            folder.mkdir()
        local = stack.enter_context(run_lode(folders[0], workers=options.workers))
        cluster = stack.enter_context(run_cluster(folders[1], workers=options.workers))
        endpoints = {"in process": local.endpoint, "cluster": cluster}
        for endpoint in endpoints.values():
            head = request_head(endpoint, "PUT", f"/{BUCKET}", body_size=0)
            run_stream(endpoint, [head], connections=1, seconds=10.0, requests_max=1)
        load = {"rounds": options.rounds, "seconds": options.seconds}
        ratios = [
            measure(endpoints, method, connections=connections, **load)
            for method in ("PUT", "GET")
            for connections in (1, 4)
        ]
    print(f"at least {RATIO_MIN:.0%}: {'yes' if min(ratios) >= RATIO_MIN else 'NO'}")


if __name__ == "__main__":
    main()
