"""Time runs out when no byte moves, not when many move slowly."""

from __future__ import annotations

import socket
import threading

import pytest

from dav.wire import PLAIN_STEP, SocketReader, SocketWriter

IDLE_S = 60.0


class SlowSocket:
    """Moves one byte per call, each a moment before the caller's patience ends."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.timeout: float | None = None

    def settimeout(self, timeout: float | None) -> None:
        self.timeout = timeout

    def _wait(self) -> None:
        assert self.timeout is not None
        waits_s = IDLE_S * 0.9
        if self.timeout < waits_s:
            self.now += self.timeout
            raise TimeoutError
        self.now += waits_s

    def recv_into(self, view: memoryview) -> int:
        self._wait()
        view[0] = 0x78
        return 1

    def send(self, data: memoryview) -> int:
        self._wait()
        return 1


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> SlowSocket:
    made = SlowSocket()
    monkeypatch.setattr("dav.wire.time.monotonic", lambda: made.now)
    return made


def test_a_slow_body_has_all_the_time_that_it_takes(slow: SlowSocket) -> None:
    reader = SocketReader(slow, idle_s=IDLE_S)  # type: ignore[arg-type]  what is used of one
    assert reader.read(100) == b"x" * 100
    assert slow.now > 1000 + 10 * IDLE_S


def test_a_slow_client_gets_all_of_its_answer(slow: SlowSocket) -> None:
    writer = SocketWriter(slow, idle_s=IDLE_S)  # type: ignore[arg-type]  what is used of one
    assert writer.write(b"x" * 100) == 100
    assert slow.now > 1000 + 10 * IDLE_S


def test_a_head_has_a_deadline_for_all_of_it(slow: SlowSocket) -> None:
    reader = SocketReader(slow, idle_s=IDLE_S)  # type: ignore[arg-type]  what is used of one
    reader.deadline = slow.now + 3 * IDLE_S
    with pytest.raises(TimeoutError):
        reader.read(100)
    assert slow.now == 1000 + 3 * IDLE_S


@pytest.mark.parametrize("size", [1, 65536, 65537, PLAIN_STEP + 1])
def test_what_is_held_goes_with_what_follows(size: int) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        writer = SocketWriter(ours, idle_s=IDLE_S)
        writer.hold()
        writer.write(b"head")
        theirs.setblocking(False)
        with pytest.raises(BlockingIOError):
            theirs.recv(1)
        theirs.settimeout(IDLE_S)
        received = bytearray()
        body = bytes(range(256)) * (size // 256) + bytes(size % 256)
        sending = threading.Thread(target=writer.write, args=(body,))
        sending.start()
        while len(received) < size + 4:
            received += theirs.recv(1 << 20)
        sending.join()
        assert received == b"head" + body
        writer.hold()
        writer.write(b"alone")
        writer.release()
        assert theirs.recv(10) == b"alone"
