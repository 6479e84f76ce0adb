"""The connection to the kernel: what pyfuse3 does not do about it."""

from __future__ import annotations

import ctypes
import errno
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pyfuse3
import structlog

from fs.incoming import Incoming

READ_AHEAD_KB = 4096
_MNT_FORCE = 1
_UMOUNT_NOFOLLOW = 8

CONNECTIONS = Path("/sys/fs/fuse/connections")
_ABORT_ON_TERM = """trap 'echo 1 > "$0"; exit' TERM; read -r _"""
"""For a shell. It also ends when its standard input is closed."""

_HELPER_S = 10.0


def device_of(target: Path) -> str:
    """Return the mount's device as ``major:minor``; asks nothing of the mount itself.

    Raises: FileNotFoundError: nothing is mounted there.
    Source: proc_pid_mountinfo(5): fields 3 and 5; the latest mount on a point comes last.
    """
    point = os.path.realpath(target.parent) + "/" + target.name
    escaped = point.replace("\\", "\\134").replace(" ", "\\040").replace("\t", "\\011")
    for line in reversed(Path("/proc/self/mountinfo").read_text(encoding="utf-8").splitlines()):
        fields = line.split(" ")
        if fields[4] == escaped.replace("\n", "\\012"):
            return fields[2]
    raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(target))


def raise_read_ahead(target: Path, log: structlog.typing.FilteringBoundLogger) -> None:
    """Let the kernel read ahead further than 128 KiB, which bounds what a slow node can give.

    Nothing here may look at the mount itself: nobody answers while this thread is here.
    """
    try:
        path = Path(f"/sys/class/bdi/{device_of(target)}/read_ahead_kb")
        path.write_text(f"{READ_AHEAD_KB}\n", encoding="ascii")
    except OSError as error:
        log.info("kernel read-ahead stays as it is", error=error.strerror)


def abort(target: Path) -> None:
    """Let every request of the kernel, running or to come, fail: whoever waits is set free.

    What is mounted stays so, unless nobody uses it. Raises: OSError: not permitted (only root is),
    or nothing is mounted there.
    Source: umount(2), MNT_FORCE; Linux, ``fs/fuse/inode.c``, ``fuse_umount_begin``. The other way,
    /sys/fs/fuse/connections, is not mounted in most containers.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.umount2(os.fsencode(target), _MNT_FORCE | _UMOUNT_NOFOLLOW):
        number = ctypes.get_errno()
        if number != errno.EBUSY:
            raise OSError(number, os.strerror(number))


@contextmanager
def freed_when_killed(target: Path, log: structlog.typing.FilteringBoundLogger) -> Iterator[None]:
    """See to it that whoever uses the mount is set free should this process be killed.

    The kernel does that by itself when the last descriptor of ``/dev/fuse`` is closed. But a thread
    that tells it what changed may wait there, not to be killed, for the lock of a directory whose
    holder waits for an answer of this mount: then nothing is ever closed, and both wait for ever.
    So a shell waits beside, to abort the connection when this thread dies. What is mounted stays,
    as it does after any other kill: nobody is to write into the folder below by mistake.

    Source: proc(5) and prctl(2), PR_SET_PDEATHSIG: the signal comes when the *thread* ends that
    started the child. Call on the main thread.
    """
    try:
        path = CONNECTIONS / device_of(target).rpartition(":")[2] / "abort"
        if not path.exists():
            command = ["mount", "-t", "fusectl", "fusectl", str(CONNECTIONS)]
            subprocess.run(command, capture_output=True, check=False, timeout=_HELPER_S)
        if not path.exists():
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))
        shell = subprocess.Popen(
            ["setpriv", "--pdeathsig", "TERM", "/bin/sh", "-c", _ABORT_ON_TERM, str(path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd="/",
            start_new_session=True,
        )
    except OSError as error:
        log.info("who uses the mount may hang should it be killed", error=error.strerror)
        yield
        return
    try:
        yield
    finally:
        assert shell.stdin is not None
        shell.stdin.close()
        shell.wait(_HELPER_S)


def read_by(incoming: Incoming) -> None:
    """Let pyfuse3 wait for requests by ``incoming``. Call between ``pyfuse3.init`` and
    ``pyfuse3.main``.

    pyfuse3 looks its function up by name each time. Should a later version not have it, the
    mount does without: it is slower then, and to react, not wrong.
    """
    descriptor = _descriptor()
    if descriptor is not None and hasattr(pyfuse3, "_wait_fuse_readable"):
        incoming.listen(descriptor)
        pyfuse3._wait_fuse_readable = incoming.wait


def _descriptor() -> int | None:
    """Return the descriptor of the connection; the latest, as one process has one mount."""
    found = None
    for name in os.listdir("/proc/self/fd"):
        try:
            if os.readlink(f"/proc/self/fd/{name}") == "/dev/fuse":
                found = int(name)
        except OSError:
            continue
    return found
