"""Listening sockets and what is said when there can be none."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import trustme

from cli.arguments import Address
from cli.listen import addresses_of, listen, make_tls_context
from engine.errors import ConfigError


@contextmanager
def listening(text: str) -> Iterator[list[socket.socket]]:
    sockets = listen(Address.parse(text))
    try:
        yield sockets
    finally:
        for bound in sockets:
            bound.close()


def test_a_free_port_is_found_and_named() -> None:
    with listening("127.0.0.1:0") as sockets:
        (address,) = addresses_of(sockets)
        host, _, port = address.rpartition(":")
        assert host == "127.0.0.1"
        socket.create_connection((host, int(port)), timeout=5).close()


def test_all_addresses_of_a_name_share_one_port() -> None:
    with listening("localhost:0") as sockets:
        assert len({address.rpartition(":")[2] for address in addresses_of(sockets)}) == 1


def test_no_host_means_every_interface() -> None:
    with listening(":0") as sockets:
        port = sockets[0].getsockname()[1]
        socket.create_connection(("127.0.0.1", port), timeout=5).close()


def test_a_port_in_use_is_named_with_a_way_out() -> None:
    with listening("127.0.0.1:0") as sockets:
        port = sockets[0].getsockname()[1]
        with pytest.raises(ConfigError, match=f"127.0.0.1:{port} is in use; .*--s3"):
            listen(Address("127.0.0.1", port))


def test_an_address_of_another_machine_is_refused() -> None:
    # 192.0.2.0/24 is for documentation (RFC 5737): no machine has it.
    with pytest.raises(ConfigError, match="is no address of this machine"):
        listen(Address("192.0.2.1", 0))


def test_an_unknown_host_is_named() -> None:
    with pytest.raises(ConfigError, match="'no such host' is not known"):
        listen(Address("no such host", 0))


def test_a_certificate_and_its_key_are_taken(tmp_path: Path) -> None:
    issued = trustme.CA().issue_cert("localhost")
    issued.private_key_pem.write_to_path(tmp_path / "key.pem")
    for blob in issued.cert_chain_pems:
        blob.write_to_path(tmp_path / "cert.pem", append=True)
    assert make_tls_context(tmp_path / "cert.pem", tmp_path / "key.pem").get_ca_certs() == []


def test_bad_certificates_are_named(tmp_path: Path) -> None:
    (tmp_path / "cert.pem").write_text("no certificate")
    (tmp_path / "key.pem").write_text("no key")
    with pytest.raises(ConfigError, match=r"--tls-key: cannot read .*absent\.pem"):
        make_tls_context(tmp_path / "cert.pem", tmp_path / "absent.pem")
    with pytest.raises(ConfigError, match=r"cert\.pem and --tls-key .*key\.pem: no PEM"):
        make_tls_context(tmp_path / "cert.pem", tmp_path / "key.pem")
