from collections.abc import Sequence

from engine.node.contract import Buffer

METHODS: dict[str, int]
"""What this processor has, the quickest first, and how many streams each takes at once."""

def update(
    states: Sequence[bytearray], data: Sequence[Buffer], method: str | None = None, /
) -> None:
    """Hash each of the data into the state at the same place, all of them at once, without the GIL.

    Args:
        states: up to 64, of 16 bytes: four little-endian words.
        data: as many, each of whole blocks of 64 bytes; those for one state follow each other.
        method: one of ``METHODS``; None: the first.
    Raises:
        ValueError: sizes or numbers that do not fit, a method that this processor lacks.
    """
