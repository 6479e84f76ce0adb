"""Which metadata store a data folder uses, and how it is opened."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from engine.config import StoreConfig
from engine.errors import ConfigError
from engine.identity import (
    FILE,
    StoreIdentity,
    check_same,
    read_identity,
    read_or_make_identity,
)
from engine.meta.copying import STORE_ID, is_unfinished
from engine.meta.embedded import open_embedded
from engine.meta.fdb import FdbLocation, open_fdb
from engine.meta.kv import Database, Transaction
from engine.meta.read_only import MOVED, read_only_reason


def metadata_location(config: StoreConfig) -> FdbLocation | None:
    """Return the place on FoundationDB; None: the metadata is in the data folder.

    Raises: ConfigError: the setting cannot be read, or the folder holds no store and nothing
        else says where its metadata is.
    """
    text = config.meta
    if not text and (config.data / FILE).exists():
        text = read_identity(config.data).meta
    return FdbLocation.parse(text) if text else None


def embedded_file(data: Path) -> Path:
    return data / "meta" / "store.sqlite"


@asynccontextmanager
async def open_metadata(config: StoreConfig) -> AsyncIterator[Database]:
    """Open the store's metadata.

    Raises: ConfigError; Unavailable: FoundationDB does not answer.
    """
    async with open_place(config, metadata_location(config)) as database:
        if await is_unfinished(database):
            raise ConfigError(
                f"{config.meta or config.data}: an unfinished copy of metadata; "
                "`lode meta copy` goes on with it"
            )
        why = await read_only_reason(database)
        if why is not None and why.startswith(MOVED):
            raise ConfigError(
                f"{config.data}: its metadata was {why}; name that with --meta and a new data "
                "folder, or have this one used again with `lode meta copy --abort`"
            )
        yield database


@asynccontextmanager
async def open_place(config: StoreConfig, location: FdbLocation | None) -> AsyncIterator[Database]:
    """Open the database at a place; None: the data folder. What it holds is not looked at."""
    if location is None:
        file = embedded_file(config.data)
        file.parent.mkdir(exist_ok=True)
        async with open_embedded(file, vfs=config.meta_vfs) as embedded:
            yield embedded
        return
    async with open_fdb(location) as database:
        yield database


async def shared_store_id(config: StoreConfig, *, make: bool) -> str | None:
    """Return the id that all data folders of this store have; None: there is one folder, which
    knows it.

    Args:
        make: a store that is not there yet gets an id.
    Raises:
        ConfigError: no store is there; Unavailable.
    """
    location = metadata_location(config)
    if location is None:
        return None
    made = uuid.uuid4().hex

    async def settle(tr: Transaction) -> str | None:
        known = await tr.get(STORE_ID)
        if known is None and make:
            tr.set(STORE_ID, made.encode())
            return made
        return None if known is None else known.decode()

    async with open_metadata(config) as db:
        store_id = await db.run(settle)
    if store_id is None:
        raise ConfigError(f"{location}: no store is there; `lode serve --meta` makes one")
    return store_id


async def find_identity(config: StoreConfig, now_ms: int) -> StoreIdentity:
    """Return the store's identity. Where another gateway has made the store, a new data folder
    becomes one of it.

    Raises: ConfigError, Unavailable.
    """
    if config.meta and not (config.data / FILE).exists():
        return read_or_make_identity(config, now_ms, await shared_store_id(config, make=False))
    identity = read_identity(config.data)
    check_same(config, identity, None)
    return identity
