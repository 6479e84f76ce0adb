"""Kill -9 of one worker: the other's connections go on, and another takes its place."""

from __future__ import annotations

import http.client
import os
import signal
import time
import urllib.parse
from pathlib import Path

from tests.support.clients import s3_client
from tests.support.server import STOP_S, Server, serving_coded

CONNECTIONS = 6
"""Wanted of each worker."""


class Connection:
    """One kept connection; ``worker`` is who answers on it."""

    def __init__(self, server: Server) -> None:
        where = urllib.parse.urlsplit(server.url)
        assert where.hostname is not None
        self._http = http.client.HTTPConnection(where.hostname, where.port, timeout=STOP_S)
        self.worker = ""

    def get(self, url: str) -> bytes:
        where = urllib.parse.urlsplit(url)
        self._http.request("GET", f"{where.path}?{where.query}")
        response = self._http.getresponse()
        self.worker = response.headers["x-amz-id-2"]
        return response.read()

    def close(self) -> None:
        self._http.close()


def connect(server: Server, url: str) -> list[Connection]:
    """Return connections of which at least CONNECTIONS belong to each of the two workers."""
    made: list[Connection] = []
    deadline = time.monotonic() + STOP_S
    while True:
        workers = [connection.worker for connection in made]
        names = set(workers)
        if len(names) == 2 and min(map(workers.count, names)) >= CONNECTIONS:
            return made
        assert time.monotonic() < deadline, f"only {names} answer"
        connection = Connection(server)
        made.append(connection)
        assert connection.get(url) == b"bytes"


def test_connections_of_the_other_worker_go_on(tmp_path: Path) -> None:
    with serving_coded(tmp_path) as server:
        s3 = s3_client(server, signature_version="s3v4")
        s3.create_bucket(Bucket="box")
        s3.put_object(Bucket="box", Key="k", Body=b"bytes")
        url = s3.generate_presigned_url("get_object", Params={"Bucket": "box", "Key": "k"})
        s3.close()
        connections = connect(server, url)
        before = server.workers
        os.kill(before[0], signal.SIGKILL)

        lost, kept = set(), set()
        for connection in connections:
            name = connection.worker
            try:
                assert connection.get(url) == b"bytes"
                kept.add(name)
            except (ConnectionError, http.client.HTTPException):
                lost.add(name)
            connection.close()
        assert len(lost) == len(kept) == 1
        assert lost != kept

        # Both accept again: the old one at once, the new one when it is up.
        for connection in connect(server, url):
            connection.close()
        assert before[1] in server.workers
        assert before[0] not in server.workers
        assert server.stop() == 0
        assert len(server.troubles) == 1
