"""Access keys: what a signature is checked against."""

from __future__ import annotations

from typing import Protocol

import msgspec

from engine.access import FULL, Access


class Credential(msgspec.Struct, frozen=True):
    """One access key and whose it is. ``repr`` keeps the secret out of logs."""

    access_key: str
    secret_key: str
    owner_id: str
    """Canonical user id, as listings and ACLs show it."""
    display_name: str
    access: Access = FULL
    """What may be done with it."""

    def __repr__(self) -> str:
        return f"Credential({self.access_key!r}, owner_id={self.owner_id!r})"


class CredentialStore(Protocol):
    def lookup(self, access_key: str) -> Credential | None:
        """Return the credential, or None when there is no such key (or no longer).

        Called for every request, so it answers from memory, at once.

        Raises: EngineError: it cannot be told now.
        """


class RootCredential:
    """The store of one credential."""

    __slots__ = ("_credential",)

    def __init__(self, credential: Credential) -> None:
        self._credential = credential

    def lookup(self, access_key: str) -> Credential | None:
        return self._credential if access_key == self._credential.access_key else None
