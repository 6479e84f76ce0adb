"""A FoundationDB server for tests: the one that is named, or one of our own.

``LODE_TEST_FDB_CLUSTER`` names the cluster file of a running cluster, of which only stores whose
names begin with ``test-`` are touched. Otherwise, with ``fdbserver`` and ``fdbcli`` on the PATH, a
server is started on a free port and a temporary folder, and stopped when the process ends.
"""

from __future__ import annotations

import atexit
import ctypes
import functools
import hashlib
import os
import shutil
import signal
import socket
import subprocess
import tempfile
from pathlib import Path

import pytest

from engine.meta.fdb import FdbLocation

CLUSTER_VARIABLE = "LODE_TEST_FDB_CLUSTER"
START_S_MAX = 180
"""On a machine that does a dozen other things."""
STORE_PREFIX = "test-"


class FdbServer:
    """One server process that is a cluster of its own."""

    def __init__(self, folder: Path) -> None:
        """Start it with an empty database in ``folder``."""
        self._folder = folder
        self.cluster_file = folder / "fdb.cluster"
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self._port: int = probe.getsockname()[1]
        self.cluster_file.write_text(f"test:test@127.0.0.1:{self._port}\n")
        self._process: subprocess.Popen[bytes] | None = None
        self.start()
        try:
            self.cli(f"configure new single {os.environ.get('LODE_TEST_FDB_ENGINE', 'memory')}")
        except BaseException:
            self.kill()
            raise

    def start(self) -> None:
        (self._folder / "logs").mkdir(exist_ok=True)
        prctl = ctypes.CDLL(None).prctl
        with open(self._folder / "output", "ab") as output:
            self._process = subprocess.Popen(
                [
                    "fdbserver",
                    f"--public-address=127.0.0.1:{self._port}",
                    f"--cluster-file={self.cluster_file}",
                    f"--datadir={self._folder / 'data'}",
                    f"--logdir={self._folder / 'logs'}",
                    "--logsize=1MiB",
                    "--maxlogssize=4MiB",
                ],
                stdout=output,
                stderr=output,
                # PR_SET_PDEATHSIG: a killed test leaves nothing behind.
                preexec_fn=lambda: prctl(1, signal.SIGKILL),
            )

    def kill(self) -> None:
        """End it as a lost machine ends."""
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)
        self._process.kill()
        self._process.wait()

    def pause(self) -> None:
        """Let it keep its connections and answer nothing."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    def cli(self, command: str) -> str:
        """Run a command of ``fdbcli`` and return what it prints."""
        done = subprocess.run(
            ["fdbcli", "-C", str(self.cluster_file), "--exec", command, "--timeout", "170"],
            capture_output=True,
            text=True,
            timeout=START_S_MAX,
            check=False,
        )
        assert done.returncode == 0, (
            done.stdout,
            done.stderr,
            (self._folder / "output").read_text(),
        )
        return done.stdout


def has_server() -> bool:
    return shutil.which("fdbserver") is not None and shutil.which("fdbcli") is not None


@functools.cache
def own_server() -> FdbServer:
    """Return the server of this process. Skips the test where there is none to start."""
    if not has_server():
        pytest.skip("needs FoundationDB: fdbserver and fdbcli are not on the PATH")
    folder = Path(tempfile.mkdtemp(prefix="lode-fdb-"))
    server = FdbServer(folder)

    def stop() -> None:
        server.kill()
        shutil.rmtree(folder, ignore_errors=True)

    atexit.register(stop)
    return server


def cluster_file() -> Path:
    """Return the cluster to test with. Skips the test where there is none."""
    named = os.environ.get(CLUSTER_VARIABLE)
    if named is None and not has_server():
        pytest.skip(
            f"needs FoundationDB: {CLUSTER_VARIABLE} names no cluster file, "
            "and fdbserver is not on the PATH"
        )
    return Path(named) if named is not None else own_server().cluster_file


def library() -> Path | None:
    """Return the client library beside a server that is not installed for the system."""
    server = shutil.which("fdbserver")
    if server is None:
        return None
    beside = Path(server).resolve().parent.parent / "lib" / "libfdb_c.so"
    return beside if beside.exists() else None


def location(folder: Path) -> FdbLocation:
    """Return the place of the store that belongs to a folder. Skips where there is no server."""
    name = hashlib.sha256(str(folder).encode()).hexdigest()[:16]
    return FdbLocation(cluster_file(), STORE_PREFIX + name, library())


def metadata_for(path: Path) -> str:
    """Return where the metadata of a store in ``path`` goes: ``LODE_TEST_META=fdb`` sends every
    store of a run to FoundationDB. Skips the test where there is no server."""
    on_fdb = os.environ.get("LODE_TEST_META") == "fdb"
    return str(location(path)) if on_fdb else ""
