"""The yardstick: the least that a trio and httptools server can do, and nothing more.

``python benchmarks/bare_server.py PORT [--workers N] [--size N]``. ``GET /4096`` answers 4096
bytes (another path: ``--size`` bytes), ``PUT`` counts the body and drops it. No limits, no time
limits, no errors: never serve anything with it. One process per worker, SO_REUSEPORT between them.
"""

from __future__ import annotations

import argparse
import multiprocessing
import socket

import httptools
import trio

RECEIVE = 256 * 1024


class Exchange:
    """llhttp's callbacks of one connection: answers collect until the caller sends them."""

    def __init__(self, size: int, bodies: dict[int, bytes]) -> None:
        self.parser = httptools.HttpRequestParser(self)
        self.default_size = size
        self.answers: list[bytes] = []
        self.bodies = bodies
        self.received = 0
        self.url = b""

    def on_url(self, url: bytes) -> None:
        self.url = url

    def on_header(self, name: bytes, value: bytes) -> None:
        if name.lower() == b"expect":
            self.answers.append(b"HTTP/1.1 100 Continue\r\n\r\n")

    def on_body(self, data: bytes) -> None:
        self.received += len(data)

    def on_message_complete(self) -> None:
        if self.parser.get_method() == b"GET":
            path = self.url[1:]
            size = int(path) if path.isdigit() else self.default_size
            answer = self.bodies.get(size)
            if answer is None:
                answer = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (size, bytes(size))
                self.bodies[size] = answer
            self.answers.append(answer)
        else:
            self.answers.append(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")


async def serve_connection(stream: trio.SocketStream, size: int, bodies: dict[int, bytes]) -> None:
    exchange = Exchange(size, bodies)
    try:
        while data := await stream.receive_some(RECEIVE):
            exchange.parser.feed_data(data)
            for answer in exchange.answers:
                await stream.send_all(answer)
            exchange.answers.clear()
    except trio.BrokenResourceError:
        pass


async def serve(port: int, size: int) -> None:
    sock = trio.socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    await sock.bind(("127.0.0.1", port))
    sock.listen(1024)
    listener = trio.SocketListener(sock)
    # Shared by all connections: a large body of one's own each would measure page faults.
    bodies: dict[int, bytes] = {}

    async def handle(stream: trio.SocketStream) -> None:
        await serve_connection(stream, size, bodies)

    await trio.serve_listeners(handle, [listener])


def run(port: int, size: int) -> None:
    trio.run(serve, port, size)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("port", type=int)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--size", type=int, default=4096, help="bytes for a path without a number")
    options = parser.parse_args()
    workers = [
        multiprocessing.Process(target=run, args=(options.port, options.size), daemon=True)
        for _ in range(options.workers - 1)
    ]
    for worker in workers:
        worker.start()
    try:
        run(options.port, options.size)
    except KeyboardInterrupt:
        pass
    finally:
        for worker in workers:
            worker.terminate()


if __name__ == "__main__":
    main()
