"""Connections that never leave the machine, as between a gateway and members beside it."""

from __future__ import annotations

import ipaddress
import socket
from contextlib import suppress


def unpace(sock: socket.socket, address: str) -> None:
    """Let what is sent over loopback go out as fast as it is received.

    Where a host's congestion control is BBR, the kernel spreads every connection's packets over
    time by timers, loopback's too: 0.45 ms of CPU per MiB, 0.12 with Reno, which every kernel has
    and grants to everybody. Any other network keeps what its administrator chose.

    Args:
        sock: not connected yet; what a listener accepts inherits it. Pacing once begun stays.
        address: numeric: which is connected to, or listened on.
    """
    if ipaddress.ip_address(address).is_loopback:
        with suppress(OSError):  # some sandboxes refuse it; then it only costs more
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, b"reno")
