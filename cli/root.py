"""The root credentials of a store whose metadata is shared: one for all its gateways."""

from __future__ import annotations

from cli.credentials import Credentials, generate
from engine import Engine
from engine.metadata import metadata_location


async def settled_root(engine: Engine, kept: Credentials | None) -> Credentials | None:
    """Return the root credentials as the metadata has them.

    Where gateways share their metadata, the first one brings its own (``kept``, else new ones), and
    all others take those. A data folder with its metadata in it keeps them in its file; that it has
    lost them there is the only reason to look here, when the metadata came from elsewhere.
    """
    if metadata_location(engine.store.config) is not None:
        fresh = kept or generate()
        return Credentials(
            *await engine.access_keys.settle_root(fresh.access_key, fresh.secret_key)
        )
    if kept is not None:
        return kept
    known = await engine.access_keys.root()
    return None if known is None else Credentials(*known)
