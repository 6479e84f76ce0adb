"""A TCP link that misbehaves as it is told: a proxy in a process of its own.

It stands in for ``tc netem``, which not every kernel has. ``up`` is the way from the client to
the target. What a link holds back it sends on once it may, as TCP would after packets were lost.
"""

from __future__ import annotations

import json
import socket
import struct
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import trio

ROOT = Path(__file__).resolve().parents[2]
_STEP = 64 * 1024
_RESET = struct.pack("ii", 1, 0)


@dataclass
class Behaviour:
    """What the link does from now on, to new connections and to those that are open."""

    delay_s: float = 0.0
    """Each piece of data arrives so much later, both ways."""
    hold_up: bool = False
    hold_down: bool = False
    """Nothing arrives in that direction; held back until it may."""
    cut_up_after: int = -1
    cut_down_after: int = -1
    """Reset a connection when so many more bytes went that way on it (-1: never)."""
    refuse: bool = False
    """Reset new connections at once."""


class SlowLink:
    """``address`` leads to the target. Calls return once the link does as it was told."""

    def __init__(self, process: subprocess.Popen[str], address: str) -> None:
        self._process = process
        self.address = address
        self.behaviour = Behaviour()

    def behave(self, **changes: float | bool | int) -> None:
        """Change these fields of ``Behaviour``; the others stay."""
        for name, value in changes.items():
            setattr(self.behaviour, name, value)
        self._tell(asdict(self.behaviour))

    def cut(self) -> None:
        """Reset every open connection, on both sides."""
        self._tell({"cut": True})

    def connections(self) -> int:
        """Return how many connections have been made so far."""
        return self._tell({"count": True})

    def _tell(self, command: dict[str, object]) -> int:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(command) + "\n")
        self._process.stdin.flush()
        return int(self._process.stdout.readline())


@contextmanager
def slow_link(target: str, listen: str = "127.0.0.1") -> Iterator[SlowLink]:
    """Lead a link to ``HOST:PORT``; well-behaved until it is told otherwise.

    ``listen``: the address at which it is reached.
    """
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.support.slow_link", target, listen],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with process:
        assert process.stdout is not None
        try:
            yield SlowLink(process, process.stdout.readline().strip())
        finally:
            process.kill()


class _Proxy:
    def __init__(self, host: str, port: int) -> None:
        self._target = (host, port)
        self._behaviour = Behaviour()
        self._changed = trio.Event()
        self._open: set[trio.SocketStream] = set()
        self.count = 0

    def change(self, behaviour: Behaviour) -> None:
        self._behaviour = behaviour
        self._changed.set()
        self._changed = trio.Event()

    def cut(self) -> None:
        for stream in list(self._open):
            _reset(stream)

    async def serve(self, client: trio.SocketStream) -> None:
        if self._behaviour.refuse:
            _reset(client)
            return
        self.count += 1
        try:
            target = await trio.open_tcp_stream(*self._target)
        except OSError:
            _reset(client)
            return
        self._open |= {client, target}
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._pump, client, target, "up")
                nursery.start_soon(self._pump, target, client, "down")
        finally:
            self._open -= {client, target}
            client.socket.close()
            target.socket.close()

    async def _pump(self, source: trio.SocketStream, sink: trio.SocketStream, way: str) -> None:
        left = -1
        limit = -1
        try:
            while True:
                data = await source.receive_some(_STEP)
                await self._pass(way)
                wanted: int = getattr(self._behaviour, f"cut_{way}_after")
                if wanted != limit:
                    left = limit = wanted
                if limit >= 0:
                    if len(data) >= left:
                        await sink.send_all(data[:left])
                        _reset(source)
                        _reset(sink)
                        return
                    left -= len(data)
                if not data:
                    await sink.send_eof()
                    return
                await sink.send_all(data)
        except (trio.BrokenResourceError, trio.ClosedResourceError, OSError):
            _reset(source)
            _reset(sink)

    async def _pass(self, way: str) -> None:
        """Return when data may go on."""
        if self._behaviour.delay_s:
            await trio.sleep(self._behaviour.delay_s)
        while getattr(self._behaviour, f"hold_{way}"):
            await self._changed.wait()


def _reset(stream: trio.SocketStream) -> None:
    with suppress(OSError):
        stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
    stream.socket.close()


async def _main(host: str, port: int, listen: str) -> None:
    proxy = _Proxy(host, port)
    [listener] = await trio.open_tcp_listeners(0, host=listen)
    address = listener.socket.getsockname()
    print(f"{address[0]}:{address[1]}", flush=True)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.serve_listeners, proxy.serve, [listener])
        while line := await trio.to_thread.run_sync(sys.stdin.readline, abandon_on_cancel=True):
            command = json.loads(line)
            answer = 0
            if "cut" in command:
                proxy.cut()
            elif "count" in command:
                answer = proxy.count
            else:
                proxy.change(Behaviour(**command))
            print(answer, flush=True)
        nursery.cancel_scope.cancel()


if __name__ == "__main__":
    _host, _, _port = sys.argv[1].rpartition(":")
    trio.run(_main, _host, int(_port), sys.argv[2])
