"""Where a store's metadata lies on FoundationDB, as it is written behind ``--meta``."""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import parse_qsl, quote, unquote, urlencode

import msgspec

from engine.errors import ConfigError

SCHEME = "fdb:"
STORE_DEFAULT = "lode"
EXAMPLE = "fdb:/etc/foundationdb/fdb.cluster"

_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,31}")


class FdbLocation(msgspec.Struct, frozen=True):
    """One store on one cluster."""

    cluster_file: Path
    store: str = STORE_DEFAULT
    """Names the store among others on the cluster; part of every key, so it cannot change."""
    library: Path | None = None
    """The file of the client library; None: where the system has it."""

    @classmethod
    def parse(cls, text: str, folder: Path | None = None) -> FdbLocation:
        """Read ``fdb:/path/fdb.cluster``, with ``?store=NAME&library=FILE`` where wanted.

        Args:
            folder: where relative paths begin; None: the process's own.
        Raises:
            ConfigError.
        """
        rest, _, query = text.removeprefix(SCHEME).partition("?")
        if not text.startswith(SCHEME) or not rest:
            raise ConfigError(f"metadata {text!r}: write the place as {EXAMPLE}")
        fields = dict(parse_qsl(query, keep_blank_values=True))
        store = fields.pop("store", STORE_DEFAULT)
        library = fields.pop("library", "")
        if fields:
            raise ConfigError(f"metadata {text!r}: {next(iter(fields))} is no store or library")
        if not _NAME.fullmatch(store):
            raise ConfigError(
                f"metadata {text!r}: the store's name has 1 to 32 of a-z, 0-9, '.', '_', '-'"
            )
        here = Path.cwd() if folder is None else folder
        return cls(here / unquote(rest), store, here / library if library else None)

    def __str__(self) -> str:
        """Return what ``parse`` reads, with absolute paths."""
        fields = {}
        if self.store != STORE_DEFAULT:
            fields["store"] = self.store
        if self.library is not None:
            fields["library"] = str(self.library)
        query = "?" + urlencode(fields, safe="/") if fields else ""
        return f"{SCHEME}{quote(str(self.cluster_file))}{query}"

    @property
    def prefix(self) -> bytes:
        """What every key of the store begins with: the tuple ("lode", name)."""
        return b"\x02lode\x00\x02" + self.store.encode() + b"\x00"
