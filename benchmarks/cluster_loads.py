"""What is measured of a cluster: sockets, members that stopped or are slow, repair, growth."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial

import msgspec
import trio

from benchmarks.cluster_members import POLL_S, SETTLE_S_MAX, Cluster, Member
from benchmarks.cluster_report import Figure
from benchmarks.machine import cpu_seconds, forget_pages, repair_io_rate, write_rate
from benchmarks.measure import MIB, BenchmarkFailed, Sample, size_name
from benchmarks.signed import Endpoint, request_head, request_heads
from benchmarks.slow_proxy import run_proxy
from benchmarks.stream_client import run_stream
from benchmarks.transfers import in_turn
from engine import Engine
from engine.cluster.membership import read_rows
from engine.services.progress import Progress
from engine.services.status import store_status
from engine.types import DriveStatus

BUCKET = "cluster"
LARGE = 64 * MIB
FILL_S_MAX = 600.0
CONNECTIONS = 4
DATA_BLOCKS = 4
DELAY_S = 2.0

SOCKETS_MIN = 0.6
DEGRADED_MIN = 0.7
SLOW_MAX = 3.0
REPAIR_MIN = 0.5
GROWTH_MAX = 1.2

Show = Callable[[Figure], None]


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """How much is measured."""

    rounds: int = 5
    seconds: float = 3.0
    """Of each run."""
    slow_s: float = 20.0
    """Of the reads that p99 is taken of."""
    large_objects: int = 24
    small_objects: int = 512


def _targets(plan: Plan, size: int) -> list[str]:
    count = plan.large_objects if size == LARGE else plan.small_objects
    return [f"/{BUCKET}/{size}/{number}" for number in range(count)]


def fill(endpoint: Endpoint, plan: Plan, sizes: Sequence[int] = (LARGE, MIB)) -> None:
    """Make the bucket and its objects."""
    head = request_head(endpoint, "PUT", f"/{BUCKET}", body_size=0)
    run_stream(endpoint, [head], connections=1, seconds=10.0, requests_max=1)
    for size in sizes:
        targets = _targets(plan, size)
        run_stream(
            endpoint,
            request_heads(endpoint, "PUT", targets, body_size=size),
            connections=CONNECTIONS,
            seconds=FILL_S_MAX,
            requests_max=len(targets),
            body_size=size,
        )


def _load(
    endpoint: Endpoint, method: str, targets: Sequence[str], size: int, **load: float
) -> Sample:
    body_size = size if method == "PUT" else None
    return run_stream(
        endpoint,
        request_heads(endpoint, method, targets, body_size=body_size),
        body_size=body_size or 0,
        response_size=0 if body_size else size,
        **load,
    )


def _rates(samples: Sequence[Sample]) -> list[float]:
    return [sample.bytes_per_second / MIB for sample in samples]


def _cost(samples: Sequence[Sample]) -> float:
    return statistics.median(sample.cpu_s * 1e3 / (sample.bytes / MIB) for sample in samples)


def _compare(
    name: str, ours: Sequence[Sample], compared: str, others: Sequence[Sample], ratio_min: float
) -> Figure:
    return Figure(
        name=name,
        unit="MiB/s",
        value=statistics.median(_rates(ours)),
        compared=compared,
        other=statistics.median(_rates(others)),
        ratio_min=ratio_min,
        cpu_ms=_cost(ours),
        other_cpu_ms=_cost(others),
        rounds={"measured": _rates(ours), compared: _rates(others)},
        load=os.getloadavg()[0],
    )


def measure_sockets(local: Endpoint, cluster: Cluster, plan: Plan, show: Show) -> None:
    """The same six drives in the server's own processes, and behind sockets, in turn."""
    targets = _targets(plan, LARGE)[:CONNECTIONS]
    for method in ("PUT", "GET"):
        for connections in (1, CONNECTIONS):
            load = {"connections": connections, "seconds": plan.seconds}
            samples = in_turn(
                {
                    name: partial(_load, endpoint, method, targets, LARGE, **load)
                    for name, endpoint in (("in process", local), ("cluster", cluster.endpoint))
                },
                plan.rounds,
            )
            name = f"{method} 64 MiB x {connections}, six members"
            show(
                _compare(name, samples["cluster"], "in process", samples["in process"], SOCKETS_MIN)
            )


def measure_degraded(cluster: Cluster, plan: Plan, show: Show) -> None:
    """Reads with all members, with one and with two of six stopped, and with all again."""
    found: dict[tuple[int, int], list[Sample]] = {}

    def phase(ill: int) -> None:
        cluster.wait_for_health(ill=ill)
        for _ in range(plan.rounds):
            for size in (LARGE, MIB):
                targets = _targets(plan, size)[:64]
                load = {"connections": CONNECTIONS, "seconds": plan.seconds}
                sample = _load(cluster.endpoint, "GET", targets, size, **load)
                found.setdefault((ill, size), []).append(sample)

    stopped: list[Member] = []
    phase(0)
    for member in cluster.members[1:3]:
        member.stop()
        stopped.append(member)
        phase(len(stopped))
    for member in stopped:
        member.start()
    phase(0)
    for ill in (1, 2):
        for size in (LARGE, MIB):
            name = f"GET {size_name(size)} x {CONNECTIONS}, {ill} of 6 members stopped"
            show(_compare(name, found[ill, size], "all six", found[0, size], DEGRADED_MIN))


def measure_slow(cluster: Cluster, plan: Plan, show: Show) -> None:
    """p99 of 1 MiB reads while one member's answers take seconds; it is reached through the same
    proxy before."""
    member = cluster.members[0]
    targets = _targets(plan, MIB)[:64]
    with run_proxy(member.address) as proxy:
        cluster.move_member(member, proxy.address)
        cluster.wait_for_health()
        load = {"connections": CONNECTIONS, "seconds": plan.slow_s}
        healthy = _load(cluster.endpoint, "GET", targets, MIB, **load)
        proxy.delay(DELAY_S)
        slow = _load(cluster.endpoint, "GET", targets, MIB, **load)
        proxy.delay(0.0)
        cluster.move_member(member, member.address)
    show(
        Figure(
            name=f"p99 of GET 1 MiB x {CONNECTIONS}, one member {DELAY_S:g} s late",
            unit="ms",
            value=slow.p99_ms,
            compared="no delay",
            other=healthy.p99_ms,
            ratio_max=SLOW_MAX,
            cpu_ms=_cost([slow]),
            other_cpu_ms=_cost([healthy]),
            rounds={"p50": [healthy.p50_ms, slow.p50_ms]},
            load=os.getloadavg()[0],
            note=f"{healthy.requests} and {slow.requests} reads",
        )
    )


def _drive_of(cluster: Cluster, member: Member) -> DriveStatus:
    drives = cluster.ask(lambda engine: store_status(engine.store)).drives
    return next(drive for drive in drives if drive.member == member.name)


def measure_repair(cluster: Cluster, plan: Plan, show: Show) -> None:
    """One member's drive is replaced by an empty one: bytes of fragments made anew per second,
    from the moment that the first is begun.

    Beside it, the disk alone: a plain write of as many bytes; then, after a repair whose reads meet
    the disk, what repair asks of it, which is to read four times as much as it writes.
    """
    lost = _drive_of(cluster, cluster.members[-1]).live
    plain = [write_rate(cluster.folder, lost)]
    made = _rebuild(cluster, cluster.members[-1])
    plain.append(write_rate(cluster.folder, lost))
    show(_repair_figure("", made, "as many bytes written and synced, alone", plain))
    mixed = [repair_io_rate(cluster.folder, lost, DATA_BLOCKS)]
    made = _rebuild(cluster, cluster.members[-1], cold=True)
    mixed.append(repair_io_rate(cluster.folder, lost, DATA_BLOCKS))
    compared = "the same reads and writes past the page cache, alone"
    show(_repair_figure(", from the disk", made, compared, mixed))


class _Rebuilt(msgspec.Struct, frozen=True):
    bytes: int
    fragments: int
    seconds: float
    cpu_s: float


def _repair_figure(name: str, made: _Rebuilt, compared: str, disk: list[float]) -> Figure:
    return Figure(
        name=f"repair of a lost drive{name}",
        unit="MiB/s",
        value=made.bytes / made.seconds / MIB,
        compared=compared,
        other=statistics.mean(disk) / MIB,
        ratio_min=REPAIR_MIN,
        cpu_ms=made.cpu_s * 1e3 / (made.bytes / MIB),
        rounds={"disk before and after": [rate / MIB for rate in disk]},
        load=os.getloadavg()[0],
        note=f"{made.bytes / MIB:.0f} MiB, {made.fragments} fragments",
    )


def _rebuild(cluster: Cluster, member: Member, *, cold: bool = False) -> _Rebuilt:
    """Take the member's drive away, and return what making its fragments anew took.

    ``cold``: the others have nothing in the page cache.
    """
    cluster.wait_for_health()
    drive = _drive_of(cluster, member)
    member.stop()
    member.lose_drive()
    if cold:
        for other in cluster.members:
            forget_pages(other.drive)
    member.start()
    spent: list[float] = []

    async def watch(engine: Engine) -> float:
        began = 0.0
        with trio.move_on_after(SETTLE_S_MAX):
            while True:
                await trio.sleep(POLL_S)
                if not began:
                    if await Progress.load(engine.store, f"rebuild {drive.node_id}") is None:
                        continue
                    began = time.monotonic()
                    spent.append(cpu_seconds(cluster.endpoint.pids))
                rows = await engine.store.db.read(read_rows)
                nodes = {node_id.hex(): record for node_id, record in rows.nodes.items()}
                if nodes[drive.node_id].state == "up":
                    return time.monotonic() - began
        raise BenchmarkFailed("the drive was not rebuilt in time")

    seconds = cluster.ask(watch)
    cpu_s = cpu_seconds(cluster.endpoint.pids) - spent[0]
    made = _drive_of(cluster, member)
    if made.fragments < drive.fragments:
        raise BenchmarkFailed(f"{made.fragments} of {drive.fragments} fragments were made anew")
    return _Rebuilt(made.live, made.fragments, seconds, cpu_s)


def measure_growth(cluster: Cluster, plan: Plan, show: Show) -> None:
    """Bytes that move when a seventh member comes, beside a seventh of all that is stored."""
    cluster.wait_for_health()
    status = cluster.ask(lambda engine: store_status(engine.store))
    stored = sum(drive.live for drive in status.drives)
    began = time.monotonic()
    since_ms = time.time_ns() // 1_000_000
    member = cluster.start_member()
    cluster.add(member)
    ended: list[int] = []

    async def rebalanced(engine: Engine) -> bool:
        progress = await Progress.load(engine.store, "rebalance")
        if progress is None or not progress.record.ended or progress.record.started_ms < since_ms:
            return False
        if progress.record.left:
            raise BenchmarkFailed(f"{progress.record.left} fragments could not move")
        ended.append(progress.record.size)
        return True

    cluster.wait("rebalance", rebalanced)
    seconds = time.monotonic() - began
    has = _drive_of(cluster, member)
    show(
        Figure(
            name="bytes moved for a seventh member",
            unit="MiB",
            value=ended[0] / MIB,
            compared="a seventh of all bytes",
            other=stored / len(cluster.members) / MIB,
            ratio_max=GROWTH_MAX,
            load=os.getloadavg()[0],
            note=f"it has {has.live / MIB:.0f} MiB; {seconds:.0f} s with starting it",
        )
    )
