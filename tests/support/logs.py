"""The log of a test, and which of its troubles the test expects."""

from __future__ import annotations

import re

import structlog
import trio

TROUBLE = frozenset({"warning", "error", "critical"})


class Logs:
    """What was logged by this process during the test; ``expect`` excuses troubles."""

    def __init__(self) -> None:
        self.entries: list[structlog.typing.EventDict] = []
        self._expected: list[re.Pattern[str]] = []
        self._waiting: list[tuple[str, trio.Event]] = []

    def expect(self, pattern: str) -> None:
        """Let warnings and errors pass whose event has a match of the regular expression."""
        self._expected.append(re.compile(pattern))

    async def wait_for(self, event: str) -> None:
        """Return once the event was logged, by a task of this trio run; the caller has a limit."""
        if event not in self.events:
            seen = trio.Event()
            self._waiting.append((event, seen))
            await seen.wait()

    @property
    def events(self) -> list[str]:
        return [str(entry["event"]) for entry in self.entries]

    @property
    def unexpected(self) -> list[structlog.typing.EventDict]:
        return [
            entry
            for entry in self.entries
            if entry["log_level"] in TROUBLE
            and not any(pattern.search(str(entry["event"])) for pattern in self._expected)
        ]

    def take(
        self, _logger: object, level: str, event: structlog.typing.EventDict
    ) -> structlog.typing.EventDict:
        self.entries.append({**event, "log_level": level})
        for wanted, seen in self._waiting:
            if wanted == event["event"]:
                seen.set()
        raise structlog.DropEvent
