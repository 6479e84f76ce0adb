"""Where a fragment's bytes lie, for who can send a file without reading it."""

from __future__ import annotations

import os

from engine.ids import FragmentId
from engine.node.contract import FragmentDamaged, FragmentMissing, NodeDown
from engine.node.drive import Drive
from engine.node.files import OpenFile
from engine.node.needle import NEEDLE_OVERHEAD

_LOOKUPS_MAX = 4


def find_span(drive: Drive, fragment: FragmentId, offset: int, size: int) -> tuple[OpenFile, int]:
    """Return the volume's file and where in it the payload's bytes from ``offset`` on begin.

    They stay there as long as the file is held, also when the fragment is deleted or moved.

    Raises: FragmentMissing, FragmentDamaged (too short), NodeDown.
    """
    for _ in range(_LOOKUPS_MAX):
        place = drive.index.find(fragment)
        if place is None:
            raise FragmentMissing(fragment.hex())
        volume, begin, payload = place
        if offset < 0 or offset + size > payload:
            raise FragmentDamaged(f"{fragment.hex()} has {payload} bytes")
        try:
            return drive.files.get(volume), begin + NEEDLE_OVERHEAD + offset
        except FileNotFoundError:
            continue  # compaction moved the needle after the lookup
        except OSError as error:
            raise NodeDown(f"{drive.path}: read: {error.strerror}") from error
    if not os.path.isdir(drive.path):
        raise NodeDown(f"{drive.path} is gone")
    raise FragmentMissing(f"{fragment.hex()}: its volume is gone")
