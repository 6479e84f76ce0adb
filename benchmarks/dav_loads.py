"""What is asked of WebDAV servers, each load of every server in turn, round by round."""

from __future__ import annotations

import contextlib
import random
import re
import shutil
import subprocess
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import msgspec

from benchmarks.dav_servers import FOLDER, PASSWORD, USER, DavSystem, find
from benchmarks.machine import cpu_seconds
from benchmarks.measure import KIB, MIB, BenchmarkFailed, Sample
from benchmarks.stream_client import run_stream
from benchmarks.wrk import run_wrk

LARGE = 64 * MIB
SMALL = 4 * KIB
LISTED = 10_000
SMALL_FILES = 1_000
ASKED = 500
LARGE_CONNECTIONS = (1, 4)
SMALL_CONNECTIONS = (1, 4, 16)
RCLONES = 8
FILL_S_MAX = 300.0
RCLONE_S_MAX = 300.0

PROPFIND = (
    b'<?xml version="1.0"?><d:propfind xmlns:d="DAV:"><d:prop><d:displayname/>'
    b"<d:getlastmodified/><d:getcontentlength/><d:resourcetype/><d:getcontenttype/>"
    b"</d:prop></d:propfind>"
)
"""As rclone asks for a folder."""
_RESPONSE = re.compile(rb"<(?:\w+:)?response[ >]")


class DavPlan(msgspec.Struct, frozen=True, kw_only=True):
    rounds: int = 3
    seconds: int = 2
    """Of each run."""


class Load(msgspec.Struct, frozen=True, kw_only=True):
    """A load that can be put on any of the servers."""

    name: str
    connections: int
    unit: str
    run: Callable[[DavSystem], Sample]
    rounds: int
    prepare: Callable[[DavSystem], None] | None = None
    """Before the first round, not measured."""
    yardstick: str = ""
    """The server that the target speaks of; none: no target."""
    ratio_min: float = 1.0


def make_loads(group: str, plan: DavPlan, folder: Path) -> list[Load]:
    """Return the loads of a group; ``folder`` is for the client's own files."""
    match group:
        case "large":
            return _large_loads(plan)
        case "propfind":
            return [_propfind_load(plan)]
        case "small":
            return _small_loads(plan, folder)
        case "requests":
            return _request_loads(plan)
        case _:
            return _rclone_loads(plan, folder)


def _targets(name: str, count: int) -> list[str]:
    return [f"/{FOLDER}/{name}-{number:05d}" for number in range(count)]


def _fill(system: DavSystem, targets: list[str], size: int) -> None:
    """PUT a file of ``size`` bytes at every target."""
    heads = [system.head("PUT", target, body_size=size) for target in targets]
    _stream(system, heads, connections=4, seconds=FILL_S_MAX, count=len(heads), body_size=size)


def _stream(
    system: DavSystem,
    heads: list[bytes],
    *,
    connections: int,
    seconds: float,
    count: int = 0,
    body_size: int = 0,
    response_size: int = -1,
    statuses: tuple[int, ...] = (),
) -> Sample:
    return run_stream(
        system.endpoint,
        heads,
        connections=connections,
        seconds=seconds,
        statuses=(*(200, 201, 204, 207), *statuses),
        requests_max=count,
        body_size=body_size,
        response_size=response_size,
    )


def _large_loads(plan: DavPlan) -> list[Load]:
    """64 MiB, each connection with a file of its own."""

    def put(connections: int, system: DavSystem) -> Sample:
        targets = _targets("large", connections)
        heads = [system.head("PUT", target, body_size=LARGE) for target in targets]
        return _stream(
            system, heads, connections=connections, seconds=plan.seconds, body_size=LARGE
        )

    def get(connections: int, system: DavSystem) -> Sample:
        heads = [system.head("GET", target) for target in _targets("large", connections)]
        return _stream(
            system, heads, connections=connections, seconds=plan.seconds, response_size=LARGE
        )

    return [
        Load(
            name=f"{method} 64 MiB",
            connections=connections,
            unit="MiB/s",
            run=partial(run, connections),
            rounds=plan.rounds,
            prepare=lambda system: _fill(system, _targets("large", max(LARGE_CONNECTIONS)), LARGE),
            yardstick="wsgidav",
        )
        for method, run in (("PUT", put), ("GET", get))
        for connections in LARGE_CONNECTIONS
    ]


def _propfind_load(plan: DavPlan) -> Load:
    """A folder of 10,000 empty files, listed by one client as rclone asks for it."""

    def prepare(system: DavSystem) -> None:
        system.ask("MKCOL", f"/{FOLDER}/listed")
        _fill(system, _targets("listed/file", LISTED), 0)

    def run(system: DavSystem) -> Sample:
        before = cpu_seconds(system.endpoint.pids)
        started = time.monotonic()
        body = system.ask("PROPFIND", f"/{FOLDER}/listed/", PROPFIND, Depth="1")
        elapsed = time.monotonic() - started
        entries = len(_RESPONSE.findall(body))
        if entries != LISTED + 1:
            raise BenchmarkFailed(f"{system.name} showed {entries} entries")
        cpu_s = cpu_seconds(system.endpoint.pids) - before
        return Sample(requests=LISTED, seconds=elapsed, cpu_s=cpu_s, p50_ms=elapsed * 1e3)

    return Load(
        name="PROPFIND of 10,000",
        connections=1,
        unit="entries/s",
        run=run,
        rounds=plan.rounds,
        prepare=prepare,
        yardstick="wsgidav",
        ratio_min=2.0,
    )


def _small_loads(plan: DavPlan, folder: Path) -> list[Load]:
    targets = _targets("small", SMALL_FILES)

    def load(method: str, connections: int, system: DavSystem) -> Sample:
        put = method == "PUT"
        size = SMALL if put else None
        return run_wrk(
            system.endpoint,
            [system.head(method, target, body_size=size) for target in targets],
            folder=folder,
            connections=connections,
            seconds=plan.seconds,
            body=bytes(range(256)) * (SMALL // 256) if put else b"",
            response_size=0 if put else SMALL,
        )

    return [
        Load(
            name=f"{method} 4 KiB",
            connections=connections,
            unit="requests/s",
            run=partial(load, method, connections),
            rounds=plan.rounds,
            prepare=lambda system: _fill(system, targets, SMALL),
        )
        for method in ("PUT", "GET")
        for connections in SMALL_CONNECTIONS
    ]


def _request_loads(plan: DavPlan) -> list[Load]:
    """The requests that rclone sends for each small file, one after another on one connection."""
    rounds = iter(range(1_000_000))

    def load(method: str, system: DavSystem) -> Sample:
        put = method == "PUT"
        name = f"put{next(rounds)}/file" if put else "asked/file"
        if put:
            system.ask("MKCOL", f"/{FOLDER}/{name.partition('/')[0]}")
        targets = [f"/{FOLDER}/asked/"] if method == "MKCOL" else _targets(name, ASKED)
        more = {"Depth": "1"} if method == "PROPFIND" else {}
        more |= {"User_Agent": "rclone/v1.60.1", "Referer": f"{system.url}/"}
        heads = [
            system.head(method, target, body_size=SMALL if put else None, **more)
            for target in targets
        ]
        return _stream(
            system,
            heads,
            connections=1,
            seconds=plan.seconds,
            count=ASKED,
            body_size=SMALL if put else 0,
            response_size=SMALL if method == "GET" else -1,
            # What a folder that is there already is answered with.
            statuses=(405,) if method == "MKCOL" else (),
        )

    def prepare(system: DavSystem) -> None:
        with contextlib.suppress(BenchmarkFailed):
            system.ask("MKCOL", f"/{FOLDER}/asked")
        _fill(system, _targets("asked/file", ASKED), SMALL)

    return [
        Load(
            name=f"{method}, one by one",
            connections=1,
            unit="requests/s",
            run=partial(load, method),
            rounds=plan.rounds,
            prepare=prepare if method == "MKCOL" else None,
        )
        for method in ("MKCOL", "PUT", "PROPFIND", "GET")
    ]


def _rclone_loads(plan: DavPlan, folder: Path) -> list[Load]:
    """1,000 files of 1 to 8 KiB in ten folders, by one rclone and by eight at once.

    rclone pauses 10 ms between any two requests of its own, so one alone measures its pauses.
    """
    source = folder / "source"
    _make_files(source)

    def load(clients: int, download: bool, system: DavSystem) -> Sample:
        config = _rclone_config(folder, system)
        trees = [source] if clients == 1 else sorted(source.iterdir())
        before = cpu_seconds(system.endpoint.pids)
        started = time.monotonic()
        if download:
            back = folder / "back"
            pairs = [
                (f"dav:{FOLDER}/{clients}/{tree.name}", str(back / tree.name)) for tree in trees
            ]
        else:
            system.ask("DELETE", f"/{FOLDER}/{clients}/")
            system.ask("MKCOL", f"/{FOLDER}/{clients}")
            pairs = [(str(tree), f"dav:{FOLDER}/{clients}/{tree.name}") for tree in trees]
            started = time.monotonic()
        _copy_all(config, pairs)
        elapsed = time.monotonic() - started
        cpu_s = cpu_seconds(system.endpoint.pids) - before
        if download:
            found = sum(1 for path in back.rglob("*") if path.is_file())
            shutil.rmtree(back)
            if found != SMALL_FILES:
                raise BenchmarkFailed(f"{system.name}: {found} files came back")
        return Sample(requests=SMALL_FILES, seconds=elapsed, cpu_s=cpu_s)

    def prepare(clients: int, system: DavSystem) -> None:
        with contextlib.suppress(BenchmarkFailed):
            system.ask("MKCOL", f"/{FOLDER}/{clients}")

    return [
        Load(
            name=f"rclone, {SMALL_FILES} files {'down' if download else 'up'}",
            connections=clients,
            unit="files/s",
            run=partial(load, clients, download),
            rounds=plan.rounds,
            prepare=partial(prepare, clients),
            yardstick="apache",
        )
        for clients in (1, RCLONES)
        for download in (False, True)
    ]


def _make_files(source: Path) -> None:
    made = random.Random(1)
    for number in range(SMALL_FILES):
        path = source / f"tree{number % RCLONES}" / f"folder{number % 10}" / f"file{number:04d}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(made.randbytes(made.randint(KIB, 8 * KIB)))


def _rclone_config(folder: Path, system: DavSystem) -> Path:
    done = subprocess.run(
        [find("rclone", "rclone"), "obscure", PASSWORD], capture_output=True, text=True, check=True
    )
    path = folder / f"{system.name}.conf"
    path.write_text(
        f"[dav]\ntype = webdav\nurl = {system.url}\nvendor = other\nuser = {USER}\n"
        f"pass = {done.stdout.strip()}\n"
    )
    return path


def _copy_all(config: Path, pairs: list[tuple[str, str]]) -> None:
    """Run ``rclone copy`` for each pair, all at once."""
    binary = find("rclone", "rclone")
    running = [
        subprocess.Popen(
            [binary, "--config", str(config), "copy", "--retries", "1", source, target],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )
        for source, target in pairs
    ]
    try:
        for process in running:
            said = process.communicate(timeout=RCLONE_S_MAX)[1]
            if process.returncode:
                raise BenchmarkFailed(f"rclone: {said.decode().strip()[-300:]}")
    except subprocess.TimeoutExpired:
        raise BenchmarkFailed("rclone did not end") from None
    finally:
        for process in running:
            if process.poll() is None:
                process.kill()
                process.wait()
