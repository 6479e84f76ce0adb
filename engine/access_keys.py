"""Access keys: who may ask for what, kept in the metadata and known by heart in every gateway.

A request is signed with a secret that must be at hand at once, so each process has all keys in
memory (``find`` is a look-up in a dictionary) and watches a counter that every change bumps. A
change reaches all processes within a fraction of a second. Should the watch be late, each looks
again after ``RECHECK_S`` anyway; and a process that could not look for ``LATE_S`` refuses all keys
but the root's, which is not its own to forget, rather than go on with what may be revoked.

Concurrency: one task follows; it replaces the dictionary as a whole, so any thread may look.
"""

from __future__ import annotations

import secrets
import string
from collections.abc import Sequence
from typing import Final

import msgspec
import structlog
import trio

from engine.access import Access
from engine.errors import ConfigError, Corrupt, StorageError, Unavailable
from engine.meta import keyspace
from engine.meta.kv import ReadTransaction, Transaction
from engine.meta.records import FORMAT, AccessKeyRecord, decode_access_key, encode
from engine.sealing import SECRET_SIZE, Seal
from engine.store import Store

ACCESS_KEY_SIZE: Final = 20
SECRET_KEY_SIZE: Final = 40
NAME_SIZE_MAX: Final = 256
BUCKETS_MAX: Final = 1000
"""Of one key: they are all in its record."""

RECHECK_S: Final = 5.0
LATE_S: Final = 15.0
AGAIN_S: Final = 0.5
"""After a failure of the metadata store."""

_ACCESS_ALPHABET = string.ascii_uppercase + string.digits
# Without + and /: AWS's keys have them, and they break in URLs and shell scripts.
_SECRET_ALPHABET = string.ascii_letters + string.digits

log = structlog.get_logger()


class AccessKey(msgspec.Struct, frozen=True, kw_only=True):
    """A key as it is known to who checks signatures. ``repr`` keeps the secret out of logs."""

    access_key: str
    secret_key: str
    name: str
    created_ms: int
    access: Access
    disabled: bool = False

    def __repr__(self) -> str:
        return f"AccessKey({self.access_key!r}, {self.name!r}, {self.access!r})"


def new_pair() -> tuple[str, str]:
    """Return a new access key and secret key."""
    return (
        "".join(secrets.choice(_ACCESS_ALPHABET) for _ in range(ACCESS_KEY_SIZE)),
        "".join(secrets.choice(_SECRET_ALPHABET) for _ in range(SECRET_KEY_SIZE)),
    )


class AccessKeys:
    def __init__(self, store: Store) -> None:
        self._store = store
        self._keys: dict[str, AccessKey] = {}
        self._decoded: dict[str, tuple[bytes, AccessKey]] = {}
        self._counter: bytes | None = None
        self._late = False

    # For those who check signatures

    def find(self, access_key: str) -> AccessKey | None:
        """Return the key, or None when there is none or it is disabled. Any thread, at once.

        Raises: Unavailable: what is known of keys is too old.
        """
        if self._late:
            raise Unavailable("access keys cannot be checked: the metadata store does not answer")
        return self._keys.get(access_key)

    async def follow(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Keep ``find`` up to date until cancelled; started once all keys are known.

        Raises: StorageError: before it has started.
        """
        await self._look()
        task_status.started()
        looked = trio.current_time()
        failing = False
        while True:
            with trio.move_on_after(RECHECK_S):
                try:
                    await self._store.db.watch(keyspace.ACCESS_KEYS, self._counter)
                except StorageError:
                    await trio.sleep(AGAIN_S)
            try:
                with trio.fail_after(RECHECK_S):
                    await self._look()
            except (StorageError, trio.TooSlowError) as error:
                if not failing:
                    log.warning("access keys not looked at", error=str(error))
                failing = True
                self._late = trio.current_time() - looked > LATE_S
            else:
                looked = trio.current_time()
                self._late = failing = False

    async def _look(self) -> None:
        known = self._counter

        async def body(
            tr: ReadTransaction,
        ) -> tuple[bytes | None, bytes | None, list[tuple[bytes, bytes]]]:
            counter = await tr.get(keyspace.ACCESS_KEYS)
            if counter == known:
                return counter, None, []
            return counter, await tr.get(keyspace.KEY_SECRET), await _rows(tr)

        counter, secret, rows = await self._store.db.read(body)
        if counter == known:
            return
        decoded: dict[str, tuple[bytes, AccessKey]] = {}
        seal = self._seal(secret)
        for key, row in rows:
            name = key[1:].decode()
            before = self._decoded.get(name)
            try:
                found = before if before is not None and before[0] == row else None
                decoded[name] = found or (row, _opened(seal, name, row))
            except Corrupt as error:
                log.error("access key left out", error=str(error))
        self._decoded = decoded
        self._keys = {name: key for name, (_, key) in decoded.items() if not key.disabled}
        self._counter = counter

    def _seal(self, secret: bytes | None) -> Seal:
        return Seal(secret or bytes(SECRET_SIZE), self._store.random)

    # For administrators

    async def create(
        self, name: str, *, read_only: bool = False, buckets: Sequence[str] | None = None
    ) -> AccessKey:
        """Make a new key; durable on return, and known to all within a fraction of a second.

        Raises: ConfigError.
        """
        if len(name.encode()) > NAME_SIZE_MAX or not name.isprintable():
            raise ConfigError(f"name: at most {NAME_SIZE_MAX} bytes, printable")
        named = None if buckets is None else sorted(set(buckets))
        if named is not None and len(named) > BUCKETS_MAX:
            raise ConfigError(f"at most {BUCKETS_MAX} buckets for one key")
        access_key, secret_key = new_pair()
        created_ms = self._store.clock()

        async def body(tr: Transaction) -> None:
            record = AccessKeyRecord(
                format=FORMAT,
                name=name,
                created_ms=created_ms,
                sealed=(await self._make_seal(tr)).seal(secret_key, access_key),
                read_only=read_only,
                buckets=named,
            )
            tr.set(keyspace.access_key(access_key), encode(record))
            tr.add(keyspace.ACCESS_KEYS, 1)

        await self._store.db.run(body)
        return AccessKey(
            access_key=access_key,
            secret_key=secret_key,
            name=name,
            created_ms=created_ms,
            access=Access(read_only, None if named is None else frozenset(named)),
        )

    async def list(self) -> list[AccessKey]:
        """Return all keys by the time they were made."""

        async def body(tr: ReadTransaction) -> tuple[bytes | None, list[tuple[bytes, bytes]]]:
            return await tr.get(keyspace.KEY_SECRET), await _rows(tr)

        secret, rows = await self._store.db.read(body)
        seal = self._seal(secret)
        keys = [_opened(seal, key[1:].decode(), row) for key, row in rows]
        return sorted(keys, key=lambda key: (key.created_ms, key.access_key))

    async def get(self, which: str) -> AccessKey:
        """Return the key that a person means: an access key, or a name that one key has.

        Raises: ConfigError: none, or several have the name.
        """
        keys = await self.list()
        found = [key for key in keys if key.access_key == which]
        found = found or [key for key in keys if key.name == which]
        if not found:
            raise ConfigError(f"no access key {which!r}")
        if len(found) > 1:
            raise ConfigError(f"several keys are called {which!r}: give the access key")
        return found[0]

    async def delete(self, which: str) -> AccessKey:
        """Raises what ``get`` raises."""
        key = await self.get(which)

        async def body(tr: Transaction) -> None:
            if await tr.get(keyspace.access_key(key.access_key)) is None:
                raise ConfigError(f"no access key {which!r}")
            tr.clear(keyspace.access_key(key.access_key))
            tr.add(keyspace.ACCESS_KEYS, 1)

        await self._store.db.run(body)
        return key

    async def set_disabled(self, which: str, disabled: bool) -> AccessKey:
        """Raises what ``get`` raises."""
        key = await self.get(which)

        async def body(tr: Transaction) -> None:
            row = await tr.get(keyspace.access_key(key.access_key))
            if row is None:
                raise ConfigError(f"no access key {which!r}")
            record = msgspec.structs.replace(decode_access_key(row), disabled=disabled)
            tr.set(keyspace.access_key(key.access_key), encode(record))
            tr.add(keyspace.ACCESS_KEYS, 1)

        await self._store.db.run(body)
        return msgspec.structs.replace(key, disabled=disabled)

    # The root credentials, where gateways share their metadata

    async def root(self) -> tuple[str, str] | None:
        """Return access key and secret key of the root, if the metadata has them."""

        async def body(tr: ReadTransaction) -> tuple[bytes | None, bytes | None]:
            return await tr.get(keyspace.KEY_SECRET), await tr.get(keyspace.ROOT_KEY)

        secret, row = await self._store.db.read(body)
        return None if row is None else _pair(self._seal(secret), row)

    async def settle_root(self, access_key: str, secret_key: str) -> tuple[str, str]:
        """Return the root credentials of all gateways: those that are there, else these."""
        # A store that may not be changed just now has them.
        known = await self.root()
        if known is not None:
            return known

        async def body(tr: Transaction) -> tuple[str, str]:
            row = await tr.get(keyspace.ROOT_KEY)
            seal = await self._make_seal(tr)
            if row is not None:
                return _pair(seal, row)
            record = AccessKeyRecord(
                format=FORMAT,
                name=access_key,
                created_ms=self._store.clock(),
                sealed=seal.seal(secret_key, access_key),
            )
            tr.set(keyspace.ROOT_KEY, encode(record))
            return access_key, secret_key

        return await self._store.db.run(body)

    async def _make_seal(self, tr: Transaction) -> Seal:
        secret = await tr.get(keyspace.KEY_SECRET)
        if secret is None:
            secret = self._store.random(SECRET_SIZE)
            tr.set(keyspace.KEY_SECRET, secret)
        return self._seal(secret)


async def _rows(tr: ReadTransaction) -> list[tuple[bytes, bytes]]:
    return await tr.get_range(keyspace.ACCESS_KEY, keyspace.after_prefix(keyspace.ACCESS_KEY))


def _opened(seal: Seal, access_key: str, row: bytes) -> AccessKey:
    """Raises Corrupt."""
    record = decode_access_key(row)
    buckets = None if record.buckets is None else frozenset(record.buckets)
    return AccessKey(
        access_key=access_key,
        secret_key=seal.open(record.sealed, access_key),
        name=record.name,
        created_ms=record.created_ms,
        access=Access(record.read_only, buckets),
        disabled=record.disabled,
    )


def _pair(seal: Seal, row: bytes) -> tuple[str, str]:
    record = decode_access_key(row)
    return record.name, seal.open(record.sealed, record.name)
