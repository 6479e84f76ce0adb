"""A real cluster for tests: ``lode node`` daemons and ``lode serve`` gateways of one machine."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from tests.support.server import STOP_S, Server, lode, serving

QUICK = (
    *("--heartbeat", "0.5", "--suspect-after", "3", "--down-after", "8", "--lost-after", "2"),
    *("--workers", "1"),
)
"""A gateway that gives up on members within seconds."""


class Daemons:
    """Members by name, and the store that they belong to: ``folder/store``."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self.folder = folder
        self.store = folder / "store"
        self._stack = stack
        self._running: dict[str, Server] = {}
        self._addresses: dict[str, str] = {}

    def run(self, *arguments: str) -> str:
        """Run a command of the store's to its end and return what it printed."""
        done = lode(*arguments, "--data", str(self.store))
        assert done.returncode == 0, (arguments, done.stdout, done.stderr)
        return done.stdout

    def json(self, *arguments: str) -> Any:
        return json.loads(self.run(*arguments, "--json"))

    def make(self, profile: str) -> None:
        self.run("cluster", "init", "--profile", profile)
        key = self.folder / "key"
        key.touch(0o600)
        key.write_text(self.run("cluster", "secret"))

    def start(self, name: str, *arguments: str) -> str:
        """Start a member (again, at the address that it had); return its address."""
        server = self._stack.enter_context(
            serving(
                self.folder / name,
                *("--name", name, "--secret-file", str(self.folder / "key"), *arguments),
                address=self._addresses.get(name, "127.0.0.1:0"),
                command=("node", "--listen"),
            )
        )
        self._running[name] = server
        address = self._addresses[name] = server.node_url.removeprefix("http://")
        return address

    def add(self, *names: str) -> None:
        for name in names:
            self.run("node", "add", self.start(name))

    def kill(self, name: str) -> None:
        process = self._running.pop(name).process
        process.send_signal(signal.SIGKILL)
        process.wait(STOP_S)

    @contextmanager
    def gateway(self, *arguments: str) -> Iterator[Server]:
        with serving(self.store, *QUICK, *arguments) as server:
            yield server

    def status(self) -> Any:
        return self.json("status")

    def healths(self) -> dict[str, str]:
        return {member["name"]: member["health"] for member in self.status()["members"]}

    def all_up(self) -> bool:
        status = self.status()
        return all(member["health"] == "up" for member in status["members"]) and all(
            drive["state"] == "up" for drive in status["drives"]
        )

    def wait_until(self, condition: Callable[[], bool]) -> None:
        """Wait for something that other processes do; there is no event for it."""
        deadline = time.monotonic() + STOP_S
        while not condition():
            assert time.monotonic() < deadline, self.status()
            time.sleep(0.3)

    def is_whole(self) -> bool:
        """Return whether a census proves that nothing is missing, and nothing is under way."""
        status = self.status()
        census = status["census"]
        return (
            census is not None
            and census["whole"] == census["fragments"] > 0
            and status["repair_queue"] == 0
            and not [work for work in status["work"] if work["name"] != "scrub"]
            and not any(drive["state"] == "rebuilding" for drive in status["drives"])
        )


@contextmanager
def daemons(folder: Path, *, profile: str = "4+2") -> Iterator[Daemons]:
    """Make a cluster in ``folder``; its members are ended with the context."""
    with ExitStack() as stack:
        made = Daemons(folder, stack)
        made.make(profile)
        yield made
