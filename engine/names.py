"""Names: between what stands between two slashes of an S3 key and a file name. Pure.

Almost every component of a key is its own file name. What cannot be one gets a mark at its end,
so that every key can be reached and no two keys share a path (docs/SEMANTICS.md, "Names"):

=========== ======================================= ================================
mark        on                                      example
=========== ======================================= ================================
``%name``   empty, ``.``, ``..``, ``.versions``,    ``a//b`` is ``a/%name/b``
            what ends in a mark, what has a NUL
            (``%`` is ``%25`` in it, NUL ``%00``)
``%file``   a file beside a directory of its name   ``a`` beside ``a/b`` is ``a%file``
``%more``   a folder that holds what goes on after  ``x`` * 300 is ``x`` * 200
            a piece of a name over 255 bytes        + ``%more`` / ``x`` * 100
=========== ======================================= ================================
"""

from __future__ import annotations

from enum import Enum
from typing import NamedTuple

NAME_BYTES_MAX = 255
"""Linux's NAME_MAX."""

VERSIONS = ".versions"

_LITERAL = "%name"
_PIECE_SIZES = (200, 100, 50)
"""Characters of a piece, tried in turn: most fit at once, those full of escapes later."""

_NEVER_LONG = NAME_BYTES_MAX // 4
"""So many characters fit whatever they are."""


class Mark(Enum):
    NONE = ""
    FILE = "%file"
    MORE = "%more"


_MARKS = (_LITERAL, Mark.FILE.value, Mark.MORE.value)
_SPECIAL = frozenset({"", ".", "..", VERSIONS})


class NotUtf8(ValueError):
    """The file name is no UTF-8, so no key has it."""


class ReservedName(ValueError):
    """The file name has a mark where ``encode`` puts none: no key has it."""


class Name(NamedTuple):
    """A decoded file name: (a piece of) a component, and how it is marked."""

    text: str
    mark: Mark


def _is_special(text: str) -> bool:
    return text in _SPECIAL or text.endswith(_MARKS) or "\0" in text


def encode(text: str, mark: Mark = Mark.NONE) -> bytes:
    """Return the file name of (a piece of) a component, which has no slash."""
    if _is_special(text):
        text = text.replace("%", "%25").replace("\0", "%00") + _LITERAL
    if mark is Mark.NONE:
        return text.encode()
    return f"{text}{mark.value}".encode()


def decode(name: bytes) -> Name:
    """Return what ``encode`` was given. Raises NotUtf8, ReservedName."""
    try:
        text = name.decode()
    except UnicodeDecodeError:
        raise NotUtf8 from None
    if "%" not in text:
        if text in _SPECIAL or "\0" in text:
            raise ReservedName
        return Name(text, Mark.NONE)
    mark = Mark.NONE
    for candidate in (Mark.FILE, Mark.MORE):
        if text.endswith(candidate.value):
            mark = candidate
            text = text[: -len(candidate.value)]
            break
    if text.endswith(_LITERAL):
        quoted = text[: -len(_LITERAL)]
        text = quoted.replace("%00", "\0").replace("%25", "%")
    if encode(text, mark) != name:
        raise ReservedName
    return Name(text, mark)


def split(component: str, *, room: int = NAME_BYTES_MAX) -> list[str]:
    """Return the pieces of a component, one for each level that it takes in the mount.

    One piece unless its file name would be longer than ``room`` bytes; then all but the last are
    the names of ``%more`` folders.
    """
    pieces = []
    rest = component
    while len(rest) > _NEVER_LONG and len(encode(rest)) > room:
        for size in _PIECE_SIZES:
            piece = rest[:size]
            if len(encode(piece, Mark.MORE)) <= NAME_BYTES_MAX:
                break
        pieces.append(piece)
        rest = rest[len(piece) :]
    pieces.append(rest)
    return pieces
