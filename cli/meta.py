"""``lode meta``: metadata copied from one place to another, backed up and restored."""

from __future__ import annotations

import sys
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import TypeAlias

import msgspec
import trio
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn

from cli.arguments import format_bytes
from cli.logs import configure_logs
from engine.config import StoreConfig
from engine.errors import ConfigError
from engine.identity import read_identity, write_identity
from engine.meta.copying import abort_copy, check_unused, copy_metadata, end_copy
from engine.meta.fdb_location import SCHEME, FdbLocation
from engine.meta.kv import Database
from engine.meta.sqlite_backup import back_up, restore
from engine.metadata import embedded_file, metadata_location, open_metadata, open_place

EMBEDDED = "embedded"

Place: TypeAlias = FdbLocation | None
"""None: in the data folder."""


def copy(data: Path, source: str, target: str) -> None:
    """Copy all metadata, compare it, and let the data folder use the copy from then on."""
    configure_logs("warning", as_json=False)
    identity = read_identity(data)
    config = StoreConfig(data=data)
    places = _places(config, source, target)
    place = str(places[1]) if places[1] is not None else ""

    async def main() -> int:
        async with _opened(config, places) as (source_db, target_db):
            with _progress() as progress:
                rows = await copy_metadata(
                    source_db,
                    target_db,
                    identity.store_id,
                    place=place or EMBEDDED,
                    progress=partial(_update, progress, {}),
                )
            write_identity(data, msgspec.structs.replace(identity, meta=place))
            await end_copy(source_db, place or EMBEDDED)
            return rows

    try:
        rows = trio.run(main)
    except ConfigError:
        raise
    except BaseException:
        print(
            "lode: the copy is not complete: the same command goes on with it, and --abort gives "
            "it up; until then the store is read-only",
            file=sys.stderr,
        )
        raise
    print(f"copied and compared {rows} rows; {data} uses {place or EMBEDDED} now")
    print(
        f"restart what uses this store: it goes on reading from {source}, which nobody can change "
        "any more; remove that when nothing needs it"
    )


def abort(data: Path, source: str, target: str) -> None:
    """Let a store be changed again whose copy was begun and is not to be ended."""
    configure_logs("warning", as_json=False)
    identity = read_identity(data)
    config = StoreConfig(data=data)
    places = _places(config, source, target)
    if metadata_location(config) != places[0]:
        raise ConfigError(f"the copy has ended: {data} uses {target}")

    async def main() -> bool:
        async with _opened(config, places) as (source_db, target_db):
            return await abort_copy(source_db, target_db, identity.store_id)

    undone = trio.run(main)
    print(f"{data} can be changed again" if undone else "there was no copy to abort")


def _places(config: StoreConfig, source: str, target: str) -> tuple[Place, Place]:
    """Raises: ConfigError: they do not go with the data folder."""
    places = _place(source), _place(target)
    if places[0] == places[1]:
        raise ConfigError("source and target are the same")
    if metadata_location(config) not in places:
        meta = read_identity(config.data).meta
        raise ConfigError(
            f"the metadata of {config.data} is in {meta or EMBEDDED}: name that as the source"
        )
    return places


@asynccontextmanager
async def _opened(
    config: StoreConfig, places: tuple[Place, Place]
) -> AsyncIterator[tuple[Database, Database]]:
    async with AsyncExitStack() as stack:
        source = await stack.enter_async_context(open_place(config, places[0]))
        yield source, await stack.enter_async_context(open_place(config, places[1]))


def _place(text: str) -> Place:
    if text == EMBEDDED:
        return None
    if not text.startswith(SCHEME):
        raise ConfigError(f"{text!r}: name a place as {EMBEDDED} or fdb:CLUSTERFILE")
    return FdbLocation.parse(text)


def _progress() -> Progress:
    console = Console(stderr=True)
    return Progress(
        SpinnerColumn(),
        TextColumn("{task.description}: {task.completed:,} rows"),
        TimeElapsedColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )


def _update(progress: Progress, tasks: dict[str, TaskID], phase: str, done: int) -> None:
    if phase not in tasks:
        tasks[phase] = progress.add_task(phase, total=None)
    progress.update(tasks[phase], completed=done)


def backup(data: Path, file: Path) -> None:
    """Back up the embedded store of ``data``, also while it runs."""
    size = back_up(_embedded(data), file, read_identity(data).store_id)
    print(f"{file}: {format_bytes(size)}")


def restore_backup(data: Path, file: Path) -> None:
    """Put a backup back; nothing may run on the store."""
    configure_logs("warning", as_json=False)
    store = _embedded(data)
    if store.exists():
        trio.run(_check_unused, data)
    kept = restore(file, store, read_identity(data).store_id)
    print(f"{store}: restored from {file}")
    if kept is not None:
        print(f"what was there is {kept}; remove it when all is well. Run lode fsck now.")


async def _check_unused(data: Path) -> None:
    async with open_metadata(StoreConfig(data=data)) as db:
        await check_unused(db, _now_ms())


def _embedded(data: Path) -> Path:
    location = metadata_location(StoreConfig(data=data))
    if location is not None:
        raise ConfigError(
            f"the metadata of {data} is in {location}: use FoundationDB's own fdbbackup"
        )
    return embedded_file(data)


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
