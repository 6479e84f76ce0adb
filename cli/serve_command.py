"""The command line of ``lode serve``; ``cli.serve`` runs it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from cli.options import DataOption

_STORE = "Store"
_NETWORK = "Network"
_PROCESS = "Processes and logs"
_MOUNT = "Mount"
_CLUSTER = "Cluster"
_CARE = "Repair and scrub"

MetaOption = Annotated[
    str | None,
    typer.Option(
        "--meta",
        metavar="PLACE",
        help="Where the metadata is, for gateways on several machines: "
        "[cyan]fdb:/etc/foundationdb/fdb.cluster[/cyan]. The data folder remembers it. "
        "(LODE_META; default: the data folder itself)",
        show_default=False,
        rich_help_panel="Store",
    ),
]
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


def serve_command(
    data: DataOption = None,
    meta: MetaOption = None,
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
    mount_cache_dir: Annotated[
        str | None,
        typer.Option(
            metavar="DIR",
            help="Keep there what was read through the mount, for drives that are slow or far.",
            show_default=False,
            rich_help_panel=_MOUNT,
        ),
    ] = None,
    mount_cache_size: Annotated[
        str | None,
        typer.Option(
            metavar="SIZE",
            help="At most so much: 512M, 10G. (default 10G, but a tenth of its disk at most)",
            show_default=False,
            rich_help_panel=_MOUNT,
        ),
    ] = None,
    mount_memory: Annotated[
        int | None,
        typer.Option(
            metavar="MIB",
            help="Bound on reading ahead through the mount. (default 256)",
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
    member_ca: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="Speak TLS with members of the cluster; their certificates are of this authority.",
            show_default=False,
            rich_help_panel=_CLUSTER,
        ),
    ] = None,
    member_cert: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="Certificate that is shown to members; with --member-key.",
            show_default=False,
            rich_help_panel=_CLUSTER,
        ),
    ] = None,
    member_key: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="Its private key (PEM, no passphrase).",
            show_default=False,
            rich_help_panel=_CLUSTER,
        ),
    ] = None,
    heartbeat: Annotated[
        str | None,
        typer.Option(
            metavar="TIME",
            help="Ask each member so often how it is. (default 2s)",
            show_default=False,
            rich_help_panel=_CLUSTER,
        ),
    ] = None,
    suspect_after: Annotated[
        str | None,
        typer.Option(
            metavar="TIME",
            help="Silent for so long, a member gets no new fragments. (default 6s)",
            show_default=False,
            rich_help_panel=_CLUSTER,
        ),
    ] = None,
    down_after: Annotated[
        str | None,
        typer.Option(
            metavar="TIME",
            help="Silent for so long, it counts as down. (default 30s)",
            show_default=False,
            rich_help_panel=_CLUSTER,
        ),
    ] = None,
    lost_after: Annotated[
        str | None,
        typer.Option(
            metavar="TIME",
            help="Down for so long, what a member or drive has is made anew elsewhere. "
            "(default 15m)",
            show_default=False,
            rich_help_panel=_CLUSTER,
        ),
    ] = None,
    repair_rate: Annotated[
        str | None,
        typer.Option(
            metavar="SIZE",
            help="Repair writes at most so many bytes per second: 50M. (default: no limit)",
            show_default=False,
            rich_help_panel=_CARE,
        ),
    ] = None,
    rebalance_rate: Annotated[
        str | None,
        typer.Option(
            metavar="SIZE",
            help="The same for moving fragments after a drive came or went.",
            show_default=False,
            rich_help_panel=_CARE,
        ),
    ] = None,
    scrub_rate: Annotated[
        str | None,
        typer.Option(
            metavar="SIZE",
            help="Scrub reads at most so many bytes per second.",
            show_default=False,
            rich_help_panel=_CARE,
        ),
    ] = None,
    scrub_period: Annotated[
        str | None,
        typer.Option(
            metavar="TIME",
            help="Read and verify everything once in so long; 0: never. (default 14d)",
            show_default=False,
            rich_help_panel=_CARE,
        ),
    ] = None,
    census_period: Annotated[
        str | None,
        typer.Option(
            metavar="TIME",
            help="Count what is there at least so often. (default 24h)",
            show_default=False,
            rich_help_panel=_CARE,
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
        "meta": meta,
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
        "mount-cache-dir": mount_cache_dir,
        "mount-cache-size": mount_cache_size,
        "mount-memory": mount_memory,
        "domain": ",".join(domain) if domain else None,
        "region": region,
        "tls-cert": tls_cert,
        "tls-key": tls_key,
        "member-ca": member_ca,
        "member-cert": member_cert,
        "member-key": member_key,
        "heartbeat": heartbeat,
        "suspect-after": suspect_after,
        "down-after": down_after,
        "lost-after": lost_after,
        "repair-rate": repair_rate,
        "rebalance-rate": rebalance_rate,
        "scrub-rate": scrub_rate,
        "scrub-period": scrub_period,
        "census-period": census_period,
        "workers": workers,
        "log-level": log_level,
        "log-json": log_json,
    }
    if config is None and (named := os.environ.get("LODE_CONFIG")):
        config = Path(named)
    run_server(load_settings(options, os.environ, config), os.environ)
