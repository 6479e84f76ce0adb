"""How much memory the server's processes take while large objects stream in and out."""

from __future__ import annotations

from pathlib import Path

from benchmarks.machine import peak_memory_mib
from benchmarks.measure import MIB, Figure, Target
from benchmarks.servers import Systems
from benchmarks.signed import request_heads
from benchmarks.stream_client import run_stream
from benchmarks.transfers import BUCKET, FILL_S_MAX, Plan, Show, create_bucket

CONNECTIONS = 8
SIZE = 64 * MIB
PEAK_MIB_MAX = 250.0


def measure_memory(systems: Systems, plan: Plan, show: Show) -> None:
    """Stream everything in, then out, and read what every process has had at most.

    Needs a server that did nothing before: the kernel's high-water marks are for a whole life.
    """
    create_bucket(systems, BUCKET)
    endpoint = systems.lode.endpoint
    count = plan.stream_mib * MIB // SIZE
    targets = [f"/{BUCKET}/stream/{number:06d}" for number in range(count)]
    for method in ("PUT", "GET"):
        put = method == "PUT"
        run_stream(
            endpoint,
            request_heads(endpoint, method, targets, body_size=SIZE if put else None),
            connections=CONNECTIONS,
            seconds=FILL_S_MAX,
            requests_max=count,
            body_size=SIZE if put else 0,
            response_size=0 if put else SIZE,
        )
        peaks = [peak_memory_mib(pid) for pid in systems.lode.processes()]
        show(
            Figure(
                group="memory",
                name=f"peak memory, {plan.stream_mib} MiB {'in' if put else 'in and out'}",
                connections=CONNECTIONS,
                unit="MiB",
                lode=max(peaks),
                target=Target("under 250 MiB", value_max=PEAK_MIB_MAX),
                note="per process: " + ", ".join(f"{peak:.0f}" for peak in peaks),
                rounds={"processes": peaks},
            )
        )


def room_needed(plan: Plan) -> int:
    """Return the bytes of disk that the largest group takes."""
    return (plan.stream_mib * MIB * 3) // 2 + 24 * 1024 * MIB


def check_room(folder: Path, free: int, plan: Plan) -> str | None:
    """Return what is wrong with the room in ``folder``, or None."""
    needed = room_needed(plan)
    if free >= needed:
        return None
    return f"{folder} has {free >> 30} GiB free, a run needs {needed >> 30}; name another folder"
