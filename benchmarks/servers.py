"""Servers under measurement: ours and the yardsticks, started and stopped by us alone."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec

from benchmarks.machine import process_tree
from benchmarks.measure import BenchmarkFailed
from benchmarks.signed import Endpoint
from s3.auth.credentials import Credential

ROOT = Path(__file__).resolve().parents[1]
HOST = "127.0.0.1"
DRIVES = 6
START_S_MAX = 30.0
STOP_S_MAX = 15.0

_NGINX = """\
{user}
worker_processes {workers};
pid {folder}/nginx.pid;
error_log {folder}/error.log;
events {{ worker_connections 1024; }}
http {{
    access_log off;
    sendfile on;
    tcp_nopush on;
    keepalive_requests 1000000000;
    default_type application/octet-stream;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    open_file_cache max=100;
    server {{
        listen {host}:{port} reuseport backlog=4096;
        root {folder}/files;
    }}
}}
"""


class Lode(msgspec.Struct, frozen=True):
    """A running ``lode serve`` with six drive folders, 4+2."""

    endpoint: Endpoint
    data: Path
    pid: int

    def processes(self) -> list[int]:
        """Return the supervisor's pid and its workers'."""
        return process_tree(self.pid)


class Systems(msgspec.Struct, frozen=True):
    """Everything that is measured side by side."""

    lode: Lode
    bare: Endpoint
    nginx: Endpoint
    folder: Path
    """For scripts and other short-lived files."""
    workers: int


def find_nginx() -> str:
    """Raises: BenchmarkFailed: says what to install."""
    found = shutil.which("nginx", path=os.environ.get("PATH", "") + ":/usr/sbin")
    if found is None:
        raise BenchmarkFailed("nginx is not installed: apt-get install nginx-light")
    return found


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


def _accepts(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection((HOST, port), timeout=1):
        return True
    return False


def _wait_until_accepting(name: str, port: int, process: subprocess.Popen[bytes]) -> None:
    ends_at = time.monotonic() + START_S_MAX
    while not _accepts(port):
        if process.poll() is not None or time.monotonic() > ends_at:
            raise BenchmarkFailed(f"{name} did not start")
        time.sleep(0.05)


@contextlib.contextmanager
def _processes() -> Iterator[list[subprocess.Popen[bytes]]]:
    """Processes that are appended to the list are stopped on leaving, the last one first."""
    started: list[subprocess.Popen[bytes]] = []
    try:
        yield started
    finally:
        for process in reversed(started):
            _stop(process)


@contextlib.contextmanager
def run_lode(folder: Path, *, workers: int, port: int = 0) -> Iterator[Lode]:
    """Serve a store under ``folder/store`` until the context is left.

    Raises: BenchmarkFailed: it did not start; with the end of what it logged.
    """
    data = folder / "store"
    credential = Credential("BENCHMARK", secrets.token_hex(20), "", "")
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "LODE_ACCESS_KEY": credential.access_key,
        "LODE_SECRET_KEY": credential.secret_key,
    }
    command = [sys.executable, "-m", "cli.main", "serve", "--data", str(data), "--drives"]
    command.append(",".join(str(folder / f"drive{number}") for number in range(1, DRIVES + 1)))
    command += ["--profile", "4+2", "--s3", f"{HOST}:{port}", "--workers", str(workers)]
    command += ["--log-level", "warning"]
    log = folder / "lode.log"
    with _processes() as processes, log.open("wb") as errors:
        process = subprocess.Popen(
            command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=errors
        )
        processes.append(process)
        assert process.stdout is not None
        line = process.stdout.readline().decode()
        address = next((word for word in line.split() if word.startswith("s3=http://")), None)
        if address is None:
            raise BenchmarkFailed(f"lode did not start: {log.read_text()[-600:]}")
        bound = int(address.rsplit(":", 1)[1])
        yield Lode(Endpoint(HOST, bound, credential, (process.pid,)), data, process.pid)


@contextlib.contextmanager
def run_bare(*, workers: int) -> Iterator[Endpoint]:
    """Serve with as many bare processes as lode has workers, on one port."""
    port = _free_port()
    with _processes() as processes:
        for _ in range(workers):
            processes.append(
                subprocess.Popen(
                    [sys.executable, str(ROOT / "benchmarks/bare_server.py"), str(port)]
                )
            )
        _wait_until_accepting("the bare server", port, processes[-1])
        yield Endpoint(HOST, port, pids=tuple(process.pid for process in processes))


@contextlib.contextmanager
def run_nginx(folder: Path, sizes: list[int], *, workers: int) -> Iterator[Endpoint]:
    """Serve files named by their size in bytes, under ``folder/nginx``."""
    prefix = folder / "nginx"
    (prefix / "files").mkdir(parents=True)
    for size in sizes:
        (prefix / "files" / str(size)).write_bytes(bytes(range(256)) * (size // 256))
    port = _free_port()
    # Its workers would else be nobody, who may not read a folder that only we may enter.
    user = "user root;" if os.geteuid() == 0 else ""
    config = _NGINX.format(user=user, workers=workers, folder=prefix, host=HOST, port=port)
    (prefix / "nginx.conf").write_text(config)
    with _processes() as processes, (prefix / "start.log").open("wb") as errors:
        command = [find_nginx(), "-p", str(prefix), "-c", str(prefix / "nginx.conf")]
        command += ["-e", str(prefix / "error.log"), "-g", "daemon off;"]
        processes.append(subprocess.Popen(command, stdout=errors, stderr=errors))
        _wait_until_accepting("nginx", port, processes[-1])
        yield Endpoint(HOST, port, pids=(processes[0].pid,))


@contextlib.contextmanager
def run_systems(folder: Path, sizes: list[int], *, workers: int) -> Iterator[Systems]:
    """Run all three in a fresh folder below ``folder``, which is removed afterwards."""
    here = folder / f"run-{secrets.token_hex(4)}"
    here.mkdir()
    try:
        with (
            run_lode(here, workers=workers) as lode,
            run_bare(workers=workers) as bare,
            run_nginx(here, sizes, workers=workers) as nginx,
        ):
            yield Systems(lode, bare, nginx, here, workers)
    finally:
        shutil.rmtree(here, ignore_errors=True)
