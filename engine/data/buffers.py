"""Reusable stripe buffers, and the bound on how many bytes of them a process holds.

Fresh memory costs about 1 ms per MiB in page faults on a virtual machine, ten times what reading
or coding it costs. So buffers are kept and used again.

The rule against deadlock: a request may always take one stripe (``acquire``), and takes
everything beyond that (more stripes per step, reading ahead) only when ``try_acquire`` grants it
at once. Nobody ever waits for memory.

Concurrency: thread-safe; the pool has one lock, held for a few list operations.
"""

from __future__ import annotations

import contextlib
import mmap
import threading
from typing import Final, TypeAlias

MAPPED_MIN: Final = 256 * 1024
"""Buffers from here on begin at a page, for writing past the page cache, and lie in huge pages
where there are any: the kernel then has fewer pages to look up."""
_HUGE_PAGE: Final = 2 << 20


Storage: TypeAlias = bytearray | memoryview


def _allocate(size: int) -> list[Storage]:
    """Return fresh storage of ``size`` bytes, several of them where they fill a huge page."""
    if size < MAPPED_MIN:
        return [bytearray(size)]
    count = max(1, _HUGE_PAGE // size)
    mapped = mmap.mmap(-1, size * count, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if size * count >= _HUGE_PAGE:
        with contextlib.suppress(OSError):  # a kernel without huge pages
            mapped.madvise(mmap.MADV_HUGEPAGE)
    whole = memoryview(mapped)
    return [whole[begin : begin + size] for begin in range(0, size * count, size)]


class Budget:
    """Bytes that may be held beyond one stripe per request. Guarded by its pool's lock."""

    __slots__ = ("held", "limit")

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.held = 0

    def try_acquire(self, size: int) -> bool:
        """Take ``size`` bytes, or return False.

        Nobody is granted more than a quarter of what is free: the fuller, the smaller the
        grants, so that slow clients who came first leave something for later ones.
        """
        if size * 4 > self.limit - self.held:
            return False
        self.held += size
        return True

    def take(self, size: int, count: int) -> int:
        """Take up to ``count`` times ``size`` bytes, by the same rule; return how many times."""
        count = max(0, min(count, (self.limit - self.held) // (4 * size)))
        self.held += count * size
        return count

    def release(self, size: int) -> None:
        self.held -= size


class Buffer:
    """``view`` is valid until ``release``, which may be called more than once."""

    __slots__ = ("_granted", "_pool", "_storage", "view")

    def __init__(self, pool: BufferPool, storage: Storage, granted: bool) -> None:
        self._pool: BufferPool | None = pool
        self._storage = storage
        self._granted = granted
        self.view = memoryview(storage)
        """At least as long as what was asked for; content is left over from earlier use."""

    def release(self) -> None:
        pool, self._pool = self._pool, None
        if pool is not None:
            pool._take_back(self._storage, self._granted)


class BufferPool:
    """Hands out buffers; keeps up to ``idle_max`` bytes of returned ones for the next."""

    __slots__ = ("_idle", "_idle_max", "_lock", "budget", "idle", "outstanding")

    SMALLEST = 4096

    def __init__(self, budget: Budget, *, idle_max: int) -> None:
        self._lock = threading.Lock()
        self.budget = budget
        self._idle_max = idle_max
        self._idle: dict[int, list[Storage]] = {}
        """By size; what was handed out longest ago comes first."""
        self.idle = 0
        """Bytes kept for reuse."""
        self.outstanding = 0
        """Bytes handed out, granted or not."""

    def acquire(self, size: int) -> Buffer:
        """Return a buffer of at least ``size`` bytes: the one that a request may always have."""
        with self._lock:
            return self._hand_out(size, granted=False)

    def try_acquire(self, size: int) -> Buffer | None:
        """Return a buffer of at least ``size`` bytes if the budget allows it now."""
        with self._lock:
            if not self.budget.try_acquire(self._class_of(size)):
                return None
            return self._hand_out(size, granted=True)

    def acquire_run(self, size: int, count: int, *, first: bool) -> list[Buffer]:
        """Return up to ``count`` buffers of at least ``size`` bytes: as many as the budget allows.

        Buffers of one size find their way back to whoever asks next, however many they are asked
        for at a time. ``first``: the request holds no buffer, so it gets one in any case.
        """
        with self._lock:
            bytes_each = self._class_of(size)
            granted = self.budget.take(bytes_each, count - first)
            return [
                self._hand_out(size, granted=not first or number > 0)
                for number in range(granted + first)
            ]

    def acquire_stripes(self, stripe_size: int, count: int, *, first: bool) -> Buffer | None:
        """Return a buffer of up to ``count`` stripes: as many as the budget allows, halving.

        ``first``: the request holds no buffer, so it gets one stripe in any case.
        """
        while count > 1:
            buffer = self.try_acquire(stripe_size * count)
            if buffer is not None:
                return buffer
            count //= 2
        return self.acquire(stripe_size) if first else self.try_acquire(stripe_size)

    def _class_of(self, size: int) -> int:
        # Powers of two and the steps at 5/4, 6/4 and 7/4: few classes, at most a quarter wasted.
        if size <= self.SMALLEST:
            return self.SMALLEST
        step = 1 << (max((size - 1).bit_length() - 3, 0))
        return -(-size // step) * step

    def _hand_out(self, size: int, *, granted: bool) -> Buffer:
        size = self._class_of(size)
        self.outstanding += size
        kept = self._idle.pop(size, None)
        if kept is not None:
            self._idle[size] = kept  # the sizes that are asked for stand last
        if kept:
            self.idle -= size
            return Buffer(self, kept.pop(), granted)
        first, *others = _allocate(size)
        if others:
            self.idle += size * len(others)
            self._idle.setdefault(size, []).extend(others)
        return Buffer(self, first, granted)

    def _take_back(self, storage: Storage, granted: bool) -> None:
        size = len(storage)
        with self._lock:
            self.outstanding -= size
            if granted:
                self.budget.release(size)
            if self.idle + size > self._idle_max >= size:
                self._forget_others(size)
            if self.idle + size <= self._idle_max:
                self.idle += size
                self._idle.setdefault(size, []).append(storage)

    def _forget_others(self, size: int) -> None:
        """Make room for one of ``size`` bytes: what was kept for other work goes first, or this
        work would take fresh memory each time."""
        for other in list(self._idle):
            if other == size:
                continue
            kept = self._idle[other]
            while kept and self.idle + size > self._idle_max:
                kept.pop()
                self.idle -= other
            if kept:
                return
            del self._idle[other]
