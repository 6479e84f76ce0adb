"""A cluster under measurement: member daemons and a gateway of ours, on loopback and one disk."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import TypeVar

import trio

from benchmarks.measure import BenchmarkFailed
from benchmarks.servers import DRIVES, HOST, ROOT
from benchmarks.signed import Endpoint
from engine import Engine, open_engine
from engine.cluster.membership import read_rows
from engine.config import StoreConfig
from s3.auth.credentials import Credential

LODE = (sys.executable, "-m", "cli.main")
STOP_S_MAX = 60.0
SETTLE_S_MAX = 120.0
POLL_S = 0.05

T = TypeVar("T")


class Member:
    """One daemon with one drive; keeps its address when it is stopped and started."""

    def __init__(self, cluster: Cluster, number: int) -> None:
        self.name = f"m{number}"
        self.drive = cluster.folder / self.name / "drive"
        self.address = f"{HOST}:{_free_port()}"
        self._cluster = cluster
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        return self._process.pid if self._process is not None else 0

    def start(self) -> None:
        """Return once it accepts requests."""
        self.drive.mkdir(parents=True, exist_ok=True)
        self._process = self._cluster.spawn(
            *("node", "--data", str(self.drive.parent), "--drives", str(self.drive)),
            *("--name", self.name, "--listen", self.address),
            *("--secret-file", str(self._cluster.folder / "cluster.key")),
        )

    def stop(self) -> None:
        if self._process is not None:
            _stop(self._process)
            self._process = None

    def lose_drive(self) -> None:
        """Put an empty drive in the place of the one that is there; the daemon must not run."""
        for path in self.drive.iterdir():
            shutil.rmtree(path) if path.is_dir() else path.unlink()


class Cluster:
    """Six members and a gateway; ``endpoint`` is the gateway's, with the CPU time of all."""

    def __init__(self, folder: Path, stack: contextlib.ExitStack) -> None:
        self.folder = folder
        self.store = folder / "store"
        self.members: list[Member] = []
        self._credential = Credential("BENCHMARK", secrets.token_hex(20), "", "")
        self._stack = stack
        self._log = stack.enter_context((folder / "cluster.log").open("wb"))
        self._environment = {
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "LODE_ACCESS_KEY": self._credential.access_key,
            "LODE_SECRET_KEY": self._credential.secret_key,
        }
        self._gateway = 0
        self._port = 0

    @property
    def endpoint(self) -> Endpoint:
        pids = (self._gateway, *(member.pid for member in self.members if member.pid))
        return Endpoint(HOST, self._port, self._credential, pids)

    def begin(self, *, workers: int) -> None:
        """Raises: BenchmarkFailed."""
        self.run("cluster", "init", "--profile", "4+2")
        key = self.folder / "cluster.key"
        key.touch(0o600)
        key.write_text(self.run("cluster", "secret"))
        for _ in range(DRIVES):
            self.add(self.start_member())
        self._port = _free_port()
        self._gateway = self.spawn(
            *("serve", "--data", str(self.store), "--s3", f"{HOST}:{self._port}"),
            *("--workers", str(workers)),
        ).pid

    def start_member(self) -> Member:
        member = Member(self, len(self.members) + 1)
        self._stack.callback(member.stop)
        member.start()
        return member

    def add(self, member: Member) -> None:
        self.run("node", "add", member.address, "--weight", "1")
        self.members.append(member)

    def move_member(self, member: Member, address: str) -> None:
        """Reach a member at another address from now on."""
        self.run("node", "add", address, "--weight", "1")
        self.wait(f"{member.name} at {address}", _reached_at(member.name, address))

    def run(self, *arguments: str) -> str:
        done = subprocess.run(
            [*LODE, *arguments, "--data", str(self.store)],
            cwd=self.folder,
            env=self._environment,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise BenchmarkFailed(f"lode {arguments[0]}: {done.stderr.strip()[-600:]}")
        return done.stdout

    def spawn(self, *arguments: str) -> subprocess.Popen[bytes]:
        """Start a server, and return once it says that it is ready; it is stopped at the end."""
        process = subprocess.Popen(
            [*LODE, *arguments, "--log-level", "warning"],
            cwd=self.folder,
            env=self._environment,
            stdout=subprocess.PIPE,
            stderr=self._log,
        )
        self._stack.callback(_stop, process)
        assert process.stdout is not None
        if not process.stdout.readline().startswith(b"ready"):
            log = (self.folder / "cluster.log").read_text()[-600:]
            raise BenchmarkFailed(f"lode {arguments[0]} did not start: {log}")
        return process

    def ask(self, question: Callable[[Engine], Awaitable[T]]) -> T:
        """Return the answer of one call to the store, which is opened beside the gateway."""

        async def main() -> T:
            config = StoreConfig(data=self.store, services=False)
            async with open_engine(config) as engine:
                return await question(engine)

        return trio.run(main)

    def wait(self, what: str, question: Callable[[Engine], Awaitable[bool]]) -> None:
        """Return once the answer is yes. Raises BenchmarkFailed."""

        async def until(engine: Engine) -> bool:
            with trio.move_on_after(SETTLE_S_MAX):
                while True:
                    if await question(engine):
                        return True
                    await trio.sleep(POLL_S)
            return False

        if not self.ask(until):
            raise BenchmarkFailed(f"not within {SETTLE_S_MAX:.0f} s: {what}")

    def wait_for_health(self, *, ill: int = 0) -> None:
        """Return once the gateways agree that so many members do not answer, and the rest do."""

        async def question(engine: Engine) -> bool:
            rows = await engine.store.db.read(read_rows)
            found = sum(record.health != "up" for record in rows.members.values())
            quiet = all(record.state == "up" for record in rows.nodes.values())
            return found == ill and quiet

        self.wait(f"{ill} members that do not answer", question)
        # Every gateway process looks at what was written down once a second.
        time.sleep(1.5)


def _reached_at(name: str, address: str) -> Callable[[Engine], Awaitable[bool]]:
    async def question(engine: Engine) -> bool:
        rows = await engine.store.db.read(read_rows)
        return rows.find(name)[1].address == address

    return question


@contextlib.contextmanager
def run_cluster(folder: Path, *, workers: int) -> Iterator[Cluster]:
    """Serve a store whose six drives are members of their own, until the context is left.

    Raises: BenchmarkFailed.
    """
    with contextlib.ExitStack() as stack:
        cluster = Cluster(folder, stack)
        cluster.begin(workers=workers)
        yield cluster


def _free_port() -> int:
    with socket.socket() as sock:
        sock.bind((HOST, 0))
        return int(sock.getsockname()[1])


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(STOP_S_MAX)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
