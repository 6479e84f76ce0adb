"""Locks and logins outlive the server, however it ends."""

from __future__ import annotations

import contextlib
import http.client
import os
import re
import signal
from base64 import b64encode
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from botocore.exceptions import ClientError

from dav.auth import digest_response
from tests.support.clients import s3_client
from tests.support.server import STOP_S, Server, serving

USER, SECRET = "someone", "some secret"
KEYS = {"LODE_ACCESS_KEY": USER, "LODE_SECRET_KEY": SECRET}
BASIC = "Basic " + b64encode(f"{USER}:{SECRET}".encode()).decode()
OPTIONS = ("--dav", "127.0.0.1:0", "--workers", "1")

LOCKINFO = (
    b'<?xml version="1.0"?><D:lockinfo xmlns:D="DAV:"><D:lockscope><D:exclusive/></D:lockscope>'
    b"<D:locktype><D:write/></D:locktype><D:owner>an editor</D:owner></D:lockinfo>"
)


def ask(
    server: Server, method: str, path: str, body: bytes | None = None, **headers: str
) -> tuple[int, http.client.HTTPMessage]:
    connection = http.client.HTTPConnection(urlsplit(server.dav_url).netloc, timeout=STOP_S)
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    with contextlib.closing(connection):
        connection.request(method, path, body, {"Authorization": BASIC, **named})
        answer = connection.getresponse()
        answer.read()
        return answer.status, answer.headers


def lock(server: Server, path: str, depth: str) -> str:
    """Return the token in the brackets that every header wants around it."""
    status, headers = ask(server, "LOCK", path, LOCKINFO, Depth=depth, Timeout="Second-3600")
    assert status in (200, 201)
    return headers["Lock-Token"]


def s3_put_is_refused(server: Server, bucket: str, key: str) -> None:
    client = s3_client(server, keys=(USER, SECRET))
    try:
        with pytest.raises(ClientError) as refused:
            client.put_object(Bucket=bucket, Key=key, Body=b"through S3")
        assert refused.value.response["ResponseMetadata"]["HTTPStatusCode"] == 409
    finally:
        client.close()


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGTERM])
def test_locks_hold_across_a_restart_of_the_server(tmp_path: Path, end: signal.Signals) -> None:
    data = tmp_path / "store"
    with serving(data, *OPTIONS, environment=KEYS) as server:
        for path in ("/bucket/", "/bucket/folder/"):
            assert ask(server, "MKCOL", path)[0] == 201
        assert ask(server, "PUT", "/bucket/file", b"before")[0] == 201
        of_file = lock(server, "/bucket/file", "0")
        of_folder = lock(server, "/bucket/folder/", "infinity")
        workers = server.workers
        status = server.stop(end)
        assert status == (0 if end is signal.SIGTERM else -end)
        for worker in workers:
            # They end with their supervisor, but maybe not before they are asked again.
            with contextlib.suppress(ProcessLookupError):
                os.kill(worker, end)
    with serving(data, *OPTIONS, environment=KEYS) as server:
        for path, key in (("/bucket/file", "file"), ("/bucket/folder/new", "folder/new")):
            assert ask(server, "PUT", path, b"without")[0] == 423
            assert ask(server, "DELETE", path)[0] in (404, 423)
            s3_put_is_refused(server, "bucket", key)
        assert ask(server, "LOCK", "/bucket/file", LOCKINFO, Depth="0")[0] == 423
        assert ask(server, "PUT", "/bucket/file", b"with", If=f"({of_file})")[0] == 204
        in_folder = f"</bucket/folder/> ({of_folder})"
        assert ask(server, "PUT", "/bucket/folder/new", b"with", If=in_folder)[0] == 201
        # Refreshed by who holds it, and given back; after that anybody may write.
        assert ask(server, "LOCK", "/bucket/file", If=f"({of_file})")[0] == 200
        for path, token in (("/bucket/file", of_file), ("/bucket/folder/", of_folder)):
            assert ask(server, "UNLOCK", path, Lock_Token=token)[0] == 204
        assert ask(server, "PUT", "/bucket/file", b"after")[0] == 204
        assert ask(server, "PUT", "/bucket/folder/new", b"after")[0] == 204


def test_locks_hold_at_every_process_of_a_store(tmp_path: Path) -> None:
    """``lode dav`` beside ``lode serve --dav``."""
    data = tmp_path / "store"
    beside = ("dav", "--listen")
    with (
        serving(data, *OPTIONS, environment=KEYS) as one,
        serving(data, environment=KEYS, command=beside) as other,
    ):
        assert ask(one, "MKCOL", "/bucket/")[0] == 201
        assert ask(one, "PUT", "/bucket/file", b"before")[0] == 201
        token = lock(one, "/bucket/file", "0")
        assert ask(other, "PUT", "/bucket/file", b"without")[0] == 423
        assert ask(other, "PUT", "/bucket/file", b"with", If=f"({token})")[0] == 204
        assert ask(other, "UNLOCK", "/bucket/file", Lock_Token=token)[0] == 204
        assert ask(one, "PUT", "/bucket/file", b"after")[0] == 204


def test_a_digest_login_goes_on_when_the_process_was_replaced(tmp_path: Path) -> None:
    data = tmp_path / "store"
    with serving(data, environment=KEYS, command=("dav", "--listen")) as server:
        status, headers = ask(server, "GET", "/", Authorization="")
        assert status == 401
        asked = dict(re.findall(r'(\w+)="?([^",]+)"?', headers["WWW-Authenticate"]))

        def login(count: int) -> str:
            fields = {
                "username": USER,
                "realm": asked["realm"],
                "nonce": asked["nonce"],
                "uri": "/",
                "nc": f"{count:08x}",
                "cnonce": "abc",
                "qop": "auth",
            }
            response = digest_response(fields, user=USER, secret=SECRET, method="GET")
            quoted = ", ".join(f'{name}="{value}"' for name, value in fields.items())
            return f'Digest {quoted}, response="{response}"'

        assert ask(server, "GET", "/", Authorization=login(1))[0] == 200
        assert ask(server, "GET", "/", Authorization=login(1))[0] == 401, "counts are used once"
        os.kill(server.workers[0], signal.SIGKILL)
        assert ask(server, "GET", "/", Authorization=login(2))[0] == 200
