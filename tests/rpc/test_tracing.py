"""A call of the API is one trace, with a span for each store that was asked."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import grpc
import pytest
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind

from duostore.v1 import data_access_pb2
from duostore_server.telemetry import spans
from duostore_server.telemetry.tracing import tracing
from tests.support.service import CALL_SECONDS, struct
from tests.support.wait import eventually

if TYPE_CHECKING:
    from collections.abc import Iterator

    from opentelemetry.sdk.trace import ReadableSpan

    from tests.support.in_process import InProcess
    from tests.support.service import Caller

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
PARENT = "00f067aa0ba902b7"
METADATA = (("traceparent", f"00-{TRACE}-{PARENT}-01"),)


@contextmanager
def traces(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[ReadableSpan]]:
    """Trace the service of this process while the block runs; the list has the spans after it."""
    # An instrumented driver would stay so for the other tests of this process.
    monkeypatch.setenv("OTEL_PYTHON_DISABLED_INSTRUMENTATIONS", "psycopg,botocore,pymemcache")
    exporter = InMemorySpanExporter()
    finished: list[ReadableSpan] = []
    with spans.made("tests", [exporter]) as made, tracing(made):
        yield finished
    finished += exporter.get_finished_spans()


def id_of(context: Any) -> str:
    return f"{context.span_id:016x}"


def servers(finished: list[ReadableSpan]) -> list[ReadableSpan]:
    return [span for span in finished if span.kind is SpanKind.SERVER]


def asked_by(server: ReadableSpan, finished: list[ReadableSpan]) -> list[tuple[str, Any, Any]]:
    """Return the store spans of a call: name, tier and outcome, in the order of their begin."""
    children = [span for span in finished if span.parent == server.context]
    assert all(span.attributes is not None for span in children)
    return [
        (span.name, span.attributes["duostore.tier"], span.attributes["duostore.outcome"])
        for span in sorted(children, key=lambda span: span.start_time or 0)
        if span.attributes
    ]


def test_a_save_and_a_get_are_one_trace_with_their_tiers_and_outcomes(
    notes: Caller, id_: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    save = data_access_pb2.SaveRequest(key=notes.key(id_), data=struct({"title": "t"}))
    get = data_access_pb2.GetRequest(key=notes.key(id_))
    with traces(monkeypatch) as finished:
        notes.stub.Save(save, timeout=CALL_SECONDS, metadata=METADATA)
        for _ in range(2):
            notes.stub.Get(get, timeout=CALL_SECONDS, metadata=METADATA)
    saved, read, hit = servers(finished)
    for server, method in ((saved, "Save"), (read, "Get"), (hit, "Get")):
        assert server.name == f"duostore.v1.DataAccess/{method}"
        assert server.attributes is not None
        assert server.attributes["rpc.grpc.status_code"] == 0
        assert server.context is not None
        assert f"{server.context.trace_id:032x}" == TRACE
        assert id_of(server.parent) == PARENT
    of_save = asked_by(saved, finished)
    assert of_save[0] == ("aurora.write", "aurora", "ok")
    assert of_save[-1] == ("cache.invalidate", "cache", "ok")
    assert {tier for _, tier, _ in of_save} == {"aurora", "dynamodb", "cache"}
    of_read = asked_by(read, finished)
    assert of_read[0] == ("cache.read", "cache", "miss")
    assert ("dynamodb.read", "dynamodb", "ok") in of_read
    assert of_read[-1] == ("cache.fill", "cache", "ok")
    assert asked_by(hit, finished) == [("cache.read", "cache", "ok")]


def test_a_refused_call_tells_its_status_and_which_store_refused(
    notes: Caller, id_: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    notes.save(id_, {"title": "t"})
    save = data_access_pb2.SaveRequest(
        key=notes.key(id_), data=struct({"title": "t"}), if_absent=True
    )
    with traces(monkeypatch) as finished, pytest.raises(grpc.RpcError):
        notes.stub.Save(save, timeout=CALL_SECONDS, metadata=METADATA)
    (server,) = servers(finished)
    assert server.attributes is not None
    assert server.attributes["rpc.grpc.status_code"] == grpc.StatusCode.ALREADY_EXISTS.value[0]
    assert asked_by(server, finished)[0] == ("aurora.write", "aurora", "conflict")


def test_a_stream_is_traced_until_its_last_message(
    notes: Caller, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = data_access_pb2.ExportRequest(query="tally", params=struct({"count": 3}))
    with traces(monkeypatch) as finished:
        assert len(list(notes.stub.Export(request, timeout=CALL_SECONDS, metadata=METADATA))) > 0
    (server,) = servers(finished)
    assert server.name == "duostore.v1.DataAccess/Export"
    assert asked_by(server, finished) == [("aurora.query_open", "aurora", "ok")]


def test_background_work_leaves_no_trace(
    api: InProcess, notes: Caller, id_: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def claims() -> float:
        return api.metric("duostore_store_calls_total", store="aurora", op="outbox_claim")

    request = data_access_pb2.GetRequest(key=notes.key(id_))
    with traces(monkeypatch) as finished:
        before = claims()
        with pytest.raises(grpc.RpcError):
            notes.stub.Get(request, timeout=CALL_SECONDS, metadata=METADATA)
        eventually(lambda: claims() > before + 1, within=20, what="the projector works")
    (server,) = servers(finished)
    assert len(finished) > 1
    assert all(span is server or span.parent == server.context for span in finished)
