"""Structured logs: one event a line, JSON for machines, colours on a terminal."""

from __future__ import annotations

import logging
import sys
import time
from typing import TYPE_CHECKING, Final, Literal

import structlog

from duostore_server.telemetry.tracing import trace_ids

if TYPE_CHECKING:
    from collections.abc import Callable

LEVELS: Final = ("debug", "info", "warning", "error")

_QUIET_SECONDS: Final = 60.0


def configure_logs(*, level: str, form: Literal["auto", "json", "console"], **bound: str) -> None:
    """Send all logs of this process, libraries' included, to standard error.

    ``auto`` is ``console`` on a terminal and ``json`` elsewhere. ``bound`` goes with
    every line.
    """
    console = form == "console" or (form == "auto" and sys.stderr.isatty())

    def bind(
        _logger: object, _method: str, event: structlog.typing.EventDict
    ) -> structlog.typing.EventDict:
        return {**bound, **trace_ids(), **event}

    shared: list[structlog.typing.Processor] = [
        bind,
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.StackInfoRenderer(),
    ]
    last: list[structlog.typing.Processor] = (
        [structlog.dev.ConsoleRenderer()]
        if console
        else [structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]
    )
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        wrapper_class=structlog.make_filtering_bound_logger(
            logging.getLevelNamesMapping()[level.upper()]
        ),
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *last],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    # The drivers tell of every retry and connection; our metrics and errors do.
    for name in ("botocore", "boto3", "urllib3", "psycopg", "werkzeug", "moto"):
        logging.getLogger(name).setLevel(logging.ERROR)
    # It connects in the background, and tells nobody else why that fails.
    pool = logging.getLogger("psycopg.pool")
    pool.setLevel(logging.WARNING)
    pool.filters[:] = [OnceInAWhile()]
    # Its loggers are many, and while a collector is down each batch of spans is an error.
    handler.addFilter(OnceInAWhile("opentelemetry", below=logging.CRITICAL))


class OnceInAWhile(logging.Filter):
    """Lets each kind of message through once a minute; those of a level not ``below``, always.

    Of a kind are those that differ in their arguments alone. Messages of other loggers than
    ``name`` and what is under it all pass.
    """

    def __init__(
        self,
        name: str = "",
        *,
        below: int = logging.ERROR,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(name)
        self._below = below
        self._clock = clock
        self._quiet_until: dict[str, float] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        if not super().filter(record):
            return True
        now = self._clock()
        if record.levelno < self._below and now < self._quiet_until.get(record.msg, now):
            return False
        self._quiet_until[record.msg] = now + _QUIET_SECONDS
        return True
