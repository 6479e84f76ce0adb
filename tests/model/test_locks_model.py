"""Random locks and writes against a reference that looks at every lock for every key."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import trio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from engine.engine import Engine
from engine.errors import Locked, NoSuchKey, NoSuchLock
from engine.types import Conditions, LockRequest, PropertyChange
from tests.support.engine import ManualClock, folder_in, put, scratch_folder

B = "bucket"
KEYS = ("a", "a/a", "a/b", "a/b/c", "a/b/", "a/", "ab", "a/bc", "d/e/f", "d/e/", "z")
ROOTS = (*KEYS, "")
PRINCIPALS = ("me", "you")
NAME = "{urn:x}name"

# The clock moves with each look as well, by seconds in all: no sum of pauses comes near a
# time-out from below.
TIMEOUTS = (100, 100_000)
PAUSES = (60, 200)


@dataclass
class HeldLock:
    root: str
    exclusive: bool
    deep: bool
    principal: str
    token: str
    expires_ms: int

    def covers(self, key: str) -> bool:
        is_folder = not self.root or self.root.endswith("/")
        return key == self.root or (self.deep and is_folder and key.startswith(self.root))

    def guards(self, key: str) -> bool:
        """Whether the key is a member whose coming and going needs this lock."""
        is_folder = not self.root or self.root.endswith("/")
        if self.deep or not is_folder or key == self.root or not key.startswith(self.root):
            return False
        return "/" not in key[len(self.root) :].removesuffix("/")


@dataclass
class Reference:
    locks: list[HeldLock] = field(default_factory=list)
    keys: dict[str, str | None] = field(default_factory=dict)
    """Key → its property, if it has it."""

    def expire(self, now_ms: int) -> None:
        self.locks = [lock for lock in self.locks if lock.expires_ms > now_ms]

    def passes(self, key: str, principal: str, *, membership: bool) -> bool:
        covering = [lock for lock in self.locks if lock.covers(key)]
        guarding = [lock for lock in self.locks if membership and lock.guards(key)]
        return all(
            not group or any(lock.principal == principal for lock in group)
            for group in (covering, guarding)
        )

    def may_lock(self, wanted: HeldLock) -> bool:
        if not wanted.root or wanted.root.endswith("/"):
            below = [lock for lock in self.locks if lock.root.startswith(wanted.root)]
        else:
            below = []
        meets = [lock for lock in self.locks if lock.covers(wanted.root)]
        meets += below if wanted.deep else []
        if any(lock.exclusive or wanted.exclusive for lock in meets):
            return False
        appears = bool(wanted.root) and wanted.root not in self.keys
        return not appears or self.passes(wanted.root, wanted.principal, membership=True)

    def remove(self, key: str) -> None:
        self.keys.pop(key, None)
        self.locks = [lock for lock in self.locks if lock.root != key]

    def tokens(self, principal: str) -> tuple[str, ...]:
        return tuple(lock.token for lock in self.locks if lock.principal == principal)


class Run:
    def __init__(self, engine: Engine, clock: ManualClock) -> None:
        self.engine = engine
        self.clock = clock
        self.reference = Reference()

    def conditions(self, principal: str) -> Conditions:
        return Conditions(lock_tokens=self.reference.tokens(principal), principal=principal)

    async def lock(
        self, root: str, exclusive: bool, deep: bool, principal: str, timeout_s: int
    ) -> None:
        wanted = HeldLock(root, exclusive, deep, principal, "", 0)
        allowed = self.reference.may_lock(wanted)
        request = LockRequest(
            principal=principal, owner="", exclusive=exclusive, deep=deep, timeout_s=timeout_s
        )
        try:
            info, _ = await self.engine.locking.lock(
                B, root, request, conditions=self.conditions(principal)
            )
        except Locked:
            assert not allowed
            return
        assert allowed
        wanted.token, wanted.expires_ms = info.token, info.expires_ms
        self.reference.locks.append(wanted)
        if root:
            self.reference.keys.setdefault(root, None)

    async def unlock(self, number: int, principal: str) -> None:
        if not self.reference.locks:
            return
        lock = self.reference.locks[number % len(self.reference.locks)]
        try:
            await self.engine.locking.unlock(B, lock.root, lock.token, principal=principal)
        except NoSuchLock:
            assert principal != lock.principal
            return
        assert principal == lock.principal
        self.reference.locks.remove(lock)

    async def put(self, key: str, principal: str) -> None:
        membership = key not in self.reference.keys
        allowed = self.reference.passes(key, principal, membership=membership)
        try:
            await put(self.engine, B, key, b"x", conditions=self.conditions(principal))
        except Locked:
            assert not allowed
            return
        assert allowed
        self.reference.keys.setdefault(key, None)

    async def delete(self, key: str, principal: str) -> None:
        allowed = self.reference.passes(key, principal, membership=True)
        try:
            await self.engine.delete(B, key, conditions=self.conditions(principal))
        except Locked:
            assert not allowed
            return
        assert allowed
        self.reference.remove(key)

    async def rename(self, key: str, new_key: str, principal: str) -> None:
        keys = self.reference.keys
        if key == new_key:
            return
        allowed = self.reference.passes(key, principal, membership=True) and self.reference.passes(
            new_key, principal, membership=new_key not in keys
        )
        conditions = self.conditions(principal)
        try:
            await self.engine.rename(
                B, key, new_key, conditions=conditions, new_conditions=conditions
            )
        except NoSuchKey:
            assert key not in keys
            return
        except Locked:
            assert not allowed
            return
        assert allowed
        value = keys[key]
        self.reference.remove(key)
        keys[new_key] = value

    async def set_property(self, key: str, value: str, principal: str) -> None:
        keys = self.reference.keys
        is_folder = key.endswith("/") and any(name.startswith(key) for name in keys)
        allowed = self.reference.passes(key, principal, membership=False)
        try:
            await self.engine.properties.change(
                B, key, [PropertyChange(NAME, value)], conditions=self.conditions(principal)
            )
        except NoSuchKey:
            assert key not in keys
            assert not is_folder
            return
        except Locked:
            assert not allowed
            return
        assert allowed
        keys[key] = value

    async def advance(self, seconds: int) -> None:
        self.clock.advance(seconds)

    async def compare(self) -> None:
        listed = await self.engine.list_objects(B)
        assert {found.key for found in listed.objects} == set(self.reference.keys)
        for key, value in self.reference.keys.items():
            expected = [] if value is None else [(NAME, value)]
            assert await self.engine.properties.get(B, key) == expected
        for root in ROOTS:
            found = {info.token for info in await self.engine.locking.around(B, root)}
            assert found == {lock.token for lock in self.reference.locks if lock.covers(root)}


_principals = st.sampled_from(PRINCIPALS)
_keys = st.sampled_from(KEYS)
STEPS = st.one_of(
    st.tuples(
        st.just("lock"),
        st.sampled_from(ROOTS),
        st.booleans(),
        st.booleans(),
        _principals,
        st.sampled_from(TIMEOUTS),
    ),
    st.tuples(st.just("unlock"), st.integers(0, 9), _principals),
    st.tuples(st.just("put"), _keys, _principals),
    st.tuples(st.just("delete"), _keys, _principals),
    st.tuples(st.just("rename"), _keys, _keys, _principals),
    st.tuples(st.just("set_property"), _keys, st.sampled_from(("<a/>", "<b/>")), _principals),
    st.tuples(st.just("advance"), st.sampled_from(PAUSES)),
)


async def run_script(path: Path, script: list[tuple[object, ...]], versioning: str) -> None:
    folder = folder_in(path, drives=1, profile="1+0")
    await folder.prepare()
    async with folder.open() as engine:
        await engine.create_bucket(B, owner="owner")
        if versioning:
            await engine.set_versioning(B, versioning)
        run = Run(engine, folder.clock)
        for name, *arguments in script:
            run.reference.expire(folder.clock())
            await getattr(run, str(name))(*arguments)
        run.reference.expire(folder.clock())
        await run.compare()
        report = await engine.fsck()
        assert report.clean, report.problems


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(STEPS, max_size=25), st.sampled_from(("", "Enabled", "Suspended")))
def test_locks_and_properties_do_what_the_reference_does(
    script: list[tuple[object, ...]], versioning: str
) -> None:
    with scratch_folder() as path:
        trio.run(run_script, path, script, versioning)
