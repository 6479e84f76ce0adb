"""Listening sockets, and what to say when there can be none."""

from __future__ import annotations

import errno
import socket
import ssl
from pathlib import Path

from cli.arguments import Address
from engine.errors import ConfigError

BACKLOG = 4096

_ABSENT = (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT)


def listen(address: Address, option: str = "--s3") -> list[socket.socket]:
    """Return non-blocking listening sockets, one per address that the host name has.

    ``option``: where the address comes from, to be named in messages.

    The caller closes them. Raises ConfigError; then nothing stays open.
    """
    sockets: list[socket.socket] = []
    absent: OSError | None = None
    port = address.port
    try:
        for family, host in _resolve(address, option):
            try:
                sockets.append(_bind(family, host, port, dual=not address.host))
            except OSError as error:
                if error.errno not in _ABSENT:
                    raise
                # A machine without IPv6 often still resolves localhost to ::1.
                absent = error
                continue
            port = sockets[0].getsockname()[1]
            if not address.host:
                break
        if not sockets and absent is not None:
            raise absent
    except OSError as error:
        for opened in sockets:
            opened.close()
        raise ConfigError(_explain(error, address, option)) from error
    return sockets


def addresses_of(sockets: list[socket.socket]) -> list[str]:
    """Return ``HOST:PORT`` of each socket, with brackets around IPv6."""
    addresses = []
    for bound in sockets:
        host, port = bound.getsockname()[:2]
        addresses.append(f"[{host}]:{port}" if ":" in host else f"{host}:{port}")
    return addresses


def make_tls_context(certificate: Path, key: Path) -> ssl.SSLContext:
    """Return a server's TLS context (1.2 or newer). Raises ConfigError."""
    for option, path in (("--tls-cert", certificate), ("--tls-key", key)):
        try:
            path.open("rb").close()
        except OSError as error:
            raise ConfigError(f"{option}: cannot read {path}: {error.strerror}") from error
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    try:
        # A key with a passphrase would make OpenSSL ask on the terminal.
        context.load_cert_chain(certificate, key, password=lambda: b"")
    except (ssl.SSLError, OSError, ValueError) as error:
        raise ConfigError(
            f"--tls-cert {certificate} and --tls-key {key}: no PEM certificate chain with its "
            f"unencrypted private key ({error})"
        ) from error
    return context


def _resolve(address: Address, option: str) -> list[tuple[socket.AddressFamily, str]]:
    if not address.host:
        return [(socket.AF_INET6, "::"), (socket.AF_INET, "0.0.0.0")]
    try:
        found = socket.getaddrinfo(
            address.host, address.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
    except (socket.gaierror, UnicodeError) as error:
        raise ConfigError(f"{option}: host {address.host!r} is not known") from error
    return list(dict.fromkeys((family, str(name[0])) for family, _, _, _, name in found))


def _bind(family: socket.AddressFamily, host: str, port: int, *, dual: bool) -> socket.socket:
    bound = socket.socket(family, socket.SOCK_STREAM)
    try:
        # Lets a restart bind while connections of the last run are in TIME_WAIT.
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            bound.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0 if dual else 1)
        bound.bind((host, port))
        bound.listen(BACKLOG)
        bound.setblocking(False)
    except BaseException:
        bound.close()
        raise
    return bound


def _explain(error: OSError, address: Address, option: str) -> str:
    where = f"{address.host or '*'}:{address.port}"
    match error.errno:
        case errno.EADDRINUSE:
            why = f"is in use; stop what listens there, or choose another address with {option}"
        case errno.EACCES | errno.EPERM:
            why = f"is not allowed for this user; choose a port above 1023 with {option}"
        case errno.EADDRNOTAVAIL | errno.EAFNOSUPPORT:
            why = f"is no address of this machine; choose another with {option}"
        case _:
            why = f"cannot be listened on: {error.strerror}"
    return f"{where} {why}"
