"""Bounds of an opened embedded store."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from engine.meta.sqlite_file import free_space

MIB = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbeddedOptions:
    """Bounds of one opened store. The defaults suit a serving process."""

    queue_max: int = 4096
    """Bodies that wait; more are refused with SlowDown."""
    batch_count_max: int = 256
    batch_size_max: int = 4 * MIB
    """Bytes written in one commit, exceeded by at most one transaction."""
    batch_s_max: float = 0.02
    """How long bodies may hold the trio thread before what they did is committed."""
    lock_s_max: float = 5.0
    """How long other processes may keep the write lock before callers get Unavailable."""
    close_s_max: float = 10.0
    """How long ``aclose`` waits for transactions that are queued."""
    checkpoint_pages: int = 1000
    """The log is copied into the database after so many pages of 8 KiB."""
    log_pages_max: int = 16_000
    """Beyond this the log's file is cut, waiting for readers for a moment."""
    cache_size: int = 24 * MIB
    """Bytes of page cache, for readers and for the writer each."""
    reserve_size: int = 16 * MIB
    """Disk space kept so that deletes work when the disk is full; 0 for none."""
    poll_s: float = 0.05
    """How often watches look for commits of other processes."""
    clock: Callable[[], float] = time.monotonic
    """Seconds; measures transactions and batches."""
    free_space: Callable[[Path], int] = free_space
    """Bytes free on the file system of a path."""
