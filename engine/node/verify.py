"""Reading a fragment back from the disk and comparing it with its needle's checksum.

A node does not know what a fragment's blocks are, but its needle has a CRC64 of the whole payload
(``docs/decisions/0004``). That finds what disks do to bytes that nobody reads, without moving them
over the network; that they are the *right* bytes is what the blocks' keyed hashes prove to a
reader.
"""

from __future__ import annotations

import errno

from engine.ids import FragmentId
from engine.node.contract import FragmentDamaged, FragmentMissing, NodeDown
from engine.node.drive import Drive
from engine.node.scan import VolumeReader

_LOOKUPS_MAX = 4


def verify_fragment(drive: Drive, fragment: FragmentId) -> int:
    """Return the size of a fragment that is whole. Blocks for as long as the disk needs.

    Raises: FragmentMissing, FragmentDamaged, NodeDown.
    """
    for _ in range(_LOOKUPS_MAX):
        place = drive.index.find(fragment)
        if place is None:
            raise FragmentMissing(fragment.hex())
        volume, offset, size = place
        try:
            file = drive.files.get(volume)
            reader = VolumeReader(drive.disk, file.fd)
            found = reader.needle_at(offset, None)
            if (
                found is None
                or found.commit is None
                or found.header.fragment != fragment
                or found.commit.size != size
                or not reader.is_intact(offset, found.commit)
            ):
                # Unless compaction moved it meanwhile, and its old place is used again.
                if drive.index.find(fragment) != place:
                    continue
                raise FragmentDamaged(f"{fragment.hex()}: its checksum does not fit")
        except FileNotFoundError:
            continue  # compaction moved the needle after the lookup
        except OSError as error:
            if error.errno == errno.EIO:
                raise FragmentDamaged(f"{fragment.hex()}: {error.strerror}") from error
            raise NodeDown(f"{drive.path}: read: {error.strerror}") from error
        return size
    raise FragmentMissing(f"{fragment.hex()}: its volume is gone")
