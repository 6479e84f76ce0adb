"""``python -m benchmarks.mount [GROUP...]``: measure the mount beside others of its kind."""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import msgspec
from rich.console import Console

from benchmarks.command import add_places, check_groups, run_to_end, utc_now
from benchmarks.machine import describe
from benchmarks.measure import MIB
from benchmarks.mount_loads import Run, drop_pages, random_reads, read_file, timed
from benchmarks.mount_report import (
    Figure,
    Report,
    Target,
    figure_of,
    one_line,
    print_report,
    write_json,
)
from benchmarks.mount_store import (
    FLAT,
    LARGE,
    PER_FOLDER,
    SMALL,
    TREE,
    Shape,
    drop_drives,
    fill,
    warm_drives,
)
from benchmarks.mount_systems import SLOW_S, Mounted, Systems, require, systems
from benchmarks.servers import run_lode

GROUPS = ("read", "random", "names", "tar")
FIT_SIZE = 64 * MIB
"""What random reads may touch so that it is kept by every mount with its defaults."""

Show = Callable[[Figure], None]


class Plan(msgspec.Struct, frozen=True):
    shape: Shape
    rounds: int
    seconds: int
    """Of each run of random reads."""


FULL = Plan(Shape(file_size=1024 * MIB, flat=100_000, tree=100_000, small=10_000), 3, 3)
QUICK = Plan(Shape(file_size=256 * MIB, flat=20_000, tree=20_000, small=1_000), 1, 1)


def in_turn(
    places: Systems,
    bucket: str,
    names: tuple[str, ...],
    load: Callable[[Mounted], Run],
    *,
    rounds: int,
) -> dict[str, list[Run]]:
    """Run a load once per round on each system, in turn, each time on a fresh mount."""
    runs: dict[str, list[Run]] = {name: [] for name in names}
    for _ in range(rounds):
        for name, found in runs.items():
            with places.open[name](bucket) as mounted:
                found.append(load(mounted))
    return runs


def measure_reads(places: Systems, plan: Plan, show: Show) -> None:
    """One large object from its beginning to its end."""
    size = plan.shape.file_size
    data = places.server.data

    def once(mounted: Mounted) -> Run:
        return read_file(mounted, size)

    def from_disk(mounted: Mounted) -> Run:
        drop_drives(data)
        return read_file(mounted, size)

    def again(mounted: Mounted) -> Run:
        read_file(mounted, size)
        return read_file(mounted, size)

    def without_pages(mounted: Mounted) -> Run:
        # Twice: what the cache's disk could not keep up with comes by the second time.
        for _ in range(2):
            read_file(mounted, size)
            drop_pages(mounted.path / "file")
        return read_file(mounted, size)

    def measured(
        name: str,
        load: Callable[[Mounted], Run],
        names: tuple[str, ...],
        *,
        targets: list[Target],
        note: str,
    ) -> None:
        runs = in_turn(places, LARGE, names, load, rounds=plan.rounds)
        # The first one is ours, however it was mounted.
        runs = {"lode": runs.pop(names[0]), **runs}
        show(
            figure_of(
                runs, name=f"sequential read, {name}", unit="MiB/s", targets=targets, note=note
            )
        )

    warm_drives(data)
    of_rclone = Target("3 times rclone", of="rclone", ratio_min=3.0)
    measured(
        "cold",
        once,
        ("lode", "null", "rclone", "s3fs"),
        targets=[Target("40 % of null", of="null", ratio_min=0.4), of_rclone],
        note="fresh mount; the drives' bytes are in the page cache",
    )
    cached = Target("60 % of null", of="null", ratio_min=0.6)
    measured(
        "cached",
        again,
        ("lode", "null", "rclone"),
        targets=[cached, of_rclone],
        note="opened and read again: from the kernel's page cache",
    )
    measured(
        "from the disk cache",
        without_pages,
        ("cached", "null"),
        targets=[cached],
        note="slow nodes and --cache-dir; read before, and the kernel forgot it",
    )
    slow_ms = SLOW_S * 1e3
    measured(
        f"nodes {slow_ms:.0f} ms slow",
        once,
        ("slow",),
        targets=[Target("500 MB/s", value_min=500e6 / MIB)],
        note="every call of every node takes so much longer",
    )
    measured(
        "from the drives",
        from_disk,
        ("lode", "rclone"),
        targets=[],
        note="nothing is in any page cache: the disk decides",
    )


def measure_random(places: Systems, plan: Plan, show: Show) -> None:
    """4 KiB at random places, one after the other, past the kernel's page cache."""
    whole = plan.shape.file_size
    warm_drives(places.server.data)

    def within(size: int) -> Callable[[Mounted], Run]:
        def load(mounted: Mounted) -> Run:
            random_reads(mounted, size, seconds=1)
            return random_reads(mounted, size, seconds=plan.seconds)

        return load

    for size, targets, note in (
        (
            FIT_SIZE,
            [Target("50 % of null", of="null", ratio_min=0.5)],
            "of 64 MiB: what was touched is kept by the mount",
        ),
        (whole, [], f"of {whole // MIB} MiB: most blocks are read and verified anew"),
    ):
        show(
            figure_of(
                in_turn(
                    places, LARGE, ("lode", "null", "rclone"), within(size), rounds=plan.rounds
                ),
                name=f"4 KiB random reads of {size // MIB} MiB",
                unit="reads/s",
                targets=targets,
                note=note,
            )
        )


def measure_names(places: Systems, plan: Plan, show: Show) -> None:
    shape = plan.shape

    def list_long(mounted: Mounted) -> Run:
        # One line more than files: the total.
        return timed(mounted, "ls -l folder", lines=shape.flat + 1)

    def find(mounted: Mounted) -> Run:
        folders = -(-shape.tree // PER_FOLDER)
        return timed(mounted, "find folder -printf '%p %s %T@\\n'", lines=shape.tree + folders + 1)

    limit_s = 2.0 * shape.flat / 100_000
    # The others once: they take minutes.
    listed = in_turn(places, FLAT, ("lode",), list_long, rounds=plan.rounds)
    listed |= in_turn(places, FLAT, ("rclone",), list_long, rounds=1)
    show(
        figure_of(
            listed,
            name=f"ls -l of {shape.flat:,} entries",
            unit="s",
            targets=[Target(f"under {limit_s:.2g} s", value_max=limit_s)],
        )
    )
    runs = in_turn(places, TREE, ("lode",), find, rounds=plan.rounds)
    runs |= in_turn(places, TREE, ("rclone", "s3fs"), find, rounds=1)
    show(
        figure_of(
            runs,
            name=f"find over {shape.tree:,} files",
            unit="s",
            targets=[Target("10 times s3fs", of="s3fs", ratio_min=10.0)],
            note="with sizes and times; folders of 100",
        )
    )


def measure_tar(places: Systems, plan: Plan, show: Show) -> None:
    shape = plan.shape
    # tar does not read what goes to /dev/null, so it goes through a pipe.
    script = "{ tar cf - folder | cat > /dev/null; }; find folder -type f"

    def archive(mounted: Mounted) -> Run:
        return timed(mounted, script, lines=shape.small)

    show(
        figure_of(
            in_turn(places, SMALL, ("lode", "rclone"), archive, rounds=plan.rounds)
            | in_turn(places, SMALL, ("s3fs",), archive, rounds=1),
            name=f"tar of {shape.small:,} small files",
            unit="s",
            targets=[Target("5 times rclone", of="rclone", ratio_min=5.0)],
            note="4 KiB each, in folders of 100",
        )
    )


def parse_arguments(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.mount", description=__doc__)
    parser.add_argument("groups", nargs="*", metavar="GROUP", help=f"{', '.join(GROUPS)}; or all")
    parser.add_argument("--quick", action="store_true", help="less of everything, once")
    parser.add_argument("--rounds", type=int, help="runs of every load; medians are reported")
    add_places(parser)
    options = parser.parse_args(arguments)
    check_groups(parser, options.groups, GROUPS)
    return options


def run(options: argparse.Namespace, console: Console) -> None:
    require("fio", "rclone", "s3fs")
    plan = QUICK if options.quick else FULL
    if options.rounds:
        plan = msgspec.structs.replace(plan, rounds=options.rounds)
    groups = [group for group in GROUPS if not options.groups or group in options.groups]
    measures = {
        "read": measure_reads,
        "random": measure_random,
        "names": measure_names,
        "tar": measure_tar,
    }
    started = time.monotonic()
    with contextlib.ExitStack() as stack:
        folder = Path(tempfile.mkdtemp(prefix="lode-bench-", dir=options.folder))
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        report = Report(
            started=utc_now(),
            quick=options.quick,
            machine=describe(folder),
        )

        def show(figure: Figure) -> None:
            report.figures.append(figure)
            console.print(one_line(figure))

        workers = len(os.sched_getaffinity(0))
        server = stack.enter_context(run_lode(folder, workers=workers))
        fill(server.data, plan.shape)
        places = systems(server, folder, file_size=plan.shape.file_size)
        try:
            for group in groups:
                measures[group](places, plan, show)
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
