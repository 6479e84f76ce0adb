"""Listings over few and many keys. The keys are written as metadata rows, not through HTTP."""

from __future__ import annotations

import http.client
import re
import statistics
import time
from functools import partial
from urllib.parse import quote

import msgspec

from benchmarks.measure import BenchmarkFailed, Figure, Sample, Target
from benchmarks.rows import write_rows
from benchmarks.servers import Systems
from benchmarks.signed import Endpoint, request_head
from benchmarks.transfers import Plan, Show, create_bucket, in_turn
from benchmarks.wrk import run_wrk

PAGE = 1000
PREFIXES = 1000
FEW = 10_000
DELIMITED_REPEATS = 25
LISTED_PER_S_MIN = 200_000
RATIO_MAX = 3.0

_TOKEN = re.compile(rb"<NextContinuationToken>([^<]+)</NextContinuationToken>")


def key_of(number: int, count: int) -> str:
    """Return the key ``number`` of ``count``, spread evenly over ``PREFIXES`` folders."""
    per_prefix = max(1, count // PREFIXES)
    return f"folder-{number // per_prefix:06d}/data-{number % per_prefix:08d}.bin"


def fill_bucket(systems: Systems, bucket_name: str, count: int) -> None:
    """Make a bucket of ``count`` keys, all of them with records as a PUT writes them."""
    create_bucket(systems, bucket_name)
    keys = (key_of(number, count) for number in range(count))
    write_rows(systems.lode.data, bucket_name, keys, b"listed, not read")


class Lister:
    """One connection that lists, following continuation tokens as clients do."""

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint
        self._connection = http.client.HTTPConnection(endpoint.host, endpoint.port, timeout=60)

    def close(self) -> None:
        self._connection.close()

    def page(self, target: str) -> bytes:
        """Return the body of a listing. Raises: BenchmarkFailed."""
        head = request_head(self._endpoint, "GET", target).split(b"\r\n")[1:]
        fields = [line.decode().split(": ", 1) for line in head if line]
        headers = {name: value for name, value in fields if name != "host"}
        self._connection.request("GET", target, headers=headers)
        answer = self._connection.getresponse()
        body = answer.read()
        if answer.status != 200:
            raise BenchmarkFailed(f"GET {target}: {answer.status} {body[:300]!r}")
        return body

    def walk(self, bucket_name: str, *, pages_max: int) -> Sample:
        """List page after page; ``Sample.requests`` counts keys."""
        keys, pages, target = 0, 0, _target(bucket_name)
        started = time.monotonic()
        while pages < pages_max:
            body = self.page(target)
            pages += 1
            keys += body.count(b"<Key>")
            token = _TOKEN.search(body)
            if token is None:
                break
            following = quote(token[1].decode().replace("&amp;", "&"), safe="")
            target = f"{_target(bucket_name)}&continuation-token={following}"
        return Sample(requests=keys, seconds=time.monotonic() - started)


def _target(bucket_name: str, **more: str) -> str:
    text = f"/{bucket_name}?list-type=2&max-keys={PAGE}"
    return text + "".join(f"&{name}={value}" for name, value in more.items())


def _keys(pages: Sample) -> Sample:
    return msgspec.structs.replace(pages, requests=pages.requests * PAGE)


def _measure_pages(
    systems: Systems, name: str, targets: list[str], connections: int, plan: Plan, show: Show
) -> None:
    """Pages of 1,000 keys from wrk, beside a bare server that sends the same number of bytes."""
    lister = Lister(systems.lode.endpoint)
    try:
        first = lister.page(targets[0])
    finally:
        lister.close()
    if first.count(b"<Key>") != PAGE:
        raise BenchmarkFailed(f"{name}: a page of {first.count(b'<Key>')} keys")
    size = len(first)
    load = partial(
        run_wrk,
        folder=systems.folder,
        connections=connections,
        seconds=plan.seconds,
        # Tokens differ in size from page to page.
        response_size=size * 9 // 10,
    )

    def ours() -> Sample:
        endpoint = systems.lode.endpoint
        return _keys(load(endpoint, [request_head(endpoint, "GET", text) for text in targets]))

    def bare() -> Sample:
        return _keys(load(systems.bare, [request_head(systems.bare, "GET", f"/{size}")]))

    samples = in_turn({"lode": ours, "bare": bare}, plan.rounds)
    failed = sum(sample.failed for runs in samples.values() for sample in runs)
    if failed:
        raise BenchmarkFailed(f"{name}: {failed} failed requests")
    rates = {server: [run.per_second for run in runs] for server, runs in samples.items()}
    show(
        Figure(
            group="list",
            name=name,
            connections=connections,
            unit="keys/s",
            lode=statistics.median(rates["lode"]),
            bare=statistics.median(rates["bare"]),
            p50_ms=statistics.median(run.p50_ms for run in samples["lode"]),
            p99_ms=statistics.median(run.p99_ms for run in samples["lode"]),
            lode_cpu_us=statistics.median(run.cpu_us for run in samples["lode"]),
            bare_cpu_us=statistics.median(run.cpu_us for run in samples["bare"]),
            target=Target("200,000 keys/s", value_min=LISTED_PER_S_MIN),
            rounds=rates,
            note=f"pages of {size} bytes",
        )
    )


def _measure_walk(systems: Systems, bucket_name: str, count: int, plan: Plan, show: Show) -> None:
    lister = Lister(systems.lode.endpoint)
    try:
        pages_max = 200 if plan.rounds > 1 else 50
        runs = [lister.walk(bucket_name, pages_max=pages_max) for _ in range(plan.rounds)]
    finally:
        lister.close()
    show(
        Figure(
            group="list",
            name=f"LIST of {count:,}, one lister",
            connections=1,
            unit="keys/s",
            lode=statistics.median(run.per_second for run in runs),
            rounds={"lode": [run.per_second for run in runs]},
            note="follows tokens; its own XML reading and signing counts",
        )
    )


def _measure_delimited(systems: Systems, few: str, many: str, show: Show) -> None:
    """List 1,000 common prefixes over few and over many keys, in turn; one connection."""
    lister = Lister(systems.lode.endpoint)
    times: dict[str, list[float]] = {few: [], many: []}
    try:
        for _ in range(DELIMITED_REPEATS):
            for bucket_name, found in times.items():
                started = time.monotonic()
                body = lister.page(_target(bucket_name, delimiter="%2F"))
                found.append((time.monotonic() - started) * 1e3)
                if body.count(b"<CommonPrefixes>") != PREFIXES:
                    raise BenchmarkFailed("a delimiter listing without its 1,000 prefixes")
    finally:
        lister.close()
    quick, slow = statistics.median(times[few]), statistics.median(times[many])
    show(
        Figure(
            group="list",
            name="1,000 prefixes, many keys / 10,000",
            connections=1,
            unit="times as long",
            lode=slow / quick,
            p50_ms=slow,
            target=Target("at most 3", value_max=RATIO_MAX),
            rounds={"few ms": times[few], "many ms": times[many]},
            note=f"{slow:.1f} ms / {quick:.1f} ms",
        )
    )


def measure_listings(systems: Systems, plan: Plan, show: Show) -> None:
    count = plan.listed_keys
    fill_bucket(systems, "thousand", PAGE)
    fill_bucket(systems, "few", FEW)
    fill_bucket(systems, "many", count)
    for connections in plan.connections:
        _measure_pages(systems, "LIST of 1,000", [_target("thousand")], connections, plan, show)
    # Each request is for another page, each connection goes through all of them.
    starts = [key_of(number, count) for number in range(0, count - PAGE, PAGE)]
    pages = [_target("many", **{"start-after": quote(start, safe="")}) for start in starts]
    for connections in plan.connections:
        _measure_pages(systems, f"LIST of {count:,}", pages, connections, plan, show)
    _measure_walk(systems, "many", count, plan, show)
    _measure_delimited(systems, "few", "many", show)
