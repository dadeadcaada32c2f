"""Spans of calls and of the stores they ask, by OpenTelemetry.

Only what ``_TOLD`` names leaves the process. Drivers put into their spans what servers say of
errors, and of memcached the keys: PostgreSQL quotes values, and those are documents.
"""

from __future__ import annotations

import os
import sys
import threading
from contextlib import contextmanager
from importlib.metadata import entry_points, version
from typing import TYPE_CHECKING, Any, Final, Self

import structlog
from opentelemetry.context import attach, detach
from opentelemetry.propagate import extract
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import (
    BatchSpanProcessor,
    ConsoleSpanExporter,
    SpanExporter,
    SpanExportResult,
)
from opentelemetry.sdk.trace.sampling import Decision, Sampler, SamplingResult
from opentelemetry.trace import (
    SpanKind,
    Status,
    StatusCode,
    format_span_id,
    format_trace_id,
    get_current_span,
    set_span_in_context,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence
    from types import TracebackType

    from opentelemetry.context import Context
    from opentelemetry.trace import Link, Span, TraceState
    from opentelemetry.util.types import Attributes

SCOPE: Final = "duostore_server"

_DRIVERS: Final = ("psycopg", "botocore", "pymemcache")
_PROTOCOLS: Final = {"http/protobuf": "otlp_proto_http", "grpc": "otlp_proto_grpc"}
# A process that drains has some seconds for its calls, and few for this.
_FLUSH_SECONDS: Final = 3.0
# UNKNOWN, DEADLINE_EXCEEDED, UNIMPLEMENTED, INTERNAL, UNAVAILABLE, DATA_LOSS: of the others the
# caller is the cause.
_FAULTS: Final = frozenset({2, 4, 12, 13, 14, 15})
# Not failures of a store: it did what it was asked for.
_DONE: Final = frozenset({"ok", "miss", "conflict"})

_RPC: Final = frozenset({"rpc.system", "rpc.service", "rpc.method"})
_SERVER: Final = frozenset({"server.address", "server.port", "net.peer.name", "net.peer.port"})
# What may leave the process, by who makes the span; statements have placeholders for values.
_TOLD: Final = {
    SCOPE: _RPC | {"rpc.grpc.status_code", "duostore.tier", "duostore.outcome"},
    "opentelemetry.instrumentation.psycopg": _SERVER
    | {"db.system", "db.name", "db.statement"}
    | {"db.system.name", "db.namespace", "db.query.text", "db.operation.name"},
    "opentelemetry.instrumentation.botocore": _RPC
    | _SERVER
    | {"db.system", "db.operation", "cloud.region", "aws.request_id", "retry_attempts"}
    | {"http.status_code", "aws.dynamodb.table_names", "aws.dynamodb.index_name"},
    # Not its address either, of which pymemcache is not told.
    "opentelemetry.instrumentation.pymemcache": frozenset({"db.system", "db.system.name"}),
}

_log = structlog.get_logger(__name__)


class Spans:
    """Makes the spans of one process; drivers make theirs by the same ``provider``."""

    def __init__(self, provider: TracerProvider) -> None:
        self.provider = provider
        self._tracer = provider.get_tracer(SCOPE, version("duostore-server"))

    def server(
        self, service: str, method: str, metadata: Iterable[tuple[str, str | bytes]]
    ) -> ServerSpan:
        """Return the span of a call that begins now, as the trace context of its client says."""
        carrier = {name: value for name, value in metadata if isinstance(value, str)}
        return ServerSpan(
            self._tracer.start_span(
                f"{service}/{method}",
                extract(carrier),
                SpanKind.SERVER,
                {"rpc.system": "grpc", "rpc.service": service, "rpc.method": method},
            )
        )

    def store(self, tier: str, op: str) -> StoreSpan:
        """Return the span of a call of a store that begins now."""
        return StoreSpan(
            self._tracer.start_span(f"{tier}.{op}", attributes={"duostore.tier": tier})
        )

    def ids(self) -> Mapping[str, str]:
        """Return the ids of the trace and the span that are current; none of what is not kept."""
        context = get_current_span().get_span_context()
        if not context.trace_flags.sampled:
            return {}
        return {
            "trace_id": format_trace_id(context.trace_id),
            "span_id": format_span_id(context.span_id),
        }


class _Current:
    """A span that is current while it is entered, and ends when it is left."""

    __slots__ = ("_span", "_token")

    def __init__(self, span: Span) -> None:
        self._span = span

    def __enter__(self) -> Self:
        self._token = attach(set_span_in_context(self._span))
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        detach(self._token)
        self._span.end()


class ServerSpan(_Current):
    """The span of a call."""

    __slots__ = ()

    def answered(self, code: int) -> None:
        """Note the number of the status code."""
        self._span.set_attribute("rpc.grpc.status_code", code)
        if code in _FAULTS:
            self._span.set_status(StatusCode.ERROR)


class StoreSpan(_Current):
    """The span of a call of a store."""

    __slots__ = ()

    def ended(self, outcome: str) -> None:
        """Note how it ended, in the words of the metrics."""
        self._span.set_attribute("duostore.outcome", outcome)
        if outcome not in _DONE:
            self._span.set_status(StatusCode.ERROR)


@contextmanager
def made(
    name: str, exporters: Sequence[SpanExporter], *, patience: float = _FLUSH_SECONDS
) -> Iterator[Spans]:
    """Make spans of what this process does while the block runs, and of what its drivers do.

    ``name`` is that of the process. The sampler, the batches and what else OpenTelemetry lets
    the environment decide are as that says. Of the drivers' clients only those have spans that
    are made in the block.
    """
    provider = TracerProvider(resource=_resource(name), shutdown_on_exit=False)
    provider.sampler = _CallsAlone(provider.sampler)
    for exporter in exporters:
        provider.add_span_processor(BatchSpanProcessor(_Discreet(exporter)))
    _instrument(provider, os.environ)
    try:
        yield Spans(provider)
    finally:
        # It waits for the exporter as long as that tries.
        closing = threading.Thread(target=provider.shutdown, name="traces-end", daemon=True)
        closing.start()
        closing.join(patience)
        if closing.is_alive():
            _log.warning("the last traces are lost, their collector did not take them")


def exporters(environment: Mapping[str, str]) -> Sequence[SpanExporter]:
    """Return what takes the spans; raises ``ValueError`` if the environment names what is not."""
    names = environment.get("OTEL_TRACES_EXPORTER", "").strip() or "otlp"
    return [_exporter(name.strip(), environment) for name in names.split(",")]


def _exporter(name: str, environment: Mapping[str, str]) -> SpanExporter:
    if name == "console":
        return ConsoleSpanExporter(
            out=sys.stdout, formatter=lambda span: f"{span.to_json(indent=None)}\n"
        )
    if name == "otlp":
        protocol = (
            environment.get("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL")
            or environment.get("OTEL_EXPORTER_OTLP_PROTOCOL")
            or "http/protobuf"
        )
        if protocol not in _PROTOCOLS:
            raise ValueError(f"OTLP can be {' or '.join(_PROTOCOLS)}, not {protocol!r}")
        name = _PROTOCOLS[protocol]
    found = entry_points(group="opentelemetry_traces_exporter", name=name)
    if not found:
        raise ValueError(f"no package has an exporter of traces named {name!r}")
    exporter: SpanExporter = next(iter(found)).load()()
    return exporter


def _resource(process: str) -> Resource:
    """Return who traces: as the environment says, and which process of it."""
    named = OTELResourceDetector().detect().attributes.get("service.name")
    return Resource.create(
        {
            "service.name": named or "duostore",
            "service.version": version("duostore-server"),
            "duostore.process": process,
            "process.pid": os.getpid(),
        }
    )


def _instrument(provider: TracerProvider, environment: Mapping[str, str]) -> None:
    """Have the drivers make spans, too, but for those that the environment excepts.

    They are never asked to stop: the instrumentation of psycopg would leave its class
    ``Connection`` unfit to have subclasses (0.66b1).
    """
    excepted = environment.get("OTEL_PYTHON_DISABLED_INSTRUMENTATIONS", "").split(",")
    for name in {*_DRIVERS} - {name.strip() for name in excepted}:
        for found in entry_points(group="opentelemetry_instrumentor", name=name):
            found.load()().instrument(tracer_provider=provider, skip_dep_check=True)


class _CallsAlone(Sampler):
    """Lets calls begin traces, and nothing else: all other spans need a parent that is kept.

    Background work asks the stores several times a second, mostly for nothing.
    """

    def __init__(self, delegate: Sampler) -> None:
        self._delegate = delegate

    def should_sample(  # noqa: PLR0917 - as the base
        self,
        parent_context: Context | None,
        trace_id: int,
        name: str,
        kind: SpanKind | None = None,
        attributes: Attributes = None,
        links: Sequence[Link] | None = None,
        trace_state: TraceState | None = None,
    ) -> SamplingResult:
        if kind is not SpanKind.SERVER and not _is_sampled(parent_context):
            return SamplingResult(Decision.DROP)
        return self._delegate.should_sample(
            parent_context, trace_id, name, kind, attributes, links, trace_state
        )

    def get_description(self) -> str:
        return f"CallsAlone({self._delegate.get_description()})"


def _is_sampled(context: Context | None) -> bool:
    return get_current_span(context).get_span_context().trace_flags.sampled


class _Discreet(SpanExporter):
    """Hands on spans less all that may hold a key, a value or what a server says of them."""

    def __init__(self, delegate: SpanExporter) -> None:
        self._delegate = delegate

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        told = [span for span in map(_told, spans) if span is not None]
        return self._delegate.export(told) if told else SpanExportResult.SUCCESS

    def shutdown(self) -> None:
        self._delegate.shutdown()

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        return self._delegate.force_flush(timeout_millis)


def _told(span: ReadableSpan) -> ReadableSpan | None:
    scope = span.instrumentation_scope.name if span.instrumentation_scope else ""
    names = next((_TOLD[known] for known in _TOLD if scope.startswith(known)), None)
    if names is None:
        return None
    attributes: dict[str, Any] = {
        name: value for name, value in (span.attributes or {}).items() if name in names
    }
    # An event may be an exception with all that it says, and so may be the status.
    errors = [event.attributes or {} for event in span.events if event.name == "exception"]
    if errors:
        attributes["error.type"] = str(errors[-1].get("exception.type", ""))
    return ReadableSpan(
        name=span.name,
        context=span.context,
        parent=span.parent,
        resource=span.resource,
        attributes=attributes,
        kind=span.kind,
        status=Status(span.status.status_code),
        start_time=span.start_time,
        end_time=span.end_time,
        instrumentation_scope=span.instrumentation_scope,
    )
