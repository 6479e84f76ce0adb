"""The report of the mount's benchmark: a table for people, JSON for comparing runs."""

from __future__ import annotations

import statistics
from pathlib import Path

import msgspec
from rich.console import Console
from rich.table import Table

from benchmarks.command import machine_line, number, verdict, write_document
from benchmarks.machine import Machine
from benchmarks.mount_loads import Run

COLUMNS = ("lode", "null", "rclone", "s3fs")


class Target(msgspec.Struct, frozen=True):
    """``of``: a yardstick, compared by ratio; empty: the value itself."""

    text: str
    of: str = ""
    ratio_min: float | None = None
    """Of rates: ours against the yardstick's; of times: the yardstick's against ours."""
    value_min: float | None = None
    value_max: float | None = None


class Figure(msgspec.Struct, frozen=True, kw_only=True):
    """One line: medians over the rounds, in ``unit``."""

    name: str
    unit: str
    values: dict[str, float]
    """By system."""
    cpu_s: dict[str, float]
    """CPU time of the mount's process in one run."""
    rounds: dict[str, list[float]]
    targets: list[Target] = []
    note: str = ""

    @property
    def is_time(self) -> bool:
        return self.unit == "s"

    def ratio(self, other: str) -> float | None:
        """How many times as good as another system."""
        lode, theirs = self.values.get("lode"), self.values.get(other)
        if not lode or not theirs:
            return None
        return theirs / lode if self.is_time else lode / theirs

    def reached(self, target: Target) -> bool | None:
        """Whether a target is reached; None: what it compares with was not measured."""
        if target.ratio_min is not None:
            ratio = self.ratio(target.of)
            return None if ratio is None else ratio >= target.ratio_min
        value = self.values["lode"]
        if target.value_min is not None:
            return value >= target.value_min
        return target.value_max is not None and value <= target.value_max


def figure_of(
    runs: dict[str, list[Run]], *, name: str, unit: str, targets: list[Target], note: str = ""
) -> Figure:
    rounds = {system: [run.value for run in found] for system, found in runs.items()}
    return Figure(
        name=name,
        unit=unit,
        values={system: statistics.median(values) for system, values in rounds.items()},
        cpu_s={
            system: statistics.median(run.cpu_s for run in found) for system, found in runs.items()
        },
        rounds=rounds,
        targets=targets,
        note=note,
    )


class Report(msgspec.Struct, kw_only=True):
    started: str
    """UTC, ISO 8601."""
    seconds: float = 0.0
    quick: bool
    machine: Machine
    figures: list[Figure] = []


def write_json(report: Report, folder: Path) -> Path:
    """Write ``mount-<started>.json`` into ``folder`` and return its path."""
    document = msgspec.to_builtins(report)
    for line, figure in zip(document["figures"], report.figures, strict=True):
        line["ratios"] = {name: figure.ratio(name) for name in figure.values if name != "lode"}
        for entry, target in zip(line["targets"], figure.targets, strict=True):
            entry["reached"] = figure.reached(target)
    return write_document(document, folder, prefix="mount-", started=report.started)


def _verdict(figure: Figure, target: Target) -> str:
    return f"{target.text} {verdict(figure.reached(target))}".rstrip()


def one_line(figure: Figure) -> str:
    """Return a figure as it is shown while the run goes on."""
    parts = [f"{name} {number(value)}" for name, value in figure.values.items()]
    verdicts = "; ".join(_verdict(figure, target) for target in figure.targets)
    return f"{figure.name} ({figure.unit}): {', '.join(parts)}  {verdicts}"


def print_report(report: Report, console: Console) -> None:
    console.print(machine_line(report.machine))
    table = Table(title="Medians of one run; `x` is how many times as good", title_justify="left")
    for name in ("figure", "unit"):
        table.add_column(name, no_wrap=True)
    for name in (
        "lode",
        "cpu s",
        "null",
        "cpu s",
        "x null",
        "rclone",
        "x rclone",
        "s3fs",
        "x s3fs",
    ):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("targets")
    table.add_column("note")
    for figure in report.figures:
        ratios = {name: number(figure.ratio(name)) for name in COLUMNS}
        values = {name: number(figure.values.get(name)) for name in COLUMNS}
        table.add_row(
            figure.name,
            figure.unit,
            values["lode"],
            number(figure.cpu_s.get("lode")),
            values["null"],
            number(figure.cpu_s.get("null")),
            ratios["null"],
            values["rclone"],
            ratios["rclone"],
            values["s3fs"],
            ratios["s3fs"],
            "\n".join(_verdict(figure, target) for target in figure.targets),
            figure.note,
        )
    console.print(table)
