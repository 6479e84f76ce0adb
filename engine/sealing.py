"""Sealing: small secrets encrypted for the metadata.

Requests are signed with a secret that the server has to know as it is, so secrets cannot be kept
as hashes. They are kept sealed by AES-256-GCM, under a key that HKDF-SHA256 (RFC 5869) derives
from the store's own random secret; what a sealed secret belongs to is authenticated with it, so
that it cannot be moved to another row. What that is worth, and what not: docs/decisions/0014.
"""

from __future__ import annotations

from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from engine.errors import Corrupt
from engine.ids import Random

SECRET_SIZE: Final = 32
_NONCE_SIZE: Final = 12
_PURPOSE: Final = b"lodestore 2026-11 access keys"


class Seal:
    """Seals and opens under one store secret."""

    __slots__ = ("_cipher", "_random")

    def __init__(self, secret: bytes, random: Random) -> None:
        """
        Args:
            secret: ``SECRET_SIZE`` random bytes.
            random: gives the nonces.
        """
        derived = HKDF(algorithm=SHA256(), length=32, salt=None, info=_PURPOSE).derive(secret)
        self._cipher = AESGCM(derived)
        self._random = random

    def __repr__(self) -> str:
        return "Seal(...)"

    def seal(self, text: str, owner: str) -> bytes:
        """Return ``text`` sealed for ``owner``: nonce (12), ciphertext, tag (16)."""
        nonce = self._random(_NONCE_SIZE)
        return nonce + self._cipher.encrypt(nonce, text.encode(), owner.encode())

    def open(self, sealed: bytes, owner: str) -> str:
        """Raises Corrupt: it was not sealed by this store for this owner."""
        nonce, rest = sealed[:_NONCE_SIZE], sealed[_NONCE_SIZE:]
        try:
            return self._cipher.decrypt(nonce, rest, owner.encode()).decode()
        except (InvalidTag, ValueError):
            raise Corrupt(f"the secret of the access key {owner} cannot be decrypted") from None
