"""Which connections go without the host's congestion control, on real sockets."""

from __future__ import annotations

import socket

import pytest

from engine.node.wire.loopback import unpace


def congestion_control(sock: socket.socket) -> bytes:
    return sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, 16).rstrip(b"\0")


@pytest.mark.parametrize("address", ["127.0.0.1", "127.8.8.8"])
def test_what_a_listener_on_loopback_accepts_is_not_paced(address: str) -> None:
    with socket.create_server((address, 0)) as listener:
        unpace(listener, address)
        with socket.create_connection(listener.getsockname()):
            accepted, _ = listener.accept()
            with accepted:
                assert congestion_control(accepted) == b"reno"


@pytest.mark.parametrize("address", ["192.0.2.1", "0.0.0.0", "::", "2001:db8::1"])
def test_other_networks_keep_what_the_host_has(address: str) -> None:
    with socket.socket() as ours, socket.socket() as other:
        host = congestion_control(other)
        unpace(ours, address)
        assert congestion_control(ours) == host


def test_ipv6_has_a_loopback_too() -> None:
    with socket.socket() as sock:
        unpace(sock, "::1")
        assert congestion_control(sock) == b"reno"
