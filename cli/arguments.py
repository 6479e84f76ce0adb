"""What is written on a command line, as values: pure functions, no I/O."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

from engine.errors import ConfigError

SPREAD_OPTIONS = frozenset({"--drives"})
"""Options that take every value up to the next option: ``--drives a b c``."""

GLOBAL_FLAGS = frozenset({"--debug"})
"""Flags of ``lode`` itself that may also stand behind the command."""

_DURATION = re.compile(r"(\d+(?:\.\d+)?)\s*(ms|s|m|h|d|)")
_SIZE = re.compile(r"([0-9]{1,18}(?:\.[0-9]+)?)\s*([KMGTPEkmgtpe]?)(iB|ib|B|b|)")
_UNIT_S = {"": 1.0, "ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


def normalize(arguments: Sequence[str]) -> list[str]:
    """Rewrite what people write into what the option parser understands.

    ``--drives a b c`` becomes ``--drives a --drives b --drives c``, and global flags move to the
    front. Everything behind ``--`` stays as it is.
    """
    front: list[str] = []
    rest: list[str] = []
    spreading = ""
    waiting = False
    for position, argument in enumerate(arguments):
        if argument == "--":
            rest.extend(arguments[position:])
            break
        if argument in GLOBAL_FLAGS:
            front.append(argument)
            spreading = ""
        elif argument in SPREAD_OPTIONS:
            rest.append(argument)
            spreading, waiting = argument, True
        elif argument.startswith("-") or not spreading:
            rest.append(argument)
            spreading = ""
        elif waiting:
            rest.append(argument)
            waiting = False
        else:
            rest += [spreading, argument]
    return front + rest


def split_list(values: Sequence[str]) -> list[str]:
    """Return the values with comma lists taken apart and empty items left out."""
    return [item for value in values for item in value.split(",") if item]


class Address(NamedTuple):
    """Where to listen: ``host`` empty means every interface, ``port`` 0 a free one."""

    host: str
    port: int

    @classmethod
    def parse(cls, text: str) -> Address:
        """Read ``HOST:PORT``, ``:PORT`` or ``[IPV6]:PORT``. Raises ConfigError."""
        host, colon, port = text.rpartition(":")
        if host.startswith("[") and host.endswith("]"):
            host = host[1:-1]
        elif ":" in host:
            raise ConfigError(f"address {text!r}: write an IPv6 address as [ADDRESS]:PORT")
        # isdecimal() alone accepts digits of other scripts.
        if not colon or not (port.isascii() and port.isdecimal()) or int(port) > 65535:
            raise ConfigError(
                f"address {text!r}: write it as HOST:PORT, for example 127.0.0.1:9000"
            )
        return cls(host, int(port))


def parse_duration(text: str) -> float:
    """Return the seconds of ``90``, ``90s``, ``15m``, ``24h``, ``7d``. Raises ConfigError."""
    match = _DURATION.fullmatch(text.strip())
    if match is None:
        raise ConfigError(f"{text!r}: write a time as seconds, or as 90s, 15m, 24h, 7d")
    return float(match[1]) * _UNIT_S[match[2]]


def parse_size(text: str) -> int:
    """Return the bytes of ``4096``, ``512K``, ``10G``, ``10GiB``, ``1.5T``: powers of 1024, but
    with a B alone behind the letter (``10GB``) of 1000. Raises ConfigError."""
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise ConfigError(f"{text!r}: write a size as bytes, or as 512K, 64M, 10G, 1.5T")
    base = 1000 if match[3].upper() == "B" and match[2] else 1024
    power = "KMGTPE".index(match[2].upper()) + 1 if match[2] else 0
    return int(float(match[1]) * base**power) if "." in match[1] else int(match[1]) * base**power


def format_bytes(count: int) -> str:
    """Return a size as people read it: ``517 B``, ``1.5 GiB``."""
    if count < 1024:
        return f"{count} B"
    size = float(count)
    for unit in ("KiB", "MiB", "GiB", "TiB", "PiB"):  # noqa: B007  used after the loop
        size /= 1024
        if size < 1023.95:
            break
    return f"{size:.1f} {unit}"
