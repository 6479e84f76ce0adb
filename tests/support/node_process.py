"""Real ``lode node`` daemons for tests: started, asked, and ended with nothing left behind."""

from __future__ import annotations

import json
import selectors
import shlex
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from engine.node.wire.auth import Secret
from tests.support.server import LODE, ROOT, START_S, STOP_S, clean_environment


class NodeProcess:
    """A running member. ``address`` is ``HOST:PORT``."""

    def __init__(self, process: subprocess.Popen[bytes], ready: str, log_path: Path) -> None:
        self.process = process
        self.ready = ready
        words = dict(word.split("=", 1) for word in shlex.split(ready)[1:])
        self.url = words["node"]
        self.address = self.url.partition("//")[2]
        self.secret_path = words["secret"]
        self._log_path = log_path

    @property
    def secret(self) -> Secret:
        return Secret(Path(self.secret_path).read_bytes())

    @property
    def log(self) -> list[dict[str, object]]:
        return [json.loads(line) for line in self._log_path.read_text().splitlines()]

    @property
    def troubles(self) -> list[dict[str, object]]:
        quiet = ("debug", "info")
        return [entry for entry in self.log if entry["level"] not in quiet or "exception" in entry]

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Send the signal, wait, and return the exit status."""
        self.process.send_signal(number)
        return self.process.wait(STOP_S)


@contextmanager
def running_node(
    data: Path,
    *arguments: str,
    address: str = "127.0.0.1:0",
    environment: Mapping[str, str] | None = None,
) -> Iterator[NodeProcess]:
    """Run ``lode node --data DATA`` until the block ends; killed if need be."""
    log_path = data.with_name(data.name + ".log")
    words = [*LODE, "node", "--data", str(data), "--listen", address, *arguments]
    settings = {"LODE_NODE_RESERVE": "0", "LODE_NODE_LOOK_S": "0.05", **(environment or {})}
    with log_path.open("ab") as log:
        process = subprocess.Popen(
            words, stdout=subprocess.PIPE, stderr=log, env=clean_environment(settings), cwd=ROOT
        )
    with process:
        try:
            yield NodeProcess(process, _first_line(process, log_path), log_path)
            if process.poll() is None:
                process.terminate()
                process.wait(STOP_S)
        finally:
            if process.poll() is None:
                process.kill()


def _first_line(process: subprocess.Popen[bytes], log_path: Path) -> str:
    assert process.stdout is not None
    deadline = time.monotonic() + START_S
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ)
        if not selector.select(max(0.0, deadline - time.monotonic())):
            raise AssertionError(f"not ready after {START_S} s:\n{log_path.read_text()}")
    # One write of one short line: it comes whole.
    line = process.stdout.readline().decode()
    if not line.startswith("ready "):
        raise AssertionError(f"ended before it was ready:\n{log_path.read_text()}")
    return line.rstrip("\n")
