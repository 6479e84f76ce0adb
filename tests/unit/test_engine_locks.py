"""Locks: what they cover, who may pass, and how they end; decided where writes commit."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from engine.engine import Engine
from engine.errors import (
    ConditionConflict,
    InvalidArgument,
    Locked,
    NoSuchBucket,
    NoSuchKey,
    NoSuchLock,
    PreconditionFailed,
)
from engine.locks import locks_around, sweep_locks
from engine.meta import keyspace
from engine.meta.kv import ReadTransaction, Transaction
from engine.meta.records import FORMAT, TreeRename, encode
from engine.types import (
    NO_CONDITIONS,
    Attributes,
    CompletePart,
    Conditions,
    CopySource,
    DeleteItem,
    LockInfo,
    LockRequest,
    PropertyChange,
    StateList,
    StateTest,
)
from tests.support.engine import (
    count_rows,
    engine_in,
    folder_in,
    put,
    put_part,
    read,
)

OWNER = "owner"
B = "bucket"
ME, OTHER = "me", "other"


def wish(
    *, exclusive: bool = True, deep: bool = False, principal: str = ME, timeout_s: int = 60
) -> LockRequest:
    return LockRequest(
        principal=principal, owner="<o/>", exclusive=exclusive, deep=deep, timeout_s=timeout_s
    )


def holding(*locks: LockInfo, principal: str = ME) -> Conditions:
    return Conditions(lock_tokens=tuple(lock.token for lock in locks), principal=principal)


async def lock(engine: Engine, key: str, **wanted: object) -> LockInfo:
    info, _ = await engine.locking.lock(B, key, wish(**wanted))  # type: ignore[arg-type]
    return info


async def store_with(engine: Engine, *keys: str) -> None:
    await engine.create_bucket(B, owner=OWNER)
    for key in keys:
        await put(engine, B, key, key.encode())


Write = Callable[[Engine, Conditions], Awaitable[object]]


async def _upload(engine: Engine, conditions: Conditions) -> object:
    info = await engine.create_upload(B, "a/file", attributes=Attributes())
    part = await put_part(engine, B, "a/file", info.upload_id, 1, b"part")
    parts = [CompletePart(1, part.etag, [])]
    return await engine.complete_upload(B, "a/file", info.upload_id, parts, conditions=conditions)


async def _copy(engine: Engine, conditions: Conditions) -> object:
    source = CopySource(B, "other")
    return await engine.copy(source, B, "a/file", attributes=None, tags=None, conditions=conditions)


async def _copy_in_place(engine: Engine, conditions: Conditions) -> object:
    return await engine.copy(
        CopySource(B, "a/file"),
        B,
        "a/file",
        attributes=Attributes(metadata=[("a", "b")]),
        tags=[],
        conditions=conditions,
    )


WRITES: dict[str, Write] = {
    "put": lambda e, c: put(e, B, "a/file", b"new", conditions=c),
    "put of many bytes": lambda e, c: put(e, B, "a/file", bytes(40_000), conditions=c),
    "delete": lambda e, c: e.delete(B, "a/file", conditions=c),
    "rename away": lambda e, c: e.rename(B, "a/file", "b", conditions=c, new_conditions=c),
    "rename onto": lambda e, c: e.rename(B, "other", "a/file", conditions=c, new_conditions=c),
    "rename of the tree": lambda e, c: e.rename_tree(B, "a/", "z/", conditions=c),
    "complete": _upload,
    "copy": _copy,
    "copy in place": _copy_in_place,
    "metadata": lambda e, c: e.set_metadata(B, "a/file", lambda m: m, conditions=c),
    "properties": lambda e, c: e.properties.change(
        B, "a/file", [PropertyChange("{x}y", "<y/>")], conditions=c
    ),
}


@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES.keys())
@pytest.mark.parametrize("root", ["a/file", "a/", ""])
async def test_no_write_passes_a_lock_without_its_token(
    tmp_path: Path, write: Write, root: str
) -> None:
    async with engine_in(tmp_path) as engine:
        await store_with(engine, "a/file", "other")
        held = await lock(engine, root, deep=True)
        for conditions in (
            NO_CONDITIONS,
            Conditions(lock_tokens=("another",), principal=ME),
            holding(held, principal=OTHER),
        ):
            with pytest.raises(Locked) as refused:
                await write(engine, conditions)
            assert (refused.value.bucket, refused.value.root) == (B, root)
            assert await read(engine, B, "a/file") == b"a/file"
        await write(engine, holding(held))


async def test_tags_of_a_locked_object_stay(tmp_path: Path) -> None:
    async with engine_in(tmp_path) as engine:
        await store_with(engine, "key")
        await lock(engine, "key")
        with pytest.raises(Locked):
            await engine.set_tags(B, "key", [("a", "b")])


async def test_versions_behind_a_locked_object_can_go(tmp_path: Path) -> None:
    async with engine_in(tmp_path) as engine:
        await store_with(engine)
        await engine.set_versioning(B, "Enabled")
        old = await put(engine, B, "key", b"old")
        new = await put(engine, B, "key", b"new")
        await lock(engine, "key")
        with pytest.raises(Locked):
            await engine.delete(B, "key", version_id=new.version_id)
        await engine.delete(B, "key", version_id=old.version_id)
        assert await read(engine, B, "key") == b"new"


async def test_deleting_many_refuses_the_locked_ones_alone(tmp_path: Path) -> None:
    async with engine_in(tmp_path) as engine:
        await store_with(engine, "a", "b", "c")
        await lock(engine, "b")
        answers = await engine.delete_many(B, [DeleteItem(key) for key in "abc"])
        assert [type(answer).__name__ for answer in answers] == ["Deleted", "Locked", "Deleted"]
        assert await read(engine, B, "b") == b"b"


async def test_a_shallow_lock_of_a_folder_guards_its_members_names_only(tmp_path: Path) -> None:
    async with engine_in(tmp_path) as engine:
        await store_with(engine, "a/", "a/file", "a/b/deep")
        held = await lock(engine, "a/")
        await put(engine, B, "a/file", b"changed")
        await put(engine, B, "a/b/new", b"deeper")
        for change in (
            put(engine, B, "a/new", b""),
            put(engine, B, "a/folder/", b""),
            engine.delete(B, "a/file"),
            engine.rename(B, "a/file", "elsewhere"),
            engine.rename(B, "a/b/deep", "a/deep"),
        ):
            with pytest.raises(Locked):
                await change
        await put(engine, B, "a/new", b"", conditions=holding(held))
        await engine.delete(B, "a/file", conditions=holding(held))


async def test_unrelated_locks_in_between_hide_none(tmp_path: Path) -> None:
    async with engine_in(tmp_path) as engine:
        await store_with(engine, "a/b/c/key")
        for root in ("a/a", "a/b/a/", "a/b/c", "a/b"):
            await lock(engine, root, deep=True)
        await put(engine, B, "a/b/c/key", b"free")
        await lock(engine, "a/b/c/", deep=True)
        with pytest.raises(Locked) as refused:
            await put(engine, B, "a/b/c/key", b"")
        assert refused.value.root == "a/b/c/"


async def test_locks_of_neighbours_do_not_matter(tmp_path: Path) -> None:
    async with engine_in(tmp_path) as engine:
        await store_with(engine, "a", "ab", "a/", "a/b", "b")
        for root in ("a", "a/"):
            await lock(engine, root, deep=True)
        for key in ("ab", "b", "a0", "A", "a-/c"):
            await put(engine, B, key, b"free")
        with pytest.raises(Locked):
            await put(engine, B, "a/b", b"")
        with pytest.raises(Locked):
            await put(engine, B, "a", b"")


@pytest.mark.parametrize(
    ("first", "second", "granted"),
    [
        (("a/b", True, False), ("a/b", True, False), False),
        (("a/b", True, False), ("a/b", False, False), False),
        (("a/b", False, False), ("a/b", True, False), False),
        (("a/b", False, False), ("a/b", False, False), True),
        (("a/", True, True), ("a/b", False, False), False),
        (("a/", False, True), ("a/b", False, False), True),
        (("a/b", True, False), ("a/", True, True), False),
        (("a/b", False, False), ("", False, True), True),
        (("a/b", True, False), ("a/", True, False), True),
        (("a/", True, False), ("a/b", True, False), True),
        (("a/b", True, False), ("a/c", True, False), True),
    ],
)
async def test_which_locks_go_together(
    tmp_path: Path,
    first: tuple[str, bool, bool],
    second: tuple[str, bool, bool],
    granted: bool,
) -> None:
    async with engine_in(tmp_path) as engine:
        await store_with(engine, "a/b", "a/c")
        await lock(engine, first[0], exclusive=first[1], deep=first[2])
        wanted = wish(exclusive=second[1], deep=second[2], principal=OTHER)
        if granted:
            await engine.locking.lock(B, second[0], wanted)
        else:
            with pytest.raises(Locked) as refused:
                await engine.locking.lock(B, second[0], wanted)
            assert refused.value.root == first[0]


async def test_any_token_of_shared_locks_will_do(tmp_path: Path) -> None:
    async with engine_in(tmp_path) as engine:
        await store_with(engine, "key")
        mine = await lock(engine, "key", exclusive=False)
        theirs = await lock(engine, "key", exclusive=False, principal=OTHER)
        await put(engine, B, "key", b"1", conditions=holding(mine))
        await put(engine, B, "key", b"2", conditions=holding(theirs, principal=OTHER))
        await engine.locking.unlock(B, "key", mine.token, principal=ME)
        with pytest.raises(Locked):
            await put(engine, B, "key", b"3", conditions=holding(mine))


async def test_locking_a_free_name_makes_an_empty_object(tmp_path: Path) -> None:
    async with engine_in(tmp_path) as engine:
        await store_with(engine)
        info, created = await engine.locking.lock(B, "new", wish())
        assert created
        assert await read(engine, B, "new") == b""
        assert (await engine.head(B, "new")).etag == "d41d8cd98f00b204e9800998ecf8427e"
        _, created = await engine.locking.lock(B, "other", wish())
        await engine.locking.unlock(B, "new", info.token, principal=ME)
        assert await read(engine, B, "new") == b""
        report = await engine.fsck(deep=True)
        assert report.clean, report.problems


async def test_a_refused_lock_makes_nothing(tmp_path: Path) -> None:
    async with engine_in(tmp_path) as engine:
        await store_with(engine, "a/")
        await lock(engine, "a/", deep=True)
        with pytest.raises(Locked):
            await engine.locking.lock(B, "a/new", wish(principal=OTHER))
        with pytest.raises(NoSuchKey):
            await engine.head(B, "a/new")


async def test_a_lock_keeps_a_folder_that_only_its_members_made(tmp_path: Path) -> None:
    async with engine_in(tmp_path) as engine:
        await store_with(engine, "a/file")
        held = await lock(engine, "a/", deep=True)
        await engine.delete(B, "a/file", conditions=holding(held))
        assert (await engine.head(B, "a/")).size == 0


async def test_locks_time_out_and_are_refreshed(tmp_path: Path) -> None:
    folder = folder_in(tmp_path)
    await folder.prepare()
    async with folder.open() as engine:
        await store_with(engine, "key")
        first = await lock(engine, "key", timeout_s=60)
        folder.clock.advance(50)
        renewed = await engine.locking.refresh(B, "key", first.token, 60, conditions=holding(first))
        assert renewed.expires_ms > first.expires_ms
        folder.clock.advance(50)
        with pytest.raises(Locked):
            await put(engine, B, "key", b"")
        folder.clock.advance(11)
        assert await engine.locking.around(B, "key") == []
        await put(engine, B, "key", b"free")
        assert await count_rows(engine, keyspace.LOCK) == 0
        with pytest.raises(NoSuchLock):
            await engine.locking.refresh(B, "key", first.token, 60, conditions=holding(first))


async def test_the_sweep_takes_what_timed_out(tmp_path: Path) -> None:
    folder = folder_in(tmp_path)
    await folder.prepare()
    async with folder.open() as engine:
        await store_with(engine)
        for number in range(5):
            await lock(engine, f"short{number}", timeout_s=10)
        kept = await lock(engine, "long", timeout_s=1000)
        folder.clock.advance(11)
        await sweep_locks(engine.store)
        assert await count_rows(engine, keyspace.LOCK) == 1
        assert [info.token for info in await engine.locking.around(B, "long")] == [kept.token]


async def test_locks_hold_in_other_processes_and_after_a_restart(tmp_path: Path) -> None:
    folder = folder_in(tmp_path)
    await folder.prepare()
    async with folder.open() as one, folder.open() as other:
        await store_with(one, "key")
        held = await lock(one, "key")
        with pytest.raises(Locked):
            await put(other, B, "key", b"")
    async with folder.open() as again:
        with pytest.raises(Locked):
            await put(again, B, "key", b"")
        await put(again, B, "key", b"mine", conditions=holding(held))


async def test_unlocking_needs_the_token_and_its_owner(tmp_path: Path) -> None:
    async with engine_in(tmp_path) as engine:
        await store_with(engine, "a/file", "b")
        held = await lock(engine, "a/", deep=True)
        for key, token, principal in (
            ("a/", "no token", ME),
            ("a/", held.token, OTHER),
            ("b", held.token, ME),
        ):
            with pytest.raises(NoSuchLock):
                await engine.locking.unlock(B, key, token, principal=principal)
        # Any URL that the lock covers names it (RFC 4918, section 9.11).
        await engine.locking.unlock(B, "a/file", held.token, principal=ME)
        await put(engine, B, "a/file", b"")


async def test_what_goes_takes_its_locks_along_and_what_is_replaced_keeps_them(
    tmp_path: Path,
) -> None:
    async with engine_in(tmp_path) as engine:
        await store_with(engine, "deleted", "moved", "onto", "tree/a", "tree/b")
        deleted, moved, onto = [await lock(engine, key) for key in ("deleted", "moved", "onto")]
        inner = await lock(engine, "tree/b")
        await engine.delete(B, "deleted", conditions=holding(deleted))
        await engine.rename(
            B, "moved", "onto", conditions=holding(moved), new_conditions=holding(onto)
        )
        with pytest.raises(Locked):
            await engine.rename_tree(B, "tree/", "wood/")
        await engine.rename_tree(B, "tree/", "wood/", conditions=holding(inner))
        for key in ("deleted", "moved", "tree/b", "wood/b"):
            assert await engine.locking.around(B, key) == []
            await put(engine, B, key, b"free")
        assert [info.token for info in await engine.locking.around(B, "onto")] == [onto.token]


async def test_no_lock_is_given_where_a_tree_is_being_renamed(tmp_path: Path) -> None:
    async with engine_in(tmp_path) as engine:
        await store_with(engine, "from/key", "else")
        bucket = await engine.bucket(B)
        row = TreeRename(format=FORMAT, bucket=B, new_prefix=b"to/", started_ms=0)

        async def begin(tr: Transaction) -> None:
            tr.set(keyspace.tree_rename(bucket.bucket_id, b"from/"), encode(row))

        await engine.store.db.run(begin)
        for key in ("from/key", "to/", "to/new", ""):
            with pytest.raises(ConditionConflict):
                await engine.locking.lock(B, key, wish())
        await engine.locking.lock(B, "else", wish())


async def test_a_deleted_bucket_takes_its_locks_along(tmp_path: Path) -> None:
    async with engine_in(tmp_path) as engine:
        await store_with(engine)
        await lock(engine, "", deep=True)
        await engine.delete_bucket(B)
        assert await count_rows(engine, keyspace.LOCK) == 0
        with pytest.raises(NoSuchBucket):
            await engine.locking.around(B, "")


async def test_locks_are_bounded(tmp_path: Path) -> None:
    async with engine_in(tmp_path) as engine:
        await store_with(engine, "key")
        for _ in range(32):
            await lock(engine, "key", exclusive=False)
        with pytest.raises(Locked):
            await lock(engine, "key", exclusive=False)
        with pytest.raises(InvalidArgument):
            await engine.locking.lock(
                B,
                "other",
                LockRequest(
                    principal=ME, owner="x" * 2049, exclusive=True, deep=False, timeout_s=1
                ),
            )


@pytest.mark.parametrize(
    ("tests", "holds"),
    [
        ((StateTest(token="TOKEN"),), True),
        ((StateTest(token="else"),), False),
        ((StateTest(token="else", negated=True),), True),
        ((StateTest(token="TOKEN"), StateTest(etag="ETAG")), True),
        ((StateTest(token="TOKEN"), StateTest(etag="else")), False),
        ((StateTest(token="TOKEN"), StateTest(etag="else", negated=True)), True),
        ((StateTest(token="TOKEN", negated=True),), False),
    ],
)
async def test_state_lists_decide_in_the_commit(
    tmp_path: Path, tests: tuple[StateTest, ...], holds: bool
) -> None:
    async with engine_in(tmp_path) as engine:
        await store_with(engine, "a/key")
        held = await lock(engine, "a/", deep=True)
        etag = (await engine.head(B, "a/key")).etag
        filled = tuple(
            StateTest(
                token=held.token if test.token == "TOKEN" else test.token,
                etag=etag if test.etag == "ETAG" else test.etag,
                negated=test.negated,
            )
            for test in tests
        )
        conditions = Conditions(
            states=(StateList(B, "a/key", filled),), lock_tokens=(held.token,), principal=ME
        )
        if holds:
            await put(engine, B, "a/key", b"new", conditions=conditions)
        else:
            with pytest.raises(PreconditionFailed) as refused:
                await put(engine, B, "a/key", b"new", conditions=conditions)
            assert refused.value.condition == "If"


async def test_one_state_list_of_several_is_enough_and_may_name_other_places(
    tmp_path: Path,
) -> None:
    async with engine_in(tmp_path) as engine:
        await store_with(engine, "key", "folder/")
        held = await lock(engine, "folder/", deep=True)
        nowhere = StateList("no-such-bucket", "key", (StateTest(token=held.token),))
        # A folder may be named without its slash.
        there = StateList(B, "folder", (StateTest(token=held.token),))
        await put(engine, B, "key", b"", conditions=Conditions(states=(nowhere, there)))
        with pytest.raises(PreconditionFailed):
            await put(engine, B, "key", b"", conditions=Conditions(states=(nowhere,)))


class CountingReads:
    """A transaction that counts range reads."""

    def __init__(self, tr: ReadTransaction) -> None:
        self._tr = tr
        self.count = 0

    async def get(self, key: bytes, *, snapshot: bool = False) -> bytes | None:
        return await self._tr.get(key, snapshot=snapshot)

    async def get_range(
        self,
        begin: bytes,
        end: bytes,
        *,
        limit: int = 0,
        reverse: bool = False,
        snapshot: bool = False,
    ) -> list[tuple[bytes, bytes]]:
        self.count += 1
        return await self._tr.get_range(begin, end, limit=limit, reverse=reverse, snapshot=snapshot)


@pytest.mark.parametrize(
    ("key", "reads_max"), [(b"0", 1), (b"a/b/c", 3), (b"a/49x/c", 6), (b"b", 2), (b"z" * 900, 2)]
)
async def test_many_locks_elsewhere_cost_a_write_next_to_nothing(
    tmp_path: Path, key: bytes, reads_max: int
) -> None:
    async with engine_in(tmp_path) as engine:
        await store_with(engine)
        for number in range(50):
            await lock(engine, f"a/{number}")
        bucket = await engine.bucket(B)

        async def body(tr: ReadTransaction) -> int:
            counting = CountingReads(tr)
            assert await locks_around(counting, bucket.bucket_id, key) == []
            return counting.count

        assert await engine.store.db.read(body) <= reads_max
