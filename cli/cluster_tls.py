"""TLS between the parts of a cluster: mutual, each side's certificate from the cluster's own CA.

Who may speak is decided by the secret; TLS keeps what is said secret, and makes sure that a
gateway speaks to the machine that it means.
"""

from __future__ import annotations

import ssl
from pathlib import Path

from cli.listen import make_tls_context
from engine.errors import ConfigError


def member_tls(certificate: Path, key: Path, authority: Path | None) -> ssl.SSLContext:
    """Return a member's context; with an authority, clients must show a certificate of it.

    Raises: ConfigError.
    """
    context = make_tls_context(certificate, key)
    if authority is not None:
        _trust(context, authority)
        context.verify_mode = ssl.CERT_REQUIRED
    return context


def gateway_tls(
    certificate: Path | None, key: Path | None, authority: Path | None
) -> ssl.SSLContext:
    """Return a gateway's context: members must show a certificate for their host name.

    Args:
        certificate, key: what the gateway shows itself; None: nothing.
        authority: whom to trust; None: whom the machine trusts.
    Raises: ConfigError.
    """
    context = ssl.create_default_context(ssl.Purpose.SERVER_AUTH)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if authority is not None:
        _trust(context, authority)
    if certificate is not None and key is not None:
        try:
            context.load_cert_chain(certificate, key, password=lambda: b"")
        except (ssl.SSLError, OSError, ValueError) as error:
            raise ConfigError(
                f"{certificate} and {key}: no PEM certificate chain with its unencrypted private "
                f"key ({error})"
            ) from error
    return context


def _trust(context: ssl.SSLContext, authority: Path) -> None:
    try:
        context.load_verify_locations(cafile=authority)
    except (ssl.SSLError, OSError) as error:
        raise ConfigError(f"--tls-ca {authority}: no PEM certificates ({error})") from error
