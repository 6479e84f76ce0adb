"""Where log events go: standard error, as lines for people or as JSON for machines."""

from __future__ import annotations

import logging
import sys

import msgspec
import structlog

_LEVELS = {
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warning": logging.WARNING,
    "error": logging.ERROR,
}


def configure_logs(level: str, *, as_json: bool, worker: int | None = None) -> None:
    """Send this process's log events to standard error.

    Args:
        level: least level that is written: ``debug``, ``info``, ``warning`` or ``error``.
        as_json: JSON lines even on a terminal; elsewhere they are JSON anyway.
        worker: number of this worker process, bound to every event.
    """
    processors: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    factory: structlog.PrintLoggerFactory | structlog.BytesLoggerFactory
    if as_json or not sys.stderr.isatty():
        encode = msgspec.json.Encoder(enc_hook=str).encode
        processors += [
            structlog.processors.format_exc_info,
            lambda _logger, _method, event: encode(event),
        ]
        factory = structlog.BytesLoggerFactory(file=sys.stderr.buffer)
    else:
        processors.append(
            structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback)
        )
        factory = structlog.PrintLoggerFactory(file=sys.stderr)
    structlog.configure(
        processors=processors,
        wrapper_class=structlog.make_filtering_bound_logger(_LEVELS[level]),
        logger_factory=factory,
        cache_logger_on_first_use=True,
    )
    structlog.contextvars.clear_contextvars()
    if worker is not None:
        structlog.contextvars.bind_contextvars(worker=worker)
