"""What others change reaches the kernel: the change feed, as invalidations.

Invalidating an entry waits in the kernel for requests on the same directory, which this mount
answers; so it happens in a thread, from a task of its own, and never from a handler.

A directory that still exists is never invalidated: who works in it would find it "deleted".
"""

from __future__ import annotations

from contextlib import aclosing
from typing import NamedTuple

import pyfuse3
import trio

from engine.changes import FeedLost
from engine.errors import StorageError
from engine.meta.records import FeedRecord
from fs.inodes import Kind, Node
from fs.names import Mark, encode, split
from fs.view import View

RETRY_S = 1.0
BATCH = 1000


class EntryNotice(NamedTuple):
    parent: int
    name: bytes


class InodeNotice(NamedTuple):
    inode: int
    attributes_only: bool
    changed: Node | None = None
    """Who opens this node before the kernel has the notice makes it superfluous, and harmful: the
    kernel drops the answer to a GETATTR that such a notice overtakes, and goes by the old size."""


class Invalidation:
    """Follows the feed for one mount."""

    def __init__(self, view: View) -> None:
        self._view = view
        self._limiter = trio.CapacityLimiter(1)

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Follow until cancelled; started once the feed is followed, or found lost."""
        view = self._view
        changes = view.engine.changes
        first = True
        while True:
            try:
                cursor = await changes.latest()
                if not first:
                    await self._forget_everything()
                view.feed_followed = True
                if first:
                    first = False
                    task_status.started()
                async with aclosing(changes.follow(cursor)) as pages:
                    async for records, _ in pages:
                        view.epoch += 1
                        await self._apply(records)
            except (FeedLost, StorageError) as error:
                view.log.warning("change feed lost; following it anew", error=str(error))
            finally:
                view.feed_followed = False
                view.epoch += 1
            if first:
                first = False
                task_status.started()
            await trio.sleep(RETRY_S)

    async def _forget_everything(self) -> None:
        """The kernel asks anew for whatever it knows; open files keep their bytes."""
        await self._send([InodeNotice(node.inode, bool(node.handles)) for node in self._view.table])

    async def _apply(self, records: list[FeedRecord]) -> None:
        notices: dict[EntryNotice | InodeNotice, None] = {}
        seen: set[tuple[bytes, bytes]] = set()
        for record in records:
            at = (record.bucket_id, record.key)
            if at not in seen:
                seen.add(at)
                await self._collect(record, notices)
        await self._send(list(notices))

    async def _send(self, notices: list[EntryNotice | InodeNotice]) -> None:
        for first in range(0, len(notices), BATCH):
            batch = notices[first : first + BATCH]
            await trio.to_thread.run_sync(_notify, batch, limiter=self._limiter)
            entries = sum(isinstance(notice, EntryNotice) for notice in batch)
            self._view.tally.entries_invalidated += entries
            self._view.tally.inodes_invalidated += len(batch) - entries

    async def _collect(
        self, record: FeedRecord, notices: dict[EntryNotice | InodeNotice, None]
    ) -> None:
        """Add what the kernel must forget for one change, whoever made it."""
        view = self._view
        root = view.table.root
        key = record.key.decode()
        bucket_root = root
        if root.kind is Kind.TOP:
            known = view.known_directory(record.bucket_id, "")
            if known is None:
                return
            bucket_root = known
        elif root.bucket_id != record.bucket_id or not key.startswith(root.key):
            return
        bucket = bucket_root.bucket
        prefix = key[: key.rfind("/") + 1]
        if key == prefix:
            directory = view.known_directory(record.bucket_id, key)
            if directory is not None:
                notices[InodeNotice(directory.inode, True)] = None
        else:
            await self._collect_file(record, bucket, key, prefix, notices)
        await self._collect_ancestors(record.bucket_id, bucket, prefix, bucket_root, notices)

    async def _collect_file(
        self,
        record: FeedRecord,
        bucket: str,
        key: str,
        prefix: str,
        notices: dict[EntryNotice | InodeNotice, None],
    ) -> None:
        view = self._view
        node = view.known_file(record.bucket_id, key)
        if node is not None and view.is_written(node):
            return  # this mount writes it: it commits, or is told
        if node is not None:
            path = await view.engine.paths.find(bucket, key)
            if path.record is not None and path.record.data_id == node.data_id:
                if node.open_stat is not None:
                    node.open_stat = view.attributes.of_file(path.record)
                notices[InodeNotice(node.inode, True)] = None
                return
            if node.handles and not node.data_id:
                return  # being made by this mount: it commits, or is told
            if path.record is not None and not node.handles:
                node.stand_for(path.record.data_id)
                node.cached = b""
                notices[InodeNotice(node.inode, False, node)] = None
                return
            view.table.detach(node)
        parent = view.known_directory(record.bucket_id, prefix)
        if parent is not None:
            shadowed = view.known_directory(record.bucket_id, key + "/") is not None
            for name in _names(key[len(prefix) :], shadowed):
                notices[EntryNotice(parent.inode, name)] = None

    async def _collect_ancestors(
        self,
        bucket_id: bytes,
        bucket: str,
        prefix: str,
        root: Node,
        notices: dict[EntryNotice | InodeNotice, None],
    ) -> None:
        """Directories come and go with what is in them."""
        view = self._view
        while len(prefix) > len(root.key):
            node = view.known_directory(bucket_id, prefix)
            if node is not None:
                path = await view.engine.paths.find(bucket, prefix[:-1])
                if path.is_directory:
                    return
                view.table.detach(node)
            above = prefix[: prefix.rfind("/", 0, -1) + 1]
            parent = view.known_directory(bucket_id, above)
            if parent is not None:
                component = prefix[len(above) : -1]
                for name in _names(component, shadowed=False):
                    notices[EntryNotice(parent.inode, name)] = None
            prefix = above


def _names(component: str, shadowed: bool) -> list[bytes]:
    """Return the file names under which a component may be known in its directory."""
    pieces = split(component)
    if len(pieces) > 1:
        return [encode(pieces[0], Mark.MORE)]
    marked = encode(component, Mark.FILE)
    return [marked] if shadowed else [encode(component), marked]


def _notify(notices: list[EntryNotice | InodeNotice]) -> None:
    for notice in notices:
        # The kernel does not know it (any more): all the better.
        try:
            match notice:
                case EntryNotice(parent, name):
                    pyfuse3.invalidate_entry(parent, name)
                case InodeNotice(changed=node) if node is not None and not node.changed:
                    continue
                case InodeNotice(inode, attributes_only):
                    pyfuse3.invalidate_inode(inode, attributes_only)
        except OSError:
            continue
