"""A network of machines on one kernel: network namespaces on a bridge, each with its own address.

The bridge lies in a namespace of its own, so the machine's own network is not touched. What was
made is removed at the end; names carry the process id, so that runs do not meet. Needs root,
iproute2 and iptables. Cuts are packets dropped in silence, as a pulled cable does, not refusals.
"""

from __future__ import annotations

import ctypes
import os
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

_CLONE_NEWNET = 0x40000000
_libc = ctypes.CDLL(None, use_errno=True)


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, timeout=30)


class Machine:
    """A namespace with an address. ``name`` is the namespace's."""

    def __init__(self, name: str, address: str) -> None:
        self.name = name
        self.address = address
        self._cuts: list[tuple[str, ...]] = []

    def popen(self, command: Sequence[str], **options: Any) -> subprocess.Popen[bytes]:
        """Start a program on the machine: the process itself, without a wrapper around it."""
        with inside(self.name):
            return subprocess.Popen(command, **options)

    def cut(self, direction: str = "both") -> None:
        """Drop all packets but the machine's own, from now on.

        ``direction``: ``in``: nothing reaches it; ``out``: nothing leaves it; or ``both``.
        """
        if direction in ("in", "both"):
            self._drop("INPUT", "!", "-i", "lo")
        if direction in ("out", "both"):
            self._drop("OUTPUT", "!", "-o", "lo")

    def cut_from(self, other: Machine) -> None:
        """Drop what comes from and goes to one other machine."""
        self._drop("INPUT", "-s", other.address)
        self._drop("OUTPUT", "-d", other.address)

    def mend(self) -> None:
        """Let everything through again."""
        while self._cuts:
            self._iptables("-D", *self._cuts.pop())

    def _drop(self, *rule: str) -> None:
        words = (*rule, "-j", "DROP")
        self._iptables("-A", *words)
        self._cuts.append(words)

    def _iptables(self, action: str, *words: str) -> None:
        _ip("netns", "exec", self.name, "iptables", "-w", "10", action, *words)


class Network:
    """Machines that reach each other. ``hub`` is one of them, for whoever looks on."""

    def __init__(self, prefix: str) -> None:
        self._prefix = prefix
        self._machines: list[Machine] = []
        self.hub = Machine(f"{prefix}hub", "10.77.0.254")

    def open(self) -> None:
        _ip("netns", "add", self.hub.name)
        self._in(self.hub, "link", "set", "lo", "up")
        self._in(self.hub, "link", "add", "br0", "type", "bridge")
        self._in(self.hub, "addr", "add", f"{self.hub.address}/24", "dev", "br0")
        self._in(self.hub, "link", "set", "br0", "up")

    def add(self) -> Machine:
        number = len(self._machines) + 1
        machine = Machine(f"{self._prefix}m{number}", f"10.77.0.{number}")
        _ip("netns", "add", machine.name)
        self._machines.append(machine)
        port = f"port{number}"
        self._in(
            self.hub,
            *("link", "add", port, "type", "veth"),
            *("peer", "name", "eth0", "netns", machine.name),
        )
        self._in(self.hub, "link", "set", port, "master", "br0", "up")
        self._in(machine, "link", "set", "lo", "up")
        self._in(machine, "addr", "add", f"{machine.address}/24", "dev", "eth0")
        self._in(machine, "link", "set", "eth0", "up")
        return machine

    def _in(self, machine: Machine, *words: str) -> None:
        _ip("-n", machine.name, *words)

    def close(self) -> None:
        for machine in (*self._machines, self.hub):
            subprocess.run(
                ["ip", "netns", "del", machine.name], check=False, capture_output=True, timeout=30
            )


@contextmanager
def network() -> Iterator[Network]:
    made = Network(f"lode{os.getpid()}")
    try:
        made.open()
        yield made
    finally:
        made.close()


@contextmanager
def inside(name: str) -> Iterator[None]:
    """Make the calling thread one of the namespace: its sockets, and the threads and processes
    that it starts, are there. Sockets that are open stay where they are."""
    with Path("/proc/thread-self/ns/net").open() as home:
        with Path("/run/netns", name).open() as there:
            _set_namespace(there.fileno())
        try:
            yield
        finally:
            _set_namespace(home.fileno())


def _set_namespace(descriptor: int) -> None:
    if _libc.setns(descriptor, _CLONE_NEWNET) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def missing() -> str:
    """Return what keeps this machine from making networks, or nothing."""
    if os.geteuid() != 0:
        return "needs root"
    for command in ("ip", "iptables"):
        found = subprocess.run(["which", command], check=False, capture_output=True)
        if found.returncode != 0:
            return f"needs {command} (apt install iproute2 iptables)"
    done = subprocess.run(
        ["unshare", "--net", "true"], check=False, capture_output=True, timeout=30
    )
    return "" if done.returncode == 0 else "network namespaces are not allowed here"
