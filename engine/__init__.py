"""The engine: objects, versions and their bytes. Knows no S3, no errno, no WebDAV.

``open_engine(config)`` gives an ``Engine`` (``engine/engine.py``), whose methods are all that a
frontend calls; ``engine.types`` and ``engine.errors`` are what they take, return and raise.

The names below are imported on first use, so that a part of the engine, or ``lode --help``, does
not load all of it.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from engine.config import Profile, StoreConfig
    from engine.engine import Engine
    from engine.opening import open_engine, prepare_store

__all__ = ["Engine", "Profile", "StoreConfig", "open_engine", "prepare_store"]

_HOMES = {
    "Engine": "engine.engine",
    "Profile": "engine.config",
    "StoreConfig": "engine.config",
    "open_engine": "engine.opening",
    "prepare_store": "engine.opening",
}


def __getattr__(name: str) -> object:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(home), name)
