"""4 KiB objects through a gateway whose metadata is on FoundationDB, beside the embedded store.

    python -m benchmarks.fdb_gateway /etc/foundationdb/fdb.cluster [--library FILE]

Two gateways with six drives each, alike but for their metadata, in one run: each round puts one
load on the one and then on the other. Objects of 4 KiB lie among the metadata, so FoundationDB
gets their bytes too. It shares the machine with gateway and client when it runs there.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import secrets
import shutil
import statistics
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec

from benchmarks.measure import KIB, BenchmarkFailed, Sample
from benchmarks.servers import run_lode
from benchmarks.signed import Endpoint, request_head, request_heads
from benchmarks.stream_client import run_stream
from benchmarks.wrk import run_wrk
from engine.meta.fdb import FdbLocation

SIZE = 4 * KIB
KEYS = 1000
CONNECTIONS = (1, 64)
ROUNDS = 3
STORES = ("embedded", "fdb")
FILL_S_MAX = 120.0


class Row(msgspec.Struct, frozen=True):
    """Medians over the rounds, of one load on one store."""

    method: str
    connections: int
    store: str
    per_second: float
    p50_ms: float
    p99_ms: float
    gateway_us: float
    """CPU time of the gateway per request, without FoundationDB's server."""


@contextlib.contextmanager
def gateway(folder: Path, meta: str, *, workers: int) -> Iterator[Endpoint]:
    """Serve a store in ``folder``; ``meta``: where its metadata lies, empty: beside it."""
    folder.mkdir()
    with contextlib.ExitStack() as stack:
        if meta:
            os.environ["LODE_META"] = meta
            stack.callback(os.environ.pop, "LODE_META", None)
        yield stack.enter_context(run_lode(folder, workers=workers)).endpoint


def fill(endpoint: Endpoint, targets: list[str]) -> None:
    bucket = [request_head(endpoint, "PUT", "/bench", body_size=0)]
    run_stream(endpoint, bucket, connections=1, seconds=FILL_S_MAX, requests_max=1)
    heads = request_heads(endpoint, "PUT", targets, body_size=SIZE)
    load = {"connections": 16, "seconds": FILL_S_MAX, "requests_max": KEYS, "body_size": SIZE}
    run_stream(endpoint, heads, **load)


def measure(
    endpoints: dict[str, Endpoint], folder: Path, seconds: int
) -> Iterator[tuple[Row, float]]:
    """Yield a row and its share of the embedded store's rate, load by load."""
    targets = [f"/bench/{number:06d}" for number in range(KEYS)]
    for endpoint in endpoints.values():
        fill(endpoint, targets)
    for method in ("PUT", "GET"):
        upload = SIZE if method == "PUT" else 0
        body = bytes(range(256)) * (upload // 256)
        heads = {
            store: request_heads(endpoint, method, targets, body_size=upload or None)
            for store, endpoint in endpoints.items()
        }
        for connections in CONNECTIONS:
            samples: dict[str, list[Sample]] = {store: [] for store in endpoints}
            for _ in range(ROUNDS):
                for store, endpoint in endpoints.items():
                    sample = run_wrk(
                        endpoint,
                        heads[store],
                        folder=folder,
                        connections=connections,
                        seconds=seconds,
                        body=body,
                        response_size=SIZE - upload,
                    )
                    if sample.failed:
                        raise BenchmarkFailed(f"{method}, {store}: {sample.failed} failed")
                    samples[store].append(sample)
            rows = [_row(method, connections, store, found) for store, found in samples.items()]
            for row in rows:
                yield row, row.per_second / rows[0].per_second


def _row(method: str, connections: int, store: str, samples: list[Sample]) -> Row:
    def median(value: Callable[[Sample], float]) -> float:
        return statistics.median(map(value, samples))

    return Row(
        method=method,
        connections=connections,
        store=store,
        per_second=median(lambda sample: sample.per_second),
        p50_ms=median(lambda sample: sample.p50_ms),
        p99_ms=median(lambda sample: sample.p99_ms),
        gateway_us=median(lambda sample: sample.cpu_us),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("cluster", type=Path, metavar="CLUSTERFILE")
    parser.add_argument("--library", type=Path, help="file of the client library")
    parser.add_argument("--seconds", type=int, default=2, help="of each measurement")
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--folder", type=Path, default=Path("/var/tmp"))
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    location = FdbLocation(
        options.cluster.absolute(), f"bench-{secrets.token_hex(4)}", options.library
    )
    folder = options.folder / f"run-{secrets.token_hex(4)}"
    folder.mkdir()
    rows: list[Row] = []
    try:
        with contextlib.ExitStack() as stack:
            endpoints = {
                store: stack.enter_context(
                    gateway(
                        folder / store,
                        str(location) if store == "fdb" else "",
                        workers=options.workers,
                    )
                )
                for store in STORES
            }
            print(f"{'':14}{'/s':>8}{'p50 ms':>8}{'p99 ms':>8}{'CPU us':>8}", file=sys.stderr)
            for row, share in measure(endpoints, folder, options.seconds):
                name = f"{row.method} {row.connections:2} {row.store}"
                print(
                    f"{name:16}{row.per_second:6,.0f}{row.p50_ms:8.2f}{row.p99_ms:8.2f}"
                    f"{row.gateway_us:8.0f}  {share:.2f}",
                    file=sys.stderr,
                )
                rows.append(row)
    except BenchmarkFailed as error:
        sys.exit(f"benchmark failed: {error}")
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    if options.json:
        print(msgspec.json.encode(rows).decode())


if __name__ == "__main__":
    main()
