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
MARKED_BYTES_MAX = NAME_BYTES_MAX - len("%file")

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


def cut(component: str, *, beside_folder: bool = False) -> tuple[list[str], Mark]:
    """Return the pieces of a component and the mark of the last; all before it are ``%more``.

    ``beside_folder``: of the file, not the folder, of that name. Where the mark makes the name too
    long, the file is cut and the folder is not, which tells them apart without it.
    """
    if not beside_folder:
        return split(component), Mark.NONE
    pieces = split(component, room=MARKED_BYTES_MAX)
    return pieces, Mark.FILE if pieces == split(component) else Mark.NONE


def join(pieces: list[str], mark: Mark = Mark.NONE) -> tuple[str, bool]:
    """Return the component that ``cut`` cuts so, and whether it is the file beside a folder.

    ``mark`` is that of the last piece. Raises ReservedName: nothing is cut so.
    """
    component = "".join(pieces)
    for beside_folder in (mark is Mark.FILE, True):
        if cut(component, beside_folder=beside_folder) == (pieces, mark):
            return component, beside_folder
    raise ReservedName


_GOING_ON = tuple(begin + "\U0010ffff" * NAME_BYTES_MAX for begin in ("", "\0", "x" * 200))
"""What makes a component go on: how long a piece is depends on how much room the rest takes."""


def goes_on(text: str, begun: int = 0) -> bool:
    """Whether some component has ``text``, behind its first ``begun`` characters a whole piece,
    and more behind that: a ``%more`` folder can be there."""
    wanted = (text[begun:], Mark.MORE)
    return any(
        piece_behind(text + rest, begun, beside_folder=False) == wanted for rest in _GOING_ON
    )


def piece_behind(component: str, begun: int, *, beside_folder: bool) -> tuple[str, Mark] | None:
    """Return the piece behind the first ``begun`` characters, with the mark that its name has;
    None: the component is not cut there, so it is not in the ``%more`` folder that ends there."""
    pieces, mark = cut(component, beside_folder=beside_folder)
    for position, piece in enumerate(pieces):
        if begun == 0:
            return piece, mark if position == len(pieces) - 1 else Mark.MORE
        begun -= len(piece)
        if begun < 0:
            return None
    return None
