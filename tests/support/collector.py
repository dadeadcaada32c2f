"""A collector of traces on loopback, which keeps what it is sent: OTLP by HTTP or by gRPC."""

from __future__ import annotations

import gzip
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

import grpc
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from opentelemetry.proto.common.v1.common_pb2 import KeyValue

_GRPC = "opentelemetry.proto.collector.trace.v1.TraceService"


@dataclass(frozen=True)
class Received:
    """One span, ids as lower-case hex; of a span that begins a trace ``parent`` is empty."""

    name: str
    trace: str
    id: str
    parent: str
    scope: str
    attributes: Mapping[str, Any]
    resource: Mapping[str, Any]
    events: int


@dataclass
class Collector:
    """What was sent to ``endpoint``, decoded and as it was."""

    endpoint: str = ""
    spans: list[Received] = field(default_factory=list)
    bodies: list[bytes] = field(default_factory=list)
    _taking: threading.Lock = field(default_factory=threading.Lock)

    def take(self, body: bytes) -> None:
        """Keep the spans of a request."""
        request = ExportTraceServiceRequest.FromString(body)
        with self._taking:
            self.bodies.append(body)
            self.spans += _spans(request)

    def of(self, trace: str) -> list[Received]:
        """Return the spans of a trace, by the order of their arrival."""
        with self._taking:
            return [span for span in self.spans if span.trace == trace]


def _spans(request: ExportTraceServiceRequest) -> Iterator[Received]:
    for of_resource in request.resource_spans:
        for of_scope in of_resource.scope_spans:
            for span in of_scope.spans:
                yield Received(
                    name=span.name,
                    trace=span.trace_id.hex(),
                    id=span.span_id.hex(),
                    parent=span.parent_span_id.hex(),
                    scope=of_scope.scope.name,
                    attributes=_values(span.attributes),
                    resource=_values(of_resource.resource.attributes),
                    events=len(span.events),
                )


def _values(attributes: Any) -> dict[str, Any]:
    return {pair.key: _value(pair) for pair in attributes}


def _value(pair: KeyValue) -> Any:
    return getattr(pair.value, pair.value.WhichOneof("value") or "string_value")


@contextmanager
def http_collector() -> Iterator[Collector]:
    """Take OTLP over HTTP while the block runs."""
    collector = Collector()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if self.headers.get("Content-Encoding") == "gzip":
                body = gzip.decompress(body)
            found = self.path == "/v1/traces"
            if found:
                collector.take(body)
            answer = ExportTraceServiceResponse().SerializeToString()
            self.send_response(200 if found else 404)
            self.send_header("Content-Type", "application/x-protobuf")
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - as the base
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        collector.endpoint = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield collector
        finally:
            server.shutdown()
            thread.join()


@contextmanager
def grpc_collector() -> Iterator[Collector]:
    """Take OTLP over gRPC while the block runs."""
    collector = Collector()

    def export(body: bytes, _context: grpc.ServicerContext) -> bytes:
        collector.take(body)
        return ExportTraceServiceResponse().SerializeToString()

    server = grpc.server(ThreadPoolExecutor(1))
    handlers: dict[str, grpc.RpcMethodHandler[bytes, bytes]] = {
        "Export": grpc.unary_unary_rpc_method_handler(export)
    }
    server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler(_GRPC, handlers)])
    collector.endpoint = f"http://127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    server.start()
    try:
        yield collector
    finally:
        server.stop(None).wait()
