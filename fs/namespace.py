"""Changing names: directories made and removed, files unlinked and renamed, links made.

A directory that this mount made, or from which it took the last file, is kept by an empty object
with its key, ``dir/``, as other programs write it.
"""

from __future__ import annotations

import errno
import stat as modes

import pyfuse3
import trio

from engine.errors import EngineError, PreconditionFailed
from engine.types import NO_CONDITIONS, Conditions
from fs.errors import Refused
from fs.inodes import Kind, Node
from fs.view import Found, Place, View
from fs.writing import ABSENT, Owner, Writing

LINK_SIZE_MAX = 4095
"""Linux's PATH_MAX without its NUL."""


class Namespace:
    def __init__(self, view: View, writing: Writing) -> None:
        self._view = view
        self._writing = writing
        self._renaming = trio.Lock()
        """Held while a directory is renamed."""

    async def _found(self, parent: Node, name: bytes) -> Found:
        """Raises Refused: ENOENT."""
        self._writing.check_writable(parent)
        found = await self._view.look_up(parent, name)
        if found is None:
            raise Refused(errno.ENOENT)
        self._writing.check_writable(found.node)
        await self._writing.settled(found.node)
        return found

    async def make_directory(self, parent: Node, name: bytes, mode: int, owner: Owner) -> Found:
        place = await self._free_place(parent, name)
        attributes = self._writing.new_attributes("", modes.S_IFDIR | mode & 0o7777, owner)
        info = await self._writing.put_small(place.bucket, place.text + "/", b"", attributes)
        node = self._view.table.find(
            Kind.DIRECTORY, place.bucket, info.bucket.bucket_id, place.text + "/"
        )
        stat = self._view.attributes.of_directory(info.record, info.bucket.created_ms)
        return Found(node, stat, info.record)

    async def make_link(self, parent: Node, name: bytes, target: bytes, owner: Owner) -> Found:
        if len(target) > LINK_SIZE_MAX:
            raise Refused(errno.ENAMETOOLONG)
        place = await self._free_place(parent, name)
        attributes = self._writing.new_attributes(place.text, modes.S_IFLNK | 0o777, owner)
        info = await self._writing.put_small(place.bucket, place.text, target, attributes)
        return self._view.file(info.bucket, place.text, info.record)

    async def make_file(self, parent: Node, name: bytes, mode: int, owner: Owner) -> Found:
        """Make an empty file without opening it (``mknod``)."""
        place = await self._free_place(parent, name)
        attributes = self._writing.new_attributes(place.text, modes.S_IFREG | mode & 0o7777, owner)
        info = await self._writing.put_small(place.bucket, place.text, b"", attributes)
        return self._view.file(info.bucket, place.text, info.record)

    async def _free_place(self, parent: Node, name: bytes) -> Place:
        """Raises Refused: EEXIST, and what ``Writing.new_place`` refuses."""
        place = self._writing.new_place(parent, name)
        if await self._view.look_up(parent, name) is not None:
            raise Refused(errno.EEXIST)
        return place

    # Removing

    async def unlink(self, parent: Node, name: bytes) -> None:
        """Remove a file; who has it open reads and writes it on until it is closed."""
        found = await self._found(parent, name)
        node = found.node
        if node.is_directory:
            raise Refused(errno.EISDIR)
        draft = node.draft
        if draft is None:
            await self._view.engine.delete(node.bucket, node.key)
        else:
            async with draft.lock:
                if draft.base_id:
                    await self._view.engine.delete(node.bucket, node.key)
                await draft.unlink_locked()
        self._gone(node)
        await self._keep_directory(parent)

    def _gone(self, node: Node) -> None:
        self._view.unsaved.discard(node)
        self._view.table.detach(node)
        node.unlinked = True

    async def remove_directory(self, parent: Node, name: bytes) -> None:
        node = (await self._found(parent, name)).node
        if not node.is_directory:
            raise Refused(errno.ENOTDIR)
        if parent.kind is Kind.TOP or node.base != len(node.key):
            raise Refused(errno.EPERM)  # a bucket, or a part of a long name
        await self._check_empty(node)
        await self._view.engine.delete(node.bucket, node.key)
        self._gone(node)
        await self._keep_directory(parent)

    async def _check_empty(self, node: Node) -> None:
        """Raises Refused: ENOTEMPTY."""
        page = await self._view.paths.page(node.bucket, node.key, "", 2)
        if any(entry.key != node.key for entry in page.entries) or self._unsaved_below(node):
            raise Refused(errno.ENOTEMPTY)

    def _unsaved_below(self, node: Node) -> bool:
        return any(
            unsaved.bucket_id == node.bucket_id and unsaved.key.startswith(node.key)
            for unsaved in self._view.unsaved
        )

    async def _keep_directory(self, node: Node) -> None:
        """Let a directory stay that the last file in it kept there. What fails here fails
        nobody: the file is gone."""
        if node.unlinked or not node.key or node.base != len(node.key):
            return
        try:
            page = await self._view.paths.page(node.bucket, node.key, "", 1)
            if page.entries:
                return
            owner = Owner(self._view.options.uid, self._view.options.gid)
            mode = modes.S_IFDIR | self._view.options.dir_mode
            attributes = self._writing.new_attributes("", mode, owner)
            await self._writing.put_small(node.bucket, node.key, b"", attributes)
        except (EngineError, Refused) as error:
            self._view.log.info("directory not kept", key=node.key, error=str(error))

    # Renaming

    async def rename(
        self, parent: Node, name: bytes, new_parent: Node, new_name: bytes, flags: int
    ) -> None:
        if flags & ~pyfuse3.RENAME_NOREPLACE:
            raise Refused(errno.EINVAL)
        if Kind.TOP in (parent.kind, new_parent.kind):
            raise Refused(errno.EPERM if parent is new_parent else errno.EXDEV)
        node = (await self._found(parent, name)).node
        self._writing.check_writable(new_parent)
        if parent.bucket_id != new_parent.bucket_id:
            raise Refused(errno.EXDEV)
        target = await self._view.look_up(new_parent, new_name)
        if target is not None:
            await self._writing.settled(target.node)
        if target is not None and flags & pyfuse3.RENAME_NOREPLACE:
            raise Refused(errno.EEXIST)
        if target is None:
            place = self._writing.new_place(new_parent, new_name)
        else:
            if target.node is node:
                return
            place = self._view.place(new_parent, new_name)
        if node.is_directory:
            await self._rename_directory(node, place, target)
        else:
            if target is not None and target.node.is_directory:
                raise Refused(errno.EISDIR)
            absent = bool(flags & pyfuse3.RENAME_NOREPLACE)
            await self._rename_file(node, place, target, must_be_absent=absent)
        if parent is not new_parent:
            await self._keep_directory(parent)

    async def _rename_file(
        self, node: Node, place: Place, target: Found | None, *, must_be_absent: bool
    ) -> None:
        draft = node.draft
        conditions = ABSENT if must_be_absent else NO_CONDITIONS
        try:
            if draft is None:
                await self._view.engine.rename(
                    node.bucket, node.key, place.text, new_conditions=conditions
                )
                self._moved(node, place.text)
            else:
                async with draft.lock:
                    await draft.commit_locked()
                    await self._view.engine.rename(
                        node.bucket,
                        node.key,
                        place.text,
                        conditions=Conditions(if_match_data_id=draft.base_id),
                        new_conditions=conditions,
                    )
                    self._moved(node, place.text)
        except PreconditionFailed:
            if must_be_absent:
                raise Refused(errno.EEXIST) from None
            raise
        if target is not None:
            await self._replaced(target.node)

    def _moved(self, node: Node, key: str) -> None:
        self._view.unsaved.discard(node)
        self._view.table.move(node, key)

    async def _replaced(self, node: Node) -> None:
        """Another file has the node's name now."""
        self._gone_if_detached(node)
        draft = node.draft
        if draft is not None:
            async with draft.lock:
                await draft.unlink_locked()

    def _gone_if_detached(self, node: Node) -> None:
        self._view.unsaved.discard(node)
        node.unlinked = True

    async def _rename_directory(self, node: Node, place: Place, target: Found | None) -> None:
        if target is not None and not target.node.is_directory:
            raise Refused(errno.ENOTDIR)
        if node.base != len(node.key) or not node.key:
            raise Refused(errno.EPERM)
        new_prefix = place.text + "/"
        if new_prefix.startswith(node.key):
            raise Refused(errno.EINVAL)
        if target is not None:
            await self._check_empty(target.node)
        # What is committed meanwhile would be left behind.
        async with self._renaming, self._writing.held_below(node):
            try:
                await self._view.engine.rename_tree(node.bucket, node.key, new_prefix)
            except PreconditionFailed:
                raise Refused(errno.ENOTEMPTY) from None
            self._view.table.move(node, new_prefix)
        if target is not None:
            target.node.unlinked = True
