"""What the supervisor tells a worker, and what the worker answers: one JSON line each way.

The configuration goes through the worker's standard input, so that secrets stand neither in an
argument list nor in an environment. The supervisor keeps that pipe open as long as it lives.
"""

from __future__ import annotations

from pathlib import Path

import msgspec

from cli.credentials import Credentials
from engine.config import StoreConfig
from fs.options import MountOptions


class DavSettings(msgspec.Struct, frozen=True, kw_only=True):
    """What a process that serves WebDAV needs to know beyond the rest."""

    read_only: bool = False
    basic: bool = False
    """Basic over plain HTTP also from other machines."""
    mac_files: str = "keep"
    infinite_depth: bool = False


class WorkerConfig(msgspec.Struct, frozen=True, kw_only=True):
    number: int
    """1 for the first worker; for logs."""
    store: StoreConfig
    sockets: list[int]
    """File descriptors of listening sockets, inherited under the same numbers."""
    board: int
    """Descriptor of the board of connection counts (``engine.http.crowd``), inherited."""
    workers: int
    credentials: Credentials
    owner_id: str
    """Canonical id of the user that the credentials belong to."""
    region: str
    domains: tuple[str, ...]
    tls_cert: Path | None
    tls_key: Path | None
    log_level: str
    log_json: bool
    metrics: bool = False
    """Somebody adds up what this process counts (``cli.exporter``)."""
    dav: DavSettings | None = None
    """None: this process serves S3."""
    mount: MountOptions | None = None
    """Not None: this process mounts the store, and serves nothing else."""


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """The one line that a worker writes: it accepts requests, or why it never will."""

    ready: bool
    message: str = ""
    usage: bool = False
    """The failure lies in what the user asked for: exit status 2."""


def encode_config(config: WorkerConfig) -> bytes:
    return msgspec.json.encode(config, enc_hook=_encode_path) + b"\n"


def decode_config(line: bytes) -> WorkerConfig:
    return msgspec.json.decode(line, type=WorkerConfig, dec_hook=_decode_path)


def encode_report(report: Report) -> bytes:
    return msgspec.json.encode(report) + b"\n"


def decode_report(line: bytes) -> Report:
    return msgspec.json.decode(line, type=Report)


def _encode_path(value: object) -> str:
    if isinstance(value, Path):
        return str(value)
    raise NotImplementedError(type(value))


def _decode_path(wanted: type, value: object) -> Path:
    if issubclass(wanted, Path) and isinstance(value, str):
        return Path(value)
    raise NotImplementedError(wanted)
