"""Listing directories: pages of keys as entries with attributes, in constant memory.

A position, which the kernel hands back as it likes, is a page's number and a place on the page.
The two pages last read are kept, since the kernel asks again for what did not fit. For an older
position the page is read again from the key at which it began.

While the kernel knows fewer inodes than the limit, entries come with attributes, so that it need
not ask for each; beyond it they come as names with types, and the mount's memory stays flat.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

import pyfuse3

from engine.paths import PathEntry, PathPage
from engine.types import BucketInfo
from fs import names_only
from fs.attributes import Stat, fill
from fs.inodes import Kind, Node
from fs.names import NAME_BYTES_MAX, Mark, encode, split
from fs.view import View, next_piece

PAGE = 1000
POSITION_BITS = 20
"""Of a position: the place on the page."""

_FIRST = 2
"""Position 0 is ``.``, 1 is ``..``."""

_SHORT = NAME_BYTES_MAX // 4 - len(Mark.FILE.value)
"""So many characters fit in a file name whatever they are."""


class Entry(NamedTuple):
    name: bytes
    kind: Kind
    bucket: BucketInfo
    key: str
    base: int
    stat: Stat
    data_id: bytes
    version_id: str = ""


class Page(NamedTuple):
    entries: list[Entry]
    next_after: str | None
    last_more: bytes


class DirectoryHandle(Protocol):
    async def read(self, position: int, token: pyfuse3.ReaddirToken) -> None:
        """Give entries behind ``position`` to the kernel until it has enough."""


class PageSource(Protocol):
    """Where a directory's entries come from."""

    async def page(self, after: str, last_more: bytes) -> Page:
        """Return the entries behind ``after``; ``last_more`` is the last ``%more`` folder that
        was on the page before."""


class Directories:
    """Opens the directories of one mount."""

    def __init__(self, view: View) -> None:
        self._view = view
        self._names_only = names_only.can_clear()
        if not self._names_only:
            view.log.warning("pyfuse3 has changed: listing huge directories takes memory")

    def open(self, node: Node) -> DirectoryHandle:
        view = self._view
        if node.kind is Kind.TOP:
            return self.listing(node, BucketSource(view))
        return self.listing(node, KeySource(view, node))

    def listing(self, node: Node, source: PageSource) -> DirectoryHandle:
        return Listing(self._view, node, source, can_clear=self._names_only)


class BucketSource:
    """All buckets as folders."""

    def __init__(self, view: View) -> None:
        self._view = view

    async def page(self, after: str, last_more: bytes) -> Page:
        view = self._view
        buckets, more = await view.engine.list_buckets(after=after, limit=PAGE)
        entries = [
            Entry(
                bucket.name.encode(),
                Kind.DIRECTORY,
                bucket,
                "",
                0,
                view.attributes.of_directory(None, bucket.created_ms),
                b"",
            )
            for bucket in buckets
        ]
        return Page(entries, buckets[-1].name if more else None, b"")


class KeySource:
    """What is below a prefix."""

    def __init__(self, view: View, node: Node) -> None:
        self._view = view
        self._node = node
        self._bucket = node.bucket
        self._prefix = node.key
        self._base = node.base

    async def page(self, after: str, last_more: bytes) -> Page:
        prefix = self._node.key
        if prefix != self._prefix:
            # The directory, or one that it is in, was renamed while it is open.
            if after:
                after = prefix + after[len(self._prefix) :]
            self._prefix, self._base = prefix, self._node.base
        # Before the keys are read: what is committed meanwhile is in one of the two, or in both.
        unsaved = self._unsaved()
        found = await self._view.paths.page(self._bucket, self._prefix, after, PAGE)
        entries: list[Entry] = []
        plain = self._base == len(self._prefix)
        attributes = self._view.attributes
        created_ms = found.bucket.created_ms
        for entry in found.entries:
            key, is_directory, version, shadowed = entry
            component = key[self._base : -1] if is_directory else key[self._base :]
            if not plain or len(component) > _SHORT:
                more = self._long(found, entry, component)
                if more is not None and more.name != last_more:
                    entries.append(more)
                    if more.name.endswith(Mark.MORE.value.encode()):
                        last_more = more.name
                continue
            if is_directory:
                stat = attributes.of_directory(version, created_ms)
                entries.append(
                    Entry(encode(component), Kind.DIRECTORY, found.bucket, key, len(key), stat, b"")
                )
                continue
            assert version is not None
            if not component and not version.size:
                continue  # the directory itself, as an object
            name = encode(component, Mark.FILE if shadowed else Mark.NONE)
            stat = attributes.of_file(version)
            entries.append(Entry(name, Kind.FILE, found.bucket, key, 0, stat, version.data_id))
        if unsaved:
            entries += self._not_listed(unsaved, found, after)
        return Page(entries, found.next_after, last_more)

    def _unsaved(self) -> list[tuple[Node, Stat]]:
        """Return the files here that this mount made and did not commit yet."""
        return [
            (node, node.open_stat)
            for node in self._view.unsaved
            if node.open_stat is not None
            and node.bucket == self._bucket
            and node.key.startswith(self._prefix)
            and "/" not in node.key[self._base :]
        ]

    def _not_listed(
        self, unsaved: list[tuple[Node, Stat]], found: PathPage, after: str
    ) -> list[Entry]:
        """Return those that belong on this page by their keys and are not on it."""
        last = found.next_after
        listed = {entry.key for entry in found.entries}
        return [
            Entry(
                encode(node.key[len(self._prefix) :]),
                Kind.FILE,
                found.bucket,
                node.key,
                0,
                stat,
                b"",
            )
            for node, stat in unsaved
            if after < node.key
            and (last is None or node.key <= last)
            and node.key not in listed
            and node.bucket_id == found.bucket.bucket_id
        ]

    def _long(self, found: PathPage, entry: PathEntry, component: str) -> Entry | None:
        """Return the entry for a component that is, or may be, cut into pieces; None: it does
        not belong into this ``%more`` folder."""
        begun = len(self._prefix) - self._base
        mark = Mark.FILE if entry.shadowed else Mark.NONE
        room = NAME_BYTES_MAX - len(mark.value)
        piece = next_piece(component, begun, room=room)
        if piece is None:
            return None
        text, is_last = piece
        attributes = self._view.attributes
        created_ms = found.bucket.created_ms
        if not is_last:
            return Entry(
                encode(text, Mark.MORE),
                Kind.DIRECTORY,
                found.bucket,
                self._prefix + text,
                self._base,
                attributes.of_directory(None, created_ms),
                b"",
            )
        if entry.is_directory:
            stat = attributes.of_directory(entry.version, created_ms)
            key = entry.key
            return Entry(encode(text), Kind.DIRECTORY, found.bucket, key, len(key), stat, b"")
        assert entry.version is not None
        if split(component, room=room) != split(component):
            mark = Mark.NONE  # apart from the directory already
        stat = attributes.of_file(entry.version)
        return Entry(
            encode(text, mark), Kind.FILE, found.bucket, entry.key, 0, stat, entry.version.data_id
        )


class _Start(NamedTuple):
    after: str
    last_more: bytes


class Listing:
    """One open directory.

    Concurrency: the kernel serializes requests on one descriptor; two descriptors are two of these.
    """

    def __init__(self, view: View, node: Node, source: PageSource, *, can_clear: bool) -> None:
        self._view = view
        self._node = node
        self._source = source
        self._can_clear = can_clear
        self._starts = [_Start("", b"")]
        """Where each page begins that is known so far."""
        self._pages: dict[int, Page] = {}

    async def read(self, position: int, token: pyfuse3.ReaddirToken) -> None:
        if position == 0:
            # Also rewinddir: what is shown then is the directory as it is then.
            self._starts = [_Start("", b"")]
            self._pages = {}
        epoch = self._view.epoch
        entry = pyfuse3.EntryAttributes()
        while position < _FIRST:
            if not self._reply_dots(token, entry, position):
                return
            position += 1
        number = (position - _FIRST) >> POSITION_BITS
        place = (position - _FIRST) & ((1 << POSITION_BITS) - 1)
        while (page := await self._page(number)) is not None:
            if not self._reply_page(token, entry, page, number, place, epoch):
                return
            number, place = number + 1, 0

    async def _page(self, number: int) -> Page | None:
        """Return a page; None: there is none."""
        page = self._pages.get(number)
        if page is None:
            if number >= len(self._starts):
                return None
            start = self._starts[number]
            page = await self._source.page(start.after, start.last_more)
            if page.next_after is not None and number + 1 == len(self._starts):
                self._starts.append(_Start(page.next_after, page.last_more))
            self._pages = {key: kept for key, kept in self._pages.items() if key == number - 1}
            self._pages[number] = page
        return page

    def _reply_dots(
        self, token: pyfuse3.ReaddirToken, entry: pyfuse3.EntryAttributes, position: int
    ) -> bool:
        """``.`` and ``..``: the kernel takes number and type, and does not count them."""
        node = self._node
        stat = self._view.attributes.of_directory(None, self._view.started_ms)
        fill(entry, node.inode if position == 0 else node.parent, stat, 0.0)
        return pyfuse3.readdir_reply(token, (b".", b"..")[position], entry, position + 1)

    def _reply_page(
        self,
        token: pyfuse3.ReaddirToken,
        entry: pyfuse3.EntryAttributes,
        page: Page,
        number: int,
        place: int,
        epoch: int,
    ) -> bool:
        """Return whether the kernel took all of the page from ``place`` on."""
        view = self._view
        table = view.table
        timeout_s = view.timeout_s(epoch)
        parent = self._node.inode
        entries = page.entries
        position = _FIRST + (number << POSITION_BITS) + place
        limit = view.options.known_inodes_max
        for index in range(place, len(entries)):
            name, kind, bucket, key, base, stat, data_id, version_id = entries[index]
            node = table.find(
                kind, bucket.name, bucket.bucket_id, key, base=base, version_id=version_id
            )
            # A file that was not committed when it was listed has no data id.
            if kind is Kind.FILE and data_id and node.data_id != data_id:
                node = view.show(node, data_id)
                if node.data_id != data_id and node.open_stat is not None:
                    stat = node.open_stat
            written = view.is_written(node)
            if written and node.open_stat is not None:
                stat = node.open_stat
            fill(entry, node.inode, stat, 0.0 if written else timeout_s)
            remembered = node.lookups > 0 or len(table) <= limit or not self._can_clear
            if not remembered:
                names_only.clear(entry)
            position += 1
            taken = pyfuse3.readdir_reply(token, name, entry, position)
            if taken and remembered:
                table.looked_up(node, parent)
            elif not node.lookups:
                table.drop_unused(node)
            if not taken:
                return False
        return True
