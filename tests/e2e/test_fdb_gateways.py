"""Two gateways with data folders of their own and a mount, on one FoundationDB and the same drives:
what one acknowledged, every other shows at once."""

from __future__ import annotations

import itertools
import os
import subprocess
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from botocore.exceptions import ClientError

from engine.meta.fdb import FdbLocation
from tests.support import fdb_server
from tests.support.clients import s3_client
from tests.support.fast_s3 import Answer, FastS3, etag_of
from tests.support.fdb_server import FdbServer
from tests.support.history import Boto3Door, Door, History, Unknown, run_clients
from tests.support.server import (
    LODE,
    ROOT,
    Server,
    clean_environment,
    drive_folders,
    lode,
    serving,
)

KEYS = {"LODE_ACCESS_KEY": "gateways", "LODE_SECRET_KEY": "of one store, one secret"}
CREDENTIALS = (KEYS["LODE_ACCESS_KEY"], KEYS["LODE_SECRET_KEY"])
CHECKS = int(os.environ.get("LODE_TEST_FDB_CHECKS", "2000"))
"""Answers that are compared with what they have to be."""
RACES = int(os.environ.get("LODE_TEST_FDB_RACES", "200"))
CLIENTS = 4
KILLS = int(os.environ.get("LODE_TEST_FDB_KILLS", "3"))
ANSWERS = 200
"""Of clients, between two deaths of the database."""
PATIENCE_S = 300.0
"""So long a database on a machine that does other things may be silent in a long run."""
SEEN_S = 20.0
"""Longest time until a mount shows a change; a second is promised, on a quiet machine."""


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FdbServer]:
    if not fdb_server.has_server():
        pytest.skip("needs FoundationDB: fdbserver and fdbcli are not on the PATH")
    server = FdbServer(tmp_path_factory.mktemp("fdb"))
    yield server
    server.kill()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("gateways")


@pytest.fixture(scope="module")
def place(database: FdbServer) -> str:
    name = "test-" + uuid.uuid4().hex[:16]
    return str(FdbLocation(database.cluster_file, name, fdb_server.library()))


@pytest.fixture(scope="module")
def gateways(folder: Path, place: str) -> Iterator[list[Server]]:
    drives = [str(drive) for drive in drive_folders(folder)]
    more = ("--meta", place, "--workers", "1")
    with (
        serving(
            folder / "one",
            *(*more, "--profile", "4+2", "--drives", *drives),
            environment=KEYS,
        ) as one,
        serving(folder / "two", *more, environment=KEYS) as two,
    ):
        yield [one, two]


@pytest.fixture(scope="module")
def clients(gateways: list[Server]) -> list[Any]:
    return [s3_client(gateway, keys=CREDENTIALS, max_pool_connections=20) for gateway in gateways]


@pytest.fixture
def tell(request: pytest.FixtureRequest) -> Callable[[str], None]:
    """Say how far a long run is; with ``pytest -s`` people see it."""
    began = time.monotonic()

    def say(text: str) -> None:
        print(f"{request.node.name}: {text} in {time.monotonic() - began:.0f} s", flush=True)

    return say


@pytest.fixture
def bucket(clients: list[Any]) -> str:
    name = "b" + uuid.uuid4().hex[:12]
    clients[0].create_bucket(Bucket=name)
    return name


def ask_patiently(
    gateway: FastS3, method: str, target: str, body: bytes = b""
) -> tuple[Answer, int]:
    """Return the answer, and how often the gateway refused before: the database did not answer it
    in time. For requests that may be repeated."""
    until = time.monotonic() + PATIENCE_S
    refused = 0
    while (answer := gateway.ask(method, target, body)).status == 503:
        assert time.monotonic() < until, "the gateway refuses for minutes"
        refused += 1
        time.sleep(0.1)
    return answer, refused


class Checker:
    """One client that knows what its keys hold: it writes through one door and compares what the
    gateways show at once."""

    KEYS = 7

    def __init__(
        self, number: int, bucket: str, gateways: list[Server], mount: Path | None = None
    ) -> None:
        """``mount``: write through this folder, not through the gateways in turn."""
        self._gateways = [FastS3(gateway.url, CREDENTIALS) for gateway in gateways]
        self._mount = mount
        self._base = f"/{bucket}/"
        self._prefix = f"checker-{number}-"
        self._holds: dict[str, bytes] = {}
        self._round = 0
        self.checks = 0
        """Answers to GET, HEAD and LIST that were compared."""
        self.refused = 0

    def close(self) -> None:
        for gateway in self._gateways:
            gateway.close()

    def round(self) -> None:
        self._round += 1
        number = self._round
        reader = self._gateways[1 - number % 2]
        key = f"{self._prefix}{number % self.KEYS}"
        if number % 5 == 4:
            self._delete(key)
        else:
            body = b"%s %d " % (key.encode(), number)
            # Now and then one of each class of durability.
            body *= {0: 1000, 1: 6000}.get(number % 50, 1)
            self._put(key, body)
        self._compare("GET", reader, key)
        self._compare("HEAD", reader, f"{self._prefix}{(number * 3 + 1) % self.KEYS}")
        target = f"{self._base[:-1]}?list-type=2&prefix={self._prefix}"
        listed = self._ask(reader, "GET", target)
        expected = {name: etag_of(body) for name, body in self._holds.items()}
        assert (listed.status, listed.listed()) == (200, expected)
        self.checks += 1

    def _put(self, key: str, body: bytes) -> None:
        if self._mount is not None:
            file = self._mount / key
            self._on_mount(lambda: file.write_bytes(body))
        else:
            writer = self._gateways[self._round % 2]
            assert self._ask(writer, "PUT", self._base + key, body).status == 200
        self._holds[key] = body

    def _delete(self, key: str) -> None:
        if self._mount is not None:
            file = self._mount / key
            self._on_mount(lambda: file.unlink(missing_ok=True))
        else:
            writer = self._gateways[self._round % 2]
            assert self._ask(writer, "DELETE", self._base + key).status == 204
        self._holds.pop(key, None)

    def _on_mount(self, work: Callable[[], object]) -> None:
        until = time.monotonic() + PATIENCE_S
        while True:
            try:
                work()
                return
            except OSError:
                assert time.monotonic() < until, "the mount fails for minutes"
                self.refused += 1
                time.sleep(0.1)

    def _ask(self, gateway: FastS3, method: str, target: str, body: bytes = b"") -> Answer:
        answer, refused = ask_patiently(gateway, method, target, body)
        self.refused += refused
        return answer

    def _compare(self, method: str, reader: FastS3, key: str) -> None:
        answer = self._ask(reader, method, self._base + key)
        held = self._holds.get(key)
        if held is None:
            assert answer.status == 404
        else:
            assert (answer.status, answer.etag) == (200, etag_of(held))
            assert method == "HEAD" or answer.body == held
        self.checks += 1


def test_what_came_through_one_door_the_gateways_read_and_list_at_once(
    gateways, bucket, folder, place, tmp_path, tell
):
    """Each client alone on its keys, so what is right is known; all of them at the same time. One
    writes through a mount, the others through one gateway, and read through the other."""
    with (
        mounted(bucket, tmp_path / "mount", folder, place) as mount,
        ThreadPoolExecutor(CLIENTS) as pool,
    ):
        checkers = [
            Checker(number, bucket, gateways, mount if number == 0 else None)
            for number in range(CLIENTS)
        ]
        failed = threading.Event()

        def work(checker: Checker) -> None:
            try:
                while not failed.is_set() and (total := made()) < CHECKS:
                    checker.round()
                    if checker is checkers[0] and checker.checks % 3000 == 0:
                        tell(f"{total} checks, {checker.checks} of what came through the mount")
            except BaseException:
                failed.set()
                raise
            finally:
                checker.close()

        def made() -> int:
            return sum(checker.checks for checker in checkers)

        for done in [pool.submit(work, checker) for checker in checkers]:
            done.result()
        refused = sum(checker.refused for checker in checkers)
        through_mount = checkers[0].checks
        tell(f"{made()} checks, {through_mount} of what came through the mount; {refused} refused")
        assert made() >= CHECKS
        assert all(checker.checks for checker in checkers)


def test_one_of_two_gateways_wins_every_conditional_put(gateways, bucket, tell):
    """Both begin at the same moment, on a key that is free, or whose ETag both know."""
    racers = [FastS3(gateway.url, CREDENTIALS) for gateway in gateways]
    gate = threading.Barrier(2)

    def race(number: int, target: str, body: bytes, condition: bytes) -> int:
        gate.wait(60)
        return racers[number].ask("PUT", target, body, more=condition).status

    wins, void = [0, 0], 0
    etag = ""
    with ThreadPoolExecutor(2) as pool:
        for number in itertools.count():
            if sum(wins) == RACES:
                break
            target = f"/{bucket}/race-{number - bool(etag)}"
            condition = b'if-match: "%s"\r\n' % etag.encode() if etag else b"if-none-match: *\r\n"
            bodies = [b"%d %d" % (racer, number) for racer in range(2)]
            statuses = list(pool.map(race, (0, 1), (target,) * 2, bodies, (condition,) * 2))
            found = [ask_patiently(racer, "GET", target)[0] for racer in racers]
            if 503 in statuses:
                # The database did not answer in time: who won is known to the winner only.
                void, etag = void + 1, ""
                continue
            assert sorted(statuses) in ([200, 409], [200, 412]), statuses
            winner = statuses.index(200)
            wins[winner] += 1
            for answer in found:
                assert (answer.status, answer.body) == (200, bodies[winner])
            etag = "" if etag else etag_of(bodies[winner])
            if sum(wins) % 1000 == 0:
                tell(f"{sum(wins)} races, won {wins}, {void} without an answer")
    for racer in racers:
        racer.close()


class TellingDoor(Boto3Door):
    """Sets ``unknown`` when a call ends and nobody knows whether it was done."""

    def __init__(self, client: Any, bucket: str, where: str, unknown: threading.Event) -> None:
        super().__init__(client, bucket, where)
        self._unknown = unknown

    def _call(self, name: str, **parameters: Any) -> Any:
        try:
            return super()._call(name, **parameters)
        except Unknown:
            self._unknown.set()
            raise


def test_what_clients_see_is_linearizable_though_the_database_is_killed(
    database, gateways, bucket, tmp_path, tell
):
    """It comes back at once, but for the last time: then gateways and clients give up first."""
    unknown = threading.Event()

    def door(gateway: Server) -> Callable[[], Door]:
        def make() -> Door:
            client = s3_client(gateway, keys=CREDENTIALS, connect_timeout=5, read_timeout=20)
            return TellingDoor(client, bucket, gateway.url, unknown)

        return make

    history = History()
    keys = [f"key-{number}" for number in range(4)]
    with run_clients(
        [door(gateway) for gateway in gateways], history, clients=6, seed=1, keys=keys
    ):
        for kill in range(KILLS):
            wait_for_answers(history, history.answered + ANSWERS)
            unknown.clear()
            database.kill()
            if kill == KILLS - 1:
                assert unknown.wait(120)
            database.start()
        wait_for_answers(history, history.answered + ANSWERS)
    history.save(tmp_path / "history.jsonl")
    operations = history.operations()
    open_ends = sum(operation.end is None for operation in operations)
    tell(f"{len(operations)} operations, {open_ends} of unknown outcome, {KILLS} kills")
    assert history.problems() == []
    assert len(operations) >= KILLS * ANSWERS
    assert {operation.where for operation in operations} == {gateway.url for gateway in gateways}


def wait_for_answers(history: History, count: int) -> None:
    until = time.monotonic() + 120
    while history.answered < count:
        assert time.monotonic() < until, f"{history.answered} answers of {count}"
        time.sleep(0.05)


def test_gateways_agree_on_their_store_and_remember_its_place(gateways, folder, place):
    texts = [
        lode("status", "--json", "--data", str(folder / name)).stdout for name in ("one", "two")
    ]
    ids = {line for text in texts for line in text.splitlines() if '"store_id"' in line}
    assert len(ids) == 1
    for name in ("one", "two"):
        assert place in (folder / name / "lode.json").read_text()


@contextmanager
def mounted(bucket: str, target: Path, folder: Path, place: str) -> Iterator[Path]:
    """Mount the bucket with a data folder of its own, as on another machine."""
    target.mkdir()
    # Not captured through pipes: the mount's process keeps standard error.
    words = ["mount", bucket, str(target), "--data", str(folder / uuid.uuid4().hex)]
    with open(target.with_suffix(".log"), "wb") as log:
        subprocess.run(
            [*LODE, *words, "--meta", place],
            stdout=log,
            stderr=log,
            check=True,
            env=clean_environment(),
            cwd=ROOT,
            timeout=120,
        )
    try:
        yield target
    finally:
        unmounted = unmount(target)
    assert unmounted


def test_changes_reach_a_mount_and_come_from_it(clients, bucket, folder, place, tmp_path):
    with mounted(bucket, tmp_path / "mount", folder, place) as target:
        for number in range(20):
            body = b"%d" % number
            clients[number % 2].put_object(Bucket=bucket, Key="a/file", Body=body)
            until = time.monotonic() + SEEN_S
            while not _shows(target / "a" / "file", body):
                assert time.monotonic() < until, "the mount does not see the change"
        (target / "a" / "back").write_bytes(b"from the mount")
        for client in clients:
            found = client.get_object(Bucket=bucket, Key="a/back")["Body"].read()
            assert found == b"from the mount"


def _shows(path: Path, body: bytes) -> bool:
    try:
        return path.read_bytes() == body
    except FileNotFoundError:
        return False


def unmount(target: Path) -> bool:
    return subprocess.run(["fusermount3", "-u", str(target)], check=False).returncode == 0


def test_nothing_acknowledged_is_lost_when_the_database_is_killed_under_load(
    database, clients, bucket
):
    acknowledged: dict[str, bytes] = {}
    lock = threading.Lock()
    stop = threading.Event()

    def write(worker: int) -> None:
        number = 0
        while not stop.is_set():
            number += 1
            key, body = f"{worker}/{number:05d}", os.urandom(100 + number % 3 * 40_000)
            try:
                clients[worker % 2].put_object(Bucket=bucket, Key=key, Body=body)
            except ClientError as error:
                if error.response["ResponseMetadata"]["HTTPStatusCode"] != 503:
                    raise
                continue
            with lock:
                acknowledged[key] = body

    with ThreadPoolExecutor(8) as pool:
        workers = [pool.submit(write, worker) for worker in range(8)]
        for _ in range(3):
            before, until = len(acknowledged), time.monotonic() + 120
            while len(acknowledged) < before + 50:
                assert time.monotonic() < until, "no write comes through any more"
                time.sleep(0.05)
            database.kill()
            database.start()
        stop.set()
        for worker in workers:
            worker.result(120)
    listed: set[str] = set()
    for page in clients[0].get_paginator("list_objects_v2").paginate(Bucket=bucket):
        listed.update(entry["Key"] for entry in page["Contents"])
    assert acknowledged.keys() <= listed
    for number, (key, body) in enumerate(acknowledged.items()):
        assert clients[number % 2].get_object(Bucket=bucket, Key=key)["Body"].read() == body
