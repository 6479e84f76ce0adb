"""One mount's view of the store: paths to nodes, nodes to attributes.

What every part of the mount shares is here: engine, options, inode table, open files, and how
long the kernel may believe an answer.
"""

from __future__ import annotations

import errno
from typing import NamedTuple

import structlog

from engine.engine import Engine
from engine.errors import NoSuchBucket
from engine.meta.records import VersionRecord
from engine.past import PastPaths
from engine.paths import Path, Paths
from engine.types import KEY_BYTES_MAX, BucketInfo
from fs.attributes import AttributeReader, Stat
from fs.disk_cache import DiskCache
from fs.errors import Refused
from fs.handles import FileHandle, Handles
from fs.inodes import InodeTable, Kind, Node, identity_of
from fs.names import NAME_BYTES_MAX, Mark, decode, goes_on, split
from fs.options import WINDOWS_SHARE, MountOptions
from fs.tally import Tally
from fs.windows import Windows

MARKED_BYTES_MAX = NAME_BYTES_MAX - len(Mark.FILE.value)
"""Of a name to which the mark of a file beside a directory can be added."""


class Place(NamedTuple):
    """Where a file name in a directory leads, whether something is there or not."""

    bucket: str
    text: str
    """Bucket and key path: without a slash at its end even for a directory."""
    mark: Mark


class Found(NamedTuple):
    node: Node
    stat: Stat
    record: VersionRecord | None
    """Of a file."""


class View:
    def __init__(
        self,
        engine: Engine,
        options: MountOptions,
        log: structlog.typing.FilteringBoundLogger,
        *,
        bucket: BucketInfo | None,
        started_ms: int,
        cache: DiskCache | None = None,
    ) -> None:
        """``bucket``: the one that is mounted; None: all of them."""
        self.cache = cache
        self.tally = Tally()
        self.engine = engine
        self.options = options
        self.log = log
        self.started_ms = started_ms
        at_ms = options.at_ms
        self.paths: Paths | PastPaths = engine.paths if at_ms is None else engine.paths_at(at_ms)
        self.attributes = AttributeReader(options)
        self.files: Handles[FileHandle] = Handles()
        self.windows = Windows(int(options.memory * WINDOWS_SHARE))
        if bucket is None:
            root = Node(Kind.TOP, "", b"", "", base=0, version_id="")
        else:
            prefix = options.prefix
            root = Node(
                Kind.DIRECTORY,
                bucket.name,
                bucket.bucket_id,
                prefix,
                base=len(prefix),
                version_id="",
            )
        self.table = InodeTable(root)
        self.unsaved: set[Node] = set()
        """Files that this mount made and did not commit yet."""
        self.settling: set[Node] = set()
        """Files that this mount is committing since their last descriptor was closed."""
        self.feed_followed = False
        """Changes by others reach the kernel: it may keep answers for long."""
        self.epoch = 0
        """Counts up with every page of changes: an answer from before may be stale."""

    def timeout_s(self, epoch: int) -> float:
        """Return how long the kernel may keep an answer that was begun in ``epoch``.

        A change that was announced before the answer reaches the kernel would be missed.
        """
        if epoch != self.epoch:
            return 0.0
        options = self.options
        return options.timeout_s if self.feed_followed else options.timeout_unfed_s

    # Names to places

    def place(self, parent: Node, name: bytes) -> Place:
        """Return where ``name`` in the directory ``parent`` leads.

        Raises Refused: ENOTDIR, ENAMETOOLONG. NotUtf8, ReservedName: no key has the name.
        """
        if len(name) > NAME_BYTES_MAX:
            raise Refused(errno.ENAMETOOLONG)
        decoded = decode(name)
        match parent.kind:
            case Kind.TOP:
                return Place(decoded.text, "", decoded.mark)
            case Kind.DIRECTORY:
                path = parent.key + decoded.text
                if len(path) * 4 > KEY_BYTES_MAX and len(path.encode()) > KEY_BYTES_MAX:
                    raise Refused(errno.ENAMETOOLONG)
                return Place(parent.bucket, path, decoded.mark)
            case _:
                raise Refused(errno.ENOTDIR)

    def can_be_new(self, parent: Node, place: Place) -> bool:
        """Say whether something new can have this name here: not in a ``%more`` folder, unless
        its whole name is too long."""
        return parent.base == len(parent.key) or _goes_on(parent, place)

    # Lookup and attributes

    async def look_up(self, parent: Node, name: bytes) -> Found | None:
        """Return what stands under a name now, or None. The node is not yet counted."""
        if name == b".":
            return await self.describe(parent)
        if name == b"..":
            return await self.describe(self.table.get(parent.parent))
        place = self.place(parent, name)
        if parent.kind is Kind.TOP:
            return await self._find_bucket(place)
        if place.mark is Mark.MORE:
            return await self._find_more(parent, place)
        path = await self.paths.find(place.bucket, place.text)
        within_more = parent.base != len(parent.key)
        if place.mark is Mark.NONE and path.is_directory:
            if not within_more or _goes_on(parent, place, NAME_BYTES_MAX):
                return self._directory(path, place.text + "/")
        elif within_more and not _goes_on(parent, place, NAME_BYTES_MAX, MARKED_BYTES_MAX):
            return None
        known = self.known_file(path.bucket.bucket_id, place.text)
        if known in self.unsaved and known.open_stat is not None:
            return Found(known, known.open_stat, path.record)
        if path.record is None:
            return None
        return self.file(path.bucket, place.text, path.record)

    async def _find_bucket(self, place: Place) -> Found | None:
        if place.mark is not Mark.NONE:
            return None
        try:
            bucket = await self.engine.bucket(place.bucket)
        except NoSuchBucket:
            return None
        return self.bucket(bucket)

    async def _find_more(self, parent: Node, place: Place) -> Found | None:
        """A ``%more`` folder is there if a name may go on behind it and something does."""
        begun = len(parent.key) - parent.base
        if not goes_on(place.text[parent.base :], begun):
            return None
        page = await self.paths.page(place.bucket, place.text, place.text, 1)
        if not page.entries:
            return None
        return self.more(page.bucket, place.text, parent.base)

    def bucket(self, bucket: BucketInfo) -> Found:
        node = self.table.find(Kind.DIRECTORY, bucket.name, bucket.bucket_id, "")
        return Found(node, self.attributes.of_directory(None, bucket.created_ms), None)

    def more(self, bucket: BucketInfo, prefix: str, base: int) -> Found:
        node = self.table.find(Kind.DIRECTORY, bucket.name, bucket.bucket_id, prefix, base=base)
        return Found(node, self.attributes.of_directory(None, bucket.created_ms), None)

    def _directory(self, path: Path, prefix: str) -> Found:
        node = self.table.find(Kind.DIRECTORY, path.bucket.name, path.bucket.bucket_id, prefix)
        stat = self.attributes.of_directory(path.marker, path.bucket.created_ms)
        return Found(node, stat, path.marker)

    def file(self, bucket: BucketInfo, key: str, record: VersionRecord) -> Found:
        """Return the node that shows this version of ``key``, with its attributes."""
        node = self.table.find(Kind.FILE, bucket.name, bucket.bucket_id, key)
        node = self.show(node, record.data_id)
        written = node.draft is not None or node in self.settling
        stat = node.open_stat if node.data_id != record.data_id or written else None
        return Found(node, stat or self.attributes.of_file(record), record)

    def show(self, node: Node, data_id: bytes) -> Node:
        """Return the node to show a version of its path by: itself, or, while an older version
        is open through it, another inode."""
        if node.data_id == data_id or self.is_written(node):
            return node
        if node.handles and node.data_id:
            self.table.detach(node)
            node = self.table.find(node.kind, node.bucket, node.bucket_id, node.key)
        elif node.handles:
            # Being made by this mount and not committed: its writer knows what it shows.
            return node
        node.stand_for(data_id)
        return node

    def is_written(self, node: Node) -> bool:
        """Say whether this mount has something to commit for the file, or is at it."""
        return (node.draft is not None and node.draft.dirty) or node in self.settling

    async def describe(self, node: Node) -> Found:
        """Return a node's attributes as they are now. Raises Refused (ENOENT)."""
        match node.kind:
            case Kind.TOP:
                stat = self.attributes.of_directory(None, self.started_ms)
                return Found(node, stat, None)
            case Kind.DIRECTORY:
                return await self._describe_directory(node)
            case _:
                return await self._describe_file(node)

    async def _describe_directory(self, node: Node) -> Found:
        prefix = node.key
        if node.unlinked:
            # Somebody has it open, or works in it.
            return Found(node, self.attributes.of_directory(None, self.started_ms), None)
        if not prefix or node.base != len(prefix):
            bucket = await self.engine.bucket(node.bucket)
            return Found(node, self.attributes.of_directory(None, bucket.created_ms), None)
        path = await self.paths.find(node.bucket, prefix[:-1])
        if not path.is_directory and node is not self.table.root:
            raise Refused(errno.ENOENT)
        stat = self.attributes.of_directory(path.marker, path.bucket.created_ms)
        return Found(node, stat, path.marker)

    async def _describe_file(self, node: Node) -> Found:
        if node.open_stat is not None:
            return Found(node, node.open_stat, None)
        if node.unlinked:
            raise Refused(errno.ENOENT)
        path = await self.paths.find(node.bucket, node.key)
        if path.record is None:
            raise Refused(errno.ENOENT)
        node.stand_for(path.record.data_id)
        return Found(node, self.attributes.of_file(path.record), path.record)

    def known_file(self, bucket_id: bytes, key: str) -> Node | None:
        return self.table.known(identity_of(Kind.FILE, bucket_id, key))

    def known_directory(self, bucket_id: bytes, prefix: str) -> Node | None:
        root = self.table.root
        if root.kind is Kind.DIRECTORY and (root.bucket_id, root.key) == (bucket_id, prefix):
            return root
        return self.table.known(identity_of(Kind.DIRECTORY, bucket_id, prefix))


def _goes_on(parent: Node, place: Place, *rooms: int) -> bool:
    """Say whether what is in a ``%more`` folder really has too long a name."""
    component = place.text[parent.base :]
    begun = len(parent.key) - parent.base
    return any(next_piece(component, begun, room=room) for room in rooms)


def next_piece(
    component: str, begun: int, *, room: int = NAME_BYTES_MAX
) -> tuple[str, bool] | None:
    """Return the piece of a component behind its first ``begun`` characters, and whether it is
    the last one; None: the component is not cut there."""
    pieces = split(component, room=room)
    for position, piece in enumerate(pieces):
        if begun == 0:
            return piece, position == len(pieces) - 1
        begun -= len(piece)
        if begun < 0:
            return None
    return None
