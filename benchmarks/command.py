"""What the benchmarks' commands share: options, how they end, how a report is written."""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType

import msgspec
from rich.console import Console

from benchmarks.machine import Machine
from benchmarks.measure import BenchmarkFailed
from engine.errors import EngineError

RESULTS = Path(__file__).resolve().parent / "results"
WIDTH = 220
"""Of tables that go to a file: cut to 80 columns they help nobody."""


def add_places(parser: argparse.ArgumentParser) -> None:
    """Let a command be told where it works and where its JSON goes."""
    parser.add_argument(
        "--folder", type=Path, default=Path("/var/tmp"), help="on the disk that is to be measured"
    )
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder for the JSON file")


def check_groups(
    parser: argparse.ArgumentParser, asked: Sequence[str], known: Sequence[str]
) -> None:
    """End the command if it was asked for a group that there is not."""
    unknown = [name for name in asked if name not in known]
    if unknown:
        parser.error(f"unknown group {unknown[0]}; there are {', '.join(known)}")


def run_to_end(run: Callable[[Console], None]) -> int:
    """Run a benchmark and return the exit status. SIGTERM ends it as ^C does."""
    signal.signal(signal.SIGTERM, _interrupt)
    console = Console(width=None if sys.stdout.isatty() else WIDTH)
    try:
        run(console)
    except (BenchmarkFailed, EngineError) as error:
        print(f"benchmarks: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


def _interrupt(number: int, frame: FrameType | None) -> None:
    # An exception runs every context's end, so that mounts, servers and folders go.
    raise KeyboardInterrupt


def utc_now() -> str:
    """Return the time as ISO 8601, as it stands in reports and in their names."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def write_document(document: object, folder: Path, *, prefix: str, started: str) -> Path:
    """Write ``<prefix><started>.json`` into ``folder``, made if need be, and return its path."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{prefix}{started.replace(':', '').replace('-', '')}.json"
    path.write_bytes(msgspec.json.format(msgspec.json.encode(document), indent=1) + b"\n")
    return path


def machine_line(machine: Machine, *more: str) -> str:
    """Return the line over a table that says what it was measured on."""
    parts = [
        f"{machine.cpu}, {machine.cores} cores, {machine.filesystem}, "
        f"load before {machine.load_before:.1f}",
        *more,
        f"commit {machine.commit[:12]}",
    ]
    return "; ".join(parts)


def number(value: float | None) -> str:
    """Return three digits of a value, or all before the point; None: nothing."""
    if value is None:
        return ""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def verdict(reached: bool | None) -> str:
    """Return whether a target is reached, in colour; None: nothing to compare with."""
    if reached is None:
        return ""
    return "[green]reached[/green]" if reached else "[red]missed[/red]"
