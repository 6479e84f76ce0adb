"""``lode bucket quota``: show and limit what a bucket takes."""

from __future__ import annotations

import os
from typing import Annotated

import typer

from cli import help
from cli.options import DataOption
from engine.errors import ConfigError

bucket_app = typer.Typer(no_args_is_help=True, rich_markup_mode="rich")


@bucket_app.callback()
def _group() -> None:
    """Keep ``quota`` a command of its own although it is the only one."""


@bucket_app.command(help=help.BUCKET_QUOTA)
def quota(
    bucket: Annotated[str, typer.Argument(metavar="BUCKET", show_default=False)],
    data: DataOption = None,
    size: Annotated[
        str | None,
        typer.Option(
            "--bytes",
            metavar="SIZE",
            help="At most so many bytes: 4096, 512K, 10G, 1.5T.",
            show_default=False,
        ),
    ] = None,
    objects: Annotated[
        int | None,
        typer.Option(metavar="N", help="At most so many versions.", min=0, show_default=False),
    ] = None,
    clear: Annotated[
        bool, typer.Option("--clear", help="Take away the limits that are not given anew.")
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print JSON with stable field names instead of a table.")
    ] = False,
) -> None:
    from cli.admin import bucket_quota
    from cli.arguments import parse_size
    from cli.settings import data_folder

    if objects is not None and objects >= 1 << 63:
        raise ConfigError("--objects: at most 2^63 - 1")
    bucket_quota(
        data_folder(data, os.environ),
        bucket,
        size=parse_size(size) if size is not None else None,
        objects=objects,
        clear=clear,
        as_json=as_json,
    )
