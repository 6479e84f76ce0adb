"""The root credentials of a store: from the environment, or made on first start and kept."""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import msgspec
import structlog

from engine.access_keys import new_pair
from engine.errors import ConfigError

ACCESS_VARIABLE = "LODE_ACCESS_KEY"
SECRET_VARIABLE = "LODE_SECRET_KEY"
FILE_NAME = "credentials.json"

REPLACED_NAME = "credentials.replaced.json"

log = structlog.get_logger()


class Credentials(msgspec.Struct, frozen=True):
    access_key: str
    secret_key: str

    def __repr__(self) -> str:
        # A secret must not reach a log by way of a traceback or a debug print.
        return f"Credentials(access_key={self.access_key!r})"

    def check(self, where: str) -> None:
        """Raise ConfigError, naming ``where``, unless clients can use both keys."""
        access, secret = self.access_key, self.secret_key
        if not (3 <= len(access) <= 128 and _printable(access)) or set("/,= ") & set(access):
            raise ConfigError(
                f"{where}: an access key has 3 to 128 ASCII characters without space / , ="
            )
        if not (8 <= len(secret) <= 128 and _printable(secret)):
            raise ConfigError(f"{where}: a secret key has 8 to 128 ASCII characters")


class CredentialsSource(NamedTuple):
    credentials: Credentials
    where: str
    """What to tell the user: the file's path, or ``environment``."""


def from_environment(environment: Mapping[str, str]) -> Credentials | None:
    """Return the credentials that the environment names, None if it names none.

    Raises: ConfigError when there is one key without the other, or one that cannot be.
    """
    access = environment.get(ACCESS_VARIABLE, "")
    secret = environment.get(SECRET_VARIABLE, "")
    if not access and not secret:
        return None
    if not access or not secret:
        given, missing = ACCESS_VARIABLE, SECRET_VARIABLE
        if secret:
            given, missing = missing, given
        raise ConfigError(f"{given} is set and {missing} is not: set both, or neither")
    credentials = Credentials(access, secret)
    credentials.check(f"{ACCESS_VARIABLE} and {SECRET_VARIABLE}")
    return credentials


def load(folder: Path) -> Credentials | None:
    """Return the credentials kept in the data folder, None when there are none.

    Raises: ConfigError when the file cannot be read or understood.
    """
    path = folder / FILE_NAME
    try:
        return _read(path)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ConfigError(f"credentials {path}: {error.strerror}") from error


def keep(folder: Path, credentials: Credentials) -> CredentialsSource:
    """See to it that the data folder keeps these credentials, durably and with mode 0600.

    Others that it keeps are put aside under another name.
    Raises: ConfigError.
    """
    path = folder / FILE_NAME
    known = load(folder)
    try:
        if known is not None and known != credentials:
            os.replace(path, folder / REPLACED_NAME)
            log.warning(
                "the gateways of this store have other credentials; the ones here were put aside",
                path=str(path),
            )
        if known != credentials:
            _write(path, credentials)
    except OSError as error:
        raise ConfigError(f"credentials {path}: {error.strerror}") from error
    return CredentialsSource(credentials, str(path))


def generate() -> Credentials:
    return Credentials(*new_pair())


def _read(path: Path) -> Credentials:
    with path.open("rb") as file:
        mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
        if mode & 0o077:
            log.warning("credentials were readable by others; mode set to 0600", path=str(path))
            os.fchmod(file.fileno(), 0o600)
        content = file.read(64 * 1024)
    try:
        credentials = msgspec.json.decode(content, type=Credentials)
    except msgspec.DecodeError as error:
        raise ConfigError(
            f"credentials {path}: {error}; repair the file, or remove it to get new keys"
        ) from error
    credentials.check(f"credentials {path}")
    return credentials


def _write(path: Path, credentials: Credentials) -> None:
    """Create the file whole or not at all: a crash must not leave an empty one behind."""
    fresh = path.with_name(path.name + ".new")
    descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with open(descriptor, "wb") as file:
        os.fchmod(file.fileno(), 0o600)
        file.write(msgspec.json.format(msgspec.json.encode(credentials)) + b"\n")
        file.flush()
        os.fsync(file.fileno())
    os.replace(fresh, path)
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _printable(text: str) -> bool:
    return text.isascii() and text.isprintable()
