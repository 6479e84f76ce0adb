"""Names, as the engine defines them for all that shows keys as paths (``engine/names.py``)."""

from engine.names import (
    NAME_BYTES_MAX,
    VERSIONS,
    Mark,
    Name,
    NotUtf8,
    ReservedName,
    decode,
    encode,
    goes_on,
    split,
)

__all__ = [
    "NAME_BYTES_MAX",
    "VERSIONS",
    "Mark",
    "Name",
    "NotUtf8",
    "ReservedName",
    "decode",
    "encode",
    "goes_on",
    "split",
]
