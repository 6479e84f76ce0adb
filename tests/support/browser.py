"""Headless Chromium for tests, driven through its debugging pipe: JSON with a NUL behind it."""

from __future__ import annotations

import itertools
import json
import os
import selectors
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

WAIT_S = 60.0
COMMANDS = ("chromium", "chromium-browser", "google-chrome")


class Browser:
    """One page. Messages are those of the Chrome DevTools Protocol."""

    def __init__(self, reading: int, writing: int) -> None:
        self._reading = reading
        self._writing = writing
        self._numbers = itertools.count(1)
        self._buffer = b""
        self._events: list[dict[str, Any]] = []
        self._session = ""

    def send(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Send a command and return its result."""
        number = next(self._numbers)
        message: dict[str, Any] = {"id": number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._writing, json.dumps(message).encode() + b"\0")
        while True:
            received = self._receive()
            if received.get("id") == number:
                assert "error" not in received, received
                result: dict[str, Any] = received["result"]
                return result
            self._events.append(received)

    def wait_for(self, method: str, **wanted: Any) -> dict[str, Any]:
        """Return the parameters of an event that has those values."""
        while True:
            for event in self._events:
                parameters: dict[str, Any] = event.get("params", {})
                if event.get("method") == method and wanted.items() <= parameters.items():
                    self._events.remove(event)
                    return parameters
            self._events.append(self._receive())

    def open_page(self) -> None:
        target = self.send("Target.createTarget", url="about:blank")["targetId"]
        attached = self.send("Target.attachToTarget", targetId=target, flatten=True)
        self._session = attached["sessionId"]
        self.send("Page.enable")
        self.send("Runtime.enable")

    def go(self, url: str) -> None:
        """Open a URL and wait until it is loaded."""
        result = self.send("Page.navigate", url=url)
        assert "errorText" not in result, result
        self.wait_for("Page.loadEventFired")

    def evaluate(self, expression: str) -> Any:
        """Return the JSON value of a JavaScript expression."""
        result = self.send("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    def _receive(self) -> dict[str, Any]:
        deadline = time.monotonic() + WAIT_S
        with selectors.DefaultSelector() as selector:
            selector.register(self._reading, selectors.EVENT_READ)
            while b"\0" not in self._buffer:
                if not selector.select(max(0.0, deadline - time.monotonic())):
                    raise AssertionError(f"the browser says nothing; so far: {self._events}")
                received = os.read(self._reading, 1 << 16)
                assert received, "the browser ended"
                self._buffer += received
        message, _, self._buffer = self._buffer.partition(b"\0")
        decoded: dict[str, Any] = json.loads(message)
        return decoded


@contextmanager
def chromium(folder: Path) -> Iterator[Browser]:
    """Run a browser with its profile in ``folder``; skips the test where there is none."""
    command = next(filter(None, map(shutil.which, COMMANDS)), None)
    if command is None:
        pytest.skip("no Chromium here")
    # The browser reads commands on descriptor 3 and writes on 4.
    commands, answers = os.pipe(), os.pipe()
    arguments = [
        command,
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--no-first-run",
        "--remote-debugging-pipe",
        f"--user-data-dir={folder}",
    ]
    moved = f'exec 3<&{commands[0]} 4>&{answers[1]}; exec "$@"'
    process = subprocess.Popen(
        ["bash", "-c", moved, "bash", *arguments],
        pass_fds=(commands[0], answers[1]),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    os.close(commands[0])
    os.close(answers[1])
    with process:
        try:
            browser = Browser(answers[0], commands[1])
            browser.open_page()
            yield browser
        finally:
            os.close(commands[1])
            os.close(answers[0])
            process.terminate()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
