"""Which of the drivers' log lines get through."""

from __future__ import annotations

import logging

from duostore_server.telemetry.logs import OnceInAWhile


def record(level: int, message: str, *arguments: object) -> logging.LogRecord:
    return logging.LogRecord("psycopg.pool", level, "", 0, message, arguments, None)


def test_a_kind_of_warning_passes_once_a_minute_and_errors_always() -> None:
    now = 0.0
    passes = OnceInAWhile(clock=lambda: now).filter
    connecting = "error connecting in %r: %s"
    assert passes(record(logging.WARNING, connecting, "aurora", "first"))
    assert not passes(record(logging.WARNING, connecting, "aurora", "second"))
    assert passes(record(logging.WARNING, "discarding broken connection: %s", "it"))
    assert passes(record(logging.ERROR, connecting, "aurora", "third"))
    now = 59.9
    assert not passes(record(logging.WARNING, connecting, "aurora", "fourth"))
    now = 60.0
    assert passes(record(logging.WARNING, connecting, "aurora", "fifth"))
