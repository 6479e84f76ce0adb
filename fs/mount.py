"""The life of one mount: check, mount, serve, unmount. One mount per process.

    checks → mounted → feed followed → ready → SIGTERM, or umount by others → running requests
    end → open files are closed, which commits what they wrote → unmounted

pyfuse3 keeps its state in module variables, hence one mount per process.
"""

from __future__ import annotations

import errno
import os
import re
import stat
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pyfuse3
import structlog
import trio

from engine.engine import Engine
from engine.errors import ConfigError, NoSuchBucket
from fs.invalidation import Invalidation
from fs.operations import Operations
from fs.options import MountOptions
from fs.space import Space
from fs.view import View
from fs.wrap import Guard

READ_AHEAD_KB = 4096
TASKS_MAX = 128
"""Requests of the kernel that are worked on at once."""

STOP_S = 30.0
"""For running requests and commits to end once a stop was asked for."""

DEVICE = Path("/dev/fuse")


def check_target(options: MountOptions) -> None:
    """Take away what a killed mount left at the mount point, and say what is wrong with it.

    Raises: ConfigError.
    """
    target = options.target
    if not DEVICE.exists():
        raise ConfigError(
            f"{DEVICE} is missing: load the kernel module (modprobe fuse), or give "
            "the container the device"
        )
    if not os.access(DEVICE, os.R_OK | os.W_OK):
        raise ConfigError(
            f"{DEVICE}: permission denied; run as root or join the group that owns it"
        )
    if _is_dead(target):
        _unmount_dead(target)
    try:
        mode = target.stat().st_mode
    except OSError as error:
        raise ConfigError(f"mount point {target}: {error.strerror}") from error
    if not stat.S_ISDIR(mode):
        raise ConfigError(f"mount point {target} is no folder")
    if os.path.ismount(target):
        raise ConfigError(f"something is mounted at {target} already; umount it first")


def _is_dead(target: Path) -> bool:
    """Say whether a mount is there that nobody serves."""
    try:
        # Not stat: the kernel may still answer that from what it keeps.
        os.statvfs(target)
    except OSError as error:
        return error.errno == errno.ENOTCONN
    return False


def _unmount_dead(target: Path) -> None:
    """The process that served the mount is gone without unmounting."""
    command = (
        ["umount", "-l", str(target)]
        if os.geteuid() == 0
        else ["fusermount3", "-u", "-z", str(target)]
    )
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=30)
    if done.returncode:
        raise ConfigError(f"{target}: a dead mount is there: {done.stderr.strip()}")


async def run_mount(
    engine: Engine,
    options: MountOptions,
    *,
    log: structlog.typing.FilteringBoundLogger,
    stop: trio.Event,
    ready: Callable[[], None],
) -> None:
    """Mount, and serve until ``stop`` is set or somebody unmounts.

    ``ready`` is called once the mount can be used. On return nothing is mounted.

    Raises: ConfigError: device, mount point, bucket or permission.
    """
    # Not in a thread: nothing else runs yet.
    check_target(options)
    view = await _view(engine, options, log)
    guard = Guard(log, options.handler_s)
    operations = Operations(view, guard, Space(engine, options.bucket))
    try:
        pyfuse3.init(operations, str(options.target), _fuse_options(options))
    except RuntimeError as error:
        raise ConfigError(
            f"cannot mount at {options.target}: {error} (root, or fusermount3 and, for "
            "--allow-other, user_allow_other in /etc/fuse.conf, is needed)"
        ) from error
    try:
        await _serve(view, operations, guard, stop, ready)
    finally:
        pyfuse3.close(unmount=True)
    log.info("unmounted", target=str(options.target), requests=guard.counts)


async def _view(
    engine: Engine, options: MountOptions, log: structlog.typing.FilteringBoundLogger
) -> View:
    bucket = None
    if options.bucket:
        try:
            bucket = await engine.bucket(options.bucket)
        except NoSuchBucket:
            raise ConfigError(f"no bucket {options.bucket!r} in this store") from None
    return View(engine, options, log, bucket=bucket, started_ms=time.time_ns() // 1_000_000)


async def _serve(
    view: View,
    operations: Operations,
    guard: Guard,
    stop: trio.Event,
    ready: Callable[[], None],
) -> None:
    async with trio.open_nursery() as nursery:
        operations.start_writing(_staging_folder(view), nursery)
        # In nurseries of their own, to be ended one after the other.
        async with trio.open_nursery() as serving:
            serving.start_soon(_serve_kernel, stop)
            background = trio.CancelScope()
            serving.start_soon(_run_background, view, operations, background, ready)
            await stop.wait()
            # While requests are still answered: its thread may be waiting for one.
            background.cancel()
            with trio.move_on_after(STOP_S):
                await guard.idle()
            pyfuse3.terminate()
        with trio.move_on_after(STOP_S, shield=True):
            await operations.aclose()
        nursery.cancel_scope.cancel()


def _staging_folder(view: View) -> Path:
    """Return the folder for what is written and not yet committed, made if need be.

    Raises: ConfigError.
    """
    folder = view.options.staging or view.engine.store.config.data / "staging"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"staging folder {folder}: {error.strerror}") from error
    return folder


async def _serve_kernel(stop: trio.Event) -> None:
    try:
        await pyfuse3.main(max_tasks=TASKS_MAX)
    finally:
        stop.set()


async def _run_background(
    view: View, operations: Operations, scope: trio.CancelScope, ready: Callable[[], None]
) -> None:
    with scope:
        # What the kernel and the mount agree on in INIT would set it back.
        await operations.begun.wait()
        _raise_read_ahead(view.options.target, view.log)
        async with trio.open_nursery() as nursery:
            await nursery.start(Invalidation(view).run)
            for service in operations.services:
                nursery.start_soon(service)
            ready()


def _fuse_options(options: MountOptions) -> set[str]:
    name = options.bucket + ("/" + options.prefix if options.prefix else "")
    wanted = set(pyfuse3.default_options)
    # Commas and backslashes part options.
    wanted.add("fsname=lode:" + "".join(c if c.isalnum() or c in "-._/" else "_" for c in name))
    wanted.add("subtype=lode")
    if options.allow_other:
        wanted.add("allow_other")
    if not options.writable:
        wanted.add("ro")
    return {option.encode("ascii", "replace").decode() for option in wanted}


def _device(target: Path) -> str:
    """Return MAJOR:MINOR of what was mounted last at the target.

    Not by ``stat``: nobody answers the kernel yet.
    """
    found = ""
    for line in Path("/proc/self/mountinfo").read_text(encoding="utf-8").splitlines():
        fields = line.split()
        place = re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), fields[4])
        if place == str(target):
            found = fields[2]
    return found


def _raise_read_ahead(target: Path, log: structlog.typing.FilteringBoundLogger) -> None:
    """Let the kernel read ahead further than 128 KiB, which bounds what a slow node can give.

    Nothing here may look at the mount itself: nobody answers while this thread is here.
    """
    try:
        path = Path(f"/sys/class/bdi/{_device_of(target)}/read_ahead_kb")
        path.write_text(f"{READ_AHEAD_KB}\n", encoding="ascii")
    except OSError as error:
        log.info("kernel read-ahead stays as it is", error=error.strerror)


def _device_of(target: Path) -> str:
    """Return the mount's device as ``major:minor``.

    Source: proc_pid_mountinfo(5): fields 3 and 5; the latest mount on a point comes last.
    """
    point = os.path.realpath(target.parent) + "/" + target.name
    escaped = point.replace("\\", "\\134").replace(" ", "\\040").replace("\t", "\\011")
    for line in reversed(Path("/proc/self/mountinfo").read_text(encoding="utf-8").splitlines()):
        fields = line.split(" ")
        if fields[4] == escaped.replace("\n", "\\012"):
            return fields[2]
    raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(target))
