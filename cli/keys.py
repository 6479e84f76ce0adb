"""``lode key``: access keys made, shown, disabled and deleted, beside running servers."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import msgspec
from rich.table import Table

from cli.admin import ask_store, output_console
from cli.credentials import Credentials, load
from engine import Engine
from engine.access_keys import AccessKey
from engine.errors import ConfigError


class ShownKey(msgspec.Struct, frozen=True, omit_defaults=True):
    """A key as JSON shows it."""

    access_key: str
    name: str
    permission: str
    """``read-write`` or ``read-only``"""
    buckets: list[str] | None
    """null: all."""
    created: str
    """RFC 3339, UTC"""
    disabled: bool
    secret_key: str = ""


def create(
    data: Path, name: str, *, read_only: bool, buckets: Sequence[str] | None, as_json: bool
) -> None:
    """Make a key and print it, with its secret."""

    meta = data / "meta"
    if meta.is_dir():
        # The secrets, and what they are sealed under, are among the metadata.
        meta.chmod(0o700)

    async def ask(engine: Engine) -> AccessKey:
        return await engine.access_keys.create(name, read_only=read_only, buckets=buckets)

    _print(_shown(ask_store(data, ask), secret=True), as_json)


def list_all(data: Path, *, as_json: bool) -> None:
    shown = [_shown(key) for key in ask_store(data, lambda engine: engine.access_keys.list())]
    if as_json:
        _print_json(shown)
        return
    table = Table(box=None, header_style="bold", pad_edge=False)
    for heading in ("access key", "name", "permission", "buckets", "created", ""):
        table.add_column(heading, overflow="fold")
    for key in shown:
        table.add_row(
            key.access_key,
            key.name,
            key.permission,
            _buckets(key),
            key.created,
            "disabled" if key.disabled else "",
        )
    output_console().print(table)


def show(data: Path, which: str, *, secret: bool, as_json: bool) -> None:
    key = ask_store(data, lambda engine: engine.access_keys.get(which))
    _print(_shown(key, secret=secret), as_json)


def show_root(data: Path, *, as_json: bool) -> None:
    """Print the root credentials: as the metadata has them, else as the data folder does.

    Raises: ConfigError: neither has any.
    """
    pair = ask_store(data, lambda engine: engine.access_keys.root())
    kept = load(data)
    root = kept if pair is None else Credentials(*pair)
    if root is None:
        raise ConfigError(
            f"{data}: no root credentials yet: `lode serve` makes them, unless they come from its "
            "environment"
        )
    if as_json:
        _print_json(root)
        return
    table = _pairs()
    table.add_row("access key", root.access_key)
    table.add_row("secret key", root.secret_key)
    output_console().print(table)


def delete(data: Path, which: str) -> None:
    key = ask_store(data, lambda engine: engine.access_keys.delete(which))
    print(f"deleted {key.access_key}")


def set_disabled(data: Path, which: str, disabled: bool) -> None:
    key = ask_store(data, lambda engine: engine.access_keys.set_disabled(which, disabled))
    print(f"{'disabled' if disabled else 'enabled'} {key.access_key}")


def known_keys(data: Path, begin: str) -> list[tuple[str, str]]:
    """Return (access key, name) of the keys that begin so, for completion."""
    keys = ask_store(data, lambda engine: engine.access_keys.list())
    return [(key.access_key, key.name) for key in keys if key.access_key.startswith(begin)]


def _shown(key: AccessKey, *, secret: bool = False) -> ShownKey:
    created = datetime.fromtimestamp(key.created_ms / 1000, UTC)
    return ShownKey(
        access_key=key.access_key,
        name=key.name,
        permission="read-only" if key.access.read_only else "read-write",
        buckets=None if key.access.buckets is None else sorted(key.access.buckets),
        created=created.strftime("%Y-%m-%dT%H:%M:%SZ"),
        disabled=key.disabled,
        secret_key=key.secret_key if secret else "",
    )


def _buckets(key: ShownKey) -> str:
    return "all" if key.buckets is None else " ".join(key.buckets)


def _print(key: ShownKey, as_json: bool) -> None:
    if as_json:
        _print_json(key)
        return
    table = _pairs()
    table.add_row("access key", key.access_key)
    if key.secret_key:
        table.add_row("secret key", key.secret_key)
    table.add_row("name", key.name)
    table.add_row("permission", key.permission + (", disabled" if key.disabled else ""))
    table.add_row("buckets", _buckets(key))
    table.add_row("created", key.created)
    output_console().print(table)


def _pairs() -> Table:
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    return table


def _print_json(shown: object) -> None:
    print(msgspec.json.format(msgspec.json.encode(shown)).decode())
