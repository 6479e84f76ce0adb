"""The report: a table for people, a JSON file for comparing runs."""

from __future__ import annotations

from pathlib import Path

import msgspec
from rich.console import Console
from rich.table import Table

from benchmarks.command import machine_line, number, verdict, write_document
from benchmarks.machine import Disk, Machine
from benchmarks.measure import Figure, Target


class Report(msgspec.Struct, kw_only=True):
    started: str
    """UTC, ISO 8601."""
    seconds: float = 0.0
    quick: bool
    rounds: int
    workers: int
    machine: Machine
    disk: Disk
    figures: list[Figure] = []


class _Row(Figure, frozen=True, kw_only=True):
    """A figure with what follows from it, for readers of the JSON."""

    bare_ratio: float | None
    of_nginx: float | None
    target_reached: bool | None


def _row(figure: Figure) -> _Row:
    return _Row(
        **msgspec.structs.asdict(figure),
        bare_ratio=figure.ratio,
        of_nginx=figure.nginx_ratio,
        target_reached=figure.reached,
    )


def write_json(report: Report, folder: Path) -> Path:
    """Write ``<started>.json`` into ``folder`` and return its path."""
    document = msgspec.to_builtins(report)
    document["figures"] = [msgspec.to_builtins(_row(figure)) for figure in report.figures]
    return write_document(document, folder, prefix="", started=report.started)


def _percent(value: float | None) -> str:
    return "" if value is None else f"{value * 100:.3g} %"


def _target(target: Target | None) -> str:
    return "" if target is None else target.text


def one_line(figure: Figure) -> str:
    """Return a figure as it is shown while the run goes on."""
    text = f"{figure.name}, {figure.connections} conn.: {number(figure.lode)} {figure.unit}"
    if figure.ratio is not None:
        text += f", {_percent(figure.ratio)} of bare"
    return f"{text}  {verdict(figure.reached)}"


def print_report(report: Report, console: Console) -> None:
    disk = report.disk
    console.print(machine_line(report.machine, f"{report.workers} workers"))
    console.print(
        f"disk alone: {disk.syncs_per_second:,.0f} synced 4 KiB writes/s, "
        f"{disk.write_mib_per_second:,.0f} MiB/s written and synced "
        f"(4+2: at most {disk.write_mib_per_second / 1.5:,.0f} MiB/s of objects)"
    )
    table = Table(title="Medians; ratios within the same run", title_justify="left")
    for name in ("figure", "unit"):
        table.add_column(name, no_wrap=True)
    for name in ("conn.", "lode", "p50 ms", "p99 ms", "cpu us", "bare", "cpu us", "of bare"):
        table.add_column(name, justify="right", no_wrap=True)
    for name in ("nginx", "of nginx"):
        table.add_column(name, justify="right", no_wrap=True)
    for name in ("target", "", "note"):
        table.add_column(name)
    group = ""
    for figure in report.figures:
        if group and figure.group != group:
            table.add_section()
        group = figure.group
        table.add_row(
            figure.name,
            figure.unit,
            str(figure.connections),
            number(figure.lode),
            number(figure.p50_ms),
            number(figure.p99_ms),
            number(figure.lode_cpu_us),
            number(figure.bare),
            number(figure.bare_cpu_us),
            _percent(figure.ratio),
            number(figure.nginx),
            _percent(figure.nginx_ratio),
            _target(figure.target),
            verdict(figure.reached),
            figure.note,
        )
    console.print(table)
