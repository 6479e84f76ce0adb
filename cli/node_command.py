"""The command line of ``lode node``: alone it is the daemon, which ``cli.node`` runs.

What administers the members of a cluster are commands below it, added to ``node_app``.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from cli import help

node_app = typer.Typer(
    invoke_without_command=True,
    no_args_is_help=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)

_NETWORK = "Network"
_PLACE = "Where it stands"


@node_app.callback(help=help.NODE)
def node_command(
    context: typer.Context,
    data: Annotated[
        Path | None,
        typer.Option(
            "--data",
            metavar="DIR",
            help="Folder of this member: node.json, cluster.key. (LODE_DATA; default ./data)",
            show_default=False,
        ),
    ] = None,
    drives: Annotated[
        list[str] | None,
        typer.Option(
            "--drives",
            metavar="DIR...",
            help="One folder per drive: [cyan]--drives a b c[/cyan], or a,b,c, or repeated. "
            "Without it: those that it had, for a new one DATA/drive.",
            show_default=False,
        ),
    ] = None,
    listen: Annotated[
        str,
        typer.Option(
            metavar="HOST:PORT",
            help="Where gateways reach it; :PORT means every interface.",
            rich_help_panel=_NETWORK,
        ),
    ] = "127.0.0.1:9100",
    secret_file: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="The cluster's secret. (LODE_CLUSTER_SECRET; default DATA/cluster.key, made if it "
            "is not there)",
            show_default=False,
            rich_help_panel=_NETWORK,
        ),
    ] = None,
    tls_cert: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Certificate chain (PEM); with --tls-key, speak TLS only.",
            show_default=False,
            rich_help_panel=_NETWORK,
        ),
    ] = None,
    tls_key: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Private key (PEM, no passphrase).",
            show_default=False,
            rich_help_panel=_NETWORK,
        ),
    ] = None,
    tls_ca: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Refuse whoever has no certificate of this authority (PEM).",
            show_default=False,
            rich_help_panel=_NETWORK,
        ),
    ] = None,
    name: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help="What people call it. (default: the machine's name)",
            show_default=False,
            rich_help_panel=_PLACE,
        ),
    ] = "",
    zone: Annotated[
        str, typer.Option(metavar="Z", show_default=False, rich_help_panel=_PLACE)
    ] = "",
    rack: Annotated[
        str, typer.Option(metavar="R", show_default=False, rich_help_panel=_PLACE)
    ] = "",
    host: Annotated[
        str,
        typer.Option(
            metavar="H",
            help="Zone, rack and host are failure domains: fragments of one chunk are kept in "
            "different ones.",
            show_default=False,
            rich_help_panel=_PLACE,
        ),
    ] = "",
    log_level: Annotated[
        str, typer.Option(metavar="LEVEL", help="debug, info, warning or error.")
    ] = "info",
    log_json: Annotated[
        bool, typer.Option("--log-json", help="Log JSON lines also on a terminal.")
    ] = False,
) -> None:
    if context.invoked_subcommand is not None:
        return
    from cli.node import NodeSettings, run_node

    settings = NodeSettings.parse(
        data=data or Path(os.environ.get("LODE_DATA") or "data"),
        drives=drives or [],
        listen=listen,
        name=name,
        domains=(zone, rack, host),
        secret_file=secret_file,
        tls=(tls_cert, tls_key, tls_ca),
        log_level=log_level,
        log_json=log_json,
    )
    run_node(settings, os.environ)
