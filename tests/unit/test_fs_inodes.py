"""Inode numbers: stable, counted exactly, and never of two versions at once."""

from __future__ import annotations

import errno

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

import fs.inodes
from fs.errors import Refused
from fs.inodes import ROOT_INODE, InodeTable, Kind, Node

BUCKET_ID = b"12345678"


def make_table() -> InodeTable:
    return InodeTable(Node(Kind.DIRECTORY, "bucket", BUCKET_ID, "", base=0, version_id=""))


def find(table: InodeTable, key: str) -> Node:
    kind = Kind.DIRECTORY if key.endswith("/") else Kind.FILE
    return table.find(kind, "bucket", BUCKET_ID, key)


def test_a_path_has_the_same_number_in_every_mount() -> None:
    assert find(make_table(), "a/b").inode == find(make_table(), "a/b").inode


def test_a_file_and_a_directory_of_one_name_differ() -> None:
    table = make_table()
    assert find(table, "a").inode != find(table, "a/").inode


def test_only_an_inode_of_one_version_that_was_never_opened_has_no_pages() -> None:
    table = make_table()
    node = find(table, "a")
    table.looked_up(node, ROOT_INODE)
    node.stand_for(b"one")
    node.stand_for(b"one")
    assert node.pristine
    node.stand_for(b"two")
    assert not node.pristine
    table.forget(node.inode, 1)
    again = find(table, "a")
    assert again.pristine
    table.opened(again)
    table.looked_up(again, ROOT_INODE)
    table.closed(again)
    assert not again.pristine


def test_paths_with_the_same_hash_get_different_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    real = fs.inodes.blake2b

    def narrow(data: bytes, *, digest_size: int) -> object:
        # Salted tries differ, first tries do not.
        return real(data[-2:] if data.endswith(b"\0") else b"", digest_size=digest_size)

    monkeypatch.setattr(fs.inodes, "blake2b", narrow)
    table = make_table()
    one, other = find(table, "a"), find(table, "b")
    table.looked_up(one, ROOT_INODE)
    assert one.inode != other.inode
    assert find(table, "a") is one
    assert find(table, "b") is other


def test_a_forgotten_inode_is_stale() -> None:
    table = make_table()
    node = find(table, "a")
    table.looked_up(node, ROOT_INODE)
    table.looked_up(node, ROOT_INODE)
    table.forget(node.inode, 1)
    assert table.get(node.inode) is node
    table.forget(node.inode, 1)
    with pytest.raises(Refused) as caught:
        table.get(node.inode)
    assert caught.value.errno == errno.ESTALE


def test_an_open_file_outlives_being_forgotten() -> None:
    table = make_table()
    node = find(table, "a")
    table.looked_up(node, ROOT_INODE)
    table.opened(node)
    table.forget(node.inode, 1)
    assert table.get(node.inode) is node
    table.closed(node)
    assert len(table) == 1


def test_a_detached_version_keeps_its_number_and_the_path_gets_another() -> None:
    table = make_table()
    old = find(table, "a")
    table.looked_up(old, ROOT_INODE)
    table.opened(old)
    table.detach(old)
    new = find(table, "a")
    assert new.inode != old.inode
    assert table.get(old.inode) is old
    table.looked_up(new, ROOT_INODE)
    table.forget(old.inode, 1)
    table.closed(old)
    assert find(table, "a") is new


def test_what_is_below_a_moved_directory_moves_with_it() -> None:
    table = make_table()
    directory, inside, beside = find(table, "a/"), find(table, "a/b/c"), find(table, "ab")
    for node in (directory, inside, beside):
        table.looked_up(node, ROOT_INODE)
    table.move(directory, "z/")
    assert (directory.key, inside.key, beside.key) == ("z/", "z/b/c", "ab")
    assert find(table, "z/b/c") is inside
    assert find(table, "a/b/c") is not inside


class Counting(RuleBasedStateMachine):
    """The table against plain counts."""

    keys = st.sampled_from(["a", "b", "a/", "a/b"])

    def __init__(self) -> None:
        super().__init__()
        self.table = make_table()
        self.lookups: dict[int, int] = {}
        self.handles: dict[int, int] = {}

    @rule(key=keys)
    def look_up(self, key: str) -> None:
        node = find(self.table, key)
        self.table.looked_up(node, ROOT_INODE)
        self.lookups[node.inode] = self.lookups.get(node.inode, 0) + 1

    @precondition(lambda self: self.known())
    @rule(data=st.data())
    def forget(self, data: st.DataObject) -> None:
        inode = data.draw(st.sampled_from(sorted(i for i, n in self.lookups.items() if n)))
        count = data.draw(st.integers(1, self.lookups[inode]))
        self.lookups[inode] -= count
        self.table.forget(inode, count)

    @precondition(lambda self: self.known())
    @rule(data=st.data())
    def open(self, data: st.DataObject) -> None:
        inode = data.draw(st.sampled_from(sorted(i for i, n in self.lookups.items() if n)))
        self.handles[inode] = self.handles.get(inode, 0) + 1
        self.table.opened(self.table.get(inode))

    @precondition(lambda self: any(self.handles.values()))
    @rule(data=st.data())
    def close(self, data: st.DataObject) -> None:
        inode = data.draw(st.sampled_from(sorted(i for i, n in self.handles.items() if n)))
        self.handles[inode] -= 1
        self.table.closed(self.table.get(inode))

    @precondition(lambda self: self.known())
    @rule(data=st.data())
    def replace(self, data: st.DataObject) -> None:
        inode = data.draw(st.sampled_from(sorted(i for i, n in self.lookups.items() if n)))
        self.table.detach(self.table.get(inode))

    def known(self) -> bool:
        return any(self.lookups.values())

    @invariant()
    def table_has_what_is_needed_and_nothing_else(self) -> None:
        needed = {i for i, n in self.lookups.items() if n} | {
            i for i, n in self.handles.items() if n
        }
        assert {node.inode for node in self.table} == needed | {ROOT_INODE}


TestCounting = Counting.TestCase
TestCounting.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
