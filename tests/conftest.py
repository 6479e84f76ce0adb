"""What every test gets: a log in which an unexpected warning or error fails the test."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest
import structlog
from hypothesis import settings

from tests.support.logs import Logs

# An example that takes long on a busy machine is no failure. All else stays as it was chosen.
settings.register_profile("patient", settings.default, deadline=None)
settings.load_profile("patient")

# A shell ignores SIGINT in what it runs in the background, and so would all that tests start.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def logs() -> Iterator[Logs]:
    """The log of this test. Ask for it by name to ``expect`` troubles or to read ``events``.

    What other processes log goes to their standard error and is not seen here.
    """
    captured = Logs()
    before = structlog.get_config()
    structlog.configure(processors=[captured.take], cache_logger_on_first_use=False)
    try:
        yield captured
    finally:
        structlog.configure(**before)
    if captured.unexpected:
        lines = "\n".join(f"  {entry}" for entry in captured.unexpected)
        pytest.fail(f"logged, and not expected by the test:\n{lines}", pytrace=False)
