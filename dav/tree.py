"""The tree that WebDAV shows, over the engine's buckets and keys. All of it in the trio run.

A bucket is a folder at the top. A folder is there when keys begin with its path and a slash; one
that was made by hand is such a key itself, its *marker*, and stays when it is empty. One that is
emptied through WebDAV gets a marker then (``keep_parent``).
"""

from __future__ import annotations

from typing import NamedTuple

import msgspec
import structlog
import trio

from dav.names import Target
from engine.engine import Engine
from engine.errors import EngineError, NoSuchBucket, NoSuchKey
from engine.meta.records import VersionRecord
from engine.types import (
    NO_CONDITIONS,
    Attributes,
    BucketInfo,
    Conditions,
    CopySource,
    DeleteItem,
)

log = structlog.get_logger()

PAGE = 1000
COPIES = 4
"""Objects of a tree that are copied at the same time."""


class Resource(NamedTuple):
    """What a target is about, as one snapshot shows it."""

    target: Target
    bucket: BucketInfo | None
    """None: the root."""
    record: VersionRecord | None
    """Of a file; of a folder its marker, if it has one."""
    is_folder: bool

    @property
    def key(self) -> str:
        """The object's key; a folder's ends with a slash, a bucket's is empty."""
        return self.target.folder_key if self.is_folder else self.target.path


class Failure(NamedTuple):
    """A member of a tree with which it did not work."""

    key: str
    error: EngineError


async def find(engine: Engine, target: Target) -> Resource | None:
    """Return what is there, or None.

    A folder comes before a file of its name; the file is then at ``%file``. A file is also found
    when the target ends with a slash.
    """
    if target.is_root:
        return Resource(target, None, None, is_folder=True)
    try:
        if target.is_bucket:
            return Resource(target, await engine.bucket(target.bucket), None, is_folder=True)
        if target.more:
            page = await engine.paths.page(target.bucket, target.path, target.path, 1)
            return Resource(target, page.bucket, None, is_folder=True) if page.entries else None
        path = await engine.paths.find(target.bucket, target.path)
    except NoSuchBucket:
        return None
    if target.beside_folder:
        if path.record is None or not path.is_directory:
            return None
        return Resource(target, path.bucket, path.record, is_folder=False)
    if path.is_directory:
        return Resource(target, path.bucket, path.marker, is_folder=True)
    if path.record is None:
        return None
    return Resource(target, path.bucket, path.record, is_folder=False)


async def has_parent(engine: Engine, target: Target) -> bool:
    """Whether the folder that the target is to be a member of is there."""
    parent = await find(engine, target.parent)
    return parent is not None and parent.is_folder


async def make_folder(
    engine: Engine, target: Target, *, conditions: Conditions = NO_CONDITIONS
) -> None:
    """Put the marker of a folder. Raises what ``Engine.put`` raises."""
    await engine.put(
        target.bucket,
        target.folder_key,
        _Nothing(),
        size=0,
        algorithms=frozenset(),
        attributes=Attributes(headers=[("content-type", "application/x-directory")]),
        check=lambda _: [],
        conditions=conditions,
    )


async def keep_parent(engine: Engine, target: Target, conditions: Conditions) -> None:
    """Let the folder that the target went from stay, if the target was the last that kept it there.

    Desktops go on in a folder that they have just emptied. As in the mount, what fails here fails
    nobody: the target is gone. ``conditions``: the locks that the client holds.
    """
    parent = target.parent
    if not parent.path:
        return
    absent = msgspec.structs.replace(conditions, if_none_match=("*",))
    try:
        page = await engine.paths.page(parent.bucket, parent.folder_key, "", 1)
        if not page.entries:
            await make_folder(engine, parent, conditions=absent)
    except EngineError as error:
        log.info("dav.folder_not_kept", folder=parent.folder_key, error=str(error))


class _Nothing:
    async def readinto(self, buffer: memoryview) -> int:
        return 0


async def delete_tree(
    engine: Engine, bucket: str, prefix: str, conditions: Conditions
) -> list[Failure]:
    """Delete all keys that begin with ``prefix``; in bounded steps, each a transaction.

    A folder's marker goes after what is in it, and stays when something in it does.
    """
    failures: list[Failure] = []
    markers: list[str] = []
    after = ""
    while True:
        page = await engine.list_objects(bucket, prefix=prefix, after=after, limit=PAGE)
        keys = [found.key for found in page.objects]
        markers += [key for key in keys if key.endswith("/")]
        files = [key for key in keys if not key.endswith("/")]
        failures += await _delete_keys(engine, bucket, files, conditions)
        if page.next_after is None:
            break
        after = page.next_after
    # Deepest first: a folder sorts before all that is in it.
    for first in range(0, len(markers), PAGE):
        batch = list(reversed(markers))[first : first + PAGE]
        kept = [failure.key for failure in failures]
        empty = [key for key in batch if not any(name.startswith(key) for name in kept)]
        failures += await _delete_keys(engine, bucket, empty, conditions)
    return failures


async def _delete_keys(
    engine: Engine, bucket: str, keys: list[str], conditions: Conditions
) -> list[Failure]:
    items = [DeleteItem(key, None, conditions) for key in keys]
    answers = await engine.delete_many(bucket, items)
    return [
        Failure(key, answer)
        for key, answer in zip(keys, answers, strict=True)
        if isinstance(answer, EngineError) and not isinstance(answer, NoSuchKey)
    ]


async def copy_tree(
    engine: Engine, source: Target, target: Target, conditions: Conditions
) -> list[Failure]:
    """Copy every object below one folder to the same place below another, which is made first.

    The objects are those that are there when their page is read; each copy is one transaction.
    """
    await make_folder(engine, target, conditions=conditions)
    failures: list[Failure] = []
    prefix, new_prefix = source.folder_key, target.folder_key
    after = ""
    while True:
        page = await engine.list_objects(source.bucket, prefix=prefix, after=after, limit=PAGE)
        keys = [found.key for found in page.objects]
        limit = trio.CapacityLimiter(COPIES)

        async def copy(key: str, limit: trio.CapacityLimiter = limit) -> None:
            new_key = new_prefix + key[len(prefix) :]
            if not new_key:
                return
            async with limit:
                try:
                    await copy_file(
                        engine, (source.bucket, key), (target.bucket, new_key), conditions
                    )
                except NoSuchKey:
                    return
                except EngineError as error:
                    failures.append(Failure(new_key, error))

        async with trio.open_nursery() as nursery:
            for key in keys:
                nursery.start_soon(copy, key)
        if page.next_after is None:
            return failures
        after = page.next_after


async def copy_file(
    engine: Engine,
    source: tuple[str, str],
    target: tuple[str, str],
    conditions: Conditions,
    *,
    source_conditions: Conditions = NO_CONDITIONS,
) -> None:
    """Copy one object with all its attributes. Raises what ``Engine.copy`` raises."""
    await engine.copy(
        CopySource(source[0], source[1], None, source_conditions),
        target[0],
        target[1],
        attributes=None,
        tags=None,
        conditions=conditions,
    )
