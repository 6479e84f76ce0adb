"""Inodes: which number stands for which path, as long as the kernel knows it.

A number is a hash of the bucket's id and the path, so it is the same in every mount and after
every remount. One number never shows two versions at once: while an older version is still open
through it, a newer one of the same path gets another number (``detach``). A replaced object that
nobody has open keeps its number.

The kernel counts how often it was given an inode, and says when it forgets; a node stays in the
table until that count and the count of open handles are both zero.

Concurrency: all methods are synchronous, so each is atomic to the tasks of the mount.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from enum import Enum
from hashlib import blake2b
from typing import TYPE_CHECKING

from fs.attributes import Stat
from fs.errors import Refused

if TYPE_CHECKING:
    from fs.draft import Draft

ROOT_INODE = 1
_INODE_MASK = (1 << 63) - 1


class Kind(Enum):
    TOP = b"t"
    """All buckets are folders in it."""
    DIRECTORY = b"d"
    """``key`` is a prefix: empty, with a slash at its end, or in a ``%more`` folder without."""
    FILE = b"f"
    """Also a symbolic link; ``key`` is an object's."""
    VERSIONS = b"v"
    """A ``.versions`` folder of the directory ``key``."""
    VERSIONS_OF = b"w"
    """The folder in it of the versions of the object ``key``."""
    VERSION = b"o"
    """One version of the object ``key``: ``version_id`` says which."""


class Node:
    """One inode that the kernel knows."""

    __slots__ = (
        "base",
        "bucket",
        "bucket_id",
        "cached",
        "changed",
        "data_id",
        "draft",
        "dropping",
        "handles",
        "inode",
        "key",
        "kind",
        "lookups",
        "open_stat",
        "parent",
        "pristine",
        "size_unsure",
        "unlinked",
        "version_id",
    )

    def __init__(
        self, kind: Kind, bucket: str, bucket_id: bytes, key: str, *, base: int, version_id: str
    ) -> None:
        self.kind = kind
        self.bucket = bucket
        self.bucket_id = bucket_id
        self.key = key
        self.base = base
        """Of a directory: where in ``key`` the component begins that its entries continue;
        ``len(key)`` except in ``%more`` folders."""
        self.version_id = version_id
        self.inode = 0
        self.lookups = 0
        """How often the kernel was given this inode and did not forget it."""
        self.handles = 0
        """Open files of it."""
        self.data_id = b""
        """Of the version that the inode shows; empty: not looked at yet, or being made."""
        self.cached = b""
        """Of the version whose bytes the kernel may have in its page cache."""
        self.open_stat: Stat | None = None
        """Of the version that is open, while one is."""
        self.pristine = True
        """Never opened, and of one version only: the kernel has none of its pages and waits for
        none, and the size that it knows is that version's."""
        self.changed = False
        """The kernel may know the size of another version than that for which it stands; who
        opens the file sees to it."""
        self.size_unsure = False
        """The file's size has changed without the kernel's doing, so it may go by another one. For
        good: it drops answers to GETATTR that a notice overtakes, and nobody sees which."""
        self.dropping = 0
        """Open files whose ``open`` told the kernel to forget its pages, which it may not have
        done yet: nothing was heard of them since."""
        self.draft: Draft | None = None
        """What this mount writes to the file (``fs.writing``)."""
        self.unlinked = False
        """Its name was taken away while it is open."""
        self.parent = ROOT_INODE
        """The inode in which it was looked up last; for ``..``."""

    @property
    def identity(self) -> bytes:
        return identity_of(self.kind, self.bucket_id, self.key, self.version_id)

    def stand_for(self, data_id: bytes) -> None:
        """Let the inode be that of a version of its path from now on."""
        if self.data_id and self.data_id != data_id:
            self.pristine = False
            self.changed = self.size_unsure = True
        self.data_id = data_id

    @property
    def is_directory(self) -> bool:
        return self.kind not in (Kind.FILE, Kind.VERSION)


def identity_of(kind: Kind, bucket_id: bytes, key: str, version_id: str = "") -> bytes:
    """Return what tells one path from all others."""
    if version_id:
        return kind.value + bucket_id + version_id.encode() + b"\0" + key.encode()
    return kind.value + bucket_id + key.encode()


class InodeTable:
    """All nodes that the kernel knows, by inode and by identity."""

    def __init__(self, root: Node) -> None:
        self._nodes: dict[int, Node] = {}
        self._paths: dict[bytes, Node] = {}
        self.root = root
        root.inode = ROOT_INODE
        root.lookups = 1
        self._nodes[ROOT_INODE] = root
        self._paths[root.identity] = root

    def __len__(self) -> int:
        return len(self._nodes)

    def __iter__(self) -> Iterator[Node]:
        return iter(list(self._nodes.values()))

    def get(self, inode: int) -> Node:
        """Raises Refused (ESTALE): the kernel names an inode that it was not given."""
        node = self._nodes.get(inode)
        if node is None:
            raise Refused(errno.ESTALE, f"inode {inode}")
        return node

    def directory(self, inode: int) -> Node:
        """Raises Refused: ESTALE, ENOTDIR."""
        node = self.get(inode)
        if not node.is_directory:
            raise Refused(errno.ENOTDIR)
        return node

    def known(self, identity: bytes) -> Node | None:
        """Return the node that stands for a path now, if the kernel knows one."""
        return self._paths.get(identity)

    def find(
        self,
        kind: Kind,
        bucket: str,
        bucket_id: bytes,
        key: str,
        *,
        base: int | None = None,
        version_id: str = "",
    ) -> Node:
        """Return the path's node, a new one if need be; it is dropped unless ``looked_up`` or
        ``opened`` follows before the next await."""
        identity = identity_of(kind, bucket_id, key, version_id)
        node = self._paths.get(identity)
        if node is None:
            node = Node(
                kind,
                bucket,
                bucket_id,
                key,
                base=len(key) if base is None else base,
                version_id=version_id,
            )
            self._add(node, identity)
        return node

    def _add(self, node: Node, identity: bytes) -> None:
        salt = b""
        inode = ROOT_INODE
        # Taken: by another path with the same hash, or by an older version that is still open.
        while inode <= ROOT_INODE or inode in self._nodes:
            digest = blake2b(identity + salt, digest_size=8).digest()
            inode = int.from_bytes(digest, "big") & _INODE_MASK
            salt += b"\0"
        node.inode = inode
        self._nodes[inode] = node
        self._paths[identity] = node

    def looked_up(self, node: Node, parent: int) -> None:
        """Count that the kernel is given the inode, by one reply."""
        node.lookups += 1
        node.parent = parent

    def opened(self, node: Node) -> None:
        node.handles += 1
        node.pristine = False

    def closed(self, node: Node) -> None:
        node.handles -= 1
        if node.handles == 0:
            node.open_stat = None
        self.drop_unused(node)

    def forget(self, inode: int, count: int) -> None:
        node = self._nodes.get(inode)
        if node is not None and node is not self.root:
            node.lookups -= count
            self.drop_unused(node)

    def drop_unused(self, node: Node) -> None:
        """Remove a node that neither the kernel nor an open file needs."""
        if node.lookups <= 0 and node.handles <= 0 and node is not self.root:
            self._nodes.pop(node.inode, None)
            self.detach(node)

    def detach(self, node: Node) -> None:
        """Let the path have another inode from now on; this one lives on for who has it."""
        identity = node.identity
        if self._paths.get(identity) is node:
            del self._paths[identity]

    def move(self, node: Node, key: str) -> None:
        """Let the node stand for another key of its bucket; who stood there is detached.

        Of a directory, everything below moves with it. Costs O(nodes) then.
        """
        moved = [(node, key)]
        if node.is_directory:
            old = node.key
            moved += [
                (other, key + other.key[len(old) :])
                for other in self._nodes.values()
                if other is not node
                and other.bucket_id == node.bucket_id
                and other.key.startswith(old)
            ]
        for other, _ in moved:
            self.detach(other)
        for other, new_key in moved:
            other.base += len(new_key) - len(other.key)
            other.key = new_key
            replaced = self._paths.get(other.identity)
            if replaced is not None:
                self.detach(replaced)
            self._paths[other.identity] = other
