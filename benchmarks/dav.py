"""``python -m benchmarks.dav [GROUP...]``: WebDAV beside wsgidav, Apache and rclone's server."""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import msgspec
from rich.console import Console
from rich.table import Table

from benchmarks.command import add_places, run_to_end, utc_now, write_document
from benchmarks.dav_loads import DavPlan, Load, make_loads
from benchmarks.dav_servers import DEFAULT, RUNNERS, DavSystem, run_systems
from benchmarks.machine import Disk, Machine, describe, measure_disk
from benchmarks.measure import MIB, BenchmarkFailed, Sample
from benchmarks.wrk import find_wrk

GROUPS = ("large", "propfind", "small", "requests", "rclone")
OURS = "lode"


class DavFigure(msgspec.Struct, frozen=True, kw_only=True):
    """One line of the report: medians over the rounds, by server."""

    group: str
    name: str
    connections: int
    unit: str
    values: dict[str, float]
    cpu_us: dict[str, float]
    """CPU time of the server's processes per request, entry or file."""
    p50_ms: dict[str, float]
    p90_ms: dict[str, float]
    """As the client sees it; 0 where a request's time is not measured."""
    rounds: dict[str, list[float]]
    yardstick: str
    ratio_min: float
    ratio: float | None
    """Of the yardstick's value."""
    target_reached: bool | None


class DavReport(msgspec.Struct, kw_only=True):
    started: str
    seconds: float = 0.0
    rounds: int
    machine: Machine
    disk: Disk
    versions: dict[str, str]
    figures: list[DavFigure] = []


def measure(load: Load, group: str, systems: dict[str, DavSystem]) -> DavFigure:
    """Put the load on every server in turn, so that whatever else the machine does hits all.

    The order turns round with each round: who comes first finds another machine than who follows.
    A server that fails, and that nothing is compared with, is left out of the figure.
    """
    samples: dict[str, list[Sample]] = {name: [] for name in systems}
    failing: set[str] = set()
    if load.prepare is not None:
        for system in systems.values():
            load.prepare(system)
    turns = list(systems.items())
    for number in range(load.rounds):
        for name, system in reversed(turns) if number % 2 else turns:
            if name in failing:
                continue
            try:
                samples[name].append(load.run(system))
            except BenchmarkFailed as error:
                if name in (OURS, load.yardstick):
                    raise BenchmarkFailed(f"{name}, {load.name}: {error}") from None
                print(f"{name}, {load.name}: {error}", file=sys.stderr)
                failing.add(name)
    samples = {name: runs for name, runs in samples.items() if name not in failing}
    failed = {name: sum(run.failed for run in runs) for name, runs in samples.items()}
    if any(failed.values()):
        raise BenchmarkFailed(f"{load.name}: failed requests: {failed}")
    rounds = {name: [_value(load, run) for run in runs] for name, runs in samples.items()}
    values = {name: statistics.median(runs) for name, runs in rounds.items()}
    compared = load.yardstick in values and OURS in values
    ratio = values[OURS] / values[load.yardstick] if compared else None
    return DavFigure(
        group=group,
        name=load.name,
        connections=load.connections,
        unit=load.unit,
        values=values,
        cpu_us={name: _median(runs, "cpu_us") for name, runs in samples.items()},
        p50_ms={name: _median(runs, "p50_ms") for name, runs in samples.items()},
        p90_ms={name: _median(runs, "p90_ms") for name, runs in samples.items()},
        rounds=rounds,
        yardstick=load.yardstick,
        ratio_min=load.ratio_min,
        ratio=ratio,
        target_reached=None if ratio is None else ratio >= load.ratio_min,
    )


def _value(load: Load, sample: Sample) -> float:
    return sample.bytes_per_second / MIB if load.unit == "MiB/s" else sample.per_second


def _median(runs: Sequence[Sample], what: str) -> float:
    return statistics.median([float(getattr(run, what)) for run in runs])


def print_report(report: DavReport, names: Sequence[str], console: Console) -> None:
    machine, disk = report.machine, report.disk
    console.print(
        f"{machine.cpu}, {machine.cores} cores, {machine.memory_mib} MiB, Linux {machine.kernel}, "
        f"Python {machine.python}, {machine.filesystem}\n"
        f"load before {machine.load_before:.2f}; disk {disk.syncs_per_second:,.0f} syncs/s, "
        f"{disk.write_mib_per_second:,.0f} MiB/s written and synced\n"
        + ", ".join(f"{name} {version}" for name, version in report.versions.items())
    )
    table = Table(title="WebDAV; medians, ratios within the same run", title_justify="left")
    table.add_column("figure", no_wrap=True)
    table.add_column("clients", justify="right")
    table.add_column("unit", no_wrap=True)
    for name in names:
        table.add_column(name, justify="right", no_wrap=True)
        table.add_column("cpu us", justify="right", no_wrap=True, style="dim")
    table.add_column("ratio", justify="right", no_wrap=True)
    table.add_column("target")
    table.add_column("")
    group = ""
    for figure in report.figures:
        if group and figure.group != group:
            table.add_section()
        group = figure.group
        table.add_row(*_cells(figure, names))
    console.print(table)


def _cells(figure: DavFigure, names: Sequence[str]) -> list[str]:
    cells = [figure.name, str(figure.connections), figure.unit]
    for name in names:
        if name in figure.values:
            cells += [_number(figure.values[name]), f"{figure.cpu_us[name]:,.0f}"]
        else:
            cells += ["failed", ""]
    if figure.ratio is None:
        return [*cells, "", "", ""]
    reached = "[green]reached[/]" if figure.target_reached else "[red]missed[/]"
    return [
        *cells,
        f"{figure.ratio:.3f}",
        f"{figure.ratio_min:g} x {figure.yardstick}",
        reached,
    ]


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:,.1f}"


def one_line(figure: DavFigure) -> str:
    """Return each server's median, with what its rounds spread over, and its latencies."""
    texts = []
    for name, value in figure.values.items():
        text = f"{name} {_number(value)}"
        if len(figure.rounds[name]) > 1:
            text += f" ({_number(min(figure.rounds[name]))}-{_number(max(figure.rounds[name]))})"
        if figure.p90_ms[name]:
            text += f" p50 {figure.p50_ms[name]:.2f} p90 {figure.p90_ms[name]:.2f} ms"
        texts.append(f"{text} cpu {figure.cpu_us[name]:,.0f} us")
    return f"{figure.name}, {figure.connections} clients, {figure.unit}: {', '.join(texts)}"


def run(options: argparse.Namespace, console: Console) -> None:
    find_wrk()
    names = options.servers.split(",")
    plan = DavPlan()
    if options.quick:
        plan = DavPlan(rounds=1, seconds=1)
    if options.rounds:
        plan = msgspec.structs.replace(plan, rounds=options.rounds)
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="lode-bench-", dir=options.folder) as name:
        folder = Path(name)
        report = DavReport(
            started=utc_now(),
            rounds=plan.rounds,
            machine=describe(folder),
            disk=measure_disk(folder, wrote_mib=256),
            versions={},
        )
        try:
            for group in options.groups or GROUPS:
                with run_systems(folder, names) as systems:
                    report.versions = {name: system.version for name, system in systems.items()}
                    client = folder / f"client-{group}"
                    client.mkdir()
                    for load in make_loads(group, plan, client):
                        figure = measure(load, group, systems)
                        report.figures.append(figure)
                        console.print(one_line(figure))
        finally:
            report.seconds = time.monotonic() - started
            if report.figures:
                print_report(report, names, console)
                path = write_document(
                    report, options.results, prefix="dav-", started=report.started
                )
                console.print(f"{report.seconds:.0f} s; {path}")


def parse_arguments(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.dav", description=__doc__)
    parser.add_argument("groups", nargs="*", metavar="GROUP", help=f"{', '.join(GROUPS)}; or all")
    parser.add_argument("--quick", action="store_true", help="one short round of each load")
    parser.add_argument("--rounds", type=int, default=0, help="of each load; else 3, or 1 if quick")
    parser.add_argument(
        "--servers", default=",".join(DEFAULT), help=f"by comma, some of {', '.join(RUNNERS)}"
    )
    add_places(parser)
    options = parser.parse_args(arguments)
    for chosen, known in ((options.groups, GROUPS), (options.servers.split(","), RUNNERS)):
        for name in chosen:
            if name not in known:
                parser.error(f"unknown {name!r}; there are {', '.join(known)}")
    return options


def main() -> int:
    options = parse_arguments(sys.argv[1:])
    return run_to_end(partial(run, options))


if __name__ == "__main__":
    sys.exit(main())
