"""What the benchmarks conclude from what they measured."""

from __future__ import annotations

import io
import json
from pathlib import Path

import msgspec
import pytest
from rich.console import Console

from benchmarks.__main__ import parse_arguments, plan_of
from benchmarks.listings import key_of
from benchmarks.machine import Disk, Machine, cpu_seconds, filesystem_of, measure_disk
from benchmarks.measure import MIB, BenchmarkFailed, Figure, Sample, Target, figure_of, size_name
from benchmarks.memory import check_room
from benchmarks.report import Report, print_report, write_json
from benchmarks.transfers import Plan, in_turn, rounds_for


def sample(rate: float, **fields: float) -> Sample:
    return msgspec.convert({"requests": int(rate * 2), "seconds": 2.0, **fields}, Sample)


def figure(lode: float, target: Target | None, bare: float | None = None) -> Figure:
    return Figure(
        group="get",
        name="GET",
        connections=1,
        unit="requests/s",
        lode=lode,
        bare=bare,
        target=target,
    )


def test_figure_is_the_median_of_the_rounds() -> None:
    found = figure_of(
        {"lode": [sample(10), sample(500), sample(30)], "bare": [sample(100)] * 3},
        group="get",
        name="GET",
        connections=1,
        in_bytes=False,
    )
    assert (found.lode, found.bare, found.ratio) == (30, 100, 0.3)
    assert found.rounds["lode"] == [10, 500, 30]


def test_figure_in_bytes_counts_mib_per_second() -> None:
    runs = [sample(3, bytes=6 * MIB)]
    found = figure_of(
        {"lode": runs, "bare": runs}, group="get", name="GET", connections=1, in_bytes=True
    )
    assert (found.lode, found.unit) == (3, "MiB/s")


def test_failed_requests_give_no_figure() -> None:
    with pytest.raises(BenchmarkFailed, match="2 failed requests at bare"):
        figure_of(
            {"lode": [sample(10)], "bare": [sample(100), sample(99, failed=2)]},
            group="get",
            name="GET",
            connections=1,
            in_bytes=False,
        )


def test_run_without_requests_gives_no_figure() -> None:
    with pytest.raises(BenchmarkFailed):
        figure_of(
            {"lode": [sample(0)], "bare": [sample(100)]},
            group="get",
            name="GET",
            connections=1,
            in_bytes=False,
        )


@pytest.mark.parametrize(
    ("lode", "target", "reached"),
    [
        (15, Target("", ratio_min=0.15), True),
        (14, Target("", ratio_min=0.15), False),
        (200, Target("", value_min=200), True),
        (199, Target("", value_min=200), False),
        (3, Target("", value_max=3), True),
        (4, Target("", value_max=3), False),
        (4, None, None),
    ],
)
def test_target_is_reached_at_its_bound(
    lode: float, target: Target | None, reached: bool | None
) -> None:
    assert figure(lode, target, bare=100).reached is reached


def test_ratio_target_without_a_yardstick_is_missed() -> None:
    assert figure(15, Target("", ratio_min=0.15)).reached is False


def test_servers_take_turns_in_every_round() -> None:
    order: list[str] = []

    def run(name: str) -> Sample:
        order.append(name)
        return sample(1)

    in_turn({"lode": lambda: run("lode"), "bare": lambda: run("bare")}, 2)
    assert order == ["lode", "bare", "lode", "bare"]


def test_sizes_are_named_in_binary_units() -> None:
    assert [size_name(size) for size in (100, 4096, 65536, MIB, 64 * MIB)] == [
        "100 B",
        "4 KiB",
        "64 KiB",
        "1 MiB",
        "64 MiB",
    ]


def test_keys_of_a_listing_ascend_within_a_thousand_folders() -> None:
    keys = [key_of(number, 10_000) for number in range(10_000)]
    assert keys == sorted(set(keys))
    assert len({key.split("/")[0] for key in keys}) == 1000


def test_report_says_what_was_reached_and_what_was_missed(tmp_path: Path) -> None:
    machine = Machine(
        cpu="test",
        cores=2,
        memory_mib=1,
        kernel="",
        python="",
        filesystem="ext4",
        load_before=0.0,
        commit="c" * 40,
        versions={},
    )
    report = Report(
        started="2026-01-02T03:04:05Z",
        quick=True,
        rounds=1,
        workers=2,
        machine=machine,
        disk=Disk(100.0, 300.0, 16),
        figures=[
            figure(15, Target("15 % of bare", ratio_min=0.15), bare=100),
            figure(14, Target("15 % of bare", ratio_min=0.15), bare=100),
        ],
    )
    text = io.StringIO()
    print_report(report, Console(file=text, width=200))
    assert text.getvalue().count("reached") == text.getvalue().count("missed") == 1
    assert "at most 200 MiB/s of objects" in text.getvalue()
    path = write_json(report, tmp_path / "results")
    assert path.name == "20260102T030405Z.json"
    document = json.loads(path.read_bytes())
    assert [row["target_reached"] for row in document["figures"]] == [True, False]
    assert document["figures"][0]["bare_ratio"] == 0.15
    assert document["machine"]["commit"] == "c" * 40


def test_options_replace_parts_of_the_plan() -> None:
    options = parse_arguments(["get", "--sizes", "4096,65536", "--rounds", "5"])
    plan = plan_of(options)
    assert (plan.sizes, plan.rounds) == ((4096, 65536), 5)
    assert plan.connections == Plan().connections


def test_quick_plan_measures_less() -> None:
    quick, whole = plan_of(parse_arguments(["--quick"])), plan_of(parse_arguments([]))
    assert quick.rounds < whole.rounds
    assert quick.stream_mib < whole.stream_mib


def test_wrong_numbers_are_named() -> None:
    with pytest.raises(BenchmarkFailed, match="4k"):
        plan_of(parse_arguments(["--sizes", "4k"]))


def test_unknown_group_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse_arguments(["gets"])
    assert "unknown group gets" in capsys.readouterr().err


def test_too_little_room_is_said_before_anything_runs(tmp_path: Path) -> None:
    assert check_room(tmp_path, 1 << 50, Plan()) is None
    assert "1 GiB free" in str(check_room(tmp_path, 1 << 30, Plan()))


def test_disk_probe_leaves_nothing_behind(tmp_path: Path) -> None:
    found = measure_disk(tmp_path, wrote_mib=1)
    assert found.syncs_per_second > 0
    assert found.write_mib_per_second > 0
    assert list(tmp_path.iterdir()) == []


def test_file_system_is_that_of_the_longest_mount_point() -> None:
    assert filesystem_of(Path("/proc/self")) == "proc"


def test_cpu_time_of_this_process_only_grows() -> None:
    pid = Path("/proc/self").resolve().name
    before = cpu_seconds((int(pid),))
    sum(range(3_000_000))
    assert cpu_seconds((int(pid),)) >= before > 0


def test_loads_that_move_gigabytes_run_once() -> None:
    plan = Plan()
    assert rounds_for(plan, 64 * MIB, 64) == 1
    assert rounds_for(plan, 64 * MIB, 16) == rounds_for(plan, 4096, 64) == plan.rounds
