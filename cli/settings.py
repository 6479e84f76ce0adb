"""Settings of ``lode serve``: option, then environment, then file, then default.

The names are the same everywhere: the option ``--tls-cert`` is ``LODE_TLS_CERT`` in the
environment and ``tls-cert`` in the file.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import TypeAlias

import msgspec

from cli.arguments import Address, parse_duration, parse_size, split_list
from engine.config import MemberTls, Profile, StoreConfig
from engine.errors import ConfigError
from engine.meta.fdb_location import FdbLocation

WORKERS_MAX = 64
WORKERS_DEFAULT_MAX = 8
MOUNT_MEMORY_MIN, MOUNT_MEMORY_MAX = 16, 1 << 20
MAC_FILES = ("keep", "drop", "refuse")
LOG_LEVELS = ("debug", "info", "warning", "error")

_DEFAULT = StoreConfig(data=Path())

Value: TypeAlias = str | int | float | bool | list[str]


class Settings(msgspec.Struct, frozen=True, kw_only=True, rename="kebab"):
    """What one ``lode serve`` was told. Paths are absolute."""

    data: Path = Path("data")
    meta: str = ""
    """Where the metadata is: ``fdb:CLUSTERFILE``; empty: where the data folder says."""
    drives: tuple[Path, ...] = ()
    profile: Profile | None = None
    s3: Address = Address("127.0.0.1", 9000)
    metrics: Address | None = None
    """Where /metrics, /healthz and /readyz are answered; None: nowhere."""
    dav: Address | None = None
    """Where WebDAV listens; None: nowhere."""
    dav_read_only: bool = False
    dav_basic: bool = False
    """Take the password itself over plain HTTP, also from other machines."""
    dav_mac_files: str = "keep"
    dav_infinite_depth: bool = False
    mount: Path | None = None
    """Where every bucket is mounted as a folder; None: nowhere."""
    mount_allow_other: bool = False
    mount_cache_dir: Path | None = None
    """Folder that keeps what was read through the mount; None: nothing is kept."""
    mount_cache_size: int | None = None
    """Bytes that it may take; None: a sensible part of its disk."""
    mount_memory: int | None = None
    """MiB that reading through the mount may hold; None: as ``lode mount``."""
    workers: int = 0
    """Processes that serve; 0 is replaced by one per core, at most 8."""
    tls_cert: Path | None = None
    tls_key: Path | None = None
    domain: tuple[str, ...] = ()
    """Base names for virtual-host addressing: ``bucket.DOMAIN``."""
    region: str = "us-east-1"
    grace: float = _DEFAULT.grace_s
    """Seconds that bytes without an owner are kept."""
    member_ca: Path | None = None
    """Who signs the certificates of the cluster's members; None: they don't speak TLS."""
    member_cert: Path | None = None
    """What is shown to members that ask for a certificate."""
    member_key: Path | None = None
    heartbeat: float = _DEFAULT.heartbeat_s
    suspect_after: float = _DEFAULT.suspect_s
    down_after: float = _DEFAULT.down_s
    lost_after: float = _DEFAULT.lost_s
    """Seconds that a member is down before its fragments are made anew elsewhere."""
    repair_rate: int = 0
    """Bytes per second; 0: no limit."""
    rebalance_rate: int = 0
    scrub_rate: int = 0
    scrub_period: float = _DEFAULT.scrub_period_s
    census_period: float = _DEFAULT.census_period_s
    log_level: str = "info"
    log_json: bool = False

    def store_config(self) -> StoreConfig:
        return StoreConfig(
            data=self.data,
            drives=self.drives,
            profile=self.profile,
            meta=self.meta,
            grace_s=self.grace,
            heartbeat_s=self.heartbeat,
            suspect_s=self.suspect_after,
            down_s=self.down_after,
            lost_s=self.lost_after,
            repair_rate=self.repair_rate,
            rebalance_rate=self.rebalance_rate,
            scrub_rate=self.scrub_rate,
            scrub_period_s=self.scrub_period,
            census_period_s=self.census_period,
            member_tls=_member_tls(self.member_ca, self.member_cert, self.member_key),
        )


OPTION_NAMES = frozenset(Settings.__struct_encode_fields__)


def load_settings(
    options: Mapping[str, Value | None],
    environment: Mapping[str, str],
    config_file: Path | None,
) -> Settings:
    """Merge and check everything that configures a server.

    Args:
        options: by option name without dashes in front; None where none was given.
        environment: the process environment; names that begin with ``LODE_`` count.
        config_file: TOML; relative paths in it are relative to its folder.

    Raises:
        ConfigError: names the key, where it stands, and what would be right.
    """
    fields: dict[str, object] = {}
    if config_file is not None:
        folder = config_file.absolute().parent
        for name, value in _read_file(config_file).items():
            fields[name] = _convert(name, value, f"{name} in {config_file}", folder)
    here = Path.cwd()
    for name in OPTION_NAMES:
        variable = variable_of(name)
        if text := environment.get(variable, ""):
            fields[name] = _convert(name, text, variable, here)
    for name, option in options.items():
        if option is not None:
            fields[name] = _convert(name, option, f"--{name}", here)
    fields.setdefault("data", here / "data")
    fields.setdefault("workers", default_workers())
    settings = msgspec.structs.replace(
        Settings(), **{name.replace("-", "_"): value for name, value in fields.items()}
    )
    if (settings.tls_cert is None) != (settings.tls_key is None):
        raise ConfigError("--tls-cert and --tls-key belong together: give both or neither")
    if settings.mount_cache_size is not None and settings.mount_cache_dir is None:
        raise ConfigError("--mount-cache-size needs --mount-cache-dir: where what is kept goes")
    return settings


def variable_of(name: str) -> str:
    return "LODE_" + name.replace("-", "_").upper()


def default_workers() -> int:
    """Return how many cores this process may use, at most 8."""
    return max(1, min(len(os.sched_getaffinity(0)), WORKERS_DEFAULT_MAX))


def data_folder(option: Path | None, environment: Mapping[str, str]) -> Path:
    """Return the store's folder for commands that need nothing else."""
    return Path(option or environment.get("LODE_DATA") or "data").absolute()


def admin_config(data: Path, environment: Mapping[str, str]) -> StoreConfig:
    """Return how commands beside a running server open the store: services are its work.

    Raises: ConfigError.
    """
    here = Path.cwd()
    ca, cert, key = (
        _path(text, here) if (text := environment.get(variable_of(name))) else None
        for name in ("member-ca", "member-cert", "member-key")
    )
    return StoreConfig(
        data=data,
        meta=metadata_place(None, environment),
        services=False,
        member_tls=_member_tls(ca, cert, key),
    )


def metadata_place(option: str | None, environment: Mapping[str, str]) -> str:
    """Return where the metadata is, for commands that need nothing else; empty: where the data
    folder says. Raises ConfigError."""
    text = option or environment.get(variable_of("meta"), "")
    return _meta(text, Path.cwd()) if text else ""


def _member_tls(ca: Path | None, cert: Path | None, key: Path | None) -> MemberTls | None:
    if (cert is None) != (key is None):
        raise ConfigError("member-cert and member-key belong together: give both or neither")
    if cert is not None and ca is None:
        raise ConfigError("member-cert needs member-ca: who signs the members' certificates")
    return MemberTls(ca=ca, cert=cert, key=key) if ca is not None else None


def _read_file(path: Path) -> dict[str, Value]:
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not UTF-8 text") from error
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path} is not valid TOML: {error}") from error
    for name in document:
        if name not in OPTION_NAMES:
            near = get_close_matches(name, OPTION_NAMES, n=1)
            hint = (
                f"did you mean {near[0]}?" if near else f"known: {', '.join(sorted(OPTION_NAMES))}"
            )
            raise ConfigError(f"unknown key {name!r} in {path}: {hint}")
    return document


def _convert(name: str, value: Value, where: str, folder: Path) -> object:
    """Return ``value`` as the type of the setting; relative paths start at ``folder``."""
    try:
        match name:
            case (
                "data"
                | "tls-cert"
                | "tls-key"
                | "mount"
                | "mount-cache-dir"
                | "member-ca"
                | "member-cert"
                | "member-key"
            ):
                return _path(_text(value), folder)
            case "meta":
                return _meta(_text(value), folder)
            case "drives":
                return _drives(_texts(value), folder)
            case "domain":
                return tuple(_domain(item) for item in _texts(value))
            case "profile":
                return Profile.parse(_text(value))
            case "s3" | "dav" | "metrics":
                return Address.parse(_text(value))
            case "dav-mac-files":
                return _choice(_text(value).lower(), MAC_FILES)
            case "workers":
                return _workers(value)
            case (
                "grace"
                | "heartbeat"
                | "suspect-after"
                | "down-after"
                | "lost-after"
                | "scrub-period"
                | "census-period"
            ):
                return _seconds(value)
            case "mount-memory":
                return _mebibytes(value)
            case "repair-rate" | "rebalance-rate" | "scrub-rate" | "mount-cache-size":
                return value if isinstance(value, int) else parse_size(_text(value))
            case "log-level":
                return _choice(_text(value).lower(), LOG_LEVELS)
            case (
                "log-json"
                | "dav-read-only"
                | "dav-basic"
                | "dav-infinite-depth"
                | "mount-allow-other"
            ):
                return _flag(value)
            case _:
                return _token(_text(value))
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from None


def _meta(text: str, folder: Path) -> str:
    """Return the place of the metadata as the data folder keeps it: with an absolute path."""
    return str(FdbLocation.parse(text, folder))


def _text(value: Value) -> str:
    if not isinstance(value, str) or not value:
        raise ConfigError(f"expected text, not {value!r}")
    return value


def _texts(value: Value) -> list[str]:
    # A TOML array is taken as it is; only command line and environment need comma lists.
    if isinstance(value, str):
        return split_list([value])
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise ConfigError(f"expected a list of texts, not {value!r}")
    return value


def _path(text: str, folder: Path) -> Path:
    if "\0" in text:
        raise ConfigError(f"{text!r} is no path")
    return Path(os.path.normpath(folder / Path(text).expanduser()))


def _drives(texts: list[str], folder: Path) -> tuple[Path, ...]:
    drives = tuple(_path(text, folder) for text in texts)
    for drive in drives:
        if drives.count(drive) > 1:
            raise ConfigError(f"{drive} is named twice; every drive needs a folder of its own")
    return drives


def _domain(text: str) -> str:
    labels = text.lower().rstrip(".").split(".")
    if not all(label.replace("-", "").isalnum() and label.isascii() for label in labels):
        raise ConfigError(f"{text!r} is no host name")
    return ".".join(labels)


def _workers(value: Value) -> int:
    return _number(value, 1, WORKERS_MAX)


def _mebibytes(value: Value) -> int:
    return _number(value, MOUNT_MEMORY_MIN, MOUNT_MEMORY_MAX)


def _number(value: Value, least: int, most: int) -> int:
    if isinstance(value, str) and value.isascii() and value.isdecimal():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise ConfigError(f"expected a number from {least} to {most}, not {value!r}")
    return value


def _seconds(value: Value) -> float:
    if isinstance(value, str):
        return parse_duration(value)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1e10:
        raise ConfigError(f"expected a time, not {value!r}")
    return float(value)


def _choice(text: str, choices: tuple[str, ...]) -> str:
    if text not in choices:
        raise ConfigError(f"{text!r} is none of {', '.join(choices)}")
    return text


def _flag(value: Value) -> bool:
    if isinstance(value, bool):
        return value
    return _choice(_text(value).lower(), ("1", "true", "yes", "0", "false", "no")) in (
        "1",
        "true",
        "yes",
    )


def _token(text: str) -> str:
    if not text.isascii() or not text.replace("-", "").isalnum():
        raise ConfigError(f"{text!r} may have only letters, digits and dashes")
    return text
