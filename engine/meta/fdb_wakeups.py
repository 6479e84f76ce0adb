"""How a future of FoundationDB's client wakes the task that waits for it.

The client calls a future's callback on its network thread. Were the callback Python, that thread
would have to take the interpreter lock once per future, from the thread that serves requests. So
the callback is a C function that every libc has: ``putw(int, FILE *)``. Called as
``putw(future, stream)`` it writes the low four bytes of the future's address into a pipe. One task
reads the pipe; one read names all futures that became ready since the last one, and wakes their
tasks together. No thread per call, and no Python on the network thread at all.

Decision record: docs/decisions/0010-foundationdb.md.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import trio

from engine.errors import SlowDown
from engine.meta.fdb_library import Library, c_stream

WAITING_MAX = 4000
"""Their ids must fit into the pipe, 16 KiB at least: a writer never has to wait for its reader."""

_ID_SIZE = 4
_ID_MASK = 0xFFFF_FFFF
_READ_SIZE = 64 * 1024


class Wakeups:
    """The futures that tasks of one trio thread wait for."""

    def __init__(self, library: Library) -> None:
        self._library = library
        self._read_fd, write_fd = os.pipe()
        os.set_blocking(self._read_fd, False)
        self._putw, self._stream, self._close_stream = c_stream(write_fd)
        self._waiting: dict[int, list[tuple[int, trio.lowlevel.Task | None]]] = {}
        """By id; None for a future that nobody waits for any more. Hardly ever two of one id."""
        self._count = 0
        self._idle = trio.Event()

    async def wait(self, future: int) -> None:
        """Return when the future is ready; the caller then owns it and destroys it.

        Cancelled, the future is cancelled too, and destroyed here.

        Raises: SlowDown: too many tasks wait.
        """
        library = self._library
        if library.is_ready(future):
            return
        if self._count >= WAITING_MAX:
            library.destroy(future)
            raise SlowDown("too many metadata operations wait for an answer")
        number = future & _ID_MASK
        entry = (future, trio.lowlevel.current_task())
        known = self._waiting.setdefault(number, [])
        known.append(entry)
        self._count += 1

        def abort(_raise_cancel: Callable[[], Any]) -> trio.lowlevel.Abort:
            known[known.index(entry)] = (future, None)
            library.cancel(future)
            return trio.lowlevel.Abort.SUCCEEDED

        library.set_callback(future, self._putw, self._stream)
        await trio.lowlevel.wait_task_rescheduled(abort)

    async def run(self) -> None:
        """Wake tasks for ever."""
        while True:
            await trio.lowlevel.wait_readable(self._read_fd)
            self._wake(os.read(self._read_fd, _READ_SIZE))

    def _wake(self, ids: bytes) -> None:
        reschedule = trio.lowlevel.reschedule
        waiting = self._waiting
        for number in memoryview(ids).cast("I"):
            entries = waiting.pop(number)
            if len(entries) > 1:
                entries = self._take_ready(number, entries)
            for future, task in entries:
                self._count -= 1
                if task is None:
                    self._library.destroy(future)
                else:
                    reschedule(task)
        if not self._count:
            self._idle.set()

    def _take_ready(
        self, number: int, entries: list[tuple[int, trio.lowlevel.Task | None]]
    ) -> list[tuple[int, trio.lowlevel.Task | None]]:
        """Of futures whose addresses end alike, return one that is ready and keep the others."""
        ready = next(entry for entry in entries if self._library.is_ready(entry[0]))
        entries.remove(ready)
        self._waiting[number] = entries
        return [ready]

    def cancel_all(self) -> None:
        """Let every future that is waited for answer that it was cancelled."""
        for entries in self._waiting.values():
            for future, _ in entries:
                self._library.cancel(future)

    async def settle(self) -> None:
        """Wait until every future has answered; ``run`` must still be running."""
        while self._count:
            self._idle = trio.Event()
            await self._idle.wait()

    def close(self) -> None:
        """Close the pipe: after ``settle``, and when ``run`` has ended."""
        self._close_stream()
        os.close(self._read_fd)
