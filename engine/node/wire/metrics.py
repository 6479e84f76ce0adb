"""What a member counts, for Prometheus."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from engine.node.wire.messages import DriveHealth
from engine.node.wire.shelf import Shelf

_SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
_STATES = ("up", "empty", "missing", "foreign", "failed", "opening")


class Metrics:
    """The counts of one service. Not thread-safe: the trio thread's."""

    def __init__(self, shelf: Shelf) -> None:
        self.registry = CollectorRegistry()
        self._requests = Counter(
            "lode_node_requests",
            "Requests answered, by operation and status.",
            ("op", "code"),
            registry=self.registry,
        )
        self._seconds = Histogram(
            "lode_node_request_seconds",
            "Time from a request's head to the end of its handling (an answer's body excluded).",
            ("op",),
            buckets=_SECONDS,
            registry=self.registry,
        )
        bytes_ = Counter(
            "lode_node_bytes",
            "Bytes of fragments that came in and went out.",
            ("direction",),
            registry=self.registry,
        )
        self.bytes_in = bytes_.labels("in")
        self.bytes_out = bytes_.labels("out")
        self.sync_failures = Counter(
            "lode_node_sync_failures",
            "Commits and deletes that did not become durable since the drive failed.",
            ("node",),
            registry=self.registry,
        )
        self.running = 0
        """Requests that run now."""
        self._children: dict[tuple[str, int], tuple[Counter, Histogram]] = {}
        self.registry.register(_Gauges(self, shelf))

    def count(self, op: str, code: int, seconds: float) -> None:
        key = (op, code)
        children = self._children.get(key)
        if children is None:
            children = self._requests.labels(op, str(code)), self._seconds.labels(op)
            self._children[key] = children
        children[0].inc()
        children[1].observe(seconds)

    def expose(self) -> bytes:
        """Return everything in Prometheus' text format."""
        return generate_latest(self.registry)


class _Gauges(Collector):
    """What is looked up when somebody asks."""

    def __init__(self, metrics: Metrics, shelf: Shelf) -> None:
        self._metrics = metrics
        self._shelf = shelf

    def describe(self) -> list[GaugeMetricFamily]:
        return []  # nothing need be collected to be registered

    def collect(self) -> Iterator[GaugeMetricFamily]:
        yield GaugeMetricFamily(
            "lode_node_running_requests", "Requests that run now.", self._metrics.running
        )
        drives = self._shelf.health()
        labels = ("node", "drive")
        state = GaugeMetricFamily(
            "lode_node_drive_state",
            "1 for the state that a drive is in.",
            labels=(*labels, "state"),
        )
        for drive in drives:
            for name in _STATES:
                state.add_metric((drive.node, drive.folder, name), float(drive.state == name))
        yield state
        for name, what in (
            ("total", "Size of the drive's file system."),
            ("free", "Bytes that new fragments may use."),
            ("live", "Bytes of fragments that can be read."),
            ("dead", "Bytes in volumes that compaction would give back."),
        ):
            yield _of_drives(f"lode_node_drive_{name}_bytes", what, drives, name)
        yield _of_drives("lode_node_drive_fragments", "Fragments kept.", drives, "fragments")
        yield self._queues()
        yield self._volumes()

    def _queues(self) -> GaugeMetricFamily:
        family = GaugeMetricFamily(
            "lode_node_drive_queue", "Calls that run on a drive or wait for it.", labels=("drive",)
        )
        for slot in self._shelf.slots:
            family.add_metric((slot.folder,), slot.queued)
        return family

    def _volumes(self) -> GaugeMetricFamily:
        family = GaugeMetricFamily(
            "lode_node_drive_volumes", "Volume files of a drive.", labels=("drive",)
        )
        for slot in self._shelf.slots:
            if slot.drive is not None:
                family.add_metric((slot.folder,), slot.volumes)
        return family


def _of_drives(name: str, what: str, drives: list[DriveHealth], field: str) -> GaugeMetricFamily:
    family = GaugeMetricFamily(name, what, labels=("node", "drive"))
    for drive in drives:
        if drive.state == "up":
            family.add_metric((drive.node, drive.folder), float(getattr(drive, field)))
    return family
