"""A real cluster: daemons and gateways, each on a machine of its own, as a test breaks them.

Every machine is a network namespace (``tests.support.netns``); the daemons are ``lode node``, the
gateways ``lode serve`` over one data folder. Waiting times are short, so that a test sees members
become suspect, down and lost within seconds.
"""

from __future__ import annotations

import json
import os
import selectors
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import boto3
from botocore.config import Config

from tests.support.netns import Machine, Network, inside, network
from tests.support.server import LODE, ROOT, clean_environment

START_S = 120.0
STOP_S = 120.0
SETTLE_S = 120.0
NODE_PORT, S3_PORT, METRICS_PORT = 7000, 9000, 9002
BUCKET = "bucket"

GATEWAY_OPTIONS = (
    *("--workers", "1"),
    *("--heartbeat", "0.5s", "--suspect-after", "2s", "--down-after", "4s", "--lost-after", "8s"),
    *("--census-period", "5s", "--scrub-period", "20s", "--grace", "1s"),
)
NODE_ENVIRONMENT = {
    "LODE_NODE_RESERVE": str(1 << 20),
    "LODE_NODE_VOLUME": str(16 << 20),
    "LODE_NODE_LOOK_S": "0.5",
}


class Process:
    """A program on a machine that prints a line beginning with ``ready``; can be started again."""

    def __init__(
        self,
        machine: Machine,
        command: Sequence[str],
        log_path: Path,
        environment: dict[str, str] | None = None,
    ) -> None:
        self.machine = machine
        self._command = command
        self._log_path = log_path
        self._environment = clean_environment(environment)
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def log(self) -> str:
        return self._log_path.read_text()

    def start(self, *, wait: bool = True) -> None:
        assert self._process is None
        with self._log_path.open("ab") as log:
            self._process = self.machine.popen(
                self._command,
                stdout=subprocess.PIPE,
                stderr=log,
                env=self._environment,
                cwd=ROOT,
                start_new_session=True,
            )
        if wait:
            self.wait_ready()

    def wait_ready(self) -> None:
        assert self._process is not None
        assert self._process.stdout is not None
        with selectors.DefaultSelector() as selector:
            selector.register(self._process.stdout, selectors.EVENT_READ)
            if not selector.select(START_S):
                raise AssertionError(f"not ready after {START_S} s:\n{self.log}")
        line = os.read(self._process.stdout.fileno(), 4096)
        assert line.startswith(b"ready"), f"ended before it was ready:\n{self.log}"

    def signal(self, number: signal.Signals) -> None:
        """To it and all its children."""
        assert self._process is not None
        os.killpg(self._process.pid, number)

    def pause(self) -> None:
        self.signal(signal.SIGSTOP)

    def resume(self) -> None:
        self.signal(signal.SIGCONT)

    def kill(self) -> None:
        """End it without a chance to do anything."""
        self.signal(signal.SIGKILL)
        self._reap()

    def stop(self) -> None:
        assert self._process is not None
        self._process.terminate()
        self._reap()

    def _reap(self) -> None:
        process, self._process = self._process, None
        assert process is not None
        with process:
            process.wait(STOP_S)

    def end(self) -> None:
        """Whatever state it is in: gone afterwards."""
        if self._process is not None:
            self.resume()
            self.kill()


class Member(Process):
    def __init__(self, machine: Machine, folder: Path, name: str, drives: int) -> None:
        self.name = name
        self.folder = folder
        self.drives = [folder / f"drive{number}" for number in range(1, drives + 1)]
        self.address = f"{machine.address}:{NODE_PORT}"
        command = [*LODE, "node", "--data", str(folder), "--listen", self.address, "--name", name]
        command += ["--secret-file", str(folder.parent / "secret"), "--log-json"]
        command += ["--drives", *map(str, self.drives)]
        folder.mkdir(parents=True)
        super().__init__(machine, command, folder.with_suffix(".log"), NODE_ENVIRONMENT)

    def volumes(self) -> list[Path]:
        """Return the files that hold fragments, largest first."""
        found = [path for drive in self.drives for path in drive.rglob("*.vol")]
        return sorted(found, key=lambda path: path.stat().st_blocks, reverse=True)

    def wipe(self) -> None:
        """Put empty drives in the place of the ones that are there."""
        for drive in self.drives:
            for path in drive.iterdir():
                if path.is_dir():
                    shutil.rmtree(path)
                else:
                    path.unlink()


class Gateway(Process):
    def __init__(self, machine: Machine, data: Path, name: str) -> None:
        self.url = f"http://{machine.address}:{S3_PORT}"
        self.metrics_url = f"http://{machine.address}:{METRICS_PORT}"
        command = [*LODE, "serve", "--data", str(data), "--log-json", *GATEWAY_OPTIONS]
        command += ["--s3", self.url.removeprefix("http://")]
        command += ["--metrics", self.metrics_url.removeprefix("http://")]
        super().__init__(machine, command, data.with_name(f"{name}.log"))


@dataclass
class Cluster:
    net: Network
    folder: Path
    data: Path
    members: list[Member]
    gateways: list[Gateway]

    def client(self, gateway: Gateway | None = None, *, timeout_s: float = 30.0) -> Any:
        """Return a boto3 client without retries; its calls are made from the hub."""
        document = json.loads((self.data / "credentials.json").read_text())
        return boto3.client(
            "s3",
            endpoint_url=(gateway or self.gateways[0]).url,
            aws_access_key_id=document["access_key"],
            aws_secret_access_key=document["secret_key"],
            region_name="us-east-1",
            config=Config(
                retries={"total_max_attempts": 1},
                connect_timeout=timeout_s,
                read_timeout=timeout_s,
                s3={"addressing_style": "path"},
            ),
        )

    def lode(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run an administrator's command on the hub."""
        done = subprocess.run(
            [*LODE, *arguments, "--data", str(self.data)],
            capture_output=True,
            text=True,
            check=False,
            env=clean_environment(),
            cwd=ROOT,
            timeout=SETTLE_S,
        )
        assert not check or done.returncode == 0, (arguments, done.stdout, done.stderr)
        return done

    def status(self) -> dict[str, Any]:
        return dict(json.loads(self.lode("status", "--json").stdout))

    def health(self) -> dict[str, str]:
        """Return the health of each member, by name."""
        return {member["name"]: member["health"] for member in self.status()["members"]}

    def fsck(self, *options: str) -> dict[str, Any]:
        return dict(json.loads(self.lode("fsck", "--json", *options, check=False).stdout))

    def wait_until(self, what: str, true: Callable[[], bool], within_s: float = SETTLE_S) -> None:
        deadline = time.monotonic() + within_s
        while not true():
            assert time.monotonic() < deadline, f"not within {within_s} s: {what}\n{self.status()}"
            time.sleep(0.25)

    def wait_whole(self) -> None:
        """Wait until a census that began after now proves that no fragment is missing."""
        asked_ms = time.time() * 1000

        def whole() -> bool:
            status = self.status()
            census = status["census"]
            return bool(
                census is not None
                and census["as_of_ms"] - 1000 > asked_ms
                and census["missing"] == census["unasked"] == 0
                and census["chunks_at_risk"] == census["chunks_unreadable"] == 0
                and status["repair_queue"] == 0
                and all(member["health"] == "up" for member in status["members"])
                and all(drive["state"] == "up" for drive in status["drives"])
            )

        self.wait_until("every fragment is there", whole)

    def new_member(self, name: str, drives: int = 1) -> Member:
        """Return a member on a new machine, not started."""
        return Member(self.net.add(), self.folder / name, name, drives)

    def add(self, member: Member) -> None:
        self.lode("node", "add", member.address)

    def end(self) -> None:
        for process in (*self.gateways, *self.members):
            process.end()


@contextmanager
def running_cluster(
    folder: Path, *, members: int = 7, gateways: int = 2, drives: int = 1, profile: str = "4+2"
) -> Iterator[Cluster]:
    """Run a cluster; the calling thread is on the hub meanwhile, with all that it starts."""
    data = folder / "store"
    with ExitStack() as stack:
        net = stack.enter_context(network())
        stack.enter_context(inside(net.hub.name))
        cluster = Cluster(net, folder, data, [], [])
        stack.callback(cluster.end)
        cluster.lode("cluster", "init", "--profile", profile)
        (folder / "secret").write_text(cluster.lode("cluster", "secret").stdout)
        (folder / "secret").chmod(0o600)
        for number in range(1, members + 1):
            member = cluster.new_member(f"m{number}", drives)
            member.start(wait=False)
            cluster.members.append(member)
        for member in cluster.members:
            member.wait_ready()
            cluster.add(member)
        for number in range(1, gateways + 1):
            gateway = Gateway(net.add(), data, f"gateway{number}")
            gateway.start(wait=False)
            cluster.gateways.append(gateway)
        for gateway in cluster.gateways:
            gateway.wait_ready()
        cluster.client().create_bucket(Bucket=BUCKET)
        yield cluster
