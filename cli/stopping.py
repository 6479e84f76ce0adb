"""How a serving process learns that it is to stop."""

from __future__ import annotations

import signal

import trio


async def stop_on_signal(
    shutdown: trio.Event, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
) -> None:
    """Set ``shutdown`` when SIGTERM comes; started once signals are received."""
    with trio.open_signal_receiver(signal.SIGTERM) as signals:
        task_status.started()
        async for _ in signals:
            shutdown.set()
