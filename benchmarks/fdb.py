"""Reads and commits per second of the metadata contract on FoundationDB, beside the plain binding.

    python -m benchmarks.fdb /etc/foundationdb/fdb.cluster [--library FILE] [--seconds 3]

Each round measures, one after the other and on the same keys, so that only ratios count:

* ``futures``: the binding, one thread, 64 futures in flight, the oldest waited for;
* ``threads``: the binding, 64 threads, each waiting for its own;
* ``contract``: ``Database.read`` and ``Database.run``, 64 tasks of one trio thread.

A read is a transaction of one ``get``; a commit is a transaction of one ``set``. The contract's
commit also writes and checks its marker. Asked for: at least 2 times the threads, at least 45 % of
the futures.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import threading
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import trio

from engine.meta.fdb import FdbDatabase, FdbLocation, open_fdb
from engine.meta.fdb_library import API_VERSION
from engine.meta.kv import ReadTransaction, Transaction

IN_FLIGHT = 64
KEYS = 10_000
VALUE = bytes(200)
ROUNDS = 3
STORE = "bench"

Measure = Callable[[], float]
"""Runs for a while and returns operations per second."""


def key_of(number: int) -> bytes:
    """Return a key of the contract; consecutive numbers lie apart, as hashed names do."""
    return b"k%08d" % (number * 7919 % KEYS)


class Plain:
    """The official binding as its documentation uses it."""

    def __init__(self, cluster_file: Path, prefix: bytes, seconds: float) -> None:
        import fdb

        fdb.api_version(API_VERSION)
        self._db: Any = fdb.open(str(cluster_file))
        self._prefix = prefix + b"d"
        self._seconds = seconds

    def _start_read(self, number: int) -> tuple[Any, Any]:
        transaction = self._db.create_transaction()
        return transaction, transaction.get(self._prefix + key_of(number))

    def _start_commit(self, number: int) -> tuple[Any, Any]:
        transaction = self._db.create_transaction()
        transaction[self._prefix + key_of(number)] = VALUE
        return transaction, transaction.commit()

    def futures(self, kind: str) -> float:
        start = self._start_read if kind == "read" else self._start_commit
        flying: deque[tuple[Any, Any]] = deque(start(number) for number in range(IN_FLIGHT))
        began = time.perf_counter()
        ends, count = began + self._seconds, 0
        while time.perf_counter() < ends:
            _, future = flying.popleft()
            future.wait()
            count += 1
            flying.append(start(count + IN_FLIGHT))
        taken = time.perf_counter() - began
        for _, future in flying:
            future.wait()
        return count / taken

    def threads(self, kind: str) -> float:
        start = self._start_read if kind == "read" else self._start_commit
        counts = [0] * IN_FLIGHT
        ends = time.perf_counter() + self._seconds

        def work(number: int) -> None:
            while time.perf_counter() < ends:
                _, future = start(number + counts[number] * IN_FLIGHT)
                future.wait()
                counts[number] += 1

        workers = [threading.Thread(target=work, args=(n,)) for n in range(IN_FLIGHT)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        return sum(counts) / self._seconds


async def contract(db: FdbDatabase, kind: str, seconds: float) -> float:
    """Return operations per second of 64 tasks."""
    ends, count = trio.current_time() + seconds, 0

    async def work(number: int) -> None:
        nonlocal count
        while trio.current_time() < ends:
            key = key_of(number + count)

            async def read(tr: ReadTransaction, key: bytes = key) -> None:
                await tr.get(key)

            async def commit(tr: Transaction, key: bytes = key) -> None:
                tr.set(key, VALUE)

            if kind == "read":
                await db.read(read)
            else:
                await db.run(commit)
            count += 1

    async with trio.open_nursery() as nursery:
        for number in range(IN_FLIGHT):
            nursery.start_soon(work, number)
    return count / seconds


async def fill(db: FdbDatabase) -> None:
    for begin in range(0, KEYS, 1000):

        async def body(tr: Transaction, begin: int = begin) -> None:
            for number in range(begin, begin + 1000):
                tr.set(key_of(number), VALUE)

        await db.run(body)


async def measure(location: FdbLocation, seconds: float) -> dict[str, dict[str, float]]:
    """Return medians by kind and way, and the two ratios of each kind."""
    results: dict[str, dict[str, float]] = {}
    async with open_fdb(location) as db:
        await fill(db)
        plain = Plain(location.cluster_file, location.prefix, seconds)
        for kind in ("read", "commit"):
            rates: dict[str, list[float]] = {"futures": [], "threads": [], "contract": []}
            for _ in range(ROUNDS):
                rates["futures"].append(plain.futures(kind))
                rates["contract"].append(await contract(db, kind, seconds))
                rates["threads"].append(plain.threads(kind))
            medians = {way: statistics.median(values) for way, values in rates.items()}
            medians["of futures"] = medians["contract"] / medians["futures"]
            medians["times threads"] = medians["contract"] / medians["threads"]
            results[kind] = medians

        async def clear(tr: Transaction) -> None:
            tr.clear_range(b"", b"\xff")

        await db.run(clear)
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("cluster", type=Path, metavar="CLUSTERFILE")
    parser.add_argument("--library", type=Path, help="file of the client library")
    parser.add_argument("--seconds", type=float, default=3.0, help="of each measurement")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    location = FdbLocation(arguments.cluster.absolute(), STORE, arguments.library)
    results = trio.run(measure, location, arguments.seconds)
    if arguments.json:
        print(json.dumps({"cores": os.cpu_count(), **results}, indent=2))
        return
    print(f"{'':8}{'futures':>10}{'threads':>10}{'contract':>10}  of futures  times threads")
    for kind, values in results.items():
        rates = "".join(f"{values[way]:10,.0f}" for way in ("futures", "threads", "contract"))
        print(f"{kind:8}{rates}{values['of futures']:11.0%}{values['times threads']:14.1f}")


if __name__ == "__main__":
    main()
