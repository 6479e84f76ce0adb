"""How gateway and member know each other: a secret, a challenge, numbered and signed requests.

The first request on a connection fetches a challenge (``GET /v1/hello``): each side contributes
16 random bytes, and both derive the connection's key from them and the cluster's secret. The
answer carries the member's proof that it knows the key. From then on each request has the next
number and a keyed BLAKE3 of number, method, target, length, range and, for small bodies, the body.

So a recorded request is worth nothing: on another connection the key differs, and on this one the
number has been used. Nothing has to be remembered beyond the connection, and no clocks agree.
A fragment's body is not covered (its blocks carry hashes that the reader verifies), but its end is:
``Signer.trailer`` says how long it is. Answers are not signed either; who needs secrecy, or
protection from somebody who can change packets, adds TLS.
"""

from __future__ import annotations

import hmac
from typing import Final

from blake3 import blake3

from engine.node.contract import NodeRefused

CLIENT_HEADER: Final = b"lode-client"
CHALLENGE_HEADER: Final = b"lode-challenge"
PROOF_HEADER: Final = b"lode-proof"
AUTH_HEADER: Final = b"lode-auth"
END_TRAILER: Final = b"lode-end"

HALF_SIZE: Final = 16
SECRET_SIZE_MIN: Final = 16

_SECRET_CONTEXT: Final = "lodestore 2026-11 cluster secret"
_KEY_LABEL: Final = b"connection key 1"


class Secret:
    """What all parts of a cluster know. Never printed."""

    __slots__ = ("_key",)

    def __init__(self, text: bytes) -> None:
        """
        Args:
            text: at least 16 bytes; white space around it does not count.
        Raises:
            ValueError: it is shorter.
        """
        text = text.strip()
        if len(text) < SECRET_SIZE_MIN:
            raise ValueError(f"a cluster's secret has at least {SECRET_SIZE_MIN} characters")
        self._key = blake3(text, derive_key_context=_SECRET_CONTEXT).digest()

    def __repr__(self) -> str:
        return "Secret(...)"

    def connection_key(self, client_half: bytes, server_half: bytes) -> bytes:
        return blake3(_KEY_LABEL + client_half + server_half, key=self._key).digest()


def proof(key: bytes) -> bytes:
    """Return what shows the client that the member knows the key, in hexadecimal digits."""
    return blake3(b"member", key=key).hexdigest().encode("ascii")


class Signer:
    """The client's end of one connection: numbers and signs its requests, in order."""

    __slots__ = ("_key", "_number")

    def __init__(self, key: bytes) -> None:
        self._key = key
        self._number = 0

    def sign(
        self, method: bytes, target: bytes, length: bytes, range_: bytes, body: bytes
    ) -> bytes:
        """Return the value of ``Lode-Auth`` for the next request.

        Args:
            length: value of Content-Length, or ``chunked``.
            body: the body when the length is a number.
        """
        self._number = number = self._number + 1
        return b"%d %b" % (number, _digest(self._key, number, method, target, length, range_, body))

    def trailer(self, size: int) -> bytes:
        """Return the value of ``Lode-End`` for the body of the request that was signed last."""
        return b"%d %b" % (size, _end(self._key, self._number, size))


class Verifier:
    """The member's end of one connection."""

    __slots__ = ("_key", "_number")

    def __init__(self, key: bytes) -> None:
        self._key = key
        self._number = 0

    def verify(
        self,
        value: bytes | None,
        method: bytes,
        target: bytes,
        length: bytes,
        range_: bytes,
        body: bytes,
    ) -> None:
        """Accept the request, or raise NodeRefused: not signed, not with this key, not the next."""
        number, _, digest = (value or b"").partition(b" ")
        expected = self._number + 1
        if number != b"%d" % expected:
            raise NodeRefused("the request is not signed, or not the next of its connection")
        if not hmac.compare_digest(
            digest, _digest(self._key, expected, method, target, length, range_, body)
        ):
            raise NodeRefused("the signature does not fit")
        self._number = expected

    def verify_end(self, value: bytes | None, size: int) -> None:
        """Accept the end of a chunked body of ``size`` bytes, or raise NodeRefused."""
        expected = b"%d %b" % (size, _end(self._key, self._number, size))
        if value is None or not hmac.compare_digest(value, expected):
            raise NodeRefused("the body does not end as its sender says")


def _digest(
    key: bytes, number: int, method: bytes, target: bytes, length: bytes, range_: bytes, body: bytes
) -> bytes:
    # None of the parts can hold a line break, so the message can be read in one way only.
    message = b"%d\n%b\n%b\n%b\n%b\n" % (number, method, target, length, range_)
    return blake3(message + body, key=key).hexdigest().encode("ascii")


def _end(key: bytes, number: int, size: int) -> bytes:
    return blake3(b"end %d %d" % (number, size), key=key).hexdigest().encode("ascii")
