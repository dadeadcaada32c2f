"""What a line of the log says, and which of the drivers' lines get through."""

from __future__ import annotations

import json
import logging
import subprocess
import sys

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


def test_all_that_an_exporter_of_traces_says_passes_once_a_minute_and_others_always() -> None:
    now = 0.0
    passes = OnceInAWhile("opentelemetry", below=logging.CRITICAL, clock=lambda: now).filter

    def of(name: str) -> logging.LogRecord:
        return logging.LogRecord(name, logging.ERROR, "", 0, "failed to export", (), None)

    exporter = "opentelemetry.exporter.otlp"
    assert passes(of(exporter))
    assert not passes(of(exporter))
    assert [passes(of("duostore_server")) for _ in range(2)] == [True, True]
    now = 60.0
    assert passes(of(exporter))


SCRIPT = """
import logging
import structlog
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from duostore_server.telemetry import spans
from duostore_server.telemetry.logs import configure_logs
from duostore_server.telemetry.tracing import server_span, tracing

configure_logs(level="info", form="json", process="worker-1")
log = structlog.get_logger("ours")
log.info("before")
with spans.made("worker-1", [InMemorySpanExporter()]) as made, tracing(made):
    metadata = [("traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")]
    with (
        server_span("duostore.v1.DataAccess", "Get", metadata),
        structlog.contextvars.bound_contextvars(request_id="r-1", caller="billing"),
    ):
        log.info("within")
        logging.getLogger("driver").warning("within a driver")
    log.info("after")
"""


def test_a_line_has_the_request_the_caller_and_the_trace() -> None:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], check=True, capture_output=True, text=True, timeout=60
    )
    before, within, of_driver, after = map(json.loads, done.stderr.splitlines())
    for line in (within, of_driver):
        assert (line["request_id"], line["caller"]) == ("r-1", "billing")
        assert line["trace_id"] == "0af7651916cd43dd8448eb211c80319c"
        assert len(line["span_id"]) == 16
    assert within["span_id"] == of_driver["span_id"]
    for line in (before, after):
        assert line["process"] == "worker-1"
        assert line.keys() & {"trace_id", "span_id", "request_id", "caller"} == set()
