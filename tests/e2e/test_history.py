"""Clients over HTTP, all at once on few keys, and a worker that is killed under them: what they see
is linearizable."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.support.clients import s3_client
from tests.support.history import Boto3Door, Door, History, load, run_clients
from tests.support.linearizable import check
from tests.support.server import serving_coded

ANSWERS = 300
WAIT_S_MAX = 120.0


def wait_for_answers(history: History, count: int) -> None:
    deadline = time.monotonic() + WAIT_S_MAX
    while history.answered < count:
        assert time.monotonic() < deadline, f"{history.answered} answers of {count}"
        time.sleep(0.05)


def test_what_many_clients_see_is_linearizable(tmp_path: Path) -> None:
    with serving_coded(tmp_path) as server:
        client: Any = s3_client(server)
        client.create_bucket(Bucket="bucket")

        def door() -> Door:
            mine = s3_client(server, connect_timeout=5, read_timeout=10)
            return Boto3Door(mine, "bucket", server.url)

        doors: list[Callable[[], Door]] = [door]
        history = History()
        keys = [f"key-{number}" for number in range(4)]
        with run_clients(doors, history, clients=6, seed=1, keys=keys):
            wait_for_answers(history, ANSWERS)
            os.kill(server.workers[0], signal.SIGKILL)
            wait_for_answers(history, 2 * ANSWERS)
        history.save(tmp_path / "history.jsonl")
        assert history.problems() == []
        operations = load(tmp_path / "history.jsonl")
        assert len(operations) >= ANSWERS
        assert check(operations) == []
        assert any(operation.refused for operation in operations)
        assert server.stop() == 0
