"""What a process counts for Prometheus: the instruments, each defined once.

Several processes serve one store. Under ``lode serve`` each of them writes its figures to files in
a folder of the server's (``PROMETHEUS_MULTIPROC_DIR``, prometheus-client's multiprocess mode), and
the supervisor adds them up when it is asked; so nothing here asks another process, and figures
outlive the worker that counted them. Cost on the request path: about 4 µs.

Names: https://prometheus.io/docs/practices/naming/.
"""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from engine.types import CensusStatus, StoreStatus

FOLDER_VARIABLE = "PROMETHEUS_MULTIPROC_DIR"
"""Read by prometheus-client when it is imported."""

SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)


class RequestMeter:
    """The requests of one frontend. Thread-safe."""

    def __init__(self, frontend: str, requests: Counter, seconds: Histogram, size: Counter) -> None:
        self._frontend = frontend
        self._requests = requests
        self._seconds = seconds
        self._received = size.labels(frontend, "in")
        self._sent = size.labels(frontend, "out")
        self._children: dict[tuple[str, int, str], tuple[Counter, Histogram]] = {}
        """``labels`` looks up under a lock; operations and codes are few."""

    def answered(self, operation: str, status: int, code: str, seconds: float) -> None:
        """Count a request whose answer is known.

        Args:
            code: the frontend's own name of an error, or empty.
            seconds: until the head of the answer was ready.
        """
        key = (operation, status, code)
        children = self._children.get(key)
        if children is None:
            children = self._children[key] = (
                self._requests.labels(self._frontend, operation, str(status), code),
                self._seconds.labels(self._frontend, operation),
            )
        children[0].inc()
        children[1].observe(seconds)

    def moved(self, received: int, sent: int) -> None:
        """Count bytes of bodies."""
        if received:
            self._received.inc(received)
        if sent:
            self._sent.inc(sent)


class Metrics:
    """The instruments of one process."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._requests = Counter(
            "lode_requests",
            "Requests answered.",
            ["frontend", "operation", "status", "code"],
            registry=self.registry,
        )
        self._seconds = Histogram(
            "lode_request_seconds",
            "Time until the head of the answer.",
            ["frontend", "operation"],
            buckets=SECONDS,
            registry=self.registry,
        )
        self._size = Counter(
            "lode_body_bytes",
            "Bytes of request bodies (in) and response bodies (out).",
            ["frontend", "direction"],
            registry=self.registry,
        )
        self.store = StoreGauges(self.registry)

    def requests(self, frontend: str) -> RequestMeter:
        return RequestMeter(frontend, self._requests, self._seconds, self._size)


class StoreGauges:
    """The state of the store; one process at a time sets them."""

    def __init__(self, registry: CollectorRegistry) -> None:
        def gauge(name: str, text: str, *labels: str) -> Gauge:
            return Gauge(name, text, labels, registry=registry, multiprocess_mode="mostrecent")

        self.node_state = gauge(
            "lode_node_state", "1 for the state that the node is in.", "node", "location", "state"
        )
        self.node_bytes = gauge(
            "lode_node_bytes", "Space of a node: total, free, live, dead.", "node", "kind"
        )
        self.node_fragments = gauge("lode_node_fragments", "Fragments on a node.", "node")
        self.node_damaged = gauge(
            "lode_node_damaged_fragments", "Damage found on a node so far.", "node"
        )
        self.node_repaired = gauge(
            "lode_node_repaired_fragments", "Fragments made anew on a node so far.", "node"
        )
        self.member_health = gauge(
            "lode_member_health", "1 for the health that the member is in.", "member", "health"
        )
        self.census_fragments = gauge(
            "lode_census_fragments", "What the last census proved of fragments.", "state"
        )
        self.census_chunks = gauge(
            "lode_census_chunks", "What the last census proved of chunks.", "state"
        )
        self.census_at = gauge("lode_census_timestamp_seconds", "When the last census ended.")
        self.work_done = gauge("lode_work_done_chunks", "Long work: chunks dealt with.", "name")
        self.work_total = gauge("lode_work_total_chunks", "Long work: chunks in all.", "name")
        self.work_rate = gauge(
            "lode_work_bytes_per_second", "Long work: 0 when none is running.", "name"
        )
        self.repair_queue = gauge("lode_repair_queue_chunks", "Chunks that wait for repair.")
        self.garbage_queue = gauge("lode_garbage_queue", "Deleted things that wait for collection.")
        self.objects = gauge("lode_objects", "Versions kept.")
        self.bytes = gauge("lode_object_bytes", "Their bytes, without redundancy.")
        self.buckets = gauge("lode_buckets", "Buckets.")
        self.as_of = gauge("lode_store_observed_timestamp_seconds", "When these were looked at.")
        self._states: set[tuple[str, str, str]] = set()
        self._healths: set[tuple[str, str]] = set()
        self._works: set[str] = set()

    def show(self, status: StoreStatus, at_s: float) -> None:
        """Set everything to what ``status`` says; ``at_s``: seconds since 1970."""
        now = {(drive.node_id, drive.location, drive.state) for drive in status.drives}
        for labels in self._states - now:
            self.node_state.labels(*labels).set(0)
        self._states |= now
        for labels in now:
            self.node_state.labels(*labels).set(1)
        for drive in status.drives:
            for kind in ("total", "free", "live", "dead"):
                self.node_bytes.labels(drive.node_id, kind).set(getattr(drive, kind))
            self.node_fragments.labels(drive.node_id).set(drive.fragments)
            self.node_damaged.labels(drive.node_id).set(drive.damaged)
            self.node_repaired.labels(drive.node_id).set(drive.repaired)
        self._show_members(status)
        self._show_census(status.census)
        self._show_work(status)
        self.repair_queue.set(status.repair_queue)
        self.garbage_queue.set(status.garbage_queue)
        self.buckets.set(status.buckets)
        self.objects.set(status.objects)
        self.bytes.set(status.bytes)
        self.as_of.set(at_s)

    def _show_members(self, status: StoreStatus) -> None:
        now = {(member.name, member.health) for member in status.members}
        for labels in self._healths - now:
            self.member_health.labels(*labels).set(0)
        self._healths |= now
        for labels in now:
            self.member_health.labels(*labels).set(1)

    def _show_census(self, census: CensusStatus | None) -> None:
        if census is None:
            return
        fragments = self.census_fragments
        fragments.labels("whole").set(census.whole)
        fragments.labels("missing").set(census.missing)
        fragments.labels("unasked").set(census.unasked)
        fragments.labels("orphaned").set(census.orphans)
        chunks = self.census_chunks
        chunks.labels("all").set(census.chunks)
        chunks.labels("at risk").set(census.chunks_at_risk)
        chunks.labels("unreadable").set(census.chunks_unreadable)
        chunks.labels("sharing a domain").set(census.chunks_sharing)
        self.census_at.set(census.as_of_ms / 1000)

    def _show_work(self, status: StoreStatus) -> None:
        now = {work.name: work for work in status.work}
        for name in self._works - now.keys():
            self.work_rate.labels(name).set(0)
        self._works |= now.keys()
        for name, work in now.items():
            self.work_done.labels(name).set(work.done)
            self.work_total.labels(name).set(work.total)
            self.work_rate.labels(name).set(work.bytes_per_s if work.running else 0)
