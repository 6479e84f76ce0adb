"""MKCOL, DELETE, COPY and MOVE: of files, of folders, and of all that is in them."""

from __future__ import annotations

import msgspec

from dav.conditions import member_conditions, state_lists, write_conditions
from dav.errors import DavError
from dav.multistatus import multistatus
from dav.names import Target
from dav.portal import Crossing
from dav.request import DavRequest, Reply
from dav.tree import (
    Failure,
    Resource,
    copy_file,
    copy_tree,
    delete_tree,
    find,
    has_parent,
    keep_parent,
    make_folder,
)
from engine.errors import BucketNotEmpty, NoSuchKey, PreconditionFailed
from engine.types import Conditions

ABSENT = ("*",)


async def mkcol(request: DavRequest, crossing: Crossing) -> Reply:
    """Make a folder; at the top, a bucket."""
    target = request.target
    if request.has_body:
        raise DavError(415, "MKCOL has no body")
    _need_depth(request, "0")
    if await find(request.engine, target) is not None:
        raise DavError(405, "it exists already")
    if target.is_bucket:
        await request.engine.create_bucket(target.bucket, owner=request.config.owner_id)
        return Reply(201)
    if target.beside_folder:
        raise DavError(409, "a folder has no mark at its end")
    if not await has_parent(request.engine, target):
        raise DavError(409, "the folder above does not exist")
    conditions = msgspec.structs.replace(write_conditions(request), if_none_match=ABSENT)
    try:
        await make_folder(request.engine, target, conditions=conditions)
    except PreconditionFailed as error:
        if error.condition == "If-None-Match":
            raise DavError(405, "it exists already") from None
        raise
    return Reply(201)


async def delete(request: DavRequest, crossing: Crossing) -> Reply:
    target = request.target
    found = await find(request.engine, target)
    if found is None:
        raise DavError(404)
    if target.is_root:
        raise DavError(403, "the root cannot be deleted")
    if not found.is_folder:
        _need_depth(request, "0", "infinity")
        await _delete_file(request, found)
        await keep_parent(request.engine, target, member_conditions(request))
        return Reply(204)
    _need_depth(request, "infinity")
    failures = await _delete_folder(request, found)
    await keep_parent(request.engine, target, member_conditions(request))
    return _tree_reply(204, target.bucket, failures)


async def _delete_file(request: DavRequest, found: Resource) -> None:
    try:
        await request.engine.delete(
            found.target.bucket, found.key, conditions=write_conditions(request)
        )
    except NoSuchKey:
        raise DavError(412, "If-Match does not hold") from None


async def _delete_folder(request: DavRequest, found: Resource) -> list[Failure]:
    target = found.target
    await _check_states(request)
    failures = await delete_tree(
        request.engine, target.bucket, target.folder_key, member_conditions(request)
    )
    if target.is_bucket and not failures:
        try:
            await request.engine.delete_bucket(target.bucket)
        except BucketNotEmpty:
            raise DavError(409, "the bucket keeps older versions of its objects") from None
    return failures


async def copy(request: DavRequest, crossing: Crossing) -> Reply:
    found, target, there = await _source_and_target(request)
    depth = _need_depth(request, "0", "infinity")
    engine = request.engine
    failures: list[Failure] = []
    if not found.is_folder:
        await _clear_for_file(request, there)
        await copy_file(
            engine,
            (found.target.bucket, found.key),
            (target.bucket, target.path),
            _target_conditions(request, states=True),
            source_conditions=_source_conditions(request),
        )
    else:
        await _check_states(request)
        _check_folder_target(target)
        await _clear_for_folder(request, there)
        if depth == "0":
            await make_folder(engine, target, conditions=_target_conditions(request))
        else:
            conditions = member_conditions(request)
            failures = await copy_tree(engine, found.target, target, conditions)
    return _tree_reply(201 if there is None else 204, target.bucket, failures)


async def move(request: DavRequest, crossing: Crossing) -> Reply:
    found, target, there = await _source_and_target(request)
    if found.target.is_bucket or found.target.is_root:
        raise DavError(403, "a bucket keeps its name")
    if not found.is_folder:
        await _clear_for_file(request, there)
        await _move_file(request, found, target)
        await keep_parent(request.engine, found.target, member_conditions(request))
        return Reply(201 if there is None else 204)
    _need_depth(request, "infinity")
    _check_folder_target(target)
    await _clear_for_folder(request, there)
    failures = await _move_folder(request, found, target)
    await keep_parent(request.engine, found.target, member_conditions(request))
    return _tree_reply(201 if there is None else 204, target.bucket, failures)


async def _move_file(request: DavRequest, found: Resource, target: Target) -> None:
    engine, source = request.engine, found.target
    if source.bucket == target.bucket:
        await engine.rename(
            source.bucket,
            found.key,
            target.path,
            conditions=write_conditions(request),
            new_conditions=_target_conditions(request),
        )
        return
    await copy_file(
        engine,
        (source.bucket, found.key),
        (target.bucket, target.path),
        _target_conditions(request, states=True),
        source_conditions=_source_conditions(request),
    )
    assert found.record is not None
    # What was written since it was copied stays where it is.
    conditions = msgspec.structs.replace(
        member_conditions(request), if_match_data_id=found.record.data_id
    )
    try:
        await engine.delete(source.bucket, found.key, conditions=conditions)
    except (NoSuchKey, PreconditionFailed):
        raise DavError(409, "it was changed while it was moved; both are kept") from None


async def _move_folder(request: DavRequest, found: Resource, target: Target) -> list[Failure]:
    engine, source = request.engine, found.target
    if source.bucket == target.bucket:
        await engine.rename_tree(
            source.bucket,
            source.folder_key,
            target.folder_key,
            conditions=write_conditions(request),
        )
        return []
    await _check_states(request)
    conditions = member_conditions(request)
    failures = await copy_tree(engine, source, target, conditions)
    if failures:
        return failures
    return await delete_tree(engine, source.bucket, source.folder_key, conditions)


async def _source_and_target(request: DavRequest) -> tuple[Resource, Target, Resource | None]:
    """Return what is to be copied or moved, where to, and what is there now.

    Decides all of RFC 4918, sections 9.8 and 9.9, that does not need the commit.
    """
    if request.has_body:
        raise DavError(415, f"{request.method} has no body")
    target = request.destination()
    if target is None:
        raise DavError(400, "no Destination")
    found = await find(request.engine, request.target)
    if found is None:
        raise DavError(404)
    source = found.target
    if target.is_root or target.more:
        raise DavError(403, "nothing can be put in its place")
    if found.is_folder and _inside(target, source):
        raise DavError(403, "a folder cannot be copied or moved onto or into itself")
    if (target.bucket, target.path) == (source.bucket, source.path):
        raise DavError(403, "source and destination are the same")
    if _inside(source, target) and not source.is_root:
        raise DavError(403, "it cannot replace the folder that it is in")
    there = await find(request.engine, target)
    if there is not None and not _overwrite(request):
        raise DavError(412, "Overwrite")
    if there is None and not await has_parent(request.engine, target):
        raise DavError(409, "the folder of the destination does not exist")
    return found, target, there


def _inside(inner: Target, outer: Target) -> bool:
    """Whether ``inner`` is ``outer`` or lies in it as a folder."""
    if outer.is_root:
        return True
    if inner.bucket != outer.bucket:
        return False
    return inner.path == outer.path or inner.folder_key.startswith(outer.folder_key)


def _check_folder_target(target: Target) -> None:
    if target.is_bucket:
        raise DavError(403, "a folder cannot become a bucket")
    if target.beside_folder:
        raise DavError(409, "a folder has no mark at its end")


async def _clear_for_file(request: DavRequest, there: Resource | None) -> None:
    """Delete a folder that a file is to replace; a file is replaced by the commit itself."""
    if request.destination() is not None and there is None:
        target = request.destination()
        if target is not None and (target.is_bucket or target.beside_folder):
            raise DavError(403, "a file cannot be there")
        return
    if there is not None and there.is_folder:
        if there.target.is_bucket:
            raise DavError(403, "a file cannot become a bucket")
        _stop_at(there, await _delete_folder_tree(request, there))


async def _clear_for_folder(request: DavRequest, there: Resource | None) -> None:
    """Delete what a folder is to replace (RFC 4918, section 9.8.4)."""
    if there is None:
        return
    if there.is_folder:
        _stop_at(there, await _delete_folder_tree(request, there))
    else:
        await request.engine.delete(
            there.target.bucket, there.key, conditions=member_conditions(request)
        )


async def _delete_folder_tree(request: DavRequest, there: Resource) -> list[Failure]:
    return await delete_tree(
        request.engine,
        there.target.bucket,
        there.target.folder_key,
        member_conditions(request),
    )


def _stop_at(there: Resource, failures: list[Failure]) -> None:
    if failures:
        raise failures[0].error


def _overwrite(request: DavRequest) -> bool:
    value = (request.header("Overwrite") or "T").strip().upper()
    if value not in ("T", "F"):
        raise DavError(400, "Overwrite is T or F")
    return value == "T"


async def _check_states(request: DavRequest) -> None:
    """Decide what If asks for, before a request that is more than one transaction."""
    await request.engine.locking.check(state_lists(request))


def _target_conditions(request: DavRequest, *, states: bool = False) -> Conditions:
    """Overwrite: F is decided by the commit, not only by what was there before. ``states``: so
    is If, which the transaction of a rename decides with the source."""
    conditions = member_conditions(request)
    if states and (lists := state_lists(request)):
        conditions = msgspec.structs.replace(conditions, states=lists)
    if _overwrite(request):
        return conditions
    return msgspec.structs.replace(conditions, if_none_match=ABSENT)


def _source_conditions(request: DavRequest) -> Conditions:
    return write_conditions(request)


def _need_depth(request: DavRequest, *allowed: str) -> str:
    """Return Depth, by default the last of ``allowed``."""
    depth = (request.header("Depth") or allowed[-1]).strip().lower()
    if depth not in allowed:
        raise DavError(400, f"Depth: {' or '.join(allowed)}")
    return depth


def _tree_reply(status: int, bucket: str, failures: list[Failure]) -> Reply:
    if not failures:
        return Reply(status)
    return multistatus(bucket, failures)
