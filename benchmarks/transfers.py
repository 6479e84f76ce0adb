"""PUT, GET, HEAD and DELETE of objects, beside the yardsticks, round by round in turn."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from functools import partial

import msgspec

from benchmarks.measure import (
    KIB,
    MIB,
    BenchmarkFailed,
    Figure,
    Sample,
    Target,
    figure_of,
    size_name,
)
from benchmarks.rows import write_rows
from benchmarks.servers import Systems
from benchmarks.signed import Endpoint, request_head, request_heads
from benchmarks.stream_client import run_stream
from benchmarks.wrk import run_wrk

BUCKET = "bench"
SMALL_MAX = 64 * KIB
"""Up to here ``wrk`` is the client, above it the streaming one."""
FILL_CONNECTIONS = 16
FILL_S_MAX = 300.0
LONG_ROUND = 2048 * MIB
DELETES_PER_SECOND_MAX = 30_000

Run = Callable[[], Sample]
Show = Callable[[Figure], None]


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """How much is measured."""

    sizes: tuple[int, ...] = (4 * KIB, 64 * KIB, MIB, 64 * MIB)
    connections: tuple[int, ...] = (1, 16, 64)
    rounds: int = 3
    seconds: int = 1
    """Of each run."""
    listed_keys: int = 1_000_000
    stream_mib: int = 5120
    """Streamed in and out for the memory figure."""


GET_TARGETS = {
    4 * KIB: Target("15 % of bare", ratio_min=0.15),
    64 * MIB: Target("30 % of bare", ratio_min=0.30),
}
PUT_TARGETS = {
    4 * KIB: Target("6 % of bare", ratio_min=0.06),
    64 * MIB: Target("20 % of bare", ratio_min=0.20),
}


def key_count(size: int) -> int:
    """Return over how many keys requests are spread: many, but only what memory can hold."""
    return max(16, min(1000, 64 * MIB // size))


def object_targets(size: int) -> list[str]:
    return [f"/{BUCKET}/{size}/{number:06d}" for number in range(key_count(size))]


def rounds_for(plan: Plan, size: int, connections: int) -> int:
    """Return the rounds of a load; one will do where a single round moves gigabytes for long."""
    return 1 if size * connections >= LONG_ROUND else plan.rounds


def in_turn(runs: dict[str, Run], rounds: int) -> dict[str, Sequence[Sample]]:
    """Run every server's load once per round, so that whatever else the machine does hits all."""
    samples: dict[str, list[Sample]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            samples[name].append(run())
    return dict(samples)


def create_bucket(systems: Systems, name: str) -> None:
    endpoint = systems.lode.endpoint
    head = request_head(endpoint, "PUT", f"/{name}", body_size=0)
    run_stream(endpoint, [head], connections=1, seconds=FILL_S_MAX, requests_max=1)


def store_objects(systems: Systems, targets: list[str], size: int) -> None:
    """PUT one object of ``size`` bytes under every target."""
    endpoint = systems.lode.endpoint
    heads = request_heads(endpoint, "PUT", targets, body_size=size)
    run_stream(
        endpoint,
        heads,
        connections=min(FILL_CONNECTIONS, max(1, 256 * MIB // max(1, size))),
        seconds=FILL_S_MAX,
        requests_max=len(heads),
        body_size=size,
    )


def _load(
    systems: Systems,
    endpoint: Endpoint,
    method: str,
    targets: list[str],
    *,
    size: int,
    connections: int,
    plan: Plan,
) -> Sample:
    upload = size if method == "PUT" else 0
    download = size if method == "GET" else 0
    heads = request_heads(endpoint, method, targets, body_size=upload if method == "PUT" else None)
    if size <= SMALL_MAX:
        return run_wrk(
            endpoint,
            heads,
            folder=systems.folder,
            connections=connections,
            seconds=plan.seconds,
            body=bytes(range(256)) * (upload // 256),
            response_size=download,
        )
    return run_stream(
        endpoint,
        heads,
        connections=connections,
        seconds=plan.seconds,
        body_size=upload,
        response_size=download,
    )


def measure_gets(systems: Systems, size: int, plan: Plan, show: Show) -> None:
    create_bucket(systems, BUCKET)
    store_objects(systems, object_targets(size), size)
    for connections in plan.connections:
        load = partial(_load, systems, size=size, connections=connections, plan=plan, method="GET")
        samples = in_turn(
            {
                "lode": partial(load, systems.lode.endpoint, targets=object_targets(size)),
                "bare": partial(load, systems.bare, targets=[f"/{size}"]),
                "nginx": partial(load, systems.nginx, targets=[f"/{size}"]),
            },
            rounds_for(plan, size, connections),
        )
        show(
            figure_of(
                samples,
                group="get",
                name=f"GET {size_name(size)}",
                connections=connections,
                in_bytes=size > SMALL_MAX,
                target=GET_TARGETS.get(size),
            )
        )


def measure_puts(
    systems: Systems, size: int, plan: Plan, show: Show, *, disk_mib_per_second: float
) -> None:
    create_bucket(systems, BUCKET)
    targets = object_targets(size)
    if size > SMALL_MAX:
        # Each connection has a key of its own: what is measured is no conflict.
        count = max(len(targets), *plan.connections)
        targets = [f"/{BUCKET}/{size}/{number:06d}" for number in range(count)]
    for connections in plan.connections:
        load = partial(_load, systems, size=size, connections=connections, plan=plan, method="PUT")
        samples = in_turn(
            {
                "lode": partial(load, systems.lode.endpoint, targets=targets),
                "bare": partial(load, systems.bare, targets=["/sink"]),
            },
            rounds_for(plan, size, connections),
        )
        # 4+2 writes half as much again as it is sent.
        ceiling = disk_mib_per_second / 1.5
        targeted = size > SMALL_MAX or connections >= max(plan.connections)
        show(
            figure_of(
                samples,
                group="put",
                name=f"PUT {size_name(size)}",
                connections=connections,
                in_bytes=size > SMALL_MAX,
                target=PUT_TARGETS.get(size) if targeted else None,
                note=f"the disk allows {ceiling:.0f} MiB/s" if size > SMALL_MAX else "",
            )
        )


def measure_heads(systems: Systems, plan: Plan, show: Show) -> None:
    """HEAD of empty objects: wrk would wait for a body as long as Content-Length says."""
    create_bucket(systems, BUCKET)
    targets = [f"/{BUCKET}/empty/{number:06d}" for number in range(1000)]
    store_objects(systems, targets, 0)
    _measure_headers_only(systems, "HEAD", lambda: targets, plan, show)


def measure_deletes(systems: Systems, plan: Plan, show: Show) -> None:
    """DELETE of 4 KiB objects, every key once: deleting what is not there costs less."""
    create_bucket(systems, BUCKET)
    number = itertools.count()
    count = DELETES_PER_SECOND_MAX * plan.seconds

    def fresh() -> list[str]:
        name = next(number)
        targets = [f"/{BUCKET}/doomed-{name}/{index:06d}" for index in range(count)]
        keys = (target.removeprefix(f"/{BUCKET}/") for target in targets)
        write_rows(systems.lode.data, BUCKET, keys, bytes(4 * KIB))
        return targets

    _measure_headers_only(systems, "DELETE", fresh, plan, show)


def _measure_headers_only(
    systems: Systems, method: str, targets: Callable[[], list[str]], plan: Plan, show: Show
) -> None:
    for connections in plan.connections:
        load = partial(_load, systems, size=0, connections=connections, plan=plan, method=method)

        def ours(load: Callable[..., Sample] = load) -> Sample:
            found = targets()
            sample = load(systems.lode.endpoint, targets=found)
            if method == "DELETE" and sample.requests > len(found):
                raise BenchmarkFailed("more deletes than objects: raise DELETES_PER_SECOND_MAX")
            return sample

        samples = in_turn(
            {"lode": ours, "bare": partial(load, systems.bare, targets=["/sink"])}, plan.rounds
        )
        show(
            figure_of(
                samples,
                group=method.lower(),
                name=method,
                connections=connections,
                in_bytes=False,
            )
        )
