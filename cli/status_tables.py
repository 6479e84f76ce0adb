"""What ``lode status`` and ``lode node list`` print for people."""

from __future__ import annotations

import time
from collections.abc import Iterable

from rich.console import Console
from rich.table import Table
from rich.text import Text

from cli.arguments import format_bytes
from engine.types import CensusStatus, DriveStatus, MemberStatus, StoreStatus, WorkStatus

STYLES = {
    "up": "green",
    "rebuilding": "yellow",
    "full": "yellow",
    "suspect": "yellow",
    "draining": "yellow",
    "drained": "cyan",
    "removed": "cyan",
}


def print_status(console: Console, status: StoreStatus) -> None:
    """Print a store's status: what must be known first, then who and where, then what goes on."""
    console.print(_summary(status), highlight=False)
    for warning in status.warnings:
        console.print(f"! {warning}", style="yellow", highlight=False, markup=False)
    if status.members:
        console.print()
        console.print(member_table(status.members))
    console.print()
    console.print(drive_table(status.drives))
    if status.work:
        console.print()
        console.print(work_table(status.work))


def _summary(status: StoreStatus) -> Table:
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    table.add_row("store", Text(status.store_id))
    table.add_row("profile", f"{status.profile} over {status.domains} failure domains")
    table.add_row("buckets", f"{status.buckets:,}")
    table.add_row("objects", f"{status.objects:,} of {format_bytes(status.bytes)}")
    table.add_row("fragments", _census(status.census))
    table.add_row("chunks that wait for repair", f"{status.repair_queue:,}")
    table.add_row("deleted, waiting for collection", f"{status.garbage_queue:,}")
    return table


def _census(census: CensusStatus | None) -> Text:
    if census is None:
        return Text("not counted yet", "yellow")
    parts = [f"{census.whole:,} of {census.fragments:,} whole"]
    for count, what in (
        (census.missing, "missing"),
        (census.unasked, "could not be asked"),
        (census.chunks_at_risk, "chunks at risk"),
        (census.chunks_unreadable, "chunks unreadable"),
        (census.orphans, "without an owner"),
    ):
        if count:
            parts.append(f"{count:,} {what}")
    moment = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(census.as_of_ms / 1000))
    healthy = census.whole == census.fragments
    return Text(f"{', '.join(parts)}, as of {moment}", "green" if healthy else "red")


def member_table(members: Iterable[MemberStatus]) -> Table:
    table = Table(box=None, header_style="bold", pad_edge=False)
    for heading in ("member", "state", "health", "address", "zone", "rack", "host", "version"):
        table.add_column(heading, overflow="fold")
    table.add_column("drives", justify="right")
    for member in members:
        health = member.health
        if health != "up":
            health += f" for {_span(time.time() - member.since_ms / 1000)}"
        table.add_row(
            Text(member.name),
            _styled(member.state),
            Text(health, STYLES.get(member.health, "red")),
            *map(Text, (member.address, member.zone, member.rack, member.host, member.version)),
            str(member.drives),
        )
    return table


def drive_table(drives: Iterable[DriveStatus]) -> Table:
    """Return a table that fits into 80 columns; the ids of the drives are in the JSON."""
    drives = sorted(drives, key=lambda drive: (drive.member, drive.location))
    with_members = any(drive.member for drive in drives)
    table = Table(box=None, header_style="bold", pad_edge=False)
    if with_members:
        table.add_column("member", overflow="fold")
    table.add_column("drive", overflow="fold", min_width=6)
    table.add_column("state", no_wrap=True)
    for heading in ("total", "free", "live", "dead", "fragments", "damaged", "repaired"):
        table.add_column(heading, justify="right", no_wrap=True)
    for drive in drives:
        table.add_row(
            *([Text(drive.member)] if with_members else []),
            Text(drive.location),
            _styled(drive.state),
            *map(format_bytes, (drive.total, drive.free, drive.live, drive.dead)),
            *(f"{count:,}" for count in (drive.fragments, drive.damaged, drive.repaired)),
        )
    return table


def work_table(work: Iterable[WorkStatus]) -> Table:
    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column("work", overflow="fold")
    for heading in ("chunks", "bytes", "rate", "time left", "failed"):
        table.add_column(heading, justify="right", no_wrap=True)
    for item in work:
        table.add_row(
            Text(item.title if item.running else f"{item.title} (waits)"),
            f"{item.done:,} of {item.total:,}",
            format_bytes(item.bytes),
            f"{format_bytes(int(item.bytes_per_s))}/s",
            "" if item.seconds_left is None else _span(item.seconds_left),
            f"{item.left:,}" if item.left else "",
        )
    return table


def _styled(state: str) -> Text:
    return Text(state, STYLES.get(state, "red"))


def _span(seconds: float) -> str:
    """Return a time as people read it: ``45 s``, ``12 min``, ``3.5 h``, ``2.0 d``."""
    if seconds < 100:
        return f"{max(seconds, 0):.0f} s"
    if seconds < 100 * 60:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 48 * 3600 else f"{seconds / 86400:.1f} d"
