"""What the two sides of the wire say to each other: paths, codes, encodings. Pure, no I/O.

=============================================  =================================================
``GET /v1/health``                             ``MemberHealth`` as JSON; open to everybody
``GET /v1/hello``                              a challenge (``auth``)
``POST /v1/adopt``                             ``Adoption`` as JSON, answered with the health
``POST /v1/compact``                           give space back on every drive, in the background
``PUT /v1/nodes/N/fragments/F?max=SIZE``       a fragment, chunked; see ``Signer.trailer``
``GET`` or ``HEAD /v1/nodes/N/fragments/F``    its bytes, with ``Range`` some of them
``GET /v1/nodes/N/fragments?after=F&limit=C``  ``pack_infos``
``POST /v1/nodes/N/delete``                    fragment ids, one after another
``POST /v1/nodes/N/verify``                    fragment ids, answered with one byte for each
``GET /v1/nodes/N/space``                      ``Space`` as JSON
=============================================  =================================================

N and F are ids in hexadecimal digits. An error has a JSON body for people, and its code in the
header ``Lode-Error`` for programs: ``ERRORS`` is the one table.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Final, Literal, NamedTuple, TypeAlias

import msgspec

from engine.ids import FRAGMENT_ID_SIZE, FragmentId, MemberId, NodeId
from engine.node.contract import (
    FragmentDamaged,
    FragmentInfo,
    FragmentMissing,
    NodeBusy,
    NodeDown,
    NodeError,
    NodeFull,
    NodeRefused,
    Space,
)

HEALTH: Final = b"/v1/health"
HELLO: Final = b"/v1/hello"
ADOPT: Final = b"/v1/adopt"
COMPACT: Final = b"/v1/compact"

ERROR_HEADER: Final = b"lode-error"

DELETE_MAX: Final = 8192
"""Fragments in one request to delete; the client asks in several if need be."""
VERIFY_MAX: Final = 64
"""Fragments in one request to verify: it takes as long as reading them."""
LIST_MAX: Final = 8192
"""Fragments in one answer to a list."""
ERROR_BODY_MAX: Final = 64 << 10
"""Bytes of an answer to the challenge."""
SMALL_BODY_MAX: Final = 1 << 20
"""Bytes of a request's body that is not a fragment."""

DriveState: TypeAlias = Literal["up", "empty", "missing", "foreign", "failed", "opening"]


class AdoptionRefused(NodeError):
    """The member belongs to another store or is another member, or a drive is not empty."""


class _Error(NamedTuple):
    code: bytes
    status: int
    kind: type[NodeError]


ERRORS: Final = (
    _Error(b"missing", 404, FragmentMissing),
    _Error(b"damaged", 422, FragmentDamaged),
    _Error(b"full", 507, NodeFull),
    _Error(b"busy", 503, NodeBusy),
    _Error(b"refused", 401, NodeRefused),
    _Error(b"conflict", 409, AdoptionRefused),
    _Error(b"down", 502, NodeDown),
)
"""Every way in which a node fails. A subclass is sent as the nearest class above it."""

_BY_CODE: Final[Mapping[bytes, type[NodeError]]] = MappingProxyType(
    {error.code: error.kind for error in ERRORS}
)
_BY_KIND: Final[Mapping[type[NodeError], _Error]] = MappingProxyType(
    {error.kind: error for error in ERRORS}
)


def status_of(error: NodeError) -> tuple[int, bytes]:
    """Return (HTTP status, code) that say the error; what is in no table is ``down``."""
    for kind in type(error).__mro__:
        found = _BY_KIND.get(kind)
        if found is not None:
            return found.status, found.code
    return 502, b"down"


def error_of(code: bytes | None, status: int, reason: str) -> NodeError:
    """Return the error that a code says; an answer without one did not come from a member."""
    kind = _BY_CODE.get(code) if code is not None else None
    if kind is None:
        return NodeDown(f"{reason}: answered {status}")
    return kind(reason)


class DriveHealth(msgspec.Struct, frozen=True, kw_only=True):
    """One drive folder of a member."""

    folder: str
    state: DriveState
    """``empty``: formatted by ``Adoption``, also when its node is known: the drive was replaced."""
    node: str = ""
    """The node (hexadecimal) that is or was in the folder; empty: none yet."""
    drive: str = ""
    """The drive's own id, which changes when the drive is replaced."""
    reason: str = ""
    """Why it is not up, for people."""
    total: int = 0
    free: int = 0
    live: int = 0
    dead: int = 0
    fragments: int = 0
    """As in ``Space``, of a few seconds ago at most; 0 when it is not up."""


class MemberHealth(msgspec.Struct, frozen=True, kw_only=True):
    member: str = ""
    """The member's id in hexadecimal digits; empty: not adopted yet."""
    store: str = ""
    """The store that it belongs to; empty: not adopted yet."""
    name: str
    zone: str = ""
    rack: str = ""
    host: str = ""
    version: str
    drives: list[DriveHealth]
    running: int = 0
    """Requests that run now."""
    started_ms: int = 0
    """When its process started, ms since 1970."""


class AdoptedDrive(msgspec.Struct, frozen=True):
    folder: str
    """As ``DriveHealth`` names it."""
    node: str
    """The node that its drive is to be, in hexadecimal digits."""


class Adoption(msgspec.Struct, frozen=True):
    """Makes a daemon a member, or formats drives of one that is. Repeating it changes nothing."""

    member: str
    store: str
    drives: list[AdoptedDrive]

    @classmethod
    def of(cls, member: MemberId, store: str, drives: Mapping[str, NodeId]) -> Adoption:
        """``drives``: which node each folder, as its health names it, is to be."""
        return cls(
            member.hex(), store, [AdoptedDrive(folder, id_.hex()) for folder, id_ in drives.items()]
        )


class SpaceReport(msgspec.Struct, frozen=True):
    total: int
    free: int
    live: int
    dead: int
    fragments: int

    @classmethod
    def of(cls, space: Space) -> SpaceReport:
        return cls(space.total, space.free, space.live, space.dead, space.fragments)

    def space(self) -> Space:
        return Space(self.total, self.free, self.live, self.dead, self.fragments)


class ErrorReport(msgspec.Struct, frozen=True):
    error: str
    reason: str


encode_json: Final = msgspec.json.Encoder().encode
decode_health: Final = msgspec.json.Decoder(MemberHealth).decode
decode_adoption: Final = msgspec.json.Decoder(Adoption).decode
decode_space: Final = msgspec.json.Decoder(SpaceReport).decode
decode_error: Final = msgspec.json.Decoder(ErrorReport).decode

_INFO: Final = struct.Struct(f">{FRAGMENT_ID_SIZE}sQ")


def pack_infos(infos: Sequence[FragmentInfo]) -> bytes:
    """Return 25 bytes for each: the id, then the size as 8 bytes, big-endian."""
    pack = _INFO.pack
    return b"".join([pack(info.fragment, info.size) for info in infos])


def unpack_infos(data: bytes | memoryview) -> list[FragmentInfo]:
    """Raises ValueError: cut short."""
    if len(data) % _INFO.size:
        raise ValueError("a list of fragments that is cut short")
    return [FragmentInfo(FragmentId(name), size) for name, size in _INFO.iter_unpack(data)]


def unpack_ids(data: bytes) -> list[FragmentId]:
    """Raises ValueError: cut short."""
    if len(data) % FRAGMENT_ID_SIZE:
        raise ValueError("fragment ids that are cut short")
    return [
        FragmentId(data[begin : begin + FRAGMENT_ID_SIZE])
        for begin in range(0, len(data), FRAGMENT_ID_SIZE)
    ]


Verdict: TypeAlias = Literal["whole", "missing", "damaged"]
"""What a member says of a fragment that it was asked to verify."""

_VERDICTS: Final[tuple[Verdict, ...]] = ("whole", "missing", "damaged")


def pack_verdicts(verdicts: Sequence[Verdict]) -> bytes:
    """Return one byte for each."""
    return bytes([_VERDICTS.index(verdict) for verdict in verdicts])


def unpack_verdicts(data: bytes) -> list[Verdict]:
    """Raises ValueError: a byte that is no verdict."""
    try:
        return [_VERDICTS[byte] for byte in data]
    except IndexError:
        raise ValueError("no verdict") from None
