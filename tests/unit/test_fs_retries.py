"""Who is at the second attempt to open a file, told by thread and by what was looked up."""

from __future__ import annotations

from fs.inodes import Kind, Node
from fs.retries import RETRY_S, THREADS_MAX, Retries


def node(inode: int, key: str = "file") -> Node:
    made = Node(Kind.FILE, "bucket", b"id", key, base=0, version_id="")
    made.inode = inode
    return made


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_the_inode_that_was_looked_up_last_is_opened_once() -> None:
    retries = Retries(Clock())
    old, new, newer = node(5), node(6), node(7)
    retries.refused(1, old)
    retries.looked_up(1, node(2, "another"))
    retries.looked_up(1, new)
    retries.looked_up(1, newer)
    assert retries.is_second(1, newer)
    assert not retries.is_second(1, newer)
    assert not retries.waiting


def test_other_requests_are_no_second_attempts() -> None:
    clock = Clock()
    retries = Retries(clock)
    old, new = node(5), node(6)
    assert not retries.is_second(1, new)
    retries.refused(1, old)
    retries.looked_up(2, new)
    assert not retries.is_second(2, new), "another thread"
    assert not retries.is_second(1, new), "not looked up"
    retries.refused(1, old)
    retries.looked_up(1, new)
    assert not retries.is_second(1, old), "another inode"
    retries.refused(1, old)
    retries.looked_up(1, new)
    clock.now = RETRY_S
    assert not retries.is_second(1, new), "too late"
    retries.refused(1, old)
    retries.looked_up(1, None)
    retries.looked_up(1, new)
    assert not retries.is_second(1, new), "it was gone"
    retries.refused(0, old)
    retries.looked_up(0, new)
    assert not retries.is_second(0, new), "a thread without a number"


def test_threads_that_never_come_again_take_little_memory() -> None:
    retries = Retries(Clock())
    for thread in range(1, THREADS_MAX + 10):
        retries.refused(thread, node(5))
    assert 0 < len(retries.waiting) <= THREADS_MAX
