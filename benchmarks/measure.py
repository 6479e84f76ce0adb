"""What a measurement is: samples, medians over rounds, ratios and verdicts. No I/O."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

import msgspec

KIB = 1 << 10
MIB = 1 << 20


class BenchmarkFailed(Exception):
    """A figure could not be had, or would be wrong; the message says why in one line."""


class Sample(msgspec.Struct, frozen=True):
    """One run of one load against one server."""

    requests: int
    seconds: float
    bytes: int = 0
    """Payload bytes that crossed, in either direction."""
    p50_ms: float = 0.0
    p90_ms: float = 0.0
    p99_ms: float = 0.0
    failed: int = 0
    """Answers with another status or length than expected, and broken connections."""
    cpu_s: float = 0.0
    """CPU time of the server's processes, user and system, resolution 10 ms per process."""

    @property
    def per_second(self) -> float:
        return self.requests / self.seconds

    @property
    def bytes_per_second(self) -> float:
        return self.bytes / self.seconds

    @property
    def cpu_us(self) -> float:
        """Per request; unlike the rate it hardly depends on what else the machine does."""
        return self.cpu_s * 1e6 / self.requests


class Target(msgspec.Struct, frozen=True):
    """What a figure is to reach: a share of a yardstick's, or a value of its own."""

    text: str
    ratio_min: float | None = None
    """Of the bare server's rate."""
    value_min: float | None = None
    value_max: float | None = None


class Figure(msgspec.Struct, frozen=True, kw_only=True):
    """One line of the report. Values are medians over the rounds, in ``unit``."""

    group: str
    name: str
    connections: int
    unit: str
    lode: float
    bare: float | None = None
    nginx: float | None = None
    p50_ms: float | None = None
    p99_ms: float | None = None
    lode_cpu_us: float | None = None
    """CPU time of all server processes per request (per key where keys are counted)."""
    bare_cpu_us: float | None = None
    target: Target | None = None
    rounds: dict[str, list[float]] = {}
    """Every value that was measured, by server."""
    note: str = ""

    @property
    def ratio(self) -> float | None:
        """Of the bare server's figure."""
        return self.lode / self.bare if self.bare else None

    @property
    def nginx_ratio(self) -> float | None:
        return self.lode / self.nginx if self.nginx else None

    @property
    def reached(self) -> bool | None:
        """Whether the target is reached; None when there is none."""
        if self.target is None:
            return None
        target = self.target
        if target.ratio_min is not None:
            return self.ratio is not None and self.ratio >= target.ratio_min
        if target.value_min is not None:
            return self.lode >= target.value_min
        return target.value_max is not None and self.lode <= target.value_max


def figure_of(
    samples: dict[str, Sequence[Sample]],
    *,
    group: str,
    name: str,
    connections: int,
    in_bytes: bool,
    target: Target | None = None,
    note: str = "",
) -> Figure:
    """Return the medians of samples by server (``lode``, ``bare``, ``nginx``).

    Raises: BenchmarkFailed: a run had failed requests, so its rate means nothing.
    """
    for server, runs in samples.items():
        failed = sum(run.failed for run in runs)
        if failed or not all(run.requests for run in runs):
            raise BenchmarkFailed(
                f"{name}, {connections} connections: {failed} failed requests at {server}"
            )
    rounds = {
        server: [run.bytes_per_second / MIB if in_bytes else run.per_second for run in runs]
        for server, runs in samples.items()
    }
    medians = {server: statistics.median(values) for server, values in rounds.items()}
    return Figure(
        group=group,
        name=name,
        connections=connections,
        unit="MiB/s" if in_bytes else "requests/s",
        lode=medians["lode"],
        bare=medians.get("bare"),
        nginx=medians.get("nginx"),
        p50_ms=statistics.median(run.p50_ms for run in samples["lode"]),
        p99_ms=statistics.median(run.p99_ms for run in samples["lode"]),
        lode_cpu_us=statistics.median(run.cpu_us for run in samples["lode"]),
        bare_cpu_us=statistics.median(run.cpu_us for run in samples["bare"]),
        target=target,
        rounds=rounds,
        note=note,
    )


def size_name(size: int) -> str:
    """Return ``4 KiB``, ``64 MiB``."""
    if size % MIB == 0 and size:
        return f"{size // MIB} MiB"
    return f"{size // KIB} KiB" if size % KIB == 0 else f"{size} B"
