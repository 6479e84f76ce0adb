"""From exceptions to what people read: one line, and an exit status."""

from __future__ import annotations

USAGE = 2
"""Exit status when the command line, a file or a folder that it names is wrong."""
FAILED = 1


class WorkersFailed(Exception):
    """The workers could not be kept running; the message says why in one line."""


def innermost(error: BaseException) -> BaseException:
    """Return the first exception inside nested groups: what happened first is the cause."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


def one_line(error: BaseException) -> str:
    """Return the message without line breaks, or the type's name when there is none."""
    return " ".join(str(error).split()) or type(error).__name__
