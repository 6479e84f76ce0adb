"""The command lines below ``lode node`` that administer members; ``cli.node_admin`` does it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from cli import help
from cli.node_command import node_app
from cli.options import DataOption

__all__ = ["node_app"]

JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")]
WaitOption = Annotated[
    bool, typer.Option("--wait", help="Return when it is done, and show how far it is.")
]
Name = Annotated[
    str, typer.Argument(metavar="NAME", help="Its name, address or id.", show_default=False)
]
NewAddress = Annotated[str, typer.Argument(metavar="HOST:PORT", show_default=False)]
NameOption = Annotated[
    str | None,
    typer.Option("--name", metavar="NAME", help="(default: what it says)", show_default=False),
]
ZoneOption = Annotated[
    str | None,
    typer.Option("--zone", metavar="Z", help="(default: what it says)", show_default=False),
]
RackOption = Annotated[
    str | None,
    typer.Option("--rack", metavar="R", help="(default: what it says)", show_default=False),
]
HostOption = Annotated[
    str | None,
    typer.Option(
        "--host",
        metavar="H",
        help="(default: what it says, else its name)",
        show_default=False,
    ),
]
WeightOption = Annotated[
    float | None,
    typer.Option(
        "--weight",
        metavar="W",
        min=0.0001,
        max=1e6,
        help="Share of each of its drives, relative to others. (default: its size in TiB)",
        show_default=False,
    ),
]


def _folder(data: Path | None) -> Path:
    from cli.settings import data_folder

    return data_folder(data, os.environ)


@node_app.command(help=help.NODE_ADD)
def add(
    address: NewAddress,
    data: DataOption = None,
    name: NameOption = None,
    zone: ZoneOption = None,
    rack: RackOption = None,
    host: HostOption = None,
    weight: WeightOption = None,
    wait: WaitOption = False,
    as_json: JsonOption = False,
) -> None:
    from cli.node_admin import add_member
    from engine.cluster.admin import Placing

    placing = Placing(name=name, zone=zone, rack=rack, host=host, weight=weight)
    add_member(_folder(data), address, placing, wait=wait, as_json=as_json)


@node_app.command(help=help.NODE_DRAIN)
def drain(
    name: Name,
    data: DataOption = None,
    force: Annotated[
        bool, typer.Option("--force", help="Even if too few drives are left to write to.")
    ] = False,
    undo: Annotated[bool, typer.Option("--undo", help="Let it have fragments again.")] = False,
    wait: WaitOption = False,
    as_json: JsonOption = False,
) -> None:
    from cli.node_admin import drain_member

    drain_member(_folder(data), name, force=force, undo=undo, wait=wait, as_json=as_json)


@node_app.command(help=help.NODE_REMOVE)
def remove(
    name: Name,
    data: DataOption = None,
    force: Annotated[
        bool, typer.Option("--force", help="Even if it holds fragments: it is gone for good.")
    ] = False,
    wait: WaitOption = False,
    as_json: JsonOption = False,
) -> None:
    from cli.node_admin import remove_member

    remove_member(_folder(data), name, force=force, wait=wait, as_json=as_json)


@node_app.command(help=help.NODE_REPLACE)
def replace(
    name: Name,
    address: NewAddress,
    data: DataOption = None,
    zone: ZoneOption = None,
    rack: RackOption = None,
    host: HostOption = None,
    weight: WeightOption = None,
    wait: WaitOption = False,
    as_json: JsonOption = False,
) -> None:
    from cli.node_admin import replace_member
    from engine.cluster.admin import Placing

    placing = Placing(zone=zone, rack=rack, host=host, weight=weight)
    replace_member(_folder(data), name, address, placing, wait=wait, as_json=as_json)


@node_app.command("list", help=help.NODE_LIST)
def list_(data: DataOption = None, as_json: JsonOption = False) -> None:
    from cli.node_admin import list_members

    list_members(_folder(data), as_json=as_json)
