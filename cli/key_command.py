"""The command line of ``lode key``."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from cli import help
from cli.options import DataOption
from engine.errors import ConfigError

key_app = typer.Typer(no_args_is_help=True, rich_markup_mode="rich")

JsonOption = Annotated[
    bool, typer.Option("--json", help="Print JSON with stable field names instead of a table.")
]


def _suggest(context: typer.Context, incomplete: str) -> list[tuple[str, str]]:
    """Complete an access key, with its name beside it; nothing when the store cannot be asked."""
    from cli.keys import known_keys

    try:
        return known_keys(_folder(context.params.get("data")), incomplete)
    except Exception:  # noqa: BLE001  a completion is never worth an error on the command line
        return []


KeyArgument = Annotated[
    str,
    typer.Argument(
        metavar="KEY",
        help="An access key, or the name of one.",
        show_default=False,
        autocompletion=_suggest,
    ),
]


def _folder(data: Path | None) -> Path:
    from cli.settings import data_folder

    return data_folder(data, os.environ)


@key_app.command(help=help.KEY_CREATE)
def create(
    name: Annotated[
        str,
        typer.Argument(metavar="NAME", help="What or whom it is for.", show_default=False),
    ] = "",
    data: DataOption = None,
    read_only: Annotated[
        bool, typer.Option("--read-only", help="It may read and list, and change nothing.")
    ] = False,
    bucket: Annotated[
        list[str] | None,
        typer.Option(
            "--bucket",
            metavar="BUCKET",
            help="It reaches this bucket, and no other that is not named too. (default: all)",
            show_default=False,
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    from cli import keys

    keys.create(_folder(data), name, read_only=read_only, buckets=bucket or None, as_json=as_json)


@key_app.command("list", help=help.KEY_LIST)
def list_(data: DataOption = None, as_json: JsonOption = False) -> None:
    from cli import keys

    keys.list_all(_folder(data), as_json=as_json)


@key_app.command(help=help.KEY_SHOW)
def show(
    which: Annotated[
        str | None,
        typer.Argument(
            metavar="KEY",
            help="An access key, or the name of one.",
            show_default=False,
            autocompletion=_suggest,
        ),
    ] = None,
    data: DataOption = None,
    secret: Annotated[bool, typer.Option("--secret", help="With its secret key.")] = False,
    root: Annotated[
        bool, typer.Option("--root", help="The root credentials, secret key included.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    from cli import keys

    if root == (which is not None):
        raise ConfigError("lode key show: name a key, or give --root")
    if which is None:
        keys.show_root(_folder(data), as_json=as_json)
    else:
        keys.show(_folder(data), which, secret=secret, as_json=as_json)


@key_app.command(help=help.KEY_DELETE)
def delete(which: KeyArgument, data: DataOption = None) -> None:
    from cli import keys

    keys.delete(_folder(data), which)


@key_app.command(help=help.KEY_DISABLE)
def disable(which: KeyArgument, data: DataOption = None) -> None:
    from cli import keys

    keys.set_disabled(_folder(data), which, True)


@key_app.command(help=help.KEY_ENABLE)
def enable(which: KeyArgument, data: DataOption = None) -> None:
    from cli import keys

    keys.set_disabled(_folder(data), which, False)
