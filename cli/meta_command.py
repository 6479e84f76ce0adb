"""The command line of ``lode meta``."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from cli import help
from cli.options import DataOption

meta_app = typer.Typer(no_args_is_help=True, rich_markup_mode="rich")

FileArgument = Annotated[Path, typer.Argument(metavar="FILE", show_default=False)]


def _folder(data: Path | None) -> Path:
    from cli.settings import data_folder

    return data_folder(data, os.environ)


@meta_app.command(help=help.META_COPY)
def copy(
    source: Annotated[str, typer.Argument(metavar="SRC", show_default=False)],
    target: Annotated[str, typer.Argument(metavar="DST", show_default=False)],
    data: DataOption = None,
    abort: Annotated[
        bool,
        typer.Option("--abort", help="Give up a copy that was interrupted: SRC can be changed."),
    ] = False,
) -> None:
    from cli import meta

    (meta.abort if abort else meta.copy)(_folder(data), source, target)


@meta_app.command(help=help.META_BACKUP)
def backup(file: FileArgument, data: DataOption = None) -> None:
    from cli import meta

    meta.backup(_folder(data), file.absolute())


@meta_app.command(help=help.META_RESTORE)
def restore(file: FileArgument, data: DataOption = None) -> None:
    from cli import meta

    meta.restore_backup(_folder(data), file.absolute())
