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
from cli.mount_command import mount_command
from cli.node_command import node_app
from cli.outcome import FAILED, USAGE, WorkersFailed, innermost, one_line
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

DataOption = Annotated[
    Path | None,
    typer.Option(
        "--data",
        metavar="DIR",
        help="Folder of the store. (LODE_DATA; default ./data)",
        show_default=False,
    ),
]
JsonOption = Annotated[
    bool, typer.Option("--json", help="Print JSON with stable field names instead of a table.")
]

_STORE = "Store"
_NETWORK = "Network"
_PROCESS = "Processes and logs"
_MOUNT = "Mount"

DavReadOnlyOption = Annotated[
    bool | None,
    typer.Option(
        "--dav-read-only",
        help="Refuse everything over WebDAV that changes something.",
        show_default=False,
        rich_help_panel=_NETWORK,
    ),
]
DavBasicOption = Annotated[
    bool | None,
    typer.Option(
        "--dav-basic",
        help="Accept Basic logins over plain HTTP from other machines: whoever listens on the "
        "way learns the secret key. Digest and TLS need no such option.",
        show_default=False,
        rich_help_panel=_NETWORK,
    ),
]
DavInfiniteDepthOption = Annotated[
    bool | None,
    typer.Option(
        "--dav-infinite-depth",
        help="Answer PROPFIND with Depth: infinity, however much that lists.",
        show_default=False,
        rich_help_panel=_NETWORK,
    ),
]
DavMacFilesOption = Annotated[
    str | None,
    typer.Option(
        "--dav-mac-files",
        metavar="POLICY",
        help="What to do with ._* and .DS_Store that Finder writes over WebDAV: keep, drop "
        "(take and forget) or refuse. (default keep)",
        show_default=False,
        rich_help_panel=_NETWORK,
    ),
]


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


@app.command(help=help.SERVE, rich_help_panel="Run")
def serve(
    data: DataOption = None,
    drives: Annotated[
        list[str] | None,
        typer.Option(
            "--drives",
            metavar="DIR...",
            help="One folder per drive: [cyan]--drives a b c[/cyan], or a,b,c, or repeated. "
            "Without it: the drives that the store has, for a new one DATA/drive.",
            show_default=False,
            rich_help_panel=_STORE,
        ),
    ] = None,
    profile: Annotated[
        str | None,
        typer.Option(
            metavar="K+M",
            help="Data and parity blocks per stripe: any M drives may be lost. Default for a new "
            "store: 10+4 from 14 drives on, 4+2 from 6, 2+1 from 3, else copies.",
            show_default=False,
            rich_help_panel=_STORE,
        ),
    ] = None,
    grace: Annotated[
        str | None,
        typer.Option(
            metavar="TIME",
            help="Keep deleted bytes so long before they are collected: 3600, 90s, 15m, 24h, 7d. "
            "(default 24h)",
            show_default=False,
            rich_help_panel=_STORE,
        ),
    ] = None,
    s3: Annotated[
        str | None,
        typer.Option(
            "--s3",
            metavar="HOST:PORT",
            help="Where the S3 API listens; :PORT means every interface. (default 127.0.0.1:9000)",
            show_default=False,
            rich_help_panel=_NETWORK,
        ),
    ] = None,
    metrics: Annotated[
        str | None,
        typer.Option(
            "--metrics",
            metavar="HOST:PORT",
            help="Answer Prometheus's /metrics, /healthz and /readyz there. (default: not)",
            show_default=False,
            rich_help_panel=_NETWORK,
        ),
    ] = None,
    dav: Annotated[
        str | None,
        typer.Option(
            "--dav",
            metavar="HOST:PORT",
            help="Also serve WebDAV there, every bucket a folder. (default: not)",
            show_default=False,
            rich_help_panel=_NETWORK,
        ),
    ] = None,
    dav_read_only: DavReadOnlyOption = None,
    dav_basic: DavBasicOption = None,
    dav_mac_files: DavMacFilesOption = None,
    dav_infinite_depth: DavInfiniteDepthOption = None,
    mount: Annotated[
        str | None,
        typer.Option(
            metavar="DIR",
            help="Also mount the store there, every bucket a folder. (default: not)",
            show_default=False,
            rich_help_panel=_MOUNT,
        ),
    ] = None,
    mount_allow_other: Annotated[
        bool | None,
        typer.Option(
            "--mount-allow-other",
            help="Let other users in; else the mount is for who runs the server alone.",
            show_default=False,
            rich_help_panel=_MOUNT,
        ),
    ] = None,
    domain: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="Also answer virtual-host style requests to BUCKET.NAME.",
            show_default=False,
            rich_help_panel=_NETWORK,
        ),
    ] = None,
    region: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Region that clients sign for. (default us-east-1)",
            show_default=False,
            rich_help_panel=_NETWORK,
        ),
    ] = None,
    tls_cert: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="Certificate chain (PEM); with --tls-key, serve HTTPS.",
            show_default=False,
            rich_help_panel=_NETWORK,
        ),
    ] = None,
    tls_key: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="Private key (PEM, no passphrase).",
            show_default=False,
            rich_help_panel=_NETWORK,
        ),
    ] = None,
    workers: Annotated[
        str | None,
        typer.Option(
            metavar="N",
            help="Processes that share the address and the store. (default one per core, at "
            "most 8)",
            show_default=False,
            rich_help_panel=_PROCESS,
        ),
    ] = None,
    log_level: Annotated[
        str | None,
        typer.Option(
            metavar="LEVEL",
            help="debug, info, warning or error. (default info)",
            show_default=False,
            rich_help_panel=_PROCESS,
        ),
    ] = None,
    log_json: Annotated[
        bool | None,
        typer.Option(
            "--log-json",
            help="Log JSON lines also on a terminal.",
            show_default=False,
            rich_help_panel=_PROCESS,
        ),
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help='TOML file with the same names: data = "/srv/lode", s3 = ":9000". (LODE_CONFIG)',
            show_default=False,
            rich_help_panel=_PROCESS,
        ),
    ] = None,
) -> None:
    from cli.serve import run_server
    from cli.settings import load_settings

    options = {
        "data": str(data) if data is not None else None,
        "drives": ",".join(drives) if drives else None,
        "profile": profile,
        "grace": grace,
        "s3": s3,
        "dav": dav,
        "metrics": metrics,
        "dav-read-only": dav_read_only,
        "dav-basic": dav_basic,
        "dav-mac-files": dav_mac_files,
        "dav-infinite-depth": dav_infinite_depth,
        "mount": mount,
        "mount-allow-other": mount_allow_other,
        "domain": ",".join(domain) if domain else None,
        "region": region,
        "tls-cert": tls_cert,
        "tls-key": tls_key,
        "workers": workers,
        "log-level": log_level,
        "log-json": log_json,
    }
    if config is None and (named := os.environ.get("LODE_CONFIG")):
        config = Path(named)
    run_server(load_settings(options, os.environ, config), os.environ)


@app.command(help=help.DAV, rich_help_panel="Run")
def dav(
    data: DataOption = None,
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
