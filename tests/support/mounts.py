"""Real mounts for tests: started, used, and always unmounted and ended."""

from __future__ import annotations

import json
import os
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

import trio

from engine.config import StoreConfig
from engine.engine import Engine
from engine.opening import open_engine, prepare_store
from tests.support.server import ROOT, clean_environment

T = TypeVar("T")

START_S = 120.0
STOP_S = 120.0


class Mount:
    """A mount that is there. ``path`` is where."""

    def __init__(self, process: subprocess.Popen[bytes], path: Path, log_path: Path) -> None:
        self.process = process
        self.path = path
        self._log_path = log_path

    @property
    def log(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self._log_path.read_text().splitlines()]

    @property
    def troubles(self) -> list[dict[str, Any]]:
        """What was logged at a level that asks for somebody's attention, or with a traceback."""
        quiet = ("debug", "info")
        return [entry for entry in self.log if entry["level"] not in quiet or "exception" in entry]

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Send the signal, wait, and return the exit status."""
        self.process.send_signal(number)
        return self.process.wait(STOP_S)


@contextmanager
def mounted(data: Path, path: Path, *, bucket: str = "bucket", **options: Any) -> Iterator[Mount]:
    """Mount a bucket of the store in ``data``, both made if need be; ``options`` are fields of
    ``MountOptions``, or ``full``: the drives have no room left, ``far``: as if they were those of
    another machine, or ``stuck``: no file is ever opened."""
    with suppress(FileExistsError):
        path.mkdir()  # a dead mount is there, but neither a file nor a folder
    data.mkdir(parents=True, exist_ok=True)
    wanted = {"data": str(data), "target": str(path), "bucket": bucket, **options}
    log_path = path.with_name(path.name + ".log")
    command = [sys.executable, "-m", "tests.support.mount_process", json.dumps(wanted)]
    with log_path.open("ab") as log:
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=log, env=clean_environment(), cwd=ROOT
        )
    with process:
        try:
            _wait_ready(process, log_path)
            yield Mount(process, path, log_path)
            if process.poll() is None:
                process.terminate()
                process.wait(STOP_S)
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
            # Whether a dead mount is there cannot be asked: the kernel may answer for it.
            subprocess.run(["umount", "-l", str(path)], check=False, capture_output=True)


def ask(data: Path, question: Callable[[Engine], Awaitable[T]]) -> T:
    """Run ``question`` on the store from this process."""

    async def main() -> T:
        async with open_engine(StoreConfig(data=data, services=False)) as engine:
            return await question(engine)

    return trio.run(main)


def prepare(data: Path, *, versioning: bool = False) -> None:
    """Make the store and its bucket before anybody mounts it."""

    async def main() -> None:
        config = StoreConfig(data=data, services=False)
        await prepare_store(config)
        async with open_engine(config) as engine:
            await engine.create_bucket("bucket", owner="owner")
            if versioning:
                await engine.set_versioning("bucket", "Enabled")

    data.mkdir(parents=True)
    trio.run(main)


def _wait_ready(process: subprocess.Popen[bytes], log_path: Path) -> None:
    assert process.stdout is not None
    deadline = time.monotonic() + START_S
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ)
        if not selector.select(max(0.0, deadline - time.monotonic())):
            raise AssertionError(f"not ready after {START_S} s:\n{log_path.read_text()}")
        if not (line := os.read(process.stdout.fileno(), 100)).startswith(b"ready"):
            raise AssertionError(f"ended before it was ready: {line!r}\n{log_path.read_text()}")


def run(*command: str, cwd: Path | None = None, timeout: float = 120.0) -> str:
    """Run a program to its end and return what it printed; it has to succeed."""
    done = subprocess.run(
        command,
        cwd=cwd,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=timeout,
        check=False,
        env={**clean_environment(), "LC_ALL": "C.UTF-8", "GIT_CONFIG_GLOBAL": "/dev/null"},
    )
    assert done.returncode == 0, f"{command}: {done.returncode}\n{done.stdout}"
    return done.stdout
