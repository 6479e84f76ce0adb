"""The life of one mount: check, mount, serve, unmount. One mount per process.

    checks → mounted → feed followed → ready → SIGTERM, or umount by others → running requests
    end → open files are closed, which commits what they wrote → unmounted

pyfuse3 keeps its state in module variables, hence one mount per process.
"""

from __future__ import annotations

import errno
import os
import stat
import subprocess
import time
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import TypeAlias

import pyfuse3
import structlog
import trio

from engine.engine import Engine
from engine.errors import ConfigError, NoSuchBucket
from fs.cache_folder import CacheFolder
from fs.disk_cache import DiskCache
from fs.incoming import Incoming
from fs.invalidation import Invalidation
from fs.kernel import abort, freed_when_killed, raise_read_ahead, read_by
from fs.metrics import MountMetrics
from fs.operations import Operations
from fs.options import MountOptions
from fs.space import Space
from fs.view import View
from fs.wrap import Guard

TASKS_MAX = 128
"""Requests of the kernel that are worked on at once."""

STOP_S = 30.0
"""For running requests to end once a stop was asked for."""

COMMIT_S = 40.0
"""From then on, for what programs still have open to be committed; ``COMMIT_S_MIN`` at least."""

COMMIT_S_MIN = 10.0

DEVICE = Path("/dev/fuse")

Service: TypeAlias = Callable[[], Awaitable[None]]


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
    metrics: MountMetrics | None = None,
) -> None:
    """Mount, and serve until ``stop`` is set or somebody unmounts.

    ``ready`` is called once the mount can be used. ``metrics`` None: nobody wants to see any. On
    return nothing is mounted.

    Raises: ConfigError: device, mount point, bucket or permission.
    """
    # Not in a thread: nothing else runs yet.
    check_target(options)
    view = await _view(engine, options, log)
    incoming = Incoming(partial(_kernel_is_gone, stop, log))
    guard = Guard(log, options.handler_s, metrics, incoming)
    operations = Operations(view, guard, Space(engine, options.bucket))
    if metrics is not None:
        metrics.watch(view, operations)
    try:
        pyfuse3.init(operations, str(options.target), _fuse_options(options))
    except RuntimeError as error:
        raise ConfigError(
            f"cannot mount at {options.target}: {error} (root, or fusermount3 and, for "
            "--allow-other, user_allow_other in /etc/fuse.conf, is needed)"
        ) from error
    try:
        read_by(incoming)
        services = operations.services + ([] if metrics is None else [metrics.keep_up])
        with freed_when_killed(options.target, log):
            await _serve(view, operations, guard, incoming, services, stop=stop, ready=ready)
    finally:
        pyfuse3.close(unmount=True)
        if view.cache is not None:
            view.cache.close()
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
    cache = None
    if options.cache_dir is not None:
        folder = CacheFolder(options.cache_dir, options.cache_size)
        cache = DiskCache(folder, remote=lambda: has_remote_node(engine), log=log)
    return View(
        engine,
        options,
        log,
        bucket=bucket,
        started_ms=time.time_ns() // 1_000_000,
        cache=cache,
    )


def has_remote_node(engine: Engine) -> bool:
    """Say whether some of the store's bytes come from other machines."""
    pool = engine.store.pool
    nodes = [pool.get(node_id) for node_id in pool.ids()]
    return any(node is not None and node.blocking is None for node in nodes)


async def _serve(
    view: View,
    operations: Operations,
    guard: Guard,
    incoming: Incoming,
    services: list[Service],
    *,
    stop: trio.Event,
    ready: Callable[[], None],
) -> None:
    async with trio.open_nursery() as nursery:
        operations.start_writing(_staging_folder(view), nursery)
        # In nurseries of their own, to be ended one after the other.
        async with trio.open_nursery() as serving:
            serving.start_soon(_serve_kernel, stop, view.log)
            background = Background(view, operations, services, ready)
            serving.start_soon(background.run)
            await stop.wait()
            commit_until = trio.current_time() + COMMIT_S
            with trio.move_on_after(STOP_S) as patience:
                # While requests are still answered: its thread may be waiting for one.
                await background.stop()
                await guard.idle()
            if patience.cancelled_caught:
                view.log.warning(
                    "stopping although requests still run", limit_s=STOP_S, running=guard.running
                )
            incoming.end()
            pyfuse3.terminate()
            if patience.cancelled_caught:
                serving.cancel_scope.cancel()
            if not background.ended.is_set():
                _set_free(view)
        commit_until = max(commit_until, trio.current_time() + COMMIT_S_MIN)
        with trio.move_on_at(commit_until, shield=True) as patience:
            await operations.aclose()
        if patience.cancelled_caught:
            view.log.error("files were still being committed when time was over")
        nursery.cancel_scope.cancel()


def _set_free(view: View) -> None:
    """A thread waits in the kernel for a request that nobody answers any more."""
    try:
        abort(view.options.target)
    except OSError as error:
        view.log.warning("connection to the kernel not aborted", error=error.strerror)


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


async def _serve_kernel(stop: trio.Event, log: structlog.typing.FilteringBoundLogger) -> None:
    try:
        await pyfuse3.main(max_tasks=TASKS_MAX)
    finally:
        _kernel_is_gone(stop, log)


def _kernel_is_gone(stop: trio.Event, log: structlog.typing.FilteringBoundLogger) -> None:
    if not stop.is_set():
        log.info("unmounted by somebody else")
        stop.set()


class Background:
    """What runs beside the handlers, until it is stopped."""

    def __init__(
        self,
        view: View,
        operations: Operations,
        services: list[Service],
        ready: Callable[[], None],
    ) -> None:
        self._view = view
        self._operations = operations
        self._services = services
        self._ready = ready
        self._scope = trio.CancelScope()
        self.ended = trio.Event()

    async def run(self) -> None:
        try:
            with self._scope:
                # What the kernel and the mount agree on in INIT would set it back.
                await self._operations.begun.wait()
                raise_read_ahead(self._view.options.target, self._view.log)
                async with trio.open_nursery() as nursery:
                    await nursery.start(Invalidation(self._view).run)
                    for service in self._services:
                        nursery.start_soon(service)
                    self._ready()
        finally:
            self.ended.set()

    async def stop(self) -> None:
        """Return once it has ended."""
        self._scope.cancel()
        await self.ended.wait()


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
