"""Workers start together, are replaced when they die, and leave nothing behind.

The processes are real and the signals too; only the program that they run is a stand-in.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import trio

from cli.credentials import Credentials
from cli.handover import WorkerConfig
from cli.outcome import WorkersFailed
from cli.supervisor import Patience, Supervisor
from engine.config import StoreConfig
from engine.errors import ConfigError
from engine.http.crowd import make_board
from fs.options import MountOptions
from tests.support import fake_worker
from tests.support.logs import Logs

# Long enough that only a bug reaches it.
GIVE_UP_S = 60.0

HASTE = Patience(start_s=GIVE_UP_S, stop_s=GIVE_UP_S, quick_deaths_max=3, delay_s=0.0)


BOARD = make_board(8)
"""Inherited by all workers of all tests here; nobody counts on it."""


def config(number: int, mount: MountOptions | None = None) -> WorkerConfig:
    return WorkerConfig(
        number=number,
        mount=mount,
        store=StoreConfig(data=Path("/nowhere")),
        sockets=[],
        board=BOARD,
        workers=1,
        credentials=Credentials("access", "secretsecret"),
        owner_id="owner",
        region="us-east-1",
        domains=(),
        tls_cert=None,
        tls_key=None,
        log_level="info",
        log_json=True,
    )


def supervisor(
    folder: Path,
    *steps: str,
    workers: int = 1,
    ready: Callable[[], None] = lambda: None,
    patience: Patience = HASTE,
    mount: MountOptions | None = None,
) -> Supervisor:
    """``mount``: the last one mounts."""
    command = [sys.executable, str(fake_worker.__file__), str(folder), *steps]
    configs = [
        config(number, mount if number == workers else None) for number in range(1, workers + 1)
    ]
    return Supervisor(command, configs, ready=ready, patience=patience)


def send(number: signal.Signals) -> Callable[[], None]:
    return lambda: os.kill(os.getpid(), number)


def lives(folder: Path, number: int = 1) -> list[str]:
    """Return what each process of the worker played."""
    return [line.split()[1] for line in (folder / f"lives-{number}").read_text().splitlines()]


def processes(folder: Path) -> list[int]:
    return [
        int(line.split()[0])
        for path in folder.glob("lives-*")
        for line in path.read_text().splitlines()
    ]


def assert_all_gone(folder: Path) -> None:
    for process in processes(folder):
        with pytest.raises(ProcessLookupError):
            os.kill(process, 0)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_stops_all_workers(tmp_path: Path, number: signal.Signals) -> None:
    with trio.fail_after(GIVE_UP_S):
        await supervisor(tmp_path, "serve", workers=3, ready=send(number)).run()
    assert [lives(tmp_path, worker) for worker in (1, 2, 3)] == [["serve"]] * 3
    assert_all_gone(tmp_path)


async def test_ready_is_said_once_and_only_when_every_worker_is(tmp_path: Path, logs: Logs) -> None:
    logs.expect("worker died")
    seen: list[int] = []

    def ready() -> None:
        seen.append(len(processes(tmp_path)))
        os.kill(os.getpid(), signal.SIGTERM)

    with trio.fail_after(GIVE_UP_S):
        await supervisor(tmp_path, "serve", workers=2, ready=ready).run()
    assert seen == [2]


async def test_a_worker_that_dies_is_replaced(tmp_path: Path, logs: Logs) -> None:
    logs.expect("worker died")
    running = supervisor(tmp_path, "die", "vanish", "serve")
    with trio.fail_after(GIVE_UP_S):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(running.run)
            await logs.wait_for("worker serves again")
            os.kill(os.getpid(), signal.SIGTERM)
    assert lives(tmp_path) == ["die", "vanish", "serve"]
    assert logs.events.count("worker died; starting another") == 2
    assert_all_gone(tmp_path)


async def test_a_worker_that_keeps_dying_ends_the_server(tmp_path: Path, logs: Logs) -> None:
    logs.expect("worker died")
    with trio.fail_after(GIVE_UP_S), pytest.raises(WorkersFailed, match="died 4 times in a row"):
        await supervisor(tmp_path, "die").run()
    assert lives(tmp_path) == ["die"] * 4


async def test_the_others_are_stopped_when_one_keeps_dying(tmp_path: Path, logs: Logs) -> None:
    logs.expect("worker died")

    def kill_the_first() -> None:
        os.kill(int((tmp_path / "lives-1").read_text().split()[0]), signal.SIGKILL)

    with trio.fail_after(GIVE_UP_S), pytest.raises(WorkersFailed, match="worker 1 died"):
        await supervisor(tmp_path, "serve", "die", workers=2, ready=kill_the_first).run()
    assert lives(tmp_path, 1) == ["serve", "die", "die", "die"]
    assert lives(tmp_path, 2) == ["serve"]
    assert_all_gone(tmp_path)


@pytest.mark.parametrize(
    ("step", "error", "said"),
    [
        ("usage", ConfigError, "^no such folder$"),
        ("refuse", WorkersFailed, "worker 1 did not start: the disk is on fire"),
        ("vanish", WorkersFailed, r"worker 1 did not start \(killed by SIGKILL\)"),
    ],
)
async def test_a_worker_that_cannot_start_ends_the_server_with_its_reason(
    tmp_path: Path, step: str, error: type[Exception], said: str
) -> None:
    never_ready: list[None] = []
    with trio.fail_after(GIVE_UP_S), pytest.raises(error, match=said):
        await supervisor(tmp_path, step, ready=lambda: never_ready.append(None)).run()
    assert never_ready == []
    assert_all_gone(tmp_path)


async def test_a_silent_worker_is_not_waited_for_forever(tmp_path: Path) -> None:
    patience = Patience(start_s=0.5)
    with trio.fail_after(GIVE_UP_S), pytest.raises(WorkersFailed, match="did not start"):
        await supervisor(tmp_path, "silent", patience=patience).run()
    assert_all_gone(tmp_path)


async def test_a_worker_that_does_not_stop_in_time_is_killed(tmp_path: Path, logs: Logs) -> None:
    logs.expect("did not stop in time")
    patience = Patience(stop_s=0.05)
    with trio.fail_after(GIVE_UP_S):
        await supervisor(tmp_path, "deaf", ready=send(signal.SIGTERM), patience=patience).run()
    assert any("did not stop in time" in event for event in logs.events)
    assert_all_gone(tmp_path)


async def test_a_second_signal_kills_at_once(tmp_path: Path, logs: Logs) -> None:
    logs.expect("second signal")
    patience = Patience(again_s=0.0)
    running = supervisor(tmp_path, "deaf", workers=2, ready=send(signal.SIGTERM), patience=patience)
    with trio.fail_after(GIVE_UP_S):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(running.run)
            await logs.wait_for("stopping")
            os.kill(os.getpid(), signal.SIGTERM)
    assert_all_gone(tmp_path)


async def test_a_signal_that_comes_twice_at_once_is_one(tmp_path: Path, logs: Logs) -> None:
    def twice() -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGINT)

    with trio.fail_after(GIVE_UP_S):
        await supervisor(tmp_path, "serve", ready=twice, patience=Patience(again_s=GIVE_UP_S)).run()
    assert logs.events.count("stopping") == 1
    assert_all_gone(tmp_path)


async def test_workers_do_not_inherit_the_secret(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LODE_ACCESS_KEY", "access")
    monkeypatch.setenv("LODE_SECRET_KEY", "secretsecret")
    monkeypatch.setenv("LODE_PROBE", "inherited")
    with trio.fail_after(GIVE_UP_S):
        await supervisor(tmp_path, "serve", ready=send(signal.SIGTERM)).run()
    names = (tmp_path / "lives-1").read_text().split()
    assert "LODE_PROBE" in names
    assert "LODE_SECRET_KEY" not in names
    assert "LODE_ACCESS_KEY" not in names


async def test_cancelling_leaves_no_process(tmp_path: Path) -> None:
    with trio.fail_after(GIVE_UP_S), trio.CancelScope() as scope:
        await supervisor(tmp_path, "deaf", workers=2, ready=scope.cancel).run()
    assert scope.cancelled_caught
    assert_all_gone(tmp_path)


MOUNT = MountOptions(target=Path("/somewhere"))


async def test_a_mount_may_die_for_ever_and_the_server_goes_on(tmp_path: Path, logs: Logs) -> None:
    logs.expect("mount died")
    often = HASTE.quick_deaths_max * 2
    steps = ["die", "refuse", "vanish"] * often + ["serve"]
    running = supervisor(tmp_path, *steps, mount=MOUNT)
    with trio.fail_after(GIVE_UP_S):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(running.run)
            while not lives_so_far(tmp_path) or lives(tmp_path)[-1] != "serve":  # noqa: ASYNC110
                await trio.sleep(0.01)
            assert running.missing() == []
            os.kill(os.getpid(), signal.SIGTERM)
    assert lives(tmp_path) == steps
    assert logs.events.count("mount died; mounting again") == often * 3
    assert_all_gone(tmp_path)


async def test_a_mount_that_keeps_dying_is_started_ever_more_rarely(
    tmp_path: Path, logs: Logs
) -> None:
    logs.expect("mount died")
    patience = Patience(delay_s=0.001, aside_delay_s_max=0.004, quick_deaths_max=0)
    running = supervisor(tmp_path, *["die"] * 5, "serve", mount=MOUNT, patience=patience)
    with trio.fail_after(GIVE_UP_S):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(running.run)
            while not lives_so_far(tmp_path) or lives(tmp_path)[-1] != "serve":  # noqa: ASYNC110
                await trio.sleep(0.01)
            os.kill(os.getpid(), signal.SIGTERM)
    delays = [entry["delay_s"] for entry in logs.entries if "delay_s" in entry]
    assert delays == [0.001, 0.002, 0.004, 0.004, 0.004]


async def test_a_mount_that_cannot_be_made_at_first_ends_the_server(tmp_path: Path) -> None:
    with trio.fail_after(GIVE_UP_S), pytest.raises(ConfigError, match="no such folder"):
        await supervisor(tmp_path, "usage", mount=MOUNT).run()


async def test_what_somebody_unmounts_stays_so(tmp_path: Path, logs: Logs) -> None:
    logs.expect("unmounted by somebody")

    def unmount() -> None:
        os.kill(int((tmp_path / "lives-2").read_text().split()[0]), signal.SIGTERM)

    running = supervisor(tmp_path, "serve", workers=2, ready=unmount, mount=MOUNT)
    with trio.fail_after(GIVE_UP_S):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(running.run)
            await logs.wait_for(
                "unmounted by somebody; it stays so until the server is started again"
            )
            assert running.missing() == []
            os.kill(os.getpid(), signal.SIGTERM)
    assert [lives(tmp_path, number) for number in (1, 2)] == [["serve"], ["serve"]]
    assert_all_gone(tmp_path)


def lives_so_far(folder: Path, number: int = 1) -> bool:
    return (folder / f"lives-{number}").exists()
