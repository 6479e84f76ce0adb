"""Basic and Digest (RFC 7617, RFC 7616) with an access key and its secret key.

In place of wsgidav's authenticator, which accepts any nonce that a client makes up, and any
number of times.

A nonce says when it was made and is signed with a key that all processes of a store share, so
it is good at every one of them and after a restart. A nonce count is accepted once by a process,
in any order within a window, because clients send requests over several connections; what came
before, does not fit or is too old is answered with ``stale=true``, which costs a client that
knows the secret one more request and nobody else anything. Counts are not shared: who overhears
a request without TLS can send it once more to each other process while its nonce is young. Sharing
them would be a commit for every request, to protect what only TLS protects: bodies are not signed.

Basic sends the secret itself, so it is refused where others could read it: without TLS, unless
the client is on this machine.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import ipaddress
import os
import re
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable
from functools import lru_cache
from typing import Any
from urllib.parse import unquote_to_bytes

import structlog
from wsgidav.mw.base_mw import BaseMiddleware

from dav.clients import asks_before_login
from dav.config import DavConfig
from dav.errors import DavError

log = structlog.get_logger()

NONCE_S = 3600
SKEW_S = 60
"""So much may the clocks of two machines differ."""
NONCES_MAX = 4096
"""Nonces in use whose counts are remembered; only who knows a secret makes one be."""
WINDOW = 256
"""Counts that may still arrive behind the highest."""

_FIELD = re.compile(r'(\w+\*?)\s*=\s*(?:"((?:[^"\\]|\\.)*)"|([^\s,"]+))')
_NEEDED = ("username", "realm", "nonce", "uri", "response", "nc", "cnonce", "qop")


class Authenticator(BaseMiddleware):
    """Lets a request through with ``wsgidav.auth.user_name`` set, or answers 401.

    Reads nothing of the body, so a client that waits for ``100 Continue`` is not told to send.
    """

    def __init__(self, wsgidav_app: Any, next_app: Any, config: dict[str, Any]) -> None:
        super().__init__(wsgidav_app, next_app, config)
        self._config: DavConfig = config["lode"]
        self._nonces = Nonces(self._config.nonce_key, time.time)

    def __call__(
        self, environ: dict[str, Any], start_response: Callable[..., Any]
    ) -> Iterable[bytes]:
        environ["wsgidav.auth.realm"] = self._config.realm
        environ["wsgidav.auth.user_name"] = ""
        if not asks_before_login(environ["REQUEST_METHOD"], environ):
            environ["wsgidav.auth.user_name"] = self._authenticate(environ)
        answer: Iterable[bytes] = self.next_app(environ, start_response)
        return answer

    def _authenticate(self, environ: dict[str, Any]) -> str:
        """Return the user. Raises: DavError 401."""
        basic_allowed = self._may_use_basic(environ)
        scheme, _, rest = environ.get("HTTP_AUTHORIZATION", "").strip().partition(" ")
        stale = False
        match scheme.lower():
            case "basic" if basic_allowed:
                user = self._basic(rest.strip())
                if user is not None:
                    return user
            case "digest":
                user, stale = self._digest(rest, environ)
                if user is not None and not stale:
                    return user
            case _:
                pass
        if scheme and not stale:
            log.info("dav.refused", peer=environ.get("REMOTE_ADDR", ""), scheme=scheme.lower())
        challenges = [
            (
                "WWW-Authenticate",
                f'Digest realm="{self._config.realm}", qop="auth", algorithm=MD5, '
                f'nonce="{self._nonces.make()}"' + (", stale=true" if stale else ""),
            )
        ]
        if basic_allowed:
            basic = f'Basic realm="{self._config.realm}", charset="UTF-8"'
            challenges.append(("WWW-Authenticate", basic))
        raise DavError(401, "access key and secret key, please", headers=challenges)

    def _may_use_basic(self, environ: dict[str, Any]) -> bool:
        return (
            environ["wsgi.url_scheme"] == "https"
            or self._config.basic_without_tls
            or is_loopback(environ.get("REMOTE_ADDR", ""))
        )

    def _basic(self, encoded: str) -> str | None:
        try:
            text = base64.b64decode(encoded, validate=True).decode()
        except (binascii.Error, UnicodeDecodeError, ValueError):
            return None
        user, colon, password = text.partition(":")
        secret = self._config.secret_of(user)
        # Compared even when there is no such user, so that time does not tell.
        same = hmac.compare_digest(password.encode(), (secret or "").encode())
        return user if colon and same and secret else None

    def _digest(self, text: str, environ: dict[str, Any]) -> tuple[str | None, bool]:
        """Return the user, if the response is right, and whether only the nonce is too old."""
        fields = parse_digest(text)
        if any(name not in fields for name in _NEEDED) or fields["qop"] != "auth":
            return None, False
        if fields.get("algorithm", "MD5").upper() != "MD5":
            return None, False
        # Windows sends the name with its backslash doubled, and counts it single.
        user = fields["username"].replace("\\\\", "\\")
        secret = self._config.secret_of(user)
        if fields["realm"] != self._config.realm or not same_target(
            fields["uri"], environ["REQUEST_URI"]
        ):
            return None, False
        expected = digest_response(
            fields, user=user, secret=secret or "", method=environ["REQUEST_METHOD"]
        )
        if not hmac.compare_digest(expected, fields["response"].lower()) or not secret:
            return None, False
        return user, not self._nonces.use(fields["nonce"], fields["nc"])


@lru_cache(maxsize=256)
def is_loopback(address: str) -> bool:
    try:
        parsed = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return False
    if isinstance(parsed, ipaddress.IPv6Address) and parsed.ipv4_mapped is not None:
        parsed = parsed.ipv4_mapped
    return parsed.is_loopback


def parse_digest(text: str) -> dict[str, str]:
    """Return the fields of a Digest header, names in lower case, values without quotes."""
    fields = {}
    for name, quoted, bare in _FIELD.findall(text):
        fields[name.lower()] = re.sub(r"\\(.)", r"\1", quoted) if quoted else bare
    return fields


def digest_response(fields: dict[str, str], *, user: str, secret: str, method: str) -> str:
    """Return what ``response`` has to be (RFC 7616, section 3.4.1, with qop ``auth``)."""
    first = _md5(f"{user}:{fields['realm']}:{secret}")
    second = _md5(f"{method}:{fields['uri']}")
    middle = ":".join(fields[name] for name in ("nonce", "nc", "cnonce", "qop"))
    return _md5(f"{first}:{middle}:{second}")


def _md5(text: str) -> str:
    return hashlib.md5(text.encode("latin-1", "xmlcharrefreplace")).hexdigest()


def same_target(uri: str, target: str) -> bool:
    """Whether a Digest's ``uri`` is the target of the request line.

    Clients differ in what they encode there, and some send the whole URL or leave the query out.
    """
    if uri == target:
        return True

    def plain(text: str) -> bytes:
        if "://" in text:
            text = "/" + text.partition("://")[2].partition("/")[2]
        return unquote_to_bytes(text.partition("?")[0].encode("latin-1", "replace"))

    return plain(uri) == plain(target)


class Nonces:
    """Makes nonces and says whether one may be used with a count. Any thread.

    All that share ``key`` take each other's nonces.
    """

    def __init__(self, key: bytes, clock: Callable[[], float]) -> None:
        self._key = key
        self._clock = clock
        self._lock = threading.Lock()
        self._used: OrderedDict[str, _Counts] = OrderedDict()

    def make(self) -> str:
        made = int(self._clock()).to_bytes(6, "big") + os.urandom(6)
        return base64.urlsafe_b64encode(made + self._sign(made)).decode()

    def use(self, nonce: str, count: str) -> bool:
        """Return whether the nonce is ours, young enough, and the count new; and remember it."""
        try:
            raw = base64.urlsafe_b64decode(nonce)
            number = int(count, 16)
        except (binascii.Error, ValueError):
            return False
        made = raw[:12]
        if not hmac.compare_digest(raw[12:], self._sign(made)):
            return False
        if not -SKEW_S <= self._clock() - int.from_bytes(made[:6], "big") <= NONCE_S:
            return False
        with self._lock:
            counts = self._used.pop(nonce, None) or _Counts()
            self._used[nonce] = counts
            while len(self._used) > NONCES_MAX:
                self._used.popitem(last=False)
            return counts.use(number)

    def _sign(self, made: bytes) -> bytes:
        return hmac.digest(self._key, made, "sha256")[:18]


class _Counts:
    """Which counts of a nonce were used: all up to the window's end, and a bit for each in it."""

    __slots__ = ("_highest", "_seen")

    def __init__(self) -> None:
        self._highest = 0
        self._seen = 0

    def use(self, number: int) -> bool:
        if number > self._highest:
            shift = min(number - self._highest, WINDOW)
            self._seen = ((self._seen << shift) | 1) & ((1 << WINDOW) - 1)
            self._highest = number
            return True
        bit = 1 << (self._highest - number)
        if number <= 0 or self._highest - number >= WINDOW or self._seen & bit:
            return False
        self._seen |= bit
        return True
