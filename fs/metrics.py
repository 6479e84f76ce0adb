"""What Prometheus sees of a mount: the instruments, and where their figures come from.

Requests are counted as they are answered (about 3 µs each, and only when somebody wants to see
them). Everything else is counted in plain numbers anyway, and brought here now and then and when
it is asked for.

The instruments are prometheus-client's own, so that under ``lode serve`` they are added to what
the other processes count (``engine.metrics``).
"""

from __future__ import annotations

import errno
from collections.abc import Iterator

import trio
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from fs.disk_cache import DiskCache
from fs.operations import Operations
from fs.view import View

KEEP_UP_S = 5.0

SECONDS = (
    0.00005,
    0.0001,
    0.00025,
    0.0005,
    0.001,
    0.0025,
    0.005,
    0.01,
    0.025,
    0.05,
    0.1,
    0.25,
    0.5,
    1.0,
    2.5,
    10.0,
    60.0,
)


class _Total:
    """A counter that follows a number which only grows."""

    __slots__ = ("_child", "_shown")

    def __init__(self, child: Counter) -> None:
        self._child = child
        self._shown = 0

    def show(self, number: int) -> None:
        if number > self._shown:
            self._child.inc(number - self._shown)
            self._shown = number


class MountMetrics:
    """The instruments of one mount. ``Meter`` of ``fs.wrap``."""

    def __init__(self, registry: CollectorRegistry) -> None:
        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(name, text, labels, registry=registry)

        def gauge(name: str, text: str, *labels: str) -> Gauge:
            return Gauge(name, text, labels, registry=registry, multiprocess_mode="mostrecent")

        self._requests = counter(
            "lode_mount_requests", "Requests of the kernel that were answered.", "request", "errno"
        )
        self._seconds = Histogram(
            "lode_mount_request_seconds",
            "Time until the answer.",
            ["request"],
            buckets=SECONDS,
            registry=registry,
        )
        size = counter("lode_mount_bytes", "Bytes read and written by programs.", "direction")
        self._read, self._written = (_Total(size.labels(way)) for way in ("read", "write"))
        blocks = counter(
            "lode_mount_cache_blocks", "Blocks that were looked for.", "cache", "result"
        )
        self._blocks = {
            (cache, result): _Total(blocks.labels(cache, result))
            for cache in ("memory", "disk")
            for result in ("hit", "miss")
        }
        events = counter(
            "lode_mount_disk_cache_events",
            "Blocks stored, dropped (not stored) and damaged; files evicted; errors of the disk.",
            "event",
        )
        self._events = {
            event: _Total(events.labels(event))
            for event in ("stored", "dropped", "damaged", "evicted", "error")
        }
        notices = counter("lode_mount_invalidations", "What the kernel was told to forget.", "kind")
        self._entries, self._inodes = (_Total(notices.labels(kind)) for kind in ("entry", "inode"))
        self._open = gauge("lode_mount_open_handles", "Open files and directories.", "kind")
        self._staged = gauge(
            "lode_mount_staged_bytes", "Bytes written and not committed yet, of open files."
        )
        self._unsaved = gauge(
            "lode_mount_unsaved_files", "Files that were made here and not committed yet."
        )
        self._known = gauge("lode_mount_inodes", "Inodes that the kernel knows.")
        self._cached = gauge(
            "lode_mount_cache_bytes", "Bytes that the caches in memory and on disk hold.", "cache"
        )
        self._followed = gauge(
            "lode_mount_feed_followed", "1 while changes by others are followed."
        )
        self._children: dict[tuple[str, int], tuple[Counter, Histogram]] = {}
        """``labels`` looks up under a lock; requests and errnos are few."""
        self._watched: tuple[View, Operations] | None = None

    def watch(self, view: View, operations: Operations) -> None:
        """Say what there is to see; from then on ``refresh`` shows it."""
        self._watched = view, operations

    def answered(self, request: str, number: int, seconds: float) -> None:
        children = self._children.get((request, number))
        if children is None:
            name = errno.errorcode.get(number, str(number)) if number else "ok"
            children = self._children[request, number] = (
                self._requests.labels(request, name),
                self._seconds.labels(request),
            )
        children[0].inc()
        children[1].observe(seconds)

    async def keep_up(self) -> None:
        """Refresh now and then, until cancelled."""
        while True:
            self.refresh()
            await trio.sleep(KEEP_UP_S)

    def refresh(self) -> None:
        """Bring every figure up to date."""
        if self._watched is None:
            return
        view, operations = self._watched
        tally, windows = view.tally, view.windows
        self._read.show(tally.read_bytes)
        self._written.show(tally.written_bytes)
        self._entries.show(tally.entries_invalidated)
        self._inodes.show(tally.inodes_invalidated)
        self._blocks["memory", "hit"].show(windows.hits)
        self._blocks["memory", "miss"].show(windows.misses)
        self._cached.labels("memory").set(windows.size)
        self._open.labels("file").set(len(view.files))
        self._open.labels("directory").set(operations.open_directories)
        self._staged.set(sum(_staged(view)))
        self._unsaved.set(len(view.unsaved))
        self._known.set(len(view.table))
        self._followed.set(view.feed_followed)
        if view.cache is not None:
            self._refresh_cache(view.cache)

    def _refresh_cache(self, cache: DiskCache) -> None:
        self._blocks["disk", "hit"].show(cache.stats.hits)
        self._blocks["disk", "miss"].show(cache.stats.misses)
        self._cached.labels("disk").set(cache.folder.used)
        self._events["stored"].show(cache.folder.stats.stored)
        self._events["damaged"].show(cache.folder.stats.damaged)
        self._events["evicted"].show(cache.folder.stats.evicted)
        self._events["dropped"].show(cache.stats.dropped)
        self._events["error"].show(cache.stats.errors)


def _staged(view: View) -> Iterator[int]:
    """Yield the staged bytes of each file that is open."""
    for node in {handle.node for handle in view.files.all()}:
        if node.draft is not None:
            yield node.draft.staged
