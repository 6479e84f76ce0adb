"""Who may log in: the root credentials that a process was started with, and the store's keys."""

from __future__ import annotations

from cli.handover import WorkerConfig
from engine.access import FULL, NOTHING, Access
from engine.access_keys import AccessKey, AccessKeys
from s3.auth.credentials import Credential

CREDENTIALS_MAX = 4096
OWNER_NAME = "root"


def root_credential(config: WorkerConfig) -> Credential:
    """Return the credentials that the supervisor has handed over."""
    return Credential(
        access_key=config.credentials.access_key,
        secret_key=config.credentials.secret_key,
        owner_id=config.owner_id,
        display_name=OWNER_NAME,
    )


class Logins:
    """Answers from memory. ``lookup`` is for one thread, the others for any.

    The root's key comes first, so that no other can be in its place, and it always works. All keys
    act for the root user: what they make is the root's.
    """

    def __init__(self, root: Credential, keys: AccessKeys) -> None:
        self._root = root
        self._keys = keys
        self._credentials: dict[str, tuple[AccessKey, Credential]] = {}

    def lookup(self, access_key: str) -> Credential | None:
        """``s3.auth.credentials.CredentialStore``."""
        if access_key == self._root.access_key:
            return self._root
        found = self._keys.find(access_key)
        if found is None:
            return None
        known = self._credentials.get(access_key)
        if known is not None and known[0] is found:
            return known[1]
        credential = Credential(
            access_key=access_key,
            secret_key=found.secret_key,
            owner_id=self._root.owner_id,
            display_name=self._root.display_name,
            access=found.access,
        )
        if len(self._credentials) >= CREDENTIALS_MAX:
            self._credentials.clear()
        self._credentials[access_key] = found, credential
        return credential

    def secret_of(self, access_key: str) -> str | None:
        """Return the secret key; None when there is no such key. Raises: Unavailable."""
        if access_key == self._root.access_key:
            return self._root.secret_key
        found = self._keys.find(access_key)
        return None if found is None else found.secret_key

    def access_of(self, access_key: str) -> Access:
        """Return what the key may do; a key that is not there (any more) nothing.

        Raises: Unavailable.
        """
        if access_key == self._root.access_key:
            return FULL
        found = self._keys.find(access_key)
        return NOTHING if found is None else found.access
