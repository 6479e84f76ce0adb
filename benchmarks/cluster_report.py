"""The report of the cluster's benchmark: a table for people, JSON for comparing runs."""

from __future__ import annotations

from pathlib import Path

import msgspec
from rich.console import Console
from rich.table import Table

from benchmarks.command import machine_line, number, verdict, write_document
from benchmarks.machine import Machine


class Figure(msgspec.Struct, frozen=True, kw_only=True):
    """Something measured beside what it is compared with, both in ``unit``."""

    name: str
    unit: str
    value: float
    compared: str
    """What ``other`` is."""
    other: float
    ratio_min: float | None = None
    """Of ``value`` to ``other``."""
    ratio_max: float | None = None
    cpu_ms: float | None = None
    """CPU time of all processes of the store per MiB of objects (or of fragments written)."""
    other_cpu_ms: float | None = None
    rounds: dict[str, list[float]] = {}
    """Every value that was measured."""
    load: float = 0.0
    """1 minute load average when it was measured."""
    note: str = ""

    @property
    def ratio(self) -> float:
        return self.value / self.other if self.other else float("inf")

    @property
    def reached(self) -> bool:
        if self.ratio_min is not None and self.ratio < self.ratio_min:
            return False
        return self.ratio_max is None or self.ratio <= self.ratio_max

    @property
    def target(self) -> str:
        if self.ratio_min is not None:
            return f"at least {self.ratio_min:.0%}"
        return f"at most {self.ratio_max:g} times" if self.ratio_max is not None else ""


class Report(msgspec.Struct, kw_only=True):
    started: str
    """UTC, ISO 8601."""
    seconds: float = 0.0
    quick: bool
    machine: Machine
    figures: list[Figure] = []


def write_json(report: Report, folder: Path) -> Path:
    """Write ``cluster-<started>.json`` into ``folder`` and return its path."""
    document = msgspec.to_builtins(report)
    for line, figure in zip(document["figures"], report.figures, strict=True):
        line |= {"ratio": figure.ratio, "target": figure.target, "reached": figure.reached}
    return write_document(document, folder, prefix="cluster-", started=report.started)


def _ratio(figure: Figure) -> str:
    return f"{figure.ratio:.2f} times" if figure.ratio_max is not None else f"{figure.ratio:.0%}"


def one_line(figure: Figure) -> str:
    """Return a figure as it is shown while the run goes on."""
    return (
        f"{figure.name}: {number(figure.value)} {figure.unit}, {figure.compared} "
        f"{number(figure.other)}: {_ratio(figure)} ({figure.target}, {verdict(figure.reached)}; "
        f"load {figure.load:.1f})"
    )


def print_report(report: Report, console: Console) -> None:
    console.print(machine_line(report.machine))
    table = Table(
        title="Medians; cpu ms: of client-facing and member processes together, per MiB",
        title_justify="left",
    )
    for name in ("figure", "unit"):
        table.add_column(name, no_wrap=True)
    table.add_column("measured", justify="right", no_wrap=True)
    table.add_column("cpu ms", justify="right", no_wrap=True)
    table.add_column("compared with")
    for name in ("there", "cpu ms", "ratio"):
        table.add_column(name, justify="right", no_wrap=True)
    for name in ("target", "", "load", "note"):
        table.add_column(name)
    for figure in report.figures:
        table.add_row(
            figure.name,
            figure.unit,
            number(figure.value),
            number(figure.cpu_ms),
            figure.compared,
            number(figure.other),
            number(figure.other_cpu_ms),
            _ratio(figure),
            figure.target,
            verdict(figure.reached),
            f"{figure.load:.1f}",
            figure.note,
        )
    console.print(table)
