"""What WebDAV's benchmarks conclude from the servers' rounds."""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks.dav import measure, one_line
from benchmarks.dav_loads import Load
from benchmarks.dav_servers import DavSystem
from benchmarks.measure import BenchmarkFailed, Sample
from benchmarks.signed import Endpoint

SYSTEMS = {name: DavSystem(name, Endpoint("127.0.0.1", 1), "") for name in ("lode", "apache")}


def seconds_of(*rounds: tuple[str, float]) -> Iterator[tuple[str, Sample]]:
    return iter([(name, Sample(requests=100, seconds=seconds)) for name, seconds in rounds])


def test_who_comes_first_changes_with_each_round_and_the_median_counts() -> None:
    runs = seconds_of(
        ("lode", 1.0), ("apache", 2.0), ("apache", 4.0), ("lode", 10.0), ("lode", 2.0),
        ("apache", 1.0),
    )  # fmt: skip

    def run(system: DavSystem) -> Sample:
        name, sample = next(runs)
        assert name == system.name
        return sample

    load = Load(name="files", connections=1, unit="files/s", run=run, rounds=3, yardstick="apache")
    figure = measure(load, "rclone", SYSTEMS)
    assert figure.values == {"lode": 50, "apache": 50}
    assert figure.rounds["lode"] == [100, 10, 50]
    assert figure.ratio == 1
    assert figure.target_reached
    assert "lode 50.0 (10.0-100.0)" in one_line(figure)


def test_a_server_that_fails_and_that_nothing_is_compared_with_is_left_out() -> None:
    def run(system: DavSystem) -> Sample:
        if system.name == "apache":
            raise BenchmarkFailed("no answer")
        return Sample(requests=1, seconds=1.0, p50_ms=2.0, p90_ms=3.0)

    load = Load(name="files", connections=1, unit="files/s", run=run, rounds=2)
    figure = measure(load, "requests", SYSTEMS)
    assert list(figure.values) == ["lode"]
    assert figure.ratio is None
    assert "p50 2.00 p90 3.00 ms" in one_line(figure)
