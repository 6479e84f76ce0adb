"""WebDAV servers under measurement: ours and the yardsticks, on the same disk, with one login.

Each serves an empty folder and takes Basic over loopback: what is compared is WebDAV, not how a
password is hashed. The yardsticks write into the page cache and answer; ours answers when six
drive folders have the bytes on stable storage.
"""

from __future__ import annotations

import base64
import contextlib
import http.client
import importlib.metadata
import os
import secrets
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec

from benchmarks.measure import BenchmarkFailed
from benchmarks.servers import (
    DRIVES,
    HOST,
    ROOT,
    _free_port,
    _processes,
    _wait_until_accepting,
)
from benchmarks.signed import Endpoint

USER, PASSWORD = "benchmark", secrets.token_hex(16)
LOGIN = "Basic " + base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()
REQUEST_S_MAX = 60.0
FOLDER = "bench"
"""Below it everything is measured; at ours it is a bucket."""

_APACHE_MODULES = (
    *("mpm_event", "authn_core", "authn_file", "authz_core", "authz_user", "auth_basic"),
    *("mime", "dav", "dav_fs"),
)
_APACHE = """\
ServerRoot {folder}
ServerName localhost
PidFile {folder}/pid
ErrorLog {folder}/error.log
Listen {host}:{port}
{modules}
{user}
TypesConfig /etc/mime.types
MaxKeepAliveRequests 0
DavLockDB {folder}/locks/db
DocumentRoot {folder}/files
<Directory {folder}/files>
    Dav On
    AuthType Basic
    AuthName bench
    AuthUserFile {folder}/users
    Require valid-user
</Directory>
"""


class DavSystem(msgspec.Struct, frozen=True):
    """A running WebDAV server."""

    name: str
    endpoint: Endpoint
    version: str

    @property
    def url(self) -> str:
        return f"http://{self.endpoint.authority}"

    def head(
        self, method: str, target: str, *, body_size: int | None = None, **headers: str
    ) -> bytes:
        """Return a request up to and with the empty line."""
        lines = [f"{method} {target} HTTP/1.1", f"Host: {self.endpoint.authority}"]
        lines += [f"Authorization: {LOGIN}"]
        lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
        if body_size is not None:
            lines.append(f"Content-Length: {body_size}")
        return ("\r\n".join(lines) + "\r\n\r\n").encode()

    def ask(self, method: str, target: str, body: bytes | None = None, **headers: str) -> bytes:
        """Send one request and return the body. Raises: BenchmarkFailed: a status from 400 on."""
        connection = http.client.HTTPConnection(
            self.endpoint.host, self.endpoint.port, timeout=REQUEST_S_MAX
        )
        with contextlib.closing(connection):
            connection.request(method, target, body, {"Authorization": LOGIN, **headers})
            answer = connection.getresponse()
            content = answer.read()
        if answer.status >= 400:
            raise BenchmarkFailed(f"{self.name} answered {method} {target} with {answer.status}")
        return content


def find(command: str, package: str) -> str:
    """Raises: BenchmarkFailed: says what to install."""
    found = shutil.which(command, path=os.environ.get("PATH", "") + ":/usr/sbin")
    if found is None:
        raise BenchmarkFailed(f"{command} is not installed: apt-get install {package}")
    return found


def _first_line(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    return done.stdout.strip().partition("\n")[0]


@contextlib.contextmanager
def _run(
    name: str, command: list[str], port: int, folder: Path, version: str, **more: str
) -> Iterator[DavSystem]:
    log = folder / f"{name}.log"
    with _processes() as processes, log.open("wb") as output:
        process = subprocess.Popen(
            command, cwd=folder, env={**os.environ, **more}, stdout=output, stderr=output
        )
        processes.append(process)
        try:
            _wait_until_accepting(name, port, process)
        except BenchmarkFailed as error:
            raise BenchmarkFailed(f"{error}: {log.read_text()[-600:]}") from None
        try:
            yield DavSystem(name, Endpoint(HOST, port, pids=(process.pid,)), version)
        finally:
            said = log.read_text(errors="replace").strip()
            if said and name == "lode":
                print(f"{name} said: {said[-2000:]}", file=sys.stderr)


@contextlib.contextmanager
def run_lode(folder: Path) -> Iterator[DavSystem]:
    """``lode serve`` with six drive folders, 4+2; one process of it serves WebDAV."""
    port = _free_port()
    drives = ",".join(str(folder / f"drive{number}") for number in range(1, DRIVES + 1))
    command = [sys.executable, "-m", "cli.main", "serve", "--data", str(folder / "store")]
    command += ["--drives", drives, "--profile", "4+2", "--dav", f"{HOST}:{port}"]
    command += ["--s3", f"{HOST}:0", "--workers", "1", "--log-level", "warning"]
    version = _first_line("git", "-C", str(ROOT), "rev-parse", "--short", "HEAD")
    login = {"LODE_ACCESS_KEY": USER, "LODE_SECRET_KEY": PASSWORD}
    with _run("lode", command, port, folder, version, PYTHONPATH=str(ROOT), **login) as system:
        yield system


@contextlib.contextmanager
def run_wsgidav(folder: Path) -> Iterator[DavSystem]:
    """wsgidav's FilesystemProvider on cheroot, with what its command line sets by default."""
    port = _free_port()
    served = folder / "files"
    served.mkdir()
    config = {
        "host": HOST,
        "port": port,
        "server": "cheroot",
        "provider_mapping": {"/": {"root": str(served)}},
        "simple_dc": {"user_mapping": {"*": {USER: {"password": PASSWORD}}}},
        "http_authenticator": {"accept_basic": True, "accept_digest": False},
        "logging": {"enable": False},
        "verbose": 0,
    }
    path = folder / "wsgidav.json"
    path.write_bytes(msgspec.json.encode(config))
    command = [sys.executable, "-m", "wsgidav.server.server_cli", "--config", str(path)]
    version = importlib.metadata.version("wsgidav")
    with _run("wsgidav", command, port, folder, version) as system:
        yield system


@contextlib.contextmanager
def run_apache(folder: Path) -> Iterator[DavSystem]:
    """Apache's mod_dav, event workers, Debian's defaults."""
    port = _free_port()
    served, locks = folder / "files", folder / "locks"
    served.mkdir()
    locks.mkdir()
    digest = subprocess.run(
        ["openssl", "dgst", "-sha1", "-binary"], input=PASSWORD.encode(), capture_output=True,
        check=True,
    ).stdout  # fmt: skip
    (folder / "users").write_text(f"{USER}:{{SHA}}{base64.b64encode(digest).decode()}\n")
    user = ""
    if os.geteuid() == 0:
        user = "User www-data\nGroup www-data"
        for path in (served, locks):
            shutil.chown(path, "www-data", "www-data")
    modules = "\n".join(
        f"LoadModule {name}_module /usr/lib/apache2/modules/mod_{name}.so"
        for name in _APACHE_MODULES
    )
    path = folder / "httpd.conf"
    path.write_text(_APACHE.format(folder=folder, host=HOST, port=port, modules=modules, user=user))
    binary = find("apache2", "apache2-bin")
    command = [binary, "-f", str(path), "-DFOREGROUND"]
    version = _first_line(binary, "-v").rpartition("/")[2]
    with _run("apache", command, port, folder, version) as system:
        yield system


@contextlib.contextmanager
def run_rclone(folder: Path) -> Iterator[DavSystem]:
    """``rclone serve webdav`` of a local folder."""
    port = _free_port()
    served = folder / "files"
    served.mkdir()
    binary = find("rclone", "rclone")
    command = [binary, "serve", "webdav", str(served), "--addr", f"{HOST}:{port}"]
    command += ["--user", USER, "--pass", PASSWORD, "--config", str(folder / "none.conf")]
    version = _first_line(binary, "version").rpartition(" ")[2]
    with _run("rclone", command, port, folder, version) as system:
        yield system


@contextlib.contextmanager
def run_null(folder: Path) -> Iterator[DavSystem]:
    """A server that only remembers: what is left is the time of the client."""
    port = _free_port()
    command = [sys.executable, "-m", "benchmarks.dav_null", str(port)]
    with _run("null", command, port, folder, "", PYTHONPATH=str(ROOT)) as system:
        yield system


RUNNERS = {
    "lode": run_lode,
    "wsgidav": run_wsgidav,
    "apache": run_apache,
    "rclone": run_rclone,
    "null": run_null,
}
DEFAULT = ("lode", "wsgidav", "apache", "rclone")


@contextlib.contextmanager
def run_systems(folder: Path, names: list[str]) -> Iterator[dict[str, DavSystem]]:
    """Run the servers named, each in a folder of its own below ``folder``, which is removed."""
    here = folder / f"run-{secrets.token_hex(4)}"
    here.mkdir()
    # Apache's workers are somebody else, who has to get through.
    for path in (folder, here):
        path.chmod(0o755)
    try:
        with contextlib.ExitStack() as stack:
            systems = {}
            for name in names:
                (here / name).mkdir()
                systems[name] = stack.enter_context(RUNNERS[name](here / name))
                systems[name].ask("MKCOL", f"/{FOLDER}")
            yield systems
    finally:
        shutil.rmtree(here, ignore_errors=True)
