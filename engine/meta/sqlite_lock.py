"""The right to write: one process at a time, in the order in which they asked.

SQLite has a write lock of its own, but waiting for it is polling, and whoever polls last may
never win. Here waiting is ``flock(2)``, which sleeps in the kernel.

Two files make it fair. A process that has just unlocked would take the lock again before the
kernel has woken those that wait for it. So everyone passes the *turn* first and keeps it while it
waits for the *lock*: a process that comes back finds the turn taken and queues up behind.
"""

from __future__ import annotations

import fcntl
import os
import threading
from pathlib import Path


class WriteLock:
    """An exclusive lock between processes, and between stores opened in one process.

    Not for concurrent use, except that ``abandon`` may be called while a thread is in ``acquire``.
    """

    __slots__ = ("_abandoned", "_guard", "_held", "_lock", "_turn")

    def __init__(self, path: Path) -> None:
        """Open (make) ``<path>-lock`` and ``<path>-turn``.

        Raises: OSError.
        """
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC
        self._lock = os.open(f"{path}-lock", flags, 0o600)
        try:
            self._turn = os.open(f"{path}-turn", flags, 0o600)
        except OSError:
            os.close(self._lock)
            raise
        self._abandoned = False
        self._held = False
        self._guard = threading.Lock()

    def acquire_nowait(self) -> bool:
        """Take the lock if it is free and nobody waits for it; never blocks."""
        try:
            fcntl.flock(self._turn, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        finally:
            fcntl.flock(self._turn, fcntl.LOCK_UN)
        return True

    def acquire(self) -> bool:
        """Block until the lock is ours; False if it was abandoned meanwhile (and is closed)."""
        fcntl.flock(self._turn, fcntl.LOCK_EX)
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        fcntl.flock(self._turn, fcntl.LOCK_UN)
        with self._guard:
            if self._abandoned:
                self.close()
            self._held = not self._abandoned
            return self._held

    def abandon(self) -> None:
        """Give up a lock that another thread waits for: it is closed as soon as it is had.

        The caller must not use this object again: the thread may have got the lock just now.
        """
        with self._guard:
            self._abandoned = True
            if self._held:
                self.close()

    def release(self) -> None:
        self._held = False
        fcntl.flock(self._lock, fcntl.LOCK_UN)

    def close(self) -> None:
        """Close the files, which also unlocks."""
        os.close(self._lock)
        os.close(self._turn)
