"""``python -m benchmarks [GROUP...]``: measure, print a table, write JSON."""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

from rich.console import Console

from benchmarks.command import add_places, check_groups, run_to_end, utc_now
from benchmarks.listings import measure_listings
from benchmarks.machine import describe, measure_disk
from benchmarks.measure import KIB, MIB, BenchmarkFailed, Figure
from benchmarks.memory import check_room, measure_memory
from benchmarks.report import Report, one_line, print_report, write_json
from benchmarks.servers import find_nginx, run_systems
from benchmarks.transfers import (
    Plan,
    Show,
    measure_deletes,
    measure_gets,
    measure_heads,
    measure_puts,
)
from benchmarks.wrk import find_wrk

GROUPS = ("get", "put", "head", "delete", "list", "memory")
QUICK = Plan(
    sizes=(4 * KIB, 64 * MIB),
    connections=(64,),
    rounds=1,
    seconds=1,
    listed_keys=200_000,
    stream_mib=1024,
)


def parse_arguments(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("groups", nargs="*", metavar="GROUP", help=f"{', '.join(GROUPS)}; or all")
    parser.add_argument("--quick", action="store_true", help="the main figures once, in 90 s")
    parser.add_argument("--rounds", type=int, help="runs of every load; medians are reported")
    parser.add_argument("--seconds", type=int, help="length of every run")
    parser.add_argument("--sizes", help="bytes, with commas between: 4096,1048576")
    parser.add_argument("--connections", help="for example 1,16,64")
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)))
    add_places(parser)
    options = parser.parse_args(arguments)
    check_groups(parser, options.groups, GROUPS)
    return options


def plan_of(options: argparse.Namespace) -> Plan:
    """Return what is measured: the whole or the quick plan, with what was asked for instead."""
    plan = QUICK if options.quick else Plan()
    return Plan(
        sizes=_numbers(options.sizes) or plan.sizes,
        connections=_numbers(options.connections) or plan.connections,
        rounds=options.rounds or plan.rounds,
        seconds=options.seconds or plan.seconds,
        listed_keys=plan.listed_keys,
        stream_mib=plan.stream_mib,
    )


def _numbers(text: str | None) -> tuple[int, ...]:
    try:
        return tuple(int(item) for item in text.split(",")) if text else ()
    except ValueError:
        raise BenchmarkFailed(f"{text!r}: numbers with commas between") from None


def run_group(group: str, folder: Path, plan: Plan, report: Report, show: Show) -> None:
    """Measure one group on servers and a store of its own, gone afterwards."""
    workers = report.workers
    sizes = plan.sizes if group in ("get", "put") else (4 * KIB,)
    for size in sizes:
        with run_systems(folder, [size], workers=workers) as systems:
            match group:
                case "get":
                    measure_gets(systems, size, plan, show)
                case "put":
                    ceiling = report.disk.write_mib_per_second
                    measure_puts(systems, size, plan, show, disk_mib_per_second=ceiling)
                case "head":
                    measure_heads(systems, plan, show)
                case "delete":
                    measure_deletes(systems, plan, show)
                case "list":
                    measure_listings(systems, plan, show)
                case _:
                    measure_memory(systems, plan, show)


def run(options: argparse.Namespace, console: Console) -> None:
    find_wrk()
    find_nginx()
    plan = plan_of(options)
    groups = [group for group in GROUPS if not options.groups or group in options.groups]
    problem = check_room(options.folder, shutil.disk_usage(options.folder).free, plan)
    if problem is not None:
        raise BenchmarkFailed(problem)
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="lode-bench-", dir=options.folder) as name:
        folder = Path(name)
        report = Report(
            started=utc_now(),
            quick=options.quick,
            rounds=plan.rounds,
            workers=options.workers,
            machine=describe(folder),
            disk=measure_disk(folder, wrote_mib=256 if options.quick else 1024),
        )

        def show(figure: Figure) -> None:
            report.figures.append(figure)
            console.print(one_line(figure))

        try:
            for group in groups:
                run_group(group, folder, plan, report, show)
        finally:
            report.seconds = time.monotonic() - started
            if report.figures:
                print_report(report, console)
                console.print(f"{report.seconds:.0f} s; {write_json(report, options.results)}")


def main() -> int:
    options = parse_arguments(sys.argv[1:])
    return run_to_end(partial(run, options))


if __name__ == "__main__":
    sys.exit(main())
