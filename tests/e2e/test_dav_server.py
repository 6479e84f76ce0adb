"""``lode serve --dav`` and ``lode dav`` as people and init systems run them."""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import os
import re
import signal
import socket
import subprocess
import threading
import urllib.request
from base64 import b64encode
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import trustme

from tests.support.clients import s3_client
from tests.support.server import STOP_S, Server, lode, serving, serving_coded

KEYS = {"LODE_ACCESS_KEY": "someone", "LODE_SECRET_KEY": "some secret"}
LOGIN = "Basic " + b64encode(b"someone:some secret").decode()
CURL_S = 300
MIB = 1 << 20


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Six drives, two workers for S3 and a process for WebDAV."""
    folder = tmp_path_factory.mktemp("dav")
    with serving_coded(folder, "--dav", "127.0.0.1:0", environment=KEYS) as server:
        yield server
        assert server.stop() == 0
    assert server.troubles == []


@pytest.fixture(scope="module")
def s3(server: Server) -> Iterator[Any]:
    client = s3_client(server, keys=("someone", "some secret"))
    yield client
    client.close()


def curl(server: Server, path: str, *arguments: str, login: str = "--basic") -> str:
    """Run curl and return what it printed; any status of 400 or above is a failure."""
    done = subprocess.run(
        [
            *("curl", "--silent", "--show-error", "--fail", login, "--user", "someone:some secret"),
            *arguments,
            server.dav_url + path,
        ],
        capture_output=True,
        text=True,
        timeout=CURL_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def ask(server: Server, method: str, path: str, body: bytes | None = None) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection(urlsplit(server.dav_url).netloc, timeout=STOP_S)
    with closing(connection):
        connection.request(method, path, body=body, headers={"Authorization": LOGIN})
        response = connection.getresponse()
        return response.status, response.read()


def test_the_ready_line_names_the_address(server: Server) -> None:
    words = server.ready.split()
    assert words[1].startswith("s3=http://127.0.0.1:")
    assert words[2].startswith("dav=http://127.0.0.1:")


@pytest.mark.parametrize("login", ["--basic", "--digest", "--anyauth"])
def test_curl_up_and_down(server: Server, tmp_path: Path, login: str) -> None:
    bucket = f"/curl{login}/"
    curl(server, bucket, "--request", "MKCOL", login=login)
    up, down = tmp_path / "up", tmp_path / "down"
    up.write_bytes(os.urandom(5 * MIB + 17))
    curl(server, bucket + "file", "--upload-file", str(up), login=login)
    curl(server, bucket + "file", "--output", str(down), login=login)
    assert down.read_bytes() == up.read_bytes()
    part = tmp_path / "part"
    part.write_bytes(up.read_bytes()[:1000])
    curl(server, bucket + "file", "--continue-at", "-", "--output", str(part), login=login)
    assert part.read_bytes() == up.read_bytes()


def test_s3_and_webdav_see_the_same(server: Server, s3: Any) -> None:
    s3.create_bucket(Bucket="shared")
    s3.put_object(Bucket="shared", Key="made by/s3.txt", Body=b"from s3", ContentType="text/x-s3")
    assert curl(server, "/shared/made%20by/s3.txt") == "from s3"
    assert ask(server, "PUT", "/shared/made%20by/dav.txt", b"from dav")[0] == 201
    found = s3.get_object(Bucket="shared", Key="made by/dav.txt")
    assert found["Body"].read() == b"from dav"
    assert ask(server, "MOVE", "/shared/made%20by/dav.txt")[0] == 400
    assert ask(server, "DELETE", "/shared/made%20by/")[0] == 204
    assert s3.list_objects_v2(Bucket="shared")["KeyCount"] == 0


def test_requests_are_counted_for_prometheus(tmp_path: Path) -> None:
    options = ("--dav", "127.0.0.1:0", "--metrics", "127.0.0.1:0", "--workers", "1")
    with serving(tmp_path / "store", *options, environment=KEYS) as server:
        connection = http.client.HTTPConnection(urlsplit(server.dav_url).netloc, timeout=STOP_S)
        with closing(connection):
            # The last one is not looked at: it may be counted after its answer came.
            for method, path in (("MKCOL", "/bucket"), ("PUT", "/bucket/x"), ("OPTIONS", "/")):
                body = b"12345" if method == "PUT" else None
                connection.request(method, path, body, {"Authorization": LOGIN})
                connection.getresponse().read()
        with urllib.request.urlopen(server.metrics_url + "/metrics", timeout=STOP_S) as answer:
            text = answer.read().decode()
    put = r'lode_requests_total\{code="",frontend="dav",operation="PUT",status="201"\} 1\.0'
    assert re.search(put, text), text
    assert re.search(r'lode_body_bytes_total\{direction="in",frontend="dav"\} 5\.0', text), text


@pytest.mark.slow
def test_gibibytes_stream_in_chunks_and_out(server: Server) -> None:
    """2 GiB of chunks without a length, within the memory of a few stripes."""
    ask(server, "MKCOL", "/large/")
    block = os.urandom(MIB)
    count = 2048
    digest = hashlib.blake2b()
    host = urlsplit(server.dav_url)
    with socket.create_connection((host.hostname, host.port), timeout=STOP_S) as opened:
        head = f"PUT /large/x HTTP/1.1\r\nHost: x\r\nAuthorization: {LOGIN}\r\n"
        opened.sendall(head.encode() + b"Transfer-Encoding: chunked\r\n\r\n")
        for number in range(count):
            piece = number.to_bytes(8, "big") + block[8:]
            digest.update(piece)
            opened.sendall(b"%x\r\n" % MIB + piece + b"\r\n")
        opened.sendall(b"0\r\n\r\n")
        assert opened.recv(65536).startswith(b"HTTP/1.1 201")
    connection = http.client.HTTPConnection(host.netloc, timeout=STOP_S)
    with closing(connection):
        connection.request("GET", "/large/x", headers={"Authorization": LOGIN})
        response = connection.getresponse()
        assert int(response.headers["Content-Length"]) == count * MIB
        got = hashlib.blake2b()
        while part := response.read(MIB):
            got.update(part)
    assert got.digest() == digest.digest()
    assert ask(server, "DELETE", "/large/")[0] == 204
    assert max(server.peak_memory().values()) < 400 * MIB


def test_a_stop_finishes_transfers_that_go_on(tmp_path: Path) -> None:
    data = tmp_path / "store"
    with serving(data, "--dav", "127.0.0.1:0", "--workers", "1", environment=KEYS) as server:
        assert ask(server, "MKCOL", "/bucket/")[0] == 201
        host = urlsplit(server.dav_url)
        with socket.create_connection((host.hostname, host.port), timeout=STOP_S) as opened:
            head = f"PUT /bucket/x HTTP/1.1\r\nHost: x\r\nAuthorization: {LOGIN}\r\n"
            opened.sendall(head.encode() + b"Content-Length: 10\r\n\r\n12345")
            # An answer to another request: the server has seen the first by then.
            assert ask(server, "OPTIONS", "/")[0] == 200
            stopping = threading.Thread(target=server.stop)
            stopping.start()
            opened.sendall(b"67890")
            assert opened.recv(65536).startswith(b"HTTP/1.1 201")
        stopping.join(STOP_S)
        assert server.process.returncode == 0
    with serving(data, "--dav", "127.0.0.1:0", "--workers", "1", environment=KEYS) as server:
        assert ask(server, "GET", "/bucket/x") == (200, b"1234567890")


def test_a_killed_process_is_replaced_and_nothing_half_written_shows(tmp_path: Path) -> None:
    data = tmp_path / "store"
    with serving(data, environment=KEYS, command=("dav", "--listen")) as server:
        assert server.ready.startswith("ready dav=")
        assert ask(server, "MKCOL", "/bucket/")[0] == 201
        assert ask(server, "PUT", "/bucket/done", b"whole")[0] == 201
        host = urlsplit(server.dav_url)
        with socket.create_connection((host.hostname, host.port), timeout=STOP_S) as opened:
            head = f"PUT /bucket/half HTTP/1.1\r\nHost: x\r\nAuthorization: {LOGIN}\r\n"
            head += "Expect: 100-continue\r\nContent-Length: 3000000\r\n\r\n"
            opened.sendall(head.encode())
            # Only now is the connection this process's, and not the next one's to accept.
            assert opened.recv(1024).startswith(b"HTTP/1.1 100")
            opened.sendall(bytes(1_500_000))
            os.kill(server.workers[0], signal.SIGKILL)
            with contextlib.suppress(ConnectionResetError):
                assert opened.recv(1) == b""
        # The listening socket is the supervisor's: the connection waits for the next process.
        assert ask(server, "GET", "/bucket/done") == (200, b"whole")
        assert ask(server, "GET", "/bucket/half")[0] == 404


def test_lode_dav_alone_reads_only_if_told(tmp_path: Path) -> None:
    data = tmp_path / "store"
    with serving(data, "--read-only", environment=KEYS, command=("dav", "--listen")) as server:
        assert ask(server, "GET", "/")[0] == 200
        assert ask(server, "MKCOL", "/bucket/")[0] == 403
        assert server.stop() == 0


def test_tls(tmp_path: Path) -> None:
    authority = trustme.CA()
    issued = authority.issue_cert("localhost")
    cert, key, trusted = tmp_path / "cert.pem", tmp_path / "key.pem", tmp_path / "ca.pem"
    cert.write_bytes(b"".join(part.bytes() for part in issued.cert_chain_pems))
    issued.private_key_pem.write_to_path(str(key))
    authority.cert_pem.write_to_path(str(trusted))
    options = ("--tls-cert", str(cert), "--tls-key", str(key))
    with serving(
        tmp_path / "store", *options, environment=KEYS, command=("dav", "--listen")
    ) as server:
        assert server.dav_url.startswith("https://")
        server.dav_url = server.dav_url.replace("127.0.0.1", "localhost")
        more = ("--cacert", str(trusted))
        curl(server, "/bucket/", "--request", "MKCOL", *more)
        curl(server, "/bucket/x", "--upload-file", str(cert), *more)
        assert curl(server, "/bucket/x", *more) == cert.read_text()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("serve", "--dav", "nonsense"), "--dav: address 'nonsense'"),
        (("serve", "--dav", "203.0.113.1:0", "--s3", "127.0.0.1:0"), "choose another with --dav"),
        (("dav", "--listen", "203.0.113.1:0"), "choose another with --listen"),
        (("dav", "--dav-mac-files", "eat"), "'eat' is none of keep, drop, refuse"),
    ],
)
def test_mistakes_get_one_line(tmp_path: Path, arguments: tuple[str, ...], said: str) -> None:
    done = lode(*arguments, "--data", str(tmp_path / "store"))
    assert done.returncode == 2
    assert said in done.stderr
    assert done.stderr.count("\n") == 1
