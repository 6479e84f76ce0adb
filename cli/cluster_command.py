"""The command line of ``lode cluster``: make a store whose drives are its members'."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from cli import help
from cli.options import DataOption

cluster_app = typer.Typer(no_args_is_help=True, rich_markup_mode="rich")


MetaOption = Annotated[
    str | None,
    typer.Option(
        "--meta",
        metavar="PLACE",
        help="Where the metadata is, for several gateways: fdb:CLUSTERFILE. (LODE_META; default: "
        "the data folder itself)",
        show_default=False,
    ),
]


@cluster_app.command(help=help.CLUSTER_JOIN)
def join(
    meta: Annotated[str, typer.Argument(metavar="PLACE", show_default=False)],
    data: DataOption = None,
) -> None:
    from cli.cluster import join_cluster
    from cli.settings import data_folder, metadata_place

    join_cluster(data_folder(data, os.environ), metadata_place(meta, os.environ))


@cluster_app.command(help=help.CLUSTER_INIT)
def init(
    data: DataOption = None,
    meta: MetaOption = None,
    profile: Annotated[
        str,
        typer.Option(
            metavar="K+M", help="Data and parity blocks per stripe: any M drives may be lost."
        ),
    ] = "4+2",
    secret_file: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Use the secret in this file. (LODE_CLUSTER_SECRET; default: make one)",
            show_default=False,
        ),
    ] = None,
) -> None:
    from cli.cluster import init_cluster
    from cli.settings import data_folder, metadata_place

    init_cluster(
        data_folder(data, os.environ),
        profile,
        secret_file,
        os.environ,
        meta=metadata_place(meta, os.environ),
    )


@cluster_app.command(help=help.CLUSTER_SECRET)
def secret(data: DataOption = None) -> None:
    from cli.cluster import print_secret
    from cli.settings import data_folder

    print_secret(data_folder(data, os.environ))
