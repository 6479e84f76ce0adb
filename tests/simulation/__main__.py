"""Run simulated lives of a cluster: ``python -m tests.simulation [SEED ...] [options]``.

With seeds, each is run and its trace printed. Without, seeds are run one after another from
``--first`` on, ``--count`` of them or for ``--seconds``, on all cores; those that failed are
listed in the end with the command that runs them again. Exit status 1: some failed.

What the life of one seed holds (``tests.support.simulation``; shares of all seeds):

* a cluster of 2 to 7 machines, with a profile from 1+1 to 4+2 and 1 to 3 gateways; every eighth has
  the real drives (volumes, index, recovery, compaction) on a recorded disk;
* one epoch, in a quarter two: 1 to 4 clients make 5 to 10 calls each (put, get, delete, list,
  multipart, with and without conditions, slow readers among them) on 3 keys, of objects that meet
  every class of durability, while up to 10 faults of 1 to 6 kinds happen. In a fifth the faults
  last until long after the last call, so that members are lost and sessions expire; one in
  seventeen has a gateway that oversleeps between writing and claiming, one in ten a loss of data
  when just k or k + 1 fragments were durable;
* then the services heal alone: no repair or stray row is left and deep fsck is clean; every key is
  read; then m machines are switched off, and every key is read through every gateway;
* all gateways end or crash, another opens the store, finds all keys, deletes them, and collects
  until no row and no fragment is left;
* what clients saw is checked for linearizability, key by key.
"""

from __future__ import annotations

import argparse
import gc
import os
import signal
import sys
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from contextlib import nullcontext
from itertools import count, islice

from tests.support.simulation import Outcome, simulate

CHUNK = 10
"""Seeds that a process is given at once."""
SEED_S_MAX = 60
"""A seed that takes longer goes round in circles."""
TRACE_SHOWN = 150


class Hung(BaseException):
    """Not an Exception: nothing in the simulated world may catch it."""


def _give_up(*_: object) -> None:
    raise Hung(f"more than {SEED_S_MAX} s of processor time")


def run_seed(seed: int, mutation: str | None) -> Outcome:
    from tests.simulation.mutations import MUTATIONS

    signal.signal(signal.SIGVTALRM, _give_up)
    signal.setitimer(signal.ITIMER_VIRTUAL, SEED_S_MAX)
    try:
        with MUTATIONS[mutation]() if mutation else nullcontext():
            return simulate(seed)
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)


def _begin() -> None:
    """Get this process ready for thousands of lives: garbage is collected between them only."""
    gc.collect()
    gc.freeze()
    gc.disable()


def _run_some(seeds: list[int], mutation: str | None) -> list[Outcome]:
    outcomes = [run_seed(seed, mutation) for seed in seeds]
    for outcome in outcomes:
        outcome.trace = []  # of no use by the thousand; a seed can be run again
    gc.collect()
    return outcomes


def run_many(
    seeds: Iterable[int], mutation: str | None, *, jobs: int, until: float
) -> Iterator[Outcome]:
    """Yield outcomes as they come, until the seeds or the time are used up."""
    source = iter(seeds)
    if jobs == 1:
        _begin()
        while time.monotonic() < until and (some := list(islice(source, CHUNK))):
            yield from _run_some(some, mutation)
        return
    with ProcessPoolExecutor(jobs, initializer=_begin) as pool:
        running: set[Future[list[Outcome]]] = set()
        while True:
            while len(running) <= jobs and time.monotonic() < until:
                some = list(islice(source, CHUNK))
                if not some:
                    break
                running.add(pool.submit(_run_some, some, mutation))
            if not running:
                return
            done, running = wait(running, return_when=FIRST_COMPLETED)
            for future in done:
                yield from future.result()


def show(outcome: Outcome, *, lines: int) -> None:
    for line in outcome.trace[max(0, len(outcome.trace) - lines) :]:
        print(line)
    for problem in outcome.problems:
        print(f"PROBLEM: {problem}")
    print(
        f"seed {outcome.seed}: {'FAILED' if outcome.problems else 'good'}, "
        f"{outcome.operations} calls in {outcome.virtual_s:.0f} virtual s, trace {outcome.digest}"
    )


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.simulation")
    parser.add_argument("seeds", nargs="*", type=int, metavar="SEED")
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--count", type=int)
    parser.add_argument("--seconds", type=float, default=float("inf"))
    parser.add_argument("--jobs", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--mutation", help="put a bug in (tests/simulation/mutations.py)")
    parser.add_argument("--failures", type=int, default=5, help="stop after so many")
    parser.add_argument("--lines", type=int, default=TRACE_SHOWN, help="of a trace, from its end")
    return parser.parse_args()


def main() -> int:
    given = _arguments()
    if given.seeds:
        outcomes = [run_seed(seed, given.mutation) for seed in given.seeds]
        for outcome in outcomes:
            show(outcome, lines=given.lines)
        return 1 if any(outcome.problems for outcome in outcomes) else 0
    seeds = islice(count(given.first), given.count)
    began = time.monotonic()
    ran = operations = 0
    failed: list[Outcome] = []
    for outcome in run_many(seeds, given.mutation, jobs=given.jobs, until=began + given.seconds):
        ran += 1
        operations += outcome.operations
        if outcome.problems:
            failed.append(outcome)
            print(f"seed {outcome.seed}: {outcome.problems[0].strip()[-600:]}", flush=True)
            if len(failed) >= given.failures:
                break
    took = time.monotonic() - began
    print(
        f"{ran} seeds, {operations} calls in {took:.1f} s: {60 * ran / took:.0f} seeds a minute, "
        f"{len(failed)} failed"
    )
    for outcome in failed:
        more = f" --mutation {given.mutation}" if given.mutation else ""
        print(f"again: make sim SEED='{outcome.seed}{more}'")
    return 1 if failed else 0


if __name__ == "__main__":
    if os.environ.get("PYTHONHASHSEED") != "0":
        # The order of sets is part of what a seed decides.
        os.execve(
            sys.executable,
            [sys.executable, "-m", "tests.simulation", *sys.argv[1:]],
            {**os.environ, "PYTHONHASHSEED": "0"},
        )
    sys.exit(main())
