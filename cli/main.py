"""The commands of ``lode`` and their help; what they do is in the modules that they import.

Each command imports what it needs when it runs, so that ``lode version`` and ``--help`` are quick.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from cli import help
from cli.arguments import normalize, parse_duration
from cli.bucket_command import bucket_app
from cli.cluster_command import cluster_app
from cli.key_command import key_app
from cli.meta_command import meta_app
from cli.mount_command import mount_command
from cli.node_admin_command import node_app
from cli.options import DataOption
from cli.outcome import FAILED, USAGE, WorkersFailed, innermost, one_line
from cli.serve_command import DavBasicOption, DavMacFilesOption, MetaOption, serve_command
from cli.version import VERSION
from engine.errors import ConfigError, EngineError

app = typer.Typer(
    name="lode",
    help=help.APP,
    epilog=help.EPILOG,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)

JsonOption = Annotated[
    bool, typer.Option("--json", help="Print JSON with stable field names instead of a table.")
]

_NETWORK = "Network"


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"lode {VERSION}")
        raise typer.Exit


@app.callback()
def _global_options(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version and exit."
        ),
    ] = False,
    debug: Annotated[
        bool, typer.Option("--debug", help="Show a traceback when something unexpected fails.")
    ] = False,
) -> None:
    """``--debug`` is read in ``main``: errors before this point need it too."""


app.command("serve", help=help.SERVE, rich_help_panel="Run")(serve_command)


@app.command(help=help.DAV, rich_help_panel="Run")
def dav(
    data: DataOption = None,
    meta: MetaOption = None,
    listen: Annotated[
        str,
        typer.Option(
            metavar="HOST:PORT",
            help="Where WebDAV listens; :PORT means every interface.",
            rich_help_panel=_NETWORK,
        ),
    ] = "127.0.0.1:9001",
    read_only: Annotated[
        bool,
        typer.Option(
            "--read-only", help="Refuse everything that changes something.", show_default=False
        ),
    ] = False,
    basic: DavBasicOption = None,
    mac_files: DavMacFilesOption = None,
    tls_cert: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="Certificate chain (PEM).", show_default=False),
    ] = None,
    tls_key: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="Private key (PEM, no passphrase).", show_default=False),
    ] = None,
    log_level: Annotated[
        str | None,
        typer.Option(metavar="LEVEL", help="debug, info, warning or error.", show_default=False),
    ] = None,
) -> None:
    from cli.serve import run_server
    from cli.settings import load_settings

    options = {
        "data": str(data) if data is not None else None,
        "meta": meta,
        "dav": listen,
        "dav-read-only": read_only,
        "dav-basic": basic,
        "dav-mac-files": mac_files,
        "tls-cert": tls_cert,
        "tls-key": tls_key,
        "log-level": log_level,
    }
    config = os.environ.get("LODE_CONFIG")
    settings = load_settings(options, os.environ, Path(config) if config else None)
    run_server(settings, os.environ, dav_alone=True)


app.command("mount", help=help.MOUNT, rich_help_panel="Run")(mount_command)
app.add_typer(node_app, name="node", help=help.NODE, rich_help_panel="Run")
app.add_typer(cluster_app, name="cluster", help=help.CLUSTER, rich_help_panel="Look after")
app.add_typer(key_app, name="key", help=help.KEY, rich_help_panel="Look after")
app.add_typer(meta_app, name="meta", help=help.META, rich_help_panel="Look after")
app.add_typer(bucket_app, name="bucket", help=help.BUCKET, rich_help_panel="Look after")


@app.command(help=help.STATUS, rich_help_panel="Look after")
def status(data: DataOption = None, as_json: JsonOption = False) -> None:
    from cli.admin import show_status
    from cli.settings import data_folder

    show_status(data_folder(data, os.environ), as_json=as_json)


@app.command(help=help.FSCK, rich_help_panel="Look after")
def fsck(
    data: DataOption = None,
    deep: Annotated[
        bool, typer.Option("--deep", help="Read and verify every block, not only what is there.")
    ] = False,
    repair_counters: Annotated[
        bool,
        typer.Option(
            "--repair-counters",
            help="Put right what buckets are said to take, if it is wrong; quotas depend on it.",
        ),
    ] = False,
    as_json: JsonOption = False,
) -> None:
    from cli.admin import check
    from cli.settings import data_folder

    folder = data_folder(data, os.environ)
    if not check(folder, deep=deep, repair_counters=repair_counters, as_json=as_json):
        raise typer.Exit(FAILED)


@app.command(help=help.GC, rich_help_panel="Look after")
def gc(
    data: DataOption = None,
    grace: Annotated[
        str | None,
        typer.Option(
            metavar="TIME",
            help="Take what was deleted longer ago than this: 3600, 90s, 15m, 24h. (default: the "
            "store's grace time, 24h)",
            show_default=False,
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    grace_s = parse_duration(grace) if grace is not None else None
    from cli.admin import collect_garbage
    from cli.settings import data_folder

    collect_garbage(data_folder(data, os.environ), grace_s=grace_s, as_json=as_json)


@app.command(help=help.SCRUB, rich_help_panel="Look after")
def scrub(
    data: DataOption = None,
    wait: Annotated[
        bool, typer.Option("--wait", help="Return when it is done, and show how far it is.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    from cli.scrub import scrub as ask_for_scrub
    from cli.settings import data_folder

    if not ask_for_scrub(data_folder(data, os.environ), wait=wait, as_json=as_json):
        raise typer.Exit(FAILED)


@app.command(rich_help_panel="About")
def version() -> None:
    """Print the version."""
    print(f"lode {VERSION}")


def main() -> NoReturn:
    """Run the command line of this process and exit with its status."""
    status = run(sys.argv[1:])
    # Not sys.exit: a thread that is stuck in a dying drive must not keep the process from ending.
    with contextlib.suppress(OSError):
        sys.stdout.flush()
    with contextlib.suppress(OSError):
        sys.stderr.flush()
    os._exit(status)


def run(arguments: Sequence[str]) -> int:
    """Run one command line and return its exit status; every error is one line on stderr."""
    arguments = normalize(arguments)
    try:
        result = app(args=arguments, prog_name="lode", standalone_mode=False)
        sys.stdout.flush()
    except BrokenPipeError:
        # The reader of our output left, as `lode status | head -1` does.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    except (KeyboardInterrupt, typer.Abort):
        return 130
    except (Exception, BaseExceptionGroup) as caught:  # the last frame
        error = innermost(caught)
        if isinstance(error, KeyboardInterrupt):
            return 130
        if "--debug" in arguments and not _is_usage(error):
            raise
        return _complain(error)
    return result if isinstance(result, int) else 0


def _is_usage(error: BaseException) -> bool:
    return isinstance(error, ConfigError) or getattr(error, "exit_code", None) == USAGE


def _complain(error: BaseException) -> int:
    # Typer's own errors say more by format_message than by str.
    describe = getattr(error, "format_message", None)
    message = describe() if describe is not None else one_line(error)
    if _is_usage(error):
        hint = "; see lode --help" if describe is not None else ""
        print(f"lode: {message.rstrip('.')}{hint}", file=sys.stderr)
        return USAGE
    if not isinstance(error, EngineError | WorkersFailed):
        message = f"{type(error).__name__}: {message}; --debug shows where"
    print(f"lode: {message}", file=sys.stderr)
    return FAILED


if __name__ == "__main__":
    main()
