"""What WebDAV's benchmarks conclude from the servers' rounds."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.dav import measure, one_line
from benchmarks.dav_loads import Load
from benchmarks.dav_servers import DavSystem, run_null
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


def test_the_floor_answers_what_rclone_asks(tmp_path: Path) -> None:
    with run_null(tmp_path) as null:
        null.ask("MKCOL", "/bench/")
        null.ask("MKCOL", "/bench/folder/")
        for method, target, status in (
            ("MKCOL", "/bench/folder/", 405),
            ("MKCOL", "/none/folder/", 409),
            ("PUT", "/none/file", 409),
            ("GET", "/bench/none", 404),
        ):
            with pytest.raises(BenchmarkFailed, match=f" {status}"):
                null.ask(method, target)
        null.ask("PUT", "/bench/folder/file", b"bytes" * 100_000)
        assert null.ask("GET", "/bench/folder/file") == b"bytes" * 100_000
        alone = null.ask("PROPFIND", "/bench/folder/file", Depth="0")
        assert b"<D:getcontentlength>500000</D:getcontentlength>" in alone
        listed = null.ask("PROPFIND", "/bench/", Depth="1")
        assert listed.count(b"<D:response>") == 2
        assert b"<D:href>/bench/folder/</D:href>" in listed
        null.ask("DELETE", "/bench/folder/")
        with pytest.raises(BenchmarkFailed, match=" 404"):
            null.ask("GET", "/bench/folder/file")
