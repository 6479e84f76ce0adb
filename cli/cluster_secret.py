"""The secret that all parts of a cluster share: in the environment, a file, or the data folder."""

from __future__ import annotations

import os
import secrets
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import structlog

from engine.errors import ConfigError
from engine.node.wire.auth import Secret

FILE_NAME = "cluster.key"
VARIABLE = "LODE_CLUSTER_SECRET"

_SIZE_MAX = 64 * 1024


class SecretSource(NamedTuple):
    secret: Secret
    where: str
    """What to tell the user: the file's path, or ``environment``."""


def cluster_secret(
    data: Path, file: Path | None, environment: Mapping[str, str], *, make: bool
) -> SecretSource:
    """Return the cluster's secret: of the file if one is named, else of the environment, else of
    the data folder.

    Args:
        make: when nobody brings one, make a new one in the data folder, which exists then;
            it is durable and has mode 0600 on return.
    Raises:
        ConfigError: there is none, it cannot be read, or it is too short.
    """
    text = environment.get(VARIABLE, "")
    if file is None and text:
        return SecretSource(_parse(text.encode(), VARIABLE), "environment")
    path = file if file is not None else data / FILE_NAME
    try:
        try:
            content = _read(path)
        except FileNotFoundError:
            if file is not None or not make:
                raise
            content = _make(path)
    except FileNotFoundError:
        raise ConfigError(
            f"no cluster secret in {path}: copy {FILE_NAME} of another member there, or name a "
            f"file with --secret-file, or set {VARIABLE}"
        ) from None
    except OSError as error:
        raise ConfigError(f"cluster secret {path}: {error.strerror}") from error
    return SecretSource(_parse(content, f"cluster secret {path}"), str(path))


def _parse(text: bytes, where: str) -> Secret:
    try:
        return Secret(text)
    except ValueError as error:
        raise ConfigError(f"{where}: {error}") from None


def _read(path: Path) -> bytes:
    with path.open("rb") as file:
        if stat.S_IMODE(os.fstat(file.fileno()).st_mode) & 0o007:
            structlog.get_logger().warning(
                "the cluster secret is readable by others; chmod it to 0600", path=str(path)
            )
        return file.read(_SIZE_MAX)


def _make(path: Path) -> bytes:
    """Create the file whole or not at all: a crash must not leave an empty one behind."""
    content = secrets.token_hex(32).encode("ascii") + b"\n"
    fresh = path.with_name(path.name + ".new")
    descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with open(descriptor, "wb") as file:
        os.fchmod(file.fileno(), 0o600)
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(fresh, path)
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
    structlog.get_logger().info("made a new cluster secret", path=str(path))
    return content
