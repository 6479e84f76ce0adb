"""``lode status``, ``lode fsck`` and ``lode gc``: the engine's reports, as tables or as JSON.

They open the store beside a running server; the embedded store allows several processes.
"""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TypeVar

import msgspec
import trio
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn
from rich.table import Table

from cli.arguments import format_bytes
from cli.logs import configure_logs
from cli.settings import admin_config
from cli.status_tables import print_status
from engine import Engine, open_engine
from engine.errors import ConfigError
from engine.types import BucketUsage, FsckReport, GcReport, Quota

STORE_FILE = "lode.json"
PIPE_WIDTH = 200

T = TypeVar("T")


def show_status(data: Path, *, as_json: bool) -> None:
    """Print what ``Engine.status`` says."""
    status = ask_store(data, lambda engine: engine.status())
    if as_json:
        _print_json(status)
        return
    print_status(output_console(), status)


def check(data: Path, *, deep: bool, repair_counters: bool, as_json: bool) -> bool:
    """Print what ``Engine.fsck`` found; return whether the store is clean."""

    async def ask(engine: Engine) -> FsckReport:
        with Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            console=Console(stderr=True),
            transient=True,
            disable=not Console(stderr=True).is_terminal,
        ) as bars:
            update = _Bars(bars).update
            return await engine.fsck(deep=deep, repair_counters=repair_counters, progress=update)

    report = ask_store(data, ask)
    if as_json:
        fields = {"clean": report.clean, **msgspec.structs.asdict(report)}
        _print_json(fields)
    else:
        _print_fsck(report)
    return report.clean


def collect_garbage(data: Path, *, grace_s: float | None, as_json: bool) -> None:
    """Collect garbage now and print what was given back."""
    report = ask_store(data, lambda engine: engine.collect_garbage(grace_s=grace_s))
    if as_json:
        _print_json(report)
    else:
        output_console().print(_gc_table(report))


def bucket_quota(
    data: Path, bucket: str, *, size: int | None, objects: int | None, clear: bool, as_json: bool
) -> None:
    """Change a bucket's quota as far as something is given, and print usage and quota."""

    async def ask(engine: Engine) -> BucketUsage:
        usage = await engine.bucket_usage(bucket)
        if clear or size is not None or objects is not None:
            kept = Quota() if clear else Quota(usage.quota_bytes, usage.quota_objects)
            await engine.set_quota(
                bucket,
                Quota(
                    kept.bytes if size is None else size,
                    kept.objects if objects is None else objects,
                ),
            )
            usage = await engine.bucket_usage(bucket)
        return usage

    usage = ask_store(data, ask)
    if as_json:
        _print_json(usage)
        return
    table = Table(box=None, header_style="bold", pad_edge=False)
    for heading in ("", "used", "quota"):
        table.add_column(heading, justify="right" if heading else "left", no_wrap=True)
    quota_bytes, quota_objects = usage.quota_bytes, usage.quota_objects
    table.add_row(
        "bytes",
        format_bytes(usage.bytes),
        "none" if quota_bytes is None else format_bytes(quota_bytes),
    )
    table.add_row(
        "objects",
        f"{usage.objects:,}",
        "none" if quota_objects is None else f"{quota_objects:,}",
    )
    output_console().print(table)


class _Bars:
    """One progress bar per phase of a long check."""

    def __init__(self, bars: Progress) -> None:
        self._bars = bars
        self._tasks: dict[str, TaskID] = {}

    def update(self, phase: str, done: int, total: int) -> None:
        if phase not in self._tasks:
            self._tasks[phase] = self._bars.add_task(phase, total=total)
        self._bars.update(self._tasks[phase], completed=done, total=total)


def ask_store(data: Path, question: Callable[[Engine], Awaitable[T]]) -> T:
    """Open the store, which must exist, and return the answer of one call."""
    config = admin_config(data, os.environ)
    if not config.meta and not (data / STORE_FILE).is_file():
        raise ConfigError(
            f"no store in {data}; name its folder with --data, or make one with `lode serve`"
        )

    # Standard output is for the answer alone: opening a store may warn of missing drives.
    configure_logs("warning", as_json=False)

    async def main() -> T:
        # Garbage collection and repair are the server's work.
        async with open_engine(config) as engine:
            return await question(engine)

    return trio.run(main)


def output_console() -> Console:
    """Return where tables go: a pipe gets whole lines, whatever the width of some terminal."""
    console = Console()
    return console if console.is_terminal else Console(width=PIPE_WIDTH)


def _print_json(report: object) -> None:
    print(msgspec.json.format(msgspec.json.encode(report)).decode())


def _print_fsck(report: FsckReport) -> None:
    console = output_console()
    table = _pairs_table()
    for name, value in msgspec.structs.asdict(report).items():
        if name != "problems":
            table.add_row(name.replace("_", " "), f"{value:,}")
    console.print(table)
    for problem in report.problems:
        console.print(problem, style="red", markup=False, highlight=False)
    if report.clean:
        console.print("clean: metadata and fragments agree", style="green")
    else:
        console.print("not clean", style="bold red")


def _gc_table(report: GcReport) -> Table:
    table = _pairs_table()
    table.add_row("deleted versions and parts", f"{report.garbage:,}")
    table.add_row("fragments removed", f"{report.fragments:,}")
    table.add_row("bytes removed", format_bytes(report.bytes))
    table.add_row("chunks without an owner", f"{report.orphans:,}")
    table.add_row("stale uploads ended", f"{report.uploads_aborted:,}")
    return table


def _pairs_table() -> Table:
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    return table
