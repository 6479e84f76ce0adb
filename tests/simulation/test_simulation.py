"""Some seconds of simulated lives; ``make sim`` runs them for minutes.

They run in processes of their own: the order of Python's sets is part of what a seed decides.
"""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.simulation.kept import KEPT
from tests.simulation.mutations import MADE_UP_FOR, MUTATIONS

RUN_S_MAX = 600.0
SEEDS_MAX = 2000
"""About a minute of one core: within so many seeds every bug is found, most within ten."""
QUICK = (
    "ack-before-sync",
    "ack-with-k-fragments",
    "garbage-forgotten",
    "no-fence",
    "stale-reads",
    "transactions-do-not-conflict",
)


def simulation(*arguments: str, hash_seed: str = "0") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "tests.simulation", *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=RUN_S_MAX,
        env={**os.environ, "PYTHONHASHSEED": hash_seed},
    )


def assert_good(done: subprocess.CompletedProcess[str]) -> None:
    if done.returncode:
        pytest.fail(f"{done.stdout[-4000:]}\n{done.stderr[-2000:]}", pytrace=False)


def test_seeds_that_once_failed_stay_good() -> None:
    assert_good(simulation("--lines", "0", *map(str, KEPT)))


def test_simulated_lives_are_good() -> None:
    assert_good(simulation("--count", "600", "--seconds", "14", "--failures", "1"))


def test_a_seed_is_one_life_whatever_the_process() -> None:
    runs = [simulation("7", "8", "--lines", "100000", hash_seed=seed) for seed in ("0", "1")]
    assert runs[0].stdout == runs[1].stdout
    assert "2 machines are off" in runs[0].stdout or "fault" in runs[0].stdout


def assert_found(bug: str) -> None:
    done = simulation(
        "--mutation", bug, "--count", str(SEEDS_MAX), "--failures", "1", "--jobs", "1"
    )
    assert done.returncode == 1, done.stdout[-2000:] + done.stderr[-2000:]
    assert "1 failed" in done.stdout


@pytest.mark.parametrize("bug", QUICK)
def test_a_bug_is_found(bug: str) -> None:
    assert_found(bug)


@pytest.mark.soak
@pytest.mark.parametrize("bug", sorted(MUTATIONS.keys() - MADE_UP_FOR - {*QUICK}))
def test_every_other_bug_is_found(bug: str) -> None:
    assert_found(bug)
