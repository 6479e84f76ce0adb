"""Which store a data folder is: ``lode.json``, written once when the store is made."""

from __future__ import annotations

import os
import uuid
from pathlib import Path

import msgspec

from engine.config import StoreConfig
from engine.errors import ConfigError

FILE = "lode.json"
FORMAT = 1
OURS = {FILE, FILE + ".new", "credentials.json", "meta", "drive", "lost+found"}
"""What a data folder may hold besides drive folders."""


class StoreIdentity(msgspec.Struct, frozen=True, omit_defaults=True):
    format: int
    store_id: str
    created_ms: int
    meta: str = ""
    """Where its metadata lies, as ``StoreConfig.meta`` says it; empty: in the folder itself."""


def read_identity(data: Path) -> StoreIdentity:
    """Raises: ConfigError: no store is there, or one that this version cannot read."""
    path = data / FILE
    try:
        raw = path.read_bytes()
    except FileNotFoundError:
        raise ConfigError(f"{data}: no store is here; `lode serve` makes one") from None
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from None
    try:
        identity = msgspec.json.decode(raw, type=StoreIdentity)
    except msgspec.DecodeError as error:
        raise ConfigError(f"{path}: not a store's identity file: {error}") from None
    if identity.format > FORMAT:
        raise ConfigError(
            f"{path}: format {identity.format}, this version of lode reads up to {FORMAT}"
        )
    return identity


def read_or_make_identity(
    config: StoreConfig, now_ms: int, store_id: str | None = None
) -> StoreIdentity:
    """Return the store's identity; in an empty or absent folder a new one, durably.

    Args:
        store_id: of the store that is known to be in the metadata; None: this folder decides.
    Raises:
        ConfigError: the folder has other content, belongs to another store or to metadata
            elsewhere, or cannot be written.
    """
    data = config.data
    try:
        data.mkdir(parents=True, exist_ok=True)
        if (data / FILE).exists():
            _check_writable(data)
            identity = read_identity(data)
            check_same(config, identity, store_id)
            return identity
        _check_ours(config)
        identity = StoreIdentity(FORMAT, store_id or uuid.uuid4().hex, now_ms, config.meta)
        write_identity(data, identity)
    except FileExistsError:
        raise ConfigError(f"{data}: not a folder; name another with --data") from None
    except OSError as error:
        raise ConfigError(
            f"{data}: {error.strerror}; name a folder that can be written with --data"
        ) from None
    return identity


def write_identity(data: Path, identity: StoreIdentity) -> None:
    """Write the identity, durably and at once. Raises OSError."""
    _write_durably(data / FILE, msgspec.json.format(msgspec.json.encode(identity)) + b"\n")


def check_same(config: StoreConfig, identity: StoreIdentity, store_id: str | None) -> None:
    """Raise ConfigError if the folder is not of the store that is meant."""
    if config.meta and config.meta != identity.meta:
        raise ConfigError(
            f"{config.data}: this store's metadata is in {identity.meta or 'this folder'}, not in "
            f"{config.meta}; `lode meta copy` moves it"
        )
    if store_id is not None and store_id != identity.store_id:
        raise ConfigError(
            f"{config.data}: belongs to the store {identity.store_id}; the metadata in "
            f"{identity.meta} is of the store {store_id}"
        )


def _check_writable(data: Path) -> None:
    probe = data / f".probe-{os.getpid()}"
    probe.write_bytes(b"")
    probe.unlink()


def _check_ours(config: StoreConfig) -> None:
    drives = [drive.resolve() for drive in config.drives]
    for entry in config.data.iterdir():
        place = entry.resolve()
        if entry.name in OURS or entry.name.startswith(".probe-"):
            continue
        if any(drive == place or drive.is_relative_to(place) for drive in drives):
            continue
        raise ConfigError(
            f"{config.data}: has other content ({entry.name}) and is no store; "
            "name an empty or new folder with --data"
        )


def _write_durably(path: Path, content: bytes) -> None:
    new = path.with_name(path.name + ".new")
    with open(new, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    os.rename(new, path)
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
