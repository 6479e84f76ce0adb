"""``python -m benchmarks.cluster``: what a cluster costs and withstands, beside yardsticks.

Six member daemons with a drive each and a gateway, 4+2, over loopback, on one machine and one disk.
Every figure has what it is compared with from the same run.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from rich.console import Console

from benchmarks.cluster_loads import (
    LARGE,
    Plan,
    Show,
    fill,
    measure_degraded,
    measure_growth,
    measure_repair,
    measure_slow,
    measure_sockets,
)
from benchmarks.cluster_members import Cluster, run_cluster
from benchmarks.cluster_report import Figure, Report, one_line, print_report, write_json
from benchmarks.command import add_places, run_to_end, utc_now
from benchmarks.machine import describe
from benchmarks.servers import run_lode

FULL = Plan()
QUICK = Plan(rounds=2, seconds=1.5, slow_s=6.0, large_objects=10, small_objects=192)
GROUPS = {
    "degraded": measure_degraded,
    "slow": measure_slow,
    "repair": measure_repair,
    "growth": measure_growth,
}


def parse_arguments(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="make bench-cluster ARGS=...", description=__doc__)
    names = ("sockets", *GROUPS)
    parser.add_argument("groups", nargs="*", choices=[[], *names], help="default: all")
    parser.add_argument("--quick", action="store_true", help="about three minutes")
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)))
    add_places(parser)
    return parser.parse_args(arguments)


def run(options: argparse.Namespace, console: Console) -> None:
    """Raises: BenchmarkFailed."""
    plan = QUICK if options.quick else FULL
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="lode-bench-", dir=options.folder) as made:
        report = Report(
            started=utc_now(),
            quick=options.quick,
            machine=describe(Path(made)),
        )

        def show(figure: Figure) -> None:
            report.figures.append(figure)
            console.print(one_line(figure))

        try:
            folder = _folder(made, "cluster")
            with run_cluster(folder, workers=options.workers) as cluster:
                fill(cluster.endpoint, plan)
                if not options.groups or "sockets" in options.groups:
                    _measure_sockets(cluster, _folder(made, "local"), plan, options, show)
                for name, measure in GROUPS.items():
                    if not options.groups or name in options.groups:
                        measure(cluster, plan, show)
        finally:
            report.seconds = time.monotonic() - started
            if report.figures:
                print_report(report, console)
                console.print(f"{report.seconds:.0f} s; {write_json(report, options.results)}")


def _measure_sockets(
    cluster: Cluster, folder: Path, plan: Plan, options: argparse.Namespace, show: Show
) -> None:
    with run_lode(folder, workers=options.workers) as local:
        fill(local.endpoint, plan, [LARGE])
        measure_sockets(local.endpoint, cluster, plan, show)


def _folder(made: str, name: str) -> Path:
    folder = Path(made) / name
    folder.mkdir()
    return folder


def main() -> int:
    options = parse_arguments(sys.argv[1:])
    return run_to_end(partial(run, options))


if __name__ == "__main__":
    sys.exit(main())
