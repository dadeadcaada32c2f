"""What is traced, what is told of it, and that nothing is while nobody asks for it."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest
import structlog
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode, get_current_span
from prometheus_client import CollectorRegistry

from duostore_server.domain.errors import (
    Store,
    StoreTimeoutError,
    StoreUnavailableError,
    VersionMismatchError,
)
from duostore_server.telemetry import spans
from duostore_server.telemetry.metrics import Metrics
from duostore_server.telemetry.store_calls import StoreCalls
from duostore_server.telemetry.tracing import (
    process,
    server_span,
    trace_ids,
    traced,
    tracing,
    wanted,
)
from tests.support.collector import grpc_collector, http_collector

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from opentelemetry.sdk.trace import ReadableSpan

    from duostore_server.telemetry.spans import Spans
    from tests.support.collector import Collector

SERVICE = "duostore.v1.DataAccess"
TRACE = "0af7651916cd43dd8448eb211c80319c"
PARENT = "b7ad6b7169203331"
SAMPLED = [("traceparent", f"00-{TRACE}-{PARENT}-01")]
UNSAMPLED = [("traceparent", f"00-{TRACE}-{PARENT}-00")]
PSYCOPG = "opentelemetry.instrumentation.psycopg"
PYMEMCACHE = "opentelemetry.instrumentation.pymemcache"
SECRET = "nobody-is-to-read-this"


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let no setting of the machine in, and have no driver instrumented in this process."""
    for name in [name for name in os.environ if name.startswith("OTEL_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("OTEL_PYTHON_DISABLED_INSTRUMENTATIONS", "psycopg, botocore,pymemcache")


@contextmanager
def kept() -> Iterator[tuple[Spans, list[ReadableSpan]]]:
    """Trace while the block runs; the list has the spans after it."""
    exporter = InMemorySpanExporter()
    finished: list[ReadableSpan] = []
    with spans.made("worker-1", [exporter]) as made, tracing(made):
        yield made, finished
    finished += exporter.get_finished_spans()


def calls(store: Store = Store.CACHE, op: str = "read") -> StoreCalls:
    return StoreCalls(Metrics(CollectorRegistry()), store, op)


def context_of(span: ReadableSpan) -> Any:
    assert span.context is not None
    return span.context


# Whether.


@pytest.mark.parametrize(
    ("environment", "on"),
    [
        ({}, False),
        ({"OTEL_SERVICE_NAME": "duostore"}, False),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": ""}, False),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector:4318"}, True),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://collector:4318/v1/traces"}, True),
        ({"OTEL_EXPORTER_OTLP_METRICS_ENDPOINT": "http://collector:4318"}, False),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c", "OTEL_SDK_DISABLED": "TRUE"}, False),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c", "OTEL_SDK_DISABLED": "false"}, True),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c", "OTEL_TRACES_EXPORTER": "none"}, False),
        ({"OTEL_TRACES_EXPORTER": "console"}, True),
        ({"OTEL_TRACES_EXPORTER": "otlp"}, True),
        ({"OTEL_TRACES_EXPORTER": "console", "OTEL_SDK_DISABLED": "true"}, False),
    ],
)
def test_the_environment_says_whether_calls_are_traced(
    environment: Mapping[str, str],
    on: bool,  # noqa: FBT001 - a column
) -> None:
    assert wanted(environment) is on


def test_nothing_is_traced_while_nobody_asks_for_it() -> None:
    with traced("worker-1"), server_span(SERVICE, "Get", SAMPLED) as span:
        assert process.spans is None
        assert trace_ids() == {}
        with calls()() as call:
            assert type(call).__name__ == "StoreCall"
        assert not get_current_span().get_span_context().is_valid
        span.answered(0)


def run(script: str, **environment: str) -> str:
    """Return what a process of its own prints."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", script],
        env={**os.environ, **environment},
        check=False,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_while_it_is_off_opentelemetry_is_not_even_imported() -> None:
    script = (
        "import sys\n"
        "import duostore_server.processes\n"
        "from duostore_server.telemetry.tracing import traced\n"
        "with traced('worker-1'): pass\n"
        "print([name for name in sys.modules if name.startswith('opentelemetry')])\n"
    )
    assert run(script) == "[]\n"


def test_without_its_packages_the_service_runs_and_says_once_what_to_install() -> None:
    script = (
        "import sys, structlog\n"
        "sys.modules['opentelemetry'] = None\n"
        "from duostore_server.telemetry.tracing import process, traced\n"
        "with structlog.testing.capture_logs() as logged, traced('worker-1'):\n"
        "    assert process.spans is None\n"
        "    print('runs')\n"
        "(line,) = logged\n"
        "print(line['log_level'], line['event'], line['advice'])\n"
    )
    printed = run(script, OTEL_EXPORTER_OTLP_ENDPOINT="http://127.0.0.1:9")
    assert printed == (
        "runs\nwarning traces cannot be made pip install 'duostore-server[tracing]'\n"
    )


@pytest.mark.parametrize(
    ("name", "value", "why"),
    [
        ("OTEL_TRACES_EXPORTER", "smoke", "'smoke'"),
        ("OTEL_EXPORTER_OTLP_PROTOCOL", "http/json", "'http/json'"),
        ("OTEL_BSP_MAX_QUEUE_SIZE", "1", "max_export_batch_size"),
    ],
)
def test_a_setting_that_cannot_be_is_told_and_the_service_runs(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, why: str
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv(name, value)
    with structlog.testing.capture_logs() as logged, traced("worker-1"):
        assert process.spans is None
    (line,) = logged
    assert line["event"] == "traces cannot be made"
    assert why in line["why"]


# What.


def test_a_call_is_a_child_of_its_client_and_has_its_stores_as_children() -> None:
    with kept() as (_, finished), server_span(SERVICE, "Get", SAMPLED) as span:
        with calls(Store.CACHE, "read")() as call:
            call.outcome = "miss"
        with calls(Store.DYNAMODB, "read")():
            pass
        span.answered(0)
    cache, dynamodb, server = finished
    assert server.name == "duostore.v1.DataAccess/Get"
    assert server.kind is SpanKind.SERVER
    assert server.attributes == {
        "rpc.system": "grpc",
        "rpc.service": SERVICE,
        "rpc.method": "Get",
        "rpc.grpc.status_code": 0,
    }
    assert server.parent is not None
    assert f"{context_of(server).trace_id:032x}" == TRACE
    assert f"{server.parent.span_id:016x}" == PARENT
    for child, name, outcome in ((cache, "cache", "miss"), (dynamodb, "dynamodb", "ok")):
        assert child.name == f"{name}.read"
        assert child.attributes == {"duostore.tier": name, "duostore.outcome": outcome}
        assert child.parent == context_of(server)
        assert child.status.status_code is StatusCode.UNSET


@pytest.mark.parametrize("metadata", [[], [("traceparent", "nonsense")], [("k-bin", b"\x00")]])
def test_a_call_without_a_trace_begins_one(metadata: list[tuple[str, str | bytes]]) -> None:
    with kept() as (_, finished), server_span(SERVICE, "Get", metadata) as span:
        span.answered(0)
    (server,) = finished
    assert server.parent is None


@pytest.mark.parametrize(
    ("code", "failed"), [(0, False), (3, False), (5, False), (10, False), (13, True), (14, True)]
)
def test_only_what_the_server_is_to_blame_for_is_an_error(
    code: int,
    failed: bool,  # noqa: FBT001 - a column
) -> None:
    with kept() as (_, finished), server_span(SERVICE, "Get", []) as span:
        span.answered(code)
    assert (finished[0].status.status_code is StatusCode.ERROR) is failed


@pytest.mark.parametrize(
    ("error", "outcome", "failed"),
    [
        (StoreTimeoutError(Store.AURORA), "timeout", True),
        (StoreUnavailableError(Store.AURORA), "unavailable", True),
        (VersionMismatchError(1, 2), "conflict", False),
        (RuntimeError(SECRET), "error", True),
    ],
)
def test_how_a_store_failed_is_told_and_nothing_it_said(
    error: Exception,
    outcome: str,
    failed: bool,  # noqa: FBT001 - a column
) -> None:
    with (
        kept() as (_, finished),
        server_span(SERVICE, "Save", []),
        pytest.raises(type(error)),
        calls(Store.AURORA, "write")(),
    ):
        raise error
    span = finished[0]
    assert span.name == "aurora.write"
    assert span.attributes == {"duostore.tier": "aurora", "duostore.outcome": outcome}
    assert (span.status.status_code is StatusCode.ERROR) is failed
    assert SECRET not in span.to_json()


def test_a_line_of_the_log_belongs_to_the_span_it_is_written_in() -> None:
    with kept() as (_, finished):
        assert trace_ids() == {}
        with server_span(SERVICE, "Get", SAMPLED):
            of_call = trace_ids()
            with calls()():
                of_store = trace_ids()
            assert trace_ids() == of_call
        assert trace_ids() == {}
    store, server = finished
    assert of_call == {"trace_id": TRACE, "span_id": f"{context_of(server).span_id:016x}"}
    assert of_store == {"trace_id": TRACE, "span_id": f"{context_of(store).span_id:016x}"}


# How much.


def test_of_a_call_that_its_client_does_not_trace_nothing_is_kept_or_logged() -> None:
    with kept() as (_, finished), server_span(SERVICE, "Get", UNSAMPLED) as span:
        with calls()():
            assert trace_ids() == {}
        span.answered(0)
    assert finished == []


@pytest.mark.parametrize(
    ("sampler", "metadata", "count"),
    [
        ("", [], 2),
        ("always_on", UNSAMPLED, 2),
        ("always_off", SAMPLED, 0),
        ("parentbased_always_off", [], 0),
        ("parentbased_always_off", SAMPLED, 2),
    ],
)
def test_the_environment_says_which_calls_are_kept(
    monkeypatch: pytest.MonkeyPatch,
    sampler: str,
    metadata: list[tuple[str, str]],
    count: int,
) -> None:
    if sampler:
        monkeypatch.setenv("OTEL_TRACES_SAMPLER", sampler)
    with kept() as (_, finished), server_span(SERVICE, "Get", metadata), calls()():
        pass
    assert len(finished) == count


@pytest.mark.parametrize("sampler", ["parentbased_always_on", "always_on"])
def test_background_work_and_its_drivers_begin_no_traces(
    monkeypatch: pytest.MonkeyPatch, sampler: str
) -> None:
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", sampler)
    with (
        kept() as (made, finished),
        calls(Store.AURORA, "outbox_claim")(),
        made.provider.get_tracer(PSYCOPG).start_as_current_span("SELECT", kind=SpanKind.CLIENT),
    ):
        assert trace_ids() == {}
    assert finished == []


# To whom.


def test_the_process_is_told_and_the_service_is_as_the_environment_names_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    names = []
    for variables in (
        {},
        {"OTEL_SERVICE_NAME": "store"},
        {"OTEL_SERVICE_NAME": "", "OTEL_RESOURCE_ATTRIBUTES": "service.name=other,zone=a"},
    ):
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        with kept() as (_, finished), server_span(SERVICE, "Get", []):
            pass
        resource = finished[0].resource.attributes
        assert resource["duostore.process"] == "worker-1"
        names.append(resource["service.name"])
    assert names == ["duostore", "store", "other"]
    assert resource["zone"] == "a"


@pytest.mark.parametrize(
    ("protocol", "collecting"),
    [(None, http_collector), ("http/protobuf", http_collector), ("grpc", grpc_collector)],
)
def test_a_collector_receives_what_was_traced(
    monkeypatch: pytest.MonkeyPatch,
    protocol: str | None,
    collecting: Callable[[], Any],
) -> None:
    collector: Collector
    with collecting() as collector:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.endpoint)
        if protocol:
            monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", protocol)
        with traced("worker-1"), server_span(SERVICE, "Get", SAMPLED) as span:
            with calls()():
                pass
            span.answered(0)
        store, server = collector.of(TRACE)
    assert (store.name, server.name) == ("cache.read", "duostore.v1.DataAccess/Get")
    assert store.parent == server.id
    assert server.parent == PARENT
    assert server.attributes["rpc.grpc.status_code"] == 0
    assert server.resource["service.name"] == "duostore"


def test_spans_can_be_printed_one_a_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", "console")
    with traced("worker-1"), server_span(SERVICE, "Get", SAMPLED), calls()():
        pass
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2
    assert '"cache.read"' in lines[0]


class Hanging(SpanExporter):
    """A collector that answers when it is told to."""

    def __init__(self) -> None:
        self.go_on = threading.Event()

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        del spans
        self.go_on.wait(60)
        return SpanExportResult.SUCCESS

    def shutdown(self) -> None:
        pass


def test_a_process_that_ends_does_not_wait_for_a_collector_that_hangs() -> None:
    collector = Hanging()
    try:
        with (
            structlog.testing.capture_logs() as logged,
            spans.made("worker-1", [collector], patience=0.05) as made,
            tracing(made),
            server_span(SERVICE, "Get", []),
        ):
            pass
        assert [line["event"] for line in logged] == [
            "the last traces are lost, their collector did not take them"
        ]
    finally:
        collector.go_on.set()


# What is told of drivers.


@contextmanager
def driver_span(made: Spans, scope: str, **attributes: str) -> Iterator[None]:
    """Be a driver that is asked within a call."""
    tracer = made.provider.get_tracer(scope)
    with (
        server_span(SERVICE, "Save", []),
        tracer.start_as_current_span("it", kind=SpanKind.CLIENT, attributes=attributes),
    ):
        yield


def test_what_a_driver_says_of_values_does_not_leave_the_process() -> None:
    statement = {"db.system": "postgresql", "db.statement": "INSERT INTO t VALUES (%s)"}
    values = {"db.statement.parameters": f"('{SECRET}',)", "db.user": SECRET}
    with (
        kept() as (made, finished),
        pytest.raises(KeyError),
        driver_span(made, PSYCOPG, **statement, **values),
    ):
        raise KeyError(f"duplicate key value\nDETAIL:  Key (id)=({SECRET}) already exists.")
    span = finished[0]
    assert span.attributes == {**statement, "error.type": "KeyError"}
    assert span.status.status_code is StatusCode.ERROR
    assert span.events == ()
    assert SECRET not in span.to_json()


def test_the_keys_of_memcached_do_not_leave_the_process() -> None:
    told = {"db.system": "memcached", "db.statement": f"get_many {SECRET}"}
    with kept() as (made, finished), driver_span(made, PYMEMCACHE, **told):
        pass
    assert finished[0].attributes == {"db.system": "memcached"}


def test_spans_of_others_do_not_leave_the_process() -> None:
    with kept() as (made, finished), driver_span(made, "somebody.else", key=SECRET):
        pass
    assert [span.name for span in finished] == ["duostore.v1.DataAccess/Save"]
