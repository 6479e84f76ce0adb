"""``lode cluster``: a store without drives of its own, and the secret of its members."""

from __future__ import annotations

import shlex
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import msgspec
import trio

from cli.admin import ask_store
from cli.cluster_secret import VARIABLE
from cli.credentials import Credentials, generate, keep, load
from cli.logs import configure_logs
from cli.root import settled_root
from engine import Engine, open_engine, prepare_store
from engine.cluster.admin import make_secret
from engine.config import Profile, StoreConfig
from engine.errors import ConfigError
from engine.metadata import find_identity
from engine.node.wire.auth import Secret


def join_cluster(data: Path, meta: str) -> None:
    """Make the data folder of another gateway, of the store whose metadata is at ``meta``.

    Prints one line for scripts on standard output; repeating it changes nothing.
    Raises: ConfigError, Unavailable.
    """
    configure_logs("warning", as_json=False)
    identity = trio.run(find_identity, StoreConfig(data=data, meta=meta), now_ms())
    print(f"joined {shlex.quote(str(data))} store={identity.store_id}")


def now_ms() -> int:
    return time.time_ns() // 1_000_000


def init_cluster(
    data: Path,
    profile: str,
    secret_file: Path | None,
    environment: Mapping[str, str],
    *,
    meta: str = "",
) -> None:
    """Make the store if the folder is new: identity, profile, secret, credentials.

    Prints one line for scripts on standard output; repeating it changes nothing but the profile.
    Raises: ConfigError.
    """
    configure_logs("warning", as_json=False)
    secret = environment.get(VARIABLE, "").encode() or None
    if secret_file is not None:
        try:
            secret = secret_file.read_bytes()
        except OSError as error:
            raise ConfigError(f"{secret_file}: {error.strerror}") from None
    if secret is not None:
        try:
            Secret(secret := secret.strip())
        except ValueError as error:
            raise ConfigError(str(error)) from None
    config = StoreConfig(data=data, meta=meta, profile=Profile.parse(profile))
    kept = load(data)

    async def make() -> Credentials | None:
        await prepare_store(config, cluster=True, cluster_secret=secret)
        async with open_engine(msgspec.structs.replace(config, services=False)) as engine:
            return await settled_root(engine, kept)

    credentials = keep(data, trio.run(make) or generate())
    print(f"cluster {shlex.quote(str(data))} credentials={shlex.quote(credentials.where)}")
    print(
        f"next: give members the secret (lode cluster secret --data {shlex.quote(str(data))}), "
        "start lode node on each machine, and take each in with lode node add HOST:PORT",
        file=sys.stderr,
    )


def print_secret(data: Path) -> None:
    """Print the cluster's secret; a store that is no cluster yet becomes one."""

    async def ask(engine: Engine) -> bytes:
        meta = data / "meta"
        if meta.is_dir():
            # The secret is among the metadata.
            meta.chmod(0o700)
        return await make_secret(engine.store.db)

    print(ask_store(data, ask).decode())
