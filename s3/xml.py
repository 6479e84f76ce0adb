"""XML as S3 speaks it: parsed without DTD, entities or unbounded depth; written by joining strings.

Parsing gives small ``Element`` trees; names lose their namespace, so that documents with and
without ``xmlns`` are the same. Text is kept as it is: keys may begin or end with spaces.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from xml.parsers import expat

from s3.errors import S3Error, s3_error

NAMESPACE = "http://s3.amazonaws.com/doc/2006-03-01/"
DECLARATION = '<?xml version="1.0" encoding="UTF-8"?>\n'

DEPTH_MAX = 16
ELEMENTS_MAX = 150_000
"""A Complete with 10,000 parts has 30,000 elements, 80,000 if each part repeats its checksums."""

_SPECIAL = re.compile('[&<>"\r\x00-\x08\x0b\x0c\x0e-\x1f\ufffe\uffff]')
_NOT_XML = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\ufffe\uffff]")
_NAMED = {"&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;"}


def escape(text: str) -> str:
    """Return ``text`` for use as content or attribute.

    Control characters, which XML 1.0 cannot carry, become character references as AWS writes
    them; clients that meet such keys ask for ``encoding-type=url``.
    """
    if _SPECIAL.search(text) is None:
        return text
    return _SPECIAL.sub(_reference, text)


def printable(text: str) -> str:
    """Return ``text`` with U+FFFD for what XML 1.0 cannot carry, for what all must read."""
    return _NOT_XML.sub("\ufffd", text)


def needs_escape(text: str) -> bool:
    return _SPECIAL.search(text) is not None


def _reference(match: re.Match[str]) -> str:
    char = match[0]
    return _NAMED.get(char) or f"&#x{ord(char):x};"


def element(name: str, text: str | int) -> str:
    return f"<{name}>{escape(text) if isinstance(text, str) else text}</{name}>"


def boolean(value: bool) -> str:
    return "true" if value else "false"


def document(name: str, children: Iterable[str], *, namespace: bool = True) -> bytes:
    """Return a whole document, UTF-8. ``children`` are already escaped."""
    opening = f'<{name} xmlns="{NAMESPACE}">' if namespace else f"<{name}>"
    return f"{DECLARATION}{opening}{''.join(children)}</{name}>".encode()


@dataclass(slots=True)
class Element:
    name: str
    """Without namespace."""
    text: str = ""
    """All character data directly inside, joined."""
    children: list[Element] = field(default_factory=list)

    def find(self, name: str) -> Element | None:
        """Return the first child of that name."""
        for child in self.children:
            if child.name == name:
                return child
        return None

    def find_all(self, name: str) -> list[Element]:
        return [child for child in self.children if child.name == name]

    def get(self, name: str) -> str | None:
        """Return the text of the first child of that name."""
        child = self.find(name)
        return None if child is None else child.text

    def require(self, name: str) -> Element:
        """Like ``find``; raises MalformedXML when there is no such child."""
        child = self.find(name)
        if child is None:
            raise malformed()
        return child


def malformed() -> S3Error:
    return s3_error("MalformedXML")


class _Builder:
    def __init__(self) -> None:
        self.root: Element | None = None
        self._open: list[Element] = []
        self._text: list[list[str]] = []
        self._count = 0

    def start(self, name: str, _attributes: dict[str, str]) -> None:
        self._count += 1
        if len(self._open) >= DEPTH_MAX or self._count > ELEMENTS_MAX:
            raise malformed()
        made = Element(name.rpartition(" ")[2])
        if self._open:
            self._open[-1].children.append(made)
        else:
            self.root = made
        self._open.append(made)
        self._text.append([])

    def end(self, _name: str) -> None:
        self._open.pop().text = "".join(self._text.pop())

    def data(self, text: str) -> None:
        self._text[-1].append(text)

    def refuse(self, *_: object) -> int:
        raise malformed()


def parse_configuration(raw: bytes, root: str) -> Element:
    """Do as ``parse``, for requests that set something. Raises MissingRequestBodyError too."""
    if not raw:
        raise s3_error("MissingRequestBodyError")
    return parse(raw, root)


def parse(raw: bytes, root: str) -> Element:
    """Return the document's root element, which must be called ``root``.

    Raises:
        S3Error: MalformedXML, for anything that is not well-formed, has a DOCTYPE, is nested
            deeper than ``DEPTH_MAX`` or begins with another element. The caller bounds the size.
    """
    builder = _Builder()
    parser = expat.ParserCreate("UTF-8", " ")
    parser.buffer_text = True
    parser.StartElementHandler = builder.start
    parser.EndElementHandler = builder.end
    parser.CharacterDataHandler = builder.data
    parser.StartDoctypeDeclHandler = builder.refuse
    parser.EntityDeclHandler = builder.refuse
    parser.ExternalEntityRefHandler = builder.refuse
    try:
        parser.Parse(raw, True)
    except (expat.ExpatError, ValueError):
        raise malformed() from None
    if builder.root is None or builder.root.name != root:
        raise malformed()
    return builder.root
