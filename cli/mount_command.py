"""The command line of ``lode mount``; ``cli.mount`` does the work."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from cli.options import DataOption
from engine.errors import ConfigError


def mount_command(
    source: Annotated[str, typer.Argument(metavar="BUCKET[/PREFIX]", show_default=False)],
    target: Annotated[Path, typer.Argument(metavar="DIR", show_default=False)],
    data: DataOption = None,
    meta: Annotated[
        str | None,
        typer.Option(
            metavar="PLACE",
            help="Where the metadata is, if the data folder is new: fdb:CLUSTERFILE. (LODE_META)",
            show_default=False,
        ),
    ] = None,
    read_only: Annotated[bool, typer.Option("--read-only", help="Refuse to change anything.")] = (
        False
    ),
    allow_other: Annotated[
        bool, typer.Option("--allow-other", help="Let other users in, as modes allow.")
    ] = False,
    uid: Annotated[
        int | None, typer.Option(help="Owner of what has none. (default: yours)", min=0)
    ] = None,
    gid: Annotated[
        int | None, typer.Option(help="Group of what has none. (default: yours)", min=0)
    ] = None,
    file_mode: Annotated[
        str | None, typer.Option(metavar="OCTAL", help="Mode of files without one. (default 644)")
    ] = None,
    dir_mode: Annotated[
        str | None, typer.Option(metavar="OCTAL", help="Mode of folders without one. (default 755)")
    ] = None,
    cache_dir: Annotated[
        Path | None,
        typer.Option(
            "--cache-dir",
            metavar="DIR",
            help="Keep what was read there, for a store that is slow or far away.",
            show_default=False,
        ),
    ] = None,
    cache_size: Annotated[
        str | None,
        typer.Option(
            "--cache-size",
            metavar="SIZE",
            help="At most so much: 512M, 10G. (default 10G, but a tenth of its disk at most)",
            show_default=False,
        ),
    ] = None,
    memory: Annotated[
        int | None,
        typer.Option(metavar="MIB", help="Bound on reading ahead. (default 256)", min=16),
    ] = None,
    xattr: Annotated[
        bool, typer.Option("--xattr", help="Show ETag, checksums, metadata as extended attributes.")
    ] = False,
    at: Annotated[
        str | None,
        typer.Option(
            metavar="TIME",
            help="Mount what was there then, read-only: 2026-11-21T13:45, in UTC unless it says.",
            show_default=False,
        ),
    ] = None,
    staging: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Folder for what is written and not committed. (default: in the data folder)",
            show_default=False,
        ),
    ] = None,
    metrics: Annotated[
        str | None,
        typer.Option(
            metavar="HOST:PORT",
            help="Answer /metrics there for Prometheus, as 127.0.0.1:9105. (default: not)",
            show_default=False,
        ),
    ] = None,
    foreground: Annotated[
        bool, typer.Option("--foreground", help="Stay, and print a line when it is mounted.")
    ] = False,
    log_level: Annotated[
        str, typer.Option(metavar="LEVEL", help="debug, info, warning or error.")
    ] = "info",
    log_json: Annotated[
        bool, typer.Option("--log-json", help="Log JSON lines also on a terminal.")
    ] = False,
) -> None:
    from cli.arguments import Address, parse_size
    from cli.mount import mount_options, parse_mode, parse_moment, run, store_of
    from cli.settings import LOG_LEVELS, data_folder, metadata_place

    if log_level not in LOG_LEVELS:
        raise ConfigError(f"--log-level: {log_level!r} is none of {', '.join(LOG_LEVELS)}")
    options = mount_options(
        source,
        target,
        read_only=read_only,
        allow_other=allow_other,
        uid=uid,
        gid=gid,
        file_mode=parse_mode(file_mode),
        dir_mode=parse_mode(dir_mode),
        cache_dir=cache_dir.absolute() if cache_dir is not None else None,
        cache_size=parse_size(cache_size) if cache_size is not None else None,
        memory=memory << 20 if memory is not None else None,
        xattr=xattr,
        at_ms=parse_moment(at),
        staging=staging.absolute() if staging is not None else None,
    )
    run(
        store_of(data_folder(data, os.environ), options, metadata_place(meta, os.environ)),
        options,
        foreground=foreground,
        metrics=Address.parse(metrics) if metrics is not None else None,
        log_level=log_level,
        log_json=log_json,
    )
