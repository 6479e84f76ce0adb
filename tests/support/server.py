"""A real ``lode serve`` for tests: started, asked, and ended with nothing left behind."""

from __future__ import annotations

import json
import os
import selectors
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.support.fdb_server import metadata_for

ROOT = Path(__file__).resolve().parents[2]
LODE = (sys.executable, "-m", "cli.main")

START_S = 120.0
STOP_S = 120.0


class Server:
    """A running server. ``log`` is what it wrote on standard error so far."""

    def __init__(self, process: subprocess.Popen[bytes], ready: str, log_path: Path) -> None:
        self.process = process
        self.ready = ready
        words = dict(word.split("=", 1) for word in shlex.split(ready)[1:])
        self.url = words.get("s3", "")
        self.dav_url = words.get("dav", "")
        self.metrics_url = words.get("metrics", "")
        self.node_url = words.get("node", "")
        self.credentials_path = words.get("credentials", "")
        self._log_path = log_path

    @property
    def log(self) -> list[dict[str, object]]:
        return [json.loads(line) for line in self._log_path.read_text().splitlines()]

    @property
    def credentials(self) -> tuple[str, str]:
        document = json.loads(Path(self.credentials_path).read_text())
        return document["access_key"], document["secret_key"]

    @property
    def workers(self) -> list[int]:
        """Process ids of the worker processes that are there now."""
        path = f"/proc/{self.process.pid}/task/{self.process.pid}/children"
        # trio starts processes from threads, so other tasks can be the parent too.
        tasks = Path(f"/proc/{self.process.pid}/task")
        children: list[int] = []
        for task in tasks.iterdir() if tasks.exists() else [Path(path).parent]:
            children += map(int, (task / "children").read_text().split())
        return children

    @property
    def troubles(self) -> list[dict[str, object]]:
        """What was logged at a level that asks for somebody's attention, or with a traceback."""
        quiet = ("debug", "info")
        return [entry for entry in self.log if entry["level"] not in quiet or "exception" in entry]

    def peak_memory(self) -> dict[int, int]:
        """Return the most bytes that each worker has had in memory so far, by process id."""
        peaks = {}
        for worker in self.workers:
            status = Path(f"/proc/{worker}/status").read_text()
            line = next(line for line in status.splitlines() if line.startswith("VmHWM:"))
            peaks[worker] = int(line.split()[1]) * 1024
        return peaks

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Send the signal, wait, and return the exit status."""
        self.process.send_signal(number)
        return self.process.wait(STOP_S)


@contextmanager
def serving(
    data: Path,
    *arguments: str,
    environment: Mapping[str, str] | None = None,
    address: str = "127.0.0.1:0",
    command: tuple[str, str] = ("serve", "--s3"),
) -> Iterator[Server]:
    """Run ``lode serve --data DATA`` on a free port until the block ends; killed if need be.

    ``command``: another one that serves, and its option for the address.
    """
    log_path = data.with_name(data.name + ".log")
    name, option = command
    words = [*LODE, name, "--data", str(data), option, address, *arguments]
    if meta := metadata_for(data):
        words += ["--meta", meta]
    with log_path.open("ab") as log:
        process = subprocess.Popen(
            words,
            stdout=subprocess.PIPE,
            stderr=log,
            env=clean_environment(environment),
            cwd=ROOT,
        )
    with process:
        try:
            yield Server(process, _first_line(process, log_path), log_path)
            if process.poll() is None:
                process.terminate()
                process.wait(STOP_S)
        finally:
            if process.poll() is None:
                process.kill()


def drive_folders(folder: Path, count: int = 6) -> list[Path]:
    return [folder / f"drive{number}" for number in range(1, count + 1)]


@contextmanager
def serving_coded(folder: Path, *arguments: str, workers: int = 2, **more: Any) -> Iterator[Server]:
    """Run a server on six drives, 4+2, all below ``folder``: the store is ``folder/store``."""
    drives = [str(drive) for drive in drive_folders(folder)]
    with serving(
        folder / "store",
        *("--workers", str(workers), "--profile", "4+2", "--drives", *drives),
        *arguments,
        **more,
    ) as server:
        yield server


def lode(
    *arguments: str, environment: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run another command to its end."""
    return subprocess.run(
        [*LODE, *arguments],
        capture_output=True,
        text=True,
        check=False,
        env=clean_environment(environment),
        cwd=ROOT,
        timeout=START_S,
    )


def clean_environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return this process's environment without settings of lode, but with ``extra``.

    What is started runs this checkout's code, whatever is installed beside it.
    """
    kept = {name: value for name, value in os.environ.items() if not name.startswith("LODE_")}
    return {**kept, "COLUMNS": "200", "PYTHONPATH": str(ROOT), **(extra or {})}


def _first_line(process: subprocess.Popen[bytes], log_path: Path) -> str:
    assert process.stdout is not None
    deadline = time.monotonic() + START_S
    line = b""
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ)
        while not line.endswith(b"\n"):
            if not selector.select(max(0.0, deadline - time.monotonic())):
                raise AssertionError(f"not ready after {START_S} s:\n{log_path.read_text()}")
            received = os.read(process.stdout.fileno(), 4096)
            if not received:
                raise AssertionError(f"ended before it was ready:\n{log_path.read_text()}")
            line += received
    return line.decode().rstrip("\n")
