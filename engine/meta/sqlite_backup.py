"""Backing up the embedded store while it runs, and putting a backup back."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import apsw

from engine.errors import ConfigError
from engine.meta.copying import CURSOR, STORE_ID
from engine.meta.sqlite_file import APPLICATION_ID, FORMAT, GET, SET


def back_up(store: Path, target: Path, store_id: str) -> int:
    """Write one consistent state of the store to the new file ``target``; return its size.

    Runs beside any number of readers and writers: it holds one snapshot, during which the log
    grows. Blocking. The file is complete and on stable storage, or not there.

    Raises: ConfigError: it exists, or cannot be written or read back.
    """
    if target.exists():
        raise ConfigError(f"{target}: is there already")
    partial = target.with_name(target.name + ".partial")
    try:
        partial.unlink(missing_ok=True)
        source = apsw.Connection(str(store), flags=apsw.SQLITE_OPEN_READWRITE)
        with contextlib.closing(source):
            source.set_busy_timeout(5000)
            source.execute("VACUUM INTO ?", (str(partial),))
        copy = apsw.Connection(str(partial), flags=apsw.SQLITE_OPEN_READWRITE)
        with contextlib.closing(copy):
            copy.execute(SET, (STORE_ID, store_id.encode()))
            _check(copy, target)
        _sync(partial)
        os.rename(partial, target)
        _sync(target.parent)
    except (apsw.Error, OSError) as error:
        raise ConfigError(f"{target}: {type(error).__name__}: {error}") from error
    finally:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
    return target.stat().st_size


def restore(backup: Path, store: Path, store_id: str) -> Path | None:
    """Put a backup in the place of the store; return where what was there is kept now.

    Nobody may have the store open. Blocking; durable on return.

    Raises: ConfigError: the file is no whole backup of this store, or cannot be copied.
    """
    kept: Path | None = None
    try:
        connection = apsw.Connection(str(backup), flags=apsw.SQLITE_OPEN_READONLY)
        with contextlib.closing(connection):
            _check(connection, backup)
            found = connection.execute(GET, (STORE_ID,)).get
            if found != store_id.encode():
                name = found.decode() if isinstance(found, bytes) else "unknown"
                raise ConfigError(f"{backup}: of the store {name}, this one is {store_id}")
            new = store.with_name(store.name + ".new")
            new.unlink(missing_ok=True)
            connection.execute("VACUUM INTO ?", (str(new),))
        with contextlib.closing(apsw.Connection(str(new))) as restored:
            # A backup is one file without a log; the store has one.
            restored.pragma("journal_mode", "wal")
        _sync(new)
        if store.exists():
            kept = _move_away(store)
        os.rename(new, store)
        _sync(store.parent)
    except (apsw.Error, OSError) as error:
        raise ConfigError(f"{backup}: {type(error).__name__}: {error}") from error
    return kept


def _move_away(store: Path) -> Path:
    """Rename the store with its log, so that both still belong together."""
    number = 1
    while (kept := store.with_name(f"{store.name}.before-restore-{number}")).exists():
        number += 1
    for suffix in ("-wal", "-shm"):
        log = store.with_name(store.name + suffix)
        if log.exists():
            os.rename(log, kept.with_name(kept.name + suffix))
    os.rename(store, kept)
    return kept


def _check(connection: apsw.Connection, file: Path) -> None:
    if connection.pragma("application_id") != APPLICATION_ID:
        raise ConfigError(f"{file}: not a metadata store")
    if connection.pragma("user_version") != FORMAT:
        raise ConfigError(f"{file}: made by another version")
    verdict = connection.pragma("quick_check")
    if verdict != "ok":
        raise ConfigError(f"{file}: damaged: {verdict}")
    if connection.execute(GET, (CURSOR,)).get is not None:
        raise ConfigError(f"{file}: an unfinished copy of metadata")


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
