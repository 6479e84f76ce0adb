"""What every test gets: a log in which an unexpected warning or error fails the test."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest
import structlog

TROUBLE = frozenset({"warning", "error", "critical"})


class Logs:
    """What was logged by this process during the test; ``expect`` excuses troubles."""

    def __init__(self) -> None:
        self.entries: list[structlog.typing.EventDict] = []
        self._expected: list[re.Pattern[str]] = []

    def expect(self, pattern: str) -> None:
        """Let warnings and errors pass whose event has a match of the regular expression."""
        self._expected.append(re.compile(pattern))

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

    def _take(
        self, _logger: object, level: str, event: structlog.typing.EventDict
    ) -> structlog.typing.EventDict:
        self.entries.append({**event, "log_level": level})
        raise structlog.DropEvent


@pytest.fixture(autouse=True)
def logs() -> Iterator[Logs]:
    """The log of this test. Ask for it by name to ``expect`` troubles or to read ``events``.

    What other processes log goes to their standard error and is not seen here.
    """
    captured = Logs()
    before = structlog.get_config()
    structlog.configure(processors=[captured._take], cache_logger_on_first_use=False)
    try:
        yield captured
    finally:
        structlog.configure(**before)
    if captured.unexpected:
        lines = "\n".join(f"  {entry}" for entry in captured.unexpected)
        pytest.fail(f"logged, and not expected by the test:\n{lines}", pytrace=False)
