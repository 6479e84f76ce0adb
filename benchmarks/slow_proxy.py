"""A TCP proxy in a process of its own that holds back every piece of data, both ways.

    python -m benchmarks.slow_proxy TARGET_HOST:PORT

It prints its address. Each line on standard input is the delay in seconds from then on; it is
answered with an empty line. End of input ends it.
"""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import trio

PIECE = 256 * 1024
ROOT = Path(__file__).resolve().parents[1]


class SlowProxy:
    def __init__(self, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        self._process = process
        self.address = process.stdout.readline().strip()

    def delay(self, seconds: float) -> None:
        """Return once each piece of data, on open connections too, arrives so much later."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{seconds}\n")
        self._process.stdin.flush()
        self._process.stdout.readline()


@contextlib.contextmanager
def run_proxy(target: str) -> Iterator[SlowProxy]:
    """Lead to ``HOST:PORT`` until the context is left; without delay at first."""
    process = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.slow_proxy", target],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with process:
        try:
            yield SlowProxy(process)
        finally:
            process.kill()


class _Proxy:
    def __init__(self, host: str, port: int) -> None:
        self._target = (host, port)
        self.delay_s = 0.0

    async def serve(self, client: trio.SocketStream) -> None:
        with contextlib.suppress(OSError):
            target = await trio.open_tcp_stream(*self._target)
            async with target, trio.open_nursery() as nursery:
                nursery.start_soon(self._pump, client, target, nursery.cancel_scope)
                nursery.start_soon(self._pump, target, client, nursery.cancel_scope)

    async def _pump(
        self, source: trio.SocketStream, sink: trio.SocketStream, scope: trio.CancelScope
    ) -> None:
        with contextlib.suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            while data := await source.receive_some(PIECE):
                if self.delay_s:
                    await trio.sleep(self.delay_s)
                await sink.send_all(data)
        scope.cancel()


async def _main(target: str) -> None:
    host, _, port = target.rpartition(":")
    proxy = _Proxy(host, int(port))
    [listener] = await trio.open_tcp_listeners(0, host=host)
    address = listener.socket.getsockname()
    print(f"{address[0]}:{address[1]}", flush=True)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.serve_listeners, proxy.serve, [listener])
        while line := await trio.to_thread.run_sync(sys.stdin.readline, abandon_on_cancel=True):
            proxy.delay_s = float(line)
            print(flush=True)
        nursery.cancel_scope.cancel()


if __name__ == "__main__":
    trio.run(_main, sys.argv[1])
