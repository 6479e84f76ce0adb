"""Opens that the kernel tries a second time.

An inode never shows two versions at once. So who opens a file that was just replaced, while others
have it open here, is answered ESTALE; the kernel looks the name up again, is given another inode,
and opens that. It does so once: were the file replaced once more in between, and open here once
more, the program would see ESTALE. So the second time the version that was found is opened, as
somebody has it open: it was current when the program had asked already.

Source: Linux, ``fs/namei.c``, ``do_filp_open``: the second walk is one with LOOKUP_REVAL, which
asks for every name, by the thread that asked first.
"""

from __future__ import annotations

import errno
from collections.abc import Callable

from fs.errors import Refused
from fs.inodes import Node

RETRY_S = 5.0
"""A second attempt comes at once; what comes later is another request."""

THREADS_MAX = 10_000


class Replaced(Refused):
    """The version that the inode shows is not the current one any more, and is open here."""

    def __init__(self, node: Node) -> None:
        super().__init__(errno.ESTALE, node.key)
        self.node = node


class _Retry:
    __slots__ = ("identity", "inode", "until")

    def __init__(self, identity: bytes, until: float) -> None:
        self.identity = identity
        self.inode = 0
        """That was looked up since; 0: none."""
        self.until = until


class Retries:
    """Whose second attempt is to come, by thread."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self.waiting: dict[int, _Retry] = {}
        """Empty nearly always, so that it costs nothing to ask first."""

    def refused(self, thread: int, node: Node) -> None:
        """``open`` was answered with ESTALE."""
        # Without a number (another machine's, so to speak) threads cannot be told apart.
        if thread:
            if len(self.waiting) >= THREADS_MAX:
                self.waiting.clear()
            self.waiting[thread] = _Retry(node.identity, self._clock() + RETRY_S)

    def looked_up(self, thread: int, node: Node | None) -> None:
        retry = self.waiting.get(thread)
        if retry is None:
            return
        if node is None:
            del self.waiting[thread]
        elif node.identity == retry.identity:
            retry.inode = node.inode

    def is_second(self, thread: int, node: Node) -> bool:
        """Say whether this ``open`` is a second attempt at an inode that was looked up for it."""
        retry = self.waiting.pop(thread, None)
        return retry is not None and retry.inode == node.inode and self._clock() < retry.until
